import { createServer } from 'node:net'
import { once } from 'node:events'
import { gzipSync } from 'node:zlib'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { freePort } from '../../lib/testing/free-port.js'
import { cut, ended, script, status, stream, type Answer } from '../client/clients.js'
import { diagnose, run } from './run.js'

// Servers that are not of this package, each with one fault: `doctor` names it in one sentence, with the line to change.

t.test('a plain server that writes events', async t => {
  const { url } = await script(t, stream('data: 1\n\n'))
  const diagnosis = await diagnose(url, '--watch', '1')
  t.equal(diagnosis.code, 0)
  t.same(diagnosis.at('problem'), [])
  t.match(diagnosis.of('cache'), { level: 'warning', text: 'the header cache-control is missing', change: 'cache-control: no-cache, no-store, no-transform' })
  t.match(diagnosis.of('resume'), { level: 'warning', text: 'Events have no ids', change: /^a line `id: 42`/ })
  t.match(diagnosis.of('idle'), { level: 'skipped', text: 'No keep-alive arrives within ', change: /^--watch 70/ })
  t.match(diagnosis.of('delivery'), { level: 'skipped', text: 'Too little arrives to see whether something delays it.' })
  t.match(diagnosis.measured, { status: 200, httpVersion: '1.1', connectMs: Number, headMs: Number, events: 1, lastEventId: null, announcedMs: null, ending: 'open' })
})

