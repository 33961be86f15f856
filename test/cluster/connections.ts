import t from 'tap'
import type { ConnectionQuery, ListedConnection, SSEManager } from '../../lib/index.js'
import { block, serve, type Service } from '../helpers/app.js'
import { node, nodes, prefixes, REPORT, startClusterNode, TestLog } from '../helpers/cluster.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

/** All pages of a query. */
async function all (sse: SSEManager, query: ConnectionQuery): Promise<ListedConnection[]> {
  const found: ListedConnection[] = []
  let after: string | null = null
  do {
    const page = await sse.listConnections({ ...query, after })
    found.push(...page.connections)
    after = page.after
  } while (after !== null)
  return found
}

const users = (connections: readonly ListedConnection[]) => connections.map(({ userId }) => userId)

t.test('what is known of a connection', async t => {
  const before = Date.now()
  const service = await serve(t)
  const { app: { sse } } = service
  const topics = Array.from({ length: 40 }, (_, i) => `topic:${i}`)
  const { connection, stream } = await service.join('ada', topics, { headers: { 'user-agent': `<script>${'x'.repeat(400)}` } })
  connection.sendEvent({ event: 'x', data: 1 })
  await stream.next('x')
  const { connections: [listed], ...page } = await sse.listConnections()
  t.strictSame(page, { after: null, total: 1, complete: true, missing: [] })
  t.strictSame({ ...listed }, {
    nodeId: sse.nodeId,
    clientId: connection.clientId,
    userId: 'ada',
    subscriptions: topics.slice(0, 32),
    subscriptionCount: 40,
    managed: true,
    connectedAt: connection.clientInfo.connectedAt,
    address: '127.0.0.1',
    userAgent: `<script>${'x'.repeat(248)}`,
    resumed: false,
    lagging: false,
    queuedBytes: 0,
    sentEvents: 1,
    droppedEvents: 0
  })
  t.ok(listed!.connectedAt >= before)
  stream.close()
  await until(() => sse.connectionCount === 0)
  t.match(await sse.listConnections({ clientId: connection.clientId }), { connections: [], total: 0 })
})

t.test('filters, of which a connection must match all', async t => {
  const service = await serve(t, { outboxBytes: 1024 }, { trustProxy: true })
  const { app: { sse } } = service
  const from = (address: string) => ({ headers: { 'x-forwarded-for': address } })
  const ada = await service.join('ada', ['orders:7'], from('203.0.113.7'))
  await service.join('ada', ['orders:*'], from('2001:db8::1'))
  await service.join('grace', ['orders:**', 'news'], from('2001:db8::2'))
  await service.join(null, ['news'], from('::ffff:203.0.113.7'))
  const listed = async (query: ConnectionQuery) => users((await sse.listConnections(query)).connections).sort()

  t.same(await listed({ clientId: ada.connection.clientId }), ['ada'])
  t.same(await listed({ clientId: ada.connection.clientId, userId: 'grace' }), [])
  t.same(await listed({ userId: 'ada' }), ['ada', 'ada'])
  t.same(await listed({ userId: null }), [null])
  t.same(await listed({ subscription: 'orders:7' }), ['ada', 'ada', 'grace'])
  t.same(await listed({ subscription: 'orders:*' }), ['ada'])
  t.same(await listed({ subscription: 'news', userId: 'grace' }), ['grace'])
  t.same(await listed({ subscription: 'orders:*', userId: 'grace' }), [])
  t.same(await listed({ subscription: 'orders:7', userId: 'ada', address: '2001:db8::1' }), ['ada'])
  t.same(await listed({ address: '2001:db8:0:0::/64' }), ['ada', 'grace'])
  t.same(await listed({ address: '203.0.113.7' }), ['ada', null])
  t.same(await listed({ lagging: true }), [])
  await block(ada)
  for (let i = 0; i < 3; i++) await sse.broadcastEvent({ event: 'big', data: 'x'.repeat(2_000) }, { userIds: ['ada'] })
  await until(() => ada.connection.stats().lagging)
  const { connections: [slow] } = await sse.listConnections({ lagging: true })
  t.match(slow, { clientId: ada.connection.clientId, lagging: true })
  t.ok(slow!.queuedBytes > 0)
  t.equal((await listed({ lagging: false })).length, 3)
})

