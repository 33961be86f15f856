import rateLimit from '@fastify/rate-limit'
import { type FastifyReply, type FastifyRequest } from 'fastify'
import { createServer } from 'node:http'
import { type AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { EventSource } from 'undici'
import { refusalOf, sendRefusal, streamRefusal } from '../../lib/access/refusal.js'
import { AuthenticationFailed, Closed, TooManyUserConnections, Unauthenticated } from '../../lib/errors.js'
import type { HttpRequest, HttpResponse } from '../../lib/wire/http.js'
import { memoryBroker, SSEManager, type SSEOptions } from '../../lib/index.js'
import { openURL, payloads, serve, type Service } from '../helpers/app.js'
import { until } from '../helpers/wait.js'
import { blocksOf } from '../helpers/raw.js'
import type { TestStream } from '../../lib/testing/index.js'

// Every bound, at the bound and one beyond it; and how a client is told.

const STREAM = { accept: 'text/event-stream' }
const refused = (t: Test, stream: TestStream, status: number, code: string, message = '') => t.match([stream.status, stream.body.code], [status, code], message)

// --- How a client is told ---

t.test('refusals', async t => {
  const full: SSEOptions = { maxConnections: 1, retryMs: 400 }
  const occupy = async (service: Service) => (await service.join()).stream

  await t.test('to a client that asks for an event stream: a stream that says when to come back, and ends', async t => {
    const service = await serve(t, full)
    await occupy(service)
    const retries: number[] = []
    for (let i = 0; i < 20; i++) {
      const stream = await service.open('/sse', { headers: STREAM })
      t.match([stream.status, stream.headers['content-type'], stream.headers['cache-control']], [200, 'text/event-stream', /no-store/])
      await stream.ended
      t.strictSame(payloads(stream, 'sse:error'), [{ code: 'SSE_ERR_TOO_MANY_CONNECTIONS', message: 'Too many open streams', retryable: true }])
      t.strictSame(blocksOf(stream.text).map(({ id }) => id), [null, null], 'its place is left as it was')
      retries.push(blocksOf(stream.text)[0]!.retry!)
    }
    t.ok(retries.every(retry => retry >= 400 && retry <= 800) && new Set(retries).size > 10, `spread: ${retries}`)
    t.equal(service.app.sse.connectionCount, 1)
  })

  await t.test('to others by status, with the same code', async t => {
    const service = await serve(t, full)
    await occupy(service)
    for (const headers of [{}, { accept: '*/*' }, { accept: 'application/json, */*;q=0.1' }, { accept: 'text/event-stream;q=0, */*' }] as Record<string, string>[]) {
      const stream = await service.open('/sse', { headers })
      refused(t, stream, stream.status === 406 ? 406 : 503, stream.status === 406 ? 'SSE_ERR_NOT_ACCEPTABLE' : 'SSE_ERR_TOO_MANY_CONNECTIONS', JSON.stringify(headers))
    }
  })

  await t.test('every refusal, by each value of the option', async t => {
    const limits = { user: { maxConnectionsPerUser: 1 }, address: { maxConnectionsPerIp: 1 } }
    type Expected = 'stream' | 204 | number
    const table: [what: string, options: SSEOptions, path: string, headers: Record<string, string>, code: string, auto: Expected, status: Expected, stop: Expected][] = [
      ['too many', { maxConnections: 1 }, '/sse', {}, 'SSE_ERR_TOO_MANY_CONNECTIONS', 'stream', 503, 'stream'],
      ['too many of a user', limits.user, '/sse?user=ada', {}, 'SSE_ERR_TOO_MANY_USER_CONNECTIONS', 'stream', 429, 'stream'],
      ['too many from an address', limits.address, '/sse', {}, 'SSE_ERR_TOO_MANY_IP_CONNECTIONS', 'stream', 429, 'stream'],
      ['authentication that fails to answer', { authHandler: ({ query }) => { if (query['join'] === undefined) throw new Error('secret'); return null } }, '/sse', {}, 'SSE_ERR_AUTHENTICATION_FAILED', 'stream', 500, 'stream'],
      ['nobody', { requireAuthentication: true }, '/sse', {}, 'SSE_ERR_UNAUTHENTICATED', 401, 401, 204],
      ['a page of another site', {}, '/sse', { 'sec-fetch-site': 'cross-site' }, 'SSE_ERR_ORIGIN_FORBIDDEN', 403, 403, 204],
      ['a subscription', { path: '/ready' }, '/ready?subscription=a', {}, 'SSE_ERR_SUBSCRIPTION_FORBIDDEN', 403, 403, 204],
      ['an error of the handler', {}, '/broken', {}, '', 500, 500, 500],
      ['a 404 of the handler', {}, '/missing', {}, '', 404, 404, 204]
    ]
    for (const [what, options, path, headers, code, ...outcomes] of table) {
      for (const [i, refusals] of (['auto', 'status', 'stop'] as const).entries()) {
        const service = await serve(t, { ...options, refusals }, {}, app => {
          app.get('/broken', { sse: true }, async () => { throw new Error('secret') })
          app.get('/missing', { sse: true }, async () => { throw Object.assign(new Error('no such board'), { statusCode: 404 }) })
        })
        await service.join('ada').catch(() => {})
        const stream = await service.open(path, { headers: { ...STREAM, ...headers } })
        const expected = outcomes[i]!
        if (expected === 'stream') {
          await stream.ended
          t.equal(stream.status, 200)
          t.match(payloads(stream, 'sse:error'), [{ code, retryable: true }], `${what}, ${refusals}`)
          t.notMatch(blocksOf(stream.text).map(({ text }) => text).join(), 'secret')
        } else if (expected === 204) {
          t.strictSame([stream.status, stream.body], [204, ''], `${what}, ${refusals}`)
        } else {
          t.equal(stream.status, expected, `${what}, ${refusals}`)
          if (code !== '') t.equal(stream.body.code, code)
        }
        await stream.close()
      }
    }
  })

  await t.test('of errors of the application, or of its clients of databases, neither message nor code', async t => {
    const secret = 'no_shard_available: http://elastic:hunter2@10.0.0.7:9200/orders'
    const service = await serve(t, {}, {}, app => {
      app.setErrorHandler((error, _request, reply) => { reply.code((error as { statusCode?: number }).statusCode ?? 500).send({ error: 'sorry' }) })
      const fails = (error: object) => async () => { throw error }
      app.get('/503', { sse: true }, fails(Object.assign(new Error(secret), { statusCode: 503, code: 'ES_INTERNAL_9200' })))
      app.get('/429', { sse: true }, fails(Object.assign(new Error(secret), { statusCode: 429, code: 'QUOTA_OF_HUNTER2' })))
      app.get('/plain', { sse: true }, fails({ statusCode: 503, message: secret, code: 'HUNTER2' }))
      app.get('/hook', { sse: true, preHandler: fails(Object.assign(new Error(secret), { statusCode: 503 })) }, async () => {})
      app.get('/strategy', { sse: true, onRequest: fails(Object.assign(new Error(secret), { statusCode: 503 })) }, async () => {})
      app.get('/stopping', { sse: { refusals: 'stop' } }, fails(Object.assign(new Error(secret), { statusCode: 404 })))
    })
    for (const [path, message] of [['/503', 'Service Unavailable'], ['/429', 'Too Many Requests'], ['/plain', 'Service Unavailable'], ['/hook', 'Service Unavailable'], ['/strategy', 'Service Unavailable']] as const) {
      const stream = await service.open(path, { headers: STREAM })
      await stream.ended
      t.strictSame(payloads(stream, 'sse:error'), [{ message, retryable: true }], path)
      t.notMatch(blocksOf(stream.text).map(({ text }) => text).join(), /hunter2|ES_|elastic/i)
      t.strictSame((await service.open(path)).body, { error: 'sorry' })
    }
    t.match(await service.open('/stopping', { headers: STREAM }), { status: 204, body: '' })
    // What a broker says of its failure, told by createConnection's own answers.
    const broker = memoryBroker()
    const sse = new SSEManager({ broker: Object.assign(broker, { open: async () => { throw new Error(secret) } }) })
    const server = createServer(async (request, response) => {
      await sse.createConnection({ request, response }).catch(error => sse.refuse({ request, response }, error))
    })
    server.listen(0, '127.0.0.1')
    await until(() => server.listening)
    t.teardown(() => server.close())
    for (const headers of [{}, STREAM]) {
      const stream = await openURL(t, `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, { headers: { connection: 'close', ...headers } })
      await until(() => !stream.isOpen)
      t.notMatch(stream.body + blocksOf(stream.text).map(({ text }) => text).join(), 'hunter2')
    }
  })

  await t.test('only what an EventSource can send is refused by a stream, and each route may say otherwise', async t => {
    const service = await serve(t, { ...full, path: '/ready' }, {}, app => {
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() }
      app.post('/post', { sse: true }, handler)
      app.put('/put', { sse: { refusals: 'stop' } }, handler)
      app.get('/status', { sse: { refusals: 'status' } }, handler)
      app.get('/stop', { sse: { refusals: 'stop', requireAuthentication: true } }, handler)
      app.get('/auto', { sse: {} }, handler)
    })
    await occupy(service)
    const answer = async (path: string, method: string, accept = 'application/json, text/event-stream') => {
      const stream = await service.open(path, { method, headers: { accept, connection: 'close' } })
      return stream.isStream ? 'stream' : stream.status
    }
    t.strictSame([await answer('/post', 'POST'), await answer('/put', 'PUT'), await answer('/sse', 'HEAD'), await answer('/ready', 'HEAD')], [503, 503, 503, 503])
    t.equal(await answer('/post', 'POST', 'text/event-stream'), 503, 'whatever it accepts')
    t.strictSame([await answer('/status', 'GET'), await answer('/stop', 'GET'), await answer('/auto', 'GET'), await answer('/ready', 'GET')], [503, 'stream', 'stream', 'stream'])
    ;[...service.app.sse.connections()][0]!.close()
    await until(() => service.app.sse.connectionCount === 0)
    t.strictSame([await answer('/stop', 'GET'), await answer('/stop', 'GET', '*/*')], [204, 401], 'and the rest of it')

    const strict = await serve(t, { ...full, refusals: 'status' }, {}, app => {
      app.get('/auto', { sse: { refusals: 'auto' } }, async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() })
    })
    await occupy(strict)
    t.ok((await strict.open('/auto', { headers: STREAM })).isStream)
    t.equal((await strict.open('/sse', { headers: STREAM })).status, 503)
  })

  await t.test('while draining: not before the server may be back', async t => {
    const service = await serve(t, { retryMs: 200, drainMs: 2_000 })
    const { stream } = await service.join()
    stream.freeze()
    const draining = service.app.sse.drain()
    const late = await service.open('/sse', { headers: STREAM })
    await late.ended
    t.match(payloads(late, 'sse:error'), [{ code: 'SSE_ERR_CLOSED', retryable: true }])
    const retry = blocksOf(late.text)[0]!.retry!
    t.ok(retry >= 2_000 && retry <= 4_000, String(retry))
    refused(t, await service.open('/sse'), 503, 'SSE_ERR_CLOSED')
    await stream.close()
    await draining
  })

  await t.test('a time to come back that is longer than the format allows is cut to an hour', async t => {
    const service = await serve(t, { maxConnections: 1, retryMs: 3_600_000 }, {}, app => {
      app.get('/maintenance', { sse: true }, async (_request, reply) => {
        reply.header('retry-after', '7200')
        throw Object.assign(new Error('back at noon'), { statusCode: 503 })
      })
    })
    await occupy(service)
    for (const path of ['/sse', '/maintenance']) {
      const stream = await service.open(path, { headers: STREAM })
      await stream.ended
      t.match(payloads(stream, 'sse:error'), [{ retryable: true }], path)
      t.equal(blocksOf(stream.text)[0]!.retry, 3_600_000, path)
    }
  })

  await t.test('an EventSource comes back by itself and gets in; by status it gives up for ever', async t => {
    const service = await serve(t, { maxConnections: 1, retryMs: 100 })
    const first = await occupy(service)
    const source = new EventSource(`${service.url}/sse`)
    t.teardown(() => source.close())
    let refusals = 0
    const messages: string[] = []
    source.addEventListener('sse:error', () => { refusals++ })
    source.addEventListener('message', event => { messages.push(event.data) })
    await until(() => refusals >= 2)
    const [old] = [...service.app.sse.connections()]
    await first.close()
    await until(() => [...service.app.sse.connections()].some(connection => connection !== old))
    await service.app.sse.broadcastEvent({ data: 'in' })
    await until(() => messages.length === 1)

    const strict = await serve(t, { maxConnections: 1, retryMs: 100, refusals: 'status' })
    const other = await occupy(strict)
    const given = new EventSource(`${strict.url}/sse`)
    t.teardown(() => given.close())
    await until(() => given.readyState === EventSource.CLOSED)
    await other.close()
    await until(() => strict.app.sse.connectionCount === 0)
    t.equal(given.readyState, EventSource.CLOSED)
  })

  await t.test('the application\'s own error handlers and hooks are where they were', async t => {
    const calls: string[] = []
    const service = await serve(t, { requireAuthentication: true, refusals: 'auto', maxConnectionsPerIp: 1 }, {}, app => {
      app.setErrorHandler((error, _request, reply) => {
        calls.push('scope')
        reply.code(418).send({ seen: (error as { code?: string }).code })
      })
      app.addHook('onError', async () => { calls.push('onError') })
      app.get('/own', {
        sse: true,
        errorHandler (error, _request, reply) {
          calls.push('route')
          reply.code(419).send({ seen: error.code })
        }
      }, async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() })
      app.get('/rethrows', { sse: true, errorHandler (error) { throw error } }, async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() })
    })
    for (const [path, status, expected] of [['/sse', 418, ['onError', 'scope']], ['/own', 419, ['onError', 'route']], ['/rethrows', 418, ['onError', 'scope']]] as const) {
      for (const headers of [{}, STREAM] as Record<string, string>[]) {
        calls.length = 0
        const stream = await service.open(path, { headers })
        t.strictSame([stream.status, stream.body], [status, { seen: 'SSE_ERR_UNAUTHENTICATED' }], path)
        t.strictSame(calls, expected)
        await stream.close()
      }
    }
    await service.join('ada')
    calls.length = 0
    const busy = await service.open('/own?user=ada', { headers: STREAM })
    await busy.ended
    t.match(payloads(busy, 'sse:error'), [{ code: 'SSE_ERR_TOO_MANY_IP_CONNECTIONS' }])
    t.strictSame(calls, ['onError'])
  })

  await t.test('@fastify/rate-limit: how often clients connect, before they are authenticated', async t => {
    let asked = 0
    const service = await serve(t, {
      retryMs: 100,
      authHandler: () => {
        asked++
        return 'ada'
      }
    }, {}, app => {
      app.register(async scope => {
        await scope.register(rateLimit, { global: false })
        // A hook of the scope comes before those of its routes.
        scope.addHook('onRequest', scope.rateLimit({ max: 3, timeWindow: 30_000 }))
        scope.get('/limited', { sse: true }, async (_request, reply) => { await reply.sse() })
        scope.post('/publish', async () => await app.sse.broadcastEvent({ data: 'x' }))
      })
    })
    for (let i = 0; i < 3; i++) t.ok((await service.open('/limited', { headers: STREAM })).isStream)
    t.equal(asked, 3)
    const limited = await service.open('/limited', { headers: STREAM })
    await limited.ended
    t.strictSame(payloads(limited, 'sse:error'), [{ message: 'Too Many Requests', retryable: true }])
    t.ok(blocksOf(limited.text)[0]!.retry! >= 25_000, 'not before the limiter lets it in again')
    t.equal((await service.open('/limited')).status, 429)
    t.equal((await service.open('/publish', { method: 'POST' })).status, 429, 'publishing by a route is limited likewise')
    t.equal(asked, 3)
  })

  await t.test('without Fastify', async t => {
    const sse = new SSEManager({ maxConnections: 1, requireAuthentication: true, authHandler: ({ token }) => { if (token === 'broken') throw new Error('secret'); return token }, retryMs: 3_000 })
    const server = createServer(async (request, response) => {
      try {
        await sse.createConnection({ request, response })
      } catch (error) {
        sse.refuse({ request, response }, request.url === '/theirs' ? Object.assign(new TypeError('secret'), { statusCode: 503, code: 'ESECRET' }) : error)
      }
    })
    server.listen(0, '127.0.0.1')
    await until(() => server.listening)
    t.teardown(async () => {
      server.close()
      server.closeAllConnections()
      await sse.close()
    })
    const open = (path: string, headers: Record<string, string> = {}) => openURL(t, `http://127.0.0.1:${(server.address() as AddressInfo).port}${path}`, { headers: { connection: 'close', ...headers } })
    refused(t, await open('/'), 401, 'SSE_ERR_UNAUTHENTICATED')
    t.strictSame((await open('/')).body, { statusCode: 401, code: 'SSE_ERR_UNAUTHENTICATED', error: 'Unauthorized', message: 'Authentication required' })
    t.strictSame((await open('/theirs')).body, { statusCode: 500, error: 'Internal Server Error', message: 'Something went wrong' })
    const theirs = await open('/theirs', STREAM)
    t.strictSame([theirs.status, theirs.body.message], [500, 'Something went wrong'], 'nor to a client that asks for a stream')
    const broken = await open('/', { authorization: 'Bearer broken' })
    t.notMatch(broken.body, 'secret')
    const first = await open('/', { authorization: 'Bearer ada' })
    t.ok(first.isStream)
    const busy = await open('/', { authorization: 'Bearer ada' })
    refused(t, busy, 503, 'SSE_ERR_TOO_MANY_CONNECTIONS')
    t.equal(busy.headers['retry-after'], '3')
    const stream = await open('/', { authorization: 'Bearer ada', ...STREAM })
    await until(() => !stream.isOpen)
    t.match(payloads(stream, 'sse:error'), [{ code: 'SSE_ERR_TOO_MANY_CONNECTIONS', retryable: true }])
    await first.close()
  })
})

t.test('a refusal by its parts', async t => {
  const request = { method: 'GET', headers: STREAM, httpVersionMajor: 1, httpVersionMinor: 1 } as unknown as HttpRequest
  const post = { ...request, method: 'POST' } as HttpRequest
  const options = { refusals: 'auto', retryMs: 1_500, drainMs: 60_000 } as const
  const json = { 'content-type': 'application/json; charset=utf-8' }
  const answer = (error: unknown) => {
    const { body, ...refusal } = refusalOf(error, post, options)
    return { ...refusal, ...JSON.parse(body) }
  }
  t.strictSame(answer(new Closed()), { statusCode: 503, headers: { ...json, 'retry-after': '2' }, retryable: true, code: 'SSE_ERR_CLOSED', error: 'Service Unavailable', message: new Closed().message }, 'whole seconds, and not too early')
  t.strictSame(answer(new TooManyUserConnections()), { statusCode: 429, headers: { ...json, 'retry-after': '2' }, retryable: true, code: 'SSE_ERR_TOO_MANY_USER_CONNECTIONS', error: 'Too Many Requests', message: new TooManyUserConnections().message })
  t.match(answer(new AuthenticationFailed('')), { statusCode: 500, headers: { 'retry-after': '2' }, retryable: true })
  t.strictSame(answer(new Unauthenticated()), { statusCode: 401, headers: json, retryable: false, code: 'SSE_ERR_UNAUTHENTICATED', error: 'Unauthorized', message: new Unauthenticated().message })
  t.strictSame(answer(new TypeError('secret')), { statusCode: 500, headers: json, retryable: false, error: 'Internal Server Error', message: 'Something went wrong' })
  const retries = (error: unknown, retryAfter?: unknown) => Array.from({ length: 30 }, () => Number(/retry: (\d+)/.exec(streamRefusal(error, request, options, retryAfter)!.body)![1]))
  const status = (statusCode: unknown) => Object.assign(new Error(), { statusCode })
  for (const [list, least] of [[retries(status(429)), 1_500], [retries(status(429), '7'), 7_000], [retries(status(503), 'Fri, 31 Dec 1999'), 1_500], [retries(new Closed()), 60_000]] as const) {
    t.ok(list.every(ms => ms >= least && ms <= 2 * least), `${least}`)
    t.ok(new Set(list).size > 10, 'spread')
  }
  t.equal(streamRefusal(status('503'), request, options), null, 'a status is a number')
  t.equal(streamRefusal(status(429), request, { ...options, refusals: 'status' }), null)
  t.equal(streamRefusal(status(429), post, options), null)
  for (const [code, expected] of [[399, null], [400, 204], [499, 204], [500, null]] as const) t.equal(streamRefusal(status(code), request, { ...options, refusals: 'stop' })?.statusCode ?? null, expected, `${code}`)
  for (const gone of [{ headersSent: true }, { headersSent: false, destroyed: true }]) {
    t.doesNotThrow(() => sendRefusal(new Closed(), request, { ...gone, setHeader: () => { throw new Error('written to') } } as unknown as HttpResponse, options))
  }
})
