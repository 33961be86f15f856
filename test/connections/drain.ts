import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import t from 'tap'
import { EventSource } from 'undici'
import ssePlugin, { memoryBroker, SSEManager } from '../../lib/index.js'
import { block, listen, openURL, payloads, serve } from '../helpers/app.js'
import { connectH2, H2Stream } from '../helpers/h2.js'
import { RawSocket, requestText } from '../helpers/raw.js'
import { SSEClient } from '../helpers/sse.js'
import { logged } from '../helpers/logged.js'
import { listenForTrouble } from '../helpers/trouble.js'
import { until } from '../helpers/wait.js'
import type { TestStream } from '../../lib/testing/index.js'

// The end of a connection, whoever ends it and however: told to the client, and nothing left behind.

const closes = (stream: TestStream): unknown[] => payloads(stream, 'sse:close')

t.test('closing the server', async t => {
  t.test('ends all streams, tells clients their place and when to return, and comes back at once', async t => {
    const trouble = listenForTrouble(t)
    const drainMs = 10_000
    const { app, join, open } = await serve(t, { drainMs, retryMs: 500 }, {}, app => {
      app.get('/source', (request, reply) => reply.sse(async function * ({ signal }) {
        yield 'a'
        await once(signal, 'abort')
      }))
    })
    const joined = await Promise.all(Array.from({ length: 20 }, (_, i) => join(`user-${i}`, ['news'])))
    const source = await open('/source')
    await source.next('message')
    const { id } = await app.sse.broadcastEvent({ data: 'last' })
    // Idle on a socket that is kept alive, and stuck in a pipeline: both would hold up a server that only waits.
    const idle = new RawSocket(`http://127.0.0.1:${(app.server.address() as AddressInfo).port}`, { path: '/nothing' })
    await idle.waitForAnswers(1)

    let closed = false
    const closing = app.close().then(() => { closed = true })
    await until(() => closed, 0.75 * drainMs, 'fastify.close()')
    await closing
    for (const { stream, connection } of joined) {
      await stream.ended
      t.equal((await stream.ended).by === 'server', true)
      t.strictSame(closes(stream), [{ reason: 'shutdown', reconnect: true }])
      const retry = stream.retryMs
      t.ok(retry! >= drainMs && retry! <= 2 * drainMs, `retry ${retry}: not before the server has finished closing`)
      t.equal(stream.lastEventId, id)
      t.equal(connection.isConnected, false)
      t.equal(connection.signal.reason.closeReason, 'shutdown')
    }
    t.ok(new Set(joined.map(({ stream }) => stream.retryMs)).size > 1, 'they do not all return together')
    await source.ended
    t.strictSame(closes(source), [{ reason: 'shutdown', reconnect: true }])
    t.equal(source.lastEventId, '', 'a source has its own ids')
    t.match(app.sse.stats(), { connections: 0, closed: { shutdown: 21 } })

    await Promise.all([app.close(), app.sse.close(), app.sse.drain(), app.sse.close()])
    t.equal(joined[0]!.stream.named('sse:close').length, 1, 'a second close does nothing')
    await t.rejects(app.sse.broadcastEvent({ data: 1 }), { code: 'SSE_ERR_CLOSED' })
    t.strictSame(trouble, [])
  })

  t.test('a request at work behind one that was answered on the same socket is answered, also after drainMs', async t => {
    const release: Record<string, () => void> = {}
    const sockets: Socket[] = []
    const { app, url } = await serve(t, { drainMs: 100 }, {}, app => {
      app.server.on('connection', socket => { sockets.push(socket) })
      app.get('/work/:name', async request => {
        const { name } = request.params as { name: string }
        await new Promise<void>(resolve => { release[name] = resolve })
        return { name }
      })
    })
    const pipeline = new RawSocket(url)
    const half = new RawSocket(url)
    t.teardown(() => { for (const socket of [pipeline, half]) socket.close() })
    half.socket.write('GET / HTTP/1.1\r\nhost: x\r\n')
    pipeline.socket.write(requestText({ path: '/work/first' }) + requestText({ path: '/work/second' }))
    await until(() => 'second' in release && sockets.length === 2 && sockets.every(({ bytesRead }) => bytesRead > 0))
    release['first']!()
    await pipeline.waitForAnswers(1)
    const closing = app.close()
    await half.waitForClose()
    release['second']!()
    t.strictSame((await pipeline.waitForAnswers(2)).map(({ body }) => body), ['{"name":"first"}', '{"name":"second"}'])
    await closing
  })

  t.test('does not wait longer than drainMs for a client that does not read', async t => {
    const service = await serve(t, { drainMs: 300, stallTimeoutMs: 0 })
    const stalled = await service.join('ada')
    await block(stalled)
    const reading = await service.join('bob')
    const closing = service.app.close()
    await reading.stream.ended
    t.strictSame(closes(reading.stream), [{ reason: 'shutdown', reconnect: true }], 'one that does not read holds up nobody')
    let closed = false
    closing.then(() => { closed = true })
    await until(() => closed, 5000, 'fastify.close() with a stalled client')
    t.equal(service.app.sse.connectionCount, 0)
    t.equal(stalled.connection.signal.reason.closeReason, 'shutdown')
    stalled.stream.thaw()
    await until(() => !stalled.stream.isOpen)
    t.equal((await stalled.stream.ended).by === 'server', false, 'its stream was cut')
  })

  t.test('has closed when its streams have ended, however busy the machine', async t => {
    const { app, join } = await serve(t, { drainMs: 300, stallTimeoutMs: 0 })
    const stalled = await join('ada')
    await block(stalled)
    const closing = app.close()
    await until(() => stalled.connection.closeReason !== null)
    // The event loop stands still until all that closing waits for is overdue.
    const began = performance.now()
    while (performance.now() - began < 600);
    await closing
    t.equal(app.sse.connectionCount, 0)
    t.equal(stalled.connection.signal.reason.closeReason, 'shutdown')
  })

  t.test('a slow client that reads on in time is told everything, and its kept-alive socket holds up nothing', async t => {
    const service = await serve(t, { drainMs: 20_000 })
    const slow = await service.join('ada')
    await block(slow)
    const reading = await service.join('bob')
    const closing = service.app.close()
    await reading.stream.ended
    slow.stream.thaw()
    let closed = false
    closing.then(() => { closed = true })
    await slow.stream.ended
    await until(() => closed, 15_000, 'fastify.close()')
    t.equal((await slow.stream.ended).by === 'server', true)
    t.strictSame(closes(slow.stream), [{ reason: 'shutdown', reconnect: true }])
  })

  t.test('a frozen client, whose kernel has taken everything, holds up nothing', async t => {
    const service = await serve(t, { drainMs: 300 })
    const frozen = await SSEClient.open(`${service.url}/sse?user=ada`)
    t.teardown(() => frozen.close())
    frozen.pause()
    let closed = false
    service.app.close().then(() => { closed = true })
    await until(() => closed, 5000, 'fastify.close()')
    t.equal(frozen.closed, false)
    frozen.resume()
    await frozen.waitForEnd()
    t.strictSame(frozen.json('sse:close'), [{ reason: 'shutdown', reconnect: true }], 'thawed, it finds out why')
  })

  t.test('HTTP/2: sessions end with their streams', async t => {
    const app = Fastify({ http2: true } as FastifyServerOptions) as FastifyInstance
    await app.register(ssePlugin, { drainMs: 300, stallTimeoutMs: 0, outboxBytes: 200_000 })
    app.get('/', async (request, reply) => {
      await reply.sse({ subscriptions: 'quiet' in (request.query as object) ? [] : ['news'] })
    })
    const url = await listen(app)
    const session = connectH2(url)
    t.teardown(() => session.destroy())
    const streams = Array.from({ length: 3 }, () => new H2Stream(session, '/'))
    await Promise.all(streams.map(stream => stream.waitFor('id: ')))
    const stalled = connectH2(url)
    t.teardown(() => stalled.destroy())
    const stuck = new H2Stream(stalled, '/')
    await stuck.waitFor('id: ')
    stuck.stream.pause()
    // And one that has everything in its window, and never looks.
    const frozen = connectH2(url)
    t.teardown(() => frozen.destroy())
    const unread = frozen.request({ ':path': '/?quiet=1' })
    await once(unread, 'response')
    unread.pause()
    await until(async () => {
      await app.sse.broadcastToSubscriptions({ data: 'x'.repeat(50_000) }, ['news'])
      await new Promise(setImmediate)
      return app.sse.stats().lagging > 0
    })
    let closed = false
    app.close().then(() => { closed = true })
    await until(() => closed, 5000, 'fastify.close()')
    for (const stream of streams) {
      await stream.waitForClose()
      t.equal(stream.ended, true)
      t.equal(stream.named('sse:close')[0]!.data, '{"reason":"shutdown","reconnect":true}')
    }
    t.equal(app.sse.connectionCount, 0)
    await until(() => session.closed)
  })

  t.test('while it drains, new streams are refused and publishing goes on', async t => {
    const service = await serve(t, { drainMs: 2000, stallTimeoutMs: 0 })
    const stalled = await service.join('ada')
    await block(stalled)
    let drained = false
    service.app.sse.drain().then(() => { drained = true })
    const refused = await service.open('/sse')
    t.equal(refused.status, 503)
    t.match(refused.body, { code: 'SSE_ERR_CLOSED', statusCode: 503 })
    t.match(await service.app.sse.broadcastEvent({ data: 1 }), { delivered: 0 })
    t.equal(drained, false)
    await stalled.stream.close()
    await until(() => drained)
    t.equal(service.app.sse.connectionCount, 0)
  })

  t.test('the log says how many streams are closed, and how long it took', async t => {
    const { service: { app, join }, lines } = await logged(t, { drainMs: 300, stallTimeoutMs: 0 })
    await join('bob')
    await block(await join('ada'))
    const closing = app.sse.drain()
    t.match(lines, [{ level: 30, connections: 2, drainMs: 300, msg: 'This node closes all its streams' }], 'at once')
    await closing
    await app.close()
    t.match(lines.slice(1), [{ level: 30, connections: 0, durationMs: Number, msg: 'This node has closed all its streams' }], 'once, although it was drained before it was closed')
    t.ok(lines[1].durationMs >= 250)
  })

  t.test('a stream that is about to open is ended as well', async t => {
    let release: (() => void) | null = null
    const { app, open, join } = await serve(t, { drainMs: 1000 }, {}, app => {
      app.addHook('onSend', async (request, reply, payload) => {
        if ('late' in (request.query as object)) await new Promise<void>(resolve => { release = resolve })
        return payload
      })
    })
    const before = await join('ada')
    const opening = open('/sse?late')
    await until(() => release !== null)
    let closed = false
    app.close().then(() => { closed = true })
    await before.stream.ended
    release!()
    const stream = await opening
    await stream.ended
    t.strictSame(closes(stream), [{ reason: 'shutdown', reconnect: true }])
    await until(() => closed)
  })

  t.test('streams of inject() end at once, read or not, and nothing complains', async t => {
    const trouble = listenForTrouble(t)
    const logged: string[] = []
    const app = Fastify({ logger: { level: 'warn', stream: { write: line => { logged.push(line) } } } })
    await app.register(ssePlugin, { path: '/sse', drainMs: 60_000 })
    app.get('/source', { sse: true }, (request, reply) => reply.sse(async function * ({ signal }) {
      yield 'a'
      await once(signal, 'abort')
    }))
    app.get('/plain', async (request, reply) => { await reply.sse() })
    const texts: string[] = []
    for (const url of ['/sse', '/source', '/plain']) {
      const response = await app.inject({ url, payloadAsStream: true })
      const at = texts.push('') - 1
      response.stream().on('data', bytes => { texts[at] += String(bytes) })
      // And one whose test looks at the head only, so that what comes after it waits.
      await app.inject({ url, payloadAsStream: true })
    }
    for (const connection of app.sse.connections()) connection.sendEvent({ data: 'x'.repeat(100_000) })
    let closed = false
    app.close().then(() => { closed = true })
    await until(() => closed, 10_000, 'fastify.close(), long before drainMs')
    for (const text of texts) t.match(text, 'event: sse:close\ndata: {"reason":"shutdown","reconnect":true}\n\n')
    t.equal(app.sse.connectionCount, 0)
    t.strictSame(trouble, [])
    t.strictSame(logged, [])
  })

  t.test('a response whose methods throw holds up nothing, and the streams behind it are told', async t => {
    const trouble = listenForTrouble(t)
    // What an APM's wrapper or a plugin may do to a response; `headed`: it fails once the head is sent.
    for (const headed of [true, false]) {
      for (const method of ['setHeader', 'writeHead', 'flushHeaders', 'write', 'end', 'destroy'] as const) {
        let failing = !headed
        const { app, open } = await serve(t, { drainMs: 60_000 }, {}, app => {
          app.get('/wrapped', async (request, reply) => { await reply.sse() })
          app.addHook('onRequest', async (request, { raw }) => {
            if (request.url !== '/wrapped') return
            const { [method]: wrapped, write } = raw as unknown as Record<string, (...args: unknown[]) => unknown>
            Object.assign(raw, {
              // Nothing but a write that throws has the stream destroyed.
              ...(method === 'destroy' && { write: (...args: unknown[]) => { if (failing) throw new Error('write failed'); else return write!.apply(raw, args) } }),
              [method]: (...args: unknown[]) => { if (failing) throw new Error(`${method} failed`); else return wrapped!.apply(raw, args) }
            })
          })
        })
        // From the start on it may be cut before anything is sent.
        await open('/wrapped').catch(() => {})
        const behind = await open('/sse')
        failing = true
        let closed = false
        app.close().then(() => { closed = true })
        await until(() => closed, 10_000, `fastify.close() where ${method} throws`)
        await behind.ended
        t.strictSame(closes(behind), [{ reason: 'shutdown', reconnect: true }], `${method}, ${headed ? 'after the head' : 'from the start'}`)
        t.equal(app.sse.connectionCount, 0)
      }
    }
    t.strictSame(trouble, [])
  })

  t.test('clients come back by themselves to the next server on the port, are told of the gap, and go on', async t => {
    const build = async (port: number): Promise<FastifyInstance> => {
      const app = Fastify()
      await app.register(ssePlugin, { retryMs: 100, drainMs: 100 })
      app.get('/sse', async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
      await app.listen({ host: '127.0.0.1', port })
      return app
    }
    let app = await build(0)
    t.teardown(() => app.close())
    const { port } = app.server.address() as AddressInfo
    const received: string[][] = []
    const gaps: unknown[][] = []
    const sources = Array.from({ length: 5 }, (_, i) => {
      const source = new EventSource(`http://127.0.0.1:${port}/sse`)
      received[i] = []
      gaps[i] = []
      source.onmessage = event => { received[i]!.push((JSON.parse(event.data as string) as string[])[0]!) }
      source.addEventListener('sse:gap', event => { gaps[i]!.push(JSON.parse((event as MessageEvent).data as string)) })
      return source
    })
    t.teardown(() => { for (const source of sources) source.close() })
    const expected: string[] = []
    let last = ''
    for (let life = 1; life <= 3; life++) {
      await until(() => app.sse.connectionCount === 5, undefined, `all clients in life ${life}`)
      if (life > 1) await until(() => gaps.every(list => list.length === life - 1))
      for (let n = 0; n < 3; n++) {
        expected.push(`${life}.${n}`)
        last = (await app.sse.broadcastToSubscriptions({ data: [`${life}.${n}`] }, ['news'])).id!
      }
      await until(() => received.every(list => list.length === expected.length))
      if (life === 3) break
      await app.close()
      app = await build(port)
      if (life === 1) t.equal(gaps[0]!.length, 0)
      const before = last
      await until(() => gaps.every(list => list.length === life), undefined, 'each client to be told of the gap')
      t.strictSame(gaps.map(list => list.at(-1)), gaps.map(() => ({ reason: 'epoch', lastEventId: before })))
    }
    for (const list of received) t.strictSame(list, expected)
  })
})

t.test('a manager that was closed before it was opened never opens its log', async t => {
  for (const when of ['before', 'while it opens']) {
    const broker = memoryBroker()
    let opened = 0
    let closed = 0
    let go = (): void => {}
    const { open, close } = broker
    broker.open = async (...args) => {
      opened++
      if (when !== 'before') await new Promise<void>(resolve => { go = resolve })
      await open.apply(broker, args)
    }
    broker.close = async () => {
      closed++
      await close.apply(broker)
    }
    const manager = new SSEManager({ broker })
    const opening = when === 'before' ? null : t.rejects(manager.open(), { code: 'SSE_ERR_CLOSED' }, 'what waits for it learns that it is closed')
    const closing = manager.close()
    const early = t.rejects(manager.broadcastEvent({ data: 1 }, { local: true }), { code: 'SSE_ERR_CLOSED' })
    await closing
    go()
    await Promise.all([opening, early])
    await t.rejects(manager.open(), { code: 'SSE_ERR_CLOSED' })
    await t.rejects(manager.broadcastEvent({ data: 1 }), { code: 'SSE_ERR_CLOSED' })
    await t.rejects(manager.broadcastEvent({ data: 1 }, { local: true }), { code: 'SSE_ERR_CLOSED' })
    await t.rejects(manager.createConnection({ request: { headers: {}, socket: {} }, response: {} } as never), { code: 'SSE_ERR_CLOSED' })
    t.match(manager.health(), { status: 'degraded', reason: 'The event log is closed' })
    t.equal(opened - closed, 0, `what is opened is closed: ${when}`)
  }
})

t.test('the clock of a manager runs, whatever opened its log', async t => {
  const manager = new SSEManager({ keepAliveIntervalMs: 50, drainMs: 100 })
  await manager.broadcastEvent({ data: 1 })
  const server = createServer((request, response) => { manager.createConnection({ request, response }) })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    await manager.close()
    server.close()
  })
  const stream = await openURL(t, `http://127.0.0.1:${(server.address() as AddressInfo).port}/`)
  await until(() => stream.comments.includes('keep-alive'))
  t.equal(stream.isOpen, true)
})

