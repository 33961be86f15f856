import { BrokerUnavailable, Closed, InvalidOption } from '../errors.js'
import type { EventPriority } from '../events/event-rules.js'
import type { Message, OutgoingMessage } from '../events/message.js'
import type { Broker, GapReason, History, Page, Published, PublishingLog, ReadRequest, Sink } from '../log/broker.js'
import type { Interest } from '../log/log-index.js'
import { systemClock } from '../util/clock.js'
import { inTime } from '../util/timeout.js'

/** Time that a read waits for a node that lags behind the client's cursor, in milliseconds. */
const PATIENCE_MS = 5_000

/** A message that is queued for one node. */
export interface Delivery {
  readonly message: Message
  /** Resolves the publish of the message; absent on nodes that have not published it. */
  readonly resolve?: (published: Published) => void
}

/** The log that the brokers of one `TestLog` share. */
export interface SharedLog {
  /** See `Broker.epoch`. */
  readonly epoch: string
  /** Sequence number of the newest logged message; 0 for an empty log. */
  readonly position: number
  /** Adds a node to the log. @param now returns the time of the node */
  join (node: TestBroker, history: History, now: () => number): void
  /** Removes a node from the log. */
  leave (node: TestBroker): void
  /** Appends a message, and delivers it on each node. */
  append (message: OutgoingMessage, publisher: TestBroker): Promise<Published>
  /** Returns whether all messages after this position are in the history. */
  reachesBackTo (position: number): boolean
  /** See `Broker.read`. */
  read (request: { after: number, priority: EventPriority, limit: number }): Page
  /** See `Broker.hasNothing`. */
  hasNothing (after: number, interest: Interest): boolean
  /** See `Broker.claim`. */
  claim (key: string, ttlMs: number): boolean
}

/** The broker of one node on a `TestLog`. Tests use it to make the node lag, or to disconnect it from the log. */
export class TestBroker implements Broker {
  /** See `Broker.shared`. */
  readonly shared = true
  /** See `Broker.epoch`. */
  epoch: string
  /** See `Broker.position`. While the node lags, it is behind `TestLog.position`. */
  position = 0
  readonly #log: SharedLog
  readonly #waiting = new Set<() => void>()
  #queue: Delivery[] = []
  #sink: Sink | null = null
  #delivering = false
  #lags = false
  #outage: Error | null = null
  /** Reason of a gap during an outage; null for none. `restore()` reports it to the node. */
  #lost: GapReason | null = null
  #closed = false

  /** @internal */
  constructor (log: SharedLog) {
    this.#log = log
    this.epoch = log.epoch
  }

  /** Makes the node lag: all messages of the log, the node's own included, wait until `catchUp()`. */
  lag (): void {
    this.#lags = true
  }

  /** Ends `lag()`, and delivers the messages that have waited. */
  catchUp (): void {
    this.#lags = false
    this.deliver()
  }

