import t from 'tap'
import { LostCommands } from '../../lib/cluster/lost-commands.js'
import { SSEManager, type Broker } from '../../lib/index.js'
import { memoryBroker } from '../../lib/log/memory-broker.js'
import { isApplicationEvent, payloads, serve } from '../helpers/app.js'
import { REPORT, TestLog } from '../helpers/cluster.js'
import { until } from '../helpers/wait.js'
import { blocksOf } from '../helpers/raw.js'
import type { TestStream } from '../../lib/testing/index.js'

t.test('a log that does not answer holds up the end of a node no longer than others may take to answer', async t => {
  const log = memoryBroker()
  const broker: Broker = {
    shared: true,
    get epoch () { return log.epoch },
    get position () { return log.position },
    open: (sink, history) => log.open(sink, history),
    publish: message => message.event === 'sse:node' ? new Promise(() => {}) : log.publish(message),
    read: request => log.read(request),
    claim: (key, ttlMs) => log.claim(key, ttlMs),
    close: () => log.close()
  }
  const sse = new SSEManager({ broker, cluster: { answerTimeoutMs: 100 } })
  await sse.open()
  await t.resolves(sse.close())
})

t.test('a node that may have missed a command ends the streams of all users, who come back with the rights of today', async t => {
  const log = new TestLog()
  let gate: (() => void) | null = null
  const { join, app, open } = await serve(t, { broker: log, authorizeSubscription: ({ subscriptionId }) => subscriptionId === 'slow' ? new Promise(resolve => { gate = () => resolve(true) }) : true })
  const ada = await join('ada', ['room:1'])
  const nobody = await join(null, ['room:1'])
  const uncertain = async (stream: TestStream) => {
    await stream.ended
    t.same(payloads(stream, 'sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
    t.ok(blocksOf(stream.text).findLast(({ retry }) => retry !== null), 'spread over a time')
  }
  log.sink!.gap('trimmed', undefined, true)
  await ada.stream.next('sse:gap')
  t.equal(ada.connection.closeReason, null, 'nothing was missed but events')
  const entering = join('grace', ['slow'])
  const refused = t.rejects(entering, { message: /SSE_ERR_BROKER_UNAVAILABLE/ }, 'not a 401, which is final')
  const letIn = await until(() => gate)
  log.sink!.gap('trimmed')
  await uncertain(ada.stream)
  letIn()
  ;(await until(() => gate === letIn ? null : gate))()
  await refused
  t.ok(nobody.connection.isConnected)
  t.equal(app.sse.connectionCount, 1)

  // With an epoch, only what another node has read and this one has not counts.
  await app.sse.closeConnection('nobody-1').catch(() => {})
  const back = await join('ada', ['room:1'])
  const { position } = log
  log.epoch = 'two'
  log.sink!.gap('epoch')
  const greeting = await until(() => log.sayings('hello').find(({ report }) => report.left !== undefined))
  t.strictSame(greeting.report.left, { epoch: 'one', command: position, into: 'two' })
  const beat = (left?: object) => log.hear({ kind: 'beat', report: { ...REPORT, left } })
  for (const left of [undefined, { epoch: 'zero', command: position + 9, into: 'one' }, { epoch: 'two', command: 1, into: 'three' }, { epoch: 'one', command: position, into: 'two' }]) await beat(left)
  t.ok(back.connection.isConnected, 'a node in another epoch says nothing of this one')
  for (let i = 0; i < 2; i++) await beat({ epoch: 'one', command: position + 1, into: 'two' })
  await uncertain(back.stream)
  const third = await join('ada')
  await beat({ epoch: 'one', command: position + 1, into: 'two' })
  t.ok(third.connection.isConnected, 'once')

  // A node that comes from another epoch has read one that this node has skipped, or the other way round.
  log.epoch = 'three'
  log.sink!.gap('epoch')
  await beat({ epoch: 'one', command: 0, into: 'three' })
  await uncertain(third.stream)
  const fourth = await join('ada')
  await beat({ epoch: 'one', command: 0, into: 'three' })
  t.ok(fourth.connection.isConnected, 'once')

  // The broker knows.
  log.epoch = 'four'
  log.sink!.gap('epoch', undefined, true)
  await beat({ epoch: 'elsewhere', command: 9, into: 'four' })
  t.ok(fourth.connection.isConnected)
  log.epoch = 'five'
  log.sink!.gap('epoch', undefined, false)
  await uncertain(fourth.stream)
  t.equal((await open('/sse?join=0')).status, 200)
})

t.test('a node of an older version, which says less of itself, is a node all the same', async t => {
  const log = new TestLog()
  const { app, join } = await serve(t, { broker: log })
  const ada = await join('ada')
  log.epoch = 'two'
  log.sink!.gap('epoch')
  await log.hear({ kind: 'beat', report: { ...REPORT, left: { epoch: 'one', command: 99 } } })
  t.match(app.sse.clusterStats().nodes, [{}, { nodeId: 'x' }])
  t.ok(ada.connection.isConnected, 'it does not say whether it has gone into the same epoch')
})

t.test('a command is done once however often it is asked, and one that the log has lost is said again', async t => {
  const log = new TestLog()
  const { join, app } = await serve(t, { broker: log, cluster: { answerTimeoutMs: 60_000 } })
  const { connection, stream } = await join('ada', ['a', 'b'])
  const command = { kind: 'command', id: 1, operation: 'removeSubscription', args: [connection.clientId, 'a'] }
  await log.hear(command)
  await connection.addSubscription('a')
  await log.hear({ ...command, to: [app.sse.nodeId] })
  await log.hear({ ...command, to: ['another'] })
  await until(() => log.sayings('answer').length === 2)
  t.strictSame(log.sayings('answer').map(({ to, id, value }) => [to, id, value]), [['x', 1, true], ['x', 1, true]])
  t.strictSame([...connection.subscriptions].sort(), ['a', 'b'])
  const late = { kind: 'command', id: 2, operation: 'disconnectUser', args: ['ada', 'kicked'] }
  await log.hear({ ...late, to: [app.sse.nodeId] })
  t.ok(connection.isConnected, 'its place is in the log, and that has not been read')
  await log.hear(late)
  await stream.ended
  await log.hear({ ...late, to: [app.sse.nodeId] })
  await until(() => log.sayings('answer').length === 4)
  t.strictSame(log.sayings('answer').slice(2).map(({ value }) => value), [1, 1])

  await log.hear({ kind: 'hello', report: REPORT })
  const disconnecting = app.sse.disconnectUser('ada')
  const asked = await until(() => log.said.find(({ data }) => data.includes('disconnectUser')))
  t.match(asked, { ephemeral: false, channel: 'node' })
  log.epoch = 'two'
  log.sink!.gap('epoch')
  await until(() => log.said.filter(({ data }) => data === asked.data).length === 2)
  await log.hear({ kind: 'answer', to: app.sse.nodeId, id: JSON.parse(asked.data).id, value: 3 })
  t.equal(await disconnecting, 3)
})

t.test('a node that answers twice is counted once', async t => {
  const log = new TestLog()
  const { app } = await serve(t, { broker: log, cluster: { answerTimeoutMs: 60_000 } })
  for (const from of ['x', 'y']) await log.hear({ from, kind: 'hello', report: { ...REPORT, nodeId: from } })
  const disconnecting = app.sse.disconnectUser('ada')
  const { id } = await until(() => log.sayings('command')[0])
  for (const from of ['x', 'x', 'y']) await log.hear({ from, kind: 'answer', to: app.sse.nodeId, id, value: 2 })
  t.equal(await disconnecting, 4)
})

t.test('a node of another version that has not done a command makes it fail, unless another node has the connection', async t => {
  const log = new TestLog()
  const { app: { sse } } = await serve(t, { broker: log, cluster: { answerTimeoutMs: 60_000 } })
  for (const from of ['x', 'y']) await log.hear({ from, kind: 'hello', report: { ...REPORT, nodeId: from } })
  const failed = { code: 'SSE_ERR_COMMAND_FAILED', message: '' }
  /** Asks, and lets both nodes answer. */
  const ask = async (call: () => Promise<unknown>, x: object, y: object) => {
    log.said.length = 0
    const asking = call().catch(error => error)
    const { id } = await until(() => log.sayings('command')[0])
    for (const [from, answer] of Object.entries({ x, y })) await log.hear({ from, kind: 'answer', to: sse.nodeId, id, ...answer })
    return await asking
  }
  for (const answer of [{ error: failed }, { value: null }, { value: 'two' }, { value: -1 }]) {
    t.match(await ask(() => sse.disconnectUser('ada'), answer, { value: 2 }), { code: 'SSE_ERR_COMMAND_FAILED', statusCode: 500 }, JSON.stringify(answer))
  }
  const close = () => sse.closeConnection('c1')
  t.equal(await ask(close, { error: failed }, { value: true }), true, 'the other node has it')
  t.equal(await ask(close, { value: null }, { value: null }), false)
  for (const answer of [{ error: failed }, { value: 'done' }]) t.match(await ask(close, answer, { value: null }), { code: 'SSE_ERR_COMMAND_FAILED' }, JSON.stringify(answer))
  const forbidden = { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN', message: 'no' }
  t.match(await ask(() => sse.addSubscription('c1', 'room:1'), { error: failed }, { error: forbidden }), { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' })
})

t.test('what is published in the turn in which a missed command is found is not sent to users: it comes when they are back', async t => {
  const log = new TestLog()
  const { join, app: { sse } } = await serve(t, { broker: log })
  const ada = await join('ada')
  const nobody = await join()
  log.epoch = 'two'
  log.sink!.gap('epoch')
  await sse.broadcastEvent({ data: 'before' })
  await ada.stream.next('message')
  const publishing = sse.broadcastEvent({ data: 'secret' })
  await log.hear({ kind: 'beat', report: { ...REPORT, left: { epoch: 'one', command: 99, into: 'two' } } })
  await publishing
  await ada.stream.ended
  await nobody.stream.collect(2, 'message')
  t.strictSame(ada.stream.events.filter(isApplicationEvent).map(({ data }) => data), ['before'])
  t.same(payloads(ada.stream, 'sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
  const back = await join('ada', [], { cursor: ada.stream.lastEventId })
  await back.stream.next('message')
  t.strictSame(back.stream.events.filter(isApplicationEvent).map(({ data }) => data), ['secret'])
})

t.test('streams that end by a gap are told no place behind it: who comes back learns of the gap', async t => {
  const log = new TestLog()
  const { join } = await serve(t, { broker: log })
  const ada = await join('ada')
  const { lastEventId } = ada.stream
  log.epoch = 'two'
  log.sink!.gap('epoch', undefined, false)
  await ada.stream.ended
  t.same(payloads(ada.stream, 'sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
  t.match(lastEventId, /^one\./)
  t.equal(ada.stream.lastEventId, lastEventId)
})

t.test('a command that is not answered is asked again, however many were before it', async t => {
  const log = new TestLog()
  const sse = new SSEManager({ broker: log, cluster: { answerTimeoutMs: 100 } })
  t.teardown(() => sse.close())
  await sse.open()
  await log.hear({ kind: 'beat', report: REPORT })
  const repeated = () => log.sayings('command').filter(({ to }) => to !== undefined).length
  await until(async () => {
    await t.rejects(sse.disconnectUser('ada'), { code: 'SSE_ERR_NO_ANSWER' })
    return repeated() > 40
  })
})

t.test('other nodes are told that rights have changed before this one has asked the application', async t => {
  const log = new TestLog()
  let asked = 0
  let answer: ((yes: boolean) => void) | null = null
  const { app, join } = await serve(t, { broker: log, cluster: { answerTimeoutMs: 60_000 }, authorizeSubscription: () => ++asked === 1 || new Promise<boolean>(resolve => { answer = resolve }) })
  await join('ada', ['room:1'])
  await log.hear({ kind: 'hello', report: REPORT })
  const reauthorizing = app.sse.reauthorize('ada')
  const { id } = await until(() => log.sayings('command')[0])
  await log.hear({ kind: 'answer', to: app.sse.nodeId, id, value: 2 })
  ;(await until(() => answer))(false)
  t.equal(await reauthorizing, 3)
})

t.test('a node has missed a command if another has read a newer one in the epoch that both have left', async t => {
  const begin = (position = 10) => {
    const commands = new LostCommands()
    commands.open('one', position)
    return commands
  }
  const says = (epoch: string, command: number, into = 'two') => ({ epoch, command, into })

  const commands = begin()
  t.equal(commands.left, undefined)
  t.equal(commands.missed(says('one', 99, 'one')), false, 'nothing was left yet')
  commands.heard(12)
  t.equal(commands.moved('two', 3, 'epoch', undefined), false)
  t.strictSame(commands.left, says('one', 12))
  t.strictSame([12, 13, 13, 14].map(command => commands.missed(says('one', command))), [false, true, false, false], 'once')
  t.strictSame(commands.left, says('one', 14), 'others learn of the newest that any has read')
  t.equal(commands.moved('three', 0, 'epoch', undefined), false)
  t.strictSame(commands.left, says('two', 0, 'three'), 'commands are counted anew')
  t.strictSame([3, 4].map(command => commands.missed(says('two', command, 'three'))), [false, true], 'commands from before its position do not concern it, and in the next epoch it is said again')

  const later = begin()
  later.moved('two', 0, 'epoch', undefined)
  t.strictSame([10, 11].map(command => later.missed(says('one', command))), [false, true], 'it began to read at 10')

  for (const kept of [true, false]) {
    const certain = begin()
    t.equal(certain.moved('two', 0, 'epoch', kept), !kept, 'the broker knows')
    t.equal(certain.left, undefined)
    t.equal(certain.missed(says('one', 99)), false)
  }

  for (const kept of [true, false, undefined]) {
    const trimmed = begin()
    trimmed.heard(12)
    t.equal(trimmed.moved('one', 20, 'trimmed', kept), kept !== true)
    t.equal(trimmed.left, undefined, 'the epoch is the same')
    trimmed.moved('two', 0, 'epoch', undefined)
    t.equal(trimmed.missed(says('one', 15)), kept === true, 'after a loss all streams began anew')
  }
})
