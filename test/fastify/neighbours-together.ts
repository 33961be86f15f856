import fastifyCompress from '@fastify/compress'
import fastifyCookie from '@fastify/cookie'
import fastifyCors from '@fastify/cors'
import fastifyEtag from '@fastify/etag'
import fastifyHelmet from '@fastify/helmet'
import fastifyJwt from '@fastify/jwt'
import fastifyRateLimit from '@fastify/rate-limit'
import fastifyUnderPressure from '@fastify/under-pressure'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import type { AddressInfo } from 'node:net'
import 'reflect-metadata'
import t, { type Test } from 'tap'
import ssePlugin from '../../lib/index.js'
import { connectH2, H2Stream } from '../helpers/h2.js'
import { until } from '../helpers/wait.js'
import { openURL, payloads } from '../helpers/app.js'

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
    const stream = await openURL(t, `${url}/sse`, { headers })
    checkHead(t, stream.headers)
    t.match(await app.sse.broadcastToSubscriptions({ data: 'first' }, ['news']), { delivered: 1 })
    await stream.until(() => stream.named('message').length >= 1)
    t.equal(app.sse.getConnectionsByUser('ada').length, 1)

    const stranger = await openURL(t, `${url}/sse`, { headers: { 'user-agent': 'nobody' } })
    t.equal(stranger.status, 401)
    const foreign = await openURL(t, `${url}/sse`, { headers: { ...headers, 'accept-encoding': 'identity', origin: 'https://evil.example', 'user-agent': 'evil' } })
    t.equal(foreign.status, 403)
    const json = await fetch(`${url}/json`, { headers: { 'user-agent': 'json' } })
    t.match(Object.fromEntries(json.headers), { 'content-encoding': String, etag: String }, 'others are compressed and tagged')
    await json.arrayBuffer()

    // Five connects a minute: reconnecting too often is refused, an open stream goes on.
    for (let i = 0; i < 4; i++) await (await openURL(t, `${url}/sse`, { headers })).close()
    const refused = await openURL(t, `${url}/sse`, { headers: { ...headers, 'accept-encoding': 'identity' } })
    t.equal(refused.status, 429)
    await app.sse.broadcastToSubscriptions({ data: 'second' }, ['news'])
    await stream.until(() => stream.named('message').length >= 2)
    await app.close()
    await stream.ended
    t.equal(payloads(stream, 'sse:close')[0].reason, 'shutdown')
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
