import t, { type Test } from 'tap'
import { NO_POSITION } from '../../lib/connections/sender.js'
import { Frame } from '../../lib/delivery/frame.js'
import { EventPriority, type SSEConnection, type SSEOptions } from '../../lib/index.js'
import { testClock, type OpenStreamOptions } from '../../lib/testing/index.js'
import { Chunk } from '../../lib/wire/chunk.js'
import { payloads, serve, texts } from '../helpers/app.js'
import { Reports } from '../helpers/diagnostics.js'
import { turns, until } from '../helpers/wait.js'

// When a connection writes, and when it waits: by streams in memory, whose clients take exactly what they read.

async function start (t: Test, options: SSEOptions = {}) {
  const service = await serve(t, { stallTimeoutMs: 0, ...options }, {}, app => {
    app.get('/topic', { sse: true }, async (_request, reply) => { last = await reply.sse({ subscriptions: ['a'] }) })
    app.get('/source', (_request, reply) => reply.sse(async function * ({ signal }) {
      yield 'item'
      await new Promise(resolve => signal.addEventListener('abort', resolve))
    }))
  })
  let last: SSEConnection | null = null
  return {
    ...service,
    sse: service.app.sse,
    async stream (path = '/topic', options: OpenStreamOptions = {}) {
      const stream = await service.open(path, { socket: false, ...options })
      return { stream, connection: path === '/topic' ? last! : [...service.app.sse.connections()].at(-1)! }
    }
  }
}

const frameOf = (bytes: number) => new Frame('', `data: ${'x'.repeat(bytes - 'data: \n\n'.length)}\n\n`, EventPriority.NORMAL)

/** Whether a promise has resolved by the end of this turn, and of the next ones. */
async function resolves (promise: Promise<unknown>, count = 0): Promise<boolean> {
  let done = false
  promise.then(() => { done = true })
  if (count === 0) for (let n = 0; n < 5; n++) await Promise.resolve()
  else await turns(count)
  return done
}

t.test('a connection that waits for an authorization writes nothing, and then all in order', async t => {
  const { stream: open, sse } = await start(t)
  const { stream, connection } = await open()
  await sse.broadcastEvent({ event: 'x', data: 'first' })
  connection.hold()
  await turns(5)
  t.strictSame(texts(stream), [], 'also what was published in the turn before')
  connection.endHold()
  await stream.next('x')
  await sse.broadcastEvent({ event: 'x', data: 'before' })
  connection.hold()
  connection.sendEvent({ event: 'x', data: 'own' })
  connection.hold()
  await sse.broadcastEvent({ event: 'x', data: 'logged' })
  await turns(5)
  t.strictSame(texts(stream), ['first'])
  connection.endHold()
  await turns(5)
  t.strictSame([texts(stream), connection.blocked], [['first'], true], 'another authorization is pending')
  connection.endHold()
  t.strictSame([connection.blocked, connection.stats().sentEvents], [false, 4], 'at once')
  connection.sendEvent({ event: 'x', data: 'after' })
  await stream.collect(4, 'x')
  t.strictSame(texts(stream), ['first', 'before', 'own', 'logged', 'after'])
  t.match(connection.stats(), { sentEvents: 5, queuedBytes: 0, lagging: false })
})

t.test('an authorization that ends does not free a socket that is full', async t => {
  const { stream: open } = await start(t)
  const { stream, connection } = await open()
  stream.freeze()
  connection.sendEvent({ event: 'x', data: 'x'.repeat(100_000) })
  await turns(2)
  connection.hold()
  connection.endHold()
  t.equal(connection.blocked, true)
  connection.hold()
  stream.thaw()
  await turns(10)
  t.equal(connection.blocked, true, 'nor does a socket that takes more end the wait')
  t.strictSame(texts(stream), [])
  connection.endHold()
  await stream.collect(1, 'x')
})

t.test('drained() resolves when nothing waits any more', async t => {
  const { stream: open } = await start(t)
  const { stream, connection } = await open()
  t.equal(await resolves(connection.drained()), true, 'nothing waits')
  connection.sendEvent({ event: 'x', data: 1 })
  const written = connection.drained()
  t.equal(await resolves(written), false, 'the event is written at the end of the turn')
  t.equal(await resolves(written, 2), true)
  connection.hold()
  const held = connection.drained()
  t.equal(await resolves(held, 3), false)
  connection.endHold()
  t.equal(await resolves(held), true)
  stream.freeze()
  connection.sendEvent({ event: 'x', data: 'x'.repeat(100_000) })
  await turns(2)
  connection.sendEvent({ event: 'x', data: 2 })
  const read = connection.drained()
  t.equal(await resolves(read, 5), false)
  stream.thaw()
  await stream.collect(3, 'x')
  t.equal(await resolves(read, 5), true)
  stream.freeze()
  connection.sendEvent({ event: 'x', data: 'x'.repeat(100_000) })
  await turns(2)
  const ended = connection.drained()
  connection.close()
  t.equal(await resolves(ended), true, 'the stream has ended')
  t.equal(await resolves(connection.drained()), true)
})

