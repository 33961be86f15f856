import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import t, { type Test } from 'tap'
import { openStream, type OpenStreamOptions, type TestContext } from '../../lib/testing/index.js'
import { until } from '../helpers/wait.js'

// What `openStream()` sends, which responses are streams, and what is left afterwards. The server has no Fastify.

interface Seen { method: string | undefined, url: string | undefined, headers: Record<string, unknown>, body: string }

type Answer = (response: ServerResponse, request: IncomingMessage) => void

function build (t: Test, answer: Answer): { server: Server, seen: Seen[], sockets: Socket[] } {
  const seen: Seen[] = []
  const sockets: Socket[] = []
  const server = createServer(async (request, response) => {
    const body = await request.reduce((text: string, part: Buffer) => text + part.toString('latin1'), '')
    seen.push({ method: request.method, url: request.url, headers: request.headers, body })
    answer(response, request)
  }).on('connection', socket => { sockets.push(socket) })
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { server, seen, sockets }
}

const STREAM = { 'content-type': 'text/event-stream' }
const stream = (text: string, status = 200, headers: Record<string, string> = STREAM): Answer => response => { response.writeHead(status, headers).write(text) }
const ended = (text: string, status = 200, headers: Record<string, string> = STREAM): Answer => response => { response.writeHead(status, headers).end(text) }
const timers = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length

/** A test that ends when `end` is called. */
function endable (): { test: TestContext, end: () => Promise<void> } {
  const ends: (() => unknown)[] = []
  return { test: { after: (run: () => unknown) => { ends.push(run) } } as unknown as TestContext, end: async () => { for (const end of ends) await end() } }
}

t.test('the request', async t => {
  const { server, seen } = build(t, stream(': open\n\n'))
  const fixed = { host: 'localhost', connection: 'keep-alive', accept: 'text/event-stream' }
  const json = { 'content-type': 'application/json' }
  for (const [options, method, headers, body] of [
    [{}, 'GET', {}, ''],
    [{ lastEventId: null }, 'GET', {}, ''],
    [{ lastEventId: 'a.1' }, 'GET', { 'last-event-id': 'a.1' }, ''],
    [{ headers: { Accept: '*/*', 'X-A': '1' } }, 'GET', { accept: '*/*', 'x-a': '1' }, ''],
    [{ lastEventId: 'a.1', headers: { 'Last-Event-ID': 'b.2' } }, 'GET', { 'last-event-id': 'b.2' }, ''],
    [{ method: 'PUT' }, 'PUT', { 'content-length': '0' }, ''],
    [{ body: { a: 'é' } }, 'POST', { ...json, 'content-length': '10' }, '{"a":"Ã©"}'],
    [{ body: null }, 'POST', { ...json, 'content-length': '4' }, 'null'],
    [{ body: 'é' }, 'POST', { 'content-length': '2' }, 'Ã©'],
    [{ body: '' }, 'POST', { 'content-length': '0' }, ''],
    [{ body: new Uint8Array([0, 255]), method: 'PATCH' }, 'PATCH', { 'content-length': '2' }, '\u0000ÿ'],
    [{ body: [1], headers: { 'Content-Type': 'application/x' } }, 'POST', { 'content-type': 'application/x', 'content-length': '3' }, '[1]']
  ] satisfies [OpenStreamOptions, string, Record<string, string>, string][]) {
    await openStream(server, '/path?query=1', { test: t, ...options })
    const { headers: got, ...rest } = seen.pop()!
    t.strictSame(rest, { method, url: '/path?query=1', body })
    t.strictSame({ ...got }, { ...fixed, ...headers }, JSON.stringify(options))
  }
})

t.test('the cursor and the options go on to the next request', async t => {
  const { server, seen } = build(t, stream(': open\n\n'))
  const other = build(t, stream(': open\n\nid: c.3\n\n'))
  const plain = await openStream(server, '/a', { test: t, headers: { x: '1' } })
  t.equal(plain.lastEventId, '')
  await plain.reconnect()
  t.match(seen[1], { url: '/a', headers: { x: '1', 'last-event-id': undefined } })
  const first = await openStream(server, '/a', { test: t, lastEventId: 'a.1', timeoutMs: 60_000 })
  t.equal(first.lastEventId, 'a.1', 'until the server sends one')
  const second = await first.reconnect({ app: other.server, headers: { y: '2' } })
  t.match(other.seen[0], { url: '/a', headers: { x: undefined, y: '2', 'last-event-id': 'a.1' } })
  await second.until(() => second.lastEventId === 'c.3')
  await second.reconnect({ lastEventId: 'd.4' })
  await second.reconnect({ lastEventId: null })
  t.strictSame(seen.slice(3).concat(other.seen.slice(1)).map(({ headers }) => headers['last-event-id']), ['d.4', undefined])
})

