import fastifyAuth from '@fastify/auth'
import fastifyJwt from '@fastify/jwt'
import { type FastifyInstance, type FastifyReply, type FastifyRequest, type onRequestHookHandler, type RouteOptions } from 'fastify'
import t from 'tap'
import ssePlugin, { type SSEManager, type SSEOptions, type SSEUser } from '../../lib/index.js'
import { bearer, refusal, start } from '../helpers/server.js'
import { until } from '../helpers/wait.js'

// Which routes are guarded, whatever the order and the scope of their declaration; and whose word counts on who a client is.

const asUser: SSEOptions['authHandler'] = ({ token }) => token

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
        const stream = await server.open(path, token)
        t.ok(stream.isStream, path)
        t.strictSame(userOf(server.app.sse), [user], path)
        await stream.close()
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
      const stream = await server.open(path, options)
      t.ok(stream.isStream)
      t.strictSame(userOf(server.app.sse), [user])
      await stream.close()
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

  await t.test('a second attempt of the handler has the user of the first, and asks nobody again', async t => {
    let asked = 0
    const server = await start(t, async app => {
      await app.register(ssePlugin, {
        authHandler: (_data, request) => {
          asked++
          return (request as FastifyRequest).user as string | undefined ?? null
        },
        authorizeSubscription: ({ subscriptionId }) => subscriptionId === 'allowed'
      })
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => {
        await t.rejects(reply.sse({ subscriptions: ['forbidden'] }), { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' })
        await reply.sse({ subscriptions: ['allowed'] })
      }
      app.get('/found', { sse: true, preHandler: async request => { Object.assign(request, { user: 'ada' }) } }, handler)
      app.get('/nobody', { sse: true, preHandler: async request => { Object.assign(request, { other: 1 }) } }, handler)
      app.get('/set', { sse: true, preHandler: async request => { request.sseUser = { userId: 'grace' } } }, handler)
      app.get('/changed', { sse: true, onRequest: async request => { Object.assign(request, { user: 'ada' }) }, preHandler: async request => { request.sseUser = { userId: 'grace' } } }, handler)
    })
    for (const [path, user, times, warnings] of [['/found', 'ada', 2, 0], ['/nobody', null, 2, 0], ['/set', 'grace', 1, 0], ['/changed', 'grace', 1, 1]] as const) {
      asked = 0
      server.lines.length = 0
      const stream = await server.open(path)
      t.ok(stream.isStream, path)
      t.strictSame([userOf(server.app.sse), asked], [[user], times], path)
      t.equal(server.lines.filter(({ level }) => level === 40).length, warnings, `${path}: the change is told once`)
      await stream.close()
      await until(() => server.app.sse.connectionCount === 0)
    }
  })

  await t.test('a user that a hook has set counts for each manager, one that a manager has found only for itself', async t => {
    type Named = FastifyReply & Record<'a' | 'b', FastifyReply['sse']>
    const asked: string[] = []
    const handlerOf = (name: string): NonNullable<SSEOptions['authHandler']> => ({ query }, request) => {
      asked.push(name)
      return (name === 'a' ? (request as { late?: string }).late : undefined) ?? query[name] as string | undefined ?? null
    }
    const server = await start(t, async app => {
      for (const name of ['a', 'b']) await app.register(ssePlugin, { decorators: { instance: name, reply: name }, requireAuthentication: name === 'b', authHandler: handlerOf(name) })
      const both = { a: true, b: true } as object
      app.get('/retry', { a: true, preHandler: async (request: FastifyRequest) => { Object.assign(request, { late: 'ada' }) } } as object, async (request, reply) => {
        await t.rejects((reply as Named).a({ retryMs: 1 }), { code: 'SSE_ERR_INVALID_RETRY' })
        t.equal(request.sseUser?.userId, 'ada')
        await (reply as Named).b()
      })
      const byHook = async (request: FastifyRequest) => { request.sseUser = { userId: 'by-hook' } }
      for (const [path, options] of [['/found', both], ['/hook', { ...both, onRequest: byHook }], ['/late', { ...both, preHandler: byHook }]] as const) {
        app.get(path, options, async (request, reply) => {
          const name = (request.query as { by: 'a' | 'b' }).by
          await (reply as Named)[name]()
          t.equal(request.sseUser?.userId ?? null, [...(app as unknown as Record<string, SSEManager>)[name]!.connections()][0]!.userId, 'that of the stream')
        })
      }
    })
    const managers = server.app as unknown as Record<'a' | 'b', SSEManager>
    // Also one that the first manager has found late.
    for (const user of [null, 'bob']) {
      asked.length = 0
      const stream = await server.open(`/retry${user === null ? '' : `?b=${user}`}`)
      t.equal(asked.join(' '), 'a a b')
      if (user === null) refusal(t, stream, 401, 'SSE_ERR_UNAUTHENTICATED')
      else t.strictSame(userOf(managers.b), [user])
      await stream.close()
      await until(() => managers.b.connectionCount === 0)
    }
    const rows: [path: string, user: string | null | undefined, asked: string][] = [
      ['/found?by=a&a=ada&b=bob', 'ada', 'a b'],
      ['/found?by=b&a=ada&b=bob', 'bob', 'a b'],
      ['/found?by=a&b=bob', null, 'a b'],
      ['/found?by=b&a=ada', undefined, 'a b'],
      ['/hook?by=a&a=ada&b=bob', 'by-hook', ''],
      ['/hook?by=b', 'by-hook', ''],
      ['/late?by=a&a=ada&b=bob', 'by-hook', 'a b'],
      ['/late?by=b&b=bob', 'by-hook', 'a b']
    ]
    for (const [url, user, calls] of rows) {
      asked.length = 0
      const stream = await server.open(url)
      t.equal(asked.join(' '), calls, url)
      if (user === undefined) {
        refusal(t, stream, 401, 'SSE_ERR_UNAUTHENTICATED')
        continue
      }
      const manager = managers[url.includes('by=a') ? 'a' : 'b']
      t.strictSame(userOf(manager), [user], url)
      await stream.close()
      await until(() => manager.connectionCount === 0)
    }
  })
})
