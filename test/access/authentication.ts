import fastifyCookie from '@fastify/cookie'
import Fastify, { type FastifyReply, type FastifyRequest } from 'fastify'
import t from 'tap'
import { authDataOf, currentUser, findUser, isRefusal, parameterOf, queryOf, type AuthenticationOptions } from '../../lib/access/authentication.js'
import { assertOrigin } from '../../lib/access/origin.js'
import ssePlugin, { SSEManager } from '../../lib/index.js'
import type { HttpRequest } from '../../lib/wire/http.js'
import { systemClock } from '../../lib/util/clock.js'
import { refusal, start, type Server } from '../helpers/server.js'
import { until } from '../helpers/wait.js'
import { payloads } from '../helpers/app.js'
import { RawSocket } from '../helpers/raw.js'

/** The users of the open streams. */
const users = ({ app }: Server) => [...app.sse.connections()].map(({ userId }) => userId)

t.test('what authHandler returns', async t => {
  const secret = 'password of the database'
  const failed = 'SSE_ERR_AUTHENTICATION_FAILED'
  const cases: [name: string, result: () => unknown, expected: string | [status: number, code: string]][] = [
    ['a user id', () => 'ada', 'ada'],
    ['a promise of one', async () => 'ada', 'ada'],
    ['what has no more of a promise than then()', () => ({ then: (resolve: (user: string) => void) => { resolve('ada') } }), 'ada'],
    ['a function that can be waited for, as the stub of a remote call', () => Object.assign(() => {}, { then: (resolve: (user: string) => void) => { resolve('ada') } }), 'ada'],
    ['a rejection by then()', () => ({ then: (_resolve: unknown, reject: (error: Error) => void) => { reject(new Error(secret)) } }), [500, failed]],
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
      const stream = await server.open(path)
      if (typeof expected === 'string') {
        t.ok(stream.isStream, `${name} ${path}`)
        t.strictSame(users(server), [expected])
        await stream.close()
        await until(() => server.app.sse.connectionCount === 0)
        continue
      }
      refusal(t, stream, ...expected)
      t.strictSame(Object.keys(stream.body).sort(), ['code', 'error', 'message', 'statusCode'])
      t.notMatch(stream.body, secret, `${name} ${path}: no internals`)
      t.equal(server.app.sse.connectionCount, 0)
      const logged = server.errors().slice(errors)
      t.equal(logged.length, expected[0] === 500 ? 1 : 0, `${name} ${path}: logged`)
      if (name === 'a throw' || name === 'a rejection') t.match(logged[0].err.stack, secret)
    }
    if (Array.isArray(expected)) {
      const stream = await server.open('/optional')
      t.equal(stream.status, expected[0] === 500 ? 500 : 200, `${name}, where nobody may come: broken is not nobody`)
      await stream.close()
      await until(() => server.app.sse.connectionCount === 0)
    }
  }
})

