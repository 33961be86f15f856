import t, { type Test } from 'tap'
import { ClockJump } from '../../lib/connections/clock-jump.js'
import { tickMsFor, TimingWheel } from '../../lib/connections/timing-wheel.js'
import type { SSEOptions } from '../../lib/index.js'
import { testClock } from '../../lib/testing/index.js'
import { systemClock } from '../../lib/util/clock.js'
import { serve } from '../helpers/app.js'
import { turns } from '../helpers/wait.js'

// When a stream is written to, cut or ended: to the tick of the wheel, by a clock that only the test moves.

/** Two ticks of the wheel: so late an action can be. */
const LATE_MS = 500

/** A node and a stream in memory, whose client takes exactly what it reads. */
async function open (t: Test, options: SSEOptions) {
  const clock = testClock()
  const { app, open } = await serve(t, { keepAliveIntervalMs: 10_000, stallTimeoutMs: 30_000, ...options, ...clock.options })
  const startedAt = clock.now
  const stream = await open('/sse?user=ada', { socket: false })
  const [connection] = app.sse.getConnectionsByUser('ada')
  return {
    clock,
    sse: app.sse,
    stream,
    connection: connection!,
    another: async () => await open('/sse?user=bob', { socket: false }),
    keepAlives: () => stream.comments.filter(comment => comment === 'keep-alive').length,
    /** Moves the clock to this time since the stream was opened. */
    at: async (ms: number) => {
      await clock.advance(ms - (clock.now - startedAt))
      await turns(2)
    },
    /** Stops the client, and sends it more than its socket takes. */
    block () {
      stream.freeze()
      connection!.sendEvent({ event: 'filler', data: 'x'.repeat(100_000) })
    }
  }
}

t.test('a keep-alive is sent after a silence, and not before', async t => {
  const { at, keepAlives, connection, block, stream } = await open(t, { stallTimeoutMs: 0 })
  await at(9_999)
  t.equal(keepAlives(), 0)
  await at(10_000 + LATE_MS)
  t.equal(keepAlives(), 1)
  await at(19_000)
  connection.sendEvent({ data: 1 })
  await at(28_500)
  t.equal(keepAlives(), 1, 'an event is no silence')
  await at(29_000 + LATE_MS)
  t.equal(keepAlives(), 2)
  for (const n of [1, 2, 3, 4, 5]) {
    await at(29_000 + 9_500 * n)
    connection.sendEvent({ data: 1 })
  }
  t.equal(keepAlives(), 2)
  block()
  await turns(3)
  await at(100_000)
  stream.thaw()
  await stream.next('filler')
  t.equal(keepAlives(), 2, 'a socket that is full takes none')
  await at(110_000 + LATE_MS)
  t.equal(keepAlives(), 3)
})

t.test('a client that reads nothing is cut after stallTimeoutMs, whenever it has stopped', async t => {
  for (const keepAliveIntervalMs of [1_000, 3_600_000]) {
    const { at, connection, block, stream } = await open(t, { keepAliveIntervalMs, stallTimeoutMs: 3_000 })
    await at(1_700)
    block()
    await turns(3)
    await at(4_000)
    stream.thaw()
    await stream.next('filler')
    await at(4_100)
    block()
    await turns(3)
    await at(7_099)
    t.equal(connection.closeReason, null, 'it has read meanwhile')
    await at(7_100 + LATE_MS)
    t.equal(connection.closeReason, 'stalled', `keepAliveIntervalMs ${keepAliveIntervalMs}`)
  }
  const { at, connection, block } = await open(t, { stallTimeoutMs: 0 })
  block()
  await turns(3)
  await at(60_000)
  t.equal(connection.closeReason, null, '0: no limit')
})