t.test('without Fastify: drain and close of a manager that has nobody, or was never opened', async t => {
  const idle = new SSEManager()
  await idle.close()
  await idle.close()
  await t.rejects(idle.broadcastEvent({ data: 1 }), { code: 'SSE_ERR_CLOSED' })
  const opened = new SSEManager()
  await opened.open()
  await opened.drain()
  await opened.close()
  await t.rejects(opened.broadcastEvent({ data: 1 }), { code: 'SSE_ERR_CLOSED' })
})

t.test('a stream whose subscriptions are being authorized when the server closes is refused, and holds up nothing', async t => {
  let allow: ((allowed: boolean) => void) | null = null
  let refused: unknown
  const { app, open } = await serve(t, { authorizeSubscription: () => new Promise<boolean>(resolve => { allow = resolve }) }, {}, app => {
    app.get('/asked', { sse: true }, async (_request, reply) => {
      await reply.sse({ subscriptions: ['a'] }).catch((error: unknown) => {
        refused = error
        throw error
      })
    })
  })
  const opening = open('/asked')
  await until(() => allow)
  const drained = app.sse.drain()
  allow!(true)
  const stream = await opening
  t.match(refused, { code: 'SSE_ERR_CLOSED' })
  t.match([stream.status, stream.body.code], [503, 'SSE_ERR_CLOSED'])
  await drained
  t.equal(app.sse.connectionCount, 0)
})
