import Fastify from 'fastify'
import t, { type Test } from 'tap'
import ssePlugin, { type SSEOptions } from '../../lib/index.js'
import { listen, serve } from '../helpers/app.js'
import { createCertificate } from '../helpers/certificate.js'
import { diagnose, run } from './run.js'

// Servers of this package, over HTTP/1.1 and HTTP/2.

t.test('a stream without a fault', async t => {
  const { app, url } = await serve(t, { keepAliveIntervalMs: 500 })
  const diagnosis = await diagnose(`${url}/sse`)
  t.equal(diagnosis.code, 0)
  t.same([...diagnosis.at('problem'), ...diagnosis.at('warning')], [])
  for (const check of ['status', 'type', 'opening', 'cache', 'delivery', 'idle', 'resume'] as const) t.equal(diagnosis.of(check)?.level, 'ok', check)
  t.equal(diagnosis.of('version')?.level, 'note')
  t.match(diagnosis.measured, { status: 200, httpVersion: '1.1', announcedMs: 500, keepAliveMs: Number, bunches: 0, retryMs: Number, lastEventId: String, ending: 'open' })
  t.ok(diagnosis.measured!.keepAliveMs! >= 400, 'the silence before a keep-alive')

  // Pings, and positions alone, are keep-alives too.
  const pinged = await serve(t, { keepAliveIntervalMs: 500, keepAlive: 'event' })
  const alive = await diagnose(`${pinged.url}/sse`)
  t.match(alive.of('delivery'), { level: 'ok', text: 'Keep-alives arrive one by one' })
  t.equal(alive.of('resume')!.level, 'ok', 'a ping repeats the newest id')
  await app.close()
})

t.test('a run that is finished', async t => {
  const { app, url } = await serve(t, {}, {}, app => {
    app.get('/run', { sse: true }, async (request, reply) => {
      const { run } = await app.sse.startRun('answer', () => [{ event: 'token', data: 1 }], { ownerId: null, ifFinished: 'join' })
      await reply.sse(run)
    })
  })
  const diagnosis = await diagnose(`${url}/run`)
  t.same(diagnosis.at('problem'), [])
  t.match(diagnosis.of('resume'), { level: 'ok', text: 'is told to stop' })
  await app.close()
})

t.test('what people read', async t => {
  const { url } = await serve(t, { keepAliveIntervalMs: 300 })
  const { code, out, err } = await run(['doctor', `${url}/sse`, '--timeout', '30', '--watch', '20'])
  t.equal(code, 0)
  t.equal(err, 'The stream is watched for up to 20 s …\n')
  const lines = out.split('\n')
  t.equal(lines[0], `${url}/sse`)
  t.match(out, /^ok {7}status {4}The server answers 200 after \d/m)
  t.match(out, /^note {5}version {3}The server speaks HTTP\/1\.1: .*\n {19}change: http2 on;/m)
  t.match(out, /\nNo problems\.\n$/)
  const refused = await run(['doctor', `${url}/nothing`])
  t.equal(refused.code, 1)
  t.match(refused.out, /^PROBLEM {2}status {2}The server answers 404.*\n {17}change: the path of the URL\n\n1 problem\.\n$/m)
})

t.test('a stream that is refused for now, and one that is not authenticated', async t => {
  const { url } = await serve(t, { maxConnections: 1, keepAliveIntervalMs: 300 })
  const open = new AbortController()
  t.teardown(() => open.abort())
  await fetch(`${url}/sse`, { signal: open.signal })
  t.match((await diagnose(`${url}/sse`)).at('problem'), [{ check: 'status', text: 'The server refuses the stream for now: SSE_ERR_TOO_MANY_CONNECTIONS, Too many open streams.' }])
  const guarded = await serve(t, { requireAuthentication: true, keepAliveIntervalMs: 300 })
  t.match((await diagnose(`${guarded.url}/sse`)).at('problem'), [{ check: 'status', text: 'The server answers 401, after which an EventSource stops for good: SSE_ERR_UNAUTHENTICATED, Authentication required.' }])
  t.same((await diagnose(`${guarded.url}/sse?user=ada`)).at('problem'), [])
})

async function serveTLS (t: Test, http2: boolean, options: SSEOptions): Promise<string> {
  const https = createCertificate(t.testdir({}))
  const app = Fastify({ ...(http2 && { http2 }), https } as object)
  t.teardown(() => app.close())
  await app.register(ssePlugin, { drainMs: 300, ...options })
  app.get('/sse', { sse: true }, async (request, reply) => { await reply.header('set-cookie', 'session=1').sse() })
  return `${(await listen(app)).replace('http:', 'https:').replace('127.0.0.1', 'localhost')}/sse`
}

t.test('TLS', async t => {
  for (const http2 of [true, false]) {
    await t.test(http2 ? 'HTTP/2' : 'HTTP/1.1', async t => {
      const url = await serveTLS(t, http2, { keepAliveIntervalMs: 500 })
      t.match((await diagnose(url)).at('problem'), [{ check: 'connection', text: /^Browsers refuse the certificate: /, change: /NODE_EXTRA_CA_CERTS/ }])
      // Node.js reads it for each connection. It cannot be given a certificate while it runs.
      process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0'
      t.teardown(() => { delete process.env['NODE_TLS_REJECT_UNAUTHORIZED'] })
      const diagnosis = await diagnose(url)
      t.same(diagnosis.at('problem'), [])
      t.equal(diagnosis.measured!.httpVersion, http2 ? '2' : '1.1')
      t.match(diagnosis.of('version'), http2 ? { level: 'ok' } : { level: 'warning', text: 'at most six streams', change: /^http2 on;/ })
      t.equal(diagnosis.of('resume')!.level, 'ok')
      t.match(diagnosis.of('cookies'), { level: 'warning', text: 'The cookie session is sent without Secure' })
    })
  }
})
