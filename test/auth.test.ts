import fastifyAuth from '@fastify/auth'
import fastifyCookie from '@fastify/cookie'
import fastifyJwt from '@fastify/jwt'
import type { TSchema } from '@sinclair/typebox'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { inspect } from 'node:util'
import t, { type Test } from 'tap'
import ssePlugin, { SSEError, SSEManager, type SSEOptions, type SSEUser, type SubscriptionQuestion } from '../lib/index.js'
import { OptionsSchema } from '../lib/options.js'
import { listen } from './helpers/app.js'
import { bearer, refusal, start, type Server } from './helpers/server.js'
import { SSEClient, type ClientOptions } from './helpers/sse.js'
import { until } from './helpers/wait.js'

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

  const client = await post('ada', '{"a":1}')
  t.ok(client.isStream)
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

t.test('what authHandler returns', async t => {
  const secret = 'password of the database'
  const failed = 'SSE_ERR_AUTHENTICATION_FAILED'
  const cases: [name: string, result: () => unknown, expected: string | [status: number, code: string]][] = [
    ['a user id', () => 'ada', 'ada'],
    ['a promise of one', async () => 'ada', 'ada'],
    ['an object', () => ({ userId: 'ada' }), 'ada'],
    ['rights that last', () => ({ userId: 'ada', expiresAt: Date.now() + 60_000 }), 'ada'],
    ['rights that have ended', () => ({ userId: 'ada', expiresAt: Date.now() - 1 }), [401, 'SSE_ERR_UNAUTHENTICATED']],
    ['null', () => null, [401, 'SSE_ERR_UNAUTHENTICATED']],
    ['undefined', () => undefined, [401, 'SSE_ERR_UNAUTHENTICATED']],
    ['rights that do not end', () => ({ userId: 'ada', expiresAt: null }), 'ada'],
    ['rights whose end is undefined', () => ({ userId: 'ada', expiresAt: undefined }), [500, failed]],
    ...(['', 7, true, false, [], {}, { userId: 7 }, { userId: undefined }, { userId: '' }, { userId: 'ada', expiresAt: 'soon' }, { userId: 'ada', expiresAt: NaN }, () => 'ada'] as unknown[])
      .map((garbage): [string, () => unknown, [number, string]] => [`garbage ${JSON.stringify(garbage)}`, () => garbage, [500, failed]]),
    ['a throw', () => { throw new Error(secret) }, [500, failed]],
    ['a rejection', async () => { throw new Error(secret) }, [500, failed]],
    ['a throw of a string', () => { throw secret }, [500, failed]],
    ['a throw of nothing', () => { throw undefined }, [500, failed]], // eslint-disable-line no-throw-literal
    ['a throw with statusCode 401', () => { throw Object.assign(new Error(secret), { statusCode: 401 }) }, [401, 'SSE_ERR_UNAUTHENTICATED']],
    ['a throw with statusCode 403', () => { throw Object.assign(new Error(secret), { statusCode: 403 }) }, [401, 'SSE_ERR_UNAUTHENTICATED']],
    ['a throw with statusCode 404', () => { throw Object.assign(new Error(secret), { statusCode: 404 }) }, [500, failed]]
  ]
  let result: () => unknown
  const server = await start(t, async app => {
    await app.register(ssePlugin, { requireAuthentication: true, authHandler: () => result() as string })
    app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
    app.get('/optional', { sse: { requireAuthentication: false } }, async (_request, reply) => { await reply.sse() })
    app.get('/bare', async (_request, reply) => { await reply.sse() })
  })
  for (const [name, next, expected] of cases) {
    result = next
    for (const path of ['/sse', '/bare']) {
      const errors = server.errors().length
      const client = await server.open(path)
      if (typeof expected === 'string') {
        t.ok(client.isStream, `${name} ${path}`)
        t.strictSame(users(server), [expected])
        client.close()
        await until(() => server.app.sse.connectionCount === 0)
        continue
      }
      refusal(t, client, ...expected)
      t.strictSame(Object.keys(client.answer).sort(), ['code', 'error', 'message', 'statusCode'])
      t.notMatch(client.body, secret, `${name} ${path}: no internals`)
      t.equal(server.app.sse.connectionCount, 0)
      const logged = server.errors().slice(errors)
      t.equal(logged.length, expected[0] === 500 ? 1 : 0, `${name} ${path}: logged`)
      if (name === 'a throw' || name === 'a rejection') t.match(logged[0].err.stack, secret)
    }
    if (Array.isArray(expected)) {
      const client = await server.open('/optional')
      t.equal(client.status, expected[0] === 500 ? 500 : 200, `${name}, where nobody may come: broken is not nobody`)
      client.close()
      await until(() => server.app.sse.connectionCount === 0)
    }
  }
})

