import { AsyncLocalStorage } from 'node:async_hooks'
import t from 'tap'
import { BrokerUnavailable } from '../../lib/errors.js'
import { runKey, type RunClaim } from '../../lib/log/run-store.js'
import type { RunFactory } from '../../lib/runs/producer.js'
import { formatRunId } from '../../lib/runs/run-position.js'
import { NOBODY, startRuns } from '../helpers/node-runs.js'
import { Hand, never } from '../helpers/runs.js'
import { turns } from '../helpers/wait.js'

// The runs of one node: its timer, its limits and its end.

t.test('one timer runs while there are runs, and each run has its time exactly', async t => {
  const { testing, clock, begin, runs } = startRuns(t)
  for (let round = 0; round < 2; round++) {
    t.equal(clock.timers.size, round, 'but for the expiry of the run before')
    const { run } = await begin(`${round}`, never, { idleTimeoutMs: 5_000 })
    const { run: other } = await begin('other', never, { idleTimeoutMs: 10_000, ttlMs: 5_000 })
    t.equal(clock.timers.size, round + 1, 'one for both')
    await testing.advance(4_999)
    t.equal(run.status, 'running')
    await testing.advance(1)
    t.match(await run.finished, { status: 'failed', reason: 'timeout' })
    t.equal(other.status, 'running')
    await testing.advance(5_000)
    t.match(await other.finished, { status: 'failed', reason: 'timeout' })
    await testing.advance(10_000)
    t.equal(clock.timers.size, round + 1, 'the timer has stopped')
  }
  await runs.close()
  t.equal(clock.timers.size, 0)
})

t.test('a time in which the process stood still hardly counts', async t => {
  const { testing, clock, begin } = startRuns(t)
  const { run } = await begin('a', never, { idleTimeoutMs: 5_000, maxDurationMs: 5_000 })
  for (let n = 0; n < 4; n++) {
    clock.standStill(60_000)
    await testing.advance(250)
  }
  t.equal(run.status, 'running')
  await testing.advance(2_750)
  t.equal(run.status, 'running', 'each counted as two intervals at most')
  await testing.advance(250)
  t.match(await run.finished, { status: 'failed', reason: 'timeout' })
})

t.test('the timer and what it calls run in the context of no caller', async t => {
  const { testing, begin } = startRuns(t)
  const context = new AsyncLocalStorage<string>()
  let store: unknown = 'not called'
  const factory: RunFactory = ({ signal }) => {
    signal.addEventListener('abort', () => { store = context.getStore() })
    return never({ signal })
  }
  const { run } = await context.run('request', () => begin('a', factory, { idleTimeoutMs: 1_000 }))
  await context.run('test', () => testing.advance(1_000))
  await run.finished
  t.equal(store, undefined)
})

