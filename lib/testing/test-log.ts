import { EventPriority } from '../events/event-rules.js'
import type { Message, OutgoingMessage } from '../events/message.js'
import type { History, Page, Published } from '../log/broker.js'
import { Ring } from '../log/ring.js'
import { systemClock } from '../util/clock.js'
import { createId } from '../util/id.js'
import { TestBroker } from './test-broker.js'

// A SharedLog. `implements` would say so in the published types too, which leave out what is internal.
/**
 * A log in memory that several nodes of this process share, and that outlives each of them: a two-node test, or a restart that keeps
 * the log, without Redis.
 */
export class TestLog {
  /** @internal */ epoch = newEpoch()
  readonly #nodes = new Set<TestBroker>()
  readonly #claims = new Map<string, number>()
  #history: History | null = null
  #ring: Ring | null = null
  /** The time of the first node. */
  #now = systemClock.wall

  /** A broker on this log for one node: option `broker` of the plugin. */
  broker (): TestBroker {
    return new TestBroker(this)
  }

  /** Position of the newest logged event. */
  get position (): number {
    return this.#ring?.last ?? 0
  }

  /** Forgets the history: each cursor from before has a gap (`trimmed`). Connected clients notice nothing. */
  trim (): void {
    if (this.#history !== null) this.#ring = new Ring(this.#history, this.#now, this.position)
  }

  /** Loses everything, as a wiped store does. All connected and returning clients receive a gap (`epoch`); those of a node that has failed, after its `restore()`. */
  wipe (): void {
    this.epoch = newEpoch()
    this.#claims.clear()
    if (this.#history !== null) this.#ring = new Ring(this.#history, this.#now)
    for (const node of this.#nodes) node.lose('epoch')
  }

  /** Calls `fail()` of all nodes: the store cannot be reached from now on. */
  fail (): void {
    for (const node of this.#nodes) node.fail()
  }

  /** The store can be reached again. */
  restore (): void {
    for (const node of this.#nodes) node.restore()
  }

  /** @internal */
  join (node: TestBroker, history: History, now: () => number): void {
    if (this.#history === null) this.#now = now
    this.#history ??= history
    this.#ring ??= new Ring(history, this.#now)
    this.#nodes.add(node)
  }

  /** @internal */
  leave (node: TestBroker): void {
    this.#nodes.delete(node)
  }

  /** Appends the message, and delivers it on each node. @internal */
  append (outgoing: OutgoingMessage, publisher: TestBroker): Promise<Published> {
    const message: Message = { ...outgoing, seq: outgoing.ephemeral ? 0 : this.position + 1 }
    if (!message.ephemeral) this.#ring!.append(message)
    return new Promise(resolve => {
      // To all first: a publish from inside a delivery follows this one on each node.
      for (const node of this.#nodes) node.enqueue(node === publisher ? { message, resolve } : { message })
      for (const node of this.#nodes) node.deliver()
    })
  }

  /** Whether everything after this position is in the history. @internal */
  reachesBackTo (position: number): boolean {
    return this.#ring!.read({ after: position, priority: EventPriority.NORMAL, limit: 1 }).gap === undefined
  }

  /** @internal */
  read (request: { after: number, priority: EventPriority, limit: number }): Page {
    return this.#ring!.read(request)
  }

  /** @internal */
  claim (key: string, ttlMs: number): boolean {
    const now = this.#now()
    if ((this.#claims.get(key) ?? 0) > now) return false
    this.#claims.set(key, now + ttlMs)
    return true
  }
}

/** A log in memory that nodes share: see `TestLog`. */
export function testLog (): TestLog {
  return new TestLog()
}

function newEpoch (): string {
  return createId().slice(0, 8)
}
