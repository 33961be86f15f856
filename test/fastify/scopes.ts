import { type FastifyInstance, type FastifyRequest, type onRequestHookHandler, type RouteOptions } from 'fastify'
import fp from 'fastify-plugin'
import { channel, subscribe, unsubscribe } from 'node:diagnostics_channel'
import t, { type Test } from 'tap'
import ssePlugin, { type SSEOptions } from '../../lib/index.js'
import { isGuarded, make, unguarded } from '../helpers/guarded.js'

// Which routes are guarded, whatever the order and the scope of their declaration; and whose word counts on who a client is.

const asUser: SSEOptions['authHandler'] = ({ token }) => token
const strict: SSEOptions = { requireAuthentication: true, authHandler: asUser }
const publish = async (request: FastifyRequest) => ({ user: request.sseUser?.userId ?? null })

/** An instance that was created before the package was imported. */
function makeUnseen (t: Test): FastifyInstance {
  const name = 'fastify.initialization'
  const subscriber = (channel(name) as unknown as Record<symbol, () => void>)[Symbol.for('fastify-sse-manager.subscriber')]!
  unsubscribe(name, subscriber)
  try {
    return make(t)
  } finally {
    subscribe(name, subscriber)
  }
}

t.test('hooks that other plugins add, wrap or replace leave the guard where it is', async t => {
  const mark: onRequestHookHandler = (request, _reply, done) => {
    ;(request as { seen?: string }).seen = String(request.sseUser?.userId)
    done()
  }
  const list = (route: RouteOptions) => route.onRequest as onRequestHookHandler[] | onRequestHookHandler | undefined
  const others: Record<string, (route: RouteOptions) => void> = {
    replace (route) { route.onRequest = mark },
    append (route) { route.onRequest = [...[list(route) ?? []].flat(), mark] },
    prepend (route) { route.onRequest = [mark, ...[list(route) ?? []].flat()] },
    push (route) {
      const hooks = list(route)
      if (Array.isArray(hooks)) hooks.push(mark)
      else route.onRequest = hooks === undefined ? [mark] : [hooks, mark]
    },
    wrap (route) {
      const wrap = (hook: onRequestHookHandler): onRequestHookHandler => function (request, reply, done) { return hook.call(this, request, reply, done) }
      const hooks = list(route)
      if (hooks !== undefined) route.onRequest = Array.isArray(hooks) ? [...hooks.map(wrap), mark] : [wrap(hooks), mark]
      else route.onRequest = mark
    }
  }
  for (const [name, other] of Object.entries(others)) {
    for (const order of ['before', 'after'] as const) {
      for (const early of [true, false]) {
        await t.test(`${name}, ${order} the plugin, of a route that is declared ${early ? 'early' : 'late'}`, async t => {
          const app = make(t)
          if (order === 'before') app.addHook('onRoute', other)
          const registration = app.register(ssePlugin, strict)
          if (order === 'after') app.addHook('onRoute', other)
          if (!early) await registration
          app.post('/publish', { sse: true }, async request => ({ ...await publish(request), seen: (request as { seen?: string }).seen }))
          t.equal((await app.inject({ method: 'POST', url: '/publish' })).statusCode, 401)
          const { user, seen } = (await app.inject({ method: 'POST', url: '/publish', headers: { authorization: 'Bearer ada' } })).json()
          t.equal(user, 'ada')
          t.equal(seen, 'undefined', 'the hook comes before the decision')
        })
      }
    }
  }
})

t.test('a plugin that removes the hooks of a route cannot remove its guard', async t => {
  const app = make(t)
  await app.register(ssePlugin, strict)
  app.addHook('onRoute', route => { delete (route as Partial<RouteOptions>).onRequest })
  t.throws(() => app.post('/publish', { sse: true }, publish), TypeError)
})

