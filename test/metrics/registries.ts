import { channel } from 'node:diagnostics_channel'
import * as platformatic from '@platformatic/prom-client'
import * as prometheus from '@prometheus-io/client'
import * as promClient from 'prom-client'
import t from 'tap'
import { kSources, type CollectedMetric, type MetricSource } from '../../lib/metrics/collected-metric.js'
import { registerMetrics, type MetricsRegistry } from '../../lib/metrics/index.js'
import { METRICS } from '../../lib/metrics/metrics.js'
import { anyAnswer, block, serve, settle } from '../helpers/app.js'
import { parseScrape, valueOf } from '../helpers/scrape.js'
import { until } from '../helpers/wait.js'
import { openStream } from '../../lib/testing/index.js'

// The same numbers through each client of Prometheus, from real streams.

const CLIENTS = { 'prom-client': promClient, '@prometheus-io/client': prometheus as unknown as typeof promClient, '@platformatic/prom-client': platformatic as unknown as typeof promClient }

for (const [name, client] of Object.entries(CLIENTS)) {
  t.test(name, async t => {
    const registry = new client.Registry()
    const service = await serve(t, { outboxBytes: 4_096, stallTimeoutMs: 0, history: { maxEvents: 50 } })
    const { app, join } = service
    const stop = registerMetrics(app.sse, registry)
    const scrape = async () => parseScrape(await registry.metrics())
    const empty = await scrape()
    t.strictSame([valueOf(empty, 'sse_connections'), valueOf(empty, 'sse_broker_up'), valueOf(empty, 'sse_gaps_total', { reason: 'trimmed' }), valueOf(empty, 'sse_connections_closed_total', { reason: 'stalled' })], [0, 1, 0, 0], 'known labels begin with 0')

    const ada = await join('ada', ['orders'])
    await settle(service, ada.stream)
    const cursor = ada.stream.lastEventId!
    await app.sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds: ['orders'] })
    await settle(service, ada.stream)
    await ada.stream.close()
    await until(() => app.sse.connectionCount === 0)
    const back = await join('ada', ['orders'], { cursor })
    await back.stream.collect(1, 'x')
    await join('bob', [], { cursor: 'wrong' })
    await openStream(app, '/sse', anyAnswer(t, { headers: { origin: 'https://evil.example' } }))
    await app.sse.startRun('a', async function * () { yield 'text' }, { ownerId: null }).then(({ run }) => run.finished)
    await app.sse.startRun('b', async function * ({ signal }) { yield 'text'; await new Promise(resolve => signal.addEventListener('abort', resolve)) }, { ownerId: null })
    const slow = await join('slow')
    await block(slow)
    for (let i = 0; i < 20; i++) await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(1_000) }, { userIds: ['slow'], ephemeral: i % 2 === 0 })

    const stats = app.sse.stats()
    const series = await scrape()
    const value = (name: string, labels?: Record<string, string>) => valueOf(series, name, labels)
    t.strictSame({
      connections: value('sse_connections'),
      opened: value('sse_connections_opened_total'),
      closed: value('sse_connections_closed_total', { reason: 'client' }),
      refused: value('sse_refusals_total', { code: 'SSE_ERR_ORIGIN_FORBIDDEN' }),
      resumes: [value('sse_resumes_total', { result: 'fresh' }), value('sse_resumes_total', { result: 'resumed' }), value('sse_resumes_total', { result: 'gap' })],
      gaps: value('sse_gaps_total', { reason: 'malformed' }),
      published: value('sse_events_published_total'),
      deliveries: value('sse_deliveries_total'),
      dropped: value('sse_dropped_total', { reason: 'outbox' }),
      replayed: value('sse_replayed_events_total'),
      lagging: value('sse_lagging_connections'),
      queued: value('sse_queued_bytes'),
      log: [value('sse_log_events'), value('sse_log_bytes')],
      up: value('sse_broker_up'),
      runs: [value('sse_runs', { status: 'running' }), value('sse_runs_ended_total', { status: 'done' }), value('sse_runs_ended_total', { status: 'lost' })],
      cluster: [value('sse_cluster_nodes', { status: 'up' }), value('sse_cluster_nodes', { status: 'degraded' }), value('sse_cluster_connections')]
    }, {
      connections: 3,
      opened: 4,
      closed: 1,
      refused: 1,
      resumes: [2, 1, 1],
      gaps: 1,
      published: 23,
      deliveries: stats.delivered,
      dropped: stats.dropped,
      replayed: stats.replayed,
      lagging: 1,
      queued: stats.queuedBytes,
      log: [stats.log!.events, stats.log!.bytes],
      up: 1,
      runs: [1, 1, 0],
      cluster: [1, 0, 3]
    })
    t.ok(stats.delivered >= 4 && stats.dropped > 0 && stats.replayed > 0 && stats.queuedBytes > 0)
    t.equal(value('sse_publish_seconds_count'), 23)
    t.equal(value('sse_publish_seconds_bucket', { le: '+Inf' }), 23)
    t.ok(value('sse_publish_seconds_sum')! > 0 && value('sse_delivery_seconds_sum')! > 0)
    t.ok(value('sse_delivery_seconds_count')! > 0)
    t.equal(value('sse_time_to_open_seconds_count'), 4)
    t.strictSame(new Set((await registry.getMetricsAsJSON()).map(({ name }) => name)), new Set(METRICS.map(({ name }) => name)))

    const text = await registry.metrics()
    for (const { name, type, help } of METRICS) {
      t.ok(text.includes(`# HELP ${name} ${help}\n# TYPE ${name} ${type}\n`), name)
      t.equal(name.endsWith('_total'), type === 'counter', `${name}: the suffix of a counter`)
      t.match(name, /^sse_[a-z_]+$/)
    }
    t.notMatch(text, /ada|bob|orders|127\.0\.0\.1/, 'nothing of users, topics and addresses')

    registry.resetMetrics()
    registry.setContentType(client.Registry.OPENMETRICS_CONTENT_TYPE as never)
    const open = await registry.metrics()
    t.match(open, /\n# TYPE sse_connections_opened counter\nsse_connections_opened_total 4\n/)
    registry.setContentType(client.Registry.PROMETHEUS_CONTENT_TYPE as never)
    const workers = await (client.AggregatorRegistry.aggregate([await registry.getMetricsAsJSON(), await registry.getMetricsAsJSON()] as never)).metrics()
    t.strictSame([valueOf(parseScrape(workers), 'sse_connections'), valueOf(parseScrape(workers), 'sse_broker_up'), valueOf(parseScrape(workers), 'sse_cluster_connections')], [6, 1, 3], 'for several processes, what each counts is added')

    stop()
    stop()
    t.strictSame(registry.getMetricsAsArray(), [])
  })
}

