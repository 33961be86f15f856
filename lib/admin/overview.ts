import { inspectNodes } from '../cluster/questions.js'
import type { NodeDetails } from '../cluster/node-inspection.js'
import type { NodeStats } from '../cluster/cluster.js'
import type { SSEManager } from '../manager.js'
import type { Clock } from '../util/clock.js'

/** Time between two overviews of an open page. */
const INTERVAL_MS = 2_000
/** Time after which the stream of a page ends: it reconnects, and is authorized again. */
const MAX_AGE_MS = 300_000

/** What the page shows at a glance. */
export interface Overview {
  /** Time in milliseconds since the Unix epoch. */
  readonly at: number
  /** The node that has answered this page. */
  readonly nodeId: string
  /** Whether all nodes have answered. */
  readonly complete: boolean
  /** Nodes that have not answered. */
  readonly missing: readonly string[]
  /** The living nodes, with what each reports about itself; null for a node that has not answered. */
  readonly nodes: readonly (NodeStats & { readonly details: NodeDetails | null })[]
  /** What the page may do. */
  readonly allowed: { readonly actions: boolean, readonly payloads: boolean }
}

/** Reads overviews, once for all pages of this node. */
export class Overviews {
  readonly #manager: SSEManager
  readonly #allowed: Overview['allowed']
  readonly #clock: Clock
  #reading: Promise<Overview> | null = null

  constructor (manager: SSEManager, allowed: Overview['allowed']) {
    this.#manager = manager
    this.#allowed = allowed
    this.#clock = manager.node.options.clock
  }

  /** Returns the overview of now. Calls at the same time share it. */
  read (): Promise<Overview> {
    this.#reading ??= this.#read().finally(() => { this.#reading = null })
    return this.#reading
  }

  async #read (): Promise<Overview> {
    const { cluster, inspection } = this.#manager.node
    const { details, complete, missing } = await inspectNodes(cluster, inspection)
    const known = new Map(details.map(one => [one.nodeId, one]))
    const nodes = this.#manager.clusterStats().nodes.map(node => ({ ...node, details: known.get(node.nodeId) ?? null }))
    return { at: this.#clock.wall(), nodeId: this.#manager.nodeId, complete, missing, nodes, allowed: this.#allowed }
  }

  /** Yields overviews until the signal aborts, or the page has to be authorized again. */
  async * watch (signal: AbortSignal): AsyncGenerator<{ event: string, data: Overview }> {
    const startedAt = this.#clock.monotonic()
    while (!signal.aborted && this.#clock.monotonic() - startedAt < MAX_AGE_MS) {
      yield { event: 'overview', data: await this.read() }
      await new Promise<void>(resolve => { this.#clock.after(INTERVAL_MS, resolve).unref() })
    }
  }
}
