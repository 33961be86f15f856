import Fastify, { type FastifyInstance } from 'fastify'
import fastifyCors from '@fastify/cors'
import fastifyHelmet from '@fastify/helmet'
import t, { type Test } from 'tap'
import adminPage, { type AdminOptions } from '../../lib/admin/index.js'
import { FILES } from '../../lib/admin/files.js'
import ssePlugin, { EventPriority, type SSEOptions } from '../../lib/index.js'
import { openStream, testClock } from '../../lib/testing/index.js'
import { listen, serve } from '../helpers/app.js'
import { nodes, REPORT, TestLog } from '../helpers/cluster.js'
import { withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

const ADMIN = { cookie: 'operator' }
const authorize: AdminOptions['authorize'] = request => request.headers.cookie === 'operator'

async function start (t: Test, options: Partial<AdminOptions> = {}, sse: SSEOptions = {}, setup?: (app: FastifyInstance) => void): Promise<FastifyInstance> {
  const app = Fastify()
  t.teardown(() => app.close())
  setup?.(app)
  await app.register(ssePlugin, { drainMs: 300, authHandler: ({ query }) => query['user'] as string ?? null, ...sse })
  app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
  await app.register(adminPage, { path: '/ops/streams', authorize, ...options })
  await app.ready()
  return app
}

const FILES_AND_QUESTIONS = ['/ops/streams', '/ops/streams/', '/ops/streams/page.js', '/ops/streams/nothing', '/ops/streams/api/overview', '/ops/streams/api/stream', '/ops/streams/api/connections', '/ops/streams/api/events']
const ACTIONS = ['/ops/streams/api/close', '/ops/streams/api/disconnect']

t.test('options: a path and who may see it are mandatory', async t => {
  const wrong: [options: object, message: RegExp][] = [
    [{ authorize }, /"path" of the admin page is missing/],
    [{ path: '/ops' }, /"authorize" of the admin page is missing/],
    [{ path: '/ops', authorize: undefined }, /"authorize" of the admin page is undefined/],
    [{ path: '/ops', authorize: true }, /"authorize" of the admin page must be a function/],
    [{ path: 'ops', authorize }, /must begin with "\/" and must not end with it/],
    [{ path: '/ops/', authorize }, /must begin with "\/" and must not end with it/],
    [{ path: '/ops', authorize, action: true }, /did you mean "actions"/],
    [{ path: '/ops', authorize, decorators: { instance: 'events' } }, /there is no fastify.events/]
  ]
  for (const [options, message] of wrong) {
    const app = Fastify()
    app.register(ssePlugin)
    app.register(adminPage as any, options)
    await t.rejects(async () => { await app.ready() }, { code: 'SSE_ERR_INVALID_OPTION', message }, JSON.stringify(options))
    await app.close()
  }
})

t.test('each route asks authorize, and only `true` admits', async t => {
  for (const [name, answer] of Object.entries({ false: false, undefined, truthy: 'yes', object: {}, 'promise of false': Promise.resolve(false) })) {
    const app = await start(t, { authorize: () => answer, actions: true })
    for (const url of FILES_AND_QUESTIONS) t.match((await app.inject({ url })).json(), { statusCode: 403, code: 'SSE_ERR_ADMIN_FORBIDDEN' }, `${name} ${url}`)
    for (const url of ACTIONS) t.equal((await app.inject({ method: 'POST', url, headers: { 'x-sse-admin': '1' }, payload: { clientId: 'x', userId: 'x' } })).statusCode, 403, `${name} ${url}`)
  }
  const own = await start(t, {
    authorize: async (request, reply) => {
      if (request.headers.cookie === undefined) return reply.redirect('/login')
      throw Object.assign(new Error('Not yours'), { statusCode: 418 })
    }
  })
  t.equal((await own.inject({ url: '/ops/streams/' })).headers.location, '/login')
  t.equal((await own.inject({ url: '/ops/streams/api/events', headers: ADMIN })).statusCode, 418)
})

t.test('pages of other origins read nothing, whatever the application allows them; links to the page work', async t => {
  const app = await start(t, { actions: true }, { allowedOrigins: '*' }, app => { app.register(fastifyCors, { origin: true, credentials: true, allowedHeaders: ['x-sse-admin', 'content-type'] }) })
  const foreign = [{ origin: 'https://evil.example' }, { origin: 'null' }, { 'sec-fetch-site': 'cross-site' }, { 'sec-fetch-site': 'same-site', origin: 'http://localhost:80' }]
  for (const headers of foreign) {
    for (const url of FILES_AND_QUESTIONS.filter(url => url.includes('/api/'))) t.match((await app.inject({ url, headers: { ...ADMIN, ...headers } })).json(), { code: 'SSE_ERR_ADMIN_FORBIDDEN' }, `${JSON.stringify(headers)} ${url}`)
    for (const url of ACTIONS) t.equal((await app.inject({ method: 'POST', url, headers: { ...ADMIN, ...headers, 'x-sse-admin': '1' }, payload: { clientId: 'x', userId: 'x' } })).statusCode, 403)
  }
  t.equal((await app.inject({ url: '/ops/streams/', headers: { ...ADMIN, 'sec-fetch-site': 'cross-site' } })).statusCode, 200)
  t.equal((await app.inject({ url: '/ops/streams/api/events', headers: { ...ADMIN, 'sec-fetch-site': 'same-origin' } })).statusCode, 200)
  t.equal((await app.inject({ url: '/ops/streams/api/events', headers: { ...ADMIN, origin: 'http://localhost' } })).statusCode, 200)
})

t.test('the page is shown in no frame, loads only its own files, and is stored nowhere, with helmet or without', async t => {
  for (const app of [await start(t), await start(t, {}, {}, app => { app.register(fastifyHelmet) })]) {
    for (const url of ['/ops/streams/', '/ops/streams/page.js', '/ops/streams/api/overview', '/ops/streams/nothing']) {
      const { headers } = await app.inject({ url, headers: ADMIN })
      t.match(headers['content-security-policy'], /^default-src 'none'.*frame-ancestors 'none'$/)
      t.match(headers, { 'x-frame-options': 'DENY', 'x-content-type-options': 'nosniff', 'cache-control': 'no-store', 'referrer-policy': 'no-referrer' })
    }
  }
})

t.test('files: all that the page names, and no other', async t => {
  const app = await start(t)
  for (const [name, { type, text }] of Object.entries(FILES)) {
    const answer = await app.inject({ url: `/ops/streams/${name}`, headers: ADMIN })
    t.equal(answer.headers['content-type'], type)
    t.equal(answer.body, text)
    for (const [, imported] of text.matchAll(/(?:from '\.\/|href="|src=")([\w.]+)['"]/g)) t.ok(Object.hasOwn(FILES, imported!), `${name} loads ${imported}`)
  }
  for (const url of ['constructor', '__proto__', '../package.json', '..%2f..%2fpackage.json', 'api', 'api/close']) t.equal((await app.inject({ url: `/ops/streams/${url}`, headers: ADMIN })).statusCode, 404, url)
  t.equal((await app.inject({ url: '/ops/streams/', headers: ADMIN })).body, FILES['index.html']!.text)
  t.equal((await app.inject({ url: '/ops/streams?x=1', headers: ADMIN })).headers.location, './streams/?x=1', 'relative, for a proxy that changes the path')
})

t.test('with a prefix, without a trailing slash, with other names', async t => {
  const app = Fastify({ routerOptions: { ignoreTrailingSlash: true } })
  t.teardown(() => app.close())
  await app.register(ssePlugin, { decorators: { instance: 'events', reply: 'events' } })
  await app.register(adminPage, { prefix: '/internal', path: '/streams', authorize, decorators: { instance: 'events', reply: 'events' } })
  await listen(app)
  t.equal((await app.inject({ url: '/internal/streams', headers: ADMIN })).headers.location, './streams/')
  t.equal((await app.inject({ url: '/internal/streams/', headers: ADMIN })).body, FILES['index.html']!.text)
  const stream = await openStream(app, '/internal/streams/api/stream', { test: t, headers: ADMIN })
  t.match((await stream.next('overview')).json, { nodes: [{ connections: 1 }] })
})

t.test('connections are searched by the URL', async t => {
  const app = await start(t)
  await listen(app)
  for (const user of ['ada', 'grace']) await openStream(app, `/sse?user=${user}`, { test: t })
  await openStream(app, '/sse', { test: t })
  const ask = async (query: string) => (await app.inject({ url: `/ops/streams/api/connections?${query}`, headers: ADMIN })).json()
  t.match(await ask('userId=ada'), { total: 1, connections: [{ userId: 'ada' }] })
  t.match(await ask('anonymous=true'), { total: 1, connections: [{ userId: null }] })
  t.match(await ask('subscription=news&limit=2'), { total: 3, connections: [{}, {}] })
  t.match(await ask('lagging=true'), { total: 0 })
  t.match(await ask('limit=many'), { statusCode: 400, code: 'SSE_ERR_INVALID_OPTION' })
  t.match(await ask('after=1'), { statusCode: 400, code: 'SSE_ERR_INVALID_OPTION' })
  t.match(await ask('user=ada'), { statusCode: 400, code: 'SSE_ERR_INVALID_OPTION' })
  t.match(await ask('subscription=a%20b'), { statusCode: 400, code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
})

t.test('events of the log: who receives them, and how large they are; their data only with `payloads`', async t => {
  for (const payloads of [false, true]) {
    const app = await start(t, { payloads }, { history: { maxEvents: 50 } })
    const ask = async () => (await app.inject({ url: '/ops/streams/api/events', headers: ADMIN })).json()
    t.same(await ask(), { position: 0, events: [] })
    for (let i = 0; i < 130; i++) await app.sse.broadcastEvent({ event: 'filler', data: i })
    await app.sse.broadcastEvent({ event: 'secret', data: 'the data' }, { userIds: Array.from({ length: 30 }, (_, i) => `user ${i}`), priority: EventPriority.CRITICAL, key: 'k' })
    await app.sse.broadcastEvent({ event: 'filtered', data: 'x'.repeat(5_000) }, { filter: () => true })
    const { position, events: [last, secret, ...fillers] } = await ask()
    t.equal(position, 132)
    t.match(last, { seq: 132, event: 'filtered', filtered: true, target: {}, bytes: 5_000 })
    t.match(secret, { seq: 131, event: 'secret', priority: 3, key: 'k', bytes: 8, filtered: false, target: { userIds: { count: 30 } } })
    t.equal(secret.target.userIds.first.length, 10)
    t.ok(fillers.length > 20 && fillers.every((filler: any, i: number) => filler.seq === 130 - i), `${fillers.length}`)
    t.strictSame([last.data?.length, secret.data], payloads ? [2_000, 'the data'] : [undefined, undefined])
  }
})

t.test('the only event that is kept is shown', async t => {
  const app = await start(t, {}, { history: { maxEvents: 1 } })
  for (const seq of [1, 2, 3]) {
    await app.sse.broadcastEvent({ event: 'x', data: seq })
    t.match((await app.inject({ url: '/ops/streams/api/events', headers: ADMIN })).json(), { position: seq, events: [{ seq }] })
  }
})

t.test('actions: only with the option, the header and JSON', async t => {
  const reading = await start(t)
  for (const url of ACTIONS) t.equal((await reading.inject({ method: 'POST', url, headers: { ...ADMIN, 'x-sse-admin': '1' }, payload: { clientId: 'x', userId: 'x' } })).statusCode, 404)

  const app = await start(t, { actions: true })
  await listen(app)
  const streams = await Promise.all(['ada', 'ada', 'grace'].map(user => openStream(app, `/sse?user=${user}`, { test: t })))
  const post = (route: string, payload: object | string, headers = {}) => app.inject({ method: 'POST', url: `/ops/streams/api/${route}`, headers: { ...ADMIN, 'content-type': 'application/json', 'x-sse-admin': '1', ...headers }, payload })
  t.match((await post('disconnect', { userId: 'ada' }, { 'x-sse-admin': '' })).json(), { statusCode: 403, message: /needs the header "x-sse-admin: 1"/ })
  for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x']) t.equal((await post('disconnect', '{"userId":"ada"}', { 'content-type': type })).statusCode, 415, type)
  for (const payload of ['', 'x', 'null', '[]', '{"userId":""}', '{"userId":7}', '{"clientId":"ada"}']) t.equal((await post('disconnect', payload)).statusCode, 400, payload)
  t.equal((await post('disconnect', { userId: 'x'.repeat(9_000) })).statusCode, 413)
  t.equal(app.sse.connectionCount, 3)
  t.same((await post('disconnect', { userId: 'ada' })).json(), { closed: 2 })
  const { clientId } = app.sse.getConnectionsByUser('grace')[0]!
  t.same((await post('close', { clientId })).json(), { closed: 1 })
  await until(() => app.sse.connectionCount === 0)
  t.match((await post('close', { clientId })).json(), { statusCode: 404, code: 'SSE_ERR_UNKNOWN_CONNECTION' }, 'a repeated action')
  t.same((await post('disconnect', { userId: 'ada' })).json(), { closed: 0 })
  t.same((await Promise.all(streams.map(({ ended }) => ended))).map(({ reason }) => reason), new Array(3).fill('closed-by-admin'))
})

t.test('the stream: overviews, for operators who are no users of the application; it ends so that they are authorized again', async t => {
  const app = await start(t, {}, { requireAuthentication: true, authHandler: () => null })
  await listen(app)
  const stream = await openStream(app, '/ops/streams/api/stream', { test: t, headers: ADMIN })
  const [first, second] = await stream.collect(2, 'overview')
  t.match(first!.json, { nodeId: app.sse.nodeId, complete: true, missing: [], allowed: { actions: false, payloads: false }, nodes: [{ nodeId: app.sse.nodeId, status: 'up', details: { stats: { connections: 1, closed: {} }, topics: [], runs: [], runCount: 0, busy: null } }] })
  t.ok(second!.json.at > first!.json.at)
  t.match((await app.inject({ url: '/ops/streams/api/overview', headers: ADMIN })).json(), { nodes: [{ connections: 1, details: { memoryBytes: Number, busy: Number } }] })
})

t.test('how busy the event loop is: only over the time between two answers that are close together', async t => {
  const time = testClock()
  const app = await start(t, {}, time.options)
  const busy = async () => (await app.inject({ url: '/ops/streams/api/overview', headers: ADMIN })).json().nodes[0].details.busy
  t.equal(await busy(), null, 'nothing was measured: the start of the process does not count')
  t.equal(await busy(), null, 'the same answer')
  await time.advance(2_000)
  const measured = await busy()
  t.ok(measured > 0 && measured <= 1, `${measured}`)
  await time.advance(10_001)
  t.equal(await busy(), null, 'nobody has asked for a long time')
})

t.test('the largest topics and the newest runs', async t => {
  const { app, join } = await serve(t, {}, {}, app => { app.register(adminPage, { path: '/ops', authorize }) })
  for (let i = 0; i < 60; i++) await join('ada', [`topic:${i}`, ...i % 2 === 0 ? ['even'] : [], 'all:**'])
  let end = (): void => {}
  const ending = new Promise<void>(resolve => { end = resolve })
  for (let i = 0; i < 25; i++) await app.sse.startRun(`run ${i}`, async function * () { yield { data: 'token' }; await ending }, { ownerId: i % 2 === 0 ? null : 'ada' })
  const [{ details }] = (await app.inject({ url: '/ops/api/overview', headers: ADMIN })).json().nodes
  t.same(details.topics.slice(0, 2), [{ subscription: 'all:**', connections: 60 }, { subscription: 'even', connections: 30 }])
  t.equal(details.topics.length, 20)
  t.equal(details.runCount, 25)
  t.same(details.runs.map(({ runId }: { runId: string }) => runId), Array.from({ length: 20 }, (_, i) => `run ${24 - i}`))
  t.match(details.runs[0], { ownerId: null, startedAt: Number, isRead: Boolean })
  end()
})

t.test('a node that does not answer is shown without its details', async t => {
  const log = new TestLog()
  const { app } = await serve(t, { broker: log, cluster: { answerTimeoutMs: 300 } }, {}, app => { app.register(adminPage, { path: '/ops', authorize }) })
  await log.hear({ kind: 'beat', report: { ...REPORT, name: 'silent' } })
  const ask = async () => (await app.inject({ url: '/ops/api/overview', headers: ADMIN })).json()
  t.match(await ask(), { complete: false, missing: ['x'], nodes: [{ details: { nodeId: app.sse.nodeId } }, { name: 'silent', details: null }] })
  log.refuse = '"operation":"details"'
  t.match(await ask(), { complete: false, missing: ['x'], nodes: [{ details: { nodeId: app.sse.nodeId } }, { details: null }] }, 'nor while the log cannot be reached')
})

t.test('nodes report about themselves', { skip: withoutRedis }, async t => {
  const services = await nodes(t, 2, {})
  const [a, b] = services as [typeof services[0], typeof services[0]]
  await b!.join('ada', ['news'])
  const app = Fastify()
  t.teardown(() => app.close())
  app.decorate('sse', a!.app.sse)
  app.decorateReply('sse', null as never)
  await app.register(adminPage, { path: '/ops', authorize })
  const overview = await until(async () => {
    const overview = (await app.inject({ url: '/ops/api/overview', headers: ADMIN })).json()
    return overview.complete && overview.nodes.some(({ connections }: { connections: number }) => connections === 1) && overview
  })
  t.match(overview.nodes, [{ name: 'a', details: { stats: { connections: 0 }, topics: [] } }, { name: 'b', details: { stats: { connections: 1 }, topics: [{ subscription: 'news', connections: 1 }] } }])
})
