import { Type, type Static } from '@sinclair/typebox'
import { performance } from 'node:perf_hooks'
import { setImmediate as endOfTurn } from 'node:timers/promises'
import type { SSEConnection } from '../connections/connection.js'
import type { Statistics } from '../connections/statistics.js'
import type { Runs } from '../runs/runs.js'
import type { Registry } from '../subscriptions/registry.js'
import type { Clock } from '../util/clock.js'

/** Time for which an answer is returned again: the work of a node does not grow with the number of those who ask. */
const FRESH_MS = 1_000
const SCANNED_PER_TURN = 10_000
const MAX_TOPICS = 20
const MAX_RUNS = 20

const Text = Type.String()
const Count = Type.Integer({ minimum: 0 })

/** What a node reports about itself to an operator. */
export const NodeDetailsSchema = Type.Object({
  nodeId: Text,
  /** `stats()` of the node. Nodes of different versions can count different things. */
  stats: Type.Record(Text, Type.Unknown()),
  /** The topics and patterns with the most connections. */
  topics: Type.Array(Type.Object({ subscription: Text, connections: Count })),
  /** The newest runs whose sources the node reads. */
  runs: Type.Array(Type.Object({ runId: Text, ownerId: Type.Union([Text, Type.Null()]), startedAt: Type.Number(), events: Count, bytes: Count, isRead: Type.Boolean() })),
  runCount: Count,
  /** Resident memory of the process in bytes. */
  memoryBytes: Count,
  /** Part of the time since the answer before, 0 to 1, in which the event loop was busy. */
  busy: Type.Number()
})
/** What a node reports about itself to an operator. */
export type NodeDetails = Static<typeof NodeDetailsSchema>

/** Reads the details of this node. */
export class NodeInspection {
  readonly #nodeId: string
  readonly #clock: Clock
  readonly #registry: Registry<SSEConnection>
  readonly #statistics: Statistics
  readonly #runs: () => Runs | null
  #loop = performance.eventLoopUtilization()
  #reading: Promise<NodeDetails> | null = null
  #readAt = -Infinity

  constructor (nodeId: string, clock: Clock, registry: Registry<SSEConnection>, statistics: Statistics, runs: () => Runs | null) {
    this.#nodeId = nodeId
    this.#clock = clock
    this.#registry = registry
    this.#statistics = statistics
    this.#runs = runs
  }

  /** Returns the details, of the last second. */
  read (): Promise<NodeDetails> {
    const now = this.#clock.monotonic()
    if (this.#reading === null || now - this.#readAt >= FRESH_MS) {
      this.#readAt = now
      this.#reading = this.#read()
    }
    return this.#reading
  }

  async #read (): Promise<NodeDetails> {
    const loop = performance.eventLoopUtilization()
    const { utilization } = performance.eventLoopUtilization(loop, this.#loop)
    this.#loop = loop
    const producers = this.#runs()?.producing() ?? []
    const runs = producers.slice(-MAX_RUNS).reverse().map(({ key: { runId, ownerId }, state: { startedAt, events, isRead }, bytes }) => ({ runId, ownerId, startedAt, events, bytes, isRead }))
    return {
      nodeId: this.#nodeId,
      stats: { ...this.#statistics.read() },
      topics: await this.#topics(),
      runs,
      runCount: producers.length,
      memoryBytes: process.memoryUsage.rss(),
      busy: utilization
    }
  }

  async #topics (): Promise<NodeDetails['topics']> {
    let top: NodeDetails['topics'] = []
    let least = 0
    let scanned = 0
    for (const [subscription, connections] of this.#registry.holders()) {
      if (++scanned % SCANNED_PER_TURN === 0) await endOfTurn()
      if (connections <= least) continue
      top.push({ subscription, connections })
      if (top.length < 2 * MAX_TOPICS) continue
      top = first(top)
      least = top.at(-1)!.connections
    }
    return first(top)
  }
}

function first (topics: NodeDetails['topics']): NodeDetails['topics'] {
  return topics.sort((one, other) => other.connections - one.connections).slice(0, MAX_TOPICS)
}
