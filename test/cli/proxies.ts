import { createServer, request as send, type IncomingHttpHeaders } from 'node:http'
import { createGzip } from 'node:zlib'
import cors from '@fastify/cors'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import ssePlugin from '../../lib/index.js'
import { script, stream } from '../client/clients.js'
import { listen, serve } from '../helpers/app.js'
import { ReverseProxy, withoutProxy, type ReverseProxyKind } from '../helpers/reverse-proxy.js'
import { diagnose } from './run.js'

// Real proxies with one fault each: `doctor` names the line, and with that line the fault is gone.

/** A proxy in front of the server at this URL, with a configuration in which it is 127.0.0.1:3001. */
async function front (t: Test, kind: ReverseProxyKind, url: string, configuration: string): Promise<string> {
  const port = Number(new URL(url).port)
  const proxy = await ReverseProxy.start(kind, [port, port], configuration)
  t.teardown(() => proxy.stop())
  return `${proxy.url}/sse`
}

/** As Debian's: with HTTP/1.0 to the server, whose response has no chunks, nginx waits for a full buffer. */
const nginx = (line = ''): string => `server { listen 127.0.0.1:PORT; location / { proxy_pass http://127.0.0.1:3001; ${line} } }`
const haproxy = (line: string): string => `
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  ${line}
listen web
  bind 127.0.0.1:PORT
  server one 127.0.0.1:3001
`

t.test('nginx that buffers', { skip: withoutProxy('nginx') }, async t => {
  const { url } = await script(t, stream(': open\n\ndata: 1\n\n'))
  const buffered = await diagnose(await front(t, 'nginx', url, nginx()), '--timeout', '1')
  t.equal(buffered.code, 1)
  t.match(buffered.at('problem'), [{ check: 'connection', text: 'The connection is accepted, but there is no answer within 1 s: the server sends no headers, or nginx buffers the response.', change: 'proxy_buffering off;' }])

  const repaired = await diagnose(await front(t, 'nginx', url, nginx('proxy_buffering off;')), '--watch', '0.5')
  t.equal(repaired.measured!.events, 1)
  t.equal(repaired.of('opening')!.level, 'ok')
})

t.test('nginx that buffers a stream that is never silent', { skip: withoutProxy('nginx') }, async t => {
  const event = `data: ${'x'.repeat(560)}\n\n`
  const { url } = await script(t, response => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    const timer = setInterval(() => response.write(event), 200)
    response.on('close', () => clearInterval(timer))
  })
  const small = 'proxy_buffer_size 4k; proxy_buffers 8 4k;'
  const [buffered, repaired] = await Promise.all([
    diagnose(await front(t, 'nginx', url, nginx(small)), '--watch', '8'),
    diagnose(await front(t, 'nginx', url, nginx(`${small} proxy_buffering off;`)), '--watch', '2')
  ])
  t.match(buffered.at('problem'), [{ check: 'delivery', text: 'Events arrive several at once, and the last of them in two parts: nginx buffers the response.', change: 'proxy_buffering off;' }])
  t.match(repaired.of('delivery'), { level: 'ok', text: 'Events arrive one by one.' })
})

t.test('nginx that compresses a stream of this package', { skip: withoutProxy('nginx') }, async t => {
  const { url } = await serve(t, { keepAliveIntervalMs: 500 })
  const proxied = await front(t, 'nginx', url, nginx('gzip on; gzip_proxied any; gzip_min_length 0; gzip_types text/event-stream;'))
  const diagnosis = await diagnose(proxied)
  t.same(diagnosis.at('problem'), [])
  t.match(diagnosis.of('compression'), { level: 'note', text: 'The stream is compressed (gzip), and arrives all the same.' })
})

t.test('nginx without a server behind it', { skip: withoutProxy('nginx') }, async t => {
  const { url } = await serve(t)
  const proxied = await front(t, 'nginx', url, nginx().replace('127.0.0.1:3001', '127.0.0.1:1'))
  t.match((await diagnose(proxied)).at('problem'), [{ check: 'status', text: 'The server answers 502', change: /address of the server in the proxy/ }])
})

t.test('haproxy with a short time-out', { skip: withoutProxy('haproxy') }, async t => {
  const { app, url } = await serve(t)
  const cut = await diagnose(await front(t, 'haproxy', url, haproxy('timeout server 2s')))
  t.equal(cut.code, 1)
  t.match(cut.at('problem'), [{
    check: 'idle',
    text: /^The connection is cut after \d+(?:\.\d)? s without data, and the server writes only every 15 s: the idle time-out of a proxy between here and the server is too short\.$/,
    change: /^timeout server 60s {3}# haproxy; nginx: proxy_read_timeout 60s; {3}# or in the server: keepAliveIntervalMs: \d+$/
  }])
  t.equal(app.sse.connectionCount <= 1, true)

  const { url: alive } = await serve(t, { keepAliveIntervalMs: 500 })
  const repaired = await diagnose(await front(t, 'haproxy', alive, haproxy('timeout server 60s')))
  t.same(repaired.at('problem'), [])
  t.match(repaired.of('delivery'), { level: 'ok', text: 'Keep-alives arrive one by one' })
  t.match(repaired.of('idle'), { level: 'ok' })
})

