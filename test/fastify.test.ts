import { channel, subscribe, unsubscribe } from 'node:diagnostics_channel'
import fastifyAuth from '@fastify/auth'
import fastifyJwt from '@fastify/jwt'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest, type FastifyServerOptions, type onRequestHookHandler, type RouteOptions } from 'fastify'
import fp from 'fastify-plugin'
import t, { type Test } from 'tap'
import ssePlugin, { type SSEManager, type SSEOptions, type SSEUser } from '../lib/index.js'
import { bearer, refusal, start } from './helpers/server.js'
import { collect } from './helpers/heap.js'
import { until } from './helpers/wait.js'

// Which routes are guarded, whatever the order and the scope of their declaration; and whose word counts on who a client is.

const asUser: SSEOptions['authHandler'] = ({ token }) => token
const strict: SSEOptions = { requireAuthentication: true, authHandler: asUser }
const publish = async (request: FastifyRequest) => ({ user: request.sseUser?.userId ?? null })

function make (t: Test, options?: FastifyServerOptions): FastifyInstance {
  const app = Fastify(options)
  t.teardown(() => app.close())
  return app
}

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

/** Only with a token; without it before the body is looked at. */
async function isGuarded (t: Test, app: FastifyInstance, path = '/publish'): Promise<void> {
  const post = (headers: Record<string, string>, body = '{"a":1}') => app.inject({ method: 'POST', url: path, headers: { 'content-type': 'application/json', ...headers }, body })
  const anonymous = await post({}, '{"not json')
  t.equal(anonymous.statusCode, 401, `${path}: nobody`)
  t.equal(anonymous.json().code, 'SSE_ERR_UNAUTHENTICATED')
  const authenticated = await post({ authorization: 'Bearer ada' })
  t.strictSame([authenticated.statusCode, authenticated.json()], [200, { user: 'ada' }], `${path}: a user`)
}

const unguarded = (names: RegExp) => ({ code: 'SSE_ERR_UNGUARDED_ROUTE', message: names })

t.test('a route is guarded, whenever it was declared', async t => {
  type Declare = (app: FastifyInstance, register: () => void) => void
  const declare = (app: FastifyInstance) => { app.post('/publish', { sse: true }, publish) }
  const orders: Record<string, Declare> = {
    'after a registration that is not awaited' (app, register) {
      register()
      declare(app)
    },
    'before the registration' (app, register) {
      declare(app)
      register()
    },
    'in a turn of its own, before the registration' (app, register) {
      declare(app)
      app.after(() => { register() })
    },
    'in a child that is loaded before the plugin' (app, register) {
      app.register(async child => { declare(child) })
      register()
    },
    'in a grandchild that is loaded before the plugin' (app, register) {
      app.register(async child => { child.register(async grandchild => { declare(grandchild) }) })
      register()
    },
    'in a child that is loaded after the plugin' (app, register) {
      register()
      app.register(async child => { declare(child) })
    },
    'after the plugin, in a child that was made before it' (app, register) {
      let older: FastifyInstance
      app.register(async child => { older = child })
      register()
      app.after(() => { declare(older) })
    },
    'by a plugin without a scope of its own' (app, register) {
      app.register(fp(async scope => { declare(scope) }))
      register()
    },
    'with several methods, as one object' (app, register) {
      app.route({ method: ['POST', 'PUT'], url: '/publish', sse: true, handler: publish })
      register()
    },
    'with options of its own' (app) {
      app.post('/publish', { sse: { requireAuthentication: true } }, publish)
      app.register(ssePlugin, { authHandler: asUser })
    }
  }
  for (const [name, order] of Object.entries(orders)) {
    for (const options of [{}, { trustProxy: true }]) {
      await t.test(`${name}, ${JSON.stringify(options)}`, async t => {
        const app = make(t, options)
        order(app, () => { app.register(ssePlugin, strict) })
        await isGuarded(t, app)
      })
    }
  }

  await t.test('as the root of a scope with a prefix, with and without the slash', async t => {
    const app = make(t)
    app.register(async child => { child.post('/', { sse: true }, publish) }, { prefix: '/publish' })
    app.register(ssePlugin, strict)
    await isGuarded(t, app, '/publish')
    await isGuarded(t, app, '/publish/')
  })

  await t.test('HEAD that comes with GET', async t => {
    const app = make(t)
    app.get('/live', { sse: true }, publish)
    app.register(ssePlugin, strict)
    t.equal((await app.inject({ method: 'HEAD', url: '/live' })).statusCode, 401)
    t.equal((await app.inject({ method: 'HEAD', url: '/live', headers: { authorization: 'Bearer ada' } })).statusCode, 200)
  })

  await t.test('request.sseUser is null, not absent, in a scope that is older than the plugin', async t => {
    const app = make(t)
    app.register(async child => {
      child.decorateRequest('mine', null)
      child.get('/plain', async request => ({ user: request.sseUser }))
    })
    app.register(ssePlugin, strict)
    t.strictSame((await app.inject('/plain')).json(), { user: null })
  })

  await t.test('an unusable option stops the boot', async t => {
    const app = make(t)
    app.register(ssePlugin)
    app.get('/live', { sse: 'yes' } as never, publish)
    await t.rejects(async () => { await app.ready() }, { code: 'SSE_ERR_INVALID_OPTION', message: /"sse" of route \/live/ })
  })
})

