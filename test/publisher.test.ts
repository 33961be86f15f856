import { Type } from '@sinclair/typebox'
import t, { type Test } from 'tap'
import { createPublisher, defineEvents, memoryBroker, type BroadcastOptions, type Broker, type PublisherOptions, type PublishOptions, type History, type Sink, type SSEOptions } from '../lib/index.js'
import { NoAnswer } from '../lib/errors.js'
import { MemoryRunStore } from '../lib/log/memory-run-store.js'
import { testClock, testLog, type TestLog } from '../lib/testing/index.js'
import { isApplicationEvent, serve } from './helpers/app.js'
import { Hand, never } from './helpers/runs.js'

// Publishers, in the process of the node that reads their log. Those with Redis: test/faults/publisher.test.ts.

const events = defineEvents({ events: { paid: Type.Object({ total: Type.Number() }) }, resources: { orders: Type.String() } })
const UNAVAILABLE = { code: 'SSE_ERR_BROKER_UNAVAILABLE' }
const CLOSED = { code: 'SSE_ERR_CLOSED' }

function publisherOf (t: Test, log: TestLog, options: Partial<PublisherOptions> = {}) {
  const publisher = createPublisher({ broker: log.broker(), ...options })
  t.teardown(() => publisher.close())
  return publisher
}

t.test('options', async t => {
  const broker = testLog().broker()
  const notForPublishing: Broker = Object.assign(Object.create(broker), { openForPublishing: undefined })
  const cases: [options: unknown, path: string, problem: RegExp][] = [
    [undefined, '/', /must be an object \{ broker \}, got undefined$/],
    [{}, 'broker', /is missing: Event log that this process shares/],
    [{ broker: undefined }, 'broker', /is missing/],
    [{ broker: {} }, 'broker', /has no method open$/],
    [{ broker: 'redis://:secret@localhost' }, 'broker', /is a text: write redisStreamsBroker\(\{ client: 'redis:\/\/…' \}\)/],
    [{ broker: memoryBroker() }, 'broker', /is the log of one process, which no node could read: use a log that nodes share/],
    [{ broker: notForPublishing }, 'broker', /has no method openForPublishing\. Use an SSEManager/],
    [{ broker, evnets: events }, 'evnets', /did you mean "events"/],
    [{ broker, path: '/sse' }, 'path', /is not an option/],
    [{ broker, authHandler: () => null }, 'authHandler', /is not an option/],
    [{ broker, events: {} }, 'events', /must be the result of defineEvents/],
    [{ broker, history: { maxEvents: 0 } }, 'history.maxEvents', /must be an integer from 1/],
    [{ broker, maxEventBytes: 2_000, history: { maxBytes: 1_024 } }, 'maxEventBytes', /must not exceed history\.maxBytes/],
    [{ broker, runs: { leaseMs: 1 } }, 'runs.leaseMs', /must be an integer from 1000/]
  ]
  for (const [options, path, problem] of cases) {
    t.throws(() => createPublisher(options as PublisherOptions), { code: 'SSE_ERR_INVALID_OPTION', message: `Option "${path}" ` }, path)
    t.throws(() => createPublisher(options as PublisherOptions), { message: problem }, path)
  }
})

t.test('all calls reach the clients of the nodes, with the ids that the publisher has returned', async t => {
  const log = testLog()
  const { app, join } = await serve(t, { broker: log.broker() })
  const publisher = publisherOf(t, log)
  const ada = await join('ada', ['topic'])
  const deliveries = [
    await publisher.broadcastData('orders', 'x'),
    await publisher.broadcastNotification({ title: 'T', message: 'M' }),
    await publisher.broadcastToUsers({ event: 'user', data: 1 }, ['ada']),
    await publisher.broadcastToSubscriptions({ event: 'topic', data: 1 }, ['topic']),
    await publisher.broadcastEvent({ event: 'ephemeral', data: 1 }, { ephemeral: true }),
    await publisher.broadcastEvent({ event: 'others', data: 1 }, { userIds: ['alan'] }),
    await publisher.broadcastEvent({ event: 'last', data: 1 }, { local: false, key: 'k', priority: 1 })
  ]
  await ada.stream.next('last')
  const received = ada.stream.events.filter(isApplicationEvent)
  t.same(received.map(({ event }) => event), ['data', 'notification', 'user', 'topic', 'ephemeral', 'last'])
  const ids = deliveries.map(({ id }) => id)
  t.same(ids.map(id => id?.split('.')[1]), ['1', '2', '3', '4', undefined, '5', '6'])
  t.same(received.filter(({ event }) => event !== 'ephemeral').map(({ id }) => id), ids.filter((id, n) => id !== null && n !== 5))
  t.same(deliveries.map(({ delivered }) => delivered), deliveries.map(() => 0))
  t.equal(app.sse.clusterStats().nodes.length, 1, 'a publisher is no node')
})