/** A proxy that compresses each response, and does not flush what it has read. */
async function compressor (t: Test, target: string): Promise<string> {
  const server = createServer((request, response) => {
    const asked = send(target, { headers: request.headers }, answer => {
      const headers: IncomingHttpHeaders = answer.headers
      if (!/gzip/.test(String(request.headers['accept-encoding'])) || /no-transform/.test(headers['cache-control'] ?? '')) {
        response.writeHead(answer.statusCode!, headers).flushHeaders()
        answer.pipe(response)
        return
      }
      response.writeHead(answer.statusCode!, { ...headers, 'content-encoding': 'gzip' }).flushHeaders()
      answer.pipe(createGzip()).pipe(response)
    })
    response.on('close', () => asked.destroy())
    asked.on('error', () => response.destroy()).end()
  }).listen(0, '127.0.0.1')
  t.teardown(() => server.closeAllConnections())
  t.teardown(() => server.close())
  await new Promise(resolve => server.once('listening', resolve))
  return `http://127.0.0.1:${(server.address() as { port: number }).port}/sse`
}

t.test('a compressor that does not flush', async t => {
  const { url } = await script(t, stream('data: 1\n\n'))
  const held = await diagnose(await compressor(t, url), '--timeout', '2')
  t.match(held.at('problem'), [{ check: 'compression', text: /^Nothing arrives within \d+(?:\.\d)? s, because a compressor \(gzip\) holds the stream back/, change: /^cache-control: no-transform/ }])

  const service = await serve(t, { keepAliveIntervalMs: 500 })
  t.same((await diagnose(await compressor(t, `${service.url}/sse`))).at('problem'), [], 'streams of this package say no-transform')

  const { url: quiet } = await script(t, response => { response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders() })
  t.match((await diagnose(await compressor(t, quiet), '--timeout', '0.5')).of('opening'), { level: 'warning', text: 'Nothing follows the headers' }, 'a server that writes nothing')
})

t.test('pages of another origin', async t => {
  const origin = 'https://app.example'
  const plain = await script(t, stream('data: 1\n\n'))
  const without = await diagnose(plain.url, '--origin', origin, '--watch', '0.5')
  t.match(without.at('problem'), [{ check: 'cors', text: `Pages of ${origin} cannot read the stream: access-control-allow-origin is missing.`, change: `access-control-allow-origin: ${origin}` }])

  const { url } = await serve(t, { keepAliveIntervalMs: 300 })
  t.match((await diagnose(`${url}/sse`, '--origin', origin)).at('problem'), [{ check: 'cors', text: `The server answers 403 to pages of ${origin}.`, change: `allowedOrigins: ['${origin}']` }])

  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(cors, { origin: [origin], credentials: true })
  await app.register(ssePlugin, { allowedOrigins: [origin], keepAliveIntervalMs: 300 })
  app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
  const allowed = await diagnose(`${await listen(app)}/sse`, '--origin', origin, '--header', 'cookie: a=b', '--header', 'authorization: Bearer x')
  t.same(allowed.at('problem'), [])
  t.match(allowed.of('cors'), { level: 'ok', text: `Pages of ${origin} can read the stream, with cookies.` })
  t.match(allowed.of('preflight'), { level: 'ok', text: 'can send last-event-id and authorization' })
})

t.test('answers to pages of another origin that are not enough', async t => {
  const origin = 'https://app.example'
  const cases = [
    [{ 'access-control-allow-origin': 'https://other.example' }, 'cannot read the stream: access-control-allow-origin is https://other.example', `access-control-allow-origin: ${origin}`],
    [{ 'access-control-allow-origin': '*' }, 'cannot send cookies: with access-control-allow-origin: * browsers refuse', /access-control-allow-credentials: true/],
    [{ 'access-control-allow-origin': origin }, 'cannot send cookies: access-control-allow-credentials is missing', 'access-control-allow-credentials: true']
  ] as const
  for (const [headers, text, change] of cases) {
    const { url } = await script(t, response => { response.writeHead(401, headers).end() })
    t.match((await diagnose(url, '--origin', origin, '--header', 'cookie: a=b')).of('cors'), { level: 'problem', text, change })
  }
  const preflights = [
    [404, {}, 'the server answers 404 to OPTIONS'],
    [204, {}, 'cannot send last-event-id and authorization'],
    [204, { 'access-control-allow-headers': '*' }, 'cannot send authorization']
  ] as const
  for (const [code, headers, text] of preflights) {
    const { url } = await script(t, (response, request) => {
      response.writeHead(request.method === 'OPTIONS' ? code : 200, { 'content-type': 'text/event-stream', 'access-control-allow-origin': '*', ...headers })
      if (request.method === 'OPTIONS') response.end()
      else response.write('data: 1\n\n')
    })
    t.match((await diagnose(url, '--origin', origin, '--watch', '0.3', '--header', 'authorization: Bearer x')).of('preflight'), { level: 'warning', text, change: 'access-control-allow-headers: last-event-id, authorization' })
  }
})