t.test('a route that was declared early answers and logs as one that was declared late', async t => {
  const replace = (name: keyof RouteOptions, value: unknown) => (app: FastifyInstance) => { app.addHook('onRoute', route => { Object.assign(route, { [name]: value }) }) }
  const seen: string[] = []
  const others: Record<string, (app: FastifyInstance) => void> = {
    'no other plugin': () => {},
    'one that replaces the error handler': replace('errorHandler', () => { throw new Error('not for refusals') }),
    'one that wraps the error handler': app => {
      app.addHook('onRoute', route => {
        const next = route.errorHandler
        route.errorHandler = function (error, request, reply) { return next!.call(this, error, request, reply) }
      })
    },
    'one that replaces the log serializers': replace('logSerializers', { req: (request: FastifyRequest) => ({ url: request.url }) }),
    'one that copies the log serializers': app => { app.addHook('onRoute', route => { route.logSerializers = { ...route.logSerializers, other: () => 'other' } }) }
  }
  for (const [name, other] of Object.entries(others)) {
    for (const early of [true, false]) {
      for (const after of [true, false]) {
        await t.test(`${early ? 'early' : 'late'}, beside ${name}, ${after ? 'later' : 'earlier'} than the plugin`, async t => {
          seen.length = 0
          let isBroken = true
          const server = await start(t, async app => {
            if (!after) other(app)
            const registration = app.register(ssePlugin, {
              ticketSecret: 'x'.repeat(32),
              authHandler: () => {
                if (isBroken) throw new Error('the database is away')
                return 'ada'
              }
            })
            if (after) other(app)
            if (!early) await registration
            app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
          })
          const refused = await server.open('/sse?token=secret', { headers: { accept: 'text/event-stream' } })
          t.ok(refused.isStream, 'refused in a stream')
          t.match(refused.json('sse:error'), [{ code: 'SSE_ERR_AUTHENTICATION_FAILED', retryable: true }])
          isBroken = false
          t.ok((await server.open('/sse?token=secret')).isStream)
          t.equal(server.lines.filter(({ req }) => req?.url === '/sse?token=[redacted]').length, 2)
          t.notMatch(JSON.stringify(server.lines), 'secret')
        })
      }
    }
  }

  await t.test('its own error handler, and the serializers of its scope, are kept', async t => {
    const lines: any[] = []
    const app = make(t, { logger: { stream: { write: line => { lines.push(JSON.parse(line)) } } } })
    app.register(ssePlugin, strict)
    app.register(async scope => {
      scope.get('/own', { sse: true, errorHandler: (error, _request, reply) => reply.code(418).send({ own: (error as Error).name }) }, publish)
      scope.get('/none', { sse: true }, async request => {
        request.log.info({ order: 'x' }, 'logged')
        return publish(request)
      })
    }, { logSerializers: { order: (value: string) => `order ${value}` } })
    t.strictSame((await app.inject('/own')).statusCode, 418)
    t.equal((await app.inject('/none')).statusCode, 401)
    await app.inject({ url: '/none', headers: { authorization: 'Bearer ada' } })
    t.match(lines.find(({ msg }) => msg === 'logged'), { order: 'order x' })
  })

  await t.test('an option of the same name that another plugin reads changes nothing', async t => {
    const lines: any[] = []
    const app = make(t, { logger: { stream: { write: line => { lines.push(JSON.parse(line)) } } } })
    app.decorateReply('sse', function () {} as never)
    app.get('/theirs', { sse: true }, async () => { throw Object.assign(new Error('busy'), { statusCode: 503 }) })
    const answer = await app.inject({ url: '/theirs?token=1', headers: { accept: 'text/event-stream' } })
    t.equal(answer.statusCode, 503)
    t.equal(answer.json().message, 'busy')
    t.match(lines.find(({ req }) => req !== undefined).req, { method: 'GET', url: '/theirs?token=1' })
  })
})

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