t.test('the rights and claims of a user stay with the connection, which ends with them', async t => {
  const server = await start(t, { authHandler: () => ({ userId: 'ada', claims: { role: 'admin' }, expiresAt: Date.now() + 300 }), keepAliveIntervalMs: 20 })
  const client = await server.open()
  const [connection] = server.app.sse.getConnectionsByUser('ada')
  t.strictSame(connection!.claims, { role: 'admin' })
  await client.waitForEnd()
  t.strictSame(client.json('sse:close'), [{ reason: 'auth-expired', reconnect: true }])
})

t.test('authorizeSubscription', async t => {
  const questions: SubscriptionQuestion[] = []
  const answers: Record<string, () => unknown> = {
    one: () => 1,
    text: () => 'true',
    object: () => ({}),
    nothing: () => undefined,
    no: () => false,
    later: async () => 1,
    'later-no': async () => false,
    throws: () => { throw new Error('secret') },
    rejects: async () => { throw new Error('secret') },
    forbids: () => { throw Object.assign(new Error('secret'), { statusCode: 403 }) },
    'later-yes': async () => true
  }
  const server = await start(t, async app => {
    await app.register(ssePlugin, {
      authHandler: () => ({ userId: 'ada', claims: 7 }),
      authorizeSubscription: question => {
        questions.push(question)
        return (answers[question.subscriptionId]?.() ?? (question.subscriptionId in answers ? undefined : true)) as boolean
      }
    })
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: (request.query as { s: string }).s.split(',') }) })
  })
  const client = await server.open('/sse?s=a,b:*,a,later-yes')
  t.ok(client.isStream)
  t.strictSame(questions.map(({ subscriptionId }) => subscriptionId), ['a', 'b:*', 'later-yes'], 'each once, patterns too')
  for (const { request, userId, claims } of questions) {
    t.match({ userId, claims }, { userId: 'ada', claims: 7 })
    t.equal((request as FastifyRequest).sseUser?.userId, 'ada', 'the request is the application\'s')
  }
  const [connection] = server.app.sse.getConnectionsByUser('ada')
  for (const name of Object.keys(answers)) {
    if (name === 'later-yes') continue
    const broken = ['throws', 'rejects', 'forbids'].includes(name)
    const refused = await server.open(`/sse?s=a,${name}`)
    if (name === 'forbids') t.ok([403, 500].includes(refused.status), 'forbids')
    else refusal(t, refused, broken ? 500 : 403, broken ? 'SSE_ERR_AUTHENTICATION_FAILED' : 'SSE_ERR_SUBSCRIPTION_FORBIDDEN')
    t.notMatch(refused.body, 'secret')
    await t.rejects(connection!.addSubscription(name), { code: /^SSE_ERR_(AUTHENTICATION_FAILED|SUBSCRIPTION_FORBIDDEN)$/ }, name)
    t.notOk(connection!.subscriptions.has(name))
  }
  t.equal(server.app.sse.connectionCount, 1)
  t.match(server.errors().map(({ err }) => err.stack), server.errors().map(() => /secret/))
  t.ok(server.errors().length >= 2, 'what breaks is logged')

  questions.length = 0
  await server.app.sse.addSubscription(connection!.clientId, 'c')
  await connection!.addSubscription('d:**')
  t.strictSame(questions, [{ request: null, userId: 'ada', claims: 7, subscriptionId: 'c' }, { request: null, userId: 'ada', claims: 7, subscriptionId: 'd:**' }])
  t.strictSame([...connection!.subscriptions], ['a', 'b:*', 'later-yes', 'c', 'd:**'])

  await t.test('a stream that ends, or fills, while the application is asked', async t => {
    let answer: (yes: boolean) => void = () => {}
    answers['slow'] = () => new Promise(resolve => { answer = resolve })
    const adding = connection!.addSubscription('slow')
    client.close()
    await until(() => server.app.sse.connectionCount === 0)
    answer(true)
    await t.rejects(adding, { code: 'SSE_ERR_UNKNOWN_CONNECTION' })
    t.strictSame(server.app.sse.getConnectionsBySubscription('slow'), [])
  })

  await t.test('what is no subscription is not asked about', async t => {
    questions.length = 0
    refusal(t, await server.open('/sse?s=a,b::c'), 400, 'SSE_ERR_INVALID_SUBSCRIPTION')
    t.strictSame(questions, [])
  })
})

