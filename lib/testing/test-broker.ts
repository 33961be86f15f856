import { BrokerUnavailable, Closed, InvalidOption } from '../errors.js'
import type { EventPriority } from '../events/event-rules.js'
import type { Message, OutgoingMessage } from '../events/message.js'
import type { Broker, GapReason, History, Page, Published, ReadRequest, Sink } from '../log/broker.js'
import { systemClock } from '../util/clock.js'
import { inTime } from '../util/timeout.js'

/** How long a read waits for a node that lags behind its client's cursor. */
const PATIENCE_MS = 5_000

/** A message on its way to one node. */
export interface Delivery {
  readonly message: Message
  /** Of the publish on this node that the message comes from. */
  readonly resolve?: (published: Published) => void
}

/** What the brokers of one `TestLog` share. */
export interface SharedLog {
  readonly epoch: string
  readonly position: number
  /** @param now the clock of the node. */
  join (node: TestBroker, history: History, now: () => number): void
  leave (node: TestBroker): void
  append (message: OutgoingMessage, publisher: TestBroker): Promise<Published>
  /** Whether everything after this position is in the history. */
  reachesBackTo (position: number): boolean
  read (request: { after: number, priority: EventPriority, limit: number }): Page
  claim (key: string, ttlMs: number): boolean
}

/** A node's broker on a `TestLog`. */
export class TestBroker implements Broker {
  readonly shared = true
  /** As the node knows them: a node that lags is behind the log. */
  epoch: string
  position = 0
  readonly #log: SharedLog
  readonly #waiting = new Set<() => void>()
  #queue: Delivery[] = []
  #sink: Sink | null = null
  #delivering = false
  #lags = false
  #outage: Error | null = null
  /** Why the log has lost its continuity during an outage: the node learns of it when it reaches the store again. */
  #lost: GapReason | null = null
  #closed = false

  /** @internal */
  constructor (log: SharedLog) {
    this.#log = log
    this.epoch = log.epoch
  }

  /** Lets the node fall behind: the messages of the log, its own included, wait until `catchUp()`. */
  lag (): void {
    this.#lags = true
  }

  /** Delivers what has waited since `lag()`. */
  catchUp (): void {
    this.#lags = false
    this.deliver()
  }

  /**
   * This node cannot reach the store from now on: publishing, reading and claiming are rejected with SSE_ERR_BROKER_UNAVAILABLE, and
   * nothing is delivered.
   */
  fail (): void {
    if (this.#outage !== null) return
    this.#outage = new BrokerUnavailable('cannot be reached: the test has called fail()')
    this.#sink?.state('down', this.#outage)
  }

  /** The node reaches the store again. What it has missed is delivered, or reported as a gap (`trimmed`; `epoch` after a `wipe()`). */
  restore (): void {
    if (this.#outage === null) return
    this.#outage = null
    // Before `up`, after which the node publishes, and so delivers what has waited.
    if (this.#lost !== null) this.lose(this.#lost)
    else if (!this.#log.reachesBackTo(this.position)) this.#skip()
    this.#sink?.state('up')
    this.deliver()
  }

  /** What this node has not delivered has left the history. */
  #skip (): void {
    const lostCommands = this.#queue.some(({ message: { channel, ephemeral } }) => channel === 'node' && !ephemeral)
    this.#forget()
    this.position = this.#log.position
    this.#sink?.gap('trimmed', undefined, !lostCommands)
  }

  async open (sink: Sink, history: History, now = systemClock.wall): Promise<void> {
    if (this.#sink !== null || this.#closed) throw new InvalidOption('broker', 'is open already: each manager needs one of its own, made by broker()')
    this.#assertReachable()
    this.#sink = sink
    this.epoch = this.#log.epoch
    this.#log.join(this, history, now)
    this.position = this.#log.position
    sink.state('up')
  }

  async publish (message: OutgoingMessage): Promise<Published> {
    this.#assertReachable()
    return await this.#log.append(message, this)
  }

  async read (request: ReadRequest): Promise<Page> {
    this.#assertReachable()
    if (request.epoch !== this.#log.epoch) return { messages: [], next: this.position, gap: 'epoch' }
    // The log has reached the cursor, and this node has not: no gap.
    if (request.after > this.position && request.after <= this.#log.position) await inTime(this.#reaches(request.after), PATIENCE_MS)
    this.#assertReachable()
    const page = this.#log.read(request)
    // What the node has not delivered yet is delivered later.
    return page.next <= this.position ? page : { ...page, messages: page.messages.filter(({ seq }) => seq <= this.position), next: this.position }
  }

  #reaches (position: number): Promise<void> {
    return new Promise(resolve => {
      const look = () => {
        if (this.position < position && !this.#closed) return
        this.#waiting.delete(look)
        resolve()
      }
      this.#waiting.add(look)
    })
  }

  async claim (key: string, ttlMs: number): Promise<boolean> {
    this.#assertReachable()
    return this.#log.claim(key, ttlMs)
  }

  async close (): Promise<void> {
    this.#closed = true
    this.#sink = null
    this.#log.leave(this)
    this.#forget()
  }

  #assertReachable (): void {
    if (this.#closed) throw new Closed()
    if (this.#outage !== null) throw this.#outage
  }

  /** @internal */
  enqueue (delivery: Delivery): void {
    this.#queue.push(delivery)
  }

  /** Delivers what is queued; what is published meanwhile comes after it. @internal */
  deliver (): void {
    if (this.#delivering || this.#lags || this.#outage !== null) return
    this.#delivering = true
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
      const { message, resolve } = next
      if (message.seq > 0) this.position = message.seq
      const delivered = this.#sink?.deliver(message) ?? 0
      resolve?.({ seq: message.ephemeral ? null : message.seq, delivered })
    }
    this.#delivering = false
    for (const look of this.#waiting) look()
  }

  /** The log has lost its continuity. @internal */
  lose (reason: GapReason): void {
    this.#forget()
    this.#lost = this.#outage === null ? null : reason
    if (this.#lost !== null) return
    this.epoch = this.#log.epoch
    this.position = this.#log.position
    this.#sink?.gap(reason)
  }

  /** What waits is not delivered any more. */
  #forget (): void {
    for (const { message, resolve } of this.#queue.splice(0)) resolve?.({ seq: message.ephemeral ? null : message.seq, delivered: 0 })
    for (const look of this.#waiting) look()
  }
}