t.test('events are checked, and what only a node can do is refused before the log is opened', async t => {
  const log = testLog()
  log.fail()
  const broker = log.broker()
  broker.fail()
  const publisher = createPublisher({ broker, events, maxEventBytes: 100 })
  t.teardown(() => publisher.close())
  const publish = (event: string, data: unknown, options?: BroadcastOptions) => publisher.broadcastEvent({ event, data }, options as PublishOptions)
  await t.rejects(publish('paid', { total: 'x' }), { code: 'SSE_ERR_INVALID_PAYLOAD' })
  await t.rejects(publish('piad', { total: 1 }), { code: 'SSE_ERR_UNKNOWN_EVENT', message: /paid/ })
  await t.rejects(publisher.broadcastData('orders', 'x'.repeat(100)), { code: 'SSE_ERR_EVENT_TOO_LARGE' })
  await t.rejects(publish('paid', { total: 1 }, { userId: 'ada' } as BroadcastOptions), { code: 'SSE_ERR_INVALID_TARGET', message: /userIds/ })
  await t.rejects(publish('paid', { total: 1 }, { local: true }), { code: 'SSE_ERR_INVALID_TARGET', message: /has local: true, but a publisher has no connections: omit it/ })
  await t.rejects(publish('paid', { total: 1 }, { filter: () => true }), { code: 'SSE_ERR_INVALID_TARGET', message: /name userIds, subscriptionIds or clientIds instead/ })
  await t.rejects(publish('paid', { total: 1 }, null as unknown as BroadcastOptions), { code: 'SSE_ERR_INVALID_TARGET', message: /must be a plain object, got null/ })
  await t.rejects(publish('paid', { total: 1 }), UNAVAILABLE)
  await t.rejects(publisher.open(), UNAVAILABLE)
  broker.restore()
  t.match(await publish('paid', { total: 1 }), { id: /\.1$/ }, 'the next call tries again')
  broker.fail()
  await t.rejects(publish('paid', { total: 1 }), UNAVAILABLE)
  await t.rejects(publisher.position(), UNAVAILABLE)
  t.equal(log.position, 1)
})

t.test('position() is the cursor of now, of the log', async t => {
  const log = testLog()
  const publisher = publisherOf(t, log)
  const empty = await publisher.position()
  t.match(empty, /^[\w-]+\.0$/)
  const { app, join } = await serve(t, { broker: log.broker() })
  for (const event of ['one', 'two']) await app.sse.broadcastEvent({ event, data: 1 })
  const cursor = await publisher.position()
  t.equal(cursor, app.sse.position())
  await publisher.broadcastEvent({ event: 'three', data: 1 })
  const [first, second] = [await join(null, [], { cursor: empty }), await join(null, [], { cursor })]
  for (const { stream } of [first, second]) await stream.next('three')
  t.same([first, second].map(({ stream }) => stream.events.filter(isApplicationEvent).map(({ event }) => event)), [['one', 'two', 'three'], ['three']])
  log.wipe()
  t.equal(await publisher.position(), app.sse.position(), 'of another epoch')
})

t.test('an error of a broker of the application is the cause', async t => {
  const broker = testLog().broker()
  const cause = new Error('mine')
  const publisher = createPublisher({
    broker: Object.assign(broker, {
      openForPublishing: async () => ({ position: () => Promise.reject(cause) }),
      publish: () => Promise.reject(cause)
    })
  })
  await t.rejects(publisher.position(), { ...UNAVAILABLE, cause })
  await t.rejects(publisher.broadcastEvent({ data: 1 }), { ...UNAVAILABLE, cause })
  Object.assign(broker, { openForPublishing: async () => ({ position: () => Promise.reject(new NoAnswer(5)) }) })
  const second = createPublisher({ broker })
  await t.rejects(second.position(), { code: 'SSE_ERR_NO_ANSWER' }, 'an error of ours is passed on')
  await publisher.close()
  await second.close()
})

