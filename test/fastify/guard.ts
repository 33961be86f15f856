import fastifyAuth from '@fastify/auth'
import fastifyCookie from '@fastify/cookie'
import fastifyJwt from '@fastify/jwt'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import { inspect } from 'node:util'
import t from 'tap'
import ssePlugin, { type SSEOptions, type SSEUser } from '../../lib/index.js'
import { bearer, refusal, start, type Server } from '../helpers/server.js'
import { type ClientOptions } from '../helpers/sse.js'
import { until } from '../helpers/wait.js'
import { payloads } from '../helpers/app.js'

// Who may open a stream, who finds it out and when; where the plugin can be registered, and what stops the boot.

const asUser: SSEOptions['authHandler'] = ({ token }) => token

/** The users of the open streams. */
const users = ({ app }: Server) => [...app.sse.connections()].map(({ userId }) => userId)

t.test('a route with the option is authenticated in onRequest, before its body is read', async t => {
  const calls: string[] = []
  const server = await start(t, async app => {
    await app.register(ssePlugin, {
      requireAuthentication: true,
      authHandler: ({ token }) => {
        calls.push('authHandler')
        return token
      },
      authorizeSubscription: () => {
        calls.push('authorizeSubscription')
        return true
      }
    })
    app.addHook('onRequest', async () => { calls.push('application onRequest') })
    app.addHook('preParsing', async () => { calls.push('preParsing') })
    app.post('/sse', { sse: true, onRequest: async (request) => { calls.push(`route onRequest ${request.sseUser?.userId}`) } }, async (request, reply) => {
      calls.push('handler')
      await reply.sse({ subscriptions: ['a', 'b'] })
    })
  })
  const post = (token: string | null, body: string) => {
    calls.length = 0
    return server.open('/sse', { method: 'POST', headers: { 'content-type': 'application/json', ...(token !== null && { authorization: `Bearer ${token}` }) }, body })
  }

  refusal(t, await post(null, '{"not json'), 401, 'SSE_ERR_UNAUTHENTICATED')
  t.strictSame(calls, ['application onRequest', 'route onRequest undefined', 'authHandler'], 'nothing else runs')
  t.equal(server.app.sse.connectionCount, 0)
  t.strictSame(server.app.sse.stats().closed, {}, 'nothing was created')

  t.equal((await post('ada', '{"not json')).status, 400)
  t.strictSame(calls, ['application onRequest', 'route onRequest undefined', 'authHandler', 'preParsing'])

  const stream = await post('ada', '{"a":1}')
  t.ok(stream.isStream)
  t.strictSame(calls, ['application onRequest', 'route onRequest undefined', 'authHandler', 'preParsing', 'handler', 'authorizeSubscription', 'authorizeSubscription'], 'each is asked once')
  t.strictSame(users(server), ['ada'])
  t.strictSame(server.errors(), [])
})

