import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { channelName, type Diagnostics } from '../diagnostics/channels.js'
import { InvalidOption } from '../errors.js'
import type { SSEManager } from '../manager.js'
import { kindOf, quote } from '../util/quote.js'
import { CollectedMetric, kSources, type MetricSource } from './collected-metric.js'
import { Histogram } from './histogram.js'
import { METRICS, type Labels, type Reading } from './metrics.js'

/** A registry of `prom-client`, `@prometheus-io/client` or `@platformatic/prom-client`, as far as it is used. */
export interface MetricsRegistry {
  /** Adds a metric. */
  registerMetric (metric: object): void
  /** Returns the metric with this name, if there is one. */
  getSingleMetric (name: string): unknown
  /** Removes the metric with this name. */
  removeSingleMetric (name: string): void
}

/** Options of `registerMetrics()`. */
export interface MetricsOptions {
  /** Labels of all series of this manager. Needed for the second manager of a registry. Default: none. */
  labels?: Readonly<Record<string, string>>
}

const LABEL = /^[a-zA-Z_][a-zA-Z0-9_]*$/
const OWN_LABELS: ReadonlySet<string> = new Set(['le', ...METRICS.flatMap(({ label }) => label ?? [])])

/**
 * Adds the metrics of a manager to the Prometheus registry of the application, and measures durations from now on. Counters start with the
 * manager, so a later call misses nothing. Returns a function that removes the metrics: for a registry that lives longer than the manager.
 * @param registry a registry of `prom-client`, `@prometheus-io/client` or `@platformatic/prom-client`
 * @throws SSE_ERR_INVALID_OPTION
 * @example
 * ```ts
 * import { register } from 'prom-client'
 * import { registerMetrics } from 'fastify-sse-manager/metrics'
 *
 * registerMetrics(app.sse, register)
 * app.get('/metrics', async (request, reply) => reply.type(register.contentType).send(await register.metrics()))
 * ```
 */
export function registerMetrics (manager: SSEManager, registry: MetricsRegistry, { labels = {} }: MetricsOptions = {}): () => void {
  assertManager(manager)
  assertRegistry(registry)
  assertLabels(labels)
  for (const { name } of METRICS) assertFree(registry, name, labels)
  const { source, stop } = sourceOf(manager, { ...labels })
  for (const definition of METRICS) {
    let metric = registry.getSingleMetric(definition.name) as CollectedMetric | undefined
    if (metric === undefined) registry.registerMetric(metric = new CollectedMetric(definition))
    metric[kSources].push(source)
  }
  return () => {
    stop()
    for (const { name } of METRICS) remove(registry, name, source)
  }
}

function remove (registry: MetricsRegistry, name: string, source: MetricSource): void {
  const sources = sourcesOf(registry.getSingleMetric(name))
  const index = sources === null ? -1 : sources.indexOf(source)
  if (index < 0) return
  sources!.splice(index, 1)
  if (sources!.length === 0) registry.removeSingleMetric(name)
}

/** Returns what the metrics of a manager are read from, and a function that ends the measurement of durations. */
function sourceOf (manager: SSEManager, labels: Labels): { source: MetricSource, stop: () => void } {
  const { nodeId } = manager
  const histograms = { publish: new Histogram(), delivery: new Histogram(), timeToOpen: new Histogram() }
  const measured: Partial<Record<keyof Diagnostics, Histogram>> = { publish: histograms.publish, deliver: histograms.delivery, open: histograms.timeToOpen }
  const stops = Object.entries(measured).map(([channel, histogram]) => {
    const name = channelName(channel as keyof Diagnostics)
    const observe = (message: unknown): void => {
      const payload = message as Diagnostics['publish' | 'deliver' | 'open']
      if (payload.nodeId === nodeId) histogram.observe(payload.durationMs)
    }
    subscribe(name, observe)
    return () => { unsubscribe(name, observe) }
  })
  let reading: Reading | null = null
  const read = (): Reading => {
    if (reading !== null) return reading
    // `stats()` visits each connection. All metrics of a scrape are read in one turn.
    queueMicrotask(() => { reading = null })
    return (reading = { stats: manager.stats(), cluster: manager.clusterStats(), isUp: manager.health().status === 'up', ...histograms })
  }
  return { source: { labels, read }, stop: () => { for (const stop of stops) stop() } }
}

function sourcesOf (metric: unknown): MetricSource[] | null {
  return typeof metric === 'object' && metric !== null && kSources in metric ? metric[kSources] as MetricSource[] : null
}

function assertManager (manager: unknown): void {
  const { stats, nodeId } = (manager ?? {}) as Partial<SSEManager>
  if (typeof stats !== 'function' || typeof nodeId !== 'string') throw new InvalidOption('manager', `of registerMetrics() must be a manager such as app.sse, got ${kindOf(manager)}`)
}

function assertRegistry (registry: unknown): void {
  const given = (registry ?? {}) as Record<string, unknown>
  const isRegistry = ['registerMetric', 'getSingleMetric', 'removeSingleMetric'].every(method => typeof given[method] === 'function')
  if (!isRegistry) throw new InvalidOption('registry', 'of registerMetrics() must be a registry, such as "register" of prom-client')
}

function assertLabels (labels: unknown): void {
  if (typeof labels !== 'object' || labels === null) throw new InvalidOption('labels', `of registerMetrics() must be an object, got ${kindOf(labels)}`)
  for (const [name, value] of Object.entries(labels)) {
    if (!LABEL.test(name) || OWN_LABELS.has(name)) throw new InvalidOption('labels', `of registerMetrics() must not have the name ${quote(name)}: it must match ${LABEL.source}, and not be ${[...OWN_LABELS].join(', ')}`)
    if (typeof value !== 'string') throw new InvalidOption('labels', `of registerMetrics() must be strings, ${quote(name)} is ${kindOf(value)}`)
  }
}

/** Rejects a registry that has the metric of another package, or of a manager with the same labels. */
function assertFree (registry: MetricsRegistry, name: string, labels: Labels): void {
  const metric = registry.getSingleMetric(name)
  if (metric === undefined) return
  const sources = sourcesOf(metric)
  if (sources === null) throw new InvalidOption('registry', `of registerMetrics() has another metric with the name ${quote(name)}`)
  if (sources.some(source => textOf(source.labels) === textOf(labels))) throw new InvalidOption('labels', 'of registerMetrics() must differ for each manager of a registry, such as { labels: { manager: \'chat\' } }')
}

function textOf (labels: Labels): string {
  return JSON.stringify(Object.entries(labels).sort(([one], [other]) => one < other ? -1 : 1))
}
