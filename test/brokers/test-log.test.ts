import { test } from 'tap'
import { EventPriority } from '../../lib/index.js'
import type { OutgoingMessage } from '../../lib/events/message.js'
import type { Published } from '../../lib/log/broker.js'
import { brokerContract, testClock, testLog, type BrokerContractOptions, type TestBroker, type TestLog } from '../../lib/testing/index.js'
import { holdTimers } from '../helpers/held-timers.js'
import { turns } from '../helpers/wait.js'

const logs = new Map<string, TestLog>()
/** The nodes of the contract that was started last. */
let nodes: TestBroker[] = []

function create (name: string, node: number): TestBroker {
  const log = logs.get(name) ?? testLog()
  logs.set(name, log)
  if (node === 0) nodes = []
  return (nodes[node] = log.broker())
}

const options: BrokerContractOptions = {
  shared: true,
  faults: {
    cut: node => nodes[node]!.fail(),
    hold: node => nodes[node]!.lag(),
    heal: node => {
      nodes[node]!.catchUp()
      nodes[node]!.restore()
    }
  }
}

brokerContract(test, 'test log', create, options)

// The tests of publishers, for a broker that has none.
brokerContract((name, run) => name.includes('publisher') && test(name, run), 'not for publishing', (name, node) => Object.assign(create(name, node), { openForPublishing: undefined }), options)

const HISTORY = { maxEvents: 4, maxAgeMs: 60_000, maxBytes: 1 << 20 }
const UNAVAILABLE = { code: 'SSE_ERR_BROKER_UNAVAILABLE' }
const CLOSED = { code: 'SSE_ERR_CLOSED' }

function message (data: string, more: Partial<OutgoingMessage> = {}): OutgoingMessage {
  return { event: 'x', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, ...more }
}

/** An open broker, and what it has reported. */
async function openOn (log: TestLog, history = HISTORY, now?: () => number) {
  const broker = log.broker()
  const reports: string[] = []
  const node = {
    broker,
    /** The reports since the last call. */
    reported: () => reports.splice(0),
    onDeliver: (_data: string): void => {},
    publish: async (data: string, more?: Partial<OutgoingMessage>) => await broker.publish(message(data, more)),
    read: (after: number, epoch = broker.epoch) => broker.read({ epoch, after, priority: EventPriority.NORMAL, limit: 10 })
  }
  await broker.open({
    deliver: ({ data }) => {
      reports.push(`${data} at ${broker.position}`)
      node.onDeliver(data)
      return 7
    },
    gap: (reason, _error, commandsKept) => { reports.push(`gap ${reason} ${commandsKept} at ${broker.position}`) },
    state: (state, error) => { reports.push(error === undefined ? state : `${state}: ${error.message}`) }
  }, history, now)
  return node
}

const dataOf = ({ messages }: { messages: readonly { data: string }[] }) => messages.map(({ data }) => data)

test('a node that fails reports it once, and receives all after it is restored', async t => {
  const log = testLog()
  const [one, other] = [await openOn(log), await openOn(log)]
  t.strictSame(await one.publish('a'), { seq: 1, delivered: 7 })
  t.strictSame(other.reported(), ['up', 'a at 1'])
  const { broker } = other
  broker.fail()
  broker.fail()
  t.strictSame(other.reported().map(text => text.split(':')[0]), ['down'])
  await t.rejects(other.publish('never'), UNAVAILABLE)
  await t.rejects(other.read(0), UNAVAILABLE)
  await t.rejects(broker.claim('key', 1), UNAVAILABLE)
  for (const n of ['b', 'c', 'd']) await one.publish(n)
  await one.publish('e', { ephemeral: true })
  broker.catchUp()
  t.strictSame([other.reported(), broker.position, log.position], [[], 1, 4])
  broker.restore()
  broker.restore()
  t.strictSame(other.reported(), ['up', 'b at 2', 'c at 3', 'd at 4', 'e at 4'])
  await other.publish('f')
  t.strictSame(one.reported(), ['up', 'a at 1', 'b at 2', 'c at 3', 'd at 4', 'e at 4', 'f at 5'])

  log.fail()
  t.strictSame([...one.reported(), ...other.reported()].filter(text => text.startsWith('down')).length, 2)
  log.restore()
  t.strictSame([one.reported(), other.reported()], [['up'], ['up']])
})

test('a node that has missed more than the history holds reports a gap, and whether it has lost commands', async t => {
  for (const [missed, more, expected] of [
    [4, {}, ['up', '0 at 1', '1 at 2', '2 at 3', '3 at 4']],
    [5, {}, ['gap trimmed true at 5', 'up']],
    [5, { channel: 'node' }, ['gap trimmed false at 5', 'up']],
    [5, { channel: 'node', ephemeral: true }, ['gap trimmed true at 5', 'up']]
  ] as const) {
    const log = testLog()
    const [one, other] = [await openOn(log), await openOn(log)]
    other.reported()
    other.broker.fail()
    if (missed > 4) await one.publish('first', more)
    for (let n = 0; n < missed - (missed > 4 && !('ephemeral' in more) ? 1 : 0); n++) await one.publish(String(n))
    other.reported()
    other.broker.restore()
    t.strictSame(other.reported(), expected)
    await one.publish('next')
    t.equal(other.reported().length, 1, 'nothing is delivered later')
  }
})

