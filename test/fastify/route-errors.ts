import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import t from 'tap'
import ssePlugin, { requestSerializer, type SSEOptions } from '../../lib/index.js'
import { redacting } from '../../lib/fastify/log-redaction.js'
import { make } from '../helpers/guarded.js'
import { raw, start } from '../helpers/reply.js'
import { start as startLogged } from '../helpers/server.js'
import { payloads } from '../helpers/app.js'
import { until } from '../helpers/wait.js'

// What a route with the option answers and logs when something fails: as without it, except for refused streams and secrets.

t.test('what a handler throws is answered as on a route without the option', async t => {
  const thrown: unknown[] = [new Error('x'), Object.assign(new Error('x'), { statusCode: 418 }), Object.freeze(new TypeError('x')), Object.assign(new Error('x'), { code: 'SSE_ERR_UNKNOWN' }), 'text', 7, { statusCode: 409, message: 'x' }, { plain: true }]
  const scopes: Record<string, (scope: FastifyInstance) => void> = {
    'the error handler of Fastify': () => {},
    'an error handler of the scope': scope => { scope.setErrorHandler(function (error, _request, reply) { reply.code(400).send({ scope: String(error), own: this === scope }) }) },
    'an error handler that throws': scope => { scope.setErrorHandler(error => { throw Object.assign(new Error(`again ${String(error)}`), { statusCode: 502 }) }) }
  }
  for (const [name, setUp] of Object.entries(scopes)) {
    for (const isOwn of [false, true]) {
      const app = make(t)
      await app.register(ssePlugin)
      await app.register(async scope => {
        setUp(scope)
        const errorHandler = function (this: FastifyInstance, error: unknown, _request: FastifyRequest, reply: FastifyReply) { reply.code(499).send({ route: String(error), own: this === scope }) }
        for (const [path, sse] of [['/with', true], ['/without', false]] as const) {
          scope.get(path, { sse, ...(isOwn && { errorHandler }) }, async request => { throw thrown[Number((request.query as { at: string }).at)] })
        }
      })
      for (const [at, error] of thrown.entries()) {
        // An error handler that throws is called once more for a thrown value that is no error.
        if (name.endsWith('throws') && !(error instanceof Error)) continue
        const [given, wanted] = [await app.inject(`/with?at=${at}`), await app.inject(`/without?at=${at}`)].map(({ statusCode, payload, headers }) => ({ statusCode, payload, type: headers['content-type'] }))
        t.strictSame(given, wanted, `${String(error)}, ${name}${isOwn ? ', with one of the route' : ''}`)
      }
    }
  }
})

t.test('of several managers of a route, the first that refuses by a stream answers', async t => {
  const server = await startLogged(t, async app => {
    const fail = (): never => { throw new Error('no database') }
    for (const [name, refusals] of [['a', 'status'], ['b', 'auto']] as const) await app.register(ssePlugin, { decorators: { instance: name, reply: name }, refusals, authHandler: fail })
    app.get('/a', { a: true } as object, async () => {})
    app.get('/both', { a: true, b: true } as object, async () => {})
  })
  const headers = { accept: 'text/event-stream' }
  t.equal((await server.open('/a', { headers })).status, 500)
  const stream = await server.open('/both', { headers })
  t.match(payloads(stream, 'sse:error'), [{ code: 'SSE_ERR_AUTHENTICATION_FAILED' }])
  t.match(server.lines.filter(({ msg }) => /^Stream refused/.test(msg)), [{ level: 50, retryable: true, msg: 'Stream refused: Authentication could not be completed: no database' }])
})

t.test('a head that fails where the body is piped ends the connection, and the process lives', async t => {
  const { url, app } = await start(t, app => {
    app.get('/', async (_request, reply) => {
      // Without the option `sse`, Fastify pipes the body. What wraps the response may throw then.
      reply.raw.flushHeaders = () => { throw new Error('of a wrapper') }
      await reply.sse()
    })
  })
  const socket = raw(t, url, {})
  await socket.waitForClose()
  await until(() => app.sse.connectionCount === 0)
  t.match(app.sse.stats(), { connections: 0 })
})

t.test('secrets are taken out of what serializers return, four levels deep', async t => {
  const redact = (value: unknown) => redacting(() => value)({} as FastifyRequest)
  const nest = (depth: number): unknown => depth === 0 ? '/a?token=1' : { in: nest(depth - 1) }
  for (let depth = 0; depth <= 4; depth++) t.notMatch(JSON.stringify(redact(nest(depth))), 'token=1', `${depth}`)
  const cycle: Record<string, unknown> = { url: '/a?token=1' }
  cycle['self'] = cycle
  t.match(redact(cycle), { url: '/a?token=[redacted]', self: { url: '/a?token=[redacted]' } })
  t.strictSame(redact({ TOKEN: 1, Access_Token: { a: 1 }, tokens: 1, list: ['/?ticket=1', 7, null, undefined, true], toJSON: 'no function' }),
    { TOKEN: '[redacted]', Access_Token: '[redacted]', tokens: 1, list: ['/?ticket=[redacted]', 7, null, undefined, true], toJSON: 'no function' })
  t.strictSame([null, 7, undefined].map(redact), [null, 7, undefined])
  t.strictSame(requestSerializer({ method: 'GET', url: '/a?Token=1&b', headers: { 'accept-version': '2' }, host: 'x:1', ip: '::1', socket: { remotePort: 5 } } as never),
    { method: 'GET', url: '/a?Token=[redacted]&b', version: '2', host: 'x:1', remoteAddress: '::1', remotePort: 5 })
})

t.test('the serializer of the application is kept, that of the logger or that of the scope; without one, Fastify\'s is kept for routes without a guard', async t => {
  const req = (request: FastifyRequest) => ({ mine: request.url })
  const cases: [logger: object | undefined, scope: object | undefined, guarded: object, unguarded: object][] = [
    [undefined, undefined, { url: '/x?token=[redacted]', method: 'GET' }, { url: '/x?token=1', method: 'GET' }],
    [{ req }, undefined, { mine: '/x?token=[redacted]' }, { mine: '/x?token=1' }],
    [undefined, { req }, { mine: '/x?token=[redacted]' }, { mine: '/x?token=1' }],
    [{ req: () => ({ not: 'this' }) }, { req }, { mine: '/x?token=[redacted]' }, { mine: '/x?token=1' }]
  ]
  for (const [serializers, logSerializers, ...wanted] of cases) {
    for (const [i, options] of [{} as SSEOptions, { decorators: { reply: 'other' } }].entries()) {
      const lines: { req?: unknown }[] = []
      const app = Fastify({ logger: { stream: { write: (line: string) => { lines.push(JSON.parse(line)) } }, ...(serializers !== undefined && { serializers: serializers as never }) } })
      t.teardown(() => app.close())
      await app.register(ssePlugin, options)
      if (i === 1) app.decorateReply('sse', function () {} as never)
      await app.register(async scope => { scope.get('/x', { sse: true }, async () => 'ok') }, { ...(logSerializers !== undefined && { logSerializers: logSerializers as never }) })
      await app.inject('/x?token=1')
      t.match(lines.find(({ req }) => req !== undefined)?.req, wanted[i]!, JSON.stringify([i, Object.keys(serializers ?? {}), Object.keys(logSerializers ?? {})]))
    }
  }
})