t.test('what a request brings: token, cookies, query, headers, and what the application extracts', async t => {
  for (const withPlugin of [false, true]) {
    await t.test(withPlugin ? 'with @fastify/cookie' : 'without @fastify/cookie', async t => {
      let data: any
      const server = await start(t, async app => {
        if (withPlugin) await app.register(fastifyCookie)
        await app.register(ssePlugin, {
          authHandler: authData => {
            data = authData
            return 'ada'
          },
          extractAuthData: request => ({ device: request.headers['x-device'], query: { replaced: true } })
        })
        app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
      })
      await server.open('/sse?a=1&a=2&ticket=x%20y', { headers: { authorization: 'bearer  abc.def-1', cookie: 'session=s%201; quoted="q"; broken=%zz; session=second; noequals', 'x-device': 'desk', 'x-other': 'o' } })
      t.equal(data.token, 'abc.def-1')
      t.match({ ...data.cookies }, { session: 's 1', quoted: 'q', broken: '%zz' })
      t.strictSame(data.query, { replaced: true }, 'what is extracted comes last')
      t.equal(data.device, 'desk')
      t.equal(data.headers['x-other'], 'o')
      for (const authorization of ['Basic abc', 'Bearer', 'Bearer ', 'Bearer a b', 'xBearer a', '']) {
        await server.open('/sse', { headers: { authorization } })
        t.equal(data.token, null, `no token: ${authorization}`)
      }
      await server.open('/sse', { headers: { cookie: '__proto__=polluted; constructor=c' } })
      t.equal(({} as any).polluted, undefined)
      t.equal(data.cookies.constructor, 'c')
    })
  }

  await t.test('cookies that @fastify/cookie has not parsed yet, and a query that a parser of the application leaves out', async t => {
    for (const hook of ['preParsing', 'preHandler', false] as const) {
      let data: any
      const app = Fastify({ routerOptions: { querystringParser: () => null as never } })
      t.teardown(() => app.close())
      await app.register(fastifyCookie, { hook })
      await app.register(ssePlugin, {
        path: '/sse',
        authHandler: authData => {
          data = authData
          return null
        }
      })
      const leave = new AbortController()
      await app.inject({ url: '/sse?a=b', headers: { cookie: 'session=s%201' }, payloadAsStream: true, signal: leave.signal })
      leave.abort()
      t.match({ cookies: { ...data.cookies }, query: { ...data.query } }, { cookies: { session: 's 1' }, query: { a: 'b' } }, String(hook))
    }
  })

  await t.test('the query, and an extractor that throws', async t => {
    let data: any
    let broken = false
    const server = await start(t, {
      requireAuthentication: true,
      authHandler: authData => {
        data = authData
        return 'ada'
      },
      extractAuthData: () => {
        if (broken) throw new Error('secret')
        return {}
      }
    })
    await server.open('/sse?a=1&ticket=x%20y')
    t.match(data.query, { a: '1', ticket: 'x y' })
    broken = true
    const client = await server.open()
    refusal(t, client, 500, 'SSE_ERR_AUTHENTICATION_FAILED')
    t.notMatch(client.body, 'secret')
    t.match(server.errors()[0].err.stack, /secret/)
  })
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
          const client = await server.open(path)
          t.equal(calls.join(' '), expectedCalls, `${title} ${path}: each is run once`)
          if (expectedUser === false && path === '/required') {
            refusal(t, client, 401, 'SSE_ERR_UNAUTHENTICATED')
            t.notMatch(client.body, 'secret')
            t.equal(server.app.sse.connectionCount, 0)
          } else {
            t.ok(client.isStream, `${title} ${path}: a stream`)
            t.strictSame(users(server), [expectedUser === false ? null : expectedUser], `${title} ${path}`)
            if (expectedUser === 'by-strategy') t.strictSame([...server.app.sse.connections()][0]!.claims, { strategy: true })
            client.close()
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
      const client = await server.open()
      t.strictSame([client.status, client.answer], [401, { from: 'strategy' }])
      t.equal(server.app.sse.connectionCount, 0)
      t.strictSame(server.errors(), [])
    }
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
      t.match(header.headers['set-cookie'], 'seen=yes')
      t.ok((await server.open('/sse', { headers: { cookie: `token=${token}` } })).isStream, 'cookie')
      t.strictSame(users(server), ['ada', 'ada'])
      for (const [title, request] of [
        ['no token', {}],
        ['a forged token', bearer(token.slice(0, -3) + 'abc')],
        ['an expired token', bearer(server.app.jwt.sign({ sub: 'ada', exp: 1_000_000 }))],
        ['no token at all', bearer('nonsense')],
        ['a forged cookie', { headers: { cookie: 'token=nonsense' } }]
      ] as [string, ClientOptions][]) {
        const client = await server.open('/sse', request)
        t.equal(client.status, 401, title)
        t.equal(client.answer.code, 'SSE_ERR_UNAUTHENTICATED', title)
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
    const client = await server.open('/sse', bearer(server.app.jwt.sign({ sub: 'ada', exp: Math.ceil(Date.now() / 1000) + 1 })))
    t.ok(client.isStream)
    await client.waitForEnd()
    t.strictSame(client.json('sse:close'), [{ reason: 'auth-expired', reconnect: true }])
  })
})