t.test('the broker is opened once, with the history and the clock of the publisher', async t => {
  const clock = testClock()
  const opened: { history: unknown, now: number }[] = []
  const broker = testLog().broker()
  const { openForPublishing } = broker
  Object.assign(broker, {
    openForPublishing: async (sink: Sink, history: History, now: () => number) => {
      opened.push({ history, now: now() })
      return await openForPublishing!.call(broker, sink, history, now)
    }
  })
  const options = { broker, history: { maxEvents: 7 }, ...clock.options } as unknown as PublisherOptions
  const publisher = createPublisher(options)
  t.teardown(() => publisher.close())
  t.strictSame(opened, [], 'not before the first call')
  await clock.advance(60_000)
  await Promise.all([publisher.open(), publisher.position(), publisher.broadcastEvent({ data: 1 })])
  t.strictSame(opened, [{ history: { maxEvents: 7, maxAgeMs: 300_000, maxBytes: 64 * 1024 * 1024 }, now: clock.now }], 'once')
})

t.test('after close, every call rejects', async t => {
  const log = testLog()
  for (const isOpen of [true, false]) {
    const publisher = createPublisher({ broker: log.broker() })
    if (isOpen) await publisher.broadcastEvent({ data: 1 })
    const closing = publisher.close()
    t.equal(publisher.close(), closing)
    // A log that is not open yet is not opened any more.
    const early: Promise<unknown>[] = isOpen ? [] : [publisher.broadcastEvent({ data: 1 }), publisher.open()]
    for (const call of early) await t.rejects(call, CLOSED)
    await closing
    const calls: Promise<unknown>[] = [publisher.broadcastEvent({ data: 1 }), publisher.position(), publisher.open()]
    for (const call of calls) await t.rejects(call, CLOSED)
  }
  // While the store of runs closes, nothing opens the log any more.
  const store = new MemoryRunStore(testClock().clock, 1 << 20)
  let letClose = (): void => {}
  const slow = createPublisher({ broker: Object.assign(log.broker(), { runs: Object.assign(store, { close: () => new Promise<void>(resolve => { letClose = resolve }) }) }) })
  const closing = slow.close()
  await t.rejects(slow.broadcastEvent({ data: 1 }), CLOSED)
  letClose()
  await closing
  const { broker } = await (async () => {
    const broker = log.broker()
    await using publisher = createPublisher({ broker })
    await publisher.open()
    return { broker }
  })()
  await t.rejects(broker.claim('key', 1), CLOSED, 'await using closes it')
})

t.test('runs', async t => {
  t.test('a log that keeps no runs', async t => {
    await t.rejects(publisherOf(t, testLog()).startRun('a', () => [], { ownerId: null }), { code: 'SSE_ERR_INVALID_OPTION', message: /keeps no runs/ })
  })

  t.test('by the clock, the limits and the log lines of the publisher', async t => {
    const clock = testClock()
    const lines: string[] = []
    const write = (_details: object, message: string) => lines.push(message)
    const broker = testLog().broker()
    let isClosed = false
    const { close } = broker
    const options: SSEOptions & { broker: Broker } = {
      ...clock.options,
      broker: Object.assign(broker, {
        runs: new MemoryRunStore(clock.clock, 1 << 20),
        close () {
          isClosed = true
          return close.call(broker)
        }
      }),
      runs: { drainMs: 5_000, maxPerOwner: 2 }
    }
    const publisher = createPublisher(options as PublisherOptions, { error: write, warn: write, info: () => {}, debug: () => {} })
    const owner = { ownerId: 'ada' }
    const { run: late } = await publisher.startRun('late', never, { ...owner, maxDurationMs: 1_000 })
    await clock.advance(1_500)
    t.match(await late.finished, { status: 'failed', reason: 'timeout' })
    const { run: failed } = await publisher.startRun('failed', () => { throw new Error('mine') }, owner)
    t.match(await failed.finished, { status: 'failed', reason: 'error' })
    t.equal(lines.length, 1)
    const hand = new Hand()
    const runs = [await publisher.startRun('ends', hand.factory, owner), await publisher.startRun('hangs', never, owner)]
    await t.rejects(publisher.startRun('third', never, owner), { code: 'SSE_ERR_TOO_MANY_USER_RUNS' })
    const closing = publisher.close()
    await t.rejects(publisher.startRun('third', never, owner), CLOSED)
    hand.yield('last')
    hand.end()
    t.match(await runs[0]!.run.finished, { status: 'done', events: 1 })
    await clock.advance(4_000)
    t.equal(isClosed, false, 'a run that has not ended needs its log')
    await clock.advance(1_000)
    t.match(await runs[1]!.run.finished, { status: 'lost' })
    await closing
    t.equal(isClosed, true)
  })
})
