import t, { type Test } from 'tap'
import { memoryBroker, SSEManager } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { testClock } from '../../lib/testing/index.js'
import { runKey } from '../../lib/log/run-store.js'
import { serve } from '../helpers/app.js'
import { startFront } from '../helpers/front.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { Hand, never, serveRuns, told, tokens, type RunService } from '../helpers/runs.js'
import { until } from '../helpers/wait.js'

// Runs of two nodes on one Redis.

t.test('two nodes', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  let prefixes = 0
  const broker = (keyPrefix: string) => redisStreamsBroker({ client: server.url, keyPrefix, replyTimeoutMs: 10_000 })
  const nodes = async (t: Test): Promise<[RunService, RunService]> => {
    const keyPrefix = `runs-${++prefixes}`
    const options = () => ({ broker: broker(keyPrefix), runs: { leaseMs: 60_000, drainMs: 50 } })
    return [await serveRuns(t, options()), await serveRuns(t, options())]
  }

  t.test('a run is started, read, listed, joined and stopped on any of them', async t => {
    const [one, other] = await nodes(t)
    const hand = new Hand()
    const ada = { ownerId: 'ada' }
    const { run } = await one.begin('a', hand.factory, ada)
    hand.yield('one', { event: 'token', data: { n: 2 } })
    const streams = [await one.read('a', ada), await other.read('a', ada)]
    for (const stream of streams) await stream.collect(2)
    const joined = await other.begin('a', never, ada)
    t.same([joined.started, joined.run.status], [false, 'running'])
    t.same((await other.app.sse.listRuns(ada)).map(({ id, status }) => [id, status]), [['a', 'running']])
    t.equal(await other.app.sse.getRun('a', { ownerId: 'eve' }), null)
    hand.yield('three')
    for (const stream of streams) await stream.next()
    t.equal(await other.app.sse.stopRun('a', ada), true)
    t.equal(await one.app.sse.stopRun('a', ada), true)
    for (const stream of streams) await stream.ended
    t.same(told(streams[0]!), told(streams[1]!))
    t.same(told(streams[0]!).map(([, event, data]) => [event, data]), [['message', 'one'], ['token', '{"n":2}'], ['message', 'three'], ['sse:end', '{"status":"stopped","events":3}']])
    t.same([await run.finished, await joined.run.finished], Array(2).fill({ status: 'stopped', events: 3 }))
    await until(() => hand.returned === 1, undefined, 'the source is stopped on its node')
  })

  t.test('a run with onDisconnect goes on while any node reads it', async t => {
    const [one, other] = await nodes(t)
    const { run } = await one.begin('a', never, { onDisconnect: { graceMs: 1_000 } })
    const streams = [await one.read('a'), await other.read('a')]
    await streams[0]!.cut()
    const leftAt = Date.now()
    // Longer than the grace: the time is that of the producer, which the test does not control.
    await until(() => Date.now() - leftAt > 3_000)
    t.equal((await one.app.sse.getRun('a', { ownerId: null }))!.status, 'running')
    await streams[1]!.cut()
    t.same(await run.finished, { status: 'stopped', reason: 'disconnect', events: 0 })
  })

  t.test('a run that was ended on another node and is started again at once: its first source is stopped', async t => {
    const [one, other] = await nodes(t)
    const [first, second] = [new Hand(), new Hand()]
    const { run } = await one.begin('a', first.factory)
    t.equal(await other.app.sse.stopRun('a', { ownerId: null }), true)
    t.equal((await one.app.sse.getRun('a', { ownerId: null }))!.status, 'stopped', 'although its producer may not know it yet')
    t.equal((await one.begin('a', second.factory)).started, true)
    await until(() => first.returned === 1)
    await run.finished
    t.equal(await other.app.sse.stopRun('a', { ownerId: null }), true)
    await until(() => second.returned === 1, undefined, 'the node of the second source is still told of its end')
  })

  t.test('stopRun stops the run that exists, not the one that this node has produced before', async t => {
    const [one, other] = await nodes(t)
    const [first, second] = [new Hand(), new Hand()]
    await one.begin('a', first.factory)
    await other.app.sse.stopRun('a', { ownerId: null })
    const { run, started } = await other.begin('a', second.factory)
    t.equal(started, true)
    t.equal(await one.app.sse.stopRun('a', { ownerId: null }), true)
    t.same(await run.finished, { status: 'stopped', events: 0 })
    await until(() => first.returned === 1 && second.returned === 1)
  })

  t.test('a reader of another node that comes in the last moment keeps a run with onDisconnect', async t => {
    const keyPrefix = `runs-${++prefixes}`
    const clock = testClock()
    const one = await serveRuns(t, { broker: broker(keyPrefix), runs: { leaseMs: 60_000, drainMs: 50 }, ...clock.options })
    const other = await serveRuns(t, { broker: broker(keyPrefix), runs: { drainMs: 50 } })
    const hand = new Hand()
    const { run } = await one.begin('a', hand.factory, { onDisconnect: { graceMs: 1_000 } })
    await clock.advance(750)
    const stream = await other.read('a')
    await until(async () => (await other.app.sse.getRun('a', { ownerId: null }))!.state.isRead)
    for (let n = 0; n < 4; n++) await clock.advance(250)
    hand.yield('one')
    t.equal((await stream.next()).data, 'one')
    t.equal(run.status, 'running')
  })

  t.test('a run object that is kept for long is read as the run is now', async t => {
    const [one, other] = await nodes(t)
    const hand = new Hand()
    await one.begin('a', hand.factory)
    const kept = await other.app.sse.getRun('a', { ownerId: null })
    hand.yield('one', 'two')
    hand.end()
    const { events } = await one.read('a').then(async stream => { await stream.ended; return stream })
    const again = await serve(t, { broker: broker(`runs-${prefixes}`) }, {}, app => { app.get('/kept', { sse: true }, (_request, reply) => reply.sse(kept)) })
    const stream = await again.open('/kept', { lastEventId: events[0]!.id! })
    await stream.ended
    t.same(told(stream).map(([, event, data]) => [event, data]), [['message', 'two'], ['sse:end', '{"status":"done","events":2}']])
    t.equal((await again.open('/kept', { lastEventId: events.find(({ event }) => event === 'sse:end')!.id! })).status, 204)
  })

  t.test('a worker without HTTP produces what another node sends', async t => {
    const [, other] = await nodes(t)
    const worker = new SSEManager({ broker: broker(`runs-${prefixes}`), runs: { drainMs: 0 } })
    t.teardown(() => worker.close())
    const { run } = await worker.startRun('job', () => ['1', '2'], { ownerId: null })
    t.same(await run.finished, { status: 'done', events: 2 })
    const stream = await other.read('job')
    await stream.ended
    t.same(tokens(stream), ['1', '2'])
  })

  t.test('readers of one node share their reads, and news of many runs share their messages', async t => {
    const [one, other] = await nodes(t)
    const hands = Array.from({ length: 20 }, () => new Hand())
    for (const [n, hand] of hands.entries()) await one.begin(`${n}`, hand.factory)
    const readers = await Promise.all(Array.from({ length: 10 }, () => other.read('0')))
    const streams = await Promise.all(hands.map((_, n) => other.read(`${n}`)))
    await until(async () => (await Promise.all(hands.map((_, n) => other.app.sse.getRun(`${n}`, { ownerId: null })))).every(run => run!.state.isRead), undefined, 'the reads are known to the producer')
    const [scripts, messages] = [await server.calls('evalsha'), await server.calls('xadd')]
    for (let n = 1; n <= 50; n++) {
      hands[0]!.yield(String(n))
      await until(() => [...readers, streams[0]!].every(stream => tokens(stream).length === n))
    }
    const scriptsPerEvent = (await server.calls('evalsha') - scripts) / 50
    // An append, a message, a read; beside them, each of the 20 runs is read once a second.
    t.ok(scriptsPerEvent < 6, `${scriptsPerEvent} scripts for an event with 11 readers`)
    const before = await server.calls('xadd')
    t.ok(before - messages < 100)
    for (let n = 0; n < 10; n++) for (const hand of hands) hand.yield('x')
    await until(() => streams.slice(1).every(stream => tokens(stream).length === 10))
    t.ok(await server.calls('xadd') - before < 100, `${await server.calls('xadd') - before} messages for 200 events of 20 runs`)
  })

  t.test('a client that reads slowly is not the reason for memory', async t => {
    const [one, other] = await nodes(t)
    const item = 'x'.repeat(10_000)
    const { run } = await one.begin('a', function * () { for (let n = 0; n < 300; n++) yield `${n} ${item}` })
    const slow = await other.read('a', { socket: false, readRate: 100_000 })
    const fast = await other.read('a')
    await run.finished
    await fast.ended
    t.equal(tokens(fast).length, 300)
    t.ok(tokens(slow).length < 150, `${tokens(slow).length} events received`)
    t.ok(other.app.sse.stats().queuedBytes < 400_000, `${other.app.sse.stats().queuedBytes} bytes wait`)
    await slow.close()
  })
})

