import t from 'tap'
import { type SSEOptions } from '../../lib/index.js'
import { openURL, payloads, serve, type Service } from '../helpers/app.js'
import { node, nodes, prefixes, REPORT, startClusterNode, TestLog } from '../helpers/cluster.js'
import { withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

t.test('commands', { skip: withoutRedis }, async t => {
  t.test('a connection is closed from another node', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const { stream, connection: { clientId } } = await b.join('ada')
    t.equal(a.app.sse.getConnection(clientId), undefined)
    t.equal(await a.app.sse.closeConnection(clientId, 'kicked'), true)
    await stream.ended
    t.same(payloads(stream, 'sse:close'), [{ reason: 'kicked', reconnect: false }])
    await until(() => b.app.sse.connectionCount === 0)
    t.equal(await a.app.sse.closeConnection(clientId), false, 'it is gone')
    t.equal(await a.app.sse.closeConnection('nobody'), false)
    await t.rejects(a.app.sse.closeConnection(clientId, 'Not A Reason'), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
  })

  t.test('a user is disconnected everywhere', async t => {
    const services = await nodes(t, 3)
    const ada = await Promise.all(services.flatMap(({ join }) => [join('ada'), join('ada')]))
    const others = await Promise.all(services.map(({ join }) => join('grace')))
    t.equal(await services[1]!.app.sse.disconnectUser('ada'), 6)
    for (const { stream } of ada) {
      await stream.ended
      t.same(payloads(stream, 'sse:close'), [{ reason: 'disconnected', reconnect: false }])
    }
    t.equal(await services[0]!.app.sse.disconnectUser('ada'), 0)
    t.ok(others.every(({ connection }) => connection.isConnected))
  })

  t.test('who is on the way in at one node is turned away from another; a ticket opens one stream on all of them', async t => {
    let release: (() => void) | null = null
    const [a, b] = await nodes(t, 2, {
      ticketSecret: 'thirty-two characters of a random generator',
      authorizeSubscription: () => new Promise(resolve => { release = () => resolve(true) })
    }) as [Service, Service]
    const turnedAway = t.rejects(b.join('ada', ['slow']), { message: /SSE_ERR_UNAUTHENTICATED/ })
    const letIn = await until(() => release)
    t.equal(await a.app.sse.disconnectUser('ada'), 0)
    letIn()
    await turnedAway
    const ticket = a.app.sse.issueTicket({ userId: 'ada' })
    const clients = await Promise.all([b, a, b, a].map(({ open }) => open(`/sse?ticket=${ticket}`)))
    t.same(clients.map(({ status }) => status).sort(), [200, 401, 401, 401])
  })

  t.test('subscriptions are added and taken on the node that has the connection, which asks for the right', async t => {
    const asked: unknown[][] = []
    const authorizeSubscription = (name: string): NonNullable<SSEOptions['authorizeSubscription']> => ({ userId, subscriptionId }) => {
      asked.push([name, userId, subscriptionId])
      if (subscriptionId === 'broken') throw new Error('the password of the database is secret')
      return subscriptionId !== 'secret'
    }
    prefixes.last++
    const a = await node(t, 'a', { authorizeSubscription: authorizeSubscription('a') })
    const b = await node(t, 'b', { authorizeSubscription: authorizeSubscription('b'), maxSubscriptionsPerConnection: 2 })
    const { stream, connection } = await b.join('ada', ['chat:1'])
    const { clientId } = connection
    asked.length = 0
    const { sse } = a.app

    await sse.addSubscription(clientId, 'chat:2')
    t.strictSame(asked, [['b', 'ada', 'chat:2']])
    await sse.broadcastEvent({ event: 'said', data: 'heard' }, { subscriptionIds: ['chat:2'] })
    // What still waits goes with the subscription.
    await stream.until(() => stream.named('said').length >= 1)
    t.equal(await sse.removeSubscription(clientId, 'chat:2'), true)
    t.equal(await sse.removeSubscription(clientId, 'chat:2'), false)
    await sse.broadcastEvent({ event: 'said', data: 'not heard' }, { subscriptionIds: ['chat:2'] })
    await sse.broadcastEvent({ event: 'said', data: 'end' })
    await stream.until(() => stream.named('said').length >= 2)
    t.strictSame(stream.named('said').map(({ data }) => data), ['heard', 'end'])
    t.strictSame([...connection.subscriptions], ['chat:1'])

    const refused = await sse.addSubscription(clientId, 'secret').catch(error => error)
    t.match(refused, { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN', statusCode: 403, message: 'Subscription "secret" is not allowed: authorizeSubscription did not return true' })
    const broken = await sse.addSubscription(clientId, 'broken').catch(error => error)
    t.match(broken, { code: 'SSE_ERR_AUTHENTICATION_FAILED', statusCode: 500, cause: undefined })
    t.notMatch(String(broken.stack), 'password')
    await sse.addSubscription(clientId, 'chat:3')
    await t.rejects(sse.addSubscription(clientId, 'chat:4'), { code: 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS', message: 'A connection holds at most 2 subscriptions' })
    await t.rejects(sse.addSubscription(clientId, 'not valid'), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
    await t.rejects(sse.addSubscription('nobody', 'chat:1'), { code: 'SSE_ERR_UNKNOWN_CONNECTION', statusCode: 404 })
    await t.rejects(sse.removeSubscription('nobody', 'chat:1'), { code: 'SSE_ERR_UNKNOWN_CONNECTION' })
  })

  t.test('rights that change are taken away on all nodes', async t => {
    const allowed = new Set(['chat:1', 'chat:2', 'chat:3'])
    const [a, b] = await nodes(t, 2, { authorizeSubscription: ({ subscriptionId }) => allowed.has(subscriptionId) }) as [Service, Service]
    const streams = [await a.join('ada', ['chat:1', 'chat:2', 'chat:3']), await b.join('ada', ['chat:1', 'chat:2']), await b.join('ada', ['chat:3'])]
    const other = await b.join('grace', ['chat:1', 'chat:2'])
    allowed.delete('chat:1')
    t.equal(await a.app.sse.revokeSubscription('ada', 'chat:1'), 2)
    allowed.delete('chat:2')
    t.equal(await b.app.sse.reauthorize('ada', 'left-team'), 2)
    await b.app.sse.broadcastEvent({ event: 'said', data: 'secret' }, { subscriptionIds: ['chat:1', 'chat:2'] })
    await a.app.sse.broadcastEvent({ event: 'end', data: '' })
    for (const { stream } of [...streams, other]) await stream.until(() => stream.named('end').length >= 1)
    t.same(streams.map(({ stream }) => payloads(stream, 'sse:unsubscribed').map(({ subscriptionId, reason }) => [subscriptionId, reason])), [
      [['chat:1', 'revoked'], ['chat:2', 'left-team']], [['chat:1', 'revoked'], ['chat:2', 'left-team']], []
    ])
    t.same([...streams, other].map(({ stream }) => stream.named('said').length), [0, 0, 0, 1])
  })

  t.test('a connection of a node that has just come is found, by it and from it', async t => {
    prefixes.last++
    const a = await node(t, 'a')
    const { connection } = await a.join('ada')
    const b = await node(t, 'b')
    t.equal(await b.app.sse.closeConnection(connection.clientId), true)
    const { connection: other } = await b.join('ada')
    t.equal(await a.app.sse.disconnectUser('ada'), 1)
    t.equal(other.closeReason, 'disconnected')
  })

  t.test('a node that does not answer is not waited for longer than told; back, it does what it missed before it delivers what came after', { timeout: 240_000 }, async t => {
    prefixes.last++
    const keyPrefix = `cluster-${process.pid}-${prefixes.last}`
    const a = await node(t, 'a', { cluster: { heartbeatIntervalMs: 10_000, answerTimeoutMs: 300 } })
    const { sse } = a.app
    const frozen = await startClusterNode(t, keyPrefix, 'frozen')
    const stream = await openURL(t, `${frozen.url}/sse?user=ada`)
    const { connection } = await a.join('ada')
    const clientId = (await stream.collect(1, 'welcome'))[0]!.data!
    const grace = await openURL(t, `${frozen.url}/sse?user=grace`)
    const graceId = (await grace.collect(1, 'welcome'))[0]!.data!
    const patient = await node(t, 'patient', { keyPrefix, cluster: { heartbeatIntervalMs: 10_000, answerTimeoutMs: 40_000 } })
    await until(() => [a, patient].every(({ app }) => app.sse.clusterStats().nodes.length === 3))
    frozen.freeze()
    // The first entry that a reader waits for is with its socket, and is read before what follows it.
    await sse.broadcastEvent({ event: 'typing', data: 0 }, { ephemeral: true, subscriptionIds: ['nobody'] })

    await t.rejects(sse.addSubscription(clientId, 'chat:1'), { code: 'SSE_ERR_NO_ANSWER', statusCode: 504 })
    t.equal(await sse.addSubscription(connection.clientId, 'chat:1'), undefined, 'what is here needs nobody')
    t.match(await sse.presence('chat:1'), { connections: 1, complete: false })
    const many = Array.from({ length: 1_000 }, () => sse.closeConnection('nobody'))
    await t.rejects(sse.closeConnection('nobody'), { code: 'SSE_ERR_TOO_MANY_COMMANDS', statusCode: 503 })
    t.same(new Set((await Promise.allSettled(many)).map(({ reason }: any) => reason.code)), new Set(['SSE_ERR_NO_ANSWER']))
    await t.rejects(sse.closeConnection('nobody'), { code: 'SSE_ERR_NO_ANSWER', count: 0 })
    t.equal(await sse.closeConnection(connection.clientId), true, 'it is here')
    await a.join('ada', ['room:1'])
    await t.rejects(sse.disconnectUser('ada', 'kicked'), { code: 'SSE_ERR_NO_ANSWER', statusCode: 504, count: 1 })
    await t.rejects(sse.reauthorize('alan'), { code: 'SSE_ERR_NO_ANSWER', count: 0 })
    // Those that wait longer are answered, whatever the application publishes meanwhile.
    const answers = Promise.all([
      patient.app.sse.revokeSubscription('grace', 'room:1'),
      patient.app.sse.addSubscription(graceId, 'room:2'),
      patient.app.sse.presence('room:1'),
      patient.app.sse.closeConnection('nobody')
    ])
    await sse.broadcastEvent({ event: 'said', data: 'secret' }, { subscriptionIds: ['room:1'] })
    await Promise.all(Array.from({ length: 1_200 }, (_, i) => sse.broadcastEvent({ event: 'typing', data: i }, { ephemeral: true, subscriptionIds: ['nobody'] })))

    frozen.thaw()
    await stream.ended
    t.same(payloads(stream, 'sse:close'), [{ reason: 'kicked', reconnect: false }])
    const [taken, , who, found] = await answers
    t.strictSame([taken, who.complete, found], [1, true, false])
    await sse.broadcastEvent({ event: 'said', data: 'for all in room 2' }, { subscriptionIds: ['room:2'] })
    await grace.next('said')
    t.strictSame([stream, grace].map(({ events }) => events.filter(({ event }) => event === 'said').map(({ data }) => data)), [[], ['for all in room 2']])
    t.same(payloads(grace, 'sse:unsubscribed'), [{ subscriptionId: 'room:1', reason: 'revoked' }])
    await until(async () => (await sse.presence('chat:1')).complete)
  })

  t.test('a manager that is closed answers none of them, with a shared log or without', async t => {
    const [a] = await nodes(t, 2) as [Service, Service]
    for (const { app: { sse } } of [await serve(t), a]) {
      await sse.close()
      for (const [name, call] of Object.entries<() => Promise<unknown>>({
        presence: () => sse.presence('room:1'),
        disconnectUser: () => sse.disconnectUser('ada'),
        revokeSubscription: () => sse.revokeSubscription('ada', 'room:1'),
        reauthorize: () => sse.reauthorize('ada'),
        closeConnection: () => sse.closeConnection('c1'),
        addSubscription: () => sse.addSubscription('c1', 'room:1'),
        removeSubscription: () => sse.removeSubscription('c1', 'room:1')
      })) await t.rejects(call(), { code: 'SSE_ERR_CLOSED' }, name)
    }
  })

  t.test('without a shared log they are answered here', async t => {
    const { app: { sse }, join } = await serve(t)
    const { connection } = await join('ada')
    await sse.addSubscription(connection.clientId, 'chat:1')
    t.strictSame(await sse.presence('chat:1'), { connections: 1, anonymous: 0, users: [{ userId: 'ada', connections: 1 }], complete: true })
    t.equal(await sse.closeConnection('nobody'), false)
    t.match(sse.clusterStats(), { connections: 1, users: 1, subscriptions: 1, nodes: [{ nodeId: sse.nodeId, name: null, status: 'up' }] })
    t.equal(await sse.disconnectUser('ada'), 1)
    t.equal(sse.stats().messages, 0, 'nothing was published')
  })
})

t.test('a node that answers twice is counted once', async t => {
  const log = new TestLog()
  const { app } = await serve(t, { broker: log })
  for (const nodeId of ['b', 'c']) await log.hear({ from: nodeId, kind: 'beat', report: { ...REPORT, nodeId } })
  const asked = app.sse.presence('room:1')
  const { id } = await until(() => log.sayings('command').at(-1))
  const value = { connections: 1, anonymous: 0, users: [{ userId: 'ada', connections: 1 }], complete: true }
  for (const from of ['b', 'b', 'c']) await log.hear({ from, kind: 'answer', to: app.sse.nodeId, id, value })
  t.strictSame(await asked, { ...value, connections: 2, users: [{ userId: 'ada', connections: 2 }] })
})
