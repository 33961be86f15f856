import { createRequire } from 'node:module'
import { context, trace } from '@opentelemetry/api'
import { HttpInstrumentation } from '@opentelemetry/instrumentation-http'
import fastifyMetrics from 'fastify-metrics'
import { Registry } from 'prom-client'
import t from 'tap'
import { registerTracing } from '../../lib/otel/index.js'
import { serve } from '../helpers/app.js'
import { parseScrape, valueOf } from '../helpers/scrape.js'
import { startTracing } from '../helpers/tracing.js'
import { until } from '../helpers/wait.js'

// How streams are kept out of the latency of requests, with the packages that measure it.

t.test('instrumentation-http: streams are ignored, other requests are not', async t => {
  const { provider, spans } = startTracing(t)
  const instrumentation = new HttpInstrumentation({
    ignoreIncomingRequestHook: ({ headers }) => headers.accept === 'text/event-stream',
    ignoreOutgoingRequestHook: () => true
  })
  instrumentation.setTracerProvider(provider)
  instrumentation.enable()
  // The instrumentation patches what is loaded after it.
  createRequire(import.meta.url)('http')
  t.teardown(() => { instrumentation.disable() })
  const tracer = provider.getTracer('framework')
  const { app, url, join } = await serve(t, {}, {}, app => {
    // As instrumentation of a framework does. Within a request that is ignored, its span is not recorded.
    app.addHook('onRequest', (_request, reply, done) => {
      const span = tracer.startSpan('hook')
      context.with(trace.setSpan(context.active(), span), done)
      reply.raw.once('close', () => span.end())
    })
    app.get('/plain', async () => 'text')
  })
  t.teardown(registerTracing(app.sse, { tracerProvider: provider }))
  const servers = () => spans.filter(({ kind }) => kind === 1)
  t.equal(await (await fetch(`${url}/plain`)).text(), 'text')
  await until(() => servers().length === 1)
  const { stream } = await join('ada', [], { headers: { accept: 'text/event-stream' } })
  t.ok(spans.some(({ name }) => name === 'sse open'), 'its opening has a span all the same')
  await stream.close()
  await until(() => app.sse.connectionCount === 0)
  await (await fetch(`${url}/plain`)).text()
  await until(() => servers().length === 2)
  const other = await join('ada')
  await other.stream.close()
  await until(() => servers().length === 3)
  t.equal(servers().length, 3, 'without the accept header of a stream it is one of the requests')
})

t.test('fastify-metrics: routes with disableMetrics have no duration', async t => {
  for (const disableMetrics of [false, true]) {
    const register = new Registry()
    const { app, url } = await serve(t, {}, {}, app => {
      app.register(fastifyMetrics as never, { endpoint: null, defaultMetrics: { enabled: false }, promClient: undefined, routeMetrics: { overrides: { histogram: { registers: [register] }, summary: { registers: [register] } } } })
      app.register(async app => {
        app.get('/events', { sse: true, config: { disableMetrics } as object }, async (_request, reply) => { await reply.sse() })
        app.get('/plain', async () => 'text')
      })
    })
    await (await fetch(`${url}/plain`)).text()
    const response = await fetch(`${url}/events`, { headers: { accept: 'text/event-stream' } })
    const [connection] = app.sse.connections()
    connection!.close('kicked')
    await response.text()
    const count = async (route: string) => valueOf(parseScrape(await register.metrics()), 'http_request_duration_seconds_count', { route })
    await until(() => app.sse.connectionCount === 0)
    t.equal(await count('/plain'), 1)
    t.equal(await count('/events'), disableMetrics ? undefined : 1)
  }
})