t.test('a run that cannot be written into the list of its owner is started all the same, and listed later', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const front = await startFront(t, server.port)
  const { begin, app } = await serveRuns(t, { broker: redisStreamsBroker({ client: front.url.replace('http', 'redis'), replyTimeoutMs: 10_000 }) })
  const hand = new Hand()
  // Only the list has the id itself: the key of the run has a hash.
  front.cutAt = 'named'
  t.equal((await begin('named', hand.factory)).started, true)
  t.equal(front.cutAt, null)
  const listed = async () => (await app.sse.listRuns({ ownerId: null })).map(({ id }) => id)
  t.same(await listed(), [])
  hand.yield('one')
  await until(async () => (await listed()).includes('named'))
  t.equal(hand.calls, 1)
})

t.test('a run is not done if its last event could not be stored while its node closed', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const front = await startFront(t, server.port)
  const clock = testClock()
  const { begin, app } = await serveRuns(t, { broker: redisStreamsBroker({ client: front.url.replace('http', 'redis'), replyTimeoutMs: 10_000 }), runs: { drainMs: 10 }, ...clock.options })
  const other = await serveRuns(t, { broker: redisStreamsBroker({ client: server.url, replyTimeoutMs: 10_000 }) })
  const found = async () => (await other.app.sse.getRun('a', { ownerId: null }))!
  const hand = new Hand()
  const { run } = await begin('a', hand.factory)
  hand.yield('one')
  await until(async () => (await found()).state.events === 1)
  // The first attempt fails before the shutdown, and the second one after its time is over.
  front.cutAt = 'two'
  hand.yield('two')
  hand.end()
  await until(() => front.cutAt === null)
  front.cutAt = 'two'
  let isClosed = false
  const closing = app.close().then(() => { isClosed = true })
  await until(async () => {
    await clock.advance(50)
    return isClosed
  })
  await closing
  t.same(await run.finished, { status: 'lost', events: 1 })
  t.equal((await found()).status, 'lost')
})