t.test('how much a source may add before it waits', async t => {
  const { stream: open } = await start(t)
  const { connection, stream } = await open()
  for (const [first, second, crowded] of [[1_000, 15_384, false], [1_000, 15_385, true], [16_384, 8, true]] as const) {
    connection.receive(frameOf(first))
    t.equal(connection.crowdedFor(frameOf(second)), crowded, `${first} and ${second} bytes`)
    await turns(2)
  }
  t.equal(connection.crowdedFor(frameOf(50_000)), false, 'a single item can be larger')
  connection.hold()
  t.equal(connection.crowdedFor(frameOf(10)), true)
  connection.sendEvent({ data: 1 })
  connection.endHold()
  t.equal(connection.crowdedFor(frameOf(10)), false)
  connection.close()
  t.equal(connection.crowdedFor(frameOf(10)), false, 'which is then not taken')
  await stream.ended

  const small = await start(t, { outboxBytes: 2_000 })
  const other = await small.stream()
  other.connection.receive(frameOf(900))
  t.equal(other.connection.crowdedFor(frameOf(600)), false)
  t.equal(other.connection.stats().sentEvents, 0)
  t.equal(other.connection.crowdedFor(frameOf(601)), false)
  t.equal(other.connection.stats().sentEvents, 1, 'earlier items are written to make room')
  for (const [bytes, sent] of [[900, 1], [600, 1], [500, 3]] as const) {
    other.connection.receive(frameOf(bytes))
    t.equal(other.connection.stats().sentEvents, sent, 'as they are for each event')
  }
})

t.test('what is written at once, and what waits for the end of the turn', async t => {
  const { stream: open } = await start(t)
  const { stream, connection } = await open()
  t.equal(connection.writeAtOnce(frameOf(100)), true)
  t.equal(connection.writeAtOnce(frameOf(100)), false, 'the second of a turn')
  t.equal(connection.stats().sentEvents, 1)
  await turns(2)
  t.equal(connection.writeAtOnce(frameOf(100)), true, 'in the next turn again')
  await turns(2)
  const chunkOf = (bytes: number): Chunk => {
    const chunk = new Chunk('x'.repeat(bytes - 4 - bytes.toString(16).length))
    t.equal(chunk.bytes, bytes)
    return chunk
  }
  for (const [bytes, writes] of [[16_383, true], [16_384, true], [16_385, false]] as const) t.equal(connection.writeTogether(chunkOf(bytes), 3), writes, `${bytes} bytes`)
  t.equal(connection.stats().sentEvents, 8)
  await until(() => !connection.blocked)
  connection.sendEvent({ data: 1 })
  t.equal(connection.writeTogether(chunkOf(100), 1), false, 'an event waits')
  await turns(2)
  connection.hold()
  t.equal(connection.writeTogether(chunkOf(100), 1), false)
  connection.endHold()
  connection.close()
  t.equal(connection.writeTogether(chunkOf(100), 1), false)
  await stream.ended
})

t.test('events with a key count as often as they are sent', async t => {
  const { stream: open } = await start(t)
  const { stream, connection } = await open()
  for (let n = 0; n < 5; n++) connection.sendEvent({ event: 'x', data: n, key: 'k' })
  connection.sendEvent({ event: 'x', data: 5 })
  await stream.collect(2, 'x')
  t.equal(connection.stats().sentEvents, 2)
  stream.freeze()
  connection.sendEvent({ event: 'x', data: 'x'.repeat(100_000) })
  await turns(2)
  for (let n = 0; n < 5; n++) connection.sendEvent({ event: 'x', data: n, key: 'k' })
  stream.thaw()
  await until(() => stream.named('x').length === 4)
  t.equal(connection.stats().sentEvents, 4)
})

t.test('a large event that was written to its end is no reason to end the stream when rights change', async t => {
  const { stream: open, sse } = await start(t)
  const { stream, connection } = await open()
  const publish = async () => { await sse.broadcastEvent({ event: 'x', data: 'x'.repeat(200_000) }, { subscriptionIds: ['a'] }) }
  await publish()
  await stream.next('x')
  await until(() => connection.stats().queuedBytes === 0)
  await connection.removeSubscription('a')
  connection.reconsider()
  t.equal(connection.closeReason, null)
  await connection.addSubscription('a')
  stream.freeze()
  await publish()
  await turns(2)
  connection.sendEvent({ event: 'y', data: 'y'.repeat(200_000) })
  await connection.addSubscription('b')
  t.equal(connection.closeReason, null)
  await sse.revokeSubscription('ada', 'b')
  connection.reconsider()
  t.equal(connection.closeReason, null, 'the client still may receive it')
  await connection.removeSubscription('a')
  connection.reconsider()
  t.equal(connection.closeReason, 'revoked')
  await until(() => sse.connectionCount === 0)
  t.equal(sse.stats().queuedBytes, 0)
})

