import type { ClusterStats } from '../cluster/cluster.js'
import { CLOSE_REASONS, isCloseReason } from '../connections/close-reason.js'
import type { ManagerStats } from '../connections/statistics.js'
import type { Histogram } from './histogram.js'

/** What all metrics of one manager are read from, once for each scrape. */
export interface Reading {
  readonly stats: ManagerStats
  readonly cluster: ClusterStats
  readonly isUp: boolean
  readonly publish: Histogram
  readonly delivery: Histogram
  readonly timeToOpen: Histogram
}

/** Labels of one series. */
export type Labels = Readonly<Record<string, string>>
/** A value, or one for each value of a label. */
type Values = number | Readonly<Record<string, number>>

/** One metric. */
export interface MetricDefinition {
  readonly name: string
  readonly help: string
  readonly type: 'counter' | 'gauge' | 'histogram'
  /** Name of its label. The values of a label do not come from users: they are a closed list. */
  readonly label?: string
  /** How the values of several processes are combined by a registry for workers. Default: `sum`. */
  readonly aggregator?: 'sum' | 'min' | 'max'
  /** Returns the current values; null if there are none. */
  read (reading: Reading): Values | Histogram | null
}

/** Counts by the reasons of this package. Reasons of the application can name a user, so they are counted together. */
function closedOf (closed: Readonly<Record<string, number>>): Record<string, number> {
  const counts: Record<string, number> = Object.fromEntries([...CLOSE_REASONS, 'other'].map(reason => [reason, 0]))
  for (const [reason, count] of Object.entries(closed)) counts[isCloseReason(reason) ? reason : 'other']! += count
  return counts
}

const counter = (name: string, help: string, read: (stats: ManagerStats) => number): MetricDefinition => ({ name, help, type: 'counter', read: ({ stats }) => read(stats) })
const counters = (name: string, label: string, help: string, read: (stats: ManagerStats) => Readonly<Record<string, number>>): MetricDefinition => ({ name, help, type: 'counter', label, read: ({ stats }) => read(stats) })
const gauge = (name: string, help: string, read: (stats: ManagerStats) => number | null): MetricDefinition => ({ name, help, type: 'gauge', read: ({ stats }) => read(stats) })
const histogram = (name: string, help: string, read: (reading: Reading) => Histogram): MetricDefinition => ({ name, help, type: 'histogram', read })

/** All metrics, in the order of the scrape. */
export const METRICS: readonly MetricDefinition[] = [
  gauge('sse_connections', 'Open streams, including streams of sources and runs.', ({ connections }) => connections),
  counter('sse_connections_opened_total', 'Admitted streams: the open ones and all that have ended.', ({ opened }) => opened),
  counters('sse_connections_closed_total', 'reason', 'Ended streams by close reason; other for reasons of the application.', ({ closed }) => closedOf(closed)),
  counters('sse_refusals_total', 'code', 'Requests that were refused before the headers were sent, by error code.', ({ refused }) => refused),
  counters('sse_resumes_total', 'result', 'Starts of streams: without a cursor, at the cursor of the client, or with a gap.', ({ resumes }) => resumes),
  counters('sse_gaps_total', 'reason', 'Gaps: events that clients have missed and that cannot be replayed.', ({ gaps }) => gaps),
  counter('sse_replayed_events_total', 'Events that were read from the log for clients that had resumed or were too slow.', ({ replayed }) => replayed),
  counter('sse_events_published_total', 'Events that this node has published.', ({ published }) => published),
  counter('sse_deliveries_total', 'Events that were given to a connection: one for each event and connection.', ({ delivered }) => delivered),
  counters('sse_dropped_total', 'reason', 'Ephemeral events dropped for slow clients, by the bound that was reached: outboxBytes, or maxQueuedBytes.', ({ droppedBy }) => droppedBy),
  gauge('sse_lagging_connections', 'Connections that read older events from the log, wait for their snapshot, or are ahead of this node.', ({ lagging }) => lagging),
  gauge('sse_queued_bytes', 'Bytes that wait for clients, without the buffers of the kernel.', ({ queuedBytes }) => queuedBytes),
  gauge('sse_log_events', 'Events that this node keeps in memory for replay.', ({ log }) => log === null ? null : log.events),
  gauge('sse_log_bytes', 'Memory of the events that this node keeps for replay.', ({ log }) => log === null ? null : log.bytes),
  { name: 'sse_broker_up', help: 'Whether events can be logged and this node reads them without delay.', type: 'gauge', aggregator: 'min', read: ({ isUp }) => isUp ? 1 : 0 },
  histogram('sse_publish_seconds', 'Time of a publish until the log has answered and this node has delivered the event, of failed ones as well.', ({ publish }) => publish),
  histogram('sse_delivery_seconds', 'Time from the arrival of events at this node until they are written to all clients that keep up, once for each flush.', ({ delivery }) => delivery),
  histogram('sse_time_to_open_seconds', 'Time from a request to the headers of its stream.', ({ timeToOpen }) => timeToOpen),
  { name: 'sse_runs', help: 'Runs whose source this node reads.', type: 'gauge', label: 'status', read: ({ stats: { runs: { running } } }) => ({ running }) },
  counters('sse_runs_ended_total', 'status', 'Runs of this node that have ended, by status.', ({ runs: { running, ...ended } }) => ended),
  {
    name: 'sse_cluster_nodes',
    help: 'Living nodes that this node knows, itself included, by their health.',
    type: 'gauge',
    label: 'status',
    aggregator: 'max',
    read: ({ cluster: { nodes } }) => {
      const up = nodes.filter(({ status }) => status === 'up').length
      return { up, degraded: nodes.length - up }
    }
  },
  { name: 'sse_cluster_connections', help: 'Open streams of all nodes, as far as this node knows.', type: 'gauge', aggregator: 'max', read: ({ cluster: { connections } }) => connections }
]