t.test('two managers in one process, in one registry and in two', async t => {
  const [chat, orders] = [await serve(t), await serve(t)]
  const shared = new promClient.Registry()
  const own = new promClient.Registry()
  const stop = registerMetrics(chat.app.sse, shared, { labels: { manager: 'chat' } })
  registerMetrics(orders.app.sse, shared, { labels: { manager: 'orders' } })
  registerMetrics(orders.app.sse, own)
  for (const user of ['ada', 'grace']) await chat.join(user)
  await orders.join('ada')
  await chat.app.sse.broadcastEvent({ event: 'x', data: 1 })
  const values = async (registry: promClient.Registry, labels: Record<string, string>) => {
    const series = parseScrape(await registry.metrics())
    return ['sse_connections', 'sse_connections_opened_total', 'sse_publish_seconds_count', 'sse_time_to_open_seconds_count'].map(name => valueOf(series, name, labels))
  }
  t.strictSame(await values(shared, { manager: 'chat' }), [2, 2, 1, 2])
  t.strictSame(await values(shared, { manager: 'orders' }), [1, 1, 0, 1])
  t.strictSame(await values(own, {}), [1, 1, 0, 1])
  stop()
  t.strictSame(await values(shared, { manager: 'chat' }), [undefined, undefined, undefined, undefined])
  t.strictSame(await values(shared, { manager: 'orders' }), [1, 1, 0, 1], 'the other stays')
  await chat.app.sse.broadcastEvent({ event: 'x', data: 1 })
  t.throws(() => registerMetrics(chat.app.sse, shared, { labels: { manager: 'orders' } }), { code: 'SSE_ERR_INVALID_OPTION' })
  t.throws(() => registerMetrics(orders.app.sse, own), { code: 'SSE_ERR_INVALID_OPTION', message: /labels: { manager: 'chat' }/ })
})

