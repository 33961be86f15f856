import { EventSource } from 'undici'
import ssePlugin from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { listen, payloads } from '../helpers/app.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { bare, run, visit, type Drivers } from '../helpers/samples.js'
import { until } from '../helpers/wait.js'

/** Of the samples that stand in README only. */
export const DRIVERS: Drivers = {
  async 'readme-topics' (t) {
    const app = bare(t)
    await app.register(ssePlugin, { authHandler: ({ query }) => query['user'] as string | undefined ?? null })
    const { ship } = await run(t, { app }, ['ship'])
    const url = await listen(app)
    const ada = await visit(t, `${url}/orders/live?user=ada`)
    const anonymous = await visit(t, `${url}/orders/live`)
    await ship(7)
    await app.sse.broadcastData('last', null)
    for (const stream of [ada, anonymous]) await stream.until(() => payloads(stream, 'data').some(({ resource }) => resource === 'last'))
    t.same(payloads(ada, 'data').map(({ resource }) => resource), ['orders', 'messages', 'last'])
    t.same(payloads(anonymous, 'data').map(({ resource }) => resource), ['orders', 'last'])
  },

  async 'readme-events' (t) {
    const app = bare(t)
    await run(t, { app })
    t.equal(app.sse.stats().messages, 1)
    await t.rejects(app.sse.broadcastEvent({ event: 'order', data: { id: 7 } }), { code: 'SSE_ERR_INVALID_PAYLOAD' })
    t.equal(app.sse.stats().messages, 1, 'a payload that does not fit is not published')
  },

  async 'readme-client' (t) {
    const app = bare(t)
    await app.register(ssePlugin, { path: '/sse', retryMs: 100, history: { maxEvents: 1 } })
    const url = await listen(app)
    let reloads = 0
    const { source } = await run(t, { EventSource, reloadState: () => { reloads++ } }, ['source'], text => text.replace("'/sse'", JSON.stringify(`${url}/sse`)))
    t.teardown(() => source.close())
    const current = async () => (await until(() => [...app.sse.connections()][0]))
    await app.sse.broadcastData('x', 1)
    const first = await current()
    first.close('max-age')
    for (const n of [2, 3, 4]) await app.sse.broadcastData('x', n)
    await until(() => reloads === 1)
    const second = await until(() => [...app.sse.connections()].find(({ clientId }) => clientId !== first.clientId))
    t.equal(reloads, 1)
    second.close('kicked')
    await until(() => source.readyState === EventSource.CLOSED, undefined, 'it does not reconnect')
  },

  async 'readme-authentication' (t) {
    const app = bare(t)
    await run(t, { app, findSession: async (id: string | undefined) => id === 'abc' ? { userId: 'ada', expiresAt: Date.now() + 60_000, role: 'guest' } : null })
    app.get<{ Querystring: { topic: string } }>('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: [request.query.topic] }) })
    const url = await listen(app)
    const status = async (topic: string, cookie: string) => (await visit(t, `${url}/sse?topic=${topic}`, { headers: { cookie } })).status
    t.equal(await status('user:ada:**', 'session=wrong'), 401)
    t.equal(await status('user:ada:**', 'session=abc'), 200)
    t.equal(await status('user:grace:**', 'session=abc'), 403)
  },

  async 'readme-nodes' (t) {
    if (withoutRedis !== false) return t.comment(withoutRedis)
    const redis = await RedisServer.start()
    const one = bare(t)
    const two = bare(t)
    t.teardown(() => redis.stop())
    await run(t, { app: one }, [], text => text.replaceAll('process.env.REDIS_URL', JSON.stringify(redis.url)))
    await two.register(ssePlugin, { broker: redisStreamsBroker({ client: redis.url }) })
    one.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    const stream = await visit(t, `${await listen(one)}/sse`)
    await two.sse.broadcastData('news', 1)
    await stream.until(() => stream.named('data').length >= 1)
    t.same(payloads(stream, 'data'), [{ resource: 'news', data: 1 }])
  }
}
