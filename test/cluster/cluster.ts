import t, { type Test } from 'tap'
import type { SSEOptions } from '../../lib/index.js'
import { testClock } from '../../lib/testing/index.js'
import { serve, type Joined } from '../helpers/app.js'
import { REPORT, TestLog } from '../helpers/cluster.js'
import { turns, until } from '../helpers/wait.js'

// One node, and what it says and hears on a log in memory.

const presenceEvents = { topics: ['room:*'], lingerMs: 50 }
/** Longer than a new node waits until it knows the others. */
const SETTLED_MS = 700

async function onLog (t: Test, { broker, ...options }: Omit<SSEOptions, 'broker'> & { broker?: TestLog } = {}, level = 'info') {
  const log = broker ?? new TestLog()
  const time = testClock()
  const lines: any[] = []
  const stream = { write (line: string) { lines.push(JSON.parse(line)) } }
  const service = await serve(t, { broker: log, cluster: { answerTimeoutMs: 60_000, heartbeatIntervalMs: 1_000 }, ...options, ...time.options }, { logger: { level, stream } })
  return {
    log,
    lines,
    time,
    ...service,
    sse: service.app.sse,
    beat: (nodeId: string, more: object = {}) => log.hear({ from: nodeId, kind: 'beat', report: { ...REPORT, nodeId, ...more } }),
    settled: async () => {
      const at = performance.now() + SETTLED_MS
      await until(() => performance.now() > at)
    }
  }
}

const told = ({ stream }: Joined) => stream.events.filter(({ event }) => /^sse:(?:join|leave)$/.test(event)).map(({ event, data }) => `${event.slice(4)} ${JSON.parse(data!).userId}`)

t.test('a greeting is answered once for all who greet, with the report and the list', async t => {
  const { log, join, sse } = await onLog(t, { presenceEvents })
  await join('ada', ['room:1'])
  await until(() => log.sayings('presence').length === 1)
  for (let round = 1; round <= 2; round++) {
    const [beats, lists] = [log.sayings('beat').length, log.sayings('present').length]
    for (const nodeId of ['x', 'y']) await log.hear({ from: nodeId, kind: 'hello', report: { ...REPORT, nodeId } })
    await until(() => log.sayings('present').length > lists)
    await turns(3)
    t.strictSame([log.sayings('beat').length - beats, log.sayings('present').length - lists], [1, 1], `${round}`)
    t.match(log.sayings('beat').at(-1).report, { nodeId: sse.nodeId, connections: 1, users: 1, subscriptions: 1, status: 'up', present: 1 })
    t.strictSame(log.sayings('present').at(-1).entries, [['room:1', 'ada']])
  }
  t.equal(sse.clusterStats().nodes.length, 3)
})

t.test('a command of a node that has just started reaches nodes that it has not heard of; an answer to another node is not its own', async t => {
  const { log, sse, beat } = await onLog(t)
  const disconnecting = sse.disconnectUser('ada')
  const { id } = await until(() => log.sayings('command')[0])
  await turns(3)
  await log.hear({ from: 'y', kind: 'answer', to: 'another', id, value: 5 })
  await beat('x')
  await log.hear({ kind: 'answer', to: sse.nodeId, id, value: 2 })
  t.equal(await disconnecting, 2)
})