t.test('allowedOrigins', async t => {
  let asked = 0
  const server = await start(t, async app => {
    await app.register(ssePlugin, {
      allowedOrigins: ['https://app.example'],
      authHandler: () => {
        asked++
        return 'ada'
      }
    })
    app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
    app.get('/bare', async (_request, reply) => { await reply.sse() })
  })
  const cases: [headers: Record<string, string>, allowed: boolean][] = [
    [{ origin: 'https://app.example' }, true],
    [{ origin: 'https://app.example', 'sec-fetch-site': 'cross-site' }, true],
    [{}, true],
    [{ 'sec-fetch-site': 'same-origin' }, true],
    [{ 'sec-fetch-site': 'cross-site' }, false],
    [{ origin: 'https://evil.example' }, false],
    [{ origin: 'https://app.example.evil.example' }, false],
    [{ origin: 'http://app.example' }, false],
    [{ origin: 'null' }, false],
    [{ origin: '' }, false]
  ]
  for (const path of ['/sse', '/bare']) {
    for (const [headers, allowed] of cases) {
      asked = 0
      const client = await server.open(path, { headers })
      if (allowed) t.ok(client.isStream, JSON.stringify(headers))
      else refusal(t, client, 403, 'SSE_ERR_ORIGIN_FORBIDDEN')
      t.equal(asked, allowed ? 1 : 0, 'nobody is asked about a page that may not')
    }
  }
})

