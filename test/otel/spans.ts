import { channel } from 'node:diagnostics_channel'
import { context, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api'
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

t.test('each span begins when its work began, and has its kind and all its attributes; those of another manager are its own', async t => {
  const { provider, spans } = startTracing(t)
  const { app } = await serve(t)
  const { nodeId } = app.sse
  const stop = registerTracing(app.sse, { tracerProvider: provider })
  const ours = { 'sse.node.id': nodeId }
  const cases = {
    publish: [{ event: 'x', ephemeral: true, priority: 1, delivered: 3, code: null }, SpanKind.PRODUCER, { 'sse.event.name': 'x', 'sse.event.ephemeral': true, 'sse.delivered': 3 }, SpanStatusCode.UNSET],
    replay: [{ clientId: 'c', events: 4, bytes: 5, result: 'gap' }, SpanKind.INTERNAL, { 'sse.client.id': 'c', 'sse.replay.events': 4, 'sse.replay.bytes': 5, 'sse.replay.result': 'gap' }, SpanStatusCode.UNSET],
    open: [{ clientId: 'c', managed: false }, SpanKind.INTERNAL, { 'sse.client.id': 'c', 'sse.managed': false }, SpanStatusCode.UNSET]
  } as const
  for (const [name, [payload, kind, attributes, code]] of Object.entries(cases)) {
    spans.length = 0
    const before = Date.now()
    channel(`fastify-sse-manager:${name}`).publish({ ...payload, nodeId, durationMs: 5_000 })
    channel(`fastify-sse-manager:${name}`).publish({ ...payload, nodeId: 'another', durationMs: 5_000 })
    channel(`fastify-sse-manager:${name}`).publish({ ...payload, nodeId: null, durationMs: 5_000 })
    t.equal(spans.length, 1, name)
    const [span] = spans as [ReadableSpan]
    t.strictSame([span.name, span.kind, span.attributes, span.status.code], [`sse ${name}`, kind, { ...ours, ...attributes }, code])
    t.equal(Math.round((seconds(span.endTime) - seconds(span.startTime)) * 1000), 5_000)
    t.ok(seconds(span.endTime) >= before / 1000 && seconds(span.endTime) <= Date.now() / 1000)
    t.equal(span.parentSpanContext, undefined)
  }
  stop()
  t.strictSame(Object.keys(cases).map(name => channel(`fastify-sse-manager:${name}`).hasSubscribers), [false, false, false])
})
