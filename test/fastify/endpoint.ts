import Fastify from 'fastify'
import t from 'tap'
import ssePlugin, { type SSEOptions } from '../../lib/index.js'
import { listen, openURL } from '../helpers/app.js'
import { bearer, refusal, start, type Server } from '../helpers/server.js'
import { until } from '../helpers/wait.js'

// Who may open a stream, who finds it out and when; where the plugin can be registered, and what stops the boot.

const asUser: SSEOptions['authHandler'] = ({ token }) => token

t.test('the ready endpoint', async t => {
  const endpoint = (clientSubscriptions: false | true | 'patterns') => start(t, async app => {
    await app.register(ssePlugin, {
      path: '/events',
      clientSubscriptions,
      maxSubscriptionsPerConnection: 3,
      requireAuthentication: true,
      authHandler: asUser,
      authorizeSubscription: ({ userId, subscriptionId }) => subscriptionId === 'news' || subscriptionId.startsWith(`user:${userId}:`)
    })
  })
  const held = ({ app }: Server) => [...app.sse.connections()].map(({ subscriptions }) => [...subscriptions])
  const own = 'subscription=user:ada:a'
  type Expected = string[] | [number, string]
  const forbidden: Expected = [403, 'SSE_ERR_SUBSCRIPTION_FORBIDDEN']
  const invalid: Expected = [400, 'SSE_ERR_INVALID_SUBSCRIPTION']
  const cases: [query: string, ...Record<'no' | 'yes' | 'patterns', Expected>[]][] = [
    ['', { no: [], yes: [], patterns: [] }],
    ['?', { no: [], yes: [], patterns: [] }],
    ['?other=1', { no: [], yes: [], patterns: [] }],
    [`?${own}`, { no: forbidden, yes: ['user:ada:a'], patterns: ['user:ada:a'] }],
    [`?${own}&subscription=news&x=1`, { no: forbidden, yes: ['user:ada:a', 'news'], patterns: ['user:ada:a', 'news'] }],
    [`?${own}&${own}`, { no: forbidden, yes: ['user:ada:a'], patterns: ['user:ada:a'] }],
    ['?subscription=user%3Aada%3Ab', { no: forbidden, yes: ['user:ada:b'], patterns: ['user:ada:b'] }],
    ['?subscription=user:ada:what?&x=?', { no: forbidden, yes: ['user:ada:what?'], patterns: ['user:ada:what?'] }],
    ['?subscription=user:grace:a', { no: forbidden, yes: forbidden, patterns: forbidden }],
    [`?${own}&subscription=user:grace:a`, { no: forbidden, yes: forbidden, patterns: forbidden }],
    ['?subscription=user:ada:**', { no: forbidden, yes: forbidden, patterns: ['user:ada:**'] }],
    ['?subscription=user:ada:*', { no: forbidden, yes: forbidden, patterns: ['user:ada:*'] }],
    ['?subscription=**', { no: forbidden, yes: forbidden, patterns: forbidden }],
    ['?subscription=', { no: forbidden, yes: invalid, patterns: invalid }],
    ['?subscription=a::b', { no: forbidden, yes: invalid, patterns: invalid }],
    ['?subscription=a%00b', { no: forbidden, yes: invalid, patterns: invalid }],
    [`?subscription=${'x'.repeat(600)}`, { no: forbidden, yes: invalid, patterns: invalid }],
    ['?subscription=user:ada:1&subscription=user:ada:2&subscription=user:ada:3&subscription=user:ada:4', { no: forbidden, yes: [400, 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS'], patterns: [400, 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS'] }]
  ]
  for (const [name, option] of [['no', false], ['yes', true], ['patterns', 'patterns']] as const) {
    await t.test(`clientSubscriptions: ${option}`, async t => {
      const server = await endpoint(option)
      const refused: Record<string, number> = { SSE_ERR_UNAUTHENTICATED: cases.length }
      for (const [query, outcomes] of cases) {
        const expected = outcomes![name]
        if (typeof expected[0] === 'number') refused[expected[1]!] = (refused[expected[1]!] ?? 0) + 1
        refusal(t, await server.open(`/events${query}`), 401, 'SSE_ERR_UNAUTHENTICATED')
        const stream = await server.open(`/events${query}`, bearer('ada'))
        if (typeof expected[0] === 'number') {
          refusal(t, stream, ...expected as [number, string])
          // The remedy is in the message where one option decides.
          if (expected === forbidden && name === 'no') t.match(stream.body.message, /is not allowed: clients may choose topics only with the option "clientSubscriptions"$/)
          if (expected === forbidden && name === 'yes' && query!.includes('*')) t.match(stream.body.message, /only if the option "clientSubscriptions" is 'patterns'$/)
          t.equal(server.app.sse.connectionCount, 0)
        } else {
          t.ok(stream.isStream, `${query} ${stream.body}`)
          t.strictSame(held(server), [expected])
          await stream.close()
          await until(() => server.app.sse.connectionCount === 0)
        }
      }
      t.strictSame(server.app.sse.stats().refused, refused, 'each refusal is counted once')
      t.equal((await server.open('/events', { ...bearer('ada'), method: 'POST' })).status, 404)
      t.strictSame(server.errors(), [])
    })
  }

  await t.test('the name of the parameter, misspelt as other query formats write arrays', async t => {
    const server = await endpoint(true)
    for (const name of ['subscription[]', 'subscription%5B%5D', 'subscription[0]', 'subscription.0', 'subscriptions', 'subscriptions[]', 'Subscription', 'subscriptionId', 'subscription_ids']) {
      const stream = await server.open(`/events?${own}&${name}=news`, bearer('ada'))
      refusal(t, stream, 400, 'SSE_ERR_INVALID_SUBSCRIPTION')
      t.match(stream.body.message, /\?subscription=a&subscription=b/, name)
    }
    t.ok((await server.open(`/events?${own}&subscriber=1&plan=subscription`, bearer('ada'))).isStream, 'what is not alike is the application\'s')
  })

  await t.test('with Fastify\'s options of register', async t => {
    for (const [prefix, url] of [['/v1', '/v1/events'], ['v1', '/v1/events'], ['/v1/', '/v1/events'], ['', '/events'], [undefined, '/events']] as const) {
      const levels: unknown[] = []
      const app = Fastify({ logger: { level: 'error', stream: { write: () => {} } } })
      t.teardown(() => app.close())
      app.addHook('onRoute', ({ url, logLevel, logSerializers }) => { levels.push([url, logLevel, Object.keys(logSerializers ?? {})]) })
      await app.register(ssePlugin, { path: '/events', prefix: prefix as string, logLevel: 'warn', logSerializers: { user: String } })
      let asked = 0
      app.addHook('onRequest', async () => { asked++ })
      const stream = await openURL(t, `${await listen(app)}${url}`)
      t.ok(stream.isStream, `${prefix} ${url}`)
      t.equal(asked, 1, 'hooks that the application adds later apply')
      t.match(levels[0], [url, 'warn', /user/])
    }
    const app = Fastify()
    t.teardown(() => app.close())
    await t.rejects(async () => { await app.register(ssePlugin, { path: '/events', prefix: 7 as never }) }, { code: 'SSE_ERR_INVALID_OPTION', message: 'Option "prefix" must be a string' })
  })

  await t.test('in a scope with a prefix, a query parser and a validator of its own', async t => {
    const app = Fastify({ routerOptions: { querystringParser: () => ({}) } })
    app.setValidatorCompiler(() => { throw new Error('no JSON schemas here') })
    t.teardown(() => app.close())
    await app.register(async scope => {
      await scope.register(ssePlugin, { path: '/events', clientSubscriptions: true, authorizeSubscription: () => true })
      t.teardown(() => scope.sse.drain())
    }, { prefix: '/v1' })
    const stream = await openURL(t, `${await listen(app)}/v1/events?subscription=a&subscription=b`)
    t.ok(stream.isStream)
  })
})
