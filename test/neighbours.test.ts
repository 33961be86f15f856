import 'reflect-metadata'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fastifyAutoload from '@fastify/autoload'
import fastifyCompress from '@fastify/compress'
import fastifyCookie from '@fastify/cookie'
import fastifyCors from '@fastify/cors'
import fastifyEtag from '@fastify/etag'
import fastifyHelmet from '@fastify/helmet'
import fastifyJwt from '@fastify/jwt'
import { FastifyOtelInstrumentation } from '@fastify/otel'
import fastifyRateLimit from '@fastify/rate-limit'
import fastifySession from '@fastify/session'
import fastifyUnderPressure from '@fastify/under-pressure'
import { Controller, Get, Module, Req, Res } from '@nestjs/common'
import { NestFactory } from '@nestjs/core'
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify'
import { BasicTracerProvider, type ReadableSpan, type Span } from '@opentelemetry/sdk-trace-base'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import { tie } from './helpers/child.js'
import ssePlugin from '../lib/index.js'
import { connectH2, H2Stream } from './helpers/h2.js'
import { freePort } from './helpers/port.js'
import { SSEClient } from './helpers/sse.js'
import { until } from './helpers/wait.js'

// The plugins, the framework and the proxy that stand beside this one in a real application.

declare module 'fastify' {
  interface Session { user?: string, visits?: number }
}

const ORIGIN = 'https://app.example'
const AGENT = 'a browser'