t.test('nor is one that waited in the outbox, but one that is being written', async t => {
  const { stream: open, sse } = await start(t)
  const { stream, connection } = await open()
  connection.hold()
  await sse.broadcastEvent({ event: 'x', data: 'x'.repeat(200_000) }, { subscriptionIds: ['a'] })
  stream.freeze()
  connection.endHold()
  await connection.removeSubscription('a')
  connection.reconsider()
  t.equal(connection.closeReason, 'revoked')
  await until(() => sse.connectionCount === 0)
})

t.test('a client that returns and does not read has a page of what it missed, and is drained when it has all', async t => {
  const { stream: open, sse } = await start(t, { keepAliveIntervalMs: 3_600_000 })
  const lastEventId = sse.position()
  for (let n = 0; n < 600; n++) await sse.broadcastEvent({ event: 'x', data: 'x'.repeat(1_000) })
  const { stream, connection } = await open('/topic', { lastEventId })
  stream.freeze()
  await until(() => connection.blocked)
  await turns(50)
  const { replayed } = sse.stats()
  t.ok(replayed < 100, `${replayed} events were read`)
  const drained = connection.drained()
  t.equal(await resolves(drained, 20), false)
  let level = false
  drained.then(() => { level = !connection.stats().lagging })
  stream.thaw()
  await until(() => stream.named('x').length === 600)
  t.equal(await resolves(drained, 20), true)
  t.equal(level, true)
})

t.test('a stream of a source is not one of the log', async t => {
  const { stream: open, sse } = await start(t)
  const { stream, connection } = await open('/source')
  await stream.next('message')
  t.equal(connection.managed, false)
  connection.invalidate('epoch')
  await sse.broadcastEvent({ event: 'x', data: 1 })
  await turns(3)
  t.strictSame(stream.events.map(({ event }) => event), ['message'])
  t.match(sse.stats(), { connections: 1, resumes: { fresh: 0, resumed: 0, gap: 0 }, gaps: { epoch: 0 } })
  const managed = await open()
  managed.connection.close()
  managed.connection.invalidate('epoch')
  await managed.stream.ended
  t.match(sse.stats(), { resumes: { fresh: 1 }, gaps: { epoch: 0 } }, 'nor is one that has ended')
  t.equal(NO_POSITION, -1)
})

t.test('the reconnection time after failed loads is never shorter than that of the node', async t => {
  const { random } = Math
  t.teardown(() => { Math.random = random })
  const load = (): never => { throw new Error('no database') }
  for (const [retryMs, failures, expected] of [[1_000, 0, 1_000], [1_000, 3, 8_000], [1_000, 4, 16_000], [1_000, 5, 30_000], [1_000, 20, 30_000], [29_000, 1, 30_000], [40_000, 0, 40_000], [40_000, 5, 40_000]] as const) {
    const { join } = await serve(t, { retryMs })
    Math.random = () => 0
    const { stream } = await join('ada', [], { snapshot: { load }, ...(failures > 0 && { cursor: `!${failures.toString(36)}` }) })
    await stream.ended
    Math.random = random
    t.equal(stream.retryMs, expected, `${retryMs} ms, ${failures} failures`)
  }
})

t.test('warnings that wait are logged when the node closes', async t => {
  const time = testClock()
  const lines: any[] = []
  let asks = false
  const service = await serve(t, { stallTimeoutMs: 3_000, authorizeSubscription: async () => asks ? await new Promise(() => {}) : true, ...time.options }, { logger: { level: 'warn', stream: { write: (line: string) => { lines.push(JSON.parse(line)) } } } })
  const { connection } = await service.join('ada', ['a'])
  asks = true
  service.app.sse.reauthorize('ada').catch(() => {})
  await time.advance(4_000)
  t.equal(connection.closeReason, 'rights-unknown')
  t.strictSame(lines, [])
  await service.app.close()
  t.match(lines, [{ clientId: connection.clientId, userId: 'ada', count: 1, msg: /authorizeSubscription had not answered/ }])
})

t.test('the age of a stream begins with its request', async t => {
  const time = testClock()
  const { stream: open, sse } = await start(t, { keepAliveIntervalMs: 3_600_000, ...time.options })
  const reports = new Reports(t, () => sse.nodeId, ['open', 'close'])
  await time.advance(5_000)
  const { connection } = await open()
  await time.advance(700)
  connection.close()
  await until(() => sse.connectionCount === 0)
  t.match(reports.all, [['open', { durationMs: 0 }], ['close', { durationMs: 700 }]])
})

t.test('what is sent in the turn of a gap comes behind it', async t => {
  const { stream: open, sse } = await start(t)
  const { stream, connection } = await open('/topic', { lastEventId: 'garbage' })
  connection.sendEvent({ event: 'x', data: 1 })
  await stream.collect(1, 'x')
  t.strictSame(stream.events.map(({ event }) => event), ['sse:gap', 'x'])
  t.strictSame(payloads(stream, 'x'), [1])
  t.equal(sse.stats().lagging, 0)
})