t.test('a run that is lost ends with its lease, and is listed for as long as it is kept', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const store = redisStreamsBroker({ client: server.url, replyTimeoutMs: 10_000 }).runs!
  t.teardown(() => store.close())
  store.watch({ news () {}, ended () {} })
  const key = runKey('a', null)
  const { state: { startedAt } } = await store.claim({ key, token: 'token', leaseMs: 1_000, ttlMs: 60_000, joinFinished: false, settings: '' })
  const expiry = async (pattern: string) => Number(/:(\d+)/.exec(await server.ask('EVAL', "return redis.call('PEXPIRETIME', redis.call('KEYS', ARGV[1])[1])", '0', pattern))![1])
  const expiresAt = await expiry('*:run:*')
  // Noticed later than its end.
  const { endedAt } = await until(async () => {
    const state = (await store.get(key))!
    return state.status === 'lost' ? state : null
  })
  t.equal(endedAt, startedAt + 1_000)
  t.equal(await expiry('*:run:*'), expiresAt)
  t.ok(await expiry('*:runs:*') >= expiresAt)
})

t.test('a start that was rejected does not happen later', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const { begin, app } = await serveRuns(t, { broker: redisStreamsBroker({ client: server.url, replyTimeoutMs: 500 }) })
  await (await begin('a', () => ['one'])).run.finished
  server.signal('SIGSTOP')
  for (const id of ['a', 'b']) await t.rejects(begin(id, never), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
  server.signal('SIGCONT')
  const found = (id: string) => app.sse.getRun(id, { ownerId: null })
  t.equal((await until(() => found('a').catch(() => null)))!.status, 'done', 'the answer is not replaced by one without a source')
  t.equal(await found('b'), null)
  await (await begin('b', () => ['two'])).run.finished
})

t.test('the end of a run of another node is waited for while Redis does not answer', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const start = () => serveRuns(t, { broker: redisStreamsBroker({ client: server.url, replyTimeoutMs: 500 }), runs: { leaseMs: 600_000 } })
  const [one, other] = [await start(), await start()]
  const hand = new Hand()
  await one.begin('a', hand.factory)
  const kept = await other.app.sse.getRun('a', { ownerId: null })
  server.signal('SIGSTOP')
  // Asked after `finished` has asked, and so answered after it.
  const finished = kept!.finished
  await t.rejects(other.app.sse.getRun('a', { ownerId: null }), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
  server.signal('SIGCONT')
  hand.end()
  t.same(await finished, { status: 'done', events: 0 })
})

t.test('a node without its Redis closes soon, and stopRun does not claim an end that is not stored', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const start = (leaseMs: number) => serveRuns(t, { broker: redisStreamsBroker({ client: server.url, keyPrefix: String(leaseMs), replyTimeoutMs: 5_000 }), runs: { leaseMs, drainMs: 50 } })
  const [patient, other] = [await start(600_000), await start(1_000)]
  const { run } = await patient.begin('a', never)
  await other.begin('a', never)
  await server.kill()
  await t.rejects(other.app.sse.stopRun('a', { ownerId: null }), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
  const closingAt = Date.now()
  await patient.app.close()
  t.ok(Date.now() - closingAt < 60_000, `closed after ${Date.now() - closingAt} ms`)
  t.same(await run.finished, { status: 'lost', events: 0 })
})

t.test('a shared broker without runs says so', async t => {
  const broker = Object.assign(memoryBroker(), { shared: true })
  const sse = new SSEManager({ broker })
  t.teardown(() => sse.close())
  await t.rejects(sse.startRun('a', never, { ownerId: null }), { code: 'SSE_ERR_INVALID_OPTION', message: /keeps no runs/ })
})