t.test('a hook that sets or changes the option of a route when it has been read stops the boot', async t => {
  const changes: Record<string, (route: RouteOptions) => void> = {
    sets: route => { route.sse = true },
    replaces: route => { route.sse = { requireAuthentication: true } },
    'writes into': route => { (route.sse as { requireAuthentication: boolean }).requireAuthentication = true }
  }
  for (const [name, change] of Object.entries(changes)) {
    for (const order of ['before', 'after'] as const) {
      await t.test(`${name}, ${order} the plugin`, async t => {
        const app = make(t)
        if (order === 'before') app.addHook('onRoute', change)
        await app.register(ssePlugin, { authHandler: () => null })
        if (order === 'after') app.addHook('onRoute', change)
        app.post('/publish', name === 'sets' ? {} : { sse: { requireAuthentication: false } }, publish)
        await t.rejects(async () => { await app.ready() }, unguarded(/POST \/publish.*onRoute/))
      })
    }
  }
  const app = make(t)
  app.addHook('onRoute', route => { route.sse = true })
  app.addHook('onRoute', route => { delete (route as { sse?: unknown }).sse })
  await app.register(ssePlugin, strict)
  app.post('/publish', publish)
  await app.ready()
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
      await t.rejects(async () => { await app.ready() }, { code: 'SSE_ERR_IMPORTED_TOO_LATE', message: /before fastify\(\) is called/ })
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

t.test('what is remembered of routes is let go', async t => {
  const refs = await (async () => {
    const option = { requireAuthentication: true }
    const app = make(t)
    app.post('/publish', { sse: option }, publish)
    app.register(ssePlugin, strict)
    await isGuarded(t, app)
    t.teardown(() => app.hasRoute({ method: 'POST', url: '/publish' }))
    return [new WeakRef(option), new WeakRef(Fastify())]
  })()
  await until(async () => {
    await new Promise(resolve => setImmediate(resolve))
    collect()
    return refs.every(ref => ref.deref() === undefined)
  })
  t.pass('the options of the routes of a running instance; an instance that was never started')
})

t.test('the order in which a client is authenticated', async t => {
  const secret = 'a secret of at least thirty-two characters'
  const jwt = async (app: FastifyInstance) => {
    await app.register(fastifyJwt, { secret })
    app.decorate('authenticate', async (request: FastifyRequest) => { await request.jwtVerify() })
  }
  type Authenticating = FastifyInstance & { authenticate: (request: FastifyRequest) => Promise<void> }
  const subject: SSEOptions['authHandler'] = (_data, request) => ((request as FastifyRequest).user as { sub?: string } | undefined)?.sub ?? null
  const stream = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() }
  const userOf = (manager: SSEManager) => [...manager.connections()].map(({ userId }) => userId)

  await t.test('a route\'s own onRequest comes before the decision', async t => {
    const found = (request: FastifyRequest): void => { request.sseUser = { userId: request.headers['x-user'] as string } }
    const shapes: Record<string, (app: FastifyInstance) => RouteOptions['onRequest']> = {
      'a list, as @fastify/jwt documents it': app => [(app as Authenticating).authenticate],
      'one function': app => (app as Authenticating).authenticate,
      'one with a callback': app => (request, _reply, done) => { (app as Authenticating).authenticate(request).then(() => done(), done) },
      'a list, with the last one slow': app => [(app as Authenticating).authenticate, async () => { await new Promise(resolve => setTimeout(resolve, 5)) }],
      'composed by @fastify/auth': app => app.auth([async () => { throw new Error('not this one') }, (app as Authenticating).authenticate]) as onRequestHookHandler,
      'a user that it names itself': app => async request => {
        await (app as Authenticating).authenticate(request)
        found(request)
      }
    }
    for (const [name, shape] of Object.entries(shapes)) {
      await t.test(name, async t => {
        const server = await start(t, async app => {
          await jwt(app)
          await app.register(fastifyAuth)
          await app.register(ssePlugin, { requireAuthentication: true, authHandler: subject })
          app.get('/sse', { sse: true, onRequest: shape(app)! }, stream)
        })
        const headers = { authorization: `Bearer ${server.app.jwt.sign({ sub: 'ada' })}`, 'x-user': 'ada' }
        t.ok((await server.open('/sse', { headers })).isStream)
        t.strictSame(userOf(server.app.sse), ['ada'])
        t.equal((await server.open('/sse', { headers: { authorization: 'Bearer forged' } })).status, 401)
        t.equal(server.app.sse.connectionCount, 1)
      })
    }

    await t.test('added by a plugin that is loaded later', async t => {
      const server = await start(t, async app => {
        await app.register(ssePlugin, { requireAuthentication: true, authHandler: subject })
        await jwt(app)
        app.addHook('onRoute', route => { route.onRequest = [...[route.onRequest ?? []].flat(), (app as Authenticating).authenticate] as onRequestHookHandler[] })
        app.get('/sse', { sse: true }, stream)
      })
      t.ok((await server.open('/sse', bearer(server.app.jwt.sign({ sub: 'ada' })))).isStream)
      t.strictSame(userOf(server.app.sse), ['ada'])
    })

    await t.test('but after the origin was checked and the client counted', async t => {
      let asked = 0
      const server = await start(t, async app => {
        await app.register(ssePlugin, { maxConnections: 1, authHandler: asUser })
        app.get('/sse', { sse: true, onRequest: async () => { asked++ } }, stream)
      })
      refusal(t, await server.open('/sse', { headers: { origin: 'https://evil.example' } }), 403, 'SSE_ERR_ORIGIN_FORBIDDEN')
      t.equal(asked, 0)
      t.ok((await server.open()).isStream)
      refusal(t, await server.open(), 503, 'SSE_ERR_TOO_MANY_CONNECTIONS')
      t.equal(asked, 1)
    })

    await t.test('whose user was disconnected while it ran', async t => {
      let answer: (() => void) | null = null
      const server = await start(t, async app => {
        await app.register(ssePlugin, { requireAuthentication: true, authHandler: asUser })
        app.get('/sse', { sse: true, onRequest: async () => { await new Promise<void>(resolve => { answer = resolve }) } }, stream)
      })
      const opening = server.open('/sse', bearer('ada'))
      await until(() => answer !== null)
      await server.app.sse.disconnectUser('ada')
      answer!()
      refusal(t, await opening, 401, 'SSE_ERR_UNAUTHENTICATED')
    })
  })

  const LATER = ['preParsing', 'preValidation', 'preHandler'] as const
  for (const hook of LATER) {
    await t.test(`a user that is found in ${hook} counts at reply.sse()`, async t => {
      const server = await start(t, async app => {
        await jwt(app)
        await app.register(ssePlugin, { authHandler: subject })
        app.get('/verified', { sse: true, [hook]: (app as Authenticating).authenticate }, stream)
        app.get('/set', { sse: true, [hook]: async (request: FastifyRequest) => { request.sseUser = { userId: 'by-hook' } } }, stream)
        app.get('/required', { sse: { requireAuthentication: true }, [hook]: (app as Authenticating).authenticate }, stream)
        await app.register(async scope => {
          scope.addHook(hook as 'preHandler', (app as Authenticating).authenticate)
          scope.get('/scope', { sse: true }, stream)
        })
      })
      const token = bearer(server.app.jwt.sign({ sub: 'ada' }))
      for (const [path, user] of [['/verified', 'ada'], ['/set', 'by-hook'], ['/scope', 'ada']] as const) {
        const client = await server.open(path, token)
        t.ok(client.isStream, path)
        t.strictSame(userOf(server.app.sse), [user], path)
        client.close()
        await until(() => server.app.sse.connectionCount === 0)
      }
      refusal(t, await server.open('/required', token), 401, 'SSE_ERR_UNAUTHENTICATED')
      t.strictSame(server.lines.filter(({ level }) => level === 40), [], 'found is not changed')
    })
  }

  await t.test('a user that is another one after onRequest', async t => {
    let next: unknown
    const server = await start(t, async app => {
      await app.register(ssePlugin, { authHandler: asUser, ticketSecret: 'x'.repeat(32) })
      const preHandler = async (request: FastifyRequest) => { request.sseUser = next as SSEUser | null }
      app.get('/sse', { sse: true, preHandler }, stream)
      app.get('/required', { sse: { requireAuthentication: true }, preHandler }, stream)
    })
    const warned = () => server.lines.filter(({ level }) => level === 40).map(({ userId, authenticatedUserId }) => [authenticatedUserId, userId])
    const opened = async (path: string, user: string | null, options = bearer('ada')) => {
      const client = await server.open(path, options)
      t.ok(client.isStream)
      t.strictSame(userOf(server.app.sse), [user])
      client.close()
      await until(() => server.app.sse.connectionCount === 0)
    }
    next = { userId: 'ada', claims: 7 }
    await opened('/sse', 'ada')
    t.strictSame(warned(), [], 'more is known of the same user')
    next = { userId: 'grace' }
    await opened('/required', 'grace')
    t.strictSame(warned().splice(0), [['ada', 'grace']])
    next = null
    await opened('/sse', null)
    refusal(t, await server.open('/required', bearer('ada')), 401, 'SSE_ERR_UNAUTHENTICATED')
    t.strictSame(warned(), [['ada', 'grace'], ['ada', null], ['ada', null]])
    next = { id: 'no user' }
    refusal(t, await server.open('/sse', bearer('ada')), 500, 'SSE_ERR_AUTHENTICATION_FAILED')
    next = { userId: 'grace' }
    await opened(`/required?ticket=${server.app.sse.issueTicket({ userId: 'hopper' })}`, 'hopper', {})
  })

  await t.test('rights that end between onRequest and reply.sse()', async t => {
    const server = await start(t, async app => {
      await app.register(ssePlugin, { requireAuthentication: true, authHandler: () => ({ userId: 'ada', expiresAt: Date.now() + 50 }) })
      app.get('/sse', { sse: true }, async (request, reply) => {
        await until(() => request.sseUser!.expiresAt! <= Date.now())
        await reply.sse()
      })
    })
    refusal(t, await server.open(), 401, 'SSE_ERR_UNAUTHENTICATED')
  })

  await t.test('authHandler is asked once, and again at reply.sse() only if it found no user and the request carries something new', async t => {
    let asked = 0
    const server = await start(t, async app => {
      await app.register(ssePlugin, {
        authHandler: ({ token }) => {
          asked++
          return token
        }
      })
      app.route({ method: ['GET', 'POST'], url: '/sse', sse: true, handler: stream })
      app.get('/idle', { sse: true, preHandler: async () => {} }, stream)
      app.get('/hook', { sse: true, preHandler: async request => { Object.assign(request, { user: { id: 1 } }) } }, stream)
    })
    const json = { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"token":1}' }
    for (const [path, options, expected] of [['/sse', {}, 1], ['/idle', {}, 1], ['/hook', {}, 2], ['/sse', json, 2], ['/hook', bearer('ada'), 1]] as const) {
      asked = 0
      t.ok((await server.open(path, options)).isStream)
      t.equal(asked, expected, path)
    }
  })
})
