import { EventPriority } from '../events/event-rules.js'
import type { Message, OutgoingMessage } from '../events/message.js'
import type { History, Page, Published } from '../log/broker.js'
import type { Interest } from '../log/log-index.js'
import { Ring } from '../log/ring.js'
import { systemClock } from '../util/clock.js'
import { createId } from '../util/id.js'
import { TestBroker } from './test-broker.js'

// The class has the members of SharedLog. It has no `implements`: the published types omit internal members, and would not compile.
/**
 * A log in memory that several nodes of this process share. It remains when a node is closed. Use it for tests with two nodes or with a
 * restart, without Redis.
 */
export class TestLog {
  /** @internal */ epoch = newEpoch()
  readonly #nodes = new Set<TestBroker>()
  readonly #claims = new Map<string, number>()
  #history: History | null = null
  #ring: Ring | null = null
  /** Returns the time of the first node. */
  #now = systemClock.wall

  /** Creates a broker on this log for one node, for the option `broker` of the plugin. */
  broker (): TestBroker {
    return new TestBroker(this)
  }

  /** Sequence number of the newest logged event; 0 for an empty log. */
  get position (): number {
    return this.#ring?.last ?? 0
  }

  /** Removes all events from the history: every earlier cursor has a gap (`trimmed`). Connected clients receive nothing. */
  trim (): void {
    if (this.#history !== null) this.#ring = new Ring(this.#history, this.#now, this.position)
  }

  /**
   * Removes everything and starts a new epoch, as a wiped store does. Connected and reconnecting clients receive a gap (`epoch`). Clients
   * of a node that has failed receive it after `restore()`.
   */
  wipe (): void {
    this.epoch = newEpoch()
    this.#claims.clear()
    if (this.#history !== null) this.#ring = new Ring(this.#history, this.#now)
    for (const node of this.#nodes) node.lose('epoch')
  }

  /** Disconnects all nodes from the log, see `TestBroker.fail()`. */
  fail (): void {
    for (const node of this.#nodes) node.fail()
  }

  /** Reconnects all nodes to the log, see `TestBroker.restore()`. */
  restore (): void {
    for (const node of this.#nodes) node.restore()
  }

  /** Adds a node. @internal */
  join (node: TestBroker, history: History, now: () => number): void {
    if (this.#history === null) this.#now = now
    this.#history ??= history
    this.#ring ??= new Ring(history, this.#now)
    this.#nodes.add(node)
  }

  /** Removes a node. @internal */
  leave (node: TestBroker): void {
    this.#nodes.delete(node)
  }

  /** Appends a message, and delivers it on each node. @internal */
  append (outgoing: OutgoingMessage, publisher: TestBroker): Promise<Published> {
    const message: Message = { ...outgoing, seq: outgoing.ephemeral ? 0 : this.position + 1 }
    if (!message.ephemeral) this.#ring!.append(message)
    return new Promise(resolve => {
      // Queued on all nodes before the first delivery: a message published during a delivery follows this one on each node.
      for (const node of this.#nodes) node.enqueue(node === publisher ? { message, resolve } : { message })
      for (const node of this.#nodes) node.deliver()
    })
  }

  /** Returns whether all messages after this position are in the history. @internal */
  reachesBackTo (position: number): boolean {
    return this.#ring?.read({ after: position, priority: EventPriority.NORMAL, limit: 1 }).gap === undefined
  }

  /** @internal */
  read (request: { after: number, priority: EventPriority, limit: number }): Page {
    return this.#ring!.read(request)
  }

  /** @internal */
  hasNothing (after: number, interest: Interest): boolean {
    return this.#ring!.hasNothing(after, interest)
  }

  /** @internal */
  claim (key: string, ttlMs: number): boolean {
    const now = this.#now()
    if ((this.#claims.get(key) ?? 0) > now) return false
    this.#claims.set(key, now + ttlMs)
    return true
  }
}

/**
 * Creates a log in memory that several nodes share, see `TestLog`.
 * @example
 * ```ts
 * const log = testLog()
 * await one.register(ssePlugin, { broker: log.broker() })
 * await other.register(ssePlugin, { broker: log.broker() })
 * ```
 */
export function testLog (): TestLog {
  return new TestLog()
}

function newEpoch (): string {
  return createId().slice(0, 8)
}