t.test('a wrong query is refused: a filter that is missing by mistake would list everyone', async t => {
  const { app: { sse } } = await serve(t)
  const wrong: [query: any, code: string, message: RegExp][] = [
    [{ userId: undefined }, 'SSE_ERR_INVALID_OPTION', /"userId" of listConnections\(\) is undefined/],
    [{ clientId: undefined }, 'SSE_ERR_INVALID_OPTION', /"clientId"/],
    [{ subscription: undefined }, 'SSE_ERR_INVALID_OPTION', /"subscription"/],
    [{ address: undefined }, 'SSE_ERR_INVALID_OPTION', /"address"/],
    [{ user: 'ada' }, 'SSE_ERR_INVALID_OPTION', /did you mean "userId"/],
    [{ limit: 0 }, 'SSE_ERR_INVALID_OPTION', /an integer from 1 to 1000, got 0/],
    [{ limit: 1_001 }, 'SSE_ERR_INVALID_OPTION', /"limit"/],
    [{ limit: '10' }, 'SSE_ERR_INVALID_OPTION', /"limit"/],
    [{ after: 'x' }, 'SSE_ERR_INVALID_OPTION', /"after" of listConnections\(\) must be the `after` of an earlier page/],
    [{ lagging: 1 }, 'SSE_ERR_INVALID_OPTION', /"lagging"/],
    [{ subscription: 'a b' }, 'SSE_ERR_INVALID_SUBSCRIPTION', /white space/],
    [null, 'SSE_ERR_INVALID_OPTION', /must be an object/]
  ]
  for (const [query, code, message] of wrong) await t.rejects(sse.listConnections(query), { code, message }, JSON.stringify(query))
  await sse.close()
  await t.rejects(sse.listConnections(), { code: 'SSE_ERR_CLOSED' })
})

t.test('pages: each connection once, newest first; those that come meanwhile are on none, those that end are left out', async t => {
  const service = await serve(t, {}, {}, app => { app.get('/source', { sse: true }, (request, reply) => reply.sse(async function * ({ signal }) { await new Promise(resolve => signal.addEventListener('abort', resolve)) })) })
  const { app: { sse } } = service
  const joined = []
  for (let i = 0; i < 7; i++) joined.push(await service.join(`user ${i}`))
  await service.open('/source?user=reader')
  await until(() => sse.connectionCount === 8)
  const first = await sse.listConnections({ limit: 3 })
  t.equal(first.total, 8)
  t.match(first.connections.find(({ userId }) => userId === 'reader') ?? { managed: false }, { managed: false })
  const ending = joined.find(({ connection }) => !first.connections.some(({ clientId }) => clientId === connection.clientId))!
  ending.connection.close()
  await ending.stream.ended
  await until(() => sse.connectionCount === 7)
  await until(() => Date.now() > first.connections[0]!.connectedAt)
  await service.join('late')
  const rest = await all(sse, { limit: 3 }).then(found => found.filter(({ userId }) => userId !== 'late'))
  const second = await sse.listConnections({ limit: 3, after: first.after })
  const third = await sse.listConnections({ limit: 3, after: second.after })
  const paged = [...first.connections, ...second.connections, ...third.connections]
  t.equal(third.after, null)
  t.same(users(paged).sort(), [...joined.map(({ connection }) => connection.userId).filter(userId => userId !== ending.connection.userId), 'reader'].sort())
  t.same(users(rest), users(paged), 'the order is the same')
  t.same(paged.map(({ connectedAt }) => connectedAt), paged.map(({ connectedAt }) => connectedAt).sort((a, b) => b - a))
})