t.test('answers that are no stream', async t => {
  const cases = [
    [status(200, { a: 1 }), 'type', 'The answer is application/json, not an event stream', 'content-type: text/event-stream'],
    [status(404, { message: 'Route GET:/sse not found' }), 'status', 'The server answers 404, after which an EventSource stops for good: Route GET:/sse not found.', 'the path of the URL'],
    [status(401, { code: 'SSE_ERR_UNAUTHENTICATED', message: 'Authentication required' }), 'status', 'answers 401, after which an EventSource stops for good: SSE_ERR_UNAUTHENTICATED, Authentication required.', /^--header 'authorization: /],
    [status(500, {}), 'status', 'The server answers 500', 'what the log of the server says'],
    [status(418, {}, { 'content-type': 'text/plain' }), 'status', 'The server answers 418', 'the request'],
    [status(400, {}, { 'content-type': 'application/problem+json' }), 'status', 'The server answers 400', 'the request'],
    [status(204), 'status', 'answers 204, after which an EventSource stops', /204/],
    [status(200, {}, { 'content-type': '' }), 'type', 'The answer is of no type', 'content-type: text/event-stream']
  ] as const
  for (const [answer, check, text, change] of cases) {
    const { url } = await script(t, answer)
    const diagnosis = await diagnose(url)
    t.equal(diagnosis.code, 1)
    t.match(diagnosis.at('problem'), [{ check, text, change }], text)
    t.equal(diagnosis.measured, null)
  }
})

t.test('an answer that is not JSON, although it says so, is not shown', async t => {
  const { url } = await script(t, response => { response.writeHead(503, { 'content-type': 'application/json' }).end('{\u001b[2J') })
  t.match((await diagnose(url)).at('problem'), [{ text: 'The server answers 503, after which an EventSource stops for good.' }])
})

t.test('what a server says cannot change the terminal', async t => {
  const { url } = await script(t, status(500, { message: 'a\u001b[2Jb\u202e' }))
  const { out, code } = await run(['doctor', url])
  t.equal(code, 1)
  t.match(out, 'a\\u001b[2Jb\\u202e.')
  // eslint-disable-next-line no-control-regex
  t.notMatch(out, /[\u0000-\u0009\u000b-\u001f\u202e]/)
})

t.test('JSON, too, cannot change the terminal', async t => {
  const { url } = await script(t, stream('id: 1\u009b2J\ndata: "a\u009b2J\u202eb"\n\n'))
  for (const args of [['tail', url, '--json', '--count', '1'], ['doctor', url, '--json', '--watch', '0.5']]) {
    const { out } = await run(args)
    t.notMatch(out, /[\u007f-\u009f\u202e]/)
    t.match(out, '1\\u009b2J')
  }
})

t.test('headers as large as browsers accept', async t => {
  const answer = (bytes: number): Answer => response => { response.writeHead(200, { 'content-type': 'text/event-stream', 'x-large': 'a'.repeat(bytes) }).write('data: 1\n\n') }
  t.equal((await diagnose((await script(t, answer(100_000))).url, '--watch', '0.5')).of('status')!.level, 'ok')
  t.match((await diagnose((await script(t, answer(300_000))).url)).at('problem'), [{ check: 'connection', text: 'The headers are larger than browsers accept.' }])
})

/** A gigabyte of text, in a megabyte. */
const bomb = (code: number): Answer => {
  const compressed = gzipSync(Buffer.alloc(1 << 30, 'a'), { level: 1 })
  return response => { response.writeHead(code, { 'content-type': code === 200 ? 'text/event-stream' : 'application/json', 'content-encoding': 'gzip' }).end(compressed) }
}

t.test('a server whose text has no end does not exhaust the memory', async t => {
  const endless: Answer = response => {
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: ')
    const part = Buffer.alloc(1 << 20, 'a')
    const write = (): void => { while (!response.destroyed && response.write(part)); }
    response.on('drain', write)
    write()
  }
  const refusal = bomb(404)
  for (const answer of [endless, bomb(200), refusal]) {
    const { url } = await script(t, answer)
    let largest = 0
    const timer = setInterval(() => { largest = Math.max(largest, process.memoryUsage().heapUsed + process.memoryUsage().external) }, 20)
    const before = process.memoryUsage()
    const diagnosis = await diagnose(url)
    clearInterval(timer)
    t.match(diagnosis.at('problem'), answer === refusal ? [{ check: 'status' }] : [{ check: 'format', text: 'An event does not end' }])
    const grown = Math.round((largest - before.heapUsed - before.external) / 2 ** 20)
    t.ok(grown < 600, `${grown} MiB`)
  }
})

t.test('streams that end', async t => {
  const cases = [
    [ended('data: 1\n\n'), 'delivery', 'The server ends the response', /response\.end\(\)/],
    [ended('retry: 2000\n\n'), 'status', 'The answer only asks to reconnect after 2 s: a proxy between here and the server reaches no server.', 'start the server, or correct its address in the proxy'],
    [cut('data: 1\n\n'), 'idle', /^The connection is cut \d+ ms after the headers\.$/, /logs of the server and of the proxy/],
    [ended('event: sse:error\ndata: {"code":"SSE_ERR_TOO_MANY_CONNECTIONS","message":"Too many open streams","retryable":true}\n\n'), 'status', 'The server refuses the stream for now: SSE_ERR_TOO_MANY_CONNECTIONS, Too many open streams.', 'the limits of the server, or what its log says'],
    [ended('event: sse:error\ndata: nothing\n\n'), 'status', 'The server refuses the stream for now', /limits/]
  ] as const
  for (const [answer, check, text, change] of cases) {
    const { url } = await script(t, answer)
    const diagnosis = await diagnose(url)
    t.equal(diagnosis.code, 1)
    t.match(diagnosis.at('problem'), [{ check, text, change }], String(text))
  }
  const { url } = await script(t, ended(': stream keep-alive=15000\n\nid: a.1\n\nevent: sse:close\ndata: {"reason":"max-age","reconnect":true}\n\n'), stream('id: a.1\n\n'))
  const closed = await diagnose(url, '--watch', '1')
  t.match(closed.of('delivery'), { level: 'note', text: 'The server closes the stream with the reason max-age.' })
  const run = await script(t, ended('event: sse:end\ndata: {"status":"done"}\n\n'))
  t.match((await diagnose(run.url)).of('delivery'), { level: 'ok', text: 'The run ends with the status done.' })
})

t.test('a stream that is cut although it is not silent', async t => {
  const { url } = await script(t, (response, request) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: 0\n\n')
    const timer = setInterval(() => response.write('data: 1\n\n'), 100)
    setTimeout(() => request.socket.destroy(), 2_000)
    response.on('close', () => clearInterval(timer))
  })
  t.match((await diagnose(url)).at('problem'), [{ check: 'idle', text: 'something limits the duration of a request', change: /limit on the duration/ }])
})

