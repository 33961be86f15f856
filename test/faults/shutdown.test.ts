import { spawn } from 'node:child_process'
import dns from 'node:dns'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { connect, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import { chromium } from 'playwright-core'
import t, { type Test } from 'tap'
import { EventSource } from 'undici'
import { tie } from '../../lib/testing/tie.js'
import ssePlugin, { type SSEOptions } from '../../lib/index.js'
import { block, openURL, payloads } from '../helpers/app.js'
import { createCertificate } from '../helpers/certificate.js'
import { connectH2, H2Stream } from '../helpers/h2.js'
import { RawSocket } from '../helpers/raw.js'
import { until, windows } from '../helpers/wait.js'
import type { TestStream } from '../../lib/testing/index.js'
import { openStream } from '../../lib/testing/index.js'

/** A busy machine takes time from a process that waits; what nothing looks after holds up a server for the 5 s of Node's keep-alive, or longer. */
const SLACK_MS = 3_000

// The end of a server in the middle of its work, and the return of its clients.

const CHROMIUM = '/usr/bin/chromium'

/** Who is connected: of HTTP/2, what its session shows of the socket. */
interface Peer {
  socket: Pick<Socket, 'localPort' | 'bytesWritten'>
  close: () => unknown
}

interface Closing {
  app: FastifyInstance
  url: string
  /** The server's sockets, under TLS both the bare one and the one that decrypts it. */
  sockets: Set<Socket>
  /** Waits until the server has read all that this client has written. */
  hasRead (client: Peer): Promise<void>
  /**
   * Closes the server, and returns the milliseconds for which the event loop had nothing to do meanwhile. Work is not counted,
   * because it takes longer on a busy machine: a close is held up only while the process waits.
   */
  close (t: Test): Promise<number>
}

async function serve (t: Test, server: FastifyServerOptions | object, options: SSEOptions): Promise<Closing> {
  const app = Fastify({ ...server }) as unknown as FastifyInstance
  const sockets = new Set<Socket>()
  for (const event of ['connection', 'secureConnection']) {
    app.server.on(event, (socket: Socket) => {
      sockets.add(socket)
      socket.once('close', () => sockets.delete(socket))
    })
  }
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
    sockets,
    async hasRead ({ socket }) {
      await until(() => [...sockets].some(({ remotePort, bytesRead }) => remotePort === socket.localPort && bytesRead === socket.bytesWritten))
    },
    async close (t) {
      const began = performance.now()
      const drainMs = options.drainMs!
      const { eventLoopUtilization } = performance
      const { idle } = eventLoopUtilization()
      const waited = () => Math.round(eventLoopUtilization().idle - idle)
      const closing = app.close().then(() => true)
      let closed = false
      do closed = await Promise.race([closing, sleep(50, false)])
      while (!closed && waited() <= drainMs + SLACK_MS)
      t.equal(closed, true, 'closed in time')
      t.comment(`closed after ${Math.round(performance.now() - began)} ms, ${waited()} of them idle, drainMs ${drainMs}; promised: ${drainMs}`)
      return waited()
    }
  }
}

const STREAMS = 2000

t.test('two thousand streams, one that does not read, a HEAD, a bare connection, half a request, a request at work', async t => {
  const service = await serve(t, {}, { drainMs: 1000 })
  const { app, url } = service
  const clients: TestStream[] = []
  for (let i = 0; i < STREAMS; i += 100) clients.push(...await Promise.all(Array.from({ length: 100 }, () => openStream(app, '/sse', { test: t, timeoutMs: 30_000 }))))
  const stalled = await openStream(app, '/sse', { test: t, timeoutMs: 30_000 })
  await block({ stream: stalled, connection: [...app.sse.connections()].at(-1)! })
  const head = new RawSocket(url, { method: 'HEAD', path: '/sse' })
  await head.waitFor('\r\n\r\n')
  const bare = new RawSocket(url)
  const half = new RawSocket(url)
  t.teardown(() => { for (const socket of [bare, half]) socket.close() })
  await Promise.all([bare, half].map(({ socket }) => once(socket, 'connect')))
  half.socket.write('GET /sse HTTP/1.1\r\nhost: x\r\n')
  const busy = new RawSocket(url, { path: '/slow' })
  t.equal(app.sse.connectionCount, STREAMS + 1)
  for (const peer of [bare, half, busy]) await service.hasRead(peer)
  t.equal(service.sockets.size, STREAMS + 5)

  await service.close(t)
  const ends = await Promise.all(clients.map(stream => stream.ended))
  t.ok(ends.every(({ by, reason }) => by === 'server' && reason === 'shutdown'), 'all were told')
  await until(() => bare.closed)
  await busy.waitForAnswers(1)
  t.equal(busy.answers[0]!.status, 200, 'a request that had begun is answered')
  t.match(app.sse.stats(), { connections: 0, queuedBytes: 0, closed: { shutdown: STREAMS + 1 } })
  await app.close()
})

