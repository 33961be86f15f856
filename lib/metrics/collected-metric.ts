import { BUCKETS, Histogram } from './histogram.js'
import type { Labels, MetricDefinition, Reading } from './metrics.js'

/** One manager in a registry. */
export interface MetricSource {
  /** Labels of all its series. */
  readonly labels: Labels
  /** Returns the current values. Calls in the same turn of the event loop return the same object. */
  read (): Reading
}

/** A value, as registries write it. */
interface Sample {
  readonly labels: Labels
  readonly value: number
  readonly metricName?: string
}

/** Property with the sources of a metric. `Symbol.for`: the package can be loaded twice, by `import` and by `require`. */
export const kSources = Symbol.for('fastify-sse-manager.metrics.1')

/**
 * A metric as a registry of `prom-client`, `@prometheus-io/client` or `@platformatic/prom-client` reads it. Nothing is counted here: the
 * values are those of the managers at the time of the scrape.
 */
export class CollectedMetric {
  /** A registry for OpenMetrics removes `_total`. */
  name: string
  readonly help: string
  readonly type: MetricDefinition['type']
  readonly aggregator: string
  readonly labelNames: readonly string[]
  readonly [kSources]: MetricSource[] = []
  readonly #read: MetricDefinition['read']

  constructor ({ name, help, type, label, aggregator = 'sum', read }: MetricDefinition) {
    this.name = name
    this.help = help
    this.type = type
    this.aggregator = aggregator
    this.labelNames = label === undefined ? [] : [label]
    this.#read = read
  }

  /** Called by the registry for each scrape. */
  get (): { name: string, help: string, type: string, aggregator: string, values: Sample[] } {
    const { name, help, type, aggregator } = this
    return { name, help, type, aggregator, values: this[kSources].flatMap(source => this.#samples(source)) }
  }

  /** Called by `registry.resetMetrics()`. Has no effect, because the values belong to the managers. */
  reset (): void {}

  #samples ({ labels, read }: MetricSource): Sample[] {
    const value = this.#read(read())
    if (value === null) return []
    if (value instanceof Histogram) return this.#buckets(value, labels)
    if (typeof value === 'number') return [{ labels, value }]
    return Object.entries(value).map(([label, value]) => ({ labels: { ...labels, [this.labelNames[0]!]: label }, value }))
  }

  #buckets (histogram: Histogram, labels: Labels): Sample[] {
    const { name } = this
    const { upTo, count, sum } = histogram.read()
    return [
      ...upTo.map((value, bucket) => ({ metricName: `${name}_bucket`, labels: { le: String(BUCKETS[bucket]), ...labels }, value })),
      { metricName: `${name}_bucket`, labels: { le: '+Inf', ...labels }, value: count },
      { metricName: `${name}_sum`, labels, value: sum },
      { metricName: `${name}_count`, labels, value: count }
    ]
  }
}
