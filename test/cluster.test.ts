import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { formatLanes, formatCursor, parseCursor } from '../lib/log/cursor.js'
import { memoryBroker } from '../lib/log/memory.js'
import { redisStreamsBroker } from '../lib/redis.js'
import type { MessageOf, Saying } from '../lib/cluster/node-message.js'
import { Membership } from '../lib/cluster/membership.js'
import { PresenceList } from '../lib/cluster/presence.js'
import { EventPriority, SSEManager, type Broker, type History, type OutgoingMessage, type Page, type Published, type ReadRequest, type Sink, type SSEOptions } from '../lib/index.js'
import { block, serve, type Joined, type Service } from './helpers/app.js'
import { RedisServer, withoutRedis } from './helpers/redis.js'
import { SSEClient } from './helpers/sse.js'
import { startNode } from './helpers/node-process.js'
import { Proxy } from './helpers/proxy.js'
import { until } from './helpers/wait.js'

// Two and more nodes on one log: real applications, a real redis-server, clients on sockets.

const server = withoutRedis !== false ? null : await RedisServer.start()
t.teardown(async () => { await server?.stop() })

let prefixes = 0

interface ClusterOptions extends SSEOptions {
  keyPrefix?: string
  redis?: Pick<RedisServer, 'url'>
  broker?: never
  startDegraded?: boolean
}

/** An application on the log of this name, as node `name`. */
async function node (t: Test, name: string, { keyPrefix = `cluster-${process.pid}-${prefixes}`, redis = server!, startDegraded = false, cluster, ...options }: ClusterOptions = {}): Promise<Service> {
  const client = new Redis(redis.url, { lazyConnect: true })
  return await serve(t, {
    broker: redisStreamsBroker({ client, keyPrefix, replyTimeoutMs: startDegraded ? 1_000 : 10_000, publishTimeoutMs: 10_000, ...(startDegraded && { startDegraded, startTimeoutMs: 100 }) }),
    cluster: { nodeName: name, heartbeatIntervalMs: 200, ...cluster },
    ...options
  })
}

/** Nodes `a`, `b`, … on a log of their own, each of which has heard of all others. */
async function nodes (t: Test, count: number, options: ClusterOptions = {}): Promise<Service[]> {
  prefixes++
  const services: Service[] = []
  for (let i = 0; i < count; i++) services.push(await node(t, 'abcdef'[i]!, options))
  await until(() => services.every(({ app }) => app.sse.clusterStats().nodes.length === count), undefined, 'the nodes know each other')
  return services
}

t.test('nodes', { skip: withoutRedis }, async t => {
  t.test('broadcasts of every kind reach the connections of both nodes that they are for, in one order', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const ada = [await a.join('ada', ['chat:1']), await b.join('ada', ['chat:2'])]
    const grace = [await a.join('grace', ['chat:*']), await b.join('grace', ['chat:1'])]
    const nobody = await b.join(null, ['chat:1'])
    const all = [...ada, ...grace, nobody]
    const { sse } = a.app
    const say = (data: string, options = {}) => sse.broadcastEvent({ event: 'said', data }, options)

    t.match(await say('everyone'), { id: String, delivered: 2 })
    await b.app.sse.broadcastEvent({ event: 'said', data: 'everyone, from b' })
    await say('ada', { userIds: ['ada'] })
    await say('chat:1', { subscriptionIds: ['chat:1'] })
    await say('grace in chat:2', { userIds: ['grace'], subscriptionIds: ['chat:2'] })
    await say('nobody else', { clientIds: [nobody.connection.clientId] })
    await say('all but two', { exceptClientIds: [ada[0]!.connection.clientId, grace[1]!.connection.clientId] })
    t.strictSame(await say('passing', { ephemeral: true }), { id: null, delivered: 2 })
    await say('only here', { local: true, filter: ({ userId }: { userId: string | null }) => userId === 'ada' })
    await t.rejects(say('a filter', { filter: () => true }), { code: 'SSE_ERR_FILTER_NOT_SHARED' })
    await sse.broadcastData('end', 1, { priority: EventPriority.CRITICAL })

    for (const { client } of all) await client.waitFor('data')
    const heard = all.map(({ client }) => client.named('said').map(({ data }) => data))
    const both = ['everyone', 'everyone, from b']
    t.strictSame(heard, [
      [...both, 'ada', 'chat:1', 'passing', 'only here'],
      [...both, 'ada', 'all but two', 'passing'],
      [...both, 'chat:1', 'grace in chat:2', 'all but two', 'passing'],
      [...both, 'chat:1', 'passing'],
      [...both, 'chat:1', 'nobody else', 'all but two', 'passing']
    ])
    const idOf = (said: string) => new Set(all.flatMap(({ client }) => client.named('said').filter(({ data }) => data === said).map(({ id }) => id)))
    t.equal(idOf('everyone').size, 1, 'one id on both nodes')
    t.same(idOf('passing'), new Set([null]))
  })

  t.test('what one node logged is resumed on the other', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const { client } = await a.join('ada', ['chat:1'])
    await b.app.sse.broadcastEvent({ event: 'said', data: 'one' }, { subscriptionIds: ['chat:1'] })
    await client.waitFor('said')
    client.close()
    for (const data of ['two', 'three']) await a.app.sse.broadcastEvent({ event: 'said', data }, { subscriptionIds: ['chat:1'] })
    const back = await b.join('ada', ['chat:1'], { cursor: client.lastEventId })
    await back.client.waitFor('said', 2)
    await a.app.sse.broadcastEvent({ event: 'said', data: 'four' }, { subscriptionIds: ['chat:1'] })
    await back.client.waitFor('said', 3)
    t.strictSame(back.client.applicationEvents.map(({ data }) => data), ['two', 'three', 'four'])
    t.strictSame(back.client.named('sse:gap'), [])
  })

  t.test('a priority is felt on the other node as well', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const slow = await b.join()
    await block(slow)
    for (const [data, priority] of [['low', 0], ['normal', 1], ['high', 2], ['critical', 3]] as const) await a.app.sse.broadcastEvent({ event: 'said', data, priority })
    await until(() => b.app.sse.stats().messages >= 4)
    slow.client.resume()
    await slow.client.waitFor('said', 4)
    t.strictSame(slow.client.named('said').map(({ data }) => data), ['critical', 'high', 'normal', 'low'])
  })
})