t.test('a bare connection or an idle session holds up nothing', async t => {
  const certificate = createCertificate(await mkdtemp(join(tmpdir(), 'shutdown-')))
  const bareSocket = async (url: string) => {
    const socket = new RawSocket(url.replace('https', 'http'))
    await once(socket.socket, 'connect')
    return socket
  }
  const session = async (url: string) => {
    const session = connectH2(url)
    await once(session, 'remoteSettings')
    return { socket: session.socket, close: () => session.destroy() }
  }
  const cases: Record<string, { server: object, open: (url: string) => Promise<Peer> }> = {
    'HTTP/1': { server: {}, open: bareSocket },
    'TLS, before the handshake': { server: { https: certificate }, open: bareSocket },
    'TLS, after it': {
      server: { https: certificate },
      open: async url => {
        const socket = new RawSocket(url)
        await once(socket.socket, 'secureConnect')
        return socket
      }
    },
    'HTTP/2, before the session': { server: { http2: true }, open: bareSocket },
    'HTTP/2, a session without a stream': { server: { http2: true }, open: session },
    'HTTP/2 over TLS': { server: { http2: true, https: { ...certificate, allowHTTP1: true } }, open: session }
  }
  for (const [name, { server, open }] of Object.entries(cases)) {
    await t.test(name, async t => {
      const service = await serve(t, server, { drainMs: 3000 })
      const idle = await open(service.url)
      t.teardown(() => { idle.close() })
      await service.hasRead(idle)
      t.ok(await service.close(t) < 3000, 'not even drainMs')
    })
  }
})

t.test('half a handshake, or half a request, holds up nothing, wherever it breaks off', async t => {
  const certificate = createCertificate(await mkdtemp(join(tmpdir(), 'shutdown-')))
  const http = async (url: string, ...parts: (string | Buffer)[]) => {
    const socket = new RawSocket(url)
    await once(socket.socket, url.startsWith('https') ? 'secureConnect' : 'connect')
    for (const part of parts) socket.socket.write(part)
    return socket
  }
  const bare = (url: string, ...parts: (string | Buffer)[]) => http(url.replace('https', 'http'), ...parts)
  const GET = (path: string) => `GET ${path} HTTP/1.1\r\nhost: x\r\n\r\n`
  const HALF = 'GET / HTTP/1.1\r\nho'
  const HELLO = Buffer.from([0x16, 3, 1, 2, 0])
  const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'
  const SETTINGS = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0])
  // Without END_HEADERS.
  const HEADERS = Buffer.from([0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82])
  const over = { http2: true, https: { ...certificate, allowHTTP1: true } }
  const cases: Record<string, { server?: object, open: (url: string) => Promise<Peer> }> = {
    'the first request on its socket': { open: url => http(url, HALF) },
    'the second': {
      open: async url => {
        const socket = new RawSocket(url, { path: '/missing' })
        await socket.waitForAnswers(1)
        socket.socket.write(HALF)
        return socket
      }
    },
    'one behind a request that is at work': { open: url => http(url, GET('/slow'), HALF) },
    'a body': { open: url => http(url, 'POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{') },
    'a request over TLS': { server: { https: certificate }, open: url => http(url, HALF) },
    'a handshake of TLS': { server: { https: certificate }, open: url => bare(url, HELLO) },
    'a handshake of TLS under HTTP/2': { server: over, open: url => bare(url, HELLO) },
    'a request of HTTP/1 beside HTTP/2': { server: over, open: url => http(url, HALF) },
    'the preface of HTTP/2': { server: { http2: true }, open: url => bare(url, PREFACE.slice(0, 9)) },
    'a head of HTTP/2': { server: { http2: true }, open: url => bare(url, PREFACE, SETTINGS, HEADERS) },
    'a body of HTTP/2, beside a request at work': {
      server: over,
      open: async url => {
        const session = connectH2(url)
        session.on('error', () => {})
        const request = session.request({ ':method': 'POST', ':path': '/missing', 'content-type': 'application/json', 'content-length': '10' })
        const slow = session.request({ ':path': '/slow' })
        slow.resume().on('response', headers => { t.equal(headers[':status'], 200, 'what is at work is answered') })
        await new Promise(resolve => { request.on('error', () => {}).write('{', resolve) })
        return { socket: session.socket, close: () => session.destroy() }
      }
    }
  }
  for (const [name, { server = {}, open }] of Object.entries(cases)) {
    await t.test(name, async t => {
      const service = await serve(t, server, { drainMs: 400 })
      const half = await open(service.url)
      t.teardown(() => { half.close() })
      await service.hasRead(half)
      await service.close(t)
    })
  }
})

