import { EventEmitter, once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import t from 'tap'
import { EventSource } from 'undici'
import ssePlugin, { memoryBroker, SSEError, SSEManager, type SSEConnection, type SSEOptions } from '../lib/index.js'
import { block, listen, serve } from './helpers/app.js'
import { connectH2, H2Stream } from './helpers/h2.js'
import { collect } from './helpers/heap.js'
import { RawSocket, requestText } from './helpers/raw.js'
import { SSEClient } from './helpers/sse.js'
import { listenForTrouble } from './helpers/trouble.js'
import { turns, until } from './helpers/wait.js'

// The end of a connection, whoever ends it and however: told to the client, and nothing left behind.

const closes = (client: SSEClient): unknown[] => client.json('sse:close')

t.test('ten thousand connections, dropped in every way, leave nothing behind', async t => {
  const trouble = listenForTrouble(t)
  // More than one generation of the cache of frames holds.
  const LARGE = 2_200_000
  const connections: WeakRef<SSEConnection>[] = []
  let released = 0
  let strays = 0
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(ssePlugin, {
    authHandler: async ({ query }) => {
      if (query['slow'] === 'auth') await sleep(10)
      return (query['user'] as string | undefined) ?? null
    },
    authorizeSubscription: async () => true,
    history: { maxEvents: 1000 },
    maxEventBytes: 2 * LARGE,
    drainMs: 500,
    keepAliveIntervalMs: 50,
    maxConnectionAgeMs: 60_000
  })
  app.addHook('onSend', async (request, reply, payload) => {
    if ((request.query as { slow?: string }).slow === 'head') await sleep(10)
    return payload
  })
  const note = (connection: SSEConnection) => { connections.push(new WeakRef(connection)) }
  app.get('/managed', async (request, reply) => {
    const { user = 'nobody', end } = request.query as { user?: string, end?: string }
    const connection = await reply.sse({ subscriptions: [`user:${user}:**`, 'news'] })
    note(connection)
    connection.signal.addEventListener('abort', () => { released++ })
    if (end !== undefined) connection.close(end)
    // A handler that does not look whether anybody is there.
    for (let i = 0; i < 3; i++) {
      await sleep(1)
      if (connection.sendEvent({ data: i }) && !connection.isConnected) strays++
    }
  })
  app.get('/short', (request, reply) => reply.sse(['a', 'b']))
  app.get('/endless', (request, reply) => reply.sse(async function * ({ signal }) {
    try {
      yield 'a'
      await once(signal, 'abort')
    } finally {
      released++
    }
  }))
  const url = await listen(app)
  for (let i = 0; i < 1000; i++) await app.sse.broadcastEvent({ data: 'x'.repeat(400) })

  const first = (socket: RawSocket) => socket.waitFor('\n\n')
  const fin = (socket: RawSocket) => { socket.socket.end() }
  const reset = (socket: RawSocket) => { socket.socket.resetAndDestroy() }
  const ways: Record<string, (i: number) => Promise<void>> = {
    FIN: async i => {
      const socket = new RawSocket(url, { path: `/managed?user=${i % 50}` })
      await first(socket)
      fin(socket)
      await socket.waitForClose()
    },
    RST: async i => {
      const socket = new RawSocket(url, { path: `/managed?user=${i % 50}` })
      await first(socket)
      reset(socket)
    },
    'at once': async () => {
      const socket = new RawSocket(url, { path: '/managed' })
      await once(socket.socket, 'connect')
      await new Promise(setImmediate)
      reset(socket)
    },
    'during authentication': async i => {
      const socket = new RawSocket(url, { path: `/managed?slow=auth&user=${i % 50}` })
      await once(socket.socket, 'connect')
      await sleep(i % 14)
      reset(socket)
    },
    'before the head': async i => {
      const socket = new RawSocket(url, { path: '/managed?slow=head' })
      await once(socket.socket, 'connect')
      await sleep(i % 14)
      if (i % 2 === 0) reset(socket)
      else fin(socket)
      await socket.waitForClose()
    },
    'during replay': async i => {
      const socket = new RawSocket(url, { path: `/managed?user=${i % 50}`, headers: { 'last-event-id': i % 3 === 0 ? 'nonsense' : start } })
      await first(socket)
      reset(socket)
    },
    'by the server': async i => {
      const socket = new RawSocket(url, { path: `/managed?end=kicked&user=${i % 50}` })
      await socket.waitForAnswers(1)
      reset(socket)
    },
    'a source that ends': async () => {
      const socket = new RawSocket(url, { path: '/short' })
      await socket.waitForAnswers(1)
      reset(socket)
    },
    'a source that waits': async i => {
      const socket = new RawSocket(url, { path: '/endless' })
      await socket.waitFor('data: a')
      if (i % 2 === 0) reset(socket)
      else fin(socket)
      await socket.waitForClose()
    },
    HEAD: async () => {
      const socket = new RawSocket(url, { method: 'HEAD', path: '/managed' })
      await socket.waitFor('\r\n\r\n')
      reset(socket)
    },
    pipelined: async () => {
      const socket = new RawSocket(url)
      socket.socket.write(requestText({ path: '/managed' }) + requestText({ path: '/short' }))
      await first(socket)
      reset(socket)
    },
    'several on one socket': async i => {
      const socket = new RawSocket(url, { path: '/short' })
      await socket.waitForAnswers(1)
      socket.send({ path: '/managed?end=done' })
      await socket.waitForAnswers(2)
      socket.send({ path: `/managed?user=${i % 50}` })
      await socket.until(() => socket.answers.length === 3)
      reset(socket)
    }
  }
  const names = Object.keys(ways)
  const settle = async () => {
    await until(() => app.sse.connectionCount === 0, undefined, 'all connections to end')
    // Whoever was chosen for the last broadcast is forgotten with the next.
    await app.sse.broadcastToUsers({ data: 'nobody' }, ['nobody at all'])
    await new Promise(setImmediate)
  }
  const batch = async (from: number, count: number) => {
    await Promise.all(Array.from({ length: count }, (_, i) => ways[names[(from + i) % names.length]!]!(from + i)))
  }

  const recent: string[] = []
  let start = ''
  // Frames that were read from the log are cached, up to a bound that takes longer to reach than this test. Two frames that fill
  // the cache alone replace all others, and as many events as the history holds replace those: both hold as much at each measurement.
  const replaceCached = async () => {
    const { id } = await app.sse.broadcastEvent({ data: 'x' })
    for (let i = 0; i < 2; i++) await app.sse.broadcastEvent({ event: 'large', data: 'x'.repeat(LARGE) })
    const socket = new RawSocket(url, { path: '/managed', headers: { 'last-event-id': id! } })
    await socket.until(() => socket.length > 2 * LARGE)
    socket.close()
    recent.length = 0
    for (let i = 0; i < 1000; i++) start = (await app.sse.broadcastEvent({ data: 'x'.repeat(400) })).id!
  }
  const stop = new AbortController()
  const publisher = (async () => {
    while (!stop.signal.aborted) {
      const { id } = await app.sse.broadcastEvent({ data: 'x'.repeat(400) })
      await app.sse.broadcastToSubscriptions({ data: 'x' }, ['user:7:inbox'])
      // Far enough behind for several pages, and never out of the history.
      recent.push(id!)
      if (recent.length > 200) start = recent.shift()!
      await sleep(5)
    }
  })()
  const TOTAL = 10_000
  const BATCH = 200
  let before = 0
  for (let from = 0; from < TOTAL; from += BATCH) {
    if (from === 3000) {
      await replaceCached()
      await settle()
      connections.length = 0
      before = collect()
    }
    await batch(from, BATCH)
  }
  stop.abort()
  await publisher
  await replaceCached()
  await settle()

  const stats = app.sse.stats()
  t.match(stats, { connections: 0, users: 0, subscriptions: 0, queuedBytes: 0, lagging: 0 })
  t.match(stats.closed, { client: Number, kicked: Number, 'source-end': Number, head: Number, done: Number })
  const ended = Object.values(stats.closed).reduce((a, b) => a + b)
  t.ok(ended > TOTAL * 0.8, `${ended} connections were let in`)
  t.ok(released > 0)
  t.equal(strays, 0, 'nobody is sent to who is not connected')
  t.strictSame(app.sse.getConnectionsBySubscription('news'), [])
  t.strictSame(app.sse.getConnectionsByUser('7'), [])
  await until(async () => {
    await new Promise(setImmediate)
    collect()
    return connections.every(connection => connection.deref() === undefined)
  }, undefined, 'the last connection to be collected: registry, wheel, flusher and catch-up hold none')
  connections.length = 0
  const after = collect()
  t.ok(after - before < 3_000_000, `${after - before} bytes more after ${TOTAL - 3000} connections`)
  t.strictSame(trouble, [])
})

t.test('two thousand streams of HTTP/2 sessions, reset and ended', async t => {
  const trouble = listenForTrouble(t)
  const app = Fastify({ http2: true } as FastifyServerOptions) as FastifyInstance
  t.teardown(() => app.close())
  await app.register(ssePlugin, { drainMs: 300 })
  app.addHook('onSend', async (request, reply, payload) => {
    if ((request.query as { slow?: string }).slow !== undefined) await sleep(5)
    return payload
  })
  app.get('/managed', async (request, reply) => {
    const connection = await reply.sse({ subscriptions: ['news'] })
    if ((request.query as { end?: string }).end !== undefined) connection.close('kicked')
  })
  app.get('/short', (request, reply) => reply.sse(['a', 'b']))
  const url = await listen(app)
  for (let round = 0; round < 20; round++) {
    const session = connectH2(url)
    const streams: H2Stream[] = []
    for (let i = 0; i < 100; i++) {
      const stream = new H2Stream(session, ['/managed', '/managed?end=1', '/short', '/managed?slow=1'][i % 4]!)
      streams.push(stream)
      if (i % 4 === 3) setTimeout(() => stream.stream.close(8), i % 10)
    }
    await Promise.all(streams.map((stream, i) => i % 4 === 0 ? stream.waitFor('\n\n') : stream.waitForClose()))
    await app.sse.broadcastToSubscriptions({ data: 'news' }, ['news'])
    if (round % 2 === 0) session.destroy()
    else for (const stream of streams) if (!stream.closed) stream.stream.close(8)
    await until(() => app.sse.connectionCount === 0)
    session.destroy()
  }
  t.match(app.sse.stats(), { connections: 0, subscriptions: 0, queuedBytes: 0, lagging: 0, closed: { kicked: 500, 'source-end': 500 } })
  t.strictSame(trouble, [])
})

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
    await source.waitFor('message')
    const { id } = await app.sse.broadcastEvent({ data: 'last' })
    // Idle on a socket that is kept alive, and stuck in a pipeline: both would hold up a server that only waits.
    const idle = new RawSocket(`http://127.0.0.1:${(app.server.address() as AddressInfo).port}`, { path: '/nothing' })
    await idle.waitForAnswers(1)

    let closed = false
    const closing = app.close().then(() => { closed = true })
    await until(() => closed, 0.75 * drainMs, 'fastify.close()')
    await closing
    for (const { client, connection } of joined) {
      await client.waitForEnd()
      t.equal(client.ended, true)
      t.strictSame(closes(client), [{ reason: 'shutdown', reconnect: true }])
      const { retry } = client.blocks.filter(block => block.retry !== null).at(-1)!
      t.ok(retry! >= drainMs && retry! <= 2 * drainMs, `retry ${retry}: not before the server has finished closing`)
      t.equal(client.lastEventId, id)
      t.equal(connection.isConnected, false)
      t.equal(connection.signal.reason.closeReason, 'shutdown')
    }
    t.ok(new Set(joined.map(({ client }) => client.blocks.filter(block => block.retry !== null).at(-1)!.retry)).size > 1, 'they do not all return together')
    await source.waitForEnd()
    t.strictSame(closes(source), [{ reason: 'shutdown', reconnect: true }])
    t.equal(source.lastEventId, '', 'a source has its own ids')
    t.match(app.sse.stats(), { connections: 0, closed: { shutdown: 21 } })

    await Promise.all([app.close(), app.sse.close(), app.sse.drain(), app.sse.close()])
    t.equal(joined[0]!.client.named('sse:close').length, 1, 'a second close does nothing')
    await t.rejects(app.sse.broadcastEvent({ data: 1 }), { code: 'SSE_ERR_CLOSED' })
    t.strictSame(trouble, [])
  })

  t.test('does not wait longer than drainMs for a client that does not read', async t => {
    const service = await serve(t, { drainMs: 300, stallTimeoutMs: 0 })
    const stalled = await service.join('ada')
    await block(stalled)
    const reading = await service.join('bob')
    const closing = service.app.close()
    await reading.client.waitForEnd()
    t.strictSame(closes(reading.client), [{ reason: 'shutdown', reconnect: true }], 'one that does not read holds up nobody')
    let closed = false
    closing.then(() => { closed = true })
    await until(() => closed, 5000, 'fastify.close() with a stalled client')
    t.equal(service.app.sse.connectionCount, 0)
    t.equal(stalled.connection.signal.reason.closeReason, 'shutdown')
    stalled.client.resume()
    await until(() => stalled.client.closed)
    t.equal(stalled.client.ended, false, 'its stream was cut')
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
    await reading.client.waitForEnd()
    slow.client.resume()
    let closed = false
    closing.then(() => { closed = true })
    await slow.client.waitForEnd()
    await until(() => closed, 15_000, 'fastify.close()')
    t.equal(slow.client.ended, true)
    t.strictSame(closes(slow.client), [{ reason: 'shutdown', reconnect: true }])
  })

  t.test('a frozen client, whose kernel has taken everything, holds up nothing', async t => {
    const service = await serve(t, { drainMs: 300 })
    const frozen = await service.join('ada')
    frozen.client.pause()
    let closed = false
    service.app.close().then(() => { closed = true })
    await until(() => closed, 5000, 'fastify.close()')
    t.equal(frozen.client.closed, false)
    frozen.client.resume()
    await frozen.client.waitForEnd()
    t.strictSame(closes(frozen.client), [{ reason: 'shutdown', reconnect: true }], 'thawed, it finds out why')
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
    t.match(refused.answer, { code: 'SSE_ERR_CLOSED', statusCode: 503 })
    t.match(await service.app.sse.broadcastEvent({ data: 1 }), { delivered: 0 })
    t.equal(drained, false)
    stalled.client.close()
    await until(() => drained)
    t.equal(service.app.sse.connectionCount, 0)
  })

  t.test('a stream that is about to open is ended as well', async t => {
    let release: (() => void) | null = null
    const { app, url, join } = await serve(t, { drainMs: 1000 }, {}, app => {
      app.addHook('onSend', async (request, reply, payload) => {
        if ('late' in (request.query as object)) await new Promise<void>(resolve => { release = resolve })
        return payload
      })
    })
    const before = await join('ada')
    const client = new SSEClient(`${url}/sse?late`)
    t.teardown(() => client.close())
    await until(() => release !== null)
    let closed = false
    app.close().then(() => { closed = true })
    await before.client.waitForEnd()
    release!()
    await client.waitForEnd()
    t.strictSame(closes(client), [{ reason: 'shutdown', reconnect: true }])
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
        await open('/wrapped')
        const behind = await open('/sse')
        failing = true
        let closed = false
        app.close().then(() => { closed = true })
        await until(() => closed, 10_000, `fastify.close() where ${method} throws`)
        await behind.waitForEnd()
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

t.test('silence', async t => {
  t.test('keep-alives come in silence only', async t => {
    const intervalMs = 150
    const { join } = await serve(t, { keepAliveIntervalMs: intervalMs })
    const startedAt = performance.now()
    const { client, connection } = await join('ada')
    const sentAt: number[] = []
    for (let i = 0; i < 60; i++) {
      sentAt.push(performance.now())
      connection.sendEvent({ data: i })
      await sleep(15)
    }
    await client.waitFor('message', 60)
    let event = -1
    for (const block of client.blocks) {
      if (block.data !== null) event++
      // A machine that was busy with something else may have made a silence of its own.
      else if (block.comment === 'keep-alive') t.ok(sentAt[event + 1]! - (sentAt[event] ?? startedAt) >= intervalMs * 0.8, `a keep-alive after event ${event} of a busy stream`)
    }
    const busy = client.blocks.length
    t.ok(sentAt[59]! - sentAt[0]! > intervalMs * 3, 'busy for longer than the interval')
    await until(() => client.blocks.slice(busy).filter(({ comment }) => comment === 'keep-alive').length >= 3)
    t.strictSame([...new Set(client.blocks.slice(busy).map(({ text }) => text))], [': keep-alive'])
  })

  t.test('when the log has moved on with nothing for a client, a block without an event keeps its place', async t => {
    const { app, join } = await serve(t, { keepAliveIntervalMs: 40 })
    const quiet = await join('ada', ['quiet'])
    const place = quiet.client.lastEventId
    await until(() => quiet.client.blocks.some(({ comment }) => comment === 'keep-alive'))
    t.equal(quiet.client.lastEventId, place)
    t.equal(quiet.client.blocks.filter(({ id }) => id !== null).length, 1, 'no cursor is repeated')
    let id: string | null = null
    for (let i = 0; i < 5; i++) ({ id } = await app.sse.broadcastToSubscriptions({ data: i }, ['elsewhere']))
    await until(() => quiet.client.lastEventId === id)
    const block = quiet.client.blocks.at(-1)!
    t.strictSame([block.data, block.text], [null, `id: ${id}`])
    t.equal(quiet.client.events.length, 0)
    await until(() => quiet.client.blocks.slice(-2).every(({ comment }) => comment === 'keep-alive'))
  })

  t.test('none when they are switched off', async t => {
    const { app, join } = await serve(t, { keepAlive: false, keepAliveIntervalMs: 10 })
    const { client } = await join('ada', ['quiet'])
    // Its place is kept all the same: a gap after a long silence would be a false one.
    for (let i = 0; i < 10; i++) {
      const { id } = await app.sse.broadcastToSubscriptions({ data: i }, ['elsewhere'])
      await until(() => client.lastEventId === id)
    }
    t.equal(client.blocks.filter(({ comment }) => comment === 'keep-alive').length, 0)
  })

  t.test('a stream of its own source is kept awake as well, without a cursor', async t => {
    const { open, app } = await serve(t, { keepAliveIntervalMs: 20 }, {}, app => {
      app.get('/source', (request, reply) => reply.sse(async function * ({ signal }) {
        yield 'a'
        await once(signal, 'abort')
      }))
    })
    const client = await open('/source')
    await app.sse.broadcastEvent({ data: 'not for you' })
    await until(() => client.blocks.filter(({ comment }) => comment === 'keep-alive').length >= 2)
    t.strictSame(client.blocks.filter(({ id }) => id !== null), [])
    t.strictSame(client.events.map(({ data }) => data), ['a'])
  })
})

t.test('every way a stream ends: the reason is told to client, signal and counters', async t => {
  interface Case {
    options?: SSEOptions
    end?: (service: { app: FastifyInstance, client: SSEClient, connection: SSEConnection }) => unknown
    reason: string
    reconnect?: boolean
    /** The client is not there, or not reading. */
    untold?: boolean
  }
  const cases: Record<string, Case> = {
    'connection.close()': { end: ({ connection }) => connection.close(), reason: 'closed', reconnect: false },
    'connection.close(reason)': { end: ({ connection }) => connection.close('bye'), reason: 'bye', reconnect: false },
    closeConnection: { end: ({ app, connection }) => app.sse.closeConnection(connection.clientId), reason: 'closed', reconnect: false },
    'closeConnection with a reason': { end: ({ app, connection }) => app.sse.closeConnection(connection.clientId, 'kicked'), reason: 'kicked', reconnect: false },
    disconnectUser: { end: ({ app }) => app.sse.disconnectUser('ada'), reason: 'disconnected', reconnect: false },
    'disconnectUser with a reason': { end: ({ app }) => app.sse.disconnectUser('ada', 'banned'), reason: 'banned', reconnect: false },
    drain: { end: ({ app }) => app.sse.drain(), reason: 'shutdown', reconnect: true },
    'maximum age': { options: { maxConnectionAgeMs: 100, retryMs: 400 }, reason: 'max-age', reconnect: true },
    'end of the rights': { options: { authHandler: () => ({ userId: 'ada', expiresAt: Date.now() + 100 }) }, reason: 'auth-expired', reconnect: true },
    'rights that end before the age': { options: { maxConnectionAgeMs: 60_000, authHandler: () => ({ userId: 'ada', expiresAt: Date.now() + 100 }) }, reason: 'auth-expired', reconnect: true },
    'an age before the end of the rights': { options: { maxConnectionAgeMs: 100, authHandler: () => ({ userId: 'ada', expiresAt: Date.now() + 60_000 }) }, reason: 'max-age', reconnect: true },
    FIN: { end: ({ client }) => client.socket.end(), reason: 'client', untold: true },
    RST: { end: ({ client }) => client.reset(), reason: 'client', untold: true },
    // Nothing else is due in the time that a test has.
    'a client that does not read': {
      options: { stallTimeoutMs: 200, keepAliveIntervalMs: 3_600_000 },
      end: ({ client, connection }) => block({ client, connection }),
      reason: 'stalled',
      untold: true
    },
    'end of the rights while the client does not read': {
      options: { keepAliveIntervalMs: 3_600_000, stallTimeoutMs: 3_600_000, drainMs: 100, authHandler: () => ({ userId: 'ada', expiresAt: Date.now() + 1_000 }) },
      end: ({ client, connection }) => block({ client, connection }),
      reason: 'auth-expired',
      untold: true
    },
    'a client that does not read a log': {
      options: { stallTimeoutMs: 200, keepAliveIntervalMs: 3_600_000 },
      end: async ({ client, connection, app }) => {
        client.pause()
        for (let i = 0; i < 500 && connection.isConnected; i++) {
          await app.sse.broadcastEvent({ data: 'x'.repeat(50_000) })
          await new Promise(setImmediate)
        }
      },
      reason: 'stalled',
      untold: true
    }
  }
  for (const [name, { options, end, reason, reconnect, untold = false }] of Object.entries(cases)) {
    await t.test(name, async t => {
      const { app, join } = await serve(t, { drainMs: 2000, ...options })
      const { client, connection } = await join('ada', ['news'])
      const { signal } = connection
      const aborts: unknown[] = []
      signal.addEventListener('abort', () => { aborts.push(signal.reason.closeReason) })
      if (end === undefined) t.equal(connection.isConnected, true)
      await end?.({ app, client, connection })
      await until(() => aborts.length > 0)
      t.strictSame(aborts, [reason])
      t.equal(connection.closeReason, reason)
      t.equal(connection.isConnected, false)
      t.strictSame(app.sse.stats().closed, { [reason]: 1 })
      t.equal(app.sse.connectionCount, 0)
      t.equal(app.sse.getConnection(connection.clientId), undefined)

      // Nothing is sent to it any more, nothing throws, nothing waits.
      t.equal(connection.sendEvent({ data: 1 }), false)
      t.equal(connection.sendData('a', 1), false)
      t.equal(connection.sendNotification({ title: 'a', message: 'b' }), false)
      connection.close('again')
      t.equal(connection.closeReason, reason)
      t.match(await app.sse.broadcastEvent({ data: 1 }), { delivered: 0 })
      t.match(connection.stats(), { queuedBytes: 0, lagging: false })
      t.equal(await app.sse.closeConnection(connection.clientId), false)
      t.equal(await app.sse.disconnectUser('ada'), 0)
      await t.rejects(connection.addSubscription('more'), { code: 'SSE_ERR_UNKNOWN_CONNECTION' })
      await t.rejects(connection.removeSubscription('news'), { code: 'SSE_ERR_UNKNOWN_CONNECTION' })

      if (untold) return
      await client.waitForEnd()
      t.equal(client.ended, true)
      t.strictSame(closes(client), [{ reason, reconnect }])
      const last = client.blocks.at(-1)!
      t.equal(last.event, 'sse:close')
      const farewell = client.blocks.slice(3)
      t.equal(farewell.filter(({ id }) => id !== null).length >= 1, true, 'its place')
    })
  }

  t.test('reasons are checked', async t => {
    const { app, join } = await serve(t)
    const { client, connection } = await join('ada')
    for (const reason of ['', 'Two Words', 'a\nb', 'x'.repeat(65), 'é']) {
      await t.rejects(app.sse.closeConnection(connection.clientId, reason), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
      await t.rejects(app.sse.disconnectUser('ada', reason), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
    }
    t.equal(connection.isConnected, true)
    t.equal(await app.sse.closeConnection('nobody'), false)
    t.equal(await app.sse.disconnectUser('nobody'), 0)
    const second = await join('ada')
    t.equal(await app.sse.disconnectUser('ada', 'x'.repeat(64)), 2)
    await Promise.all([client.waitForEnd(), second.client.waitForEnd()])
    t.match(closes(second.client), [{ reason: 'x'.repeat(64) }])
  })

  t.test('a signal asked for after the end is aborted already', async t => {
    const { app, join } = await serve(t)
    const { connection } = await join('ada')
    connection.close('early')
    await until(() => app.sse.connectionCount === 0)
    t.equal(connection.signal.aborted, true)
    t.equal(connection.signal.reason.closeReason, 'early')
  })

  t.test('what was sent in the turn of the close still arrives, then the place, then the close', async t => {
    const { app, join } = await serve(t)
    const { client, connection } = await join('ada')
    const { id } = await app.sse.broadcastEvent({ data: 'one' })
    connection.sendEvent({ data: 'two' })
    connection.close('done')
    t.equal(connection.sendEvent({ data: 'three' }), false)
    await client.waitForEnd()
    t.strictSame(client.blocks.slice(3).map(({ text }) => text), [
      `id: ${id}\ndata: one`, 'data: two', `id: ${id}`, 'event: sse:close\ndata: {"reason":"done","reconnect":false}'
    ])
  })
})

t.test('the signal of a stream that ends aborts as fetch, Node and SDKs expect it', async t => {
  const { app, open, url } = await serve(t, {}, {}, app => {
    app.get('/never', () => new Promise(() => {}))
    app.get('/source', (request, reply) => reply.sse(async function * ({ signal }) {
      yield 'x'
      const attempts = [fetch(`${url}/never`, { signal }), sleep(60_000, null, { signal }), once(new EventEmitter(), 'never', { signal }), fetch(`${url}/never`, { signal: AbortSignal.any([signal]) })]
      errors.push(...(await Promise.allSettled(attempts)).map(result => (result as PromiseRejectedResult).reason))
      try {
        signal.throwIfAborted()
      } catch (error) {
        errors.push(error)
      }
    }))
  })
  const errors: any[] = []
  const client = await open('/source')
  await client.waitFor('message')
  client.close()
  await until(() => errors.length === 5)
  // As SDKs tell an abort from a failure.
  for (const error of errors) t.ok(error instanceof Error && error.name === 'AbortError', `${error}`)
  t.match(errors[4], { code: 'SSE_ERR_STREAM_ENDED', closeReason: 'client', message: 'The stream has ended: client' })
  t.ok(errors[4] instanceof SSEError)
  t.equal(errors[0], errors[4], 'fetch rejects with it')
  t.equal(app.sse.connectionCount, 0)
})

t.test('what listens to the signal as soon as there is a connection hears of its end, also when that was before', async t => {
  let leave: (() => void) | null = null
  let heard: string[] = []
  const listen = async (connection: SSEConnection): Promise<void> => {
    const { signal } = connection
    signal.addEventListener('abort', () => { heard.push(`listener ${connection.closeReason}`) })
    signal.onabort = () => { heard.push('onabort') }
    await once(signal, 'abort')
    heard.push('once')
  }
  const { app, url } = await serve(t, {}, {}, app => {
    app.addHook('onSend', async (request, reply, payload) => {
      if (request.url !== '/gone') return payload
      // The client leaves while the head is made.
      await new Promise<void>(resolve => {
        reply.raw.once('close', resolve)
        leave!()
      })
      return payload
    })
    for (const path of ['/marked', '/gone']) app.get(path, { sse: true }, async (request, reply) => { await listen(await reply.sse()) })
    app.get('/plain', async (request, reply) => { await listen(await reply.sse()) })
    app.get('/bare', async (request, reply) => {
      reply.hijack()
      await listen(await app.sse.createConnection({ request: request.raw, response: reply.raw }))
    })
  })
  const hears = async (reason: string, name: string) => {
    await until(() => heard.length === 3, undefined, name)
    t.strictSame(heard, [`listener ${reason}`, 'onabort', 'once'], name)
    heard = []
  }
  for (const path of ['/marked', '/plain', '/bare']) {
    await app.inject({ method: 'HEAD', url: path })
    await hears('head', `HEAD of inject ${path}`)
    const socket = new RawSocket(url, { method: 'HEAD', path })
    t.teardown(() => socket.close())
    await hears('head', `HEAD ${path}`)
  }
  const client = new SSEClient(`${url}/gone`)
  leave = () => client.reset()
  await hears('client', 'a client that leaves while the head is made')
})

/** Nothing runs for so long, as in a process that was stopped, or one that computes. */
function standStill (ms: number): void {
  const until = performance.now() + ms
  while (performance.now() < until);
}

t.test('after the event loop stood still, clients that read are neither stalled nor cut', async t => {
  await t.test('stallTimeoutMs', async t => {
    const { join } = await serve(t, { stallTimeoutMs: 300 })
    const joined = await join('ada')
    await block(joined)
    joined.client.resume()
    standStill(1000)
    joined.connection.sendEvent({ event: 'after', data: 1 })
    await joined.client.waitFor('after')
    t.equal(joined.connection.closeReason, null)
  })

  await t.test('drainMs', async t => {
    const { app, join } = await serve(t, { drainMs: 300 })
    const joined = await join('ada')
    await block(joined)
    const closing = app.close()
    await until(() => joined.connection.closeReason !== null)
    joined.client.resume()
    standStill(1000)
    await closing
    await joined.client.waitForEnd()
    t.strictSame(closes(joined.client), [{ reason: 'shutdown', reconnect: true }])
    t.equal(joined.client.ended, true)
  })

  await t.test('a client that does not read is stalled all the same', async t => {
    const { join } = await serve(t, { stallTimeoutMs: 300 })
    const joined = await join('ada')
    await block(joined)
    standStill(1000)
    await until(() => joined.connection.closeReason !== null)
    t.equal(joined.connection.closeReason, 'stalled')
  })
})

t.test('a slow client that makes progress is not stalled, and misses nothing', async t => {
  const stallTimeoutMs = 1000
  const { app, join } = await serve(t, { stallTimeoutMs, outboxBytes: 65_536 })
  const slow = await join('ada', ['news'])
  slow.client.pause()
  const { sentEvents: before } = slow.connection.stats()
  let published = 0
  // More than the kernel takes, so that the socket is full, and less than the history holds. However fast the client reads, there is always more for it.
  const fill = async () => {
    while (published - (slow.connection.stats().sentEvents - before) < 1000) {
      for (let i = 0; i < 20; i++) await app.sse.broadcastToSubscriptions({ data: `${published++} ${'x'.repeat(16_000)}` }, ['news'])
      await turns(1)
    }
  }
  await fill()
  await until(() => slow.connection.stats().lagging)
  // For three times as long as a client may take nothing: each time it reads until its socket has taken something.
  const began = performance.now()
  let reads = 0
  while (performance.now() - began < 3 * stallTimeoutMs && slow.connection.isConnected) {
    await fill()
    const { sentEvents } = slow.connection.stats()
    slow.client.resume()
    await until(() => slow.connection.stats().sentEvents > sentEvents || !slow.connection.isConnected)
    slow.client.pause()
    reads++
    await sleep(stallTimeoutMs / 5)
  }
  t.equal(slow.connection.closeReason, null, 'still open')
  t.ok(reads > 1, `${reads} reads`)
  slow.client.resume()
  await slow.client.waitFor('message', published)
  t.strictSame(slow.client.named('message').map(({ data }) => parseInt(data!)), Array.from({ length: published }, (_, i) => i))
  t.equal(slow.client.named('sse:gap').length, 0)
})

t.test('a handler that goes on sending after the client left harms nobody', async t => {
  const trouble = listenForTrouble(t)
  let results: boolean[] = []
  let finished = false
  const { app, open, join } = await serve(t, {}, {}, app => {
    app.get('/stubborn', async (request, reply) => {
      const connection = await reply.sse()
      connection.sendEvent({ data: 'hello' })
      await until(() => connection.signal.aborted)
      results = Array.from({ length: 1000 }, (_, i) => connection.sendEvent({ data: 'x'.repeat(i) }))
      for (let i = 0; i < 100; i++) await app.sse.broadcastEvent({ data: i }, { clientIds: [connection.clientId] })
      connection.close()
      finished = true
    })
  })
  const other = await join('bob')
  const client = await open('/stubborn')
  await client.waitFor('message')
  client.reset()
  await until(() => finished)
  t.equal(results.length, 1000)
  t.ok(results.every(result => !result))
  other.connection.sendEvent({ data: 'still here' })
  await other.client.waitFor('message')
  t.match(app.sse.stats(), { connections: 1, queuedBytes: 0 })
  t.strictSame(trouble, [])
})

t.test('a response that throws when its time is over ends by itself', async t => {
  const trouble = listenForTrouble(t)
  let failing = false
  const { app, open } = await serve(t, { maxConnectionAgeMs: 100 }, {}, app => {
    app.addHook('onRequest', async (request, { raw }) => {
      const { write } = raw
      raw.write = ((...args: Parameters<typeof write>) => { if (failing) throw new Error('write failed'); else return write.apply(raw, args) }) as typeof write
    })
  })
  const client = await open('/sse')
  failing = true
  await until(() => client.closed)
  t.strictSame(app.sse.stats().closed, { 'max-age': 1 })
  t.strictSame(trouble, [])
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
  const client = await SSEClient.open(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`)
  await until(() => client.blocks.some(({ comment }) => comment === 'keep-alive'))
  t.equal(client.closed, false)
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
