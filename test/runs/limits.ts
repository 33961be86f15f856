import type { Socket } from 'node:net'
import t from 'tap'
import { memoryBroker, type RunOptions } from '../../lib/index.js'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { testClock } from '../../lib/testing/index.js'
import { Hand, never, serveRuns, told } from '../helpers/runs.js'
import { turns, until } from '../helpers/wait.js'

// Every bound of a run is reached.

t.test('events, bytes and times of one run', async t => {
  const clock = testClock()
  const { begin } = await serveRuns(t, clock.options)
  // Encoded as `data: xxxx\n\n`: 12 bytes.
  const cases: Record<string, { options: Partial<RunOptions>, events: number, status?: 'stopped', reason: string, advance?: number }> = {
    maxEvents: { options: { maxEvents: 3 }, events: 3, reason: 'limit' },
    maxBytes: { options: { maxBytes: 12 * 4 + 11 }, events: 4, reason: 'limit' },
    maxDurationMs: { options: { maxDurationMs: 60_000 }, events: 10, reason: 'timeout', advance: 61_000 },
    idleTimeoutMs: { options: { idleTimeoutMs: 30_000 }, events: 10, reason: 'timeout', advance: 31_000 },
    'onDisconnect with a time': { options: { onDisconnect: { graceMs: 20_000 } }, events: 10, status: 'stopped', reason: 'disconnect', advance: 21_000 },
    'onDisconnect: stop': { options: { onDisconnect: 'stop' }, events: 10, status: 'stopped', reason: 'disconnect', advance: 1_600 }
  }
  for (const [name, { options, events, status = 'failed', reason, advance }] of Object.entries(cases)) {
    const hand = new Hand()
    const { run } = await begin(name, hand.factory, options)
    hand.yield(...Array.from({ length: 10 }, () => 'xxxx'))
    if (advance !== undefined) {
      await until(() => run.status === 'running' && hand.signal !== null)
      await clock.advance(advance / 2)
      t.equal(run.status, 'running', `${name}: not before`)
      await clock.advance(advance / 2)
    }
    t.same(await run.finished, { status, reason, events }, name)
    t.equal(hand.signal!.aborted, true)
    await until(() => hand.returned === 1, undefined, `${name}: the source is stopped`)
  }
})

t.test('the time in which the store is slow is no idle time of the source', async t => {
  const clock = testClock()
  let release!: () => void
  const released = new Promise<void>(resolve => { release = resolve })
  class SlowStore extends MemoryRunStore {
    override append (...args: Parameters<MemoryRunStore['append']>): any {
      return released.then(() => super.append(...args))
    }
  }
  const broker = Object.assign(memoryBroker(), { runs: new SlowStore(clock.clock, 1 << 30) })
  const { begin } = await serveRuns(t, { ...clock.options, broker, runs: { leaseMs: 600_000 } })
  const hand = new Hand()
  const { run } = await begin('a', hand.factory, { idleTimeoutMs: 30_000 })
  // More than a producer keeps: it does not ask its source for another item.
  hand.yield('x'.repeat(40_000), 'x'.repeat(40_000), 'x'.repeat(40_000), 'x'.repeat(40_000))
  await turns(5)
  await clock.advance(60_000)
  hand.end()
  release()
  t.match(await run.finished, { status: 'done', events: 4 })
})

t.test('a source that yields for ever leaves the event loop to others, and ends at its limit', async t => {
  const { begin } = await serveRuns(t)
  let made = 0
  const { run } = await begin('a', function * () { for (;;) { made++; yield 'x' } }, { maxEvents: 20_000 })
  await new Promise(resolve => setImmediate(resolve))
  t.equal(run.status, 'running')
  t.same(await run.finished, { status: 'failed', reason: 'limit', events: 20_000 })
  t.ok(made <= 20_001 + 256)
})

t.test('a run with readers is not stopped, and is when the last has left', async t => {
  const clock = testClock()
  const { begin, read } = await serveRuns(t, clock.options)
  const { run } = await begin('a', never, { onDisconnect: { graceMs: 5_000 }, idleTimeoutMs: 600_000 })
  const [first, second] = [await read('a'), await read('a')]
  await clock.advance(20_000)
  t.equal(run.status, 'running')
  await first.cut()
  await clock.advance(20_000)
  t.equal(run.status, 'running', 'another reader is left')
  await second.cut()
  await clock.advance(4_000)
  const third = await read('a')
  await clock.advance(10_000)
  t.equal(run.status, 'running', 'a reader has come back in time')
  await third.cut()
  await clock.advance(6_000)
  t.same(await run.finished, { status: 'stopped', reason: 'disconnect', events: 0 })
})

t.test('a run is kept for ttlMs after its end', async t => {
  const clock = testClock()
  const { begin, app, read } = await serveRuns(t, clock.options)
  const hand = new Hand()
  const { run } = await begin('a', hand.factory, { ttlMs: 30_000 })
  hand.yield('one')
  await clock.advance(60_000)
  hand.end()
  await run.finished
  await clock.advance(29_000)
  t.equal((await app.sse.getRun('a', { ownerId: null }))!.status, 'done')
  const stream = await read('a')
  await stream.ended
  await clock.advance(2_000)
  t.equal(await app.sse.getRun('a', { ownerId: null }), null)
  t.same(await app.sse.listRuns({ ownerId: null }), [])
  t.equal((await read('a', { lastEventId: stream.lastEventId })).text.includes('"status":"unknown"'), true)
  t.same(await run.finished, { status: 'done', events: 1 })
})