t.test('requireAuthentication of the plugin, and of a route', async t => {
  for (const requireAuthentication of [false, true]) {
    await t.test(`plugin: ${requireAuthentication}`, async t => {
      const server = await start(t, async app => {
        await app.register(ssePlugin, { requireAuthentication, authHandler: asUser })
        const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() }
        app.get('/plain', handler)
        app.get('/off', { sse: false }, handler)
        app.get('/on', { sse: true }, handler)
        app.get('/empty', { sse: {} }, handler)
        app.get('/required', { sse: { requireAuthentication: true } }, handler)
        app.get('/optional', { sse: { requireAuthentication: false } }, handler)
        app.get('/source', (_request, reply) => reply.sse(source()))
        app.head('/head', { sse: true }, handler)
      })
      let started = false
      async function * source () {
        started = true
        yield 'text'
      }
      for (const path of ['/plain', '/off', '/on', '/empty', '/required', '/optional', '/source']) {
        const required = path === '/required' || (path !== '/optional' && requireAuthentication)
        const anonymous = await server.open(path)
        if (required) refusal(t, anonymous, 401, 'SSE_ERR_UNAUTHENTICATED')
        else t.ok(anonymous.isStream, `${path}: anybody`)
        if (path === '/source') t.equal(started, !required, 'a source is not begun for nobody')
        t.ok((await server.open(path, bearer('ada'))).isStream, `${path}: a user`)
      }
      const head = await server.open('/head', { method: 'HEAD', headers: { connection: 'close' } })
      t.equal(head.status, requireAuthentication ? 401 : 200)
    })
  }

  await t.test('a route made before the plugin was loaded is not open', async t => {
    const server = await start(t, app => {
      app.register(ssePlugin, { requireAuthentication: true, authHandler: asUser })
      app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
    })
    refusal(t, await server.open(), 401, 'SSE_ERR_UNAUTHENTICATED')
    t.ok((await server.open('/sse', bearer('ada'))).isStream)
  })

  await t.test('requireAuthentication beside the option is not read, and a warning says so', async t => {
    const lines: string[] = []
    const app = Fastify({ logger: { level: 'warn', stream: { write: (line: string) => { lines.push(line) } } } })
    t.teardown(() => app.close())
    await app.register(ssePlugin, { authHandler: asUser })
    const routes: [path: string, options: object][] = [['/beside', { sse: true, requireAuthentication: true }], ['/inside', { sse: { requireAuthentication: true } }], ['/both', { sse: { requireAuthentication: true }, requireAuthentication: true }], ['/theirs', { sse: true, requireAuthentication: ['admin'] }], ['/other', { requireAuthentication: true }]]
    for (const [path, options] of routes) app.get(path, options, async () => 'done')
    await app.ready()
    t.match(lines.map(line => JSON.parse(line)), [{ route: 'GET /beside', msg: 'The route option requireAuthentication is not read beside "sse": write sse: { requireAuthentication: true }' }])
    t.equal(lines.length, 1)
  })

  for (const [sse, path] of [['yes', 'sse'], [7, 'sse'], [null, 'sse'], [[], 'sse'], [undefined, 'sse'], [{ requireAuthentification: true }, 'sse.requireAuthentification'], [{ requireAuthentication: 'yes' }, 'sse.requireAuthentication'], [{ requireAuthentication: undefined }, 'sse.requireAuthentication'], [Promise.resolve({ requireAuthentication: true }), 'sse'], [{ refusals: 'never' }, 'sse.refusals'], [{ refusals: null }, 'sse.refusals']] as const) {
    await t.test(`route option ${inspect(sse)}`, async t => {
      const app = Fastify()
      t.teardown(() => app.close())
      await app.register(ssePlugin)
      t.throws(() => app.get('/stream', { sse } as never, async () => {}), { code: 'SSE_ERR_INVALID_OPTION', message: new RegExp(`"${path}" of route /stream`) as never })
      app.get('/other', { sse: { refusals: undefined } } as never, async () => {})
    })
  }
})

