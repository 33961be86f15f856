import t from 'tap'
import { isApplicationEvent, payloads, serve, settleUnlogged } from '../helpers/app.js'
import { until } from '../helpers/wait.js'
import type { TestStream } from '../../lib/testing/index.js'

// What a broadcast is, who gets it and what it looks like on the wire; seen by clients on real connections.

/** Names of the events a client has had, in order. */
const seen = (stream: TestStream) => stream.events.filter(isApplicationEvent).filter(({ event }) => event !== 'settled' && event !== 'filler').map(({ event }) => event)

t.test('subscriptions of a live connection', async t => {
  const service = await serve(t, { maxSubscriptionsPerConnection: 3 })
  const { app, join } = service
  const ada = await join('ada', ['a'])
  const { clientId } = ada.connection
  const grace = await join('grace')
  const publish = async (topic: string) => (await app.sse.broadcastEvent({ event: topic, data: 1 }, { subscriptionIds: [topic] })).delivered

  t.equal(await publish('b'), 0)
  await app.sse.addSubscription(clientId, 'b')
  await app.sse.addSubscription(clientId, 'b')
  await ada.connection.addSubscription('room:*')
  t.strictSame([...ada.connection.subscriptions], ['a', 'b', 'room:*'])
  t.ok(ada.connection.hasSubscription('room:7'))
  t.notOk(ada.connection.hasSubscription('room:7:files'))
  t.equal(await publish('b'), 1)
  t.equal(await publish('room:7'), 1)
  // What still waits when its subscription is removed is not sent.
  await settleUnlogged(service, ada.stream)
  await t.rejects(app.sse.addSubscription(clientId, 'd'), { code: 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS' })

  t.strictSame(app.sse.getConnectionsBySubscription('room:*'), [ada.connection])
  t.strictSame(app.sse.getConnectionsBySubscription('room:7'), [], 'exactly this topic or pattern')
  t.equal(await app.sse.removeSubscription(clientId, 'b'), true)
  t.equal(await app.sse.removeSubscription(clientId, 'b'), false)
  t.equal(await ada.connection.removeSubscription('room:*'), true)
  t.equal(await publish('b'), 0)
  t.equal(await publish('room:7'), 0)
  t.equal(await publish('a'), 1)
  t.equal(app.sse.stats().subscriptions, 1)

  for (const bad of ['', 'a::b', 'a:**:b', 'a*', '***', 'a b', 'a\nb', ':a', 'x'.repeat(513), 7, undefined]) {
    await t.rejects(app.sse.addSubscription(clientId, bad as string), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' }, `subscription ${String(bad).slice(0, 20)}`)
  }
  for (const call of [app.sse.addSubscription('gone', 'a'), app.sse.removeSubscription('gone', 'a')] as Promise<unknown>[]) await t.rejects(() => call, { code: 'SSE_ERR_UNKNOWN_CONNECTION', statusCode: 404 })
  await settleUnlogged(service, ada.stream, grace.stream)
  t.strictSame(seen(ada.stream), ['b', 'room:7', 'a'])
  t.strictSame(seen(grace.stream), [])

  // Events from before a subscription are not given to it, even when the client comes back.
  await grace.connection.addSubscription('a')
  t.equal(await publish('a'), 2)
  await grace.stream.close()
  await until(() => app.sse.connectionCount === 1)
  t.equal(await publish('a'), 1)
  await t.rejects(grace.connection.addSubscription('z'), { code: 'SSE_ERR_UNKNOWN_CONNECTION' })
})

t.test('lookups, counts and stats', async t => {
  const { app, join, open } = await serve(t, { authHandler: ({ query }) => query['user'] === undefined ? null : { userId: query['user'] as string, claims: { role: 'admin' } } })
  const { sse } = app
  const before = Date.now()
  const ada = await join('ada', ['a', 'b', 'a'], { headers: { 'user-agent': 'tests/1' }, clientInfo: { device: 'desk', ip: 'forged', connectedAt: 0 } })
  const phone = await join('ada', ['a'])
  const nobody = await join()
  t.equal(sse.connectionCount, 3)
  t.match(ada.connection, { userId: 'ada', isAuthenticated: true, isConnected: true, lastEventId: null, closeReason: null, claims: { role: 'admin' } })
  t.match(nobody.connection, { userId: null, isAuthenticated: false, isConnected: true, claims: undefined })
  t.match(ada.connection.clientInfo, { ip: '127.0.0.1', userAgent: 'tests/1', device: 'desk' }, 'the application adds, it does not replace')
  const { connectedAt } = ada.connection.clientInfo
  t.ok(connectedAt >= before && connectedAt <= Date.now())
  t.equal(nobody.connection.clientInfo.userAgent, '')
  t.equal(new Set([ada, phone, nobody].map(({ connection }) => connection.clientId)).size, 3)

  t.equal(sse.getConnection(ada.connection.clientId), ada.connection)
  t.equal(sse.getConnection('gone'), undefined)
  t.strictSame(sse.getConnectionsByUser('ada').map(({ clientId }) => clientId), [ada.connection.clientId, phone.connection.clientId])
  t.strictSame(sse.getConnectionsByUser('zoe'), [])
  t.equal(sse.getConnectionsBySubscription('a').length, 2)
  t.equal(sse.getConnectionsBySubscription('b').length, 1)
  t.equal([...sse.connections()].length, 3)
  const list = sse.getConnectionsByUser('ada')
  list.length = 0
  t.equal(sse.getConnectionsByUser('ada').length, 2, 'a list given out is a copy')

  await sse.broadcastEvent({ event: 'x', data: 1 })
  await sse.broadcastEvent({ event: 'x', data: 2 }, { userIds: ['ada'], ephemeral: true })
  await sse.broadcastEvent({ event: 'x', data: 3 }, { userIds: ['zoe'], local: true })
  await ada.stream.collect(2, 'x')
  const none = { malformed: 0, epoch: 0, unknown: 0, trimmed: 0, limit: 0 }
  const nowhere = { outbox: 0, memory: 0 }
  const runs = { running: 0, done: 0, failed: 0, stopped: 0, lost: 0 }
  const same = { subscriptions: 2, messages: 3, delivered: 5, dropped: 0, lagging: 0, queuedBytes: 0, opened: 3, published: 3, replayed: 0, refused: {}, resumes: { fresh: 3, resumed: 0, gap: 0 }, gaps: none, droppedBy: nowhere, runs }
  const { log, ...stats } = sse.stats()
  t.strictSame(stats, { ...same, connections: 3, users: 1, closed: {} })
  t.strictSame([log?.events, log!.bytes > 0], [1, true])
  t.strictSame(ada.connection.stats(), { sentEvents: 2, droppedEvents: 0, queuedBytes: 0, lagging: false })

  t.equal(await sse.closeConnection(ada.connection.clientId, 'kicked'), true)
  t.equal(await sse.closeConnection('gone'), false)
  await ada.stream.ended
  t.strictSame(payloads(ada.stream, 'sse:close'), [{ reason: 'kicked', reconnect: false }])
  await until(() => sse.connectionCount === 2)
  t.equal(await sse.disconnectUser('ada'), 1)
  t.equal(await sse.disconnectUser('zoe'), 0)
  await phone.stream.ended
  t.strictSame(payloads(phone.stream, 'sse:close'), [{ reason: 'disconnected', reconnect: false }])
  await nobody.stream.close()
  await until(() => sse.connectionCount === 0)
  t.strictSame(sse.stats(), { ...same, log, connections: 0, users: 0, subscriptions: 0, closed: { kicked: 1, disconnected: 1, client: 1 } })
  t.strictSame([sse.getConnection(ada.connection.clientId), sse.getConnectionsByUser('ada'), sse.getConnectionsBySubscription('a')], [undefined, [], []])
  t.equal(ada.connection.closeReason, 'kicked')
  t.equal(nobody.connection.closeReason, 'client')
  for (const reason of ['', 'Kicked', 'a b', 'a\nb', 'x'.repeat(65)]) {
    await t.rejects(sse.closeConnection('gone', reason), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
    await t.rejects(sse.disconnectUser('gone', reason), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
  }
  t.equal((await open('/sse?user=')).status, 500, 'an empty user id is nobody\'s')
})
