import fastifyAutoload from '@fastify/autoload'
import fastifyCookie from '@fastify/cookie'
import { FastifyOtelInstrumentation } from '@fastify/otel'
import fastifySession from '@fastify/session'
import { Controller, Get, Module, Req, Res } from '@nestjs/common'
import { NestFactory } from '@nestjs/core'
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify'
import { BasicTracerProvider, type ReadableSpan, type Span } from '@opentelemetry/sdk-trace-base'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import type { AddressInfo } from 'node:net'
import 'reflect-metadata'
import t from 'tap'
import ssePlugin from '../../lib/index.js'
import { until } from '../helpers/wait.js'
import { openURL, payloads } from '../helpers/app.js'
import type { TestStream } from '../../lib/testing/index.js'
import { RawSocket } from '../helpers/raw.js'

// The plugins, the framework and the proxy that stand beside this one in a real application.

declare module 'fastify' {
  interface Session { user?: string, visits?: number }
}

// --- Sessions ---

for (const first of ['the session plugin', 'this plugin']) {
  t.test(`@fastify/session, with ${first} registered first`, async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    const sse = () => app.register(ssePlugin, { requireAuthentication: true, drainMs: 300, authHandler: (data, request) => (request as FastifyRequest).session.get('user') ?? null })
    if (first === 'this plugin') sse()
    app.register(fastifyCookie)
    app.register(fastifySession, { secret: 'a secret of at least 32 characters', saveUninitialized: false, cookie: { secure: false } })
    if (first !== 'this plugin') sse()
    app.register(async app => {
      app.post('/login', async request => { request.session.set('user', 'ada') })
      app.post('/logout', async request => {
        const user = request.session.get('user')!
        await request.session.destroy()
        return app.sse.disconnectUser(user)
      })
      app.get('/visits', async request => request.session.get('visits') ?? 0)
      const visit = (request: FastifyRequest) => { request.session.set('visits', (request.session.get('visits') ?? 0) + 1) }
      app.get('/sse', { sse: true }, async (request, reply) => {
        visit(request)
        await reply.sse({ subscriptions: ['news'] })
      })
      app.get('/source', { sse: true }, (request, reply) => {
        visit(request)
        return reply.sse(['text'])
      })
      // Found by reply.sse() itself; what changes once the response has begun is saved by hand.
      app.get('/unguarded', async (request, reply) => {
        await reply.sse()
        visit(request)
        await request.session.save()
      })
    })
    await app.listen({ host: '127.0.0.1', port: 0 })
    const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
    const login = await fetch(`${url}/login`, { method: 'POST' })
    const cookie = login.headers.get('set-cookie')!.split(';')[0]!
    const visits = async () => Number(await (await fetch(`${url}/visits`, { headers: { cookie } })).text())
    const open = async (path: string) => {
      const stream = await openURL(t, url + path, { headers: { cookie } })
      t.equal(stream.status, 200, path)
      t.equal(String(stream.headers['set-cookie']).split(';')[0], cookie, 'the session goes on, on the response of the stream')
      return stream
    }

    for (const path of ['/sse', '/source', '/unguarded']) t.equal((await openURL(t, url + path)).status, 401, `${path} without a session`)
    t.equal((await openURL(t, `${url}/sse`, { headers: { cookie: `${cookie}x` } })).status, 401, 'a session with a wrong signature')
    const stream = await open('/sse')
    t.equal(await visits(), 1, 'the session is saved while the stream is open')
    const source = await open('/source')
    await source.ended
    t.equal(await visits(), 2)
    const unguarded = await open('/unguarded')
    await until(async () => await visits() === 3)
    t.equal(app.sse.getConnectionsByUser('ada').length, 2)
    t.match(await app.sse.broadcastToSubscriptions({ data: 'first' }, ['news']), { delivered: 1 })
    await stream.next('message')

    t.equal(await (await fetch(`${url}/logout`, { method: 'POST', headers: { cookie } })).text(), '2')
    await Promise.all([stream, unguarded].map(stream => stream.ended))
    t.equal((await openURL(t, `${url}/sse`, { headers: { cookie } })).status, 401, 'a session that has ended')
  })
}

// --- Routes from files ---

