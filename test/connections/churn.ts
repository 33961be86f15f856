import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import ssePlugin, { type SSEConnection } from '../../lib/index.js'
import { listen } from '../helpers/app.js'
import { connectH2, H2Stream } from '../helpers/h2.js'
import { collect } from '../helpers/heap.js'
import { RawSocket, requestText } from '../helpers/raw.js'
import { listenForTrouble } from '../helpers/trouble.js'
import { until } from '../helpers/wait.js'

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