t.test('scopes', async t => {
  const inChild = async (app: FastifyInstance, options: SSEOptions = strict) => app.register(async child => {
    child.register(ssePlugin, options)
    child.post('/inside', { sse: true, [options.decorators?.reply ?? 'sse']: true } as object, publish)
  })

  await t.test('a route outside the scope of the plugin stops the boot, and is named', async t => {
    for (const [where, declare] of [
      ['around it, before', (app: FastifyInstance) => { app.post('/publish', { sse: true }, publish); inChild(app) }],
      ['around it, after', (app: FastifyInstance) => { inChild(app); app.post('/publish', { sse: {} }, publish) }],
      ['beside it', (app: FastifyInstance) => { inChild(app); app.register(async sibling => { sibling.post('/publish', { sse: { requireAuthentication: true } }, publish) }) }],
      ['where it is registered nowhere', (app: FastifyInstance) => { app.post('/publish', { sse: true }, publish) }],
      ['where it has another name', (app: FastifyInstance) => { app.register(ssePlugin, { decorators: { reply: 'stream' } }); app.post('/publish', { sse: true }, publish) }]
    ] as const) {
      const app = make(t)
      declare(app)
      await t.rejects(async () => { await app.ready() }, unguarded(/POST \/publish.*"sse"/), where)
    }
    const app = make(t)
    app.get('/a', { stream: true } as object, publish)
    await app.register(async child => { await child.register(ssePlugin, { decorators: { instance: 'streams', reply: 'stream' } }) })
    await t.rejects(async () => { await app.ready() }, unguarded(/GET \/a, HEAD \/a.*"stream"/), 'under another name')
  })

  await t.test('it is not guarded by the plugin, nor are those that say nothing', async t => {
    const app = make(t)
    app.post('/plain', publish)
    app.post('/off', { sse: false }, publish)
    app.post('/other', { sse: 'another meaning' } as never, publish)
    inChild(app)
    await isGuarded(t, app, '/inside')
    for (const url of ['/plain', '/off', '/other']) t.strictSame((await app.inject({ method: 'POST', url })).json(), { user: null }, url)
  })

  await t.test('the option of another plugin is its own', async t => {
    const app = make(t)
    inChild(app)
    app.register(async sibling => {
      sibling.register(fp(async scope => { scope.decorateReply('sse', function () {} as never) }))
      sibling.post('/decorated', { sse: true }, publish)
    })
    app.register(async sibling => {
      sibling.register(fp(async () => {}, { name: '@fastify/sse' }))
      sibling.post('/official', { sse: true }, publish)
    })
    for (const url of ['/decorated', '/official']) t.equal((await app.inject({ method: 'POST', url })).statusCode, 200, url)
    await isGuarded(t, app, '/inside')
  })

  await t.test('several managers, each with routes of its own', async t => {
    const inner: SSEOptions = { requireAuthentication: true, authHandler: ({ headers }) => headers['x-user'] as string ?? null, decorators: { instance: 'inner', reply: 'inner' } }
    const app = make(t)
    app.post('/early', { inner: true } as object, publish)
    app.register(ssePlugin, inner)
    await t.rejects(async () => { await app.ready() }, unguarded(/POST \/early.*"inner"/), 'an option of another name is not known in time')

    const other = make(t)
    other.post('/outer', { sse: true }, publish)
    other.register(async child => {
      await child.register(ssePlugin, inner)
      child.post('/inner', { inner: true } as object, publish)
      child.post('/both', { sse: true, inner: true } as object, publish)
    })
    other.register(ssePlugin, strict)
    await isGuarded(t, other, '/outer')
    const status = async (url: string, headers: Record<string, string>) => (await other.inject({ method: 'POST', url, headers })).statusCode
    const ada = { authorization: 'Bearer ada' }
    t.strictSame([await status('/inner', ada), await status('/inner', { 'x-user': 'grace' })], [401, 200])
    t.strictSame([await status('/both', ada), await status('/both', { 'x-user': 'grace' }), await status('/both', { ...ada, 'x-user': 'grace' })], [401, 401, 200])
  })
})

t.test('an instance that was created before the package was imported', async t => {
  await t.test('with routes: their options cannot be seen', async t => {
    for (const register of [
      (app: FastifyInstance) => app.register(ssePlugin, strict),
      (app: FastifyInstance) => app.register(async child => { await child.register(ssePlugin, strict) })
    ]) {
      const app = makeUnseen(t)
      register(app)
      app.post('/publish', { sse: true }, publish)
      await t.rejects(async () => { await app.ready() }, { code: 'SSE_ERR_IMPORTED_TOO_LATE', message: /^Routes were declared before .* before you call fastify\(\)$/ })
    }
  })

  await t.test('without routes so far', async t => {
    const app = makeUnseen(t)
    await app.register(ssePlugin, { ...strict, path: '/events' })
    app.post('/publish', { sse: true }, publish)
    await app.register(async child => { child.post('/child', { sse: true }, publish) })
    await isGuarded(t, app)
    await isGuarded(t, app, '/child')
    t.equal((await app.inject('/events')).statusCode, 401)
  })

  await t.test('registered in a scope: the scopes around it are watched from then on', async t => {
    const app = makeUnseen(t)
    await app.register(async child => { await child.register(async grandchild => { await grandchild.register(ssePlugin, strict) }) })
    app.post('/publish', { sse: true }, publish)
    await t.rejects(async () => { await app.ready() }, unguarded(/POST \/publish/))
  })
})