t.test('the log says which nodes appear, close and are taken for dead, each once', async t => {
  const { log, lines, time, beat } = await onLog(t)
  const heard = () => lines.filter(({ nodeId }) => nodeId !== undefined).map(({ level, nodeId, nodeName, connections, msg }) => [level, nodeId, nodeName, connections, msg])
  for (let i = 0; i < 2; i++) {
    await beat('x', { name: 'one', connections: 7 })
    await beat('y')
  }
  t.strictSame(heard(), [[30, 'x', 'one', 7, 'Another node has appeared'], [30, 'y', 'x', 0, 'Another node has appeared']])
  for (let i = 0; i < 2; i++) await log.hear({ from: 'y', kind: 'bye' })
  await log.hear({ from: 'never heard', kind: 'bye' })
  t.strictSame(heard().slice(2), [[30, 'y', 'x', 0, 'Another node has closed']])
  await time.advance(250_000)
  t.strictSame(heard().slice(3), [[40, 'x', 'one', 7, 'Another node does not report and is taken for dead']])
  t.ok(lines.at(-1).silentMs > 3.5 * REPORT.everyMs)
  await beat('x', { name: 'one' })
  t.strictSame(heard().slice(4), [[30, 'x', 'one', 0, 'Another node has appeared']], 'it was only away')
})

t.test('a node that ends is not waited for, and its users leave', async t => {
  const { log, time, sse, beat, join } = await onLog(t, { presenceEvents })
  const watcher = await join('watcher', ['room:1'])
  await beat('x', { present: 1 })
  await log.hear({ kind: 'presence', changes: [['room:1', 'ada', true]] })
  await until(() => told(watcher).includes('join ada'))
  const disconnecting = sse.disconnectUser('alan')
  await until(() => log.sayings('command').length > 0)
  await log.hear({ kind: 'bye' })
  t.equal(await disconnecting, 0)
  t.equal(sse.clusterStats().nodes.length, 1)
  await time.advance(100)
  await until(() => told(watcher).includes('leave ada'))
})

t.test('a node that ends says so, and answers nobody any more', async t => {
  const { log, app, sse, beat } = await onLog(t)
  await beat('x')
  const pending = t.rejects(sse.disconnectUser('ada'), { code: 'SSE_ERR_CLOSED' })
  await until(() => log.sayings('command').length > 0)
  await app.close()
  await pending
  t.equal(log.sayings('bye').length, 1)
  await t.rejects(sse.presence('room:1'), { code: 'SSE_ERR_CLOSED' })
})

t.test('nodes are silent too long only while they could be heard, and one that never reports takes its users along', async t => {
  const { log, time, sse, beat, join, settled } = await onLog(t, { presenceEvents, cluster: { answerTimeoutMs: 60_000, heartbeatIntervalMs: 10_000 }, stallTimeoutMs: 0, keepAliveIntervalMs: 600_000 })
  const watcher = await join('watcher', ['room:1'])
  await settled()
  await beat('x', { everyMs: 1_000 })
  // A node that was removed, and is back: it has not reported yet.
  await log.hear({ from: 'y', kind: 'presence', changes: [['room:1', 'ada', true]] })
  await until(() => told(watcher).length === 2)
  log.sink!.state('down', new Error('away'))
  await time.advance(400_000)
  t.equal(sse.clusterStats().nodes.length, 2)
  t.strictSame(told(watcher), ['join watcher', 'join ada'])
  log.sink!.state('up')
  await time.advance(20_000)
  t.equal(sse.clusterStats().nodes.length, 2)
  await time.advance(40_000)
  t.equal(sse.clusterStats().nodes.length, 1)
  await time.advance(300_000)
  await until(() => told(watcher).length === 3)
  t.strictSame(told(watcher), ['join watcher', 'join ada', 'leave ada'], 'and this node is no stranger to itself')
})

t.test('an established node does not add who had left, and announces users of nodes that come, also right after a gap', async t => {
  const { log, time, sse, join } = await onLog(t, { presenceEvents: { ...presenceEvents, lingerMs: 1_000 } })
  const watcher = await join('watcher', ['room:1'])
  await time.advance(10_000)
  await until(() => told(watcher).length === 1)
  log.sink!.gap('trimmed', undefined, true)
  await log.hear({ kind: 'leaving', entries: [['room:1', 'ghost', 1_000]] })
  await log.hear({ kind: 'present', first: true, more: false, entries: [['room:1', 'ada']] })
  await until(() => told(watcher).length === 2)
  t.strictSame((await sse.presence('room:1')).users.map(({ userId }) => userId), ['watcher', 'ada'])
  await time.advance(3_000)
  t.strictSame(told(watcher), ['join watcher', 'join ada'])
})

