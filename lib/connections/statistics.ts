import { isCloseReason } from './close-reason.js'
import type { SSEConnection } from './connection.js'
import type { Publisher } from '../delivery/publisher.js'
import type { Registry } from '../subscriptions/registry.js'

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

/** What this node has seen, and what its connections say of themselves. @internal */
export class Statistics {
  readonly #registry: Registry<SSEConnection>
  readonly #publisher: Publisher
  readonly #closed: Record<string, number> = Object.create(null)
  /** By those that have ended. */
  #dropped = 0

  constructor (registry: Registry<SSEConnection>, publisher: Publisher) {
    this.#registry = registry
    this.#publisher = publisher
  }

  ended (connection: SSEConnection, reason: string): void {
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
    const { messages, deliveries: delivered } = this.#publisher
    return { connections, users, subscriptions, messages, delivered, dropped, lagging, queuedBytes, closed: { ...this.#closed } }
  }
}
