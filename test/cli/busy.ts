import { createServer, connect, type AddressInfo } from 'node:net'
import { once } from 'node:events'
import { createServer as createHTTPS } from 'node:https'
import t, { type Test } from 'tap'
import { script, type Answer } from '../client/clients.js'
import { serve } from '../helpers/app.js'
import { createCertificate } from '../helpers/certificate.js'
import { diagnose, run } from './run.js'

// Streams on which events flow, and slow ones: what is told, and what is said to be unknown.

/** A stream that writes this again and again. */
const ticker = (intervalMs: number, text: (n: number) => string, opening = ': open\n\n'): Answer => response => {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' }).write(opening)
  let n = 0
  const timer = setInterval(() => response.write(text(++n)), intervalMs)
  response.on('close', () => clearInterval(timer))
}

t.test('a stream of this package that is never silent', async t => {
  const { app: { sse }, url } = await serve(t, { keepAliveIntervalMs: 15_000 })
  let n = 0
  // So often that a client that returns has missed several, whose ids are others than before.
  const timer = setInterval(() => { sse.broadcastEvent({ event: 'tick', data: String(++n) }) }, 5)
  t.teardown(() => clearInterval(timer))
  const diagnosis = await diagnose(`${url}/sse`, '--watch', '2')
  t.same([...diagnosis.at('problem'), ...diagnosis.at('warning')], [])
  t.match(diagnosis.of('idle'), {
    level: 'skipped',
    text: /^Events leave at most \d+ ms of silence: whether a connection with 15 s of silence, the time between keep-alives, is cut was not seen\.$/,
    change: 'the URL of a stream with fewer events, or a longer --watch'
  })
  t.match(diagnosis.of('resume'), { level: 'ok', text: /receives the event after it\.$/ })
  t.equal(diagnosis.measured!.keepAliveMs, null)
})

t.test('events that come one by one, and keep-alives of a timer among them', async t => {
  const { url } = await script(t, ticker(300, n => n % 3 === 0 ? ': keep-alive\n\n' : 'data: x\n\n'))
  const diagnosis = await diagnose(url, '--watch', '3')
  t.match(diagnosis.of('delivery'), { level: 'ok', text: 'Events arrive one by one.' })
  t.match(diagnosis.of('idle'), { level: 'skipped', text: 'Events leave at most ' }, 'the silence before such a keep-alive is not that between keep-alives')
})

t.test('events that come several at once', async t => {
  const whole = await script(t, ticker(300, () => 'data: x\n\n'.repeat(5)))
  // As a buffer of 100 bytes sends it on.
  const text = 'data: 0123456789\n\n'.repeat(100)
  const full = await script(t, ticker(1_300, n => text.slice((n - 1) * 100, n * 100), ''))
  const [server, buffer] = await Promise.all([diagnose(whole.url, '--watch', '2'), diagnose(full.url, '--watch', '7')])
  t.match(server.of('delivery'), { level: 'skipped', text: 'Events arrive several at once, and do not tell when they were written: whether something delays them was not seen.' })
  t.equal(server.code, 0)
  t.match(buffer.at('problem'), [{ check: 'delivery', text: 'Events arrive several at once, and the last of them in two parts: a proxy between here and the server buffers the response.', change: /^proxy_buffering off;/ }])
  const { out } = await run(['doctor', whole.url, '--watch', '1', '--timeout', '30'])
  t.match(out, /^skipped {2}delivery {2}Events arrive several at once/m)
  t.match(out, /\n1 warning, 2 skipped\.\n$/)
})

t.test('one write that arrives in several parts is one arrival', async t => {
  const { url } = await script(t, response => {
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write(': open\n\n')
    const timer = setInterval(() => {
      response.write(': keep-alive\n\n')
      setImmediate(() => response.write(': keep-alive\n\n'))
    }, 500)
    response.on('close', () => clearInterval(timer))
  })
  t.match((await diagnose(url)).at('problem'), [{ check: 'delivery', text: 'Keep-alives arrive several at once' }])
})

/** A connection to the server at this URL on which nothing arrives for a time. */
async function slowTLS (t: Test, ms: number): Promise<string> {
  const server = createHTTPS(createCertificate(t.testdir({})), (request, response) => { response.writeHead(200, { 'content-type': 'text/event-stream' }).write(': open\n\n') }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const relay = createServer(client => {
    const target = connect((server.address() as AddressInfo).port, '127.0.0.1')
    for (const socket of [client, target]) socket.on('error', () => {}).on('close', () => { client.destroy(); target.destroy() })
    target.pipe(client)
    setTimeout(() => client.pipe(target), ms)
  }).listen(0, '127.0.0.1')
  await once(relay, 'listening')
  t.teardown(() => { relay.close(); server.close() })
  return `https://localhost:${(relay.address() as AddressInfo).port}/sse`
}

t.test('what comes late', async t => {
  const lateMs = 2_200
  const headers = await script(t, response => { setTimeout(() => response.writeHead(200, { 'content-type': 'text/event-stream', server: 'nginx' }).write(': open\n\n'), lateMs) })
  const text = (opening: string): Answer => response => {
    response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders()
    setTimeout(() => response.write(opening), lateMs)
  }
  const first = await script(t, text('data: 1\n\n'))
  const opening = await script(t, text(': stream keep-alive=15000\n\n'))
  process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0'
  t.teardown(() => { delete process.env['NODE_TLS_REJECT_UNAUTHORIZED'] })
  const urls = [headers.url, first.url, opening.url, await slowTLS(t, lateMs)]
  const [lateHeaders, lateText, lateOpening, lateConnection] = await Promise.all(urls.map(async url => await diagnose(url, '--watch', '4')))
  t.match(lateHeaders!.of('status'), {
    level: 'warning',
    text: /^The server answers 200 only after \d+(\.\d)? s, which each client waits whenever it connects: the route works before it sends its headers, or nginx holds them back\.$/,
    change: /reply\.sse\(\).*proxy_buffering off;$/
  })
  t.match(lateText!.of('opening'), { level: 'warning', text: /^The first text arrives only \d+(\.\d)? s after the headers: the server writes nothing before, or a proxy / })
  t.match(lateOpening!.at('problem'), [{ check: 'opening', text: /^The first text arrives only \d+(\.\d)? s after the headers, and the server writes both at once: a proxy between here and the server buffers the response\.$/, change: /^proxy_buffering off;/ }])
  t.match(lateConnection!.of('connection'), { level: 'warning', text: /^The connection takes \d+(\.\d)? s, which each client waits whenever it connects\.$/ })
  t.equal(lateConnection!.of('status')!.level, 'ok', 'the server itself is not slow')
})