t.test('origins of applications that have a scheme of their own', async t => {
  const listed = ['capacitor://localhost', 'ionic://localhost', 'tauri://localhost', 'chrome-extension://abcdefghijklmnop', 'safari-web-extension://0AE0CCC6-4A3C', 'app://-', 'app://a.example:81', 'file://']
  const server = await start(t, { allowedOrigins: listed })
  for (const origin of listed) t.ok((await server.open('/sse', { headers: { origin, 'sec-fetch-site': 'cross-site' } })).isStream, origin)
  for (const origin of ['capacitor://localhost.evil', 'capacitor://', 'ionic://localhost:1', 'capacitor://LOCALHOST']) refusal(t, await server.open('/sse', { headers: { origin } }), 403, 'SSE_ERR_ORIGIN_FORBIDDEN')
  for (const [origin, host] of [['other://own.example', 'own.example'], ['other://own.example', 'own.example:80'], ['chrome-extension://own.example', 'own.example']] as const) {
    refusal(t, await server.open('/sse', { headers: { origin, host } }), 403, 'SSE_ERR_ORIGIN_FORBIDDEN')
  }
  t.ok((await server.open('/sse', { headers: { origin: 'http://own.example', host: 'own.example' } })).isStream)
  for (const origin of ['capacitor://localhost/', 'capacitor://localhost/index.html', 'Capacitor://localhost', 'capacitor:localhost', 'localhost:3000', 'app://*', 'app://user@host', 'app://a,app://b', 'blob:https://app.example', 'data:text/html,x']) {
    t.throws(() => new SSEManager({ allowedOrigins: [origin] }), { code: 'SSE_ERR_INVALID_OPTION', message: /no origin/ }, origin)
  }
})

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
      for (const [query, outcomes] of cases) {
        const expected = outcomes![name]
        refusal(t, await server.open(`/events${query}`), 401, 'SSE_ERR_UNAUTHENTICATED')
        const client = await server.open(`/events${query}`, bearer('ada'))
        if (typeof expected[0] === 'number') {
          refusal(t, client, ...expected as [number, string])
          t.equal(server.app.sse.connectionCount, 0)
        } else {
          t.ok(client.isStream, `${query} ${client.body}`)
          t.strictSame(held(server), [expected])
          client.close()
          await until(() => server.app.sse.connectionCount === 0)
        }
      }
      t.equal((await server.open('/events', { ...bearer('ada'), method: 'POST' })).status, 404)
      t.strictSame(server.errors(), [])
    })
  }

  await t.test('the name of the parameter, misspelt as other query formats write arrays', async t => {
    const server = await endpoint(true)
    for (const name of ['subscription[]', 'subscription%5B%5D', 'subscription[0]', 'subscription.0', 'subscriptions', 'subscriptions[]', 'Subscription', 'subscriptionId', 'subscription_ids']) {
      const client = await server.open(`/events?${own}&${name}=news`, bearer('ada'))
      refusal(t, client, 400, 'SSE_ERR_INVALID_SUBSCRIPTION')
      t.match(client.answer.message, /\?subscription=a&subscription=b/, name)
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
      const client = await SSEClient.open(`${await listen(app)}${url}`)
      t.teardown(() => client.close())
      t.ok(client.isStream, `${prefix} ${url}`)
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
    const client = await SSEClient.open(`${await listen(app)}/v1/events?subscription=a&subscription=b`)
    t.teardown(() => client.close())
    t.ok(client.isStream)
  })
})

t.test('a client that leaves while it is authenticated', async t => {
  const gates: ((user: string) => void)[] = []
  let closed = 0
  let ran = 0
  const server = await start(t, async app => {
    await app.register(ssePlugin, { requireAuthentication: true, authHandler: () => new Promise<string>(resolve => { gates.push(resolve) }) })
    app.addHook('onRequest', async (_request, reply) => { reply.raw.once('close', () => { closed++ }) })
    const handler = async (_request: FastifyRequest, reply: FastifyReply) => {
      ran++
      await reply.sse()
    }
    app.get('/sse', { sse: true }, handler)
    app.get('/bare', handler)
  })
  for (const path of ['/sse', '/bare']) {
    for (const leave of ['close', 'reset'] as const) {
      const before = closed
      const client = server.dial(path)
      const gate = await until(() => gates.shift())
      t.equal(client.received, 0, 'nothing is answered yet')
      client[leave]()
      await until(() => closed > before)
      gate('ada')
    }
  }
  await until(() => ran >= 2)
  t.equal(server.app.sse.connectionCount, 0)
  t.strictSame(server.errors(), [], 'that is nobody\'s fault')
  const opening = server.open('/sse')
  ;(await until(() => gates.shift()))('ada')
  t.ok((await opening).isStream, 'and others still can')
})