/** Nodes `a` and `b` on a log of their own; what Redis tells `b` can be held back. */
async function lateNode (t: Test, options: ClusterOptions = {}): Promise<{ a: Service, b: Service, proxy: Proxy }> {
  prefixes++
  const proxy = await Proxy.to(server!.port)
  t.teardown(() => proxy.close())
  const a = await node(t, 'a', options)
  return { a, b: await node(t, 'b', { ...options, redis: proxy }), proxy }
}

t.test('a node that is late', { skip: withoutRedis }, async t => {
  const said = ({ client }: Joined) => client.applicationEvents.map(({ event, data }) => event === 'message' ? data : event)

  t.test('a client that has seen more waits for the node: no gap, nothing twice, and what is sent from this node at once', async t => {
    const { a, b, proxy } = await lateNode(t, { keepAliveIntervalMs: 50, maxConcurrentReplays: 1 })
    const say = (data: string, options = {}) => a.app.sse.broadcastEvent({ data }, options)
    const first = await a.join()
    await say('0')
    const older = (await say('1')).id!
    await until(() => b.app.sse.stats().messages >= 2)
    proxy.hold('XREAD')
    await say('2')
    await say('passing', { ephemeral: true })
    await say('3', { subscriptionIds: ['later'] })
    await say('4')
    await until(() => said(first).includes('4'))
    first.client.close()
    const cursor = first.client.lastEventId

    const waiting = await Promise.all(Array.from({ length: 20 }, () => b.join('ada', [], { cursor })))
    const back = waiting[0]!
    t.equal(back.client.lastEventId, cursor, 'its own place')
    t.equal(back.connection.stats().lagging, true)
    await until(() => back.client.blocks.filter(({ comment }) => comment === 'keep-alive').length >= 2)
    back.connection.sendEvent({ event: 'direct', data: 1 })
    await b.app.sse.broadcastEvent({ event: 'local', data: 1 }, { local: true })
    await b.app.sse.addSubscription(back.connection.clientId, 'later')
    await until(() => said(back).length === 2)
    await say('5')
    const behind = await b.join('ada', [], { cursor: formatCursor(parseCursor(older)!.epoch, parseCursor(older)!.lanes[0]! - 1) })
    await until(() => said(behind).includes('1'))

    proxy.release()
    await say('6', { subscriptionIds: ['later'] })
    await say('7', { ephemeral: true })
    for (const each of waiting) await until(() => said(each).includes('7'))
    t.strictSame(said(back), ['direct', 'local', '5', '6', '7'])
    for (const each of waiting.slice(1)) t.strictSame(said(each), ['local', '5', '7'])
    t.strictSame([...waiting, behind].flatMap(({ client }) => client.named('sse:gap')), [])
    await until(() => b.app.sse.stats().lagging === 0)
  })

  t.test('each lane may be ahead by itself: what another lane has not had comes, once', async t => {
    const { a, b, proxy } = await lateNode(t)
    const { epoch, lanes: [start] } = parseCursor((await a.app.sse.broadcastEvent({ data: 'start' })).id!)!
    await until(() => b.app.sse.stats().messages >= 1)
    proxy.hold('XREAD')
    for (const [data, priority] of [['1', EventPriority.NORMAL], ['2', EventPriority.CRITICAL], ['3', EventPriority.LOW], ['4', EventPriority.HIGH], ['5', EventPriority.CRITICAL]] as const) await a.app.sse.broadcastEvent({ data, priority })
    const back = await b.join(null, [], { cursor: formatLanes(epoch, [start!, start!, start! + 4, start! + 4]) })
    proxy.release()
    await until(() => said(back).length >= 3)
    await a.app.sse.broadcastEvent({ data: 'end', priority: EventPriority.LOW })
    await until(() => said(back).includes('end'))
    t.strictSame(said(back), ['5', '1', '3', 'end'])
    t.strictSame(back.client.named('sse:gap'), [])
  })

  t.test('a client that is closed meanwhile keeps its place', async t => {
    const { a, b, proxy } = await lateNode(t, { ticketSecret: 'thirty-two characters of a random generator' })
    proxy.hold('XREAD')
    const cursor = (await a.app.sse.broadcastEvent({ data: '1' })).id!
    const closed = await b.join(null, [], { cursor })
    const drained = await b.open(`/sse?ticket=${a.app.sse.issueTicket({ userId: 'ada' })}&lastEventId=${cursor}`)
    closed.connection.close('kicked')
    await b.app.sse.drain()
    for (const client of [closed.client, drained]) {
      await client.waitForEnd()
      t.equal(client.lastEventId, cursor)
      t.strictSame(client.events.map(({ event }) => event), ['sse:close'])
    }
  })

  t.test('a place that the log has not reached is a gap at once, however late the node', async t => {
    const { a, b, proxy } = await lateNode(t)
    proxy.hold('XREAD')
    const { id } = await a.app.sse.broadcastEvent({ data: '1' })
    const { epoch } = parseCursor(id!)!
    const forged = await b.join(null, [], { cursor: `${epoch}.zzzz` })
    const [gap] = await forged.client.waitFor('sse:gap')
    t.strictSame(JSON.parse(gap!.data!), { reason: 'unknown', lastEventId: `${epoch}.zzzz` })
    t.equal(gap!.id, `${epoch}.0`)
    proxy.release()
    await forged.client.waitFor('message')
    t.strictSame(said(forged), ['1'])
  })

  t.test('a node that has not heard that the log was wiped is late too, and tells one gap', async t => {
    const { a, b, proxy } = await lateNode(t)
    const { id: old } = await a.app.sse.broadcastEvent({ data: '1' })
    await until(() => b.app.sse.stats().messages >= 1)
    proxy.hold('XREAD')
    const { id: older } = await a.app.sse.broadcastEvent({ data: '2' })
    const ahead = await b.join(null, [], { cursor: older! })
    await server!.ask('FLUSHALL')
    const { id } = await a.app.sse.broadcastEvent({ data: '3' })
    t.not(parseCursor(id!)!.epoch, parseCursor(old!)!.epoch)
    const moved = await b.join(null, [], { cursor: id! })
    const other = await b.join(null, [], { cursor: `${parseCursor(old!)!.epoch}.zz` })
    proxy.release()
    for (const { client } of [ahead, other]) t.match(JSON.parse((await client.waitFor('sse:gap'))[0]!.data!), { reason: 'epoch' })
    await a.app.sse.broadcastEvent({ data: '4' })
    for (const each of [ahead, other, moved]) await until(() => said(each).includes('4'))
    t.strictSame(said(moved), ['4'])
    t.strictSame(moved.client.named('sse:gap'), [])
    for (const { client } of [ahead, other]) t.equal(client.named('sse:gap').length, 1)
  })

  t.test('a node that begins without Redis lets clients that have a place wait for it', async t => {
    prefixes++
    const ticketSecret = 'thirty-two characters of a random generator'
    const a = await node(t, 'a', { ticketSecret })
    const { id: cursor } = await a.app.sse.broadcastEvent({ data: '1' })
    await a.app.sse.broadcastEvent({ data: '2' })
    const proxy = await Proxy.to(server!.port)
    t.teardown(() => proxy.close())
    proxy.hold()
    const b = await node(t, 'b', { redis: proxy, startDegraded: true, ticketSecret })
    const ticket = a.app.sse.issueTicket({ userId: 'ada' })
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 503, 'not the 401 that an EventSource takes for final')
    const back = await b.join(null, [], { cursor: cursor! })
    const stranger = await b.join(null, [], { cursor: 'zzzz.1' })
    await b.app.sse.broadcastEvent({ data: 'local' }, { local: true })
    await until(() => said(back).length === 1)
    t.strictSame([back, stranger].flatMap(({ client }) => client.named('sse:gap')), [])
    proxy.release()
    await until(() => said(back).includes('2'))
    t.strictSame(said(back), ['local', '2'])
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 200)
    t.strictSame(back.client.named('sse:gap'), [])
    t.match(JSON.parse((await stranger.client.waitFor('sse:gap'))[0]!.data!), { reason: 'epoch', lastEventId: 'zzzz.1' })
  })

  t.test('a used ticket stays used if the claims are lost and this node has not heard of it, and a fresh one is not spent', async t => {
    const { a, b, proxy } = await lateNode(t, { ticketSecret: 'thirty-two characters of a random generator' })
    const ticket = a.app.sse.issueTicket({ userId: 'ada' })
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 200)
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 401)
    proxy.hold('XREAD')
    await server!.ask('FLUSHALL')
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 503, 'there is no epoch yet')
    const { epoch } = parseCursor((await a.app.sse.broadcastEvent({ data: '1' })).id!)!
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 503)
    const fresh = a.app.sse.issueTicket({ userId: 'ada' })
    t.equal((await b.open(`/sse?ticket=${fresh}`)).status, 503)
    proxy.release()
    await until(async () => parseCursor((await b.join()).client.lastEventId!)!.epoch === epoch)
    t.equal((await b.open(`/sse?ticket=${fresh}`)).status, 200)
    t.strictSame(await Promise.all([ticket, fresh].map(async each => (await b.open(`/sse?ticket=${each}`)).status)), [401, 401])
  })

  t.test('a node that skips an epoch ends the streams of users: a command may have been in it', async t => {
    const { a, b, proxy } = await lateNode(t, { cluster: { answerTimeoutMs: 200 } })
    const [ada, nobody] = [await b.join('ada'), await b.join()]
    await until(() => a.app.sse.clusterStats().nodes.length === 2)
    proxy.hold('XREAD')
    await a.app.sse.broadcastEvent({ data: 'on its way' })
    await server!.ask('FLUSHALL')
    await a.app.sse.broadcastEvent({ data: '1' })
    await t.rejects(a.app.sse.disconnectUser('ada'), { code: 'SSE_ERR_NO_ANSWER' })
    await server!.ask('FLUSHALL')
    await a.app.sse.broadcastEvent({ data: '2' })
    proxy.release()
    await ada.client.waitForEnd()
    t.same(ada.client.json('sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
    await until(() => said(nobody).includes('2'))
    t.ok(nobody.connection.isConnected)
  })

  t.test('a node that missed a command in a lost log learns it from Redis if the node that had read it is gone', async t => {
    const { a, b, proxy } = await lateNode(t, { cluster: { answerTimeoutMs: 200 } })
    const ada = await b.join('ada')
    await until(() => a.app.sse.clusterStats().nodes.length === 2)
    proxy.hold('XREAD')
    await a.app.sse.broadcastEvent({ data: 'on its way' })
    await t.rejects(a.app.sse.disconnectUser('ada'), { code: 'SSE_ERR_NO_ANSWER' })
    await server!.ask('FLUSHALL')
    await a.app.sse.broadcastEvent({ data: '1' })
    await a.app.close()
    await server!.ask('DEL', `{cluster-${process.pid}-${prefixes}}:nodes`)
    proxy.release()
    await ada.client.waitForEnd()
    t.same(ada.client.json('sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
  })

  t.test('a node that begins without Redis ends the streams of users once it is reached, if a command was logged before', async t => {
    prefixes++
    const a = await node(t, 'a')
    const proxy = await Proxy.to(server!.port)
    t.teardown(() => proxy.close())
    proxy.hold()
    const b = await node(t, 'b', { redis: proxy, startDegraded: true })
    const ada = await b.join('ada')
    t.equal(await a.app.sse.disconnectUser('ada'), 0)
    proxy.release()
    await ada.client.waitForEnd()
    t.same(ada.client.json('sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
  })

  t.test('a place is told after a gap too, though its number is one that was told before', async t => {
    prefixes++
    const a = await node(t, 'a', { keepAliveIntervalMs: 50 })
    const { client } = await a.join()
    const { id } = await a.app.sse.broadcastEvent({ data: '1' })
    await client.waitFor('message')
    await server!.ask('FLUSHALL')
    const { id: last } = await a.app.sse.broadcastEvent({ data: '1' }, { subscriptionIds: ['others'] })
    t.equal(last!.split('.')[1], id!.split('.')[1])
    await client.waitFor('sse:gap')
    await until(() => client.lastEventId === last)
  })
})

t.test('commands', { skip: withoutRedis }, async t => {
  t.test('a connection is closed from another node', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const { client, connection: { clientId } } = await b.join('ada')
    t.equal(a.app.sse.getConnection(clientId), undefined)
    t.equal(await a.app.sse.closeConnection(clientId, 'kicked'), true)
    await client.waitForEnd()
    t.same(client.json('sse:close'), [{ reason: 'kicked', reconnect: false }])
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
    for (const { client } of ada) {
      await client.waitForEnd()
      t.same(client.json('sse:close'), [{ reason: 'disconnected', reconnect: false }])
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
    prefixes++
    const a = await node(t, 'a', { authorizeSubscription: authorizeSubscription('a') })
    const b = await node(t, 'b', { authorizeSubscription: authorizeSubscription('b'), maxSubscriptionsPerConnection: 2 })
    const { client, connection } = await b.join('ada', ['chat:1'])
    const { clientId } = connection
    asked.length = 0
    const { sse } = a.app

    await sse.addSubscription(clientId, 'chat:2')
    t.strictSame(asked, [['b', 'ada', 'chat:2']])
    await sse.broadcastEvent({ event: 'said', data: 'heard' }, { subscriptionIds: ['chat:2'] })
    // What still waits goes with the subscription.
    await client.waitFor('said')
    t.equal(await sse.removeSubscription(clientId, 'chat:2'), true)
    t.equal(await sse.removeSubscription(clientId, 'chat:2'), false)
    await sse.broadcastEvent({ event: 'said', data: 'not heard' }, { subscriptionIds: ['chat:2'] })
    await sse.broadcastEvent({ event: 'said', data: 'end' })
    await client.waitFor('said', 2)
    t.strictSame(client.named('said').map(({ data }) => data), ['heard', 'end'])
    t.strictSame([...connection.subscriptions], ['chat:1'])

    const refused = await sse.addSubscription(clientId, 'secret').catch(error => error)
    t.match(refused, { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN', statusCode: 403, message: 'Subscription "secret" is not allowed' })
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
    for (const { client } of [...streams, other]) await client.waitFor('end')
    t.same(streams.map(({ client }) => client.json('sse:unsubscribed').map(({ subscriptionId, reason }) => [subscriptionId, reason])), [
      [['chat:1', 'revoked'], ['chat:2', 'left-team']], [['chat:1', 'revoked'], ['chat:2', 'left-team']], []
    ])
    t.same([...streams, other].map(({ client }) => client.named('said').length), [0, 0, 0, 1])
  })

  t.test('a connection of a node that has just come is found, by it and from it', async t => {
    prefixes++
    const a = await node(t, 'a')
    const { connection } = await a.join('ada')
    const b = await node(t, 'b')
    t.equal(await b.app.sse.closeConnection(connection.clientId), true)
    const { connection: other } = await b.join('ada')
    t.equal(await a.app.sse.disconnectUser('ada'), 1)
    t.equal(other.closeReason, 'disconnected')
  })

  t.test('a node that does not answer is not waited for longer than told; back, it does what it missed before it delivers what came after', { timeout: 240_000 }, async t => {
    prefixes++
    const keyPrefix = `cluster-${process.pid}-${prefixes}`
    const a = await node(t, 'a', { cluster: { heartbeatIntervalMs: 10_000, answerTimeoutMs: 300 } })
    const { sse } = a.app
    const frozen = await startNode(t, server!.url, keyPrefix, 'frozen')
    const client = await SSEClient.open(`${frozen.url}/sse?user=ada`)
    t.teardown(() => client.close())
    const { connection } = await a.join('ada')
    const clientId = (await client.waitFor('welcome'))[0]!.data!
    const grace = await SSEClient.open(`${frozen.url}/sse?user=grace`)
    t.teardown(() => grace.close())
    const graceId = (await grace.waitFor('welcome'))[0]!.data!
    const patient = await node(t, 'patient', { keyPrefix, cluster: { heartbeatIntervalMs: 10_000, answerTimeoutMs: 40_000 } })
    await until(() => [a, patient].every(({ app }) => app.sse.clusterStats().nodes.length === 3))
    frozen.process.kill('SIGSTOP')
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

    frozen.process.kill('SIGCONT')
    await client.waitForEnd()
    t.same(client.json('sse:close'), [{ reason: 'kicked', reconnect: false }])
    const [taken, , who, found] = await answers
    t.strictSame([taken, who.complete, found], [1, true, false])
    await sse.broadcastEvent({ event: 'said', data: 'for all in room 2' }, { subscriptionIds: ['room:2'] })
    await grace.waitFor('said')
    t.strictSame([client, grace].map(({ events }) => events.filter(({ event }) => event === 'said').map(({ data }) => data)), [[], ['for all in room 2']])
    t.same(grace.json('sse:unsubscribed'), [{ subscriptionId: 'room:1', reason: 'revoked' }])
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

t.test('who is there', { skip: withoutRedis }, async t => {
  t.test('the nodes that live, and what each has to do', async t => {
    const before = Date.now()
    const [a, b] = await nodes(t, 2) as [Service, Service]
    await a.join('ada', ['chat:1', 'chat:2'])
    await a.join('ada')
    await a.join()
    await b.join('ada', ['chat:1'])
    await b.join('grace')
    await until(() => a.app.sse.clusterStats().connections === 5)
    const { nodes: list, ...sums } = a.app.sse.clusterStats()
    t.strictSame(sums, { connections: 5, users: 3, subscriptions: 3 })
    t.match(list, [
      { nodeId: a.app.sse.nodeId, name: 'a', connections: 3, users: 1, subscriptions: 2, status: 'up' },
      { nodeId: b.app.sse.nodeId, name: 'b', connections: 2, users: 2, subscriptions: 1, status: 'up' }
    ])
    for (const { startedAt, heardAt } of list) t.ok(startedAt >= before && heardAt >= startedAt && heardAt <= Date.now())
  })

  t.test('a node that comes or ends says so', async t => {
    const [a, b] = await nodes(t, 2, { cluster: { heartbeatIntervalMs: 60_000 } }) as [Service, Service]
    t.same([a, b].map(({ app }) => app.sse.clusterStats().nodes.length), [2, 2])
    await b.app.close()
    await until(() => a.app.sse.clusterStats().nodes.length === 1)
  })

  t.test('a node that dies is missing by itself, and one that was frozen is back', { timeout: 240_000 }, async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const names = () => a.app.sse.clusterStats().nodes.map(({ name }) => name).sort()
    const keyPrefix = `cluster-${process.pid}-${prefixes}`
    const dying = await startNode(t, server!.url, keyPrefix, 'dying')
    await until(() => names().length === 3)
    const client = await SSEClient.open(`${dying.url}/sse?user=ada`)
    t.teardown(() => client.close())
    await client.waitFor('welcome')
    dying.process.kill('SIGSTOP')
    await until(() => names().length === 2)
    // Not waited for: it is taken for dead. It learns it all the same.
    t.equal(await b.app.sse.disconnectUser('ada'), 0)
    dying.process.kill('SIGCONT')
    await until(() => names().length === 3)
    await client.waitForEnd()
    t.same(client.json('sse:close'), [{ reason: 'disconnected', reconnect: false }])
    const again = await SSEClient.open(`${dying.url}/sse?user=ada`)
    t.teardown(() => again.close())
    await until(() => b.app.sse.clusterStats().connections === 1)
    dying.process.kill('SIGKILL')
    await until(() => names().length === 2)
    t.same(names(), ['a', 'b'])
    t.match(a.app.sse.clusterStats(), { connections: 0, users: 0 })
  })

  t.test('who holds a subscription, on all nodes', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    await a.join('ada', ['room:1'])
    await b.join('ada', ['room:1', 'room:2'])
    await b.join('ada', ['room:1'])
    await b.join('grace', ['room:1'])
    await a.join(null, ['room:1'])
    await a.join('alan', ['room:*'])
    for (const { app: { sse } } of [a, b]) {
      const { users, ...counts } = await sse.presence('room:1')
      t.strictSame(counts, { connections: 5, anonymous: 1, complete: true })
      t.strictSame(users.sort((one, other) => one.userId < other.userId ? -1 : 1), [{ userId: 'ada', connections: 3 }, { userId: 'grace', connections: 1 }])
      t.match(await sse.presence('room:*'), { connections: 1, users: [{ userId: 'alan', connections: 1 }] }, 'exactly this subscription')
      t.strictSame(await sse.presence('room:3'), { connections: 0, anonymous: 0, users: [], complete: true })
    }
    await t.rejects(a.app.sse.presence('room:'), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
  })

  t.test('what nodes say to each other reaches no client, and what is not understood is left alone', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const { client } = await a.join('ada', ['**'])
    const stranger = redisStreamsBroker({ client: new Redis(server!.url, { lazyConnect: true }), keyPrefix: `cluster-${process.pid}-${prefixes}` })
    const answers: string[] = []
    await stranger.open({ deliver: ({ data }) => data.includes('"to":"stranger"') ? answers.push(data) : 0, gap: () => {}, state: () => {} }, { maxEvents: 10, maxAgeMs: 1_000, maxBytes: 1_000 })
    t.teardown(() => stranger.close())
    const say = (data: string) => stranger.publish({ event: 'sse:node', data, priority: EventPriority.NORMAL, target: {}, ephemeral: true })
    const command = (id: number, operation: unknown, args: unknown) => say(JSON.stringify({ kind: 'command', from: 'stranger', id, operation, args }))
    for (const text of ['', 'nonsense', 'null', '[]', '{}', '{"kind":"bye"}', '{"kind":"beat","from":"x","report":{}}', '{"kind":"answer","from":"x","to":"y","id":-1}', '{"kind":"later","from":"x"}']) await say(text)
    await say(JSON.stringify({ kind: 'answer', from: 'x', to: a.app.sse.nodeId, id: 1, value: 'surprise' }))
    await command(1, 'constructor', [])
    await command(2, 'closeConnection', [client.status, null])
    await command(3, 'disconnectUser', ['ada'])
    await command(4, 'closeConnection', ['nobody', 'Not A Reason'])
    await until(() => answers.length === 8)
    t.same(answers.map(answer => JSON.parse(answer)).map(({ id, value, error }) => `${id} ${error?.code ?? value}`).sort(), [1, 1, 2, 2, 3, 3].map(id => `${id} SSE_ERR_COMMAND_FAILED`).concat('4 null', '4 null'), 'what a node has not done is not answered as done')
    await b.app.sse.broadcastEvent({ event: 'end', data: '' })
    await client.waitFor('end')
    t.same(client.events.map(({ event }) => event), ['end'])
    t.equal(a.app.sse.clusterStats().nodes.length, 2)
    await t.rejects(a.app.sse.broadcastEvent({ event: 'sse:node', data: '{}' }), { code: 'SSE_ERR_INVALID_EVENT_NAME' })
  })
})

t.test('who comes and who leaves', { skip: withoutRedis }, async t => {
  const presenceEvents = { topics: ['room:*'], lingerMs: 50 }
  const told = ({ client }: Joined) => client.events.filter(({ event }) => /^sse:(?:join|leave)$/.test(event)).map(({ event, data }) => `${event.slice(4)} ${JSON.parse(data!).userId}`)
  const hears = (joined: Joined, ...events: string[]) => until(() => told(joined).length >= events.length, undefined, `${events} told, not ${told(joined)}`).then(() => t.same(told(joined), events))

  t.test('the first and the last stream of a user count, wherever they are', async t => {
    const [a, b] = await nodes(t, 2, { presenceEvents }) as [Service, Service]
    const watchers = [await a.join('watcher', ['**']), await b.join('watcher', ['room:1'])]
    for (const watcher of watchers) await hears(watcher, 'join watcher')
    const ada = [await a.join('ada', ['room:1']), await b.join('ada', ['room:1'])]
    await a.join(null, ['room:1'])
    await b.join('grace', ['other:1'])
    await b.app.sse.addSubscription(ada[0]!.connection.clientId, 'room:2')
    await hears(watchers[0]!, 'join watcher', 'join ada', 'join ada')
    t.same(watchers[0]!.client.json('sse:join').map(({ subscriptionId }) => subscriptionId), ['room:1', 'room:1', 'room:2'])
    ada[0]!.client.close()
    await hears(watchers[0]!, 'join watcher', 'join ada', 'join ada', 'leave ada')
    t.same(watchers[0]!.client.json('sse:leave'), [{ subscriptionId: 'room:2', userId: 'ada' }], 'there is another stream in room:1')
    ada[1]!.client.close()
    await hears(watchers[0]!, 'join watcher', 'join ada', 'join ada', 'leave ada', 'leave ada')
    await hears(watchers[1]!, 'join watcher', 'join ada', 'leave ada')
  })

  t.test('who comes back in time has not left, also on another node', async t => {
    const [a, b] = await nodes(t, 2, { presenceEvents: { ...presenceEvents, lingerMs: 60_000 } }) as [Service, Service]
    const watcher = await b.join('watcher', ['room:1'])
    await hears(watcher, 'join watcher')
    const ada = await a.join('ada', ['room:1'])
    await hears(watcher, 'join watcher', 'join ada')
    ada.client.close()
    await until(() => a.app.sse.connectionCount === 0)
    await b.join('ada', ['room:1'])
    await a.join('grace', ['room:1'])
    await hears(watcher, 'join watcher', 'join ada', 'join grace')
  })

  t.test('users of a node that dies leave, and are back with it; a node that comes knows who is there', { timeout: 240_000 }, async t => {
    const [a] = await nodes(t, 1, { presenceEvents }) as [Service]
    const keyPrefix = `cluster-${process.pid}-${prefixes}`
    const dying = await startNode(t, server!.url, keyPrefix, 'dying')
    const client = await SSEClient.open(`${dying.url}/sse?user=ada`)
    t.teardown(() => client.close())
    await client.waitFor('sse:join')
    await until(() => a.app.sse.clusterStats().connections === 1)
    const late = await node(t, 'late', { keyPrefix, presenceEvents })
    await until(() => late.app.sse.clusterStats().nodes.length === 3)
    const watcher = await late.join('watcher', ['room:1'])
    await hears(watcher, 'join watcher')
    dying.process.kill('SIGSTOP')
    await hears(watcher, 'join watcher', 'leave ada')
    // One that came meanwhile does not know that node; to both its users have come.
    const later = await node(t, 'later', { keyPrefix, presenceEvents })
    await until(() => later.app.sse.clusterStats().nodes.length === 3)
    const other = await later.join('other', ['room:1'])
    await hears(watcher, 'join watcher', 'leave ada', 'join other')
    const listenedUntil = Date.now() + 1_500
    await until(() => Date.now() > listenedUntil)
    dying.process.kill('SIGCONT')
    await hears(watcher, 'join watcher', 'leave ada', 'join other', 'join ada')
    await hears(other, 'join other', 'join ada')
    dying.process.kill('SIGKILL')
    await hears(other, 'join other', 'join ada', 'leave ada')
    await hears(watcher, 'join watcher', 'leave ada', 'join other', 'join ada', 'leave ada')
  })

  t.test('what happened while Redis was away is told when it is back', async t => {
    const redis = await RedisServer.start()
    t.teardown(() => redis.stop())
    const [a, b] = await nodes(t, 2, { redis, presenceEvents }) as [Service, Service]
    const watcher = await b.join('watcher', ['room:1'])
    const ada = await a.join('ada', ['room:1'])
    await hears(watcher, 'join watcher', 'join ada')
    await redis.kill()
    await until(() => [a, b].every(({ app }) => app.sse.health().status === 'degraded'))
    ada.client.close()
    await a.join('grace', ['room:1'])
    await redis.run()
    await hears(watcher, 'join watcher', 'join ada', 'join grace', 'leave ada')
  })

  t.test('what is lost between nodes is found by the next heartbeat, and many come at once', async t => {
    const [a] = await nodes(t, 1, { presenceEvents }) as [Service]
    const watcher = await a.join('watcher', ['room:*', 'room:1'])
    await hears(watcher, 'join watcher')
    const stranger = redisStreamsBroker({ client: new Redis(server!.url, { lazyConnect: true }), keyPrefix: `cluster-${process.pid}-${prefixes}` })
    let greetings = 0
    const say = (message: object) => stranger.publish({ event: 'sse:node', data: JSON.stringify({ from: 'x', ...message }), priority: EventPriority.NORMAL, target: {}, ephemeral: true })
    await stranger.open({ deliver: ({ data }) => data.includes('"hello"') && !data.includes('"from":"x"') ? ++greetings : 0, gap: () => {}, state: () => {} }, { maxEvents: 10, maxAgeMs: 1_000, maxBytes: 1_000 })
    t.teardown(() => stranger.close())
    const users = Array.from({ length: 1_200 }, (_, i) => `user-${i}`)
    const report = { nodeId: 'x', name: 'x', startedAt: 0, connections: 0, users: 0, subscriptions: 0, status: 'up', everyMs: 60_000, present: users.length + 1 }
    await say({ kind: 'present', first: true, more: false, entries: [] })
    await say({ kind: 'presence', changes: users.map(userId => ['room:1', userId, true]) })
    await hears(watcher, 'join watcher', ...users.map(userId => `join ${userId}`))
    // It says that it has one more than it told: it is asked to tell all, which it does in parts.
    await until(async () => {
      await say({ kind: 'beat', report })
      return greetings > 0
    })
    await say({ kind: 'present', first: true, more: true, entries: users.slice(0, 600).map(userId => ['room:1', userId]) })
    await say({ kind: 'present', first: false, more: false, entries: [...users.slice(600, 1_199), 'one-more'].map(userId => ['room:1', userId]) })
    await hears(watcher, 'join watcher', ...users.map(userId => `join ${userId}`), 'join one-more', 'leave user-1199')
  })
})

t.test('while Redis is away', { skip: withoutRedis }, async t => {
  const redis = await RedisServer.start()
  t.teardown(() => redis.stop())
  const [a, b] = await nodes(t, 2, { redis }) as [Service, Service]
  const { sse } = a.app
  const here = await a.join('ada')
  const there = await b.join('ada')
  const opened = sse.health()
  t.match(opened, { status: 'up', since: Number })

  await redis.kill()
  await until(() => sse.health().status === 'degraded')
  t.match(sse.health(), { reason: String, since: Number })
  t.ok(sse.health().since >= opened.since)
  await t.rejects(sse.closeConnection(there.connection.clientId), { code: 'SSE_ERR_BROKER_UNAVAILABLE', statusCode: 503 })
  await t.rejects(sse.addSubscription(there.connection.clientId, 'chat:1'), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
  await sse.addSubscription(here.connection.clientId, 'chat:1')
  await t.rejects(sse.disconnectUser('ada'), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
  await here.client.waitForEnd()
  t.equal(there.connection.isConnected, true)
  t.equal((await b.app.sse.broadcastEvent({ event: 'said', data: 'local' }, { local: true })).delivered, 1)
  await there.client.waitFor('said')
  // Longer than a node may be silent: nobody can be heard, so nobody is missed.
  const silentUntil = Date.now() + 1_000
  await until(() => Date.now() > silentUntil)
  t.equal(sse.clusterStats().nodes.length, 2)
  t.equal(sse.clusterStats().nodes[0]!.status, 'degraded')

  await redis.run()
  await until(() => [a, b].every(({ app }) => app.sse.health().status === 'up'))
  t.equal(await sse.closeConnection(there.connection.clientId, 'kicked'), true)
  await there.client.waitFor('sse:close')
  await until(() => sse.clusterStats().nodes.every(({ status }) => status === 'up'))
})

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

t.test('a list of exactly as many as a message takes is whole in one', async t => {
  const said: Saying[] = []
  const list = new PresenceList({ topics: ['room:*'], lingerMs: 50 }, 'here', { say: saying => said.push(saying), announce: () => {} })
  for (let i = 0; i < 500; i++) list.held({ userId: `user-${i}` }, 'room:1')
  list.tellAll()
  const lists = said.filter(({ kind }) => kind === 'present') as MessageOf<'present'>[]
  t.strictSame(lists.map(({ first, more, entries }) => [first, more, entries.length]), [[true, false, 500]])
  list.held({ userId: 'one more' }, 'room:1')
  said.length = 0
  list.tellAll()
  t.strictSame((said.filter(({ kind }) => kind === 'present') as MessageOf<'present'>[]).map(({ first, more, entries }) => [first, more, entries.length]), [[true, true, 500], [false, false, 1]])
  list.close()
})

t.test('a node that says something and never reports is gone in the end, one that reports is not', async t => {
  const { setTimeout } = globalThis
  t.intercept(globalThis, 'setTimeout', { value: (run: () => void) => setTimeout(run, 0), configurable: true })
  const gone: string[] = []
  let beats = 0
  const membership = new Membership(1_000, {
    beat: () => {
      beats++
      membership.heard({ ...REPORT, nodeId: 'reports', status: 'up' })
    },
    gone: nodeId => { gone.push(`${nodeId} after ${beats}`) }
  })
  for (const nodeId of ['silent', 'reports', 'says bye']) membership.noticed(nodeId)
  membership.remove('says bye')
  t.strictSame(gone, ['says bye after 0'])
  membership.start()
  await until(() => gone.length > 1)
  const silentSince = beats
  await until(() => beats > silentSince + 300)
  membership.stop()
  t.equal(gone.length, 2)
  t.match(gone[1], /^silent after (?:1[7-9]\d|2[0-5]\d)$/, 'three and a half of the longest intervals')
})

/** A log in memory that other nodes could share, and what is said on it. */
class TestLog implements Broker {
  readonly shared = true
  readonly #log = memoryBroker()
  epoch = 'one'
  sink: Sink | null = null
  readonly said: OutgoingMessage[] = []
  /** While set, messages with this text are not taken. */
  refuse: string | null = null
  refused = 0
  get position (): number { return this.#log.position }
  async open (sink: Sink, history: History): Promise<void> {
    this.sink = sink
    await this.#log.open(sink, history)
  }

  publish (message: OutgoingMessage): Published | Promise<Published> {
    if (message.event === 'sse:node') this.said.push({ ...message })
    if (this.refuse !== null && message.data.includes(this.refuse)) {
      this.refused++
      throw new Error('The other nodes are not reached')
    }
    return this.#log.publish(message)
  }

  read (request: ReadRequest): Promise<Page> { return this.#log.read({ ...request, epoch: this.#log.epoch }) }
  claim (key: string, ttlMs: number): Promise<boolean> { return this.#log.claim(key, ttlMs) }
  close (): Promise<void> { return this.#log.close() }

  /** Another node says something. */
  async hear (message: object): Promise<void> {
    await this.#log.publish({ event: 'sse:node', data: JSON.stringify({ from: 'x', ...message }), priority: EventPriority.NORMAL, target: {}, ephemeral: true })
  }

  sayings (kind: string): any[] {
    return this.said.map(({ data }) => JSON.parse(data)).filter(message => message.kind === kind)
  }
}

const REPORT = { nodeId: 'x', name: 'x', startedAt: 0, connections: 0, users: 0, subscriptions: 0, status: 'up', everyMs: 60_000, present: null }

t.test('a node that may have missed a command ends the streams of all users, who come back with the rights of today', async t => {
  const log = new TestLog()
  let gate: (() => void) | null = null
  const { join, app, open } = await serve(t, { broker: log, authorizeSubscription: ({ subscriptionId }) => subscriptionId === 'slow' ? new Promise(resolve => { gate = () => resolve(true) }) : true })
  const ada = await join('ada', ['room:1'])
  const nobody = await join(null, ['room:1'])
  const uncertain = async (client: SSEClient) => {
    await client.waitForEnd()
    t.same(client.json('sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
    t.ok(client.blocks.findLast(({ retry }) => retry !== null), 'spread over a time')
  }
  log.sink!.gap('trimmed', undefined, true)
  await ada.client.waitFor('sse:gap')
  t.equal(ada.connection.closeReason, null, 'nothing was missed but events')
  const entering = join('grace', ['slow'])
  const refused = t.rejects(entering, { message: /SSE_ERR_BROKER_UNAVAILABLE/ }, 'not a 401, which is final')
  const letIn = await until(() => gate)
  log.sink!.gap('trimmed')
  await uncertain(ada.client)
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
  await uncertain(back.client)
  const third = await join('ada')
  await beat({ epoch: 'one', command: position + 1, into: 'two' })
  t.ok(third.connection.isConnected, 'once')

  // A node that comes from another epoch has read one that this node has skipped, or the other way round.
  log.epoch = 'three'
  log.sink!.gap('epoch')
  await beat({ epoch: 'one', command: 0, into: 'three' })
  await uncertain(third.client)
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
  await uncertain(fourth.client)
  t.equal((await open('/sse?join=0')).status, 200)
})

t.test('a command is done once however often it is asked, and one that the log has lost is said again', async t => {
  const log = new TestLog()
  const { join, app } = await serve(t, { broker: log, cluster: { answerTimeoutMs: 60_000 } })
  const { connection, client } = await join('ada', ['a', 'b'])
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
  await client.waitForEnd()
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
  await ada.client.waitFor('message')
  const publishing = sse.broadcastEvent({ data: 'secret' })
  await log.hear({ kind: 'beat', report: { ...REPORT, left: { epoch: 'one', command: 99, into: 'two' } } })
  await publishing
  await ada.client.waitForEnd()
  await nobody.client.waitFor('message', 2)
  t.strictSame(ada.client.applicationEvents.map(({ data }) => data), ['before'])
  t.same(ada.client.json('sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
  const back = await join('ada', [], { cursor: ada.client.lastEventId })
  await back.client.waitFor('message')
  t.strictSame(back.client.applicationEvents.map(({ data }) => data), ['secret'])
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

t.test('users of a node that is heard late are announced: clients that are here have asked who is present without it', async t => {
  const log = new TestLog()
  const { join } = await serve(t, { broker: log, presenceEvents: { topics: ['room:*'], lingerMs: 50 }, cluster: { heartbeatIntervalMs: 60_000 } })
  const list = (from: string) => log.hear({ from, kind: 'present', first: true, more: false, entries: [['room:1', `user of ${from}`]] })
  await list('x')
  const { client } = await join('watcher', ['room:1'])
  await client.waitFor('sse:join')
  const settledAt = performance.now() + 1_000
  await until(() => performance.now() > settledAt)
  await list('y')
  await client.waitFor('sse:join', 2)
  t.strictSame(client.json('sse:join').map(({ userId }) => userId), ['watcher', 'user of y'], 'users of x were there before this node')
})

t.test('a change of presence that could not be sent is sent with the next heartbeat, also if nobody misses it', async t => {
  const log = new TestLog()
  const { join } = await serve(t, { broker: log, presenceEvents: { topics: ['room:*'], lingerMs: 50 }, cluster: { heartbeatIntervalMs: 100 } })
  const watcher = await join('watcher', ['room:1'])
  await watcher.client.waitFor('sse:join')
  const ada = await join('ada', ['room:1'])
  await watcher.client.waitFor('sse:join', 2)
  // One user comes and another leaves: the node holds as many entries as before.
  log.refuse = '"presence"'
  ada.client.close()
  await join('grace', ['room:1'])
  await watcher.client.waitFor('sse:leave')
  t.ok(log.refused > 0)
  t.same(watcher.client.json('sse:leave').map(({ userId }) => userId), ['ada'])
  t.same(watcher.client.json('sse:join').map(({ userId }) => userId), ['watcher', 'ada', 'grace'])
})

t.test('after a gap a node says all it has, and asks the others for what they have', async t => {
  const log = new TestLog()
  const { join } = await serve(t, { broker: log, presenceEvents: { topics: ['room:*'], lingerMs: 50 } })
  await join('ada', ['room:1'])
  await until(() => log.sayings('presence').length === 1)
  const before = log.sayings('hello').length
  log.sink!.gap('epoch')
  await until(() => log.sayings('hello').length === before + 1)
  await until(() => log.sayings('present').at(-1).entries.length === 1)
  t.match(log.sayings('present').at(-1), { first: true, more: false, entries: [['room:1', 'ada']] })
})
