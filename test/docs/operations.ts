import { trace } from '@opentelemetry/api'
import Fastify from 'fastify'
import { register } from 'prom-client'
import ssePlugin from '../../lib/index.js'
import { listen } from '../helpers/app.js'
import { bare, run, visit, type Drivers } from '../helpers/samples.js'
import { startTracing } from '../helpers/tracing.js'
import { until } from '../helpers/wait.js'

/** Of the samples in docs/operations that are not in guides.ts. */
export const DRIVERS: Drivers = {
  async 'admin-page' (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    await run(t, { app, findSession: async (cookie: string | undefined) => cookie === undefined ? null : { role: cookie } })
    const url = await listen(app)
    const ask = async (headers: Record<string, string>) => (await fetch(`${url}/admin/streams`, { headers })).status
    t.same([await ask({}), await ask({ cookie: 'customer' }), await ask({ cookie: 'operator' })], [403, 403, 200])
    const page = await fetch(`${url}/admin/streams`, { headers: { cookie: 'operator' } })
    t.match(page.url, /\/admin\/streams\/$/)
    t.match(await page.text(), '<h1>Event streams</h1>')
  },

  async 'log-stats' (t) {
    const lines: Record<string, unknown>[] = []
    const app = Fastify({ logger: { level: 'info', stream: { write (line: string) { lines.push(JSON.parse(line)) } } } })
    t.teardown(() => app.close())
    await app.register(ssePlugin)
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    await run(t, { app }, [], text => text.replace(/10_?000/, '20'))
    await visit(t, `${await listen(app)}/sse`)
    await until(() => lines.some(({ connections }) => connections === 1))
    t.match(lines.find(({ connections }) => connections === 1), { msg: 'Event streams', lagging: 0, queuedBytes: Number, dropped: 0, stalled: 0 })
  },

  async metrics (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    t.teardown(() => { register.clear() })
    await run(t, { app })
    const url = await listen(app)
    await visit(t, `${url}/sse`)
    const response = await fetch(`${url}/metrics`)
    t.match(response.headers.get('content-type'), /^text\/plain/)
    t.match(await response.text(), /\nsse_connections 1\n/)
  },

  async tracing (t) {
    const { provider, spans } = startTracing(t)
    trace.setGlobalTracerProvider(provider)
    t.teardown(() => { trace.disable() })
    const app = bare(t)
    await app.register(ssePlugin)
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    await run(t, { app })
    await visit(t, `${await listen(app)}/sse`)
    await app.sse.broadcastEvent({ event: 'x', data: 1 })
    t.strictSame(spans.map(({ name }) => name), ['sse open', 'sse publish'])
    await app.close()
  },

  async 'http-instrumentation' (t) {
    const { http } = await run(t, {}, ['http'], text => text.replace('\nexport { http }', ''))
    t.teardown(() => { http.disable() })
    const ignores = (accept: string) => http.getConfig().ignoreIncomingRequestHook({ headers: { accept } })
    t.strictSame([ignores('text/event-stream'), ignores('application/json')], [true, false])
  },

  async diagnostics (t) {
    const lines: Record<string, unknown>[] = []
    const app = Fastify({ logger: { level: 'warn', stream: { write (line: string) { lines.push(JSON.parse(line)) } } } })
    t.teardown(() => app.close())
    await app.register(ssePlugin)
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    await run(t, { app })
    await visit(t, `${await listen(app)}/sse`)
    const [connection] = app.sse.connections()
    connection!.close('stalled')
    await until(() => lines.length > 0)
    t.match(lines, [{ msg: 'A client has stopped to read', clientId: connection!.clientId, durationMs: Number }])
  },

  async 'quiet-refusals' (t) {
    const lines: { level: number, msg: string }[] = []
    const log = { write (line: string) { lines.push(JSON.parse(line)) } }
    const { app } = await run(t, { log }, ['app'], text => text.replace('logger: true', 'logger: { stream: log }').replace('20_000', '1').replace('20000', '1'))
    t.teardown(() => app.close())
    app.get('/fails', { logLevel: 'warn' }, async () => { throw new Error('The database is down') })
    const url = await listen(app)
    const { status } = await visit(t, `${url}/sse`)
    t.equal(status, 200)
    const answers = await Promise.all(['text/event-stream', '*/*'].map(async accept => await (await fetch(`${url}/sse`, { headers: { accept } })).text()))
    t.match(answers, [/event: sse:error/, /"statusCode":503/])
    t.match(app.sse.stats().refused, { SSE_ERR_TOO_MANY_CONNECTIONS: 2 })
    t.strictSame(lines.filter(({ msg }) => !msg.startsWith('Server listening')), [])
    t.equal((await fetch(`${url}/fails`)).status, 500)
    t.match(lines.filter(({ level }) => level > 30), [{ level: 50, msg: 'The database is down' }], 'what is no refusal')
  },

  async 'live-and-ready' (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    const before: readonly unknown[] = process.rawListeners('SIGTERM')
    await run(t, { app }, [], text => text.replace(/10_?000/, '2_000'))
    const url = await listen(app)
    const stream = await visit(t, `${url}/sse`)
    const ready = async () => (await fetch(`${url}/ready`)).status
    t.equal(await ready(), 200)
    t.equal((await fetch(`${url}/live`)).status, 200)
    const [listener] = process.rawListeners('SIGTERM').filter(listener => !before.includes(listener))
    const closing: Promise<void> = listener!.call(process, 'SIGTERM')
    t.equal(await ready(), 503)
    t.equal(app.sse.connectionCount, 1, 'the stream goes on')
    await closing
    t.match(await stream.ended, { by: 'server', reason: 'shutdown' })
    t.equal(app.server.listening, false)
    t.same(process.rawListeners('SIGTERM'), before)
  }
}
