import { IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import t from 'tap'
import { SSEManager, type ManagerOptions } from '../../lib/index.js'
import { until } from '../helpers/wait.js'

// The checks of a new stream, in their order, and what is left of a request that one of them refuses.

const SILENT = { error: () => {}, warn: () => {}, info: () => {}, debug: () => {} }

/** A node without a network; requests stay open until the test closes them. */
function start (t: { teardown (run: () => unknown): void }, options: ManagerOptions = {}) {
  const calls: string[] = []
  const sse = new SSEManager({
    authHandler: ({ headers }) => {
      calls.push('authHandler')
      if (headers['x-user'] === 'broken') throw new Error('no database')
      return headers['x-user'] as string ?? null
    },
    authorizeSubscription: ({ subscriptionId }) => {
      calls.push(`authorizeSubscription ${subscriptionId}`)
      return subscriptionId !== 'secret'
    },
    drainMs: 100,
    ...options
  }, SILENT)
  t.teardown(() => sse.close())
  const exchange = (user: string | null = null, headers: object = {}, method = 'GET') => {
    const request = Object.assign(new IncomingMessage(new Socket()), { method, url: '/sse', httpVersionMajor: 1, httpVersionMinor: 1 })
    Object.assign(request.headers, { ...(user !== null && { 'x-user': user }), ...headers })
    return { request, response: new ServerResponse(request) }
  }
  return {
    sse,
    exchange,
    /** What was asked of the application since the last time. */
    asked: () => calls.splice(0),
    ask: async (user: string | null = null, options: object = {}, headers: object = {}, method = 'GET') => {
      const both = exchange(user, headers, method)
      return { ...both, connection: await sse.createConnection({ ...both, ...options }) }
    }
  }
}

const LIMITS: ManagerOptions = { maxConnections: 1, maxConnectionsPerUser: 1, maxConnectionsPerIp: 1 }

t.test('a request that is refused is not counted from then on, though its response is still open', async t => {
  const { sse, ask } = start(t, { ...LIMITS, requireAuthentication: true })
  const refusals: [code: string, user: string | null, options?: object, headers?: object][] = [
    ['SSE_ERR_NOT_ACCEPTABLE', 'ada', {}, { accept: 'text/html' }],
    ['SSE_ERR_UNAUTHENTICATED', null],
    ['SSE_ERR_UNAUTHENTICATED', 'ada', { user: null }],
    ['SSE_ERR_INVALID_USER', 'ada', { user: { userId: '' } }],
    ['SSE_ERR_AUTHENTICATION_FAILED', 'broken'],
    ['SSE_ERR_INVALID_SUBSCRIPTION', 'ada', { subscriptions: ['a b'] }],
    ['SSE_ERR_INVALID_SUBSCRIPTION', 'ada', { subscriptions: 'news' }],
    ['SSE_ERR_SUBSCRIPTION_FORBIDDEN', 'ada', { subscriptions: ['secret'] }],
    ['SSE_ERR_INVALID_RETRY', 'ada', { retryMs: 99 }],
    ['SSE_ERR_INVALID_RETRY', 'ada', { retryMs: 3_600_001 }],
    ['SSE_ERR_ORIGIN_FORBIDDEN', 'ada', {}, { 'sec-fetch-site': 'cross-site' }]
  ]
  const counted: Record<string, number> = {}
  for (const [code, user, options, headers] of refusals) {
    await t.rejects(ask(user, options, headers), { code }, `${code} ${JSON.stringify(options)}`)
    counted[code] = (counted[code] ?? 0) + 1
    const { response } = await ask('ada', { retryMs: counted[code] === 1 ? 100 : 3_600_000 })
    await t.rejects(ask('grace'), { code: 'SSE_ERR_TOO_MANY_CONNECTIONS' })
    counted['SSE_ERR_TOO_MANY_CONNECTIONS'] = (counted['SSE_ERR_TOO_MANY_CONNECTIONS'] ?? 0) + 1
    response.emit('close')
    t.equal(sse.connectionCount, 0)
  }
  t.strictSame({ ...sse.stats().refused }, counted, 'each request once')
})

t.test('what refuses a request in any case comes before the application is asked', async t => {
  const { sse, ask, asked, exchange } = start(t, { maxConnectionsPerUser: 1 })
  await t.rejects(ask('ada', { subscriptions: ['a'] }, { accept: 'text/html' }), { code: 'SSE_ERR_NOT_ACCEPTABLE' })
  await t.rejects(ask('ada', { subscriptions: ['a'] }, { origin: 'https://evil.example', host: 'own.example' }), { code: 'SSE_ERR_ORIGIN_FORBIDDEN' })
  t.strictSame(asked(), [])
  const { response } = await ask('ada', { subscriptions: ['a', 'b', 'a'] })
  t.strictSame(asked(), ['authHandler', 'authorizeSubscription a', 'authorizeSubscription b'])
  await t.rejects(ask('ada', { subscriptions: ['a'] }), { code: 'SSE_ERR_TOO_MANY_USER_CONNECTIONS' })
  t.strictSame(asked(), ['authHandler'])
  await t.rejects(ask('grace', { subscriptions: ['a', 'b c'] }), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
  t.strictSame(asked(), ['authHandler'])
  response.emit('close')

  const { admission } = sse.node
  const both = exchange('ada')
  const arrival = admission.arrive(both.request, both.response)
  t.equal(admission.arrive(both.request, both.response), arrival)
  admission.close()
  await t.rejects(ask('ada', { subscriptions: ['a'] }), { code: 'SSE_ERR_CLOSED' })
  await t.rejects(admission.enter(arrival, { userId: 'ada' }, { subscriptions: ['a'] }), { code: 'SSE_ERR_CLOSED' })
  t.strictSame(asked(), [])
})

t.test('a request that another call has refused meanwhile is counted again, for its user too', async t => {
  for (const limits of [{ maxConnections: 1 }, { maxConnectionsPerUser: 1 }, { maxConnectionsPerIp: 1 }]) {
    let allow: (() => void) | null = null
    const { sse, ask, exchange } = start(t, { ...limits, authorizeSubscription: ({ subscriptionId }) => subscriptionId !== 'slow' || new Promise(resolve => { allow = () => resolve(true) }) })
    const both = exchange('ada')
    const connecting = sse.createConnection({ ...both, subscriptions: ['slow'] })
    const allowed = await until(() => allow)
    await t.rejects(sse.createConnection({ ...both, subscriptions: ['a b'] }), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
    allowed()
    await connecting
    await t.rejects(ask('ada'), { code: /^SSE_ERR_TOO_MANY_/ }, JSON.stringify(limits))
    both.response.emit('close')
    t.ok((await ask('ada')).connection)
  }
})

t.test('what a connection knows of its request', async t => {
  const { sse, ask } = start(t)
  const before = Date.now()
  const { connection } = await ask('ada', { clientInfo: { device: 'watch', ip: 'x', userAgent: 'x', connectedAt: 1 } }, { 'user-agent': 'test/1' })
  const { connectedAt, ...info } = connection.clientInfo
  t.strictSame(info, { device: 'watch', ip: '', userAgent: 'test/1' })
  t.ok(connectedAt >= before)
  t.equal((await ask()).connection.clientInfo.userAgent, '')

  // Its cursor: that of the option, if there is one.
  const cursor = sse.position()
  for (const [given, expected] of [[{}, cursor], [{ lastEventId: undefined }, cursor], [{ lastEventId: null }, null], [{ lastEventId: '' }, null], [{ lastEventId: 'other.1' }, 'other.1']] as const) {
    t.equal((await ask('ada', given, { 'last-event-id': cursor })).connection.lastEventId, expected, JSON.stringify(given))
  }

  let loads = 0
  const snapshot = { load: () => { loads++; return null } }
  await ask('ada', { snapshot, subscriptions: ['a'] }, {}, 'HEAD')
  await ask('ada', { snapshot, subscriptions: ['a'] })
  await until(() => loads > 0)
  t.equal(loads, 1, 'none for HEAD')
})

t.test('subscriptions of the request and of its ticket: each once, and all count', async t => {
  const { sse, ask, exchange, asked } = start(t, { maxSubscriptionsPerConnection: 3, ticketSecret: 'x'.repeat(32) })
  const visit = (granted: string[], subscriptions?: readonly string[]) => {
    const { request, response } = exchange()
    request.url = `/sse?ticket=${sse.issueTicket({ userId: 'ada', subscriptions: granted })}`
    return sse.createConnection({ request, response, subscriptions })
  }
  await sse.open()
  t.strictSame([...(await visit(['secret', 'a'], ['a', 'b', 'b'])).subscriptions], ['secret', 'a', 'b'])
  t.strictSame(asked(), ['authorizeSubscription b'], 'what the ticket grants is not asked about')
  t.strictSame([...(await visit(['secret', 'a', 'b'])).subscriptions], ['secret', 'a', 'b'])
  await t.rejects(visit(['secret', 'a', 'b'], ['c']), { code: 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS', message: 'at most 3' })
  await t.rejects(visit(['a'], ['secret']), { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' })
  await t.rejects(ask('ada', { subscriptions: 'abc' }), { code: 'SSE_ERR_INVALID_SUBSCRIPTION', message: /type string.*must be an array/ })
  await t.rejects(ask('ada', { subscriptions: ['a', 'b', 'c', 'd'] }), { code: 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS' })
})
