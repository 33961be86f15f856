import { context, trace } from '@opentelemetry/api'
import type { ReadableSpan } from '@opentelemetry/sdk-trace-base'
import t from 'tap'
import { registerTracing } from '../../lib/otel/index.js'
import { testLog } from '../../lib/testing/index.js'
import { serve, settle } from '../helpers/app.js'
import { startTracing } from '../helpers/tracing.js'
import { until } from '../helpers/wait.js'

const seconds = ([whole, nanos]: readonly [number, number]) => whole + nanos / 1e9

t.test('spans of publishes, replays and openings, none of a stream', async t => {
  const { provider, spans } = startTracing(t)
  const named = (name: string): ReadableSpan[] => spans.filter(span => span.name === name)
  const broker = testLog().broker()
  const tracer = provider.getTracer('test')
  const service = await serve(t, { broker }, {}, app => {
    app.addHook('onRequest', (request, reply, done) => {
      const span = tracer.startSpan('request')
      context.with(trace.setSpan(context.active(), span), done)
      reply.raw.once('close', () => span.end())
    })
  })
  const { app, join } = service
  const stop = registerTracing(app.sse, { tracerProvider: provider })
  const ada = await join('ada', ['orders'])
  await settle(service, ada.stream)
  const cursor = ada.stream.lastEventId!
  t.match(named('sse open'), [{ attributes: { 'sse.node.id': app.sse.nodeId, 'sse.client.id': ada.connection.clientId, 'sse.managed': true }, ended: true }])
  const [open] = named('sse open')
  t.ok(open!.parentSpanContext !== undefined, 'within the span of the request')

  const caller = tracer.startSpan('caller')
  spans.length = 0
  await context.with(trace.setSpan(context.active(), caller), () => app.sse.broadcastEvent({ event: 'paid', data: 'secret' }, { subscriptionIds: ['orders'] }))
  const [publish] = named('sse publish')
  t.match(publish, { attributes: { 'sse.event.name': 'paid', 'sse.event.ephemeral': false, 'sse.delivered': 1 }, status: { code: 0 } })
  t.equal(publish!.parentSpanContext?.spanId, caller.spanContext().spanId)
  t.ok(seconds(publish!.endTime) >= seconds(publish!.startTime))
  t.equal(JSON.stringify(publish!.attributes).includes('secret'), false)

  const back = await join('ada', ['orders'], { cursor })
  await back.stream.collect(1, 'paid')
  await until(() => named('sse replay').length === 1)
  t.match(named('sse replay'), [{ attributes: { 'sse.client.id': back.connection.clientId, 'sse.replay.events': 1, 'sse.replay.result': 'complete' } }])

  broker.fail()
  spans.length = 0
  await t.rejects(app.sse.broadcastEvent({ event: 'paid', data: 1 }))
  broker.restore()
  t.match(named('sse publish'), [{ attributes: { 'error.type': 'SSE_ERR_BROKER_UNAVAILABLE' }, status: { code: 2 } }])
  t.strictSame(spans.filter(({ name }) => name.startsWith('sse') && name !== 'sse publish'), [], 'streams go on without a span')

  stop()
  spans.length = 0
  await app.sse.broadcastEvent({ event: 'paid', data: 1 })
  t.strictSame(spans, [])
  t.throws(() => registerTracing(undefined as never), { code: 'SSE_ERR_INVALID_OPTION' })
})