t.test('an answer of a node is bounded in bytes: a page is shorter than its limit', async t => {
  const service = await serve(t)
  const long = Array.from({ length: 32 }, (_, i) => `${i}:${'x'.repeat(500)}`)
  for (let i = 0; i < 20; i++) await service.join(`user ${i}`, long)
  const { app: { sse } } = service
  const page = await sse.listConnections()
  t.ok(page.connections.length < 20 && page.connections.length > 10, String(page.connections.length))
  t.ok(JSON.stringify(page).length <= 257 * 1024)
  t.equal(new Set(users(await all(sse, {}))).size, 20)
})

t.test('what is listed is counted as it is sent, and one connection is listed however large it is', async t => {
  const service = await serve(t)
  const { app: { sse } } = service
  // Two bytes a character in UTF-8: with half as many characters as bytes, the second does not fit.
  const { registry } = sse.node
  const { connection } = await service.join('ada')
  for (const [i, size] of [70_000, 70_000, 300_000].entries()) {
    registry.add(Object.assign(Object.create(connection), { clientId: `large-${i}`, userId: `${i}${'é'.repeat(size)}`, clientInfo: { ...connection.clientInfo, connectedAt: 10 - i }, held: new Set(), index: -1, mark: 0 }))
  }
  const ids = (page: { connections: readonly ListedConnection[] }) => page.connections.map(({ clientId }) => clientId)
  const first = await sse.listConnections()
  t.strictSame(ids(first), [connection.clientId, 'large-0'])
  t.equal(first.total, 4)
  const second = await sse.listConnections({ after: first.after })
  t.strictSame(ids(second), ['large-1'])
  const third = await sse.listConnections({ after: second.after })
  t.strictSame([ids(third), third.after], [['large-2'], null])
})

t.test('a long scan lets other work run, and leaves out what has ended meanwhile', async t => {
  const service = await serve(t)
  const { app: { sse } } = service
  const { connection } = await service.join('ada')
  // The registry of a large node: members that are looked at, and are not those that are wanted.
  const { registry } = sse.node
  const members = Array.from({ length: 3_000 }, (_, i) => Object.assign(Object.create(connection), { clientId: `member ${i}`, userId: 'x', held: new Set(), index: -1, mark: 0 }))
  for (const member of members) registry.add(member)
  let turned = 0
  const listing = sse.listConnections({ userId: null })
  const count = (): void => {
    turned++
    if (turned < 10) setImmediate(count)
  }
  count()
  await listing
  t.ok(turned >= 3, `${turned} turns`)
  const gone = sse.listConnections({ userId: 'x', limit: 1_000 })
  for (const member of members) registry.remove(member)
  t.ok((await gone).total < 3_000)
})

t.test('a topic that is left and held again during the scan is reported once', async t => {
  const { app, join } = await serve(t, { maxSubscriptionsPerConnection: 3_000 })
  const holders = [await join('ada', ['first', ...Array.from({ length: 2_500 }, (_, i) => `topic:${i}`)]), await join('grace', ['first'])]
  const details = app.sse.node.inspection.read()
  // After the first portion.
  await new Promise(resolve => setImmediate(resolve))
  for (const { connection } of holders) await connection.removeSubscription('first')
  for (const { connection } of holders) await connection.addSubscription('first')
  const { topics } = await details
  t.match(topics[0], { subscription: 'first', connections: 2 })
  t.equal(topics.filter(({ subscription }) => subscription === 'first').length, 1)
})

