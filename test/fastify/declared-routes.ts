import Fastify, { type FastifyInstance, type FastifyRequest, type RouteOptions } from 'fastify'
import fp from 'fastify-plugin'
import t from 'tap'
import ssePlugin, { type SSEOptions } from '../../lib/index.js'
import { isGuarded, make, unguarded } from '../helpers/guarded.js'
import { collect } from '../helpers/heap.js'
import { start } from '../helpers/server.js'
import { until } from '../helpers/wait.js'
import { payloads } from '../helpers/app.js'

// Which routes are guarded, whatever the order and the scope of their declaration; and whose word counts on who a client is.

const asUser: SSEOptions['authHandler'] = ({ token }) => token
const strict: SSEOptions = { requireAuthentication: true, authHandler: asUser }
const publish = async (request: FastifyRequest) => ({ user: request.sseUser?.userId ?? null })

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
          t.match(payloads(refused, 'sse:error'), [{ code: 'SSE_ERR_AUTHENTICATION_FAILED', retryable: true }])
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