  /**
   * Disconnects this node from the log until `restore()`. Publish, read and claim reject with SSE_ERR_BROKER_UNAVAILABLE, and nothing is
   * delivered.
   */
  fail (): void {
    if (this.#outage !== null) return
    this.#outage = new BrokerUnavailable('cannot be reached: the test has called fail()')
    this.#sink?.state('down', this.#outage)
  }

  /** Ends `fail()`. Missed messages are delivered, or reported as a gap: `trimmed`, or `epoch` after a `wipe()`. */
  restore (): void {
    if (this.#outage === null) return
    this.#outage = null
    // Before `up`: the node publishes after `up`, which delivers queued messages.
    if (this.#lost !== null) this.lose(this.#lost)
    else if (!this.#log.reachesBackTo(this.position)) this.#skip()
    this.#sink?.state('up')
    this.deliver()
  }

  /** Reports a gap: messages that this node has not delivered are no longer in the history. */
  #skip (): void {
    const lostCommands = this.#queue.some(({ message: { channel, ephemeral } }) => channel === 'node' && !ephemeral)
    this.position = this.#log.position
    this.#forget()
    this.#sink?.gap('trimmed', undefined, !lostCommands)
  }

  /** See `Broker.open`. @throws SSE_ERR_INVALID_OPTION when the broker is or was open, SSE_ERR_BROKER_UNAVAILABLE */
  async open (sink: Sink, history: History, now = systemClock.wall): Promise<void> {
    if (this.#sink !== null || this.#closed) throw new InvalidOption('broker', 'is open already: each manager needs one of its own, made by broker()')
    this.#assertReachable()
    this.#sink = sink
    this.epoch = this.#log.epoch
    this.#log.join(this, history, now)
    this.position = this.#log.position
    sink.state('up')
  }

  /** See `Broker.openForPublishing`. @throws SSE_ERR_INVALID_OPTION when the broker is or was open, SSE_ERR_BROKER_UNAVAILABLE */
  async openForPublishing (sink: Pick<Sink, 'state'>, history: History, now?: () => number): Promise<PublishingLog> {
    await this.open({ deliver: () => 0, gap: () => {}, state: (state, error) => sink.state(state, error) }, history, now)
    return {
      position: async () => {
        this.#assertReachable()
        return { epoch: this.#log.epoch, position: this.#log.position }
      }
    }
  }

  /** See `Broker.publish`. @throws SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED */
  async publish (message: OutgoingMessage): Promise<Published> {
    this.#assertReachable()
    return await this.#log.append(message, this)
  }

  /** See `Broker.read`. @throws SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED */
  async read (request: ReadRequest): Promise<Page> {
    this.#assertReachable()
    // A cursor that the log has reached and this node has not is no gap.
    if (request.epoch === this.#log.epoch && request.after > this.position && request.after <= this.#log.position) {
      await inTime(this.#reaches(request), PATIENCE_MS)
      this.#assertReachable()
    }
    if (request.epoch !== this.#log.epoch) return { messages: [], next: this.position, gap: 'epoch' }
    const page = this.#log.read(request)
    // Messages that this node has not delivered yet are omitted: the node delivers them later.
    return page.next <= this.position ? page : { ...page, messages: page.messages.filter(({ seq }) => seq <= this.position), next: this.position }
  }

  /** See `Broker.hasNothing`. False during `fail()` and after `close()`: the log is then read, which rejects. */
  hasNothing (after: number, interest: Interest): boolean {
    return this.#outage === null && !this.#closed && this.#log.hasNothing(after, interest)
  }

  /** Resolves when this node has reached the cursor, or never will. */
  #reaches ({ epoch, after }: ReadRequest): Promise<void> {
    return new Promise(resolve => {
      const look = () => {
        if (this.position < after && epoch === this.#log.epoch && !this.#closed) return
        this.#waiting.delete(look)
        resolve()
      }
      this.#waiting.add(look)
    })
  }

  /** See `Broker.claim`. @throws SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED */
  async claim (key: string, ttlMs: number): Promise<boolean> {
    this.#assertReachable()
    return this.#log.claim(key, ttlMs)
  }

  /** See `Broker.close`. */
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

  /** Queues a message for this node. @internal */
  enqueue (delivery: Delivery): void {
    this.#queue.push(delivery)
  }

  /** Delivers the queued messages. Messages published meanwhile follow them. @internal */
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

  /** Reports a gap: the log has lost its continuity. @internal */
  lose (reason: GapReason): void {
    this.#forget()
    this.#lost = this.#outage === null ? null : reason
    if (this.#lost !== null) return
    this.epoch = this.#log.epoch
    this.position = this.#log.position
    this.#sink?.gap(reason)
  }

  /** Drops the queued messages, and resolves their publishes. */
  #forget (): void {
    for (const { message, resolve } of this.#queue.splice(0)) resolve?.({ seq: message.ephemeral ? null : message.seq, delivered: 0 })
    for (const look of this.#waiting) look()
  }
}