t.test('authStrategies, composed by @fastify/auth', async t => {
  const calls: string[] = []
  type Strategy = (request: FastifyRequest) => Promise<void>
  const named: Record<string, Strategy> = {
    async pass () { calls.push('pass') },
    async user (request) {
      calls.push('user')
      request.sseUser = { userId: 'by-strategy', claims: { strategy: true } }
    },
    async fail () {
      calls.push('fail')
      throw new Error('secret')
    },
    async refuse () {
      calls.push('refuse')
      throw Object.assign(new Error('secret'), { statusCode: 401 })
    }
  }
  const { pass, user, fail, refuse } = named as Record<'pass' | 'user' | 'fail' | 'refuse', Strategy>
  type Case = [strategies: NonNullable<SSEOptions['authStrategies']>, relation: 'or' | 'and', calls: string, user: string | null | false]
  const cases: Case[] = [
    [[pass], 'or', 'pass', 'by-handler'],
    [[user], 'or', 'user', 'by-strategy'],
    [[fail], 'or', 'fail', false],
    [[refuse], 'or', 'refuse', false],
    [[fail, user], 'or', 'fail user', 'by-strategy'],
    [[user, fail], 'or', 'user', 'by-strategy'],
    [[fail, refuse], 'or', 'fail refuse', false],
    [[user, pass], 'and', 'user pass', 'by-strategy'],
    [[user, fail], 'and', 'user fail', false],
    [[pass, pass], 'and', 'pass pass', 'by-handler'],
    [[[user, fail], [pass]], 'or', 'user fail pass', 'by-strategy'],
    [[[fail, user], fail, [user, pass]], 'or', 'fail fail user pass', 'by-strategy'],
    [[[fail, user], pass], 'and', 'fail user pass', 'by-strategy'],
    [[[fail, refuse], user], 'and', 'fail refuse', false]
  ]
  for (const registers of ['never', 'before', 'after'] as const) {
    await t.test(`@fastify/auth registered by the application: ${registers}`, async t => {
      for (const [authStrategies, authRelation, expectedCalls, expectedUser] of cases) {
        const title = `${authRelation} ${JSON.stringify(authStrategies.map(entry => Array.isArray(entry) ? entry.map(({ name }) => name) : entry.name))}`
        const server = await start(t, async app => {
          if (registers === 'before') await app.register(fastifyAuth)
          await app.register(ssePlugin, { authStrategies, authRelation, authHandler: () => 'by-handler', authorizeSubscription: () => true })
          t.equal(app.hasDecorator('auth'), registers === 'before', 'nothing leaks into the application')
          if (registers === 'after') await app.register(fastifyAuth)
          app.get('/required', { sse: { requireAuthentication: true } }, async (_request, reply) => { await reply.sse() })
          app.get('/optional', { sse: true }, async (_request, reply) => { await reply.sse() })
          app.get('/bare', async (_request, reply) => { await reply.sse() })
        })
        for (const path of ['/required', '/optional', '/bare']) {
          calls.length = 0
          const stream = await server.open(path)
          t.equal(calls.join(' '), expectedCalls, `${title} ${path}: each is run once`)
          if (expectedUser === false && path === '/required') {
            refusal(t, stream, 401, 'SSE_ERR_UNAUTHENTICATED')
            t.notMatch(stream.body, 'secret')
            t.equal(server.app.sse.connectionCount, 0)
          } else {
            t.ok(stream.isStream, `${title} ${path}: a stream`)
            t.strictSame(users(server), [expectedUser === false ? null : expectedUser], `${title} ${path}`)
            if (expectedUser === 'by-strategy') t.strictSame([...server.app.sse.connections()][0]!.claims, { strategy: true })
            await stream.close()
            await until(() => server.app.sse.connectionCount === 0)
          }
        }
      }
    })
  }

  await t.test('`this` is the Fastify instance, callbacks work, and the groups given are left as they were', async t => {
    const group = [function (this: FastifyInstance, _request: FastifyRequest, _reply: FastifyReply, done: (error?: Error) => void) { done(this.hasDecorator('database') ? undefined : new Error('none')) }]
    const [original] = group
    const server = await start(t, async app => {
      app.decorate('database', {})
      await app.register(ssePlugin, { requireAuthentication: true, authStrategies: [group], authHandler: () => 'ada' })
      app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
    })
    t.ok((await server.open()).isStream)
    t.equal(group[0], original)
  })

  await t.test('a strategy that answers by itself', async t => {
    for (const requireAuthentication of [true, false]) {
      const server = await start(t, { requireAuthentication, authStrategies: [(_request, reply, _done) => { reply.code(401).send({ from: 'strategy' }) }], authHandler: () => 'ada' })
      const stream = await server.open()
      t.strictSame([stream.status, stream.body], [401, { from: 'strategy' }])
      t.equal(server.app.sse.connectionCount, 0)
      t.strictSame(server.errors(), [])
    }
  })

  await t.test('a strategy that refuses leaves the answer its status where no user is required', async t => {
    const server = await start(t, async app => {
      await app.register(ssePlugin, { authStrategies: [async () => { throw Object.assign(new Error('no'), { statusCode: 401 }) }] })
      app.get('/sse', { sse: true }, async request => ({ user: request.sseUser }))
    })
    const answer = await server.open('/sse')
    t.strictSame([answer.status, answer.body], [200, { user: null }])
  })

  await t.test('a strategy that refuses counts, also for a user that a hook has found', async t => {
    const server = await start(t, async app => {
      await app.register(ssePlugin, { requireAuthentication: true, authStrategies: [async () => { throw new Error('no') }] })
      app.addHook('onRequest', async request => { request.sseUser = { userId: 'by-hook' } })
      app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
    })
    refusal(t, await server.open(), 401, 'SSE_ERR_UNAUTHENTICATED')
  })

  await t.test('what a strategy or a hook sets must be a user, with rights that last', async t => {
    let given: unknown
    const server = await start(t, { requireAuthentication: true, authStrategies: [async request => { request.sseUser = given as SSEUser }] })
    for (const [value, status] of [[{ userId: 'ada' }, 200], [{ userId: 'ada', expiresAt: Date.now() - 1 }, 401], [{ userId: 7 }, 500], [{ id: 'ada' }, 500], [null, 401]] as const) {
      given = value
      t.equal((await server.open()).status, status, JSON.stringify(value))
    }
  })

  await t.test('a hook of the application has found the user already', async t => {
    const server = await start(t, async app => {
      await app.register(ssePlugin, { requireAuthentication: true, authHandler: () => { throw new Error('not asked') } })
      app.addHook('onRequest', async request => { request.sseUser = { userId: 'by-hook' } })
      app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
    })
    t.ok((await server.open()).isStream)
    t.strictSame(users(server), ['by-hook'])
  })
})

