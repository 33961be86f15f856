import { createServer, type AddressInfo, type Socket } from 'node:net'
import { createSecureServer, type Http2ServerRequest, type Http2ServerResponse } from 'node:http2'
import { createServer as createHTTPS } from 'node:https'
import { once } from 'node:events'
import { brotliCompressSync, gzipSync } from 'node:zlib'
import { createSession } from 'better-sse'
import express from 'express'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { listen } from '../helpers/app.js'
import { createCertificate } from '../helpers/certificate.js'
import { diagnose } from './run.js'

// Servers of other frameworks, of other languages, and of no sense: each is diagnosed in one sentence, with the line to change.

/** A server that answers each request with these bytes. */
async function raw (t: Test, answer: (socket: Socket, request: string) => void, host = '127.0.0.1'): Promise<string> {
  const sockets = new Set<Socket>()
  const server = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {}).once('data', request => answer(socket, request.toString('latin1')))
  }).listen(0, host)
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  await once(server, 'listening')
  return `http://${host.includes(':') ? `[${host}]` : host}:${(server.address() as AddressInfo).port}/sse`
}

const HEAD = 'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n'

t.test('bodies that clients cannot read', async t => {
  const cases = [
    [`${HEAD}\r\n{"a":1}\n\n`, 'format', 'Clients ignore the line "{\\"a\\":1}": it is no field of an event stream.', /^`data: `/],
    [`${HEAD}\r\n{"a":1}`, 'format', 'Clients ignore the line "{\\"a\\":1}"', /^`data: `/],
    [`${HEAD}\r\n    data: 1\n\n`, 'format', 'Clients ignore the line "    data: 1"', /nothing before it$/],
    [`${HEAD}\r\nData: 1\n\n`, 'format', 'Clients ignore the line "Data: 1"', /^`data: `/],
    [`${HEAD}\r\ndata: {\n  "a": 1\n}\n\n`, 'format', 'Clients ignore the line "  \\"a\\": 1"', /each line of the data/],
    [`${HEAD}\r\ndata: 1\ndata: 2\n`, 'format', 'Data arrives, but no empty line after it', /\\n\\n/],
    [`${HEAD}transfer-encoding: chunked\r\n\r\nzz\r\ndata: 1\n\n\r\n`, 'format', 'The body cannot be read: Parse Error: Invalid character in chunk size.', 'what writes the chunks of the response'],
    [`${HEAD}content-encoding: gzip\r\n\r\ndata: 1\n\n`, 'format', 'The body cannot be read: incorrect header check.', /no header content-encoding/],
    [`${HEAD}content-encoding: zstd\r\n\r\n(`, 'compression', 'The stream is compressed (zstd), which the request does not accept.', /^cache-control: no-transform/],
    [`${HEAD}content-length: 9\r\n\r\ndata: 1\n\n`, 'delivery', 'The response has the header content-length, and ends after 9 bytes', /^no header content-length/]
  ] as const
  for (const [answer, check, text, change] of cases) {
    const diagnosis = await diagnose(await raw(t, socket => socket.write(answer)), '--watch', '0.7')
    t.equal(diagnosis.code, 1)
    t.match(diagnosis.at('problem'), [{ check, text, change }], text)
  }
})

t.test('strange bodies that clients can read', async t => {
  const cases = {
    'lines that end with CR': Buffer.from(`${HEAD}\r\n: a\rid: 1\rdata: a\r\r`),
    'a byte order mark': Buffer.from(`${HEAD}\r\n\uFEFFdata: a\n\n`),
    gzip: Buffer.concat([Buffer.from(`${HEAD}content-encoding: gzip\r\n\r\n`), gzipSync('data: a\n\n')]),
    brotli: Buffer.concat([Buffer.from(`${HEAD}content-encoding: br\r\n\r\n`), brotliCompressSync('data: a\n\n')]),
    'a line and a half': Buffer.from(`${HEAD}\r\ndata: a\n\nda`),
    'http.server of Python, whose close ends the body': Buffer.from('HTTP/1.0 200 OK\r\nServer: BaseHTTP/0.6 Python/3.13.1\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\n'),
    'early hints': Buffer.from(`HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n${HEAD}\r\ndata: a\n\n`),
    'an answer that a cache has just received': Buffer.from(`${HEAD}age: 0\r\n\r\ndata: a\n\n`),
    'an interval that is none': Buffer.from(`${HEAD}\r\n: stream keep-alive=0\n\ndata: a\n\n`)
  }
  for (const [name, answer] of Object.entries(cases)) {
    const diagnosis = await diagnose(await raw(t, (socket, request) => socket.write(/last-event-id/i.test(request) ? `${HEAD}\r\n` : answer)), '--watch', '0.3')
    t.same(diagnosis.at('problem'), [], name)
    t.match(diagnosis.measured, { events: 1, ending: 'open', announcedMs: null })
  }
})

t.test('fields of the server\'s own', async t => {
  const diagnosis = await diagnose(await raw(t, socket => socket.write(`${HEAD}\r\ntime: 1\ndata: a\n\n`)), '--watch', '0.3')
  t.match(diagnosis.of('format'), { level: 'warning', text: 'Clients ignore the line "time: 1"' })
})