t.test('streams that do not arrive when they are written', async t => {
  const silent = await script(t, stream(': stream keep-alive=100\n\nretry: 3000\n\n'))
  t.match((await diagnose(silent.url)).at('problem'), [{ check: 'delivery', text: /^Nothing arrives for \d+(?:\.\d)? s, although the server writes at least every 100 ms: a proxy between here and the server buffers the response\.$/, change: /^proxy_buffering off;/ }])
  const bunched = await script(t, response => {
    response.writeHead(200, { 'content-type': 'text/event-stream', server: 'nginx/1.26' }).write(': open\n\n')
    const timer = setInterval(() => response.write(': keep-alive\n\n: keep-alive\n\n'), 500)
    response.on('close', () => clearInterval(timer))
  })
  t.match((await diagnose(bunched.url)).at('problem'), [{ check: 'delivery', text: 'Keep-alives arrive several at once: nginx buffers the response.', change: 'proxy_buffering off;' }])
  const headersOnly = await script(t, response => { response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders() })
  t.match((await diagnose(headersOnly.url, '--watch', '1')).of('opening'), { level: 'warning', text: 'Nothing follows the headers within ', change: /^response\.write/ })
})

t.test('headers that a stream should not have', async t => {
  const { url } = await script(t, response => {
    response.writeHead(200, { 'content-type': 'text/event-stream; charset=iso-8859-1', age: '7', 'set-cookie': ['a=1; SameSite=None', 'b=2; HttpOnly'] }).write('retry: 0\n\n')
  })
  const diagnosis = await diagnose(url, '--watch', '0.5')
  t.match(diagnosis.of('type'), { level: 'warning', text: 'the charset iso-8859-1' })
  t.match(diagnosis.of('cache'), { level: 'problem', text: 'A cache has answered' })
  t.match(diagnosis.of('retry'), { level: 'problem', text: 'The reconnection time is 0 ms', change: '`retry: 3000`' })
  t.match(diagnosis.findings.filter(({ check }) => check === 'cookies'), [{ level: 'warning', text: 'Browsers discard the cookie a', change: /Secure/ }, { level: 'ok', text: 'the cookie b' }])
})

t.test('clients that return', async t => {
  const events = (from: number, to: number): string => Array.from({ length: to - from + 1 }, (_, i) => `id: ${from + i}\ndata: ${from + i}\n\n`).join('')
  const cases = [
    ['repeats the last event', (id: string) => events(Number(id), 3), 'problem', 'A client that returns with the id 2 receives the event with this id again.', /id > lastEventId/],
    ['begins again', () => events(1, 3), 'problem', 'receives all events again: the server ignores Last-Event-ID', /last-event-id/],
    ['reports a gap', () => 'event: sse:gap\ndata: {"reason":"trimmed"}\n\n', 'warning', 'the server reports lost events: {"reason":"trimmed"}', /^history: /],
    ['keeps no history', () => '', 'warning', 'A client that returns with the id 2 does not receive the event after it, 3: the server keeps no history', /last-event-id/],
    ['goes on', (id: string) => events(Number(id) + 1, 4), 'ok', 'A client that returns with the id 2 receives the event after it.', undefined]
  ] as const
  for (const [name, again, level, text, change] of cases) {
    const { url, requests } = await script(t, (response, request) => {
      const id = request.headers['last-event-id'] as string | undefined
      response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' }).write(id === undefined ? events(1, 3) : again(id))
    })
    const diagnosis = await diagnose(url, '--watch', '1')
    t.match(diagnosis.of('resume'), { level, text, ...(change !== undefined && { change }) }, name)
    t.equal(requests[1]!.headers['last-event-id'], '2', 'as if it had missed the last event')
  }
  const single = await script(t, stream('id: \u00e9\ndata: x\n\n'), stream(': open\n\n'))
  t.match((await diagnose(single.url, '--watch', '0.5')).of('resume'), { level: 'ok', text: 'A client that returns with the id \u00e9 receives nothing again.' })
  t.equal(Buffer.from(single.requests[1]!.headers['last-event-id'] as string, 'latin1').toString(), '\u00e9', 'the bytes of UTF-8, as a browser sends them')
  const control = await script(t, stream('id: a\u0001\ndata: x\n\n'))
  t.match((await diagnose(control.url, '--watch', '0.5')).of('resume'), { level: 'problem', text: 'A client that returns with the id a\\u0001 is refused', change: /^ids without control characters/ })
  const only = await script(t, stream('id: 3\ndata: x\n\n'))
  t.match((await diagnose(only.url, '--watch', '0.5')).of('resume'), { level: 'problem', text: 'A client that returns with the id 3 receives the event with this id again.' }, 'the only event')
  const refused = await script(t, stream('id: 3\ndata: x\n\n'), status(400))
  t.match((await diagnose(refused.url, '--watch', '1')).of('resume'), { level: 'problem', text: 'A client that returns with the id 3 is refused: the server answers 400.' })
})