t.test('encapsulation', async t => {
  await t.test('registered in a child: the parent and its other children have nothing', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(async child => {
      await child.register(ssePlugin)
      t.ok(child.sse instanceof SSEManager)
      child.get('/child', { sse: true }, async (_request, reply) => { await reply.sse() })
    })
    await app.register(async sibling => {
      t.equal(sibling.sse, undefined)
      sibling.get('/sibling', async (_request, reply) => ({ sse: typeof (reply as { sse?: unknown }).sse }))
      t.doesNotThrow(() => sibling.get('/theirs', { sse: 'another meaning' } as never, async () => 'theirs'), 'the route option is ours only where we are')
    })
    const url = await listen(app)
    t.equal(app.sse, undefined)
    const client = await SSEClient.open(`${url}/child`)
    t.teardown(() => client.close())
    t.ok(client.isStream)
    t.strictSame((await SSEClient.open(`${url}/sibling`, { headers: { connection: 'close' } })).answer, { sse: 'undefined' })
  })

  await t.test('registered in a parent: its children have it, and share it', async t => {
    const server = await start(t, async app => {
      await app.register(ssePlugin, { requireAuthentication: true, authHandler: asUser })
      await app.register(async child => {
        t.equal(child.sse, app.sse)
        await child.register(async grandchild => {
          grandchild.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
        })
      })
    })
    refusal(t, await server.open(), 401, 'SSE_ERR_UNAUTHENTICATED')
    t.ok((await server.open('/sse', bearer('ada'))).isStream)
    t.equal(server.app.sse.connectionCount, 1)
  })

  await t.test('siblings have managers of their own', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    const managers: SSEManager[] = []
    for (const prefix of ['/a', '/b']) {
      await app.register(async scope => {
        await scope.register(ssePlugin)
        managers.push(scope.sse)
        scope.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
      }, { prefix })
    }
    const url = await listen(app)
    const client = await SSEClient.open(`${url}/b/sse`)
    t.teardown(() => client.close())
    t.strictSame(managers.map(({ connectionCount }) => connectionCount), [0, 1])
  })

  const fails = async (t: Test, register: (app: FastifyInstance) => unknown, expected: { code: string | RegExp, message?: RegExp }) => {
    const app = Fastify()
    t.teardown(() => app.close())
    await t.rejects(async () => {
      await register(app)
      await app.ready()
    }, expected)
  }
  const theirs = (name: string, kind: 'instance' | 'reply') => fp(async (app: FastifyInstance) => {
    if (kind === 'instance') app.decorate(name, { theirs: true })
    else app.decorateReply(name, function () {})
  })

  await t.test('registering twice', async t => {
    await fails(t, async app => {
      await app.register(ssePlugin)
      await app.register(ssePlugin)
    }, { code: 'SSE_ERR_ALREADY_REGISTERED', message: /"fastify\.sse"/ })
    await fails(t, async app => {
      await app.register(ssePlugin)
      await app.register(async child => { await child.register(ssePlugin) })
    }, { code: 'SSE_ERR_ALREADY_REGISTERED' })
    await fails(t, async app => {
      await app.register(ssePlugin, { decorators: { instance: 'a', reply: 'b' } })
      await app.register(ssePlugin, { decorators: { instance: 'a', reply: 'c' } })
    }, { code: 'SSE_ERR_ALREADY_REGISTERED', message: /"fastify\.a"/ })
  })

  await t.test('beside another plugin', async t => {
    for (const [kind, name] of [['instance', 'fastify.sse'], ['reply', 'reply.sse']] as const) {
      await fails(t, async app => {
        await app.register(theirs('sse', kind))
        await app.register(ssePlugin)
      }, { code: 'SSE_ERR_DECORATOR_TAKEN', message: new RegExp(name.replace('.', '\\.')) })
      const app = Fastify()
      t.teardown(() => app.close())
      await app.register(theirs('sse', kind))
      await app.register(ssePlugin, { decorators: { [kind]: 'events' } })
      await app.ready()
      t.pass(`${name} stays theirs under another name of ours`)
    }
    await fails(t, app => app.register(ssePlugin, { decorators: { instance: 'log' } }), { code: 'SSE_ERR_DECORATOR_TAKEN' })
    await fails(t, app => app.register(ssePlugin, { decorators: { reply: 'send' } }), { code: /SSE_ERR_DECORATOR_TAKEN|FST_ERR_DEC_ALREADY_PRESENT/ })
  })

  await t.test('two managers side by side, each with its own say', async t => {
    type Named = FastifyReply & Record<'open' | 'strict', FastifyReply['sse']>
    const server = await start(t, async app => {
      await app.register(ssePlugin, { decorators: { instance: 'openly', reply: 'open' }, authHandler: ({ query }) => query['user'] as string ?? 'guest' })
      await app.register(ssePlugin, { decorators: { instance: 'strictly', reply: 'strict' }, requireAuthentication: true, authHandler: asUser })
      app.get('/open', { open: true } as object, async (_request, reply) => { await (reply as Named).open() })
      app.get('/strict', { strict: true } as object, async (_request, reply) => { await (reply as Named).strict() })
      app.get('/crossed', { open: true } as object, async (_request, reply) => { await (reply as Named).strict() })
      app.get('/both', { open: true, strict: true } as object, async (_request, reply) => { await (reply as Named).strict() })
      app.get('/swapped', { open: true, strict: true } as object, async (_request, reply) => { await (reply as Named).open() })
      t.throws(() => app.get('/x', { strict: 7 } as object, async () => {}), { code: 'SSE_ERR_INVALID_OPTION', message: 'Option "strict" of route /x must be true, false or an object' })
    })
    const { openly, strictly } = server.app as unknown as Record<'openly' | 'strictly', SSEManager>
    t.not(openly, strictly)
    t.equal(server.app.sse, undefined)
    for (const path of ['/strict', '/crossed', '/both', '/swapped']) refusal(t, await server.open(`${path}?user=admin`), 401, 'SSE_ERR_UNAUTHENTICATED')
    t.ok((await server.open('/open')).isStream)
    for (const path of ['/strict', '/crossed', '/both']) t.ok((await server.open(`${path}?user=admin`, bearer('ada'))).isStream, path)
    t.ok((await server.open('/swapped?user=grace', bearer('ada'))).isStream)
    t.strictSame([...openly.connections()].map(({ userId }) => userId), ['guest', 'grace'])
    t.strictSame([...strictly.connections()].map(({ userId }) => userId), ['ada', 'ada', 'ada'])
    const [first] = strictly.getConnectionsByUser('ada')
    t.match(await openly.broadcastEvent({ event: 'x', data: 1 }), { delivered: 2 })
    t.match(await strictly.broadcastEvent({ event: 'x', data: 1 }, { clientIds: [first!.clientId] }), { delivered: 1 })
  })
})

