import { isCloseReason } from './close-reason.js'
import type { Member, Registry } from '../subscriptions/registry.js'

/** Counters of one connection, returned by `connection.stats()`. */
export interface ConnectionStats {
  /** Number of events written to the client, including replayed events. */
  readonly sentEvents: number
  /** Number of ephemeral events that were dropped because the client was too slow. */
  readonly droppedEvents: number
  /**
   * Bytes that wait for the client, in this package and in Node's own queue. Buffers of the kernel are not counted. Each waiting event
   * counts with its text, its target, its key and 400 bytes.
   */
  readonly queuedBytes: number
  /** Whether the client reads older events from the log, or waits until this node reaches its cursor. */
  readonly lagging: boolean
}

/** Counters of one node, returned by `stats()`. Totals start at 0 with the manager. */
export interface ManagerStats {
  /** Number of open streams, including streams of `reply.sse(source)`. */
  readonly connections: number
  /** Number of distinct users with an open stream. */
  readonly users: number
  /** Number of distinct topics and patterns that connections hold. */
  readonly subscriptions: number
  /** Total number of messages delivered on this node. A message counts once, for any number of connections. */
  readonly messages: number
  /** Total number of deliveries: one for each message and connection. */
  readonly delivered: number
  /** Total number of ephemeral events that were dropped for slow clients. */
  readonly dropped: number
  /** Number of connections that read older events from the log, or wait until this node reaches their cursor. */
  readonly lagging: number
  /** Bytes that wait for slow clients, without buffers of the kernel. The sum of `queuedBytes` of all connections. */
  readonly queuedBytes: number
  /** Total number of ended streams by close reason. After 64 distinct reasons, further reasons of the application count as `other`. */
  readonly closed: Readonly<Record<string, number>>
}

const MAX_COUNTED_REASONS = 64

/** A connection whose counters are summed. */
export interface Counted extends Member {
  /** Returns the counters of the connection. */
  stats (): ConnectionStats
}

/** The counters of the dispatcher. */
interface Counters {
  readonly messages: number
  readonly deliveries: number
}

/** Sums the counters of this node and of its connections. @internal */
export class Statistics {
  readonly #registry: Registry<Counted>
  readonly #counters: Counters
  readonly #closed: Record<string, number> = Object.create(null)
  /** Ephemeral events that connections had dropped when they ended. */
  #dropped = 0

  constructor (registry: Registry<Counted>, counters: Counters) {
    this.#registry = registry
    this.#counters = counters
  }

  /** Counts the end of a connection. */
  ended (connection: Counted, reason: string): void {
    this.#dropped += connection.stats().droppedEvents
    const known = isCloseReason(reason) || reason in this.#closed || Object.keys(this.#closed).length < MAX_COUNTED_REASONS
    const counted = known ? reason : 'other'
    this.#closed[counted] = (this.#closed[counted] ?? 0) + 1
  }

  /** Returns the current counters. Visits each connection. */
  read (): ManagerStats {
    let lagging = 0
    let queuedBytes = 0
    let dropped = this.#dropped
    for (const connection of this.#registry.all()) {
      const stats = connection.stats()
      if (stats.lagging) lagging++
      queuedBytes += stats.queuedBytes
      dropped += stats.droppedEvents
    }
    const { size: connections, users, subscriptions } = this.#registry
    const { messages, deliveries: delivered } = this.#counters
    return { connections, users, subscriptions, messages, delivered, dropped, lagging, queuedBytes, closed: { ...this.#closed } }
  }
}