t.test('a list that other nodes have not named whole is not complete, and says nothing of those they hold', async t => {
  const { log, sse, beat, join } = await onLog(t, { presenceEvents: { ...presenceEvents, lingerMs: 60_000 } })
  const watcher = await join('watcher', ['room:1'])
  await beat('x', { present: 3 })
  await log.hear({ kind: 'presence', changes: ['ada', 'alan', 'gone'].map(userId => ['room:1', userId, true]) })
  await log.hear({ kind: 'presence', changes: [['room:1', 'gone', false]] })
  await until(() => told(watcher).length === 4)
  for (const complete of [true, false]) {
    log.said.length = 0
    const asking = sse.presence('room:1')
    const { id } = await until(() => log.sayings('command')[0])
    await log.hear({ kind: 'answer', to: sse.nodeId, id, value: { connections: 2, anonymous: 0, users: [{ userId: 'ada', connections: 2 }], complete } })
    const presence = await asking
    t.equal(presence.complete, complete)
    // Of a whole list, who is missing has returned since.
    t.strictSame(presence.users.map(({ userId }) => userId).sort(), complete ? ['ada', 'alan', 'gone', 'watcher'] : ['ada', 'gone', 'watcher'])
  }
})

t.test('a report comes after the changes that it counts; a difference is asked about once, and only of nodes that have a list', async t => {
  const { log, join, beat, settled } = await onLog(t, { presenceEvents })
  const hellos = () => log.sayings('hello').length
  await settled()
  const before = hellos()
  await beat('x', { present: null })
  await turns(3)
  t.equal(hellos(), before, 'it has no list')
  await log.hear({ kind: 'present', first: true, more: false, entries: [] })
  await beat('x', { present: 0 })
  await turns(3)
  t.equal(hellos(), before)
  for (let i = 0; i < 3; i++) await beat('x', { present: 2 })
  await turns(3)
  t.equal(hellos(), before + 1, 'the answer is on its way')

  const ada = await join('ada', ['room:1'])
  await until(() => log.sayings('presence').length > 0)
  log.said.length = 0
  // The change is not published yet when the node reports.
  ada.connection.removeSubscription('room:1')
  log.sink!.gap('trimmed', undefined, true)
  await until(() => log.sayings('hello').length > 0)
  t.match(log.said.slice(0, 2).map(({ data }) => JSON.parse(data)), [{ kind: 'presence', changes: [['room:1', 'ada', false]] }, { kind: 'hello', report: { present: 0 } }])
})

t.test('a change or a list that could not be sent is sent with one heartbeat, not with all', async t => {
  for (const kind of ['presence', 'present', 'leaving']) {
    const { log, time, join, lines } = await onLog(t, { presenceEvents: { ...presenceEvents, lingerMs: 60_000 } }, 'debug')
    await join('ada', ['room:1'])
    const alan = await join('alan', ['room:1'])
    await alan.connection.removeSubscription('room:1')
    await until(() => log.sayings('presence').some(({ changes }) => changes[0][2] === false))
    log.refuse = `"kind":"${kind}"`
    await join('grace', ['room:1'])
    await log.hear({ kind: 'hello', report: REPORT })
    await until(() => log.refused > 0 && log.sayings('beat').length > 0)
    await turns()
    log.refuse = null
    t.match(lines.find(({ msg }) => msg.startsWith('Sending a message')), { kind, err: {} })
    log.said.length = 0
    await time.advance(5_000)
    t.strictSame(log.sayings('present').map(({ entries }) => entries), [[['room:1', 'ada'], ['room:1', 'grace']]], kind)
    t.match(log.sayings('leaving'), [{ entries: [['room:1', 'alan', Number]] }])
    t.ok(log.sayings('beat').length >= 4)
  }
})