async function build (t: Test, { http2 = false, customTypes = false } = {}): Promise<{ app: FastifyInstance, url: string, token: string }> {
  const app = Fastify({ ...(http2 && { http2: true }) } as FastifyServerOptions) as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyUnderPressure, { maxEventLoopDelay: 60_000 })
  await app.register(fastifyRateLimit, { max: 5, timeWindow: 60_000, keyGenerator: request => String(request.headers['user-agent']) })
  await app.register(fastifyHelmet)
  await app.register(fastifyCors, { origin: ORIGIN, credentials: true })
  await app.register(fastifyCookie)
  await app.register(fastifyJwt, { secret: 'secret', cookie: { cookieName: 'token', signed: false } })
  await app.register(fastifyEtag)
  await app.register(fastifyCompress, { threshold: 0, ...(customTypes && { customTypes: /./ }) })
  await app.register(ssePlugin, {
    requireAuthentication: true,
    allowedOrigins: [ORIGIN],
    drainMs: 300,
    authStrategies: [async request => {
      const { sub } = await request.jwtVerify<{ sub: string }>()
      request.sseUser = { userId: sub }
    }]
  })
  app.get('/sse', { sse: true }, async (request, reply) => {
    reply.setCookie('seen', 'yes')
    await reply.sse({ subscriptions: ['news'] })
  })
  app.get('/json', async () => ({ text: 'x'.repeat(2000) }))
  await app.listen({ host: '127.0.0.1', port: 0 })
  return { app, url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`, token: app.jwt.sign({ sub: 'ada' }) }
}

function checkHead (t: Test, headers: Record<string, unknown>): void {
  t.match(headers, {
    'content-type': 'text/event-stream',
    'cache-control': /no-store.*no-transform/,
    'access-control-allow-origin': ORIGIN,
    'access-control-allow-credentials': 'true',
    'x-content-type-options': 'nosniff',
    'content-security-policy': /default-src/,
    'x-ratelimit-limit': '5',
    'set-cookie': /seen=yes/
  })
  t.notOk(headers['content-encoding'], 'not compressed')
  t.notOk(headers['etag'], 'no tag for something without an end')
  t.notOk(headers['content-length'])
}

for (const customTypes of [false, true]) {
  t.test(`all neighbours at once, HTTP/1${customTypes ? ', a compressor that would take anything' : ''}`, async t => {
    const { app, url, token } = await build(t, { customTypes })
    const headers = { origin: ORIGIN, cookie: `token=${token}`, 'user-agent': AGENT, 'accept-encoding': 'gzip, br' }
    const client = await SSEClient.open(`${url}/sse`, { headers })
    t.teardown(() => client.close())
    checkHead(t, client.headers)
    t.match(await app.sse.broadcastToSubscriptions({ data: 'first' }, ['news']), { delivered: 1 })
    await client.waitFor('message')
    t.equal(app.sse.getConnectionsByUser('ada').length, 1)

    const stranger = await SSEClient.open(`${url}/sse`, { headers: { 'user-agent': 'nobody' } })
    t.equal(stranger.status, 401)
    const foreign = await SSEClient.open(`${url}/sse`, { headers: { ...headers, 'accept-encoding': 'identity', origin: 'https://evil.example', 'user-agent': 'evil' } })
    t.equal(foreign.status, 403)
    const json = await fetch(`${url}/json`, { headers: { 'user-agent': 'json' } })
    t.match(Object.fromEntries(json.headers), { 'content-encoding': String, etag: String }, 'others are compressed and tagged')
    await json.arrayBuffer()

    // Five connects a minute: reconnecting too often is refused, an open stream goes on.
    for (let i = 0; i < 4; i++) (await SSEClient.open(`${url}/sse`, { headers })).close()
    const refused = await SSEClient.open(`${url}/sse`, { headers: { ...headers, 'accept-encoding': 'identity' } })
    t.equal(refused.status, 429)
    await app.sse.broadcastToSubscriptions({ data: 'second' }, ['news'])
    await client.waitFor('message', 2)
    await app.close()
    await client.waitForEnd()
    t.equal(client.json('sse:close')[0].reason, 'shutdown')
  })
}

t.test('all neighbours at once, HTTP/2', async t => {
  const { app, url, token } = await build(t, { http2: true })
  const session = connectH2(url)
  t.teardown(() => session.destroy())
  const headers = { origin: ORIGIN, cookie: `token=${token}`, 'user-agent': AGENT, 'accept-encoding': 'gzip, br' }
  const streams = [new H2Stream(session, '/sse', headers), new H2Stream(session, '/sse', headers)]
  await Promise.all(streams.map(stream => stream.waitFor('id: ')))
  for (const stream of streams) checkHead(t, { ...stream.headers, 'set-cookie': String(stream.headers['set-cookie']) })
  t.match(await app.sse.broadcastToSubscriptions({ data: 'first' }, ['news']), { delivered: 2 })
  await Promise.all(streams.map(stream => stream.waitFor('data: first')))
  const stranger = new H2Stream(session, '/sse', { 'user-agent': 'nobody' })
  await stranger.waitForClose()
  t.equal(stranger.status, 401)
  streams[0]!.stream.close(8)
  await until(() => app.sse.connectionCount === 1)
  await app.close()
  await streams[1]!.waitForClose()
  t.equal(streams[1]!.named('sse:close').length, 1)
})

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
      const client = await SSEClient.open(url + path, { headers: { cookie } })
      t.teardown(() => client.close())
      t.equal(client.status, 200, path)
      t.equal(client.headers['set-cookie']?.split(';')[0], cookie, 'the session goes on, on the response of the stream')
      return client
    }

    for (const path of ['/sse', '/source', '/unguarded']) t.equal((await SSEClient.open(url + path)).status, 401, `${path} without a session`)
    t.equal((await SSEClient.open(`${url}/sse`, { headers: { cookie: `${cookie}x` } })).status, 401, 'a session with a wrong signature')
    const client = await open('/sse')
    t.equal(await visits(), 1, 'the session is saved while the stream is open')
    const source = await open('/source')
    await source.waitForEnd()
    t.equal(await visits(), 2)
    const unguarded = await open('/unguarded')
    await until(async () => await visits() === 3)
    t.equal(app.sse.getConnectionsByUser('ada').length, 2)
    t.match(await app.sse.broadcastToSubscriptions({ data: 'first' }, ['news']), { delivered: 1 })
    await client.waitFor('message')

    t.equal(await (await fetch(`${url}/logout`, { method: 'POST', headers: { cookie } })).text(), '2')
    await Promise.all([client, unguarded].map(client => client.waitForEnd()))
    t.equal((await SSEClient.open(`${url}/sse`, { headers: { cookie } })).status, 401, 'a session that has ended')
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
    const client = await SSEClient.open(url + path, { headers })
    t.teardown(() => client.close())
    return client
  }

  const clients: SSEClient[] = []
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
  await Promise.all(clients.map(client => client.waitFor('message')))
  await app.close()
  await Promise.all(clients.map(client => client.waitForEnd()))
  for (const client of clients) t.equal(client.json('sse:close')[0].reason, 'shutdown')
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

    const client = await SSEClient.open(`${url}/sse`, { headers })
    t.teardown(() => client.close())
    await settled()
    t.equal(client.closed, false)
    t.match(requests(ended), [{ attributes: { 'http.response.status_code': 200, 'http.route': '/sse' } }])
    t.match(ended.find(({ name }) => name.includes('handler')), { attributes: { 'http.route': '/sse' } }, 'the handler has a span')
    clear()
    t.match(await app.sse.broadcastToSubscriptions({ data: 'first' }, ['news']), { delivered: 1 })
    await client.waitFor('message')
    t.strictSame(started.map(({ name }) => name), [], 'events have none')

    // A handler that returns the promise of a source lasts as long as the source; its request ends with the opening.
    const source = await SSEClient.open(`${url}/source`, { headers })
    await source.waitFor('message')
    await until(() => requests(ended).length === 1)
    t.equal(started.length - ended.length, 1, 'the handler goes on')
    source.close()
    await settled()
    clear()

    const refused = await SSEClient.open(`${url}/sse`)
    t.equal(refused.status, 401)
    await settled()
    t.match(requests(ended), [{ attributes: { 'http.response.status_code': 401 } }])
    clear()

    const head = await SSEClient.open(`${url}/sse`, { method: 'HEAD', headers: { ...headers, connection: 'close' } })
    await until(() => head.closed)
    await settled()
    t.equal(requests(ended).length, 1)
    clear()

    // One that has left before it is recognised.
    const gone = new SSEClient(`${url}/sse`, { headers: { authorization: 'Bearer slow' } })
    await until(() => asked === 1)
    gone.reset()
    await until(() => gone.closed)
    answer()
    await settled()
    t.equal(requests(ended).length, 1)
    await until(() => app.sse.connectionCount === 1)
    clear()

    await app.close()
    await client.waitForEnd()
    t.equal(client.json('sse:close')[0].reason, 'shutdown')
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

  const clients: SSEClient[] = []
  for (const path of ['/streams/managed', '/raw']) {
    t.equal((await SSEClient.open(url + path)).status, 401, path)
    const client = await SSEClient.open(url + path, { headers: { authorization: 'Bearer ada' } })
    t.teardown(() => client.close())
    t.match(client.headers, { 'content-type': 'text/event-stream' }, path)
    clients.push(client)
  }
  const source = await SSEClient.open(`${url}/streams/source`, { headers: { authorization: 'Bearer ada' } })
  await source.waitForEnd()
  t.strictSame(source.named('user').map(({ data }) => data), ['ada'])
  t.equal(app.sse.getConnectionsByUser('ada').length, 2)
  t.match(await app.sse.broadcastToSubscriptions({ data: 'first' }, ['news']), { delivered: 2 })
  await Promise.all(clients.map(client => client.waitFor('message')))
  clients.shift()!.close()
  await until(() => app.sse.connectionCount === 1)
  await nest.close()
  await clients[0]!.waitForEnd()
  t.equal(clients[0]!.json('sse:close')[0].reason, 'shutdown')
})

// --- nginx ---

const NGINX = ['nginx', '/usr/sbin/nginx'].find(path => spawnSync(path, ['-v']).error === undefined)
const withoutNginx = NGINX === undefined && process.env['CI'] === undefined && 'nginx is not installed'

t.test('nginx with its buffers, its cache and gzip on', { skip: withoutNginx }, async t => {
  const { app, url } = await (async () => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(ssePlugin, { authHandler: ({ query }) => query['user'] as string ?? null, keepAliveIntervalMs: 100, retryMs: 100, drainMs: 300 })
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
    await app.listen({ host: '127.0.0.1', port: 0 })
    return { app, url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}` }
  })()
  const port = await freePort()
  const directory = await mkdtemp(join(tmpdir(), 'nginx-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  await mkdir(join(directory, 'cache'))
  const config = join(directory, 'nginx.conf')
  // As Debian ships it, and what an operator adds in good faith.
  await writeFile(config, `
    daemon off; master_process off; pid ${directory}/nginx.pid; error_log ${directory}/error.log;
    events { worker_connections 256; }
    http {
      access_log off;
      client_body_temp_path ${directory}/body; proxy_temp_path ${directory}/proxy;
      fastcgi_temp_path ${directory}/fastcgi; uwsgi_temp_path ${directory}/uwsgi; scgi_temp_path ${directory}/scgi;
      gzip on; gzip_proxied any; gzip_min_length 0; gzip_types text/event-stream text/plain;
      proxy_cache_path ${directory}/cache keys_zone=all:1m;
      server {
        listen 127.0.0.1:${port};
        location / { proxy_pass ${url}; proxy_cache all; proxy_cache_valid any 1m; proxy_http_version 1.1; proxy_set_header Connection ""; }
      }
    }`)
  const nginx = tie(spawn(NGINX!, ['-p', directory, '-e', `${directory}/error.log`, '-c', config], { stdio: 'inherit' }))
  const exited = once(nginx, 'exit')
  t.teardown(async () => {
    nginx.kill('SIGKILL')
    await exited
  })
  const proxy = `http://127.0.0.1:${port}`
  await until(async () => await fetch(`${proxy}/nothing`).then(response => response.status === 404, () => false), 30_000, 'nginx to answer')

  const headers = {}
  const ada = await SSEClient.open(`${proxy}/sse?user=ada`, { headers })
  t.teardown(() => ada.close())
  t.equal(ada.headers['content-type'], 'text/event-stream')
  await app.sse.broadcastToUsers({ data: 'for ada' }, ['ada'])
  await ada.waitFor('message')
  // The same address for somebody else, and again for the same: the cache has kept nothing.
  const bob = await SSEClient.open(`${proxy}/sse?user=ada&x=1`, { headers })
  const again = await SSEClient.open(`${proxy}/sse?user=ada`, { headers })
  t.teardown(() => { bob.close(); again.close() })
  for (const client of [bob, again]) t.strictSame(client.named('message'), [], 'nothing of another stream')
  await app.sse.broadcastEvent({ data: 'live' })
  await Promise.all([ada, bob, again].map(client => until(() => client.named('message').some(({ data }) => data === 'live'))))
  // Keep-alives come through one by one, and so does the leaving of a client.
  await until(() => ada.blocks.filter(({ comment }) => comment === 'keep-alive').length >= 2)
  // Compressed by nginx, against no-transform: every event still comes at once.
  const abort = new AbortController()
  const compressed = await fetch(`${proxy}/sse?user=zip`, { headers: { 'accept-encoding': 'gzip' }, signal: abort.signal })
  t.comment(`content-encoding: ${compressed.headers.get('content-encoding') ?? 'none'}`)
  await app.sse.broadcastToUsers({ data: 'zipped' }, ['zip'])
  let text = ''
  for await (const piece of compressed.body!) {
    text += Buffer.from(piece).toString()
    if (text.includes('data: zipped')) break
  }
  t.match(text, 'data: zipped')
  abort.abort()
  const place = again.lastEventId
  again.close()
  await until(() => app.sse.connectionCount === 2)
  await app.sse.broadcastEvent({ data: 'while away' })
  const back = await SSEClient.open(`${proxy}/sse?user=ada`, { headers: { ...headers, 'last-event-id': place } })
  t.teardown(() => back.close())
  await back.waitFor('message')
  t.strictSame(back.named('message').map(({ data }) => data), ['while away'])
  await app.close()
  await back.waitForEnd()
  t.equal(back.json('sse:close')[0].reason, 'shutdown')
})
