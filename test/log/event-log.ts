import { AsyncLocalStorage } from 'node:async_hooks'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { EventPriority, memoryBroker, SSEManager, type Broker, type Log, type Message, type OutgoingMessage, type Sink } from '../../lib/index.js'
import { EventLog } from '../../lib/log/event-log.js'
import { testClock } from '../../lib/testing/index.js'
import { openURL, payloads, serve, settleUnlogged } from '../helpers/app.js'
import { turns } from '../helpers/wait.js'

/** What the application may throw so that a logger that reads it, or marks it as pino does, throws too. */
const UNLOGGABLE: Record<string, () => unknown> = {
  'a frozen error': () => Object.freeze(new Error('frozen')),
  'an error with a getter that throws': () => Object.defineProperty(new Error('getter'), 'code', { enumerable: true, get () { throw new Error('no code') } }),
  'an error that is a revoked proxy': () => {
    const { proxy, revoke } = Proxy.revocable(new Error('proxy'), {})
    revoke()
    return proxy
  },
  'an error without a readable message': () => Object.defineProperty(new Error(), 'message', { get () { throw new Error('no message') } }),
  'a frozen object': () => Object.freeze({ reason: 'object' }),
  null: () => null,
  'a symbol': () => Symbol('thrown')
}

t.test('what cannot be logged costs nobody an event: not the others, not the log its order', async t => {
  const lines: any[] = []
  let thrown: () => unknown = () => null
  const deny = (): never => { throw thrown() }
  const service = await serve(t, {
    authorizeTopic: ({ userId }) => userId !== 'mallory' || deny()
  }, { logger: { level: 'error', stream: { write: line => { lines.push(JSON.parse(line)) } } } })
  const ada = await service.join('ada', ['room:1'])
  const start = ada.stream.lastEventId
  const mallory = await service.join('mallory', ['room:*'])
  let published = 0
  for (const [name, make] of Object.entries(UNLOGGABLE)) {
    thrown = make
    const mine = lines.length
    const filter = ({ userId }: { userId: string | null }) => userId !== 'mallory' || deny()
    for (const options of [{ subscriptionIds: ['room:1'] }, { filter }, { filter, local: true }]) {
      t.match(await service.app.sse.broadcastEvent({ event: 'x', data: ++published }, options), { delivered: 1 }, name)
    }
    t.strictSame(lines.slice(mine).map(({ clientId }) => clientId), new Array(3).fill(mallory.connection.clientId), `${name}: each is logged`)
  }
  t.ok(lines.some(({ err }) => err?.message === 'frozen' && err.type === 'Error' && err.stack.includes('event-log')), 'with what can be read of it')
  await settleUnlogged(service, ada.stream, mallory.stream)
  t.strictSame(payloads(ada.stream, 'x'), Array.from({ length: published }, (_, i) => i + 1))
  t.strictSame(payloads(mallory.stream, 'x'), [])
  t.equal(ada.stream.lastEventId.split('.')[1], (published * 2 / 3).toString(36))
  const back = await service.join('mallory', ['room:*'], { cursor: start })
  await settleUnlogged(service, back.stream)
  t.strictSame([payloads(back.stream, 'x'), back.stream.named('sse:gap').length], [[], 0], 'nor does a replay stop there')
})

