import { spawn } from 'node:child_process'
import { connect, type Socket } from 'node:net'
import { getDefaultHighWaterMark } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { testClock, type TestStream } from '../../lib/testing/index.js'
import { tie } from '../../lib/testing/tie.js'
import type { SSEConnection, SSEOptions } from '../../lib/index.js'
import { openURL, payloads, serve, type Joined, type Service } from '../helpers/app.js'
import { collect } from '../helpers/heap.js'
import { Namespace } from '../helpers/namespace.js'
import { blocksOf, RawSocket, requestText } from '../helpers/raw.js'
import { AnswerReader, SSEClient } from '../helpers/sse.js'
import { listenForTrouble } from '../helpers/trouble.js'
import { turns, until } from '../helpers/wait.js'

// Clients that are frozen, slow, gone or hostile, and application code that misbehaves. Of each: what is closed and why,
// what it costs, and that the others, for whom a witness stands, notice nothing.

interface Scene extends Service {
  witness: Joined
  /** What the witness has not been sent, or not in order; and what the process complained about. */
  check (): Promise<void>
  publish (size?: number): Promise<void>
  /** Bytes of memory more than at the start, at most so far. */
  grown (): number
}

async function scene (t: Test, options: SSEOptions = {}, setup?: (app: FastifyInstance) => void, server = {}): Promise<Scene> {
  const trouble = listenForTrouble(t)
  const service = await serve(t, options, server, setup)
  const witness = await service.join('witness', ['news'])
  let published = 0
  collect()
  const start = process.memoryUsage.rss()
  let peak = start
  return {
    ...service,
    witness,
    async publish (size = 0) {
      await service.app.sse.broadcastToSubscriptions({ event: 'n', data: `${published++} ${'x'.repeat(size)}` }, ['news'])
      peak = Math.max(peak, process.memoryUsage.rss())
    },
    async check () {
      await witness.stream.until(() => witness.stream.named('n').length >= published)
      t.strictSame(witness.stream.named('n').map(({ data }) => parseInt(data!)), Array.from({ length: published }, (_, i) => i), 'the witness has everything, once, in order')
      t.equal(witness.stream.named('sse:gap').length, 0)
      t.strictSame(trouble, [])
    },
    grown: () => peak - start
  }
}

/** Clients in a process of their own. */
async function readers (t: Test, url: string, count: number, path: string, prefix: readonly string[] = []) {
  const { hostname, port } = new URL(url)
  const [command, ...args] = [...prefix, process.execPath, fileURLToPath(new URL('reader.mjs', import.meta.url)), hostname, port, String(count), path]
  const child = tie(spawn(command!, args, { stdio: ['pipe', 'pipe', 'inherit'] }))
  t.teardown(() => { child.kill('SIGKILL') })
  let state = { open: 0, closed: 0 }
  child.stdout.setEncoding('utf8').on('data', (text: string) => { state = JSON.parse(text.trim().split('\n').at(-1)!) })
  await until(() => state.open === count, 60_000, `${count} readers to be open`)
  return { signal: (signal: NodeJS.Signals) => { child.kill(signal) }, get state () { return state } }
}