t.test('@fastify/autoload: streams in files are guarded, whoever awaits what', async t => {
  const stream = 'await reply.sse({ subscriptions: ["news"] })'
  const dir = t.testdir({
    'root.mjs': `export default async app => { app.get('/root', { sse: true }, async (request, reply) => { ${stream} }) }`,
    'common.cjs': `module.exports = (app, options, done) => { app.get('/common', { sse: true }, async (request, reply) => { ${stream} }); done() }`,
    open: { 'index.mjs': `export default async app => { app.get('/', { sse: { requireAuthentication: false } }, async (request, reply) => { ${stream} }) }` },
    // Hooks that are loaded for the folder of a route find the user of its streams, and only of these.
    staff: {
      'autohooks.mjs': "export default async app => { app.addHook('onRequest', async request => { if (request.headers['x-staff'] === 'yes') request.sseUser = { userId: 'staff' } }) }",
      'index.mjs': `export default async app => { app.get('/', { sse: true }, async (request, reply) => { ${stream} }) }`
    },
    // A handler that does not open a stream is guarded all the same: the option is the route's.
    publish: { 'index.mjs': "export default async app => { app.post('/', { sse: true }, async () => app.sse.broadcastToSubscriptions({ data: 'posted' }, ['news'])) }" }
  })
  const app = Fastify()
  t.teardown(() => app.close())
  app.register(ssePlugin, { requireAuthentication: true, drainMs: 300, authHandler: ({ token }) => token })
  app.register(fastifyAutoload, { dir, autoHooks: true, options: { prefix: '/v1' } })
  await app.listen({ host: '127.0.0.1', port: 0 })
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}/v1`
  const get = async (path: string, headers: Record<string, string> = {}) => {
    const stream = await openURL(t, url + path, { headers })
    return stream
  }

  const clients: TestStream[] = []
  for (const path of ['/root', '/common', '/staff']) {
    t.equal((await get(path)).status, 401, path)
    clients.push(await get(path, { authorization: 'Bearer ada' }))
  }
  t.equal((await get('/root', { 'x-staff': 'yes' })).status, 401)
  clients.push(await get('/open'), await get('/staff', { 'x-staff': 'yes' }))
  t.strictSame(clients.map(({ status }) => status), [200, 200, 200, 200, 200])
  t.equal(app.sse.getConnectionsByUser('ada').length, 3)
  t.equal(app.sse.getConnectionsByUser('staff').length, 1)
  t.equal((await fetch(`${url}/publish`, { method: 'POST' })).status, 401)
  t.match(await (await fetch(`${url}/publish`, { method: 'POST', headers: { authorization: 'Bearer ada' } })).json(), { delivered: 5 })
  await Promise.all(clients.map(stream => stream.until(() => stream.named('message').length >= 1)))
  await app.close()
  await Promise.all(clients.map(stream => stream.ended))
  for (const stream of clients) t.equal(payloads(stream, 'sse:close')[0].reason, 'shutdown')
})

// --- Tracing ---

for (const registerOnInitialization of [false, true]) {
  t.test(`@fastify/otel, ${registerOnInitialization ? 'on every instance by itself' : 'registered'}: spans end when the stream opens`, async t => {
    const started: Span[] = []
    const ended: ReadableSpan[] = []
    const provider = new BasicTracerProvider({
      spanProcessors: [{ onStart: span => { started.push(span) }, onEnd: span => { ended.push(span) }, forceFlush: async () => {}, shutdown: async () => {} }]
    })
    const instrumentation = new FastifyOtelInstrumentation({ registerOnInitialization })
    instrumentation.setTracerProvider(provider)
    instrumentation.enable()
    t.teardown(() => instrumentation.disable())
    const app = Fastify()
    t.teardown(() => app.close())
    if (!registerOnInitialization) app.register(instrumentation.plugin())
    let asked = 0
    let answer = () => {}
    const slow = new Promise<void>(resolve => { answer = resolve })
    app.register(ssePlugin, {
      requireAuthentication: true,
      drainMs: 300,
      authHandler: async ({ token }) => {
        if (token === 'slow') {
          asked++
          await slow
        }
        return token
      }
    })
    app.register(async app => {
      app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
      app.get('/source', { sse: true }, (request, reply) => reply.sse(async function * ({ signal }: { signal: AbortSignal }) {
        yield 'text'
        await new Promise(resolve => signal.addEventListener('abort', resolve))
      }))
    })
    await app.listen({ host: '127.0.0.1', port: 0 })
    const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
    const headers = { authorization: 'Bearer ada' }
    // The span of a request is the one without a parent.
    const requests = (spans: readonly ReadableSpan[]) => spans.filter(span => span.parentSpanContext === undefined)
    const settled = () => until(() => started.length > 0 && ended.length === started.length, 30_000, 'all spans to end')
    const clear = () => { started.length = ended.length = 0 }

    const stream = await openURL(t, `${url}/sse`, { headers })
    await settled()
    t.equal(stream.isOpen, true)
    t.match(requests(ended), [{ attributes: { 'http.response.status_code': 200, 'http.route': '/sse' } }])
    t.match(ended.find(({ name }) => name.includes('handler')), { attributes: { 'http.route': '/sse' } }, 'the handler has a span')
    clear()
    t.match(await app.sse.broadcastToSubscriptions({ data: 'first' }, ['news']), { delivered: 1 })
    await stream.next('message')
    t.strictSame(started.map(({ name }) => name), [], 'events have none')

    // A handler that returns the promise of a source lasts as long as the source; its request ends with the opening.
    const source = await openURL(t, `${url}/source`, { headers })
    await source.next('message')
    await until(() => requests(ended).length === 1)
    t.equal(started.length - ended.length, 1, 'the handler goes on')
    await source.close()
    await settled()
    clear()

    const refused = await openURL(t, `${url}/sse`)
    t.equal(refused.status, 401)
    await settled()
    t.match(requests(ended), [{ attributes: { 'http.response.status_code': 401 } }])
    clear()

    const head = await openURL(t, `${url}/sse`, { method: 'HEAD', headers: { ...headers, connection: 'close' } })
    await until(() => !head.isOpen)
    await settled()
    t.equal(requests(ended).length, 1)
    clear()

    // One that has left before it is recognised.
    const gone = new RawSocket(url, { path: '/sse', headers: { authorization: 'Bearer slow' } })
    await until(() => asked === 1)
    gone.socket.resetAndDestroy()
    await until(() => gone.closed)
    answer()
    await settled()
    t.equal(requests(ended).length, 1)
    await until(() => app.sse.connectionCount === 1)
    clear()

    await app.close()
    await stream.ended
    t.equal(payloads(stream, 'sse:close')[0].reason, 'shutdown')
    t.equal(started.length, ended.length)
  })
}

// --- Nest ---

t.test('Nest 11 on its Fastify adapter: streams of a controller and of the instance', async t => {
  // As decorators do it: the compiler of the tests does not know Nest's kind.
  class Streams {
    async managed (request: FastifyRequest, reply: FastifyReply): Promise<void> {
      await reply.sse({ subscriptions: ['news'] })
    }

    async source (request: FastifyRequest, reply: FastifyReply): Promise<void> {
      // A function: without the option of a route, reply.sse() finds the user.
      await reply.sse(() => [{ event: 'user', data: request.sseUser!.userId }])
    }
  }
  class App {}
  for (const method of ['managed', 'source'] as const) {
    Req()(Streams.prototype, method, 0)
    Res()(Streams.prototype, method, 1)
    Get(method)(Streams.prototype, method, Object.getOwnPropertyDescriptor(Streams.prototype, method)!)
  }
  Controller('streams')(Streams)
  Module({ controllers: [Streams] })(App)

  const nest = await NestFactory.create<NestFastifyApplication>(App, new FastifyAdapter(), { logger: false, abortOnError: false })
  t.teardown(() => nest.close())
  // The adapter brings a Fastify of its own, which TypeScript takes for another one.
  const app = nest.getHttpAdapter().getInstance() as unknown as FastifyInstance
  t.not(app.version, '', `Fastify ${app.version}`)
  await app.register(ssePlugin, { requireAuthentication: true, drainMs: 300, authHandler: ({ token }) => token })
  app.get('/raw', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
  await nest.listen(0, '127.0.0.1')
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`

  const clients: TestStream[] = []
  for (const path of ['/streams/managed', '/raw']) {
    t.equal((await openURL(t, url + path)).status, 401, path)
    const stream = await openURL(t, url + path, { headers: { authorization: 'Bearer ada' } })
    t.match(stream.headers, { 'content-type': 'text/event-stream' }, path)
    clients.push(stream)
  }
  const source = await openURL(t, `${url}/streams/source`, { headers: { authorization: 'Bearer ada' } })
  await source.ended
  t.strictSame(source.named('user').map(({ data }) => data), ['ada'])
  t.equal(app.sse.getConnectionsByUser('ada').length, 2)
  t.match(await app.sse.broadcastToSubscriptions({ data: 'first' }, ['news']), { delivered: 2 })
  await Promise.all(clients.map(stream => stream.until(() => stream.named('message').length >= 1)))
  await clients.shift()!.close()
  await until(() => app.sse.connectionCount === 1)
  await nest.close()
  await clients[0]!.ended
  t.equal(payloads(clients[0]!, 'sse:close')[0].reason, 'shutdown')
})