test('a node that lags delivers nothing, not even its own messages, until catchUp()', async t => {
  const log = testLog()
  const [one, other] = [await openOn(log), await openOn(log)]
  other.broker.lag()
  let answer: unknown
  other.publish('own').then(published => { answer = published })
  await one.publish('a')
  await turns()
  t.strictSame([other.reported(), answer, other.broker.position], [['up'], undefined, 0])
  other.broker.fail()
  other.broker.restore()
  t.strictSame(other.reported().slice(1), ['up'], 'an outage meanwhile does not end it')
  other.broker.catchUp()
  t.strictSame(other.reported(), ['own at 1', 'a at 2'])
  await turns()
  t.strictSame(answer, { seq: 1, delivered: 7 })
})

test('a read at a node that lags waits for the cursor, and ends with what the node has reached', async t => {
  const log = testLog()
  const [one, other] = [await openOn(log), await openOn(log)]
  await one.publish('1')
  other.broker.lag()
  for (const n of ['2', '3']) await one.publish(n)
  t.strictSame(await other.read(0), { messages: (await one.read(0)).messages.slice(0, 1), next: 1 })
  t.strictSame(await other.read(1), { messages: [], next: 1 })
  t.equal((await other.read(4)).gap, 'unknown')
  const answers: unknown[] = []
  for (const after of [2, 3]) other.read(after).then(page => answers.push([after, dataOf(page), page.next, page.gap]))
  await turns()
  t.strictSame(answers, [])
  other.broker.catchUp()
  await turns()
  t.strictSame(answers, [[2, ['3'], 3, undefined], [3, [], 3, undefined]])
})

test('a read that waits is answered by a wipe or close(), and rejects after five seconds', async t => {
  for (const [what, run, expected] of [
    ['wipe()', ({ log }) => log.wipe(), 'epoch'],
    ['close()', ({ broker }) => broker.close(), CLOSED.code],
    ['wipe() in an outage', ({ log, broker }) => { broker.fail(); log.wipe() }, UNAVAILABLE.code],
    ['fail(), and what it has missed is trimmed', ({ log, broker }) => { broker.fail(); log.trim(); broker.restore() }, 'trimmed'],
    ['five seconds', ({ timers }) => timers.fire(), UNAVAILABLE.code]
  ] as [string, (given: { log: TestLog, broker: TestBroker, timers: ReturnType<typeof holdTimers> }) => void, string][]) {
    await t.test(what, async t => {
      const log = testLog()
      const [one, other] = [await openOn(log), await openOn(log)]
      other.broker.lag()
      for (const n of ['1', '2', '3']) await one.publish(n)
      const timers = holdTimers(t)
      let result: unknown
      other.read(2).then(({ gap }) => { result = gap }, error => { result = error.code })
      await turns()
      t.strictSame([result, timers.durations], [undefined, [5_000]])
      run({ log, broker: other.broker, timers })
      await turns()
      t.equal(result, expected)
      t.equal(timers.count, 0)
    })
  }
})

test('wipe(): a new epoch, reported once, with the new position', async t => {
  const log = testLog()
  log.trim()
  log.wipe()
  const early = log.broker()
  const [one, other] = [await openOn(log), await openOn(log)]
  await one.publish('a')
  t.equal(await one.broker.claim('key', 60_000), true)
  const { epoch } = log
  other.broker.lag()
  const own = other.publish('b')
  other.reported()
  one.reported()
  log.wipe()
  t.not(log.epoch, epoch)
  for (const node of [one, other]) t.strictSame([node.reported(), node.broker.epoch, node.broker.position], [['gap epoch undefined at 0'], log.epoch, 0])
  t.strictSame(await own, { seq: 2, delivered: 0 }, 'dropped')
  other.broker.catchUp()
  t.strictSame(other.reported(), [])
  t.equal((await one.read(0, epoch)).gap, 'epoch')
  t.equal(await one.broker.claim('key', 60_000), true, 'claims are gone too')
  await early.open({ deliver: () => 0, gap () {}, state () {} }, HISTORY)
  t.equal(early.epoch, log.epoch)

  await one.publish('c')
  one.reported()
  other.broker.fail()
  const before = other.broker.epoch
  log.wipe()
  log.wipe()
  t.strictSame([other.broker.epoch, other.reported().slice(2)], [before, []], 'a node in an outage does not know')
  await one.publish('d')
  other.broker.restore()
  t.strictSame(other.reported(), ['gap epoch undefined at 1', 'up'])
  t.equal(other.broker.epoch, log.epoch)
  other.broker.fail()
  other.broker.restore()
  t.strictSame(other.reported().slice(1), ['up'], 'once')
})