t.test('an answer of another version, an error and a node that is silent: the page says what is missing', async t => {
  const log = new TestLog()
  const service = await serve(t, { broker: log, cluster: { answerTimeoutMs: 500 } })
  const { sse } = service.app
  await service.join('ada')
  for (const nodeId of ['b', 'c', 'd', 'e']) await log.hear({ from: nodeId, kind: 'beat', report: { ...REPORT, nodeId } })
  const listing = sse.listConnections({ limit: 2 })
  const { id, args } = await until(() => log.sayings('command').at(-1))
  t.same(args, [{ limit: 2, after: null }])
  const answer = (from: string, more: object) => log.hear({ from, kind: 'answer', to: sse.nodeId, id, ...more })
  const listed = { clientId: 'one', nodeId: 'b', userId: null, subscriptions: [], subscriptionCount: 0, managed: true, connectedAt: 5, address: '', userAgent: '', resumed: null, lagging: false, queuedBytes: 0, sentEvents: 0, droppedEvents: 0 }
  await answer('b', { value: { connections: [listed, { ...listed, clientId: 'two' }, { ...listed, clientId: 'zwei' }], total: 9, until: '5:zwei' } })
  for (let i = 0; i < 2; i++) await answer('c', { error: { code: 'SSE_ERR_COMMAND_FAILED', message: '' } })
  await answer('d', { value: { connections: 'all' } })
  const page = await listing
  t.same({ ...page, missing: [...page.missing].sort(), connections: page.connections.map(({ clientId }) => clientId) }, {
    connections: [page.connections[0]!.clientId, 'one'], after: '5:one', total: 10, complete: false, missing: ['c', 'd', 'e']
  })
  t.equal(page.connections[0]!.userId, 'ada')

  const asking = Array.from({ length: 1_000 }, () => sse.listConnections())
  await t.rejects(sse.listConnections(), { code: 'SSE_ERR_TOO_MANY_COMMANDS' }, 'not an answer of this node alone')
  await Promise.all(asking)
  log.refuse = '"kind":"command"'
  t.match(await sse.listConnections(), { connections: [{ userId: 'ada' }], total: 1, complete: false, missing: ['b', 'c', 'd', 'e'] }, 'this node at least')
})

t.test('connections of several nodes', { skip: withoutRedis }, async t => {
  t.test('pages are in one order, whichever node is asked', async t => {
    const services = await nodes(t, 2)
    const names: string[] = []
    for (let i = 0; i < 12; i++) {
      names.push(`user ${i}`)
      await services[i % 3 === 0 ? 0 : 1]!.join(`user ${i}`, [i % 2 === 0 ? 'even' : 'odd'])
    }
    const [a, b] = services.map(({ app }) => app.sse) as [SSEManager, SSEManager]
    const [one, other] = [await all(a, { limit: 5 }), await all(b, { limit: 4 })]
    t.same(users(one), users(other))
    t.same(users(one).sort(), names.sort())
    t.same(new Set(one.map(({ nodeId }) => nodeId)), new Set([a.nodeId, b.nodeId]))
    t.match(await a.listConnections({ subscription: 'even', limit: 2 }), { total: 6, complete: true, missing: [] })
    const [{ clientId }] = (await a.listConnections({ userId: 'user 1' })).connections as [ListedConnection]
    t.equal(await a.closeConnection(clientId, 'kicked'), true, 'the id is that of a connection on the other node')
  })

  t.test('a frozen node is named; when it answers again the list is complete', { timeout: 120_000 }, async t => {
    prefixes.last++
    const a: Service = await node(t, 'a', { cluster: { heartbeatIntervalMs: 10_000, answerTimeoutMs: 300 } })
    const { sse } = a.app
    const frozen = await startClusterNode(t, `cluster-${process.pid}-${prefixes.last}`, 'frozen')
    await a.join('ada')
    await until(() => sse.clusterStats().nodes.length === 2)
    const [, { nodeId }] = sse.clusterStats().nodes as unknown as [unknown, { nodeId: string }]
    frozen.freeze()
    t.match(await sse.listConnections(), { connections: [{ userId: 'ada' }], total: 1, complete: false, missing: [nodeId] })
    frozen.thaw()
    await until(async () => (await sse.listConnections()).complete)
  })

  t.test('while Redis is away, this node lists its own', { timeout: 120_000 }, async t => {
    const redis = await RedisServer.start()
    t.teardown(() => redis.stop())
    const [a, b] = await nodes(t, 2, { redis }) as [Service, Service]
    await a.join('ada')
    await b.join('grace')
    await redis.stop()
    await until(() => a.app.sse.health().status === 'degraded')
    t.match(await a.app.sse.listConnections(), { connections: [{ userId: 'ada' }], total: 1, complete: false, missing: [b.app.sse.nodeId] })
  })
})