t.test('runs that are being started count, for the node and for the owner, and only they', async t => {
  for (const [limits, owners, code] of [[{ max: 2 }, ['ada', null], 'SSE_ERR_TOO_MANY_RUNS'], [{ maxPerOwner: 2 }, ['ada', 'ada'], 'SSE_ERR_TOO_MANY_USER_RUNS']] as const) {
    const { begin, store, runs } = startRuns(t, limits)
    let release!: () => void
    store.gate = new Promise(resolve => { release = resolve })
    const starting = owners.map((ownerId, n) => begin(`${n}`, never, { ownerId }))
    await turns()
    await t.rejects(begin('more', never, { ownerId: 'ada' }), { code })
    release()
    t.same((await Promise.all(starting)).map(({ started }) => started), [true, true])
    await t.rejects(begin('more', never, { ownerId: 'ada' }), { code })
    t.equal(await runs.stop('0', { ownerId: 'ada' }), true)
    t.equal((await begin('more', never, { ownerId: 'ada' })).started, true)
    await t.rejects(begin('still more', never, { ownerId: 'ada' }), { code })
    // A start that joins a run, or fails, does not count afterwards.
    t.equal((await begin('more', never, { ownerId: 'ada' })).started, false)
    await runs.stop('more', { ownerId: 'ada' })
    store.gate = Promise.reject(new BrokerUnavailable('is down'))
    for (let n = 0; n < 3; n++) await t.rejects(begin('failing', never, { ownerId: 'ada' }), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
    store.gate = null
    t.equal((await begin('again', never, { ownerId: 'ada' })).started, true)
  }
  const { begin } = startRuns(t, { maxPerOwner: 1 })
  for (let n = 0; n < 3; n++) t.equal((await begin(`${n}`)).started, true, 'public runs have no owner')
})

t.test('on a full node, a run that is kept can be joined, and none can be replaced', async t => {
  const { begin } = startRuns(t, { max: 1 })
  const hand = new Hand()
  const { run: kept } = await begin('kept', hand.factory)
  hand.end()
  await kept.finished
  await begin('running')
  t.match(await begin('kept', never, { ifFinished: 'join' }), { started: false, run: { id: 'kept', status: 'done' } })
  t.match(await begin('running'), { started: false, run: { status: 'running' } })
  await t.rejects(begin('kept'), { code: 'SSE_ERR_TOO_MANY_RUNS' })
  await t.rejects(begin('new', never, { ifFinished: 'join' }), { code: 'SSE_ERR_TOO_MANY_RUNS' })
})

t.test('a run that is started again stops the source of the one that was ended elsewhere without news', async t => {
  const { begin, store, runs } = startRuns(t)
  const hand = new Hand()
  const { run } = await begin('a', hand.factory)
  store.areNewsLost = true
  await store.finish(runKey('a', null), { status: 'stopped' })
  t.equal(hand.signal!.aborted, false)
  const { run: next, started } = await begin('a')
  t.same([started, hand.signal!.aborted], [true, true])
  t.match(await run.finished, { status: 'lost' })
  t.equal(next.status, 'running')
  t.equal(runs.producing().length, 1, 'the end of the earlier one is not that of the next')
  t.equal(await runs.stop('a', NOBODY), true)
})

t.test('stopRun keeps what the source has yielded, also if it waits to be appended', async t => {
  const { begin, store, runs } = startRuns(t)
  const hand = new Hand()
  const { run } = await begin('a', hand.factory)
  let release!: () => void
  store.gate = new Promise(resolve => { release = resolve })
  hand.yield('1', '2', '3')
  await turns()
  const stopped = runs.stop('a', NOBODY)
  await turns()
  release()
  t.equal(await stopped, true)
  t.match(await run.finished, { status: 'stopped', events: 3 })
})

t.test('all runs together have maxBytes, to the byte, whatever has ended before', async t => {
  const { begin } = startRuns(t, { maxBytes: 100 })
  // Four events of 25 bytes.
  const events = Array.from({ length: 4 }, () => 'x'.repeat(17))
  for (const [factory, options, end] of [[() => events, {}, { status: 'done', events: 4 }], [() => [...events, 'x'], {}, { status: 'failed', events: 4 }], [() => events, { maxEvents: 2 }, { status: 'failed', events: 2 }], [() => events, { maxBytes: 60 }, { status: 'failed', events: 2 }], [() => events, {}, { status: 'done', events: 4 }]] as const) {
    t.match(await (await begin('a', factory, options)).run.finished, end)
  }
  const [one, other] = [new Hand(), new Hand()]
  const { run } = await begin('one', one.factory)
  one.yield(...events.slice(0, 3))
  await turns()
  const { run: full } = await begin('other', other.factory)
  other.yield(...events.slice(0, 2))
  t.match(await full.finished, { status: 'failed', reason: 'limit', events: 1 })
  one.yield(events[3]!)
  one.end()
  t.match(await run.finished, { status: 'done', events: 4 })
})

t.test('a run that is joined with other options is logged, and the log is opened before each call', async t => {
  const { begin, logged, runs, opened } = startRuns(t)
  await begin('a', never, { maxEvents: 7 })
  t.equal(opened(), 1)
  await begin('a', never, { maxEvents: 7, ifFinished: 'join' })
  t.same(logged, [])
  await begin('a')
  t.match(logged, [[{ runId: 'a' }, /joined with other options/]])
  t.match(JSON.parse(logged[0]![0].running), { maxEvents: 7 })
  await runs.get('a', NOBODY)
  await runs.list(NOBODY)
  await runs.stop('a', NOBODY)
  t.equal(opened(), 6)
})

t.test('a run object is replaced if it does not explain the cursor, and only then', async t => {
  const { begin, runs, store } = startRuns(t)
  const { run } = await begin('a')
  await runs.stop('a', NOBODY)
  const { generation } = run.state
  const { run: next } = await begin('a')
  for (const cursor of [null, '', '17', formatRunId(generation, 0), formatRunId(generation, 1)]) t.equal(await runs.current(run, cursor), run, `${cursor}`)
  for (const cursor of [formatRunId(next.state.generation, 0), formatRunId(generation, 5)]) t.equal((await runs.current(run, cursor))!.state.generation, next.state.generation, cursor)
  store.get = async () => null
  t.equal(await runs.current(run, formatRunId(next.state.generation, 0)), null)
})

t.test('a node that closes: runs may end until drainMs is over, and nothing waits any more', async t => {
  const { testing, clock, begin, runs, store } = startRuns(t, { drainMs: 10_000 })
  const hands = [new Hand(), new Hand()]
  const started = await Promise.all(hands.map((hand, n) => begin(`${n}`, hand.factory)))
  const closing = runs.close()
  t.equal(runs.close() instanceof Promise, true)
  await t.rejects(begin('late'), { code: 'SSE_ERR_CLOSED' })
  await t.rejects(runs.get('0', NOBODY), { code: 'SSE_ERR_CLOSED' })
  for (const [n, hand] of hands.entries()) {
    await testing.advance(1_000)
    hand.end()
    t.match(await started[n]!.run.finished, { status: 'done' }, 'also after another one has ended')
  }
  await closing
  t.equal(store.isClosed, true)
  t.equal(clock.timers.size, 0)

  const hung = startRuns(t, { drainMs: 10_000 })
  const { run } = await hung.begin('a')
  const drained = hung.runs.drain()
  await hung.testing.advance(9_999)
  t.equal(run.status, 'running')
  await hung.testing.advance(1)
  await drained
  t.match(await run.finished, { status: 'lost' })

  const idle = startRuns(t, { drainMs: 10_000 })
  await idle.runs.close()
  t.equal(idle.testing.clock.monotonic(), 0, 'without runs, nothing is waited for')
})

t.test('a run whose start is answered while its node closes is lost at once, and its source is not made', async t => {
  const { begin, runs, store } = startRuns(t)
  let release!: () => void
  store.gate = new Promise(resolve => { release = resolve })
  const hand = new Hand()
  const starting = begin('a', hand.factory)
  await turns()
  const drained = runs.drain()
  release()
  await t.rejects(starting, { code: 'SSE_ERR_CLOSED' })
  await drained
  t.equal((await store.get(runKey('a', null)))!.status, 'lost')
  t.equal(hand.calls, 0)
})

t.test('the end of a run of another node: asked for once a second, through outages, until it is known or the node closes', async t => {
  const { testing, clock, runs, store, elsewhere } = startRuns(t)
  const ends: Record<string, [act: (key: RunClaim['key']) => Promise<unknown>, end: object]> = {
    done: [key => store.finish(key, { status: 'done' }), { status: 'done', events: 0 }],
    failed: [key => store.finish(key, { status: 'failed', reason: 'limit' }), { status: 'failed', reason: 'limit', events: 0 }],
    replaced: [async key => { await store.finish(key, { status: 'done' }); await elsewhere(key.runId) }, { status: 'lost', events: 0 }],
    'not kept': [async () => { store.isEmpty = true }, { status: 'lost', events: 0 }]
  }
  for (const [id, [act, end]] of Object.entries(ends)) {
    const { key } = await elsewhere(id)
    const run = (await runs.get(id, NOBODY))!
    const { finished } = run
    t.equal(run.finished, finished, 'one wait, however often it is asked for')
    let result: unknown = null
    finished.then(given => { result = given })
    await testing.advance(5_000)
    store.problem = new BrokerUnavailable('is down')
    await testing.advance(5_000)
    store.problem = null
    t.equal(result, null, id)
    await act(key)
    await testing.advance(1_000)
    t.same(result, end, id)
  }
  store.isEmpty = false
  t.ok(clock.timers.size <= 4, 'those of the runs that are kept')
  await elsewhere('open')
  const run = (await runs.get('open', NOBODY))!
  const rejected = t.rejects(run.finished, { code: 'SSE_ERR_CLOSED' })
  await turns()
  await runs.drain()
  await testing.advance(1_000)
  await rejected
})
