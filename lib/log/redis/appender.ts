import type { History, Published } from '../broker.js'
import { type OutgoingMessage, bytesOf } from '../../events/message.js'
import { BrokerUnavailable, Closed } from '../../errors.js'
import { isErrorReply, type Connection } from './client.js'
import type { Report } from './reconnector.js'
import type { Batch, Outgoing, RedisStore } from './store.js'

/** A publish without an answer yet. */
interface Pending extends Outgoing {
  readonly bytes: number
  /** Time of `performance.now()` at which the publish times out. */
  readonly deadline: number
  /** Whether Redis may have received it. */
  sent: boolean
  /** Position in the log once Redis has logged it; null before. This node's reader has not read it yet. */
  logged: { epoch: number, seq: number | null } | null
  resolve (published: Published): void
  reject (error: Error): void
}

interface PendingBatch extends Batch {
  readonly items: readonly Pending[]
}

interface Options {
  publishTimeoutMs: number
  maxPendingBytes: number
  /** Whether a publish waits for a new connection after a loss, instead of failing at once. */
  waitWhenDown: boolean
}

const BATCH_MESSAGES = 128
const BATCH_BYTES = 1024 * 1024
/** Memory of a pending publish beside its message. */
const OVERHEAD_BYTES = 512

/**
 * Publishes messages over one connection, in batches. One batch is sent at a time; messages published meanwhile form the next
 * batch. After a lost reply, the same batch is sent again with the same number, and Redis appends it only once. A publish is
 * answered when this node has read the message from the log, or after `publishTimeoutMs`. In a process that does not read the log, it
 * is answered when the message is stored.
 */
export class Appender {
  readonly #log: RedisStore
  readonly #history: History
  readonly #options: Options
  readonly #onStored: ((epoch: number) => void) | null
  /** Publishes by nonce, in the order of their deadlines. */
  readonly #pending = new Map<string, Pending>()
  #queue: Pending[] = []
  /** The batch that is being sent; null for none. */
  #batch: PendingBatch | null = null
  #batches = 0
  #published = 0
  #bytes = 0
  #connection: Connection | null = null
  #fail: ((error: unknown) => void) | null = null
  #sending = false
  #downBecause: Error = new BrokerUnavailable('has not been reached yet')
  #timer: NodeJS.Timeout | null = null
  #onIdle: (() => void) | null = null
  #skipped = { epoch: 0, position: 0 }

  /** @param onStored for a process that does not read the log: called with the epoch before publishes are answered. Null: this node reads it. */
  constructor (log: RedisStore, history: History, options: Options, onStored: ((epoch: number) => void) | null = null) {
    this.#log = log
    this.#history = history
    this.#options = options
    this.#onStored = onStored
  }

  /** Publishes over this connection until it fails; see `Serve`. */
  async serve (connection: Connection, report: Report): Promise<never> {
    const state = await this.#log.greet(connection, { asked: 0, writable: true })
    this.#onStored?.(state.epoch)
    return await new Promise<never>((_resolve, reject) => {
      this.#connection = connection
      this.#fail = reject
      report(null)
      this.#send()
    })
  }