t.test('a client that reads a large event slowly is not cut', async t => {
  const { at, connection, stream } = await open(t, { stallTimeoutMs: 3_000, keepAliveIntervalMs: 3_600_000 })
  stream.freeze()
  connection.sendEvent({ event: 'x', data: 'x'.repeat(1_000_000) })
  await turns(3)
  for (let ms = 2_000; ms <= 12_000; ms += 2_000) {
    await at(ms)
    const { receivedBytes } = stream
    stream.thaw()
    await stream.until(() => stream.receivedBytes > receivedBytes + 70_000)
    stream.freeze()
  }
  t.equal(connection.closeReason, null)
  t.ok(connection.stats().queuedBytes > 0, 'it has not read it to the end')
})

t.test('a stream that waits for an authorization', async t => {
  const waiting = async (steps: Record<number, 'hold' | 'let go' | 'block' | 'thaw'>) => {
    const { at, connection, block, stream, clock } = await open(t, { stallTimeoutMs: 3_000 })
    const startedAt = clock.now
    let end = 'open'
    connection.signal.addEventListener('abort', () => { end = `${connection.closeReason} after ${Math.floor((clock.now - startedAt) / 1_000)} s` })
    for (const [ms, step] of Object.entries(steps)) {
      await at(Number(ms))
      if (step === 'hold') connection.hold()
      if (step === 'let go') connection.endHold()
      if (step === 'block') block()
      if (step === 'thaw') {
        stream.thaw()
        await turns(5)
      }
      await turns(3)
    }
    await at(10_000)
    const result = end
    await stream.close()
    return result
  }
  t.equal(await waiting({ 500: 'hold' }), 'rights-unknown after 3 s')
  t.equal(await waiting({ 500: 'hold', 1_000: 'hold', 1_500: 'let go' }), 'rights-unknown after 3 s', 'two are pending, and the first began the wait')
  t.equal(await waiting({ 500: 'hold', 1_000: 'hold', 1_500: 'let go', 2_000: 'let go' }), 'open')
  t.equal(await waiting({ 500: 'block', 2_000: 'hold' }), 'stalled after 3 s', 'the wait for a client that does not read goes on')
  t.equal(await waiting({ 500: 'block', 2_000: 'hold', 2_500: 'let go' }), 'stalled after 3 s')
  t.equal(await waiting({ 500: 'block', 2_000: 'hold', 2_500: 'thaw' }), 'rights-unknown after 5 s', 'when it reads, the stream waits for its rights only')
  t.equal(await waiting({ 500: 'block', 2_000: 'hold', 2_500: 'thaw', 3_000: 'let go' }), 'open')
})

t.test('a closing stream has drainMs to be read', async t => {
  const { at, connection, block, sse } = await open(t, { drainMs: 4_000, stallTimeoutMs: 3_000, keepAliveIntervalMs: 3_600_000 })
  block()
  await turns(3)
  await at(2_000)
  connection.close('kicked')
  await at(5_800)
  t.equal(sse.connectionCount, 1, 'which stallTimeoutMs does not shorten')
  await at(6_000 + LATE_MS)
  t.equal(sse.connectionCount, 0)
})

t.test('the maximum age and the end of the rights, whichever comes first', async t => {
  const { random } = Math
  t.teardown(() => { Math.random = random })
  // Age, its random part, expiry: the end and its reason.
  const cases: [age: number, share: number, expiry: number | null, at: number, reason: string][] = [
    [10_000, 0, null, 8_000, 'max-age'],
    [10_000, 1, null, 10_000, 'max-age'],
    [10_000, 0.5, null, 9_000, 'max-age'],
    [10_000, 0, 8_001, 8_000, 'max-age'],
    [10_000, 0, 8_000, 8_000, 'auth-expired'],
    [10_000, 0, 4_000, 4_000, 'auth-expired'],
    [0, 0, 4_000, 4_000, 'auth-expired']
  ]
  for (const [maxConnectionAgeMs, share, expiry, endsAt, reason] of cases) {
    Math.random = () => share
    const clock = testClock()
    const { app, open } = await serve(t, { maxConnectionAgeMs, authHandler: () => ({ userId: 'ada', ...(expiry !== null && { expiresAt: clock.now + expiry }) }), ...clock.options })
    await clock.advance(5_000)
    const stream = await open('/sse', { socket: false })
    const [connection] = app.sse.getConnectionsByUser('ada')
    Math.random = random
    await clock.advance(endsAt - 1)
    t.equal(connection!.closeReason, null)
    await clock.advance(1 + LATE_MS)
    t.equal(connection!.closeReason, reason, `${maxConnectionAgeMs} ${share} ${expiry}`)
    await stream.ended
  }
})