t.test('clients that are stopped are closed once their buffers are full, and memory is bounded', async t => {
  const stallTimeoutMs = 1000
  const { app, url, publish, check, grown } = await scene(t, { stallTimeoutMs, outboxBytes: 200_000, history: { maxBytes: 8 << 20 } }, app => {
    app.get('/readers', async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
  })
  const frozen = await readers(t, url, 20, '/readers')
  frozen.signal('SIGSTOP')
  let published = 0
  let queued = 0
  let blockedAt = 0
  await until(async () => {
    await publish(50_000)
    published++
    const { lagging, queuedBytes, closed } = app.sse.stats()
    queued = Math.max(queued, queuedBytes)
    if (lagging > 0 && blockedAt === 0) blockedAt = performance.now()
    return closed['stalled'] === 20
  }, 60_000, 'all to be closed as stalled')
  t.comment(`closed ${Math.round(performance.now() - blockedAt)} ms after the first was blocked (stallTimeoutMs ${stallTimeoutMs}), after ${published} events of 50 KB; at most ${queued} bytes waited, RSS grew by ${Math.round(grown() / 2 ** 20)} MB`)
  t.ok(queued <= 20 * (200_000 + 2 * 65_536), 'what waits is bounded by the outboxes')
  t.ok(grown() < 200 * 2 ** 20, 'so is memory')
  frozen.signal('SIGCONT')
  await until(() => frozen.state.closed === 20, 60_000, 'thawed, they find it out')
  t.equal(app.sse.connectionCount, 1)
  await check()
})

/** A client that reads a kilobyte each time it is told to, and nothing else: the rest stays with the kernels. */
class Sipper extends AnswerReader {
  readonly socket: Socket
  closed = false
  #flowing = false

  constructor (url: string, path: string) {
    super()
    const { hostname, port } = new URL(url)
    const buffer = Buffer.alloc(1024)
    const callback = (length: number) => {
      this.push(Buffer.from(buffer.subarray(0, length)))
      return this.#flowing
    }
    this.socket = connect({ host: hostname, port: Number(port), onread: { buffer, callback } })
    this.socket.on('error', () => {}).on('close', () => { this.closed = true })
    this.socket.write(requestText({ path }))
  }

  sip (): void {
    this.socket.resume()
  }

  /** Reads all there is, from now on. */
  drink (): void {
    this.#flowing = true
    this.socket.resume()
  }
}

for (const [history, outcome] of [[{}, 'everything'], [{ maxEvents: 100 }, 'a gap']] as const) {
  t.test(`a client that reads a kilobyte at a time is taken for one that does not read, and gets ${outcome} when it returns`, async t => {
    const stallTimeoutMs = 1000
    const outboxBytes = 50_000
    let sipping: SSEConnection | null = null
    const { app, url, publish, check, grown } = await scene(t, { stallTimeoutMs, outboxBytes, history }, app => {
      app.get('/sip', async (request, reply) => { sipping = await reply.sse({ subscriptions: ['flood'] }) })
    })
    const sipper = new Sipper(url, '/sip')
    t.teardown(() => { sipper.socket.destroy() })
    const connection = await until(() => sipping)
    let flooded = 0
    const flood = async () => { await app.sse.broadcastToSubscriptions({ event: 'f', data: `${flooded++} ${'x'.repeat(10_000)}` }, ['flood']) }
    // The kernels take what they can before anything waits here.
    await until(async () => {
      await flood()
      return connection.stats().lagging
    })
    const before = sipper.received
    let queued = 0
    // From here on 100 KB/s, of which it reads a tenth.
    await until(async () => {
      await flood()
      await publish()
      sipper.sip()
      queued = Math.max(queued, connection.stats().queuedBytes)
      await sleep(100)
      return connection.closeReason !== null
    })
    t.comment(`closed after it had read ${sipper.received - before} bytes; at most ${queued} waited; RSS grew by ${Math.round(grown() / 2 ** 20)} MB`)
    t.equal(connection.closeReason, 'stalled')
    t.ok(sipper.received > before, 'though it read all the time')
    t.ok(queued <= outboxBytes + 2 * 65_536, 'what waits is bounded')
    t.ok(grown() < 100 * 2 ** 20, 'so is memory')
    for (let i = 0; i < 200; i++) await flood()

    sipper.drink()
    await until(() => sipper.closed)
    const numbers = (reader: Pick<AnswerReader | TestStream, 'named'>) => reader.named('f').map(({ data }) => parseInt(data!))
    const read = numbers(sipper)
    t.ok(read.length > 20 && read.length < flooded, 'it reads what the kernels have')
    t.strictSame(read, Array.from(read.keys()), 'all of it, in order')
    const back = await openURL(t, `${url}/sip`, { headers: { 'last-event-id': sipper.lastEventId } })
    if (outcome === 'a gap') await back.next('sse:gap')
    await flood()
    await until(() => numbers(back).at(-1) === flooded - 1)
    t.strictSame(payloads(back, 'sse:gap').map(({ reason }) => reason), outcome === 'a gap' ? ['trimmed'] : [])
    const first = outcome === 'a gap' ? flooded - 1 : read.length
    t.strictSame(numbers(back), Array.from({ length: flooded - first }, (_, i) => first + i), 'and goes on from there')
    await check()
  })
}

/** A route of the tests whose subject is what the kernels of both sides take: `freeze()` of the kit leaves them out. */
function openBySocket (app: FastifyInstance): void {
  app.get('/socket', async (request, reply) => { await reply.sse({ subscriptions: ['flood'] }) })
}

interface JoinedBySocket {
  client: SSEClient
  connection: SSEConnection
}

async function joinBySocket (t: Test, app: FastifyInstance, url: string): Promise<JoinedBySocket> {
  const client = await SSEClient.open(`${url}/socket`)
  t.teardown(() => client.close())
  return { client, connection: [...app.sse.connections()].at(-1)! }
}

/** Stops a client from reading and sends it filler (not logged) until something has to wait on the server, and goes on waiting. */
async function fill ({ client, connection }: JoinedBySocket): Promise<void> {
  client.pause()
  const data = 'x'.repeat(100_000)
  const waiting = () => connection.stats().queuedBytes
  // The kernel takes several megabytes before anything waits; up to 36 MB where a receive buffer may grow to 32.
  for (let i = 0; i < 600; i++) {
    connection.sendEvent({ event: 'filler', data })
    await turns(1)
    // A socket that has less is not full yet: 16 KB, from Node 22 on 64 KB. What waits may be on its way to a kernel that has
    // room for it, as after a pause that followed a short time of reading.
    for (let before = Infinity; waiting() > getDefaultHighWaterMark(false);) {
      if (waiting() === before) return
      before = waiting()
      await turns(20)
    }
  }
  throw new Error('The socket took 60 MB from a client that does not read')
}

t.test('a client that is always behind and always makes progress is no stalled one: only its age ends it', async t => {
  const stallTimeoutMs = 2_000
  const outboxBytes = 50_000
  // By the real clock it would depend on the machine how much the client reads in its time.
  const clock = testClock()
  const { app, url, check } = await scene(t, { ...clock.options, stallTimeoutMs, outboxBytes, maxConnectionAgeMs: 40_000, history: { maxEvents: 50 } }, openBySocket)
  const slow = await joinBySocket(t, app, url)
  const read: number[] = []
  const controls: string[] = []
  slow.client.onBlock = ({ event, data }) => {
    slow.client.blocks.length = 0
    if (event === 'f') read.push(parseInt(data!))
    else if (event.startsWith('sse:')) controls.push(`${event} ${JSON.parse(data!).reason}`)
    return true
  }
  let flooded = 0
  let queued = 0
  const memory = () => collect() + process.memoryUsage().arrayBuffers
  const start = memory()
  let kept = 0
  const flood = async () => {
    for (let i = 0; i < 100; i++) await app.sse.broadcastToSubscriptions({ event: 'f', data: `${flooded++} ${'x'.repeat(10_000)}` }, ['flood'])
    queued = Math.max(queued, slow.connection.stats().queuedBytes)
    kept = Math.max(kept, memory() - start)
  }
  slow.client.pause()
  await until(async () => {
    await flood()
    if (!slow.connection.stats().lagging) return slow.connection.closeReason !== null
    // Its socket is full: it reads until the server sees some of it, and stops again.
    const { sentEvents } = slow.connection.stats()
    slow.client.resume()
    await until(() => slow.connection.stats().sentEvents > sentEvents || slow.connection.closeReason !== null)
    slow.client.pause()
    await clock.advance(stallTimeoutMs * 0.9)
    return slow.connection.closeReason !== null
  }, 240_000)
  t.equal(slow.connection.closeReason, 'max-age')
  slow.client.resume()
  await slow.client.waitForEnd()
  const gaps = controls.length - 1
  t.strictSame(controls, [...new Array<string>(gaps).fill('sse:gap trimmed'), 'sse:close max-age'])
  t.comment(`read ${read.length} of ${flooded} events and ${gaps} gaps; at most ${queued} bytes waited, and ${Math.round(kept / 2 ** 20)} MB more than before were in use`)
  t.ok(read.length > 0 && gaps > 0, 'it fell out of the log, was told, and went on')
  t.ok(read.every((n, i) => i === 0 || n > read[i - 1]!), 'in order')
  let holes = 0
  for (const [i, n] of read.entries()) if (i > 0 && n !== read[i - 1]! + 1) holes++
  t.ok(holes <= gaps, 'nothing is missing that no gap stands for')
  t.ok(queued <= outboxBytes + 2 * 65_536, 'what waits is bounded')
  t.ok(kept < 20 * 2 ** 20, 'so is memory')
  await check()
})

t.test('how much a client reads before the server sees any of it', async t => {
  const { app, url, check } = await scene(t, { stallTimeoutMs: 0 }, openBySocket)
  const slow = await joinBySocket(t, app, url)
  await fill(slow)
  const held = slow.connection.stats()
  const before = slow.client.received
  await until(async () => {
    slow.client.resume()
    await new Promise(setImmediate)
    slow.client.pause()
    await turns(2)
    const { queuedBytes, sentEvents } = slow.connection.stats()
    return queuedBytes !== held.queuedBytes || sentEvents !== held.sentEvents
  })
  const read = slow.client.received - before
  t.comment(`read ${read} bytes before the server saw any progress`)
  t.ok(read > 0 && read < 16 * 2 ** 20)
  await check()
})

t.test('a client that vanishes without a FIN, with its network', async t => {
  const namespace = Namespace.create(t)
  if (namespace === null) return
  const { app, publish, check } = await scene(t, { stallTimeoutMs: 500, maxConnectionAgeMs: 20_000, keepAliveIntervalMs: 100, outboxBytes: 100_000, history: { maxBytes: 1 << 20 } }, app => {
    app.get('/readers', async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
    app.get('/quiet', async (request, reply) => { await reply.sse({ subscriptions: ['quiet'] }) })
  })
  const url = await namespace.serve(t, app)
  await readers(t, url, 5, '/readers', namespace.command)
  await readers(t, url, 5, '/quiet', namespace.command)
  const began = performance.now()
  namespace.pullOut()
  await until(async () => {
    await publish(50_000)
    return app.sse.stats().closed['stalled'] === 5
  }, 60_000, 'those that are sent something to be closed')
  t.comment(`those that are sent much: stalled, after ${Math.round(performance.now() - began)} ms (stallTimeoutMs 500)`)
  await until(() => app.sse.stats().closed['max-age']! >= 5, 60_000, 'the quiet ones to be closed')
  t.comment(`those that are sent keep-alives only: max-age, after ${Math.round(performance.now() - began)} ms (maxConnectionAgeMs 20000, less a fifth)`)
  t.notOk(app.sse.stats().closed['client'])
  await until(() => app.sse.connectionCount <= 1)
  t.match(app.sse.stats(), { queuedBytes: 0 })
  if (app.sse.connectionCount === 1) await check()
})

t.test('half requests are ended by Node, and take nothing from anybody', async t => {
  const { app, url, publish, check } = await scene(t, {}, undefined, { http: { headersTimeout: 400, connectionsCheckingInterval: 100 } })
  const { hostname, port } = new URL(url)
  const sockets = Array.from({ length: 300 }, (_, i) => {
    const socket = connect(Number(port), hostname)
    socket.on('error', () => {}).write(requestText({ path: '/sse' }).slice(0, 1 + i % 35))
    return socket.resume()
  })
  t.teardown(() => { for (const socket of sockets) socket.destroy() })
  for (let i = 0; i < 20; i++) await publish()
  await until(() => sockets.every(({ closed }) => closed))
  t.equal(app.sse.connectionCount, 1)
  await check()
})

t.test('a thousand requests sent ahead on one socket are limited like others, and end with it', async t => {
  const { app, url, publish, check, grown } = await scene(t, { maxConnectionsPerIp: 20 })
  const socket = new RawSocket(url)
  socket.socket.write(requestText({ path: '/sse' }).repeat(1000))
  await socket.waitFor('stream')
  await until(() => app.sse.connectionCount === 20)
  for (let i = 0; i < 20; i++) await publish(1000)
  await turns(20)
  t.equal(app.sse.connectionCount, 20)
  socket.close()
  await until(() => app.sse.connectionCount === 1)
  t.ok(grown() < 100 * 2 ** 20)
  await check()
})

t.test('Last-Event-ID is a stranger\'s word', async t => {
  const { app, url, join, publish, check } = await scene(t, { history: { maxEvents: 10_000 } })
  const start = (await app.sse.broadcastToSubscriptions({ data: 'secret' }, ['other'])).id!
  const [epoch] = start.split('.')
  for (const [name, cursor, reason] of [
    ['15 KB', 'x'.repeat(15_000), 'malformed'],
    ['of the future', `${epoch}.zzzzzz`, 'unknown'],
    ['of another life', 'abcdef.1', 'epoch'],
    ['latin1', 'é\xff', 'malformed'],
    ['lanes out of reach', `${epoch}.0~0~0~zzzzzzzzzzz`, 'malformed']
  ] as const) {
    const { stream } = await join('mallory', [], { cursor })
    await stream.until(() => stream.named('sse:gap').length >= 1)
    t.equal(payloads(stream, 'sse:gap')[0].reason, reason === 'malformed' && name.startsWith('lanes') ? payloads(stream, 'sse:gap')[0].reason : reason, name)
    await stream.close()
  }
  const nul = new RawSocket(url)
  nul.socket.write('GET /sse HTTP/1.1\r\nhost: x\r\nlast-event-id: a\0b\r\n\r\n')
  await nul.waitForClose()
  t.match(nul.text, /^HTTP\/1\.1 400 /, 'NUL is no HTTP')
  const large = new RawSocket(url, { path: '/sse', headers: { 'last-event-id': 'x'.repeat(20_000) } })
  await large.waitForClose()
  t.match(large.text, /^HTTP\/1\.1 431 /, '20 KB is more than a head may have')
  // A place in a log that holds what is for others selects what is read, never what may be read.
  const thief = await join('mallory', ['news'], { cursor: `${epoch}.0` })
  await publish()
  await thief.stream.next('n')
  t.notMatch(blocksOf(thief.stream.text).map(({ text }) => text).join('\n'), 'secret')
  await check()
})

t.test('a thousand full replays at once: live events keep coming', async t => {
  const { app, url, publish, check, witness, grown } = await scene(t, {}, app => {
    app.get('/late', async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
  })
  const start = witness.stream.lastEventId
  const EVENTS = 200
  for (let i = 0; i < EVENTS; i++) await publish(100)
  await witness.stream.collect(EVENTS, 'n')
  let complete = 0
  const clients = Array.from({ length: 1000 }, () => {
    const client = new SSEClient(`${url}/late`, { headers: { 'last-event-id': start } })
    let count = 0
    client.onBlock = ({ event }) => {
      client.blocks.length = 0
      if (event === 'n' && ++count === EVENTS) complete++
      return true
    }
    return client
  })
  t.teardown(() => { for (const client of clients) client.close() })
  const delays: number[] = []
  let seen = witness.stream.named('n').length
  await until(async () => {
    const sent = performance.now()
    await publish()
    seen++
    await until(() => witness.stream.named('n').length >= seen)
    delays.push(performance.now() - sent)
    return complete === 1000
  }, 180_000, 'all to have everything')
  delays.sort((a, b) => a - b)
  t.comment(`witness: p50 ${Math.round(delays[delays.length >> 1]!)} ms, p99 ${Math.round(delays[Math.floor(delays.length * 0.99)]!)} ms over ${delays.length} events; RSS grew by ${Math.round(grown() / 2 ** 20)} MB`)
  t.ok(grown() < 400 * 2 ** 20)
  // They have all that was missed; what was published meanwhile can still wait.
  await until(() => app.sse.stats().lagging === 0)
  await check()
})

t.test('clients that leave while the application is slow, or never answers', async t => {
  const releases: (() => void)[] = []
  const { app, url, publish, check } = await scene(t, {
    authHandler: async ({ query }) => {
      const user = query['user'] as string
      if (user === 'never') await new Promise(() => {})
      if (user === 'late') await new Promise<void>(resolve => { releases.push(resolve) })
      return user
    },
    authorizeSubscription: async ({ userId }) => userId === 'witness'
  })
  const sockets = Array.from({ length: 200 }, (_, i) => new RawSocket(url, { path: `/sse?user=${i % 2 === 0 ? 'never' : 'late'}` }))
  await until(() => releases.length === 100)
  for (const [i, socket] of sockets.entries()) if (i % 3 === 0) socket.socket.end(); else socket.socket.resetAndDestroy()
  await publish()
  await Promise.all(sockets.map(socket => socket.waitForClose()))
  for (const release of releases) release()
  await turns(10)
  t.equal(app.sse.connectionCount, 1, 'nobody is let in who has left')
  t.match(app.sse.stats().closed, {})
  await check()
})

t.test('application code that throws, rejects or never returns', async t => {
  const { app, open, publish, check } = await scene(t, {}, app => {
    app.get('/throws-before', async () => { throw new RangeError('before') })
    app.get('/throws-after', async (request, reply) => {
      await reply.sse({ subscriptions: ['news'] })
      throw new RangeError('after')
    })
    app.get('/never', async (request, reply) => {
      await reply.sse({ subscriptions: ['news'] })
      await new Promise(() => {})
    })
    app.get('/answers', async (request, reply) => {
      await reply.sse()
      return { and: 'an answer' }
    })
    app.get('/rejecting-source', (request, reply) => reply.sse(() => Promise.reject(new RangeError('source'))))
    app.get('/stuck-source', (request, reply) => reply.sse({ [Symbol.asyncIterator]: () => ({ next: () => new Promise<never>(() => {}), return: () => new Promise<never>(() => {}) }) }))
    app.get('/bad-iterator', (request, reply) => reply.sse({ [Symbol.asyncIterator]: () => ({ next: () => { throw new RangeError('next') }, return: () => { throw new RangeError('return') } }) } as AsyncIterable<string>))
  })
  const before = await open('/throws-before')
  t.equal(before.status, 500)
  const streams = await Promise.all(['/throws-after', '/never', '/answers', '/stuck-source'].map(path => open(path)))
  t.ok(streams.every(stream => stream.isStream))
  for (const path of ['/rejecting-source', '/bad-iterator']) {
    const stream = await open(path)
    await stream.ended
    t.strictSame(payloads(stream, 'sse:close'), [{ reason: 'source-error', reconnect: true }], path)
    t.notMatch(blocksOf(stream.text).map(({ text }) => text).join('\n'), /RangeError|next|return/, 'without the reason')
  }
  const thrower = { toJSON () { throw new RangeError('toJSON') } }
  await t.rejects(app.sse.broadcastEvent({ data: thrower }), { code: 'SSE_ERR_INVALID_DATA' })
  await t.rejects(app.sse.broadcastData('x', { deep: [thrower] }), { code: 'SSE_ERR_INVALID_DATA' })
  await t.rejects(app.sse.broadcastEvent({ data: 1 }, { get userIds (): string[] { throw new RangeError('getter') } }))
  for (const filter of [() => { throw new RangeError('filter') }, async () => { throw new RangeError('async filter') }, () => new Promise(() => {})]) {
    t.match(await app.sse.broadcastEvent({ data: 1 }, { filter: filter as unknown as () => boolean }), { delivered: 0 })
  }
  for (let i = 0; i < 10; i++) await publish()
  await Promise.all(streams.slice(0, 2).map(stream => stream.until(() => stream.named('n').length >= 10)))
  for (const stream of streams) await stream.close()
  await until(() => app.sse.connectionCount === 1)
  await check()
})