t.test('a logger that throws, rejects or lacks methods stops nothing, and is reported once', async t => {
  const rejections: unknown[] = []
  const reports: Error[] = []
  const onRejection = (error: unknown) => { rejections.push(error) }
  const onWarning = (warning: Error & { code?: string }) => { if (warning.code === 'SSE_LOGGER_FAILED') reports.push(warning) }
  process.on('unhandledRejection', onRejection).on('warning', onWarning)
  t.teardown(() => process.off('unhandledRejection', onRejection).off('warning', onWarning))
  const fail = (): never => { throw new Error('disk full') }
  const reject = async (): Promise<never> => fail()
  const loggers: unknown[] = [{ error: fail, warn: fail, info: fail, debug: fail }, { error: reject, warn: reject, info: reject, debug: reject }, {}, null, { get error () { return fail() } }]
  for (const logger of loggers) {
    const manager = new SSEManager({}, logger as Log)
    t.teardown(() => manager.close())
    const server = createServer((request, response) => { manager.createConnection({ request, response }) })
    await once(server.listen(0, '127.0.0.1'), 'listening')
    t.teardown(() => { server.close() })
    const stream = await openURL(t, `http://127.0.0.1:${(server.address() as AddressInfo).port}`)
    t.match(await manager.broadcastEvent({ event: 'x', data: 1 }, { filter: () => { throw new Error('filter') } }), { delivered: 0 })
    t.match(await manager.broadcastEvent({ event: 'y', data: 1 }), { delivered: 1 })
    await stream.until(() => stream.named('y').length >= 1)
  }
  await turns(3)
  t.strictSame(rejections, [])
  t.match(reports.map(({ message }) => message), [/^The application's logger failed: disk full\. Not logged: /])
  t.equal(reports.length, 1)
})

t.test('a log that is open serves one manager', async t => {
  const broker = memoryBroker()
  const first = new SSEManager({ broker })
  t.teardown(() => first.close())
  await first.open()
  const second = new SSEManager({ broker })
  await t.rejects(second.open(), { code: 'SSE_ERR_INVALID_OPTION' })
  await t.rejects(second.broadcastEvent({ data: 1 }), { code: 'SSE_ERR_INVALID_OPTION' })
  t.match(await first.broadcastEvent({ data: 1 }), { delivered: 0 })
})

t.test('a log that could not be opened is opened by whoever asks next', async t => {
  const log = memoryBroker()
  let attempts = 0
  const broker: Broker = {
    shared: false,
    get epoch () { return log.epoch },
    get position () { return log.position },
    open: async (sink, history, now) => {
      if (++attempts === 1) throw new Error('away')
      await log.open(sink, history, now)
    },
    publish: message => log.publish(message),
    read: request => log.read(request),
    claim: (key, ttlMs) => log.claim(key, ttlMs),
    close: () => log.close()
  }
  const manager = new SSEManager({ broker })
  t.teardown(() => manager.close())
  await t.rejects(Promise.all([manager.open(), manager.open()]), { message: 'away' })
  t.equal(attempts, 1, 'those that ask at the same time share an attempt')
  t.match(await manager.broadcastEvent({ data: 1 }), { delivered: 0 })
  await manager.open()
  t.equal(attempts, 2)
  t.match(manager.health(), { status: 'up' })
})

const HISTORY = { maxEvents: 10, maxAgeMs: 60_000, maxBytes: 1_000 }
const message = (seq: number, more: Partial<Message> = {}): Message => ({ event: 'x', data: '', priority: EventPriority.NORMAL, target: {}, ephemeral: seq === 0, seq, ...more })

/** An event log on a broker whose calls the test answers, and what it tells its node and the application's log. */
function eventLog () {
  const time = testClock()
  const told: unknown[] = []
  const broker = {
    shared: true,
    epoch: 'one',
    position: 5,
    sink: null as unknown as Sink,
    closed: 0,
    published: [] as OutgoingMessage[],
    answer: { seq: 6, delivered: 0 } as unknown,
    opening: Promise.resolve(),
    context: undefined as unknown,
    open (sink: Sink) {
      broker.sink = sink
      broker.context = store.getStore()
      sink.state('up')
      return broker.opening
    },
    publish (message: OutgoingMessage) {
      broker.published.push(message)
      if (broker.answer instanceof Error) throw broker.answer
      return broker.answer as never
    },
    read: () => Promise.reject(new Error('not read')),
    claim: async () => true,
    close: async () => { broker.closed++ }
  }
  const note = (name: string) => (...args: unknown[]) => { told.push([name, ...args]) }
  const deliver = ({ seq }: Message, epoch: string) => {
    told.push(['deliver', seq, epoch, log.position])
    return 3
  }
  const logged = (level: string) => (details: { err?: Error, reason?: string }, message: string) => { told.push([level, message, ...Object.values(details).map(value => value instanceof Error ? value.message : value)]) }
  const log: EventLog = new EventLog(broker, { history: HISTORY, clock: time.clock }, {
    opened: note('opened'), deliver, told: (text, seq) => { told.push(['told', text, seq, log.position]) }, gap: (reason, kept) => { told.push(['gap', reason, kept, log.position, log.cursor()]) }, state: note('state')
  }, { error: logged('error'), warn: logged('warn'), info: logged('info'), debug: logged('debug') })
  return { broker, log, time, told: () => told.splice(0) }
}
const store = new AsyncLocalStorage<string>()

t.test('the log of a node: position, newest of each priority, state and health follow what the broker tells', async t => {
  const { broker, log, time, told } = eventLog()
  t.match(log.health, { status: 'degraded', reason: /not open/ })
  t.strictSame([log.isOpen, log.shared], [false, true])
  t.throws(() => log.cursor(), { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: /not open yet/ })
  await store.run('request', () => Promise.all([log.open(), log.open()]))
  t.equal(broker.context, undefined, 'what the broker does later belongs to no request')
  t.strictSame(told(), [['state', 'up'], ['debug', 'The event log is reachable again'], ['opened']])
  t.strictSame([log.isOpen, log.position, [...log.newest], log.health.status, log.cursor()], [true, 5, [5, 5, 5, 5], 'up', 'one.5'])

  t.equal(broker.sink.deliver(message(6, { priority: EventPriority.HIGH })), 3)
  t.equal(broker.sink.deliver(message(7, { event: 'sse:node', data: 'text' })), 0)
  t.equal(broker.sink.deliver(message(0)), 3)
  t.strictSame(told(), [['deliver', 6, 'one', 5], ['told', 'text', 7, 7], ['deliver', 0, 'one', 7]])
  t.strictSame([log.position, [...log.newest], log.cursor()], [7, [5, 7, 6, 5], 'one.7'])

  await time.advance(1_000)
  broker.sink.state('down', new Error('first'))
  const { health: { since } } = log
  await time.advance(1_000)
  broker.sink.state('down', new Error('second'))
  t.strictSame(log.health, { status: 'degraded', reason: 'second', since }, 'the reason is another, the outage is the same')
  broker.sink.state('down')
  t.match(log.health, { reason: 'The event log cannot be reached', since })
  t.strictSame(told(), [['state', 'down'], ['error', 'The event log cannot be reached', 'first']])
  broker.sink.state('up')
  t.strictSame(log.health, { status: 'up', since: since + 1_000 })
  broker.sink.state('up')
  t.strictSame(told(), [['state', 'up'], ['info', 'The event log is reachable again']])

  Object.assign(broker, { epoch: 'two', position: 2 })
  broker.sink.gap('epoch', undefined, true)
  t.strictSame(told(), [['gap', 'epoch', true, 2, 'two.2'], ['state', 'up']])
  t.strictSame([log.epoch, log.position, [...log.newest]], ['two', 2, [2, 2, 2, 2]])
  broker.sink.gap('trimmed', new Error('lost'))
  t.strictSame(told(), [['gap', 'trimmed', undefined, 2, 'two.2'], ['state', 'up'], ['warn', 'The event log has lost its continuity; connected clients receive sse:gap', 'lost', 'trimmed']])
  const brokenSince = time.now
  for (const epoch of ['', 'a b', 'a\nb', 'a.b', 'e'.repeat(33), ' a']) {
    broker.epoch = epoch
    t.throws(() => broker.sink.gap('epoch'), { code: 'SSE_ERR_INVALID_OPTION', message: '"broker" has the epoch' }, JSON.stringify(epoch))
    t.match(log.health, { status: 'degraded', reason: /has the epoch/, since: brokenSince })
    await time.advance(1_000)
  }
  t.strictSame(told(), [])
  for (const epoch of ['e'.repeat(32), '-', '_', 'A', 'z', '0']) {
    broker.epoch = epoch
    broker.sink.gap('epoch')
    t.equal(log.cursor(), `${epoch}.2`)
  }
  const closedAt = time.now
  await log.close()
  t.strictSame(log.health, { status: 'degraded', reason: 'The event log is closed', since: closedAt }, 'that it is closed is no outage')
})

t.test('what a broker answers is checked, and its own errors become the cause of one of ours', async t => {
  const { broker, log } = eventLog()
  broker.epoch = 'not one'
  await t.rejects(log.open(), { code: 'SSE_ERR_INVALID_OPTION' })
  broker.epoch = 'one'
  await log.tell('opens the log', 'apart')
  t.ok(log.isOpen)
  const good = { seq: 6, delivered: 1 }
  broker.answer = good
  t.equal(log.append(message(0)), good, 'an answer at once is given at once')
  for (const answer of [good, { seq: null, delivered: 0 }]) {
    broker.answer = Promise.resolve(answer)
    t.strictSame(await log.append(message(0)), answer)
  }
  for (const answer of [undefined, null, {}, { seq: 6 }, { delivered: 1 }, { seq: '6', delivered: 1 }, { seq: 1.5, delivered: 1 }, { seq: 6, delivered: NaN }]) {
    for (broker.answer of [answer, Promise.resolve(answer)]) await t.rejects(async () => log.append(message(0)), { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: 'returned an invalid result' }, JSON.stringify(answer))
  }
  const own = new Error('own')
  const ours = Object.assign(new Error('ours'), { code: 'SSE_ERR_CLOSED' })
  for (const make of [(error: Error) => error, (error: Error) => Promise.reject(error)]) {
    broker.answer = make(own)
    await t.rejects(async () => log.append(message(0)), { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: 'is not known', cause: own })
    broker.answer = make(ours)
    t.equal(await Promise.resolve().then(() => log.append(message(0))).catch(error => error), ours)
  }
  broker.answer = Promise.reject(own)
  await t.rejects(log.tell('text', 'apart'), own, 'who tells learns of a failure')
  broker.answer = good
  broker.published.length = 0
  for (const way of ['logged', 'ordered', 'apart'] as const) await log.tell(way, way)
  const node = { event: 'sse:node', priority: EventPriority.NORMAL, target: { clientIds: [] } }
  t.strictSame(broker.published, [{ ...node, data: 'logged', ephemeral: false, channel: 'node' }, { ...node, data: 'ordered', ephemeral: true }, { ...node, data: 'apart', ephemeral: true, channel: 'node' }], 'a message between nodes is for no connection')
})

const HAS_NOTHING_FAILED = 'Broker.hasNothing() threw, or returned a promise; the log is read instead'

t.test('only true means that a client has missed nothing; a broker that throws instead costs no client its stream', async t => {
  const { broker, log, time, told } = eventLog()
  await log.open()
  told()
  const interest = { clientId: 'c', userId: null, subscriptions: new Set<string>() }
  const ask = (hasNothing: unknown): boolean => {
    Object.assign(broker, { hasNothing })
    return log.hasNothing(4, interest)
  }
  t.strictSame([undefined, () => true, () => false, () => 1, () => 'yes', () => ({}), () => Promise.resolve(true)].map(ask), [false, true, false, false, false, false, false])
  const asked: unknown[] = []
  ask((...args: unknown[]) => { asked.push(...args) })
  t.strictSame(asked, [4, interest])
  const fail = () => { throw new Error('own') }
  t.strictSame([fail, fail].map(ask), [false, false])
  await time.advance(10_000)
  t.strictSame(told(), [['warn', HAS_NOTHING_FAILED, 3]], 'one line for many clients')
  // A promise that is rejected does not end the process.
  t.equal(ask(() => Promise.reject(new Error('own'))), false)
  await time.advance(10_000)
  t.strictSame(told(), [['warn', HAS_NOTHING_FAILED, 1]])
  ask(fail)
  await log.close()
  t.strictSame(told(), [['warn', HAS_NOTHING_FAILED, 'own', 1]], 'no later than the end')
})

t.test('a log that was closed takes and tells nothing, also if it was still opening', async t => {
  for (const when of ['never opened', 'opening', 'open'] as const) {
    const { broker, log, told } = eventLog()
    let opened = () => {}
    broker.opening = new Promise(resolve => { opened = resolve })
    const opening = when === 'never opened' ? null : log.open()
    if (when === 'open') {
      opened()
      await opening
    }
    told()
    const telling = when === 'never opened' ? null : t.rejects(log.tell('text', 'apart'), { code: 'SSE_ERR_CLOSED' })
    await log.close()
    opened()
    await telling
    if (when === 'opening') await t.rejects(opening!, { code: 'SSE_ERR_CLOSED' })
    t.equal(broker.closed, when === 'never opened' ? 0 : 1, when)
    t.equal(log.isOpen, when === 'open')
    t.match(log.health, { status: 'degraded', reason: /is closed/ })
    if (when !== 'never opened') for (const state of ['down', 'up'] as const) broker.sink.state(state)
    t.match(log.health, { status: 'degraded', reason: /is closed/ })
    const calls: (() => Promise<unknown>)[] = [() => log.open(), async () => await log.append(message(0)), () => log.tell('', 'apart'), async () => log.assertOpen(), async () => log.cursor()]
    for (const call of calls) await t.rejects(call(), { code: 'SSE_ERR_CLOSED' })
    t.strictSame([told(), broker.published], [[], []], when)
  }
})