t.test('every server of an instance is looked after: a name with two addresses has two', async t => {
  const certificate = createCertificate(await mkdtemp(join(tmpdir(), 'shutdown-')))
  const { lookup } = dns
  // As of `localhost` with IPv6, on any machine.
  dns.lookup = ((host: string, options: object, callback: (error: null, addresses: object[]) => void) => {
    if (host === 'localhost' && 'all' in options) callback(null, [{ address: '127.0.0.1', family: 4 }, { address: '127.0.0.2', family: 4 }])
    else (lookup as (...args: unknown[]) => void)(host, options, callback)
  }) as typeof lookup
  t.teardown(() => { dns.lookup = lookup })
  const cases: Record<string, object> = { 'HTTP/1': {}, TLS: { https: certificate }, 'HTTP/2': { http2: true }, 'HTTP/2 over TLS': { http2: true, https: { ...certificate, allowHTTP1: true } } }
  for (const [name, server] of Object.entries(cases)) {
    await t.test(name, async t => {
      const app = Fastify({ ...server }) as unknown as FastifyInstance
      t.teardown(() => app.close())
      await app.register(ssePlugin, { path: '/sse', drainMs: 300, stallTimeoutMs: 0 })
      await app.listen({ port: 0, host: 'localhost' })
      const addresses = app.addresses() as AddressInfo[]
      const { port } = addresses[0]!
      t.strictSame(addresses.map(({ address }) => address).sort(), ['127.0.0.1', '127.0.0.2'])
      const peers: { closed: boolean }[] = []
      for (const address of ['127.0.0.1', '127.0.0.2']) {
        const bare = new RawSocket(`http://${address}:${port}`)
        await once(bare.socket, 'connect')
        const half = new RawSocket(`http://${address}:${port}`)
        half.socket.write('https' in server ? Buffer.from([0x16, 3, 1, 2, 0]) : 'http2' in server ? 'PRI * HTT' : 'GET / HTTP/1.1\r\nho')
        peers.push(bare, half)
        if (!('http2' in server)) {
          const idle = new RawSocket(`${'https' in server ? 'https' : 'http'}://${address}:${port}`, { path: '/missing' })
          await idle.waitForAnswers(1)
          peers.push(idle)
          continue
        }
        const session = connectH2(`${'https' in server ? 'https' : 'http'}://${address}:${port}`)
        t.teardown(() => session.destroy())
        peers.push(new H2Stream(session, '/sse'), session)
        await (peers.at(-2) as H2Stream).waitFor('id: ')
      }
      await app.close()
      // The second server stops listening once the first has closed.
      await until(() => peers.every(({ closed }) => closed), 10_000, 'the end of all, on both')
      await t.rejects(once(connect(port, '127.0.0.2'), 'connect'), { code: 'ECONNREFUSED' })
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

/** The server in a process of its own, and the lines it has said. */
class ServerProcess {
  readonly lines: string[] = []
  readonly exited: Promise<unknown[]>
  readonly #process

  constructor (t: Test, port: number, drainMs: number) {
    this.#process = tie(spawn(process.execPath, ['--import=@tapjs/typescript/import', fileURLToPath(new URL('server.ts', import.meta.url)), String(port), String(drainMs)], { stdio: ['ignore', 'pipe', 'inherit'] }))
    this.exited = once(this.#process, 'exit')
    let rest = ''
    this.#process.stdout.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n')
      rest = lines.pop()!
      this.lines.push(...lines)
    })
    t.teardown(() => { this.#process.kill('SIGKILL') })
  }

  async says (start: string): Promise<string> {
    return await until(() => this.lines.find(line => line.startsWith(start)), 60_000, `"${start}" of ${JSON.stringify(this.lines)}`)
  }

  async start (): Promise<number> {
    return Number((await this.says('listening')).split(' ')[2])
  }

  signal (signal: NodeJS.Signals): void {
    this.#process.kill(signal)
  }
}

t.test('SIGTERM while it publishes: all is told, nothing is lost before the end, and the process exits by itself', async t => {
  const server = new ServerProcess(t, 0, 1500)
  const port = await server.start()
  const clients = await Promise.all(Array.from({ length: 50 }, () => openURL(t, `http://127.0.0.1:${port}/sse`)))
  const bare = connect(port, '127.0.0.1')
  bare.on('error', () => {})
  t.teardown(() => { for (const stream of clients) stream.close() })
  await Promise.all(clients.map(stream => stream.until(() => stream.named('message').length >= 50)))
  server.signal('SIGTERM')
  await Promise.all(clients.map(stream => stream.ended))
  const ends = new Set<number>()
  for (const stream of clients) {
    const numbers = payloads(stream, 'message') as number[]
    t.equal(numbers.findIndex((n, i) => n !== numbers[0]! + i), -1, 'without a hole up to its end')
    t.strictSame(payloads(stream, 'sse:close'), [{ reason: 'shutdown', reconnect: true }])
    t.equal(stream.events.at(-1)!.event, 'sse:close')
    ends.add(numbers.at(-1)!)
  }
  t.equal(ends.size, 1, 'all end at the same event')
  t.strictSame(await server.exited, [0, null], 'it exits by itself')
  t.match(server.lines.filter(line => !line.startsWith('listening')), [/^closed after/, 'refused true'])
  t.comment(`${server.lines.join('; ')}; drainMs 1500`)
})

t.test('clients return to the next server by themselves, all of them, and spread out', async t => {
  const drainMs = 2000
  const first = new ServerProcess(t, 0, drainMs)
  const port = await first.start()
  const url = `http://127.0.0.1:${port}`

  const sources = Array.from({ length: 60 }, () => new EventSource(`${url}/sse`))
  const numbers = sources.map(source => {
    const seen: number[] = []
    source.addEventListener('message', event => { seen.push(Number(event.data)) })
    return seen
  })
  t.teardown(() => { for (const source of sources) source.close() })
  const pages = await openPages(t, url, 4)
  await until(() => numbers.every(seen => seen.length > 0), 60_000)
  // What each is told, seen by a client that sees all.
  const witnesses = await Promise.all(Array.from({ length: 300 }, () => openURL(t, `${url}/sse`)))
  t.teardown(() => { for (const witness of witnesses) witness.close() })

  first.signal('SIGTERM')
  t.strictSame(await first.exited, [0, null])
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(ssePlugin, { drainMs: 100 })
  app.addHook('onRequest', async (request, reply) => { reply.header('access-control-allow-origin', '*') })
  app.get('/sse', async (request, reply) => { await reply.sse() })
  await app.listen({ host: '127.0.0.1', port })
  const wanted = sources.length + pages.count
  await until(() => app.sse.connectionCount === wanted, 60_000, `${wanted} to return`)
  await until(() => sources.every(source => source.readyState !== EventSource.CONNECTING), 30_000, 'all to know')
  t.ok(sources.every(source => source.readyState === EventSource.OPEN), 'nobody gave up')
  t.equal(await pages.open(), pages.count)

  const told = windows(witnesses.map(witness => witness.retryMs!))
  t.ok(told.most <= 3 * told.mean, `told: at most ${told.most} in 100 ms, ${told.mean.toFixed(1)} in the mean`)
  // They come when a busy machine lets them: shown, not judged.
  const came = windows([...app.sse.connections()].map(({ clientInfo }) => clientInfo.connectedAt))
  t.comment(`came: at most ${came.most} in 100 ms, ${came.mean.toFixed(1)} in the mean`)
})

/** Pages in a real browser, each with an EventSource; none where there is no browser and it is not CI. */
async function openPages (t: Test, url: string, count: number): Promise<{ count: number, open: () => Promise<number> }> {
  if (!existsSync(CHROMIUM)) {
    if (process.env['CI'] !== undefined) throw new Error('CI has no Chromium')
    t.comment('without Chromium, which is not installed')
    return { count: 0, open: async () => 0 }
  }
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] })
  t.teardown(() => browser.close())
  const page = await browser.newPage()
  await page.goto(url)
  await page.evaluate(`window.sources = Array.from({ length: ${count} }, () => new EventSource('/sse'))`)
  const open = async () => await page.evaluate('window.sources.filter(source => source.readyState === EventSource.OPEN).length') as number
  await until(async () => await open() === count, 30_000, 'the pages to connect')
  return { count, open }
}
