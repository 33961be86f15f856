import type { History, Published } from '../broker.js'
import { type OutgoingMessage, bytesOf } from '../../events/message.js'
import { BrokerUnavailable, Closed } from '../../errors.js'
import { isErrorReply, type Connection } from './client.js'
import type { Report } from './reconnector.js'
import type { Batch, Outgoing, RedisStore } from './store.js'

/** A publish that has not been answered yet. */
interface Pending extends Outgoing {
  readonly bytes: number
  /** By `performance.now()`. */
  readonly deadline: number
  /** Whether Redis may have it. */
  sent: boolean
  /** Where Redis has logged it; not yet seen by this node's reader. */
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
  /** Whether a publish waits for a lost connection to come back, instead of failing at once. */
  waitWhenDown: boolean
}

const BATCH_MESSAGES = 128
const BATCH_BYTES = 1024 * 1024
/** What a pending publish costs beside its message. */
const OVERHEAD_BYTES = 512

/**
 * Publishes through one connection: one batch under way at a time, and what comes meanwhile is the next one. A batch whose
 * reply was lost is sent again as it was, by its number, which Redis appends once. Each publish is answered when this node
 * has seen it in the log, and after `publishTimeoutMs` at the latest.
 */
export class Appender {
  readonly #log: RedisStore
  readonly #history: History
  readonly #options: Options
  /** In the order they were published, and so of their deadlines. */
  readonly #pending = new Map<string, Pending>()
  #queue: Pending[] = []
  /** The one that is under way. */
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

  constructor (log: RedisStore, history: History, options: Options) {
    this.#log = log
    this.#history = history
    this.#options = options
  }

  /** See `Serve`. */
  async serve (connection: Connection, report: Report): Promise<never> {
    await this.#log.greet(connection, { asked: 0, writable: true })
    return await new Promise<never>((_resolve, reject) => {
      this.#connection = connection
      this.#fail = reject
      report(null)
      this.#send()
    })
  }

  /** The connection is lost: what is pending waits for the next one. */
  lost (cause: Error): void {
    this.#connection = null
    this.#downBecause = cause
    if (this.#options.waitWhenDown) return
    // What Redis cannot have may as well fail now.
    for (const pending of this.#queue.splice(0)) this.#reject(pending, nothing(cause), cause)
  }

  publish (message: OutgoingMessage): Promise<Published> {
    const bytes = OVERHEAD_BYTES + bytesOf(message)
    if (this.#connection === null && !this.#options.waitWhenDown) throw new BrokerUnavailable(nothing(this.#downBecause), { cause: this.#downBecause })
    if (this.#pending.size > 0 && this.#bytes + bytes > this.#options.maxPendingBytes) throw new BrokerUnavailable('is too slow: too much waits for it already; nothing was published')
    return new Promise((resolve, reject) => {
      const pending: Pending = { message, nonce: `${this.#log.writerId}-${(++this.#published).toString(36)}`, bytes, deadline: performance.now() + this.#options.publishTimeoutMs, sent: false, logged: null, resolve, reject }
      this.#pending.set(pending.nonce, pending)
      this.#bytes += bytes
      this.#queue.push(pending)
      this.#timer ??= this.#expireIn(this.#options.publishTimeoutMs)
      this.#send()
    })
  }

  /** This node has seen a message in the log. */
  seen (nonce: string, seq: number | null, delivered: number): void {
    const pending = this.#pending.get(nonce)
    if (pending !== undefined) this.#settle(pending).resolve({ seq, delivered })
  }

  /** This node goes on behind `position`, and will not see what has been logged before it. */
  skipped (epoch: number, position: number): void {
    this.#skipped = { epoch, position }
    for (const pending of this.#pending.values()) this.#checkSkipped(pending)
  }

  /** Waits for what can still be answered, and refuses the rest. */
  async close (): Promise<void> {
    if (this.#connection !== null && this.#pending.size > 0) await new Promise<void>(resolve => { this.#onIdle = resolve })
    for (const pending of this.#pending.values()) this.#settle(pending).reject(new Closed())
    if (this.#timer !== null) clearTimeout(this.#timer)
  }

  async #send (): Promise<void> {
    if (this.#sending) return
    this.#sending = true
    // What is published in the same turn goes together.
    await Promise.resolve()
    for (;;) {
      const connection = this.#connection
      if (connection === null || (this.#batch ??= this.#nextBatch()) === null) break
      const { items } = this.#batch
      for (const item of items) item.sent = true
      try {
        const place = await this.#log.append(connection, this.#batch, this.#history)
        this.#batch = null
        if (place === null) this.#again(items)
        else this.#logged(items, place)
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
      // It was told already that it failed.
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
    for (const item of items) {
      item.logged = { epoch, seq: item.message.ephemeral ? null : next++ }
      this.#checkSkipped(item)
    }
  }

  /** Redis has answered with an error, and so has appended nothing. */
  #refused (items: readonly Pending[], cause: Error): void {
    this.#batch = null
    for (const item of items) {
      item.sent = false
      this.#reject(item, nothing(cause), cause)
    }
  }

  /** Redis has refused a batch that came too late for its first message: the others may still have time. */
  #again (items: readonly Pending[]): void {
    for (const item of items) item.sent = false
    this.#queue.unshift(...items)
  }

  /** After a time in which the event loop stood still, timers come before the answers that have arrived meanwhile: those are read first. */
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
      // It is in the log that this node follows, whose reader is late.
      if (pending.logged?.epoch === this.#skipped.epoch) this.#settle(pending).resolve({ seq: pending.logged.seq, delivered: 0 })
      else this.#reject(pending, pending.sent ? UNKNOWN : nothing(this.#downBecause), this.#connection === null ? this.#downBecause : undefined)
    }
    // Nobody waits for them any more, and Redis may not take the next batch for long.
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

/** The first word of Redis's answer says what is wrong there; the rest is in the cause. */
function nothing (cause: Error): string {
  return `${isErrorReply(cause) ? `cannot be written, Redis answers ${cause.message.split(' ', 1)[0]}` : 'cannot be reached'}; nothing was published`
}

const UNKNOWN = 'did not answer in time; whether the event was published is not known'
