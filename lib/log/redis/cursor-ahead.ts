import { setTimeout as sleep } from 'node:timers/promises'
import type { GapReason } from '../broker.js'
import { BrokerUnavailable } from '../../errors.js'

/** Where a reader of the log stands, or the log itself. */
export interface Standing {
  readonly epoch: string
  /** Sequence number of the newest entry. */
  readonly position: number
}

interface Waiter {
  /** The entry of the present epoch that this node has to read first; Infinity waits for another epoch. */
  readonly seq: number
  /** By `performance.now()`. */
  readonly deadline: number
  resolve (): void
  reject (error: Error): void
}

/** Redis is asked at most this often, whatever cursors clients make up. */
const ASK_INTERVAL_MS = 50
/** A node notices a wiped log, or a connection that is dead, within less. Then the caller asks Redis again. */
const PATIENCE_MS = 5_000

/**
 * How far this node is behind the log in Redis. A client that comes from another node can have a cursor that is ahead of this
 * node. Redis knows whether the log has reached it: if so, the client waits for this node; if not, the cursor is of no log of ours.
 */
export class CursorAhead {
  readonly #node: () => Standing
  readonly #askRedis: () => Promise<Standing>
  /** Oldest first. */
  readonly #waiting = new Set<Waiter>()
  #asking: Promise<Standing> | null = null
  /** When Redis was asked last, by `performance.now()`. */
  #askedAt = -Infinity
  readonly #stop = new AbortController()
  /** What somebody waits for first, or less. */
  #least = Infinity
  #moves = 0
  #timer: NodeJS.Timeout | null = null

  /** @param askRedis where the log stands; rejects when Redis cannot be asked. */
  constructor (node: () => Standing, askRedis: () => Promise<Standing>) {
    this.#node = node
    this.#askRedis = askRedis
  }

  /** Whether this node has read the log up to there. */
  has (epoch: string, seq: number): boolean {
    const node = this.#node()
    return node.epoch === epoch && node.position >= seq
  }

  /**
   * Why a place that this node has not reached is not in the log. Resolves with null when there is reason to look again: this node has
   * reached it, or follows another log. Rejects with SSE_ERR_BROKER_UNAVAILABLE when neither happens in time.
   */
  async gapBefore (epoch: string, seq: number): Promise<GapReason | null> {
    const moves = this.#moves
    const log = await this.#ask()
    if (moves !== this.#moves || this.has(epoch, seq)) return null
    const node = this.#node()
    const exists = log.epoch === epoch && log.position >= seq
    // A node that has not noticed yet that the log was wiped is late as well: after its gap it would tell another.
    if (!exists && log.epoch === node.epoch) return epoch === node.epoch ? 'unknown' : 'epoch'
    await this.#wait(exists && epoch === node.epoch ? seq : Infinity)
    return null
  }

  /** This node has read the log up to there. */
  arrived (position: number): void {
    if (position < this.#least) return
    this.#wake(waiter => waiter.seq <= position)
    this.#least = Infinity
    for (const { seq } of this.#waiting) this.#least = Math.min(this.#least, seq)
  }

  /** This node follows the log from another place on. */
  moved (): void {
    this.#moves++
    this.#wake(() => true)
  }

  close (error: Error): void {
    for (const waiter of this.#waiting) waiter.reject(error)
    this.#waiting.clear()
    this.#stop.abort(error)
    if (this.#timer !== null) clearTimeout(this.#timer)
  }

  /** One question for all who ask until it is sent: an answer to an older one would know less than the client. */
  #ask (): Promise<Standing> {
    return (this.#asking ??= this.#askSoon())
  }

  async #askSoon (): Promise<Standing> {
    const { signal } = this.#stop
    const waitMs = this.#askedAt + ASK_INTERVAL_MS - performance.now()
    // Otherwise only others that ask in this turn are waited for.
    await (waitMs > 0 ? sleep(waitMs, undefined, { ref: false, signal }).catch(() => { throw signal.reason }) : Promise.resolve())
    this.#asking = null
    this.#askedAt = performance.now()
    return await this.#askRedis()
  }

  #wait (seq: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#least = Math.min(this.#least, seq)
      this.#waiting.add({ seq, deadline: performance.now() + PATIENCE_MS, resolve, reject })
      this.#timer ??= setTimeout(() => this.#expire(), PATIENCE_MS)
    })
  }

  #wake (isDue: (waiter: Waiter) => boolean): void {
    for (const waiter of this.#waiting) {
      if (!isDue(waiter)) continue
      this.#waiting.delete(waiter)
      waiter.resolve()
    }
  }

  #expire (): void {
    const now = performance.now()
    this.#timer = null
    for (const waiter of this.#waiting) {
      if (waiter.deadline > now) {
        this.#timer = setTimeout(() => this.#expire(), waiter.deadline - now + 1)
        return
      }
      this.#waiting.delete(waiter)
      waiter.reject(new BrokerUnavailable(`has more than has come to this node within ${PATIENCE_MS} ms`))
    }
  }
}