t.test('answers that are no stream', async t => {
  const login = (socket: Socket, request: string): void => { socket.end(request.startsWith('GET /login') ? 'HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<h1>Sign in</h1>' : 'HTTP/1.1 302 Found\r\nlocation: /login\r\n\r\n') }
  const cases = [
    [login, 'type', 'The answer is text/html, not an event stream', 'the path of the URL, or --header with credentials: the answer is a page'],
    [(socket: Socket) => socket.end('HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n'), 'status', 'The server answers 302', 'the route: it must answer 200'],
    [(socket: Socket) => socket.end('HTTP/1.1 400 Bad Request\r\ncontent-type: text/html\r\n\r\nThe plain HTTP request was sent to HTTPS port'), 'status', 'The server answers 400', /https:\/\/$/],
    [(socket: Socket) => socket.end(), 'connection', 'The connection is closed before an answer.', /logs of the server.*http:\/\/ or https:\/\//],
    [(socket: Socket) => socket.resetAndDestroy(), 'connection', 'The connection is closed before an answer.', /logs of the server/],
    [(socket: Socket) => socket.end(`${HEAD}\r\n`), 'delivery', 'The server ends the response', /response\.end\(\)/]
  ] as const
  for (const [answer, check, text, change] of cases) {
    t.match((await diagnose(await raw(t, answer))).at('problem'), [{ check, text, change }], text)
  }
})

t.test('IPv6', async t => {
  const diagnosis = await diagnose(await raw(t, socket => socket.write(`${HEAD}\r\ndata: a\n\n`), '::1'), '--watch', '0.3')
  t.equal(diagnosis.of('status')!.level, 'ok')
})

t.test('better-sse, which sends ids and keeps no history', async t => {
  const app = express()
  app.get('/sse', async (request, response) => {
    const session = await createSession(request, response, { keepAlive: 500 })
    session.push('a').push('b')
  })
  app.get('/plain', (request, response) => { response.set('content-type', 'text/event-stream').write('data: hi\n\n') })
  const server = app.listen(0, '127.0.0.1')
  t.teardown(() => { server.closeAllConnections(); server.close() })
  await once(server, 'listening')
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const diagnosis = await diagnose(`${url}/sse`)
  t.same(diagnosis.at('problem'), [])
  t.match(diagnosis.of('idle'), { level: 'ok', text: /^The connection lives through \d+ ms of silence/ })
  t.match(diagnosis.of('resume'), { level: 'warning', text: /does not receive the event after it, .*: the server keeps no history/, change: /last-event-id/ })
  const plain = await diagnose(`${url}/plain`, '--watch', '0.3')
  t.same(plain.at('warning').map(({ check }) => check), ['cache', 'resume'])
  t.match((await diagnose(`${url}/nothing`)).at('problem'), [{ check: 'status', text: 'The server answers 404', change: 'the path of the URL' }])
})

t.test('@fastify/sse, whose handler returns, and one that replays all', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  // Its types declare `reply.sse`, too.
  await app.register((await import('@fastify/sse' as string)).default, { heartbeatInterval: 500 })
  const streamOf = (reply: object) => (reply as { sse: { keepAlive (): void, send (event: object): Promise<void> } }).sse
  app.get('/ended', { sse: true }, async (request, reply) => { await streamOf(reply).send({ id: '1', data: 'a' }) })
  app.get('/open', { sse: true }, async (request, reply) => {
    streamOf(reply).keepAlive()
    for (const id of ['1', '2', '3']) await streamOf(reply).send({ id, data: 'a' })
  })
  const url = await listen(app)
  t.match((await diagnose(`${url}/ended`)).of('delivery'), { level: 'problem', text: 'The server ends the response', change: /in Fastify no `return`/ })
  const open = await diagnose(`${url}/open`)
  t.match(open.at('problem'), [{ check: 'resume', text: 'A client that returns with the id 2 receives all events again' }])
  t.equal(open.of('delivery')!.level, 'ok')
})

t.test('TLS that does not come about', async t => {
  const certificate = createCertificate(t.testdir({}))
  const server = createHTTPS({ ...certificate, requestCert: true }, (request, response) => response.end()).listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  const url = `localhost:${(server.address() as AddressInfo).port}/`
  t.match((await diagnose(`http://${url}`)).at('problem'), [{ check: 'connection', text: 'The connection is closed before an answer.', change: /or https:\/\/$/ }])
  process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0'
  t.teardown(() => { delete process.env['NODE_TLS_REJECT_UNAUTHORIZED'] })
  t.match((await diagnose(`https://${url}`)).at('problem'), [{ check: 'connection', text: 'The server and the client do not agree on TLS: tlsv13 alert certificate required.', change: /client certificates/ }])
})

t.test('HTTP/2 streams that the server resets', async t => {
  process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0'
  t.teardown(() => { delete process.env['NODE_TLS_REJECT_UNAUTHORIZED'] })
  const server = createSecureServer(createCertificate(t.testdir({})), ({ url, stream }: Http2ServerRequest, response: Http2ServerResponse) => {
    if (url === '/reset') return stream.close()
    if (url === '/session') return stream.session!.destroy()
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: 1\n\n')
    setTimeout(() => stream.close(2), 600)
  }).listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  const url = `https://localhost:${(server.address() as AddressInfo).port}`
  for (const path of ['/reset', '/session']) t.match((await diagnose(url + path)).at('problem'), [{ check: 'connection', text: 'The connection is closed before an answer.' }], path)
  t.match((await diagnose(`${url}/later`)).at('problem'), [{ check: 'idle', text: /^The connection is cut after \d+(\.\d)? m?s without data: the idle time-out of / }])
})
