import { isCloseReason } from './close-reason.js'
import type { Member, Registry } from '../subscriptions/registry.js'

export interface ConnectionStats {
  /** Events written to this client, replayed ones included. */
  readonly sentEvents: number
  /** Ephemeral events dropped because the client was too slow. */
  readonly droppedEvents: number
  /** Bytes that wait: held here, targets, keys and 400 for each waiting event included, or in Node's own queue; the kernel's buffers are not counted. */
  readonly queuedBytes: number
  /** Whether the client reads older events from the log, or waits for this node, which has yet to reach the client's cursor. */
  readonly lagging: boolean
}

export interface ManagerStats {
  /** Open streams of this node, those with a source of their own included. */
  readonly connections: number
  readonly users: number
  /** Distinct topics and patterns held. */
  readonly subscriptions: number
  /** Messages delivered to this node so far. */
  readonly messages: number
  /** Deliveries: one for each message and connection. */
  readonly delivered: number
  /** Ephemeral events dropped for slow clients. */
  readonly dropped: number
  /** Connections that read older events from the log, or wait for this node, which has yet to reach their clients' cursors. */
  readonly lagging: number
  /** Bytes that wait for slow clients, the kernel's own buffers not counted. */
  readonly queuedBytes: number
  /** Streams ended so far, by reason; beyond 64 reasons the application's own count as `other`. */
  readonly closed: Readonly<Record<string, number>>
}

const MAX_COUNTED_REASONS = 64

/** A connection whose numbers are summed. */
export interface Counted extends Member {
  stats (): ConnectionStats
}

/** What the dispatcher has counted. */
interface Counters {
  readonly messages: number
  readonly deliveries: number
}

/** What this node has seen, and what its connections say of themselves. @internal */
export class Statistics {
  readonly #registry: Registry<Counted>
  readonly #counters: Counters
  readonly #closed: Record<string, number> = Object.create(null)
  /** By those that have ended. */
  #dropped = 0

  constructor (registry: Registry<Counted>, counters: Counters) {
    this.#registry = registry
    this.#counters = counters
  }

  ended (connection: Counted, reason: string): void {
    this.#dropped += connection.stats().droppedEvents
    const known = isCloseReason(reason) || reason in this.#closed || Object.keys(this.#closed).length < MAX_COUNTED_REASONS
    const counted = known ? reason : 'other'
    this.#closed[counted] = (this.#closed[counted] ?? 0) + 1
  }

  /** As of now. Costs a look at each connection. */
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
