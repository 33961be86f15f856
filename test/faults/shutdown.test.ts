import { once } from 'node:events'
import { mkdtemp } from 'node:fs/promises'
import { connect, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import ssePlugin, { type SSEOptions } from '../../lib/index.js'
import { block } from '../helpers/app.js'
import { createCertificate } from '../helpers/certificate.js'
import { connectH2, H2Stream } from '../helpers/h2.js'
import { RawSocket } from '../helpers/raw.js'
import { SSEClient } from '../helpers/sse.js'
import { until } from '../helpers/wait.js'

// The end of a server in the middle of its work, and the return of its clients.

interface Closing {
  app: FastifyInstance
  url: string
  /** Closes the server beside a clock of the same event loop, which is as late as it is on a busy machine; returns the milliseconds it took. */
  close (t: Test): Promise<number>
}

async function serve (t: Test, server: FastifyServerOptions | object, options: SSEOptions): Promise<Closing> {
  const app = Fastify({ ...server }) as unknown as FastifyInstance
  await app.register(ssePlugin, { stallTimeoutMs: 0, ...options })
  app.get('/sse', async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
  app.get('/slow', async () => {
    await sleep(options.drainMs! / 4)
    return 'done'
  })
  await app.listen({ host: '127.0.0.1', port: 0 })
  t.teardown(() => app.close())
  const { port } = app.server.address() as AddressInfo
  return {
    app,
    url: `${'https' in server ? 'https' : 'http'}://127.0.0.1:${port}`,
    async close (t) {
      const began = performance.now()
      const drainMs = options.drainMs!
      let late = false
      const clock = sleep(drainMs + 2000, null, { ref: false }).then(() => { late = true })
      await Promise.race([app.close(), clock])
      const took = Math.round(performance.now() - began)
      t.equal(late, false, 'closed in time')
      t.comment(`closed after ${took} ms, drainMs ${drainMs}; promised: ${drainMs + 500}`)
      return took
    }
  }
}

const STREAMS = 2000

t.test('two thousand streams, one that does not read, a HEAD, a bare connection, half a request, a request at work', async t => {
  const service = await serve(t, {}, { drainMs: 1000 })
  const { app, url } = service
  const clients: SSEClient[] = []
  t.teardown(() => { for (const client of clients) client.close() })
  for (let i = 0; i < STREAMS; i += 100) {
    const some = Array.from({ length: 100 }, () => new SSEClient(`${url}/sse`))
    clients.push(...some)
    await Promise.all(some.map(client => client.ready()))
  }
  const stalled = await SSEClient.open(`${url}/sse`)
  t.teardown(() => stalled.close())
  await block({ client: stalled, connection: [...app.sse.connections()].at(-1)! })
  const head = new RawSocket(url, { method: 'HEAD', path: '/sse' })
  await head.waitFor('\r\n\r\n')
  const { port } = app.server.address() as AddressInfo
  const bare = connect(port, '127.0.0.1')
  const half = connect(port, '127.0.0.1')
  t.teardown(() => { for (const socket of [bare, half]) socket.destroy() })
  await Promise.all([once(bare, 'connect'), once(half, 'connect')])
  half.write('GET /sse HTTP/1.1\r\nhost: x\r\n')
  half.on('error', () => {})
  const busy = new RawSocket(url, { path: '/slow' })
  t.equal(app.sse.connectionCount, STREAMS + 1)
  await until(async () => new Promise<boolean>((resolve, reject) => app.server.getConnections((error, count) => error === null ? resolve(count === STREAMS + 5) : reject(error))))

  bare.resume()
  await service.close(t)
  await Promise.all(clients.map(client => client.waitForEnd()))
  t.ok(clients.every(client => client.ended && client.json('sse:close')[0].reason === 'shutdown'), 'all were told')
  await until(() => bare.closed)
  await busy.waitForAnswers(1)
  t.equal(busy.answers[0]!.status, 200, 'a request that had begun is answered')
  t.match(app.sse.stats(), { connections: 0, queuedBytes: 0, closed: { shutdown: STREAMS + 1 } })
  await app.close()
})

t.test('a bare connection or an idle session holds up nothing', async t => {
  const certificate = createCertificate(await mkdtemp(join(tmpdir(), 'shutdown-')))
  const bareSocket = async (url: string) => {
    const socket = connect(Number(new URL(url).port), '127.0.0.1')
    socket.on('error', () => {})
    await once(socket, 'connect')
    return socket
  }
  const cases: Record<string, { server: object, open: (url: string) => Promise<{ destroy: () => unknown }> }> = {
    'HTTP/1': { server: {}, open: bareSocket },
    'TLS, before the handshake': { server: { https: certificate }, open: bareSocket },
    'TLS, after it': {
      server: { https: certificate },
      open: async url => {
        const socket = new RawSocket(url)
        await once(socket.socket, 'secureConnect')
        return { destroy: () => socket.close() }
      }
    },
    'HTTP/2, before the session': { server: { http2: true }, open: bareSocket },
    'HTTP/2, a session without a stream': {
      server: { http2: true },
      open: async url => {
        const session = connectH2(url)
        await once(session, 'remoteSettings')
        return session
      }
    },
    'HTTP/2 over TLS': {
      server: { http2: true, https: { ...certificate, allowHTTP1: true } },
      open: async url => {
        const session = connectH2(url)
        await once(session, 'remoteSettings')
        return session
      }
    }
  }
  for (const [name, { server, open }] of Object.entries(cases)) {
    await t.test(name, async t => {
      const service = await serve(t, server, { drainMs: 3000 })
      const idle = await open(service.url)
      t.teardown(() => { idle.destroy() })
      // The server has seen it.
      await until(() => new Promise<boolean>((resolve, reject) => service.app.server.getConnections((error, count) => error === null ? resolve(count === 1) : reject(error))))
      await sleep(20)
      t.ok(await service.close(t) < 3000, 'not even drainMs')
    })
  }
})

t.test('two hundred streams of HTTP/2, and a session that does not read', async t => {
  const service = await serve(t, { http2: true }, { drainMs: 1000, outboxBytes: 100_000 })
  const { app, url } = service
  const sessions = Array.from({ length: 10 }, () => connectH2(url))
  const stalled = connectH2(url)
  t.teardown(() => { for (const session of [...sessions, stalled]) session.destroy() })
  const streams = sessions.flatMap(session => Array.from({ length: 20 }, () => new H2Stream(session, '/sse')))
  await Promise.all(streams.map(stream => stream.waitFor('id: ')))
  const stuck = new H2Stream(stalled, '/sse')
  await stuck.waitFor('id: ')
  stuck.stream.pause()
  const [last] = [...app.sse.connections()].slice(-1)
  await until(async () => {
    last!.sendEvent({ data: 'x'.repeat(50_000) })
    await new Promise(setImmediate)
    return last!.stats().queuedBytes > 0
  })
  await service.close(t)
  await Promise.all(streams.map(stream => stream.waitForClose()))
  t.ok(streams.every(stream => stream.named('sse:close').length === 1 && stream.ended), 'all were told')
  await until(() => sessions.every(session => session.closed))
  t.match(app.sse.stats(), { connections: 0, queuedBytes: 0, closed: { shutdown: 201 } })
})