t.test('a node says nothing after its end, however long that takes', async t => {
  const { log, app, sse, time, join, lines, beat } = await onLog(t, { presenceEvents })
  const { connection } = await join('ada', ['room:1'])
  await beat('x')
  await connection.removeSubscription('room:1')
  await until(() => log.sayings('presence').length === 2)
  await join('eve', ['room:2'])
  await until(() => log.sayings('presence').length === 3)
  log.said.length = 0
  let sent: () => void = () => {}
  const publish = log.publish.bind(log)
  log.publish = message => {
    const published = publish(message)
    return message.data.includes('"bye"') ? new Promise(resolve => { sent = () => resolve(published) }) : published
  }
  const { messages } = sse.stats()
  await log.hear({ kind: 'hello', report: REPORT })
  const closing = app.close()
  await until(() => log.sayings('bye').length === 1)
  await log.hear({ kind: 'hello', report: REPORT })
  await log.hear({ kind: 'command', id: 1, operation: 'presence', args: ['room:1'] })
  for (const present of [true, false]) await log.hear({ kind: 'presence', changes: [['room:1', 'late', present]] })
  // Longer than an answer to a greeting is delayed.
  await new Promise(resolve => { setTimeout(resolve, 50) })
  await time.advance(10_000)
  log.sink!.state('down', new Error('away'))
  log.sink!.state('up')
  log.sink!.gap('trimmed')
  await turns()
  sent()
  await closing
  await time.advance(10_000)
  t.strictSame(log.said.map(({ data }) => JSON.parse(data).kind), ['presence', 'bye'], 'its users leave before it does')
  t.equal(sse.stats().messages, messages, 'nobody leaves a node that has ended')
  t.notOk(lines.some(({ msg }) => msg.includes('missed commands')))
})

t.test('a node that could not be reached says so, with the reason, and greets when it can', async t => {
  const { log, sse } = await onLog(t)
  const own = () => sse.clusterStats().nodes[0]!
  const { heardAt, ...report } = own()
  t.strictSame(report, { nodeId: sse.nodeId, name: null, startedAt: heardAt, connections: 0, users: 0, subscriptions: 0, status: 'up' })
  await turns()
  log.said.length = 0
  log.sink!.state('down', new Error('Redis is away'))
  await turns()
  t.strictSame(log.said, [], 'nobody would hear it')
  t.match(own(), { status: 'degraded', reason: 'Redis is away' })
  log.sink!.state('up')
  await turns()
  t.match(log.said.map(({ data }) => JSON.parse(data)), [{ kind: 'hello', report: { nodeId: sse.nodeId, status: 'up', reason: undefined } }])
  t.notOk('reason' in own())
  log.said.length = 0
  for (const kept of [true, false]) log.sink!.gap('trimmed', undefined, kept)
  await turns()
  t.equal(log.sayings('hello').length, 2)
})

t.test('without other nodes there is nobody to talk to', async t => {
  const log = Object.assign(new TestLog(), { shared: false as true })
  const { app, sse, time, lines } = await onLog(t, { broker: log })
  log.sink!.state('down', new Error('away'))
  log.sink!.state('up')
  log.sink!.gap('trimmed')
  await time.advance(10_000)
  t.equal(await sse.disconnectUser('ada'), 0)
  await app.close()
  t.strictSame(log.said, [])
  t.notOk(lines.some(({ msg }) => msg.includes('missed commands')))
})

t.test('the newest command that a node has read stays, whatever else it hears', async t => {
  const { log, sse, beat } = await onLog(t)
  await sse.disconnectUser('ada')
  const { position } = log
  t.ok(position > 0)
  await beat('x')
  log.epoch = 'two'
  log.sink!.gap('epoch')
  t.strictSame((await until(() => log.sayings('hello').find(({ report }) => report.left !== undefined))).report.left, { epoch: 'one', command: position, into: 'two' })
})