t.test('@fastify/jwt and @fastify/cookie', async t => {
  const secret = 'a secret of at least thirty-two characters'
  const verify = async (request: FastifyRequest): Promise<SSEUser> => {
    const { sub, exp } = await request.jwtVerify<{ sub: string, exp?: number }>()
    return { userId: sub, ...(exp !== undefined && { expiresAt: exp * 1000 }) }
  }
  for (const [name, options] of [
    ['in authHandler', { authHandler: (_authData, request) => verify(request as FastifyRequest) }],
    ['as a strategy', { authStrategies: [async request => { request.sseUser = await verify(request) }] }]
  ] as [string, SSEOptions][]) {
    await t.test(name, async t => {
      const server = await start(t, async app => {
        await app.register(fastifyCookie)
        await app.register(fastifyJwt, { secret, cookie: { cookieName: 'token', signed: false } })
        await app.register(ssePlugin, { requireAuthentication: true, ...options })
        app.get('/sse', { sse: true }, async (_request, reply) => {
          reply.setCookie('seen', 'yes')
          await reply.sse()
        })
      })
      const token = server.app.jwt.sign({ sub: 'ada' })
      const header = await server.open('/sse', bearer(token))
      t.ok(header.isStream, 'header')
      t.match(header.headers['set-cookie']![0], 'seen=yes')
      t.ok((await server.open('/sse', { headers: { cookie: `token=${token}` } })).isStream, 'cookie')
      t.strictSame(users(server), ['ada', 'ada'])
      for (const [title, request] of [
        ['no token', {}],
        ['a forged token', bearer(token.slice(0, -3) + 'abc')],
        ['an expired token', bearer(server.app.jwt.sign({ sub: 'ada', exp: 1_000_000 }))],
        ['no token at all', bearer('nonsense')],
        ['a forged cookie', { headers: { cookie: 'token=nonsense' } }]
      ] as [string, ClientOptions][]) {
        const stream = await server.open('/sse', request)
        t.equal(stream.status, 401, title)
        t.equal(stream.body.code, 'SSE_ERR_UNAUTHENTICATED', title)
      }
      t.equal(server.app.sse.connectionCount, 2)
      t.strictSame(server.errors(), [])
    })
  }

  await t.test('rights that end while the stream is open', async t => {
    const server = await start(t, async app => {
      await app.register(fastifyJwt, { secret })
      await app.register(ssePlugin, { requireAuthentication: true, authHandler: (_authData, request) => verify(request as FastifyRequest), keepAliveIntervalMs: 50 })
      app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
    })
    const stream = await server.open('/sse', bearer(server.app.jwt.sign({ sub: 'ada', exp: Math.ceil(Date.now() / 1000) + 1 })))
    t.ok(stream.isStream)
    await stream.ended
    t.strictSame(payloads(stream, 'sse:close'), [{ reason: 'auth-expired', reconnect: true }])
  })
})