t.test('no answer at all', async t => {
  const port = await freePort()
  t.match((await diagnose(`http://127.0.0.1:${port}/`)).at('problem'), [{ check: 'connection', text: `Nothing listens at 127.0.0.1:${port}.`, change: 'start the server, or correct the host and the port of the URL' }])
  t.match((await diagnose('http://nowhere.invalid/')).at('problem'), [{ text: 'The name nowhere.invalid has no address.' }])
  const { url } = await script(t, stream(''))
  t.match((await diagnose(url.replace('http', 'https'))).at('problem'), [{ text: /does not speak TLS/, change: 'http:// instead of https://' }])
  const dropping = await script(t, (response, request) => { request.socket.destroy() })
  t.match((await diagnose(dropping.url)).at('problem'), [{ text: 'The connection is closed before an answer.' }])
  const strange = createServer(socket => { socket.on('error', () => {}).end('220 mail.example ESMTP\r\n') }).listen(0, '127.0.0.1')
  t.teardown(() => strange.close())
  await once(strange, 'listening')
  t.match((await diagnose(`http://127.0.0.1:${(strange.address() as AddressInfo).port}/`)).at('problem'), [{ text: 'The answer is not HTTP' }])
  const silent = await script(t, () => {})
  t.match((await diagnose(silent.url, '--timeout', '0.5')).at('problem'), [{ text: 'The connection is accepted, but there is no answer within 500 ms: the server sends no headers, or a proxy between here and the server buffers the response.', change: /response\.flushHeaders\(\)/ }])
})

t.test('redirects are followed, and credentials stay with their server', async t => {
  const to = await script(t, stream('data: 1\n\n'))
  const from = await script(t, response => { response.writeHead(307, { location: to.url }).end() })
  const diagnosis = await diagnose(from.url, '--watch', '0.5', '--header', 'Authorization: Bearer secret', '--header', 'cookie: a=b', '--header', 'x-trace: 1')
  t.equal(diagnosis.url, to.url)
  t.match(diagnosis.of('redirect'), { level: 'note', text: `The server redirects to ${to.url}.` })
  t.match(from.requests[0]!.headers, { authorization: 'Bearer secret', cookie: 'a=b' })
  t.match(to.requests[0]!.headers, { 'x-trace': '1', accept: 'text/event-stream', authorization: undefined, cookie: undefined })
  const own = await script(t, response => { response.writeHead(307, { location: '/other' }).end() }, stream('data: 1\n\n'))
  await diagnose(own.url, '--watch', '0.3', '--header', 'cookie: a=b')
  t.match(own.requests[1], { url: '/other', headers: { cookie: 'a=b' } }, 'on the same server they are sent again')
  const circle = await script(t, response => { response.writeHead(302, { location: '/sse' }).end() })
  t.match((await diagnose(circle.url)).at('problem'), [{ check: 'redirect', text: 'The server redirects more than 5 times.', change: /credentials/ }])
  t.equal(circle.requests.length, 6)
  const elsewhere = await script(t, response => { response.writeHead(302, { location: 'file:///etc/passwd' }).end() })
  t.match((await diagnose(elsewhere.url)).at('problem'), [{ check: 'redirect', text: 'The server redirects to file:///etc/passwd, which is no address of HTTP.' }])
})