t.test('what is no registry, no manager, or taken', async t => {
  const { app: { sse } } = await serve(t)
  const registry = new promClient.Registry()
  for (const wrong of [undefined, null, promClient, {}, 'register']) t.throws(() => registerMetrics(sse, wrong as unknown as MetricsRegistry), { code: 'SSE_ERR_INVALID_OPTION', message: /register/ })
  for (const wrong of [undefined, null, {}, 'sse']) t.throws(() => registerMetrics(wrong as never, registry), { code: 'SSE_ERR_INVALID_OPTION', message: /app\.sse/ })
  for (const labels of [null, 'chat', { 'a-b': 'c' }, { reason: 'x' }, { le: 'x' }, { manager: 7 }]) t.throws(() => registerMetrics(sse, registry, { labels } as never), { code: 'SSE_ERR_INVALID_OPTION', message: /labels/ })
  t.strictSame(registry.getMetricsAsArray(), [])
  // eslint-disable-next-line no-new
  new promClient.Gauge({ name: 'sse_queued_bytes', help: 'another', registers: [registry] })
  t.throws(() => registerMetrics(sse, registry), { code: 'SSE_ERR_INVALID_OPTION', message: /sse_queued_bytes/ })
  t.equal(registry.getMetricsAsArray().length, 1, 'nothing was added')
})

t.test('whatever users and topics do, the number of series stays the same', async t => {
  const { app, join } = await serve(t)
  const registry = new promClient.Registry()
  registerMetrics(app.sse, registry)
  const round = async (from: number) => {
    for (let i = from; i < from + 100; i++) {
      const { stream, connection } = await join(`user-${i}`, [`topic:${i}`], { cursor: `cursor-${i}`, headers: { 'user-agent': `agent/${i}` } })
      await app.sse.broadcastEvent({ event: `event_${i}`, data: i, key: `key-${i}` }, { subscriptionIds: [`topic:${i}`] })
      await app.sse.closeConnection(connection.clientId, `reason-${i}`)
      await stream.close()
    }
    await until(() => app.sse.connectionCount === 0)
    return parseScrape(await registry.metrics()).length
  }
  const before = parseScrape(await registry.metrics()).length
  t.equal(await round(0), before)
  t.ok(before < 250, `${before} series`)
  t.equal(valueOf(parseScrape(await registry.metrics()), 'sse_connections_closed_total', { reason: 'other' }), 100, 'a reason of the application can name a user')
})

t.test('a manager is read once for each scrape, and leaves nothing behind', async t => {
  const { app: { sse } } = await serve(t)
  const registry = new promClient.Registry()
  let reads = 0
  const { stats } = sse
  sse.stats = () => {
    reads++
    return stats.call(sse)
  }
  const labels = { one: '1', other: '2' }
  const stop = registerMetrics(sse, registry, { labels })
  labels.one = 'changed'
  for (const expected of [1, 2]) {
    t.equal(valueOf(parseScrape(await registry.metrics()), 'sse_connections', { one: '1', other: '2' }), 0)
    t.equal(reads, expected)
  }
  t.throws(() => registerMetrics(sse, registry, { labels: { other: '2', one: '1' } }), { code: 'SSE_ERR_INVALID_OPTION', message: /must differ/ }, 'in any order')
  const stopOther = registerMetrics(sse, registry, { labels: { other: '1', one: '2' } })
  const [source, another] = (registry.getSingleMetric('sse_publish_seconds') as unknown as CollectedMetric)[kSources] as [MetricSource, MetricSource]
  const counts = ({ read }: MetricSource) => {
    for (const name of ['publish', 'deliver', 'open']) channel(`fastify-sse-manager:${name}`).publish({ nodeId: sse.nodeId, durationMs: 1 })
    const { publish, delivery, timeToOpen } = read()
    return [publish, delivery, timeToOpen].map(histogram => histogram.read().count)
  }
  t.strictSame(counts(source), [1, 1, 1])
  stop()
  t.strictSame([counts(source), counts(another)], [[1, 1, 1], [3, 3, 3]])
  stopOther()
  t.strictSame(counts(another), [3, 3, 3], 'nothing is measured any more')
  t.strictSame(registry.getMetricsAsArray(), [])
  // A metric of the application that has taken a name meanwhile is not ours to remove.
  const again = registerMetrics(sse, registry)
  registry.removeSingleMetric('sse_connections')
  const own = new promClient.Gauge({ name: 'sse_connections', help: 'another', registers: [registry] })
  again()
  t.strictSame(registry.getMetricsAsArray(), [own])
})