t.test('which responses are streams', async t => {
  for (const [answer, expected] of [
    [stream(': open\n\n'), 'stream'],
    [stream('event: x\ndata: 1\n\n'), 'stream'],
    [stream(': open\n\n', 200, { 'content-type': 'text/event-stream; charset=utf-8' }), 'stream'],
    [ended(''), 'stream'],
    [stream(': c\n\nevent: sse:error\ndata: {}\n\n'), 'stream'],
    [stream('event: sse:error\ndata: {"code":"C","message":"M"}\n\n'), 'GET / was refused: by a stream that ends, C M'],
    [stream('event: sse:error\ndata: no JSON\n\n'), 'GET / was refused: by a stream that ends,  '],
    [ended('x', 200, { 'content-type': 'text/plain' }), 'GET / was refused: status 200 with content type "text/plain", not an event stream'],
    [ended('x', 200, {}), 'GET / was refused: status 200 with content type "", not an event stream'],
    [ended('x', 200, { 'content-type': 'text/event-streams' }), 'GET / was refused: status 200 with content type "text/event-streams", not an event stream'],
    [ended('x', 200, { 'content-type': 'x-text/event-stream' }), 'GET / was refused: status 200 with content type "x-text/event-stream", not an event stream'],
    [ended('{"code":"C","message":"M"}', 503), 'GET / was refused: status 503 C M'],
    [ended('{"code":"C"}', 503, {}), 'GET / was refused: status 503 C'],
    [ended('null', 418, {}), 'GET / was refused: status 418'],
    [ended('"text"', 418, {}), 'GET / was refused: status 418']
  ] as [Answer, string][]) {
    const { server } = build(t, answer)
    for (const transport of [{ socket: false }, { socket: true }]) {
      const result = await openStream(server, '/', { test: t, ...transport }).then(({ isStream }) => isStream ? 'stream' : 'no stream', error => error.message)
      t.equal(result, expected)
      const allowed = await openStream(server, '/', { test: t, allowRefusal: true, ...transport })
      t.equal(allowed.isStream, !expected.includes('status'))
    }
  }
})

t.test('the body of a response that is not a stream', async t => {
  for (const [text, body] of [['{"a":1}', { a: 1 }], ['text', 'text'], ['', '']] as const) {
    const refused = await openStream(build(t, ended(text, 400, { 'x-a': '1' })).server, '/', { test: t, allowRefusal: true })
    t.match(refused, { status: 400, headers: { 'x-a': '1' }, isOpen: false })
    t.strictSame(refused.body, body)
    await t.rejects(openStream(build(t, ended(text, 400, { 'x-a': '1' })).server, '/'), { code: 'SSE_ERR_TEST_REFUSED', statusCode: 400, body, headers: { 'x-a': '1' } })
  }
  const open = await openStream(build(t, stream('event: x\ndata: 1\n\n')).server, '/', { test: t })
  t.equal(open.body, null)
  await open.close()
  t.equal(open.body, null, 'of a stream')
})

t.test('a HEAD request is answered without a stream', async t => {
  const answered = await openStream(build(t, ended('')).server, '/', { test: t, method: 'HEAD' })
  t.match(answered, { status: 200, isOpen: false, events: [] })
})

t.test('no timer and no connection is left, whatever happens', async t => {
  const before = timers()
  for (const socket of [false, true]) {
    const open = build(t, stream(': open\n\n'))
    const untied = await openStream(open.server, '/', { socket })
    t.equal(timers(), before, 'a stream of no test does not keep the process alive')
    await untied.close()
    const { test, end } = endable()
    const closed = await openStream(open.server, '/', { socket, test })
    t.equal(timers(), before + 1, 'a stream of a test does')
    await closed.close()
    t.equal(timers(), before)
    const tied = await openStream(open.server, '/', { socket, test })
    await end()
    t.match([tied.isOpen, timers()], [false, before], 'a test closes its stream')
    t.ok(open.sockets.every(({ destroyed }) => destroyed))

    const done = build(t, ended(': open\n\n'))
    t.match(await (await openStream(done.server, '/', { socket, test: t })).ended, { by: 'server' })
    const refusing = build(t, ended('{}', 503, {}))
    await t.rejects(openStream(refusing.server, '/', { socket, test: t }), { code: 'SSE_ERR_TEST_REFUSED', statusCode: 503 })
    const refusingByStream = build(t, stream('event: sse:error\ndata: {}\n\n'))
    await t.rejects(openStream(refusingByStream.server, '/', { socket, test: t }), { code: 'SSE_ERR_TEST_REFUSED', statusCode: 200 })
    const resetting = build(t, (_response, request) => { request.socket.resetAndDestroy() })
    await t.rejects(openStream(resetting.server, '/', { socket, test: t }), { code: 'ECONNRESET' })
    const silent = build(t, () => {})
    await t.rejects(openStream(silent.server, '/', { socket, test: t, timeoutMs: 30 }), { code: 'SSE_ERR_TEST_TIMEOUT', message: 'an answer to GET /' })
    const empty = build(t, response => { response.writeHead(200, STREAM).flushHeaders() })
    await t.rejects(openStream(empty.server, '/', { socket, test: t, timeoutMs: 30 }), { code: 'SSE_ERR_TEST_TIMEOUT' })
    const waiting = endable()
    const pending = openStream(silent.server, '/', { socket, test: waiting.test })
    await until(() => silent.seen.length === 2)
    await Promise.all([t.rejects(pending, { code: 'ECONNRESET' }), waiting.end()])
    t.equal(timers(), before)
    for (const { sockets } of [done, refusing, refusingByStream, resetting, silent, empty]) await until(() => sockets.every(({ destroyed }) => destroyed), undefined, 'connections are closed')
  }
  await t.rejects(openStream('http://127.0.0.1:1', '/', { test: t }), { code: 'ECONNREFUSED' })
  t.equal(timers(), before)
})