t.test('a place that was not sent is sent once, after the silence of a keep-alive', async t => {
  const { at, sse, stream, connection, keepAlives, another } = await open(t, {})
  const idsOf = () => stream.text.split('\n').filter(line => line.startsWith('id: ')).length
  t.equal(idsOf(), 1)
  await sse.broadcastEvent({ event: 'x', data: 1 })
  await turns(3)
  await at(10_000 + LATE_MS)
  t.strictSame([idsOf(), keepAlives()], [2, 1], 'the event had it')
  connection.sendEvent({ event: 'own', data: 1 })
  await turns(3)
  await at(20_000 + 2 * LATE_MS)
  t.strictSame([idsOf(), keepAlives()], [2, 2], 'an event without an id changes nothing')
  await sse.broadcastEvent({ event: 'x', data: 1 })
  connection.sendEvent({ event: 'own', data: 1 })
  await turns(3)
  const { id } = await sse.broadcastEvent({ event: 'y', data: 1 }, { userIds: ['bob'] })
  await at(30_000 + 3 * LATE_MS)
  t.equal(stream.lastEventId, id)
  const ids = idsOf()
  t.equal(keepAlives(), 2, 'instead of a keep-alive')
  await at(60_000)
  t.equal(idsOf(), ids)
  t.ok(keepAlives() >= 4)
  const other = await another()
  await at(69_999)
  t.notOk(other.comments.includes('keep-alive'), 'the silence of another stream begins with its first block')
  await at(70_000 + LATE_MS)
  t.ok(other.comments.includes('keep-alive'))
  t.equal(other.text.split('\n').filter(line => line.startsWith('id: ')).length, 1, 'which has its place')
})

t.test('the tick of the wheel is a tenth of the shortest interval, from 10 to 250 ms', async t => {
  const none = { clock: systemClock, keepAliveIntervalMs: 0, stallTimeoutMs: 0, maxConnectionAgeMs: 0, drainMs: 0 }
  const ticks: [ms: number, tickMs: number][] = [[1, 10], [99, 10], [109, 10], [110, 11], [1_000, 100], [2_499, 249], [2_500, 250], [2_510, 250], [15_000, 250]]
  for (const name of ['keepAliveIntervalMs', 'stallTimeoutMs', 'maxConnectionAgeMs', 'drainMs'] as const) {
    for (const [ms, tickMs] of ticks) {
      t.equal(tickMsFor({ ...none, [name]: ms }), tickMs, `${name} ${ms}`)
      t.equal(tickMsFor({ clock: systemClock, keepAliveIntervalMs: 60_000, stallTimeoutMs: 60_000, maxConnectionAgeMs: 60_000, drainMs: 60_000, [name]: ms }), tickMs)
    }
  }
})

t.test('a wall clock that is ahead by more than 100 ms has jumped; it is looked at each 200 ms', async t => {
  let wall = 0
  let now = 0
  const clock = { ...systemClock, monotonic: () => now, wall: () => wall }
  const wheel = new TimingWheel(10, clock)
  let jumps = 0
  const watch = new ClockJump(clock, wheel, () => { jumps++ })
  const look = (ahead: number): number => {
    wall = now + ahead
    watch.onTime(now)
    t.equal(watch.dueAt, now + 200)
    now += 200
    return jumps
  }
  t.strictSame([0, 100, 101, 201, 202, 150, 250, 251].map(look), [0, 0, 1, 1, 2, 2, 2, 3])
  wheel.cancel(watch)
})