t.test('the rights and claims of a user stay with the connection, which ends with them', async t => {
  const server = await start(t, { authHandler: () => ({ userId: 'ada', claims: { role: 'admin' }, expiresAt: Date.now() + 300 }), keepAliveIntervalMs: 20 })
  const stream = await server.open()
  const [connection] = server.app.sse.getConnectionsByUser('ada')
  t.strictSame(connection!.claims, { role: 'admin' })
  await stream.ended
  t.strictSame(payloads(stream, 'sse:close'), [{ reason: 'auth-expired', reconnect: true }])
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
      t.strictSame({ ...data.cookies }, { session: 's 1', quoted: withPlugin ? '"q"' : 'q', broken: '%zz' })
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
    let broken: unknown = null
    const server = await start(t, {
      requireAuthentication: true,
      authHandler: authData => {
        data = authData
        return 'ada'
      },
      extractAuthData: () => {
        if (broken !== null) throw broken
        return {}
      }
    })
    await server.open('/sse?a=1&ticket=x%20y')
    t.match(data.query, { a: '1', ticket: 'x y' })
    broken = new Error('secret')
    const stream = await server.open()
    refusal(t, stream, 500, 'SSE_ERR_AUTHENTICATION_FAILED')
    t.notMatch(stream.body, 'secret')
    t.match(server.errors()[0].err.stack, /secret/)
    t.equal(server.errors()[0].err.message, 'Authentication could not be completed: secret')
    await server.open('/sse', { headers: { accept: 'text/event-stream' } })
    // What `connect()` of Node rejects with for a name that has two addresses, for instance.
    const refused = Object.assign(new AggregateError([new Error('connect ECONNREFUSED 10.0.0.1:5432')], ''), { code: 'ECONNREFUSED' })
    const circular = new Error('circular')
    circular.cause = circular
    const unreadable = { get message () { throw new Error('no') } }
    for (const [cause, reasons] of [[broken, 'secret'], [refused, 'ECONNREFUSED'], [new Error('no session', { cause: 'pool is closed' }), 'no session: pool is closed'], [new Error('x'.repeat(1_000)), `${'x'.repeat(300)}…`], [circular, 'circular: circular: circular'], [unreadable, 'a value of type object'], ['a string', 'a string'], [7, 'a value of type number']] as const) {
      broken = cause
      const before = server.errors().length
      await server.open('/sse', { headers: { accept: 'text/event-stream' } })
      t.same(server.errors().slice(before).map(({ msg }) => msg), [`Stream refused: Authentication could not be completed: ${reasons}`])
    }
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
      const stream = await server.open(path, { headers })
      if (allowed) t.ok(stream.isStream, JSON.stringify(headers))
      else {
        refusal(t, stream, 403, 'SSE_ERR_ORIGIN_FORBIDDEN')
        const { origin, 'sec-fetch-site': site } = headers as Record<string, string>
        t.equal(stream.body.message, `Pages of ${origin === undefined ? `another origin (Sec-Fetch-Site: "${site}")` : `origin "${origin}"`} are not allowed here; add the origin to the option "allowedOrigins"`)
      }
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
    t.throws(() => new SSEManager({ allowedOrigins: [origin] }), { code: 'SSE_ERR_INVALID_OPTION', message: origin.includes('*') ? /wildcards are not supported/ : /no origin/ }, origin)
  }
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
      const socket = new RawSocket(server.url, { path })
      const gate = await until(() => gates.shift())
      t.equal(socket.length, 0, 'nothing is answered yet')
      if (leave === 'reset') socket.socket.resetAndDestroy()
      else socket.close()
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

t.test('the parts of a request of plain Node, and what is made of the result', async t => {
  const NOW = 1_700_000_000_000
  const options: AuthenticationOptions = { clock: { ...systemClock, wall: () => NOW }, requireAuthentication: false, allowedOrigins: [] }
  const asking = (url: string | undefined, headers: object = {}) => ({ url, headers }) as HttpRequest

  t.strictSame({ ...queryOf(asking('/sse?a=1&b=%20&a=2&=x&__proto__=p')) }, { a: '1', b: ' ', '': 'x', ['__proto__']: 'p' }, 'the first value of each')
  for (const url of [undefined, '', '/sse', '/sse?']) t.strictSame({ ...queryOf(asking(url)) }, {})
  t.strictSame(['a', 'b', 'sse'].map(name => parameterOf(asking('/sse?a=1&a=2&x=b'), name)), ['1', null, null])
  const data = authDataOf(asking('/sse?q=1', { cookie: 'a=1; a=2; quoted="x y"; half="x; b = %C3%A9 ; broken=%zz; empty=; none' }), () => ({ query: 'own', extra: 1 }))
  t.strictSame({ ...data.cookies }, { a: '1', quoted: 'x y', half: '"x', b: 'é', broken: '%zz', empty: '' })
  t.match(data, { token: null, query: 'own', extra: 1 })

  // The properties of createConnection() come after what the request says.
  const found: unknown[] = []
  findUser({ ...options, authHandler: data => { found.push(data['token'], data['more']); return null } }, asking('/'), { token: 'given', more: 1 })
  t.strictSame(found, ['given', 1])
  const refusal = Object.assign(new Error('no'), { statusCode: 403 })
  t.equal(await findUser({ ...options, authHandler: async () => { throw refusal } }, asking('/')), null)
  const later = findUser({ ...options, authHandler: async () => 7 as never }, asking('/')) as Promise<unknown>
  await t.rejects(later, { code: 'SSE_ERR_AUTHENTICATION_FAILED', cause: { code: 'SSE_ERR_INVALID_USER' } }, 'a user that is none is a failure, whenever it comes')
  t.strictSame([401, 403, 400, 500].map(statusCode => isRefusal(Object.assign(new Error(), { statusCode }))), [true, true, false, false])
  t.notOk(isRefusal({ statusCode: 401 }))

  const until = (expiresAt: number) => currentUser({ userId: 'ada', expiresAt }, options)
  t.strictSame([NOW - 1, NOW, NOW + 1].map(expiresAt => until(expiresAt) === null), [true, true, false])
  for (const seconds of [1e9, 1.7e9, 99_999_999_999]) t.throws(() => until(seconds), { code: 'SSE_ERR_INVALID_USER', message: 'looks like seconds' }, String(seconds))
  for (const past of [0, 999_999_999, 1e11]) t.equal(until(past), null, String(past))

  const allows = (headers: object, allowedOrigins: AuthenticationOptions['allowedOrigins'] = []) => {
    try {
      assertOrigin({ allowedOrigins }, asking('/', headers))
      return true
    } catch (error) {
      t.match(error, { code: 'SSE_ERR_ORIGIN_FORBIDDEN' })
      return false
    }
  }
  t.ok(allows({ origin: 'https://own.example', ':authority': 'own.example' }), 'HTTP/2 has no host header')
  t.ok(allows({ origin: 'http://own.example', host: 'own.example:80' }))
  t.notOk(allows({ origin: 'http://own.example', host: 'own.example:443' }))
  t.notOk(allows({ origin: 'https://own.example' }), 'without a host there is nothing to compare')
  t.notOk(allows({ origin: 'capacitor://own.example', host: 'own.example' }))
  t.ok(allows({ origin: 'capacitor://own.example', host: 'own.example' }, ['capacitor://own.example']))
  // The browser knows better than a comparison of names.
  t.notOk(allows({ origin: 'https://own.example', host: 'own.example', 'sec-fetch-site': 'same-site' }))
  t.ok(allows({ origin: 'https://own.example', host: 'proxy.internal', 'sec-fetch-site': 'same-origin' }))
})