t.test('runs of a node and of an owner are counted while they run', async t => {
  const { begin, app } = await serveRuns(t, { runs: { max: 4, maxPerOwner: 2 } })
  const ada = { ownerId: 'ada' }
  await begin('1', never, ada)
  const hand = new Hand()
  const { run } = await begin('2', hand.factory, ada)
  await t.rejects(begin('3', never, ada), { code: 'SSE_ERR_TOO_MANY_USER_RUNS', statusCode: 429 })
  t.equal((await begin('1', never, ada)).started, false, 'a running one can be joined')
  await begin('3', never, { ownerId: 'alan' })
  await begin('3', never)
  await t.rejects(begin('4', never), { code: 'SSE_ERR_TOO_MANY_RUNS', statusCode: 503 })
  hand.end()
  await run.finished
  t.equal((await begin('2', hand.factory, { ...ada, ifFinished: 'join' })).started, false)
  t.equal((await begin('5', never, ada)).started, true)
  await t.rejects(begin('2', never, ada), { code: 'SSE_ERR_TOO_MANY_USER_RUNS' }, 'a finished one would be replaced')
  t.equal(await app.sse.stopRun('5', ada), true)
  t.equal((await begin('2', never, ada)).started, true)
})

t.test('the runs of a node have a common size: the oldest ended ones leave, then the one that grows fails', async t => {
  const { begin, app } = await serveRuns(t, { runs: { maxBytes: 310_000 } })
  const item = 'x'.repeat(99_992)
  const ended = async (id: string) => {
    const { run } = await begin(id, () => [item])
    return (await run.finished).status
  }
  t.same([await ended('1'), await ended('2'), await ended('3')], ['done', 'done', 'done'])
  t.equal(await ended('4'), 'done')
  t.equal(await app.sse.getRun('1', { ownerId: null }), null, 'the oldest has left')
  t.not(await app.sse.getRun('2', { ownerId: null }), null)
  const hand = new Hand()
  const { run } = await begin('5', hand.factory)
  hand.yield(item, item, item, item)
  t.same(await run.finished, { status: 'failed', reason: 'limit', events: 3 })
})

t.test('in memory, short runs count with the memory that they take', async t => {
  const { begin, app } = await serveRuns(t, { runs: { maxBytes: 30_000 } })
  for (let n = 0; n < 50; n++) await (await begin(`${n}`, () => ['x'])).run.finished
  const kept = (await app.sse.listRuns({ ownerId: null })).map(({ id }) => id)
  t.ok(kept.length > 3 && kept.length < 25, `${kept.length} runs are kept`)
  t.same(kept, Array.from(kept, (_, n) => String(49 - n)), 'the newest')
})

t.test('a node that closes lets its sources end, and the rest are lost at once', async t => {
  const { begin, app, read } = await serveRuns(t, { runs: { drainMs: 300 } })
  const hand = new Hand()
  const finishing = await begin('a', hand.factory)
  const hung = await begin('b', never)
  const stream = await read('b')
  const closing = app.close()
  await until(() => stream.named('sse:close').length === 1)
  t.match(stream.named('sse:close')[0]!.data, /shutdown/)
  await t.rejects(app.sse.startRun('c', never, { ownerId: null }), { code: 'SSE_ERR_CLOSED' })
  hand.yield('one')
  hand.end()
  t.same(await finishing.run.finished, { status: 'done', events: 1 })
  t.same(await hung.run.finished, { status: 'lost', events: 0 })
  await closing
})

t.test('a slow reader slows neither the source nor others, and buffers little', async t => {
  const { begin, read, app } = await serveRuns(t)
  const item = 'x'.repeat(10_000)
  const { run } = await begin('a', function * () { for (let n = 0; n < 300; n++) yield `${n} ${item}` })
  const slow = await read('a', { socket: false, readRate: 100_000 })
  const fast = await read('a')
  await run.finished
  await fast.ended
  t.equal(told(fast).length, 301)
  t.ok(slow.events.length < 150, `${slow.events.length} events received`)
  t.ok(app.sse.stats().queuedBytes < 200_000, `${app.sse.stats().queuedBytes} bytes wait`)
  await slow.close()
})

t.test('a client that reads as fast as a long run is written leaves the event loop to others, also with a small queue', async t => {
  const { app, begin, read } = await serveRuns(t, { outboxBytes: 1024 })
  const { run } = await begin('a', function * () { for (let n = 0; n < 2_000; n++) yield 'x'.repeat(500) })
  await run.finished
  let socket: Socket | null = null
  app.server.once('connection', connection => { socket = connection })
  const stream = await read('a')
  let [most, last] = [0, 0]
  while (stream.named('sse:end').length === 0) {
    const { bytesWritten } = socket!
    most = Math.max(most, bytesWritten - last)
    last = bytesWritten
    await turns(1)
  }
  t.equal(stream.named('message').length, 2_000)
  t.ok(most < 200_000, `${most} bytes in one turn`)
})
