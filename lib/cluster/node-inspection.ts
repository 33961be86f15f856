import { Type, type Static } from '@sinclair/typebox'
import { performance } from 'node:perf_hooks'
import type { SSEConnection } from '../connections/connection.js'
import type { Statistics } from '../connections/statistics.js'
import type { Runs } from '../runs/runs.js'
import type { Registry } from '../subscriptions/registry.js'
import type { Clock } from '../util/clock.js'
import { portions } from '../util/long-list.js'

/** Time for which an answer is returned again: the work of a node does not grow with the number of those who ask. */
const FRESH_MS = 1_000
/** Longest time over which `busy` is measured: a mean of hours would hide that the node is busy now. */
const MAX_MEASURED_MS = 10_000
const TOPICS_PER_TURN = 2_000
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
  /** Part of the time since the answer before, 0 to 1, in which the event loop was busy; null without an answer in the last ten seconds. */
  busy: Type.Union([Type.Number(), Type.Null()])
})
/** What a node reports about itself to an operator. */
export type NodeDetails = Static<typeof NodeDetailsSchema>

/** Reads the details of this node. */
export class NodeInspection {
  readonly #nodeId: string
  readonly #clock: Clock
  readonly #registry: Registry<SSEConnection>
  readonly #statistics: Statistics
  readonly #runs: Runs | null
  #reading: Promise<NodeDetails> | null = null
  #readAt = -Infinity
  #loop = performance.eventLoopUtilization()

  constructor (nodeId: string, clock: Clock, registry: Registry<SSEConnection>, statistics: Statistics, runs: Runs | null) {
    this.#nodeId = nodeId
    this.#clock = clock
    this.#registry = registry
    this.#statistics = statistics
    this.#runs = runs
  }

  /** Returns the details, of the last second. */
  read (): Promise<NodeDetails> {
    const now = this.#clock.monotonic()
    const sinceMs = now - this.#readAt
    if (sinceMs >= FRESH_MS) {
      this.#readAt = now
      this.#reading = this.#read(sinceMs)
    }
    return this.#reading!
  }

  /** @param sinceMs time since the last read */
  async #read (sinceMs: number): Promise<NodeDetails> {
    const before = this.#loop
    this.#loop = performance.eventLoopUtilization()
    const producers = this.#runs?.producing() ?? []
    return {
      nodeId: this.#nodeId,
      stats: { ...await this.#statistics.readInTurns() },
      topics: await largestTopics(this.#registry.holders()),
      runs: producers.slice(-MAX_RUNS).reverse().map(({ key: { runId, ownerId }, state: { startedAt, events, isRead }, bytes }) => ({ runId, ownerId, startedAt, events, bytes, isRead })),
      runCount: producers.length,
      memoryBytes: process.memoryUsage.rss(),
      busy: sinceMs <= MAX_MEASURED_MS ? performance.eventLoopUtilization(this.#loop, before).utilization : null
    }
  }
}

/** Returns the topics with the most holders. */
async function largestTopics (holders: Iterable<[subscription: string, connections: number]>): Promise<NodeDetails['topics']> {
  // By name: a topic that lost its holders between the portions, and has new ones, comes again.
  let largest = new Map<string, number>()
  let least = 0
  for await (const portion of portions(holders, TOPICS_PER_TURN)) {
    for (const [subscription, connections] of portion) if (connections > least) largest.set(subscription, connections)
    const sorted = [...largest].sort(([, one], [, other]) => other - one).slice(0, MAX_TOPICS)
    largest = new Map(sorted)
    if (sorted.length === MAX_TOPICS) least = sorted.at(-1)![1]
  }
  return Array.from(largest, ([subscription, connections]) => ({ subscription, connections }))
}