test('trim() removes all, and changes neither positions nor epoch', async t => {
  const log = testLog()
  const one = await openOn(log)
  for (const n of ['1', '2']) await one.publish(n)
  const { epoch } = log
  one.reported()
  log.trim()
  t.strictSame([one.reported(), log.epoch, log.position], [[], epoch, 2])
  t.equal((await one.read(1)).gap, 'trimmed')
  t.strictSame(await one.read(2), { messages: [], next: 2 })
  t.equal((await one.publish('3')).seq, 3)
  t.strictSame(dataOf(await one.read(2)), ['3'])
})

test('a message published in a delivery follows it on each node', async t => {
  const log = testLog()
  const [one, other] = [await openOn(log), await openOn(log)]
  const inner: Promise<Published>[] = []
  one.onDeliver = data => { if (data === 'outer') inner.push(one.publish('inner')) }
  other.onDeliver = data => { if (data === 'outer') inner.push(other.publish('other')) }
  await one.publish('outer')
  t.strictSame(one.reported(), ['up', 'outer at 1', 'inner at 2', 'other at 3'])
  t.strictSame(other.reported(), ['up', 'outer at 1', 'inner at 2', 'other at 3'])
  t.strictSame((await Promise.all(inner)).sort((one, other) => one.seq! - other.seq!), [{ seq: 2, delivered: 7 }, { seq: 3, delivered: 7 }])
})

test('a broker is opened once; after close() it hears nothing more', async t => {
  const log = testLog()
  const [one, other] = [await openOn(log), await openOn(log)]
  const sink = { deliver: () => 0, gap () {}, state () {} }
  await t.rejects(one.broker.open(sink, HISTORY), { code: 'SSE_ERR_INVALID_OPTION' })
  other.broker.lag()
  const own = other.publish('a')
  other.reported()
  await other.broker.close()
  t.strictSame(await own, { seq: 1, delivered: 0 })
  await one.publish('b')
  log.wipe()
  log.fail()
  log.restore()
  other.broker.catchUp()
  other.broker.fail()
  other.broker.restore()
  t.strictSame([other.reported(), other.broker.position], [[], 0])
  await t.rejects(other.publish('c'), CLOSED)
  await t.rejects(other.broker.open(sink, HISTORY), { code: 'SSE_ERR_INVALID_OPTION' })
  const failed = log.broker()
  failed.fail()
  await t.rejects(failed.open(sink, HISTORY), UNAVAILABLE)
  failed.restore()
  await failed.open(sink, HISTORY)
  one.onDeliver = () => { one.broker.close() }
  t.strictSame(await Promise.all([one.publish('d'), failed.publish(message('e'))]), [{ seq: 1, delivered: 7 }, { seq: 2, delivered: 0 }])
  t.strictSame(one.reported().at(-1), 'd at 1', 'closed in a delivery')
})

test('bounds and time are those of the first node', async t => {
  const log = testLog()
  const [time, late] = [testClock(), testClock()]
  await late.advance(10_000_000)
  const one = await openOn(log, HISTORY, time.clock.wall)
  const other = await openOn(log, { maxEvents: 1, maxAgeMs: 1, maxBytes: 1 }, late.clock.wall)
  for (const n of ['1', '2', '3', '4']) await one.publish(n)
  t.strictSame(dataOf(await other.read(0)), ['1', '2', '3', '4'])
  t.equal(await one.broker.claim('key', 1_000), true)
  await time.advance(999)
  t.equal(await other.broker.claim('key', 1_000), false)
  await time.advance(1)
  t.equal(await other.broker.claim('key', 1_000), true)
  await time.advance(59_000)
  t.equal(dataOf(await one.read(0)).length, 4)
  await time.advance(1)
  t.equal((await one.read(0)).gap, 'trimmed')
  log.trim()
  await one.publish('5')
  await time.advance(60_000)
  t.equal(dataOf(await one.read(4)).length, 1, 'after trim() too')
  await time.advance(1)
  t.equal((await one.read(4)).gap, 'trimmed')
  log.wipe()
  await one.publish('6')
  await time.advance(60_000)
  t.equal(dataOf(await one.read(0)).length, 1, 'after wipe() too')
  await time.advance(1)
  t.equal((await one.read(0)).gap, 'trimmed')
})

test('a publisher has no deliveries, and is told of outages', async t => {
  const log = testLog()
  const one = await openOn(log)
  const states: string[] = []
  const broker = log.broker()
  const { position } = await broker.openForPublishing({ state: state => { states.push(state) } }, HISTORY)
  t.strictSame(await broker.publish(message('a')), { seq: 1, delivered: 0 })
  t.strictSame(await position(), { epoch: log.epoch, position: 1 })
  broker.fail()
  await t.rejects(position(), UNAVAILABLE)
  broker.restore()
  t.strictSame(states, ['up', 'down', 'up'])
  t.strictSame(one.reported(), ['up', 'a at 1'])
  await broker.close()
  await t.rejects(position(), CLOSED)
})