  /** Handles a lost connection: publishes that were sent wait for the next connection, others too with `waitWhenDown`. */
  lost (cause: Error): void {
    this.#connection = null
    this.#downBecause = cause
    if (this.#options.waitWhenDown) return
    // Redis cannot have received these publishes, so they fail at once.
    for (const pending of this.#queue.splice(0)) this.#reject(pending, nothing(cause), cause)
  }

  /**
   * Queues a message for the next batch. Resolves when this node has read it from the log, or when it is stored.
   * @throws SSE_ERR_BROKER_UNAVAILABLE
   */
  publish (message: OutgoingMessage): Promise<Published> {
    const bytes = OVERHEAD_BYTES + bytesOf(message)
    if (this.#connection === null && !this.#options.waitWhenDown) throw new BrokerUnavailable(nothing(this.#downBecause), { cause: this.#downBecause })
    if (this.#pending.size > 0 && this.#bytes + bytes > this.#options.maxPendingBytes) throw new BrokerUnavailable('has reached maxPendingBytes; nothing was published')
    return new Promise((resolve, reject) => {
      const pending: Pending = { message, nonce: `${this.#log.writerId}-${(++this.#published).toString(36)}`, bytes, deadline: performance.now() + this.#options.publishTimeoutMs, sent: false, logged: null, resolve, reject }
      this.#pending.set(pending.nonce, pending)
      this.#bytes += bytes
      this.#queue.push(pending)
      this.#timer ??= this.#expireIn(this.#options.publishTimeoutMs)
      this.#send()
    })
  }

  /** Answers the publish of a message that this node has read from the log, or need not read. */
  seen (nonce: string, seq: number | null, delivered: number): void {
    const pending = this.#pending.get(nonce)
    if (pending !== undefined) this.#settle(pending).resolve({ seq, delivered })
  }

  /** Answers publishes that this node will never read, because it continues after `position`. */
  skipped (epoch: number, position: number): void {
    this.#skipped = { epoch, position }
    for (const pending of this.#pending.values()) this.#checkSkipped(pending)
  }

  /** Waits for the pending publishes if there is a connection, and rejects all others with SSE_ERR_CLOSED. */
  async close (): Promise<void> {
    if (this.#connection !== null && this.#pending.size > 0) await new Promise<void>(resolve => { this.#onIdle = resolve })
    for (const pending of this.#pending.values()) this.#settle(pending).reject(new Closed())
    if (this.#timer !== null) clearTimeout(this.#timer)
  }

  async #send (): Promise<void> {
    if (this.#sending) return
    this.#sending = true
    // Messages that are published in the same turn share a batch.
    await Promise.resolve()
    for (;;) {
      const connection = this.#connection
      if (connection === null || (this.#batch ??= this.#nextBatch()) === null) break
      const { items } = this.#batch
      for (const item of items) item.sent = true
      try {
        const state = await this.#log.append(connection, this.#batch, this.#history)
        this.#batch = null
        if (state === null) this.#again(items)
        else this.#logged(items, state)
      } catch (error) {
        if (isErrorReply(error)) this.#refused(items, error)
        if (this.#connection === connection) {
          this.#connection = null
          this.#fail!(error)
        }
      }
    }
    this.#sending = false
  }

  #checkSkipped (pending: Pending): void {
    const { logged } = pending
    if (logged === null || !this.#pending.has(pending.nonce)) return
    if (logged.epoch < this.#skipped.epoch) this.#reject(pending, 'was lost together with the event')
    else if (logged.epoch === this.#skipped.epoch && logged.seq !== null && logged.seq <= this.#skipped.position) this.#settle(pending).resolve({ seq: logged.seq, delivered: 0 })
  }

  #nextBatch (): PendingBatch | null {
    const items: Pending[] = []
    let bytes = 0
    let taken = 0
    for (; taken < this.#queue.length; taken++) {
      const item = this.#queue[taken]!
      // The publish has timed out and was rejected.
      if (!this.#pending.has(item.nonce)) continue
      if (items.length > 0 && (items.length === BATCH_MESSAGES || bytes + item.bytes > BATCH_BYTES)) break
      items.push(item)
      bytes += item.bytes
    }
    this.#queue.splice(0, taken)
    if (items.length === 0) return null
    return { number: ++this.#batches, remainingMs: () => items[0]!.deadline - performance.now(), items }
  }

  #logged (items: readonly Pending[], { epoch, first }: { epoch: number, first: number }): void {
    let next = first
    this.#onStored?.(epoch)
    for (const item of items) {
      item.logged = { epoch, seq: item.message.ephemeral ? null : next++ }
      if (this.#onStored === null) this.#checkSkipped(item)
      else this.seen(item.nonce, item.logged.seq, 0)
    }
  }

  /** Rejects a batch that Redis answered with an error: nothing was appended. */
  #refused (items: readonly Pending[], cause: Error): void {
    this.#batch = null
    for (const item of items) this.#reject(item, nothing(cause), cause)
  }

  /** Queues a batch again that arrived after the deadline of its first message: the other messages may still be in time. */
  #again (items: readonly Pending[]): void {
    for (const item of items) item.sent = false
    this.#queue.unshift(...items)
  }

  /** After a blocked event loop, timers fire before arrived replies are read. The extra turn lets the replies be read first. */
  #expireIn (ms: number): NodeJS.Timeout {
    return setTimeout(() => setImmediate(() => this.#expire()), ms)
  }

  #expire (): void {
    const now = performance.now()
    this.#timer = null
    for (const pending of this.#pending.values()) {
      if (pending.deadline > now) {
        this.#timer = this.#expireIn(pending.deadline - now + 1)
        break
      }
      // The message is in the log that this node follows, but its reader is late.
      if (pending.logged?.epoch === this.#skipped.epoch) this.#settle(pending).resolve({ seq: pending.logged.seq, delivered: 0 })
      else this.#reject(pending, pending.sent ? UNKNOWN : nothing(this.#downBecause), this.#connection === null ? this.#downBecause : undefined)
    }
    // The publishes at the front have timed out. Redis may accept no batch for a long time, so they are removed now.
    const alive = this.#queue.findIndex(item => this.#pending.has(item.nonce))
    this.#queue.splice(0, alive < 0 ? this.#queue.length : alive)
  }

  #reject (pending: Pending, why: string, cause?: Error): void {
    if (this.#pending.has(pending.nonce)) this.#settle(pending).reject(new BrokerUnavailable(why, { cause }))
  }

  #settle (pending: Pending): Pending {
    this.#pending.delete(pending.nonce)
    this.#bytes -= pending.bytes
    if (this.#pending.size === 0) this.#onIdle?.()
    return pending
  }
}

/** Returns the text of an error without side effects. Of an error reply, only the code is shown; the rest is in the cause. */
function nothing (cause: Error): string {
  return `${isErrorReply(cause) ? `cannot be written, Redis answers ${cause.message.split(' ', 1)[0]}` : 'cannot be reached'}; nothing was published`
}

const UNKNOWN = 'did not answer in time; whether the event was published is not known'