t.test('options that make no sense stop the boot, and are named', async t => {
  const fn = () => {}
  // One or more wrong values for each option; a path with a dot is inside an object.
  const wrong: Record<string, unknown[]> = {
    requireAuthentication: ['yes', 1, null],
    authHandler: ['ada', {}, null],
    extractAuthData: [{}],
    authStrategies: [[], [7], fn, [[7]], [[[fn]]]],
    authRelation: ['xor'],
    authorizeSubscription: [true],
    authorizeTopic: [true],
    ticketSecret: ['short', [], ['short'], 7, 'x'.repeat(31)],
    ticketTtlMs: [0, 999, 600_001],
    allowedOrigins: ['https://app.example', [7], [''], ['app.example'], ['https://app.example/'], ['https://app.example:443'], ['https://App.example'], ['*'], null],
    keepAlive: [0],
    keepAliveIntervalMs: [0, -1, 1.5, '15s', Infinity, NaN],
    retryMs: [99, 3_600_001],
    maxConnectionAgeMs: [-1, 2 ** 31],
    stallTimeoutMs: [-1, '1'],
    events: [{}, null, { events: {}, resources: {} }],
    history: [null, 7, []],
    'history.maxEvents': [0, -1, 2 ** 27],
    'history.maxAgeMs': [0, '5m'],
    'history.maxBytes': [0, 1023],
    outboxBytes: [0, 1023, -1],
    flush: ['later', {}, { intervalMs: 0 }, { intervalMs: 5, more: 1 }, 5],
    maxConnections: [-1, 1.5],
    maxConnectionsPerUser: [-1],
    maxConnectionsPerIp: ['10'],
    maxSubscriptionsPerConnection: [0],
    maxEventBytes: [0, -1],
    maxQueuedBytes: [0, 1023],
    maxReplayEvents: [-1],
    maxReplayBytes: [-1],
    maxConcurrentReplays: [0],
    refusals: ['always', true],
    clientSubscriptions: ['wildcards', 1],
    drainMs: [-1, 3_600_001],
    cluster: [null, 'a'],
    'cluster.nodeName': ['', 7, 'x'.repeat(129)],
    'cluster.heartbeatIntervalMs': [0, 99, 60_001],
    'cluster.answerTimeoutMs': [0, '2s'],
    presenceEvents: [null, true],
    'presenceEvents.topics': ['room:*', [7], ['room:'], ['room:**:1']],
    'presenceEvents.lingerMs': [-1, '5s'],
    broker: [{}, null, 'redis', { open: fn, publish: fn, read: fn }],
    path: ['sse', '', 7],
    decorators: [null, 'sse'],
    'decorators.instance': ['', 7],
    'decorators.reply': ['', null]
  }
  const boots = async (given: unknown) => {
    const app = Fastify()
    try {
      await app.register(ssePlugin, given as SSEOptions)
      await app.ready()
      return null
    } catch (error) {
      return error as SSEError
    } finally {
      await app.close()
    }
  }
  const at = (path: string, value: unknown) => path.split('.').reduceRight<unknown>((inner, key) => ({ [key]: inner }), value)
  const refused = async (given: unknown, path: string, title: string) => {
    const error = await boots(given)
    t.ok(error instanceof SSEError && error.code === 'SSE_ERR_INVALID_OPTION', `${title}: ${error?.code}`)
    const named = /^Option "([^"]*)" (.+)$/.exec(error?.message ?? '')
    t.ok(named !== null && (named[1] === path || named[1]!.startsWith(`${path}.`)), `${title}: ${error?.message}`)
  }

  const paths = Object.entries(OptionsSchema.properties as Record<string, TSchema>).flatMap(([key, { properties }]) => [key, ...Object.keys(properties ?? {}).map(inner => `${key}.${inner}`)])
  t.strictSame(Object.keys(wrong).sort(), paths.sort(), 'each option is in the table')
  // Options that decide who may connect or who receives what: absent is a decision, undefined is a mistake.
  const protecting = ['requireAuthentication', 'authHandler', 'authStrategies', 'authRelation', 'authorizeSubscription', 'authorizeTopic', 'decorators', 'decorators.reply']
  for (const [path, values] of Object.entries(wrong)) {
    for (const value of values) await refused(at(path, value), path, `${path}: ${JSON.stringify(value)}`)
    if (protecting.includes(path)) t.match(await boots(at(path, undefined)), { code: 'SSE_ERR_INVALID_OPTION', message: new RegExp(`^Option "${path}" is undefined, which would take a protection away`) }, path)
    else t.equal(await boots(at(path, undefined)), null, `${path}: undefined is not given`)
  }
  t.match(await boots({ requireAuthentification: undefined }), { message: 'Option "requireAuthentification" is not an option' }, 'nor is an unknown name overlooked because of its value')
  for (const [path, value] of [['keepAliveMs', 15_000], ['history.maxEvent', 1], ['decorators.request', 'sse'], ['Path', '/sse'], ['constructor', 1]] as const) {
    const error = await boots(at(path, value))
    t.match(error, { code: 'SSE_ERR_INVALID_OPTION', message: `Option "${path}" is not an option` }, path)
  }
  t.match(await boots(Promise.resolve({ requireAuthentication: true })), { code: 'SSE_ERR_INVALID_OPTION', message: /a promise/ })
  t.match(await boots({ authRelation: 'AND' }), { message: /must be "or" or "and"/ })
  t.match(await boots({ broker: { open: fn, publish: fn, read: fn } }), { message: /no method claim/ })
  const yes = () => true
  for (const [given, path] of [
    [{ requireAuthentication: true }, 'requireAuthentication'],
    [{ requireAuthentication: true, authorizeSubscription: yes }, 'requireAuthentication'],
    [{ clientSubscriptions: true, path: '/sse' }, 'clientSubscriptions'],
    [{ clientSubscriptions: 'patterns', path: '/sse' }, 'clientSubscriptions'],
    [{ clientSubscriptions: true, authorizeSubscription: yes }, 'clientSubscriptions'],
    [{ maxEventBytes: 4096, history: { maxBytes: 2048 } }, 'maxEventBytes'],
    [{ history: { maxBytes: 2048 } }, 'maxEventBytes']
  ] as const) await refused(given, path, JSON.stringify(given))
  t.throws(() => new SSEManager('options' as never), { code: 'SSE_ERR_INVALID_OPTION' })
  t.throws(() => new SSEManager([] as never), { code: 'SSE_ERR_INVALID_OPTION' })
  t.throws(() => new SSEManager({ keepAliveMs: 1 } as never), { code: 'SSE_ERR_INVALID_OPTION' })
  // Read by the plugin only: on a plain server they would protect nothing, and open nothing.
  const onlyPlugin: SSEOptions = { path: '/sse', clientSubscriptions: true, decorators: { instance: 'a' }, authStrategies: [async () => {}], authRelation: 'and' }
  for (const [name, value] of Object.entries(onlyPlugin)) {
    t.throws(() => new SSEManager({ authorizeSubscription: yes, [name]: value }), { code: 'SSE_ERR_INVALID_OPTION', message: new RegExp(`^Option "${name}" has no effect in an SSEManager`) as never }, name)
  }
  t.ok(new SSEManager({ path: undefined } as never), 'undefined is not given')
  t.throws(() => new SSEManager({ authHandler: undefined } as never), { code: 'SSE_ERR_INVALID_OPTION', message: /undefined/ })
})
