import t from 'tap'
import { CLOSE_REASONS } from '../../lib/connections/close-reason.js'
import { CollectedMetric, kSources, type MetricSource } from '../../lib/metrics/collected-metric.js'
import { BUCKETS, Histogram } from '../../lib/metrics/histogram.js'
import { METRICS, type Reading } from '../../lib/metrics/metrics.js'

// Each metric, from numbers of which no two are the same.

const histograms = { publish: new Histogram(), delivery: new Histogram(), timeToOpen: new Histogram() }
for (const [n, histogram] of Object.values(histograms).entries()) for (let i = 0; i <= n; i++) histogram.observe(20 + n)

const reading = {
  stats: {
    connections: 1,
    opened: 2,
    closed: { client: 3, 'reason-of-a-user': 4, another: 5, shutdown: 6 },
    refused: { SSE_ERR_CLOSED: 7 },
    resumes: { fresh: 8, resumed: 9, gap: 10 },
    gaps: { malformed: 11, epoch: 12, unknown: 13, trimmed: 14, limit: 15 },
    replayed: 16,
    published: 17,
    delivered: 18,
    droppedBy: { outbox: 19, memory: 20 },
    lagging: 21,
    queuedBytes: 22,
    log: { events: 23, bytes: 24 },
    runs: { running: 25, done: 26, failed: 27, stopped: 28, lost: 29 }
  },
  cluster: { nodes: [{ status: 'up' }, { status: 'degraded' }, { status: 'degraded' }], connections: 30 },
  isUp: true,
  ...histograms
} as unknown as Reading

/** The series of a metric, as names with labels and values. */
function scrape (name: string, sources: MetricSource[]): Record<string, number> {
  const metric = new CollectedMetric(METRICS.find(definition => definition.name === name)!)
  metric[kSources].push(...sources)
  return Object.fromEntries(metric.get().values.map(({ metricName = name, labels, value }) => [`${metricName}${JSON.stringify(labels)}`, value]))
}

const of = (name: string, label: string, values: Record<string, number>) => Object.fromEntries(Object.entries(values).map(([value, count]) => [`${name}{"manager":"m","${label}":"${value}"}`, count]))
const one = (name: string, value: number) => ({ [`${name}{"manager":"m"}`]: value })
/** Durations of so many times this many milliseconds. */
const durations = (name: string, count: number, ms: number) => ({
  ...Object.fromEntries(BUCKETS.map(bound => [`${name}_bucket{"le":"${bound}","manager":"m"}`, ms / 1000 <= bound ? count : 0])),
  [`${name}_bucket{"le":"+Inf","manager":"m"}`]: count,
  [`${name}_sum{"manager":"m"}`]: Array.from({ length: count }, () => ms / 1000).reduce((sum, seconds) => sum + seconds, 0),
  [`${name}_count{"manager":"m"}`]: count
})

const EXPECTED: Record<string, Record<string, number>> = {
  sse_connections: one('sse_connections', 1),
  sse_connections_opened_total: one('sse_connections_opened_total', 2),
  sse_connections_closed_total: of('sse_connections_closed_total', 'reason', { ...Object.fromEntries(CLOSE_REASONS.map(reason => [reason, 0])), client: 3, shutdown: 6, other: 9 }),
  sse_refusals_total: of('sse_refusals_total', 'code', { SSE_ERR_CLOSED: 7 }),
  sse_resumes_total: of('sse_resumes_total', 'result', { fresh: 8, resumed: 9, gap: 10 }),
  sse_gaps_total: of('sse_gaps_total', 'reason', { malformed: 11, epoch: 12, unknown: 13, trimmed: 14, limit: 15 }),
  sse_replayed_events_total: one('sse_replayed_events_total', 16),
  sse_events_published_total: one('sse_events_published_total', 17),
  sse_deliveries_total: one('sse_deliveries_total', 18),
  sse_dropped_total: of('sse_dropped_total', 'reason', { outbox: 19, memory: 20 }),
  sse_lagging_connections: one('sse_lagging_connections', 21),
  sse_queued_bytes: one('sse_queued_bytes', 22),
  sse_log_events: one('sse_log_events', 23),
  sse_log_bytes: one('sse_log_bytes', 24),
  sse_broker_up: one('sse_broker_up', 1),
  sse_publish_seconds: durations('sse_publish_seconds', 1, 20),
  sse_delivery_seconds: durations('sse_delivery_seconds', 2, 21),
  sse_time_to_open_seconds: durations('sse_time_to_open_seconds', 3, 22),
  sse_runs: of('sse_runs', 'status', { running: 25 }),
  sse_runs_ended_total: of('sse_runs_ended_total', 'status', { done: 26, failed: 27, stopped: 28, lost: 29 }),
  sse_cluster_nodes: of('sse_cluster_nodes', 'status', { up: 1, degraded: 2 }),
  sse_cluster_connections: one('sse_cluster_connections', 30)
}

t.test('each metric shows its own number, with the labels of its manager', async t => {
  for (const { name } of METRICS) t.same(scrape(name, [{ labels: { manager: 'm' }, read: () => reading }]), EXPECTED[name], name)
})

t.test('several managers have series of their own, and a manager without a number has none', async t => {
  const down = { ...reading, isUp: false, stats: { ...reading.stats, log: null } }
  const sources = [{ labels: { manager: 'm' }, read: () => reading }, { labels: {}, read: () => down }]
  t.same(scrape('sse_log_events', sources), { 'sse_log_events{"manager":"m"}': 23 })
  t.same(scrape('sse_log_bytes', sources), { 'sse_log_bytes{"manager":"m"}': 24 })
  t.same(scrape('sse_broker_up', sources), { 'sse_broker_up{"manager":"m"}': 1, 'sse_broker_up{}': 0 })
  t.equal(Object.keys(scrape('sse_publish_seconds', sources)).length, 2 * (BUCKETS.length + 3))
})

t.test('several processes: numbers are added, but for the state of the cluster and of its log', async t => {
  const combined = METRICS.map(definition => new CollectedMetric(definition)).filter(({ aggregator }) => aggregator !== 'sum').map(({ name, aggregator }) => [name, aggregator])
  t.same(combined, [['sse_broker_up', 'min'], ['sse_cluster_nodes', 'max'], ['sse_cluster_connections', 'max']])
  for (const definition of METRICS) {
    const { name, help, type, labelNames } = new CollectedMetric(definition)
    t.same({ name, help, type, labelNames }, { name: definition.name, help: definition.help, type: definition.type, labelNames: definition.label === undefined ? [] : [definition.label] })
  }
})
