import { setTimeout as sleep } from 'node:timers/promises'
import type { GapReason, LogPosition } from '../broker.js'
import { BrokerUnavailable } from '../../errors.js'

interface Waiter {
  /** Entry of the current epoch that this node must read; Infinity waits for another epoch. */
  readonly seq: number
  /** Time of `performance.now()` at which the wait ends. */
  readonly deadline: number
  resolve (): void
  reject (error: Error): void
}

/** Minimum time between two requests to Redis. Without it, clients with invented cursors could flood Redis. */
const ASK_INTERVAL_MS = 50
/** Longest wait for this node. It is longer than a node needs to notice a wiped log or a dead connection. */
const PATIENCE_MS = 5_000

/**
 * Handles cursors that are ahead of this node. A client of another node can have such a cursor. Redis knows whether the log has
 * reached it. If so, the read waits for this node; if not, the cursor is not of this log, which is a gap.
 */
export class CursorAhead {
  readonly #node: () => LogPosition
  readonly #askRedis: () => Promise<LogPosition>
  /** Waiting reads, oldest first. */
  readonly #waiting = new Set<Waiter>()
  #asking: Promise<LogPosition> | null = null
  /** Time of `performance.now()` at the last request to Redis. */
  #askedAt = -Infinity
  readonly #stop = new AbortController()
  /** Lower bound of the sequence numbers that are waited for. */
  #least = Infinity
  #moves = 0
  #timer: NodeJS.Timeout | null = null

  /** @param askRedis resolves with the end of the log; rejects if Redis is unreachable */
  constructor (node: () => LogPosition, askRedis: () => Promise<LogPosition>) {
    this.#node = node
    this.#askRedis = askRedis
  }

  /** Returns whether this node has read the log up to `seq`. */
  has (epoch: string, seq: number): boolean {
    const node = this.#node()
    return node.epoch === epoch && node.position >= seq
  }

  /**
   * Resolves with the reason of a gap if the log has not reached a cursor that is ahead of this node. Resolves with null if the caller
   * has to check again: this node has reached the cursor, or follows another log.
   * @throws SSE_ERR_BROKER_UNAVAILABLE if neither happens in time
   */
  async gapBefore (epoch: string, seq: number): Promise<GapReason | null> {
    const moves = this.#moves
    const log = await this.#ask()
    if (moves !== this.#moves || this.has(epoch, seq)) return null
    const node = this.#node()
    const exists = log.epoch === epoch && log.position >= seq
    // If this node has not noticed a wiped log yet, the read waits: its reader will report that gap itself.
    if (!exists && log.epoch === node.epoch) return epoch === node.epoch ? 'unknown' : 'epoch'
    await this.#wait(exists && epoch === node.epoch ? seq : Infinity)
    return null
  }

  /** Resumes the reads that waited for this node to reach `position`. */
  arrived (position: number): void {
    if (position < this.#least) return
    this.#wake(waiter => waiter.seq <= position)
    this.#least = Infinity
    for (const { seq } of this.#waiting) this.#least = Math.min(this.#least, seq)
  }

  /** Resumes all reads: this node continues at another position of the log. */
  moved (): void {
    this.#moves++
    this.#wake(() => true)
  }

  /** Rejects all waiting reads with `error`. */
  close (error: Error): void {
    for (const waiter of this.#waiting) waiter.reject(error)
    this.#stop.abort(error)
    if (this.#timer !== null) clearTimeout(this.#timer)
  }

  /** Shares a request that is not sent yet. The reply to an earlier request could be older than the cursor of the client. */
  #ask (): Promise<LogPosition> {
    return (this.#asking ??= this.#askSoon())
  }

  async #askSoon (): Promise<LogPosition> {
    const { signal } = this.#stop
    const waitMs = this.#askedAt + ASK_INTERVAL_MS - performance.now()
    // Without a wait, the request is shared only by callers of this turn.
    await (waitMs > 0 ? sleep(waitMs, undefined, { ref: false, signal }).catch(() => { throw signal.reason }) : Promise.resolve())
    signal.throwIfAborted()
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
      waiter.reject(new BrokerUnavailable(`is ahead of this node, which has not caught up within ${PATIENCE_MS} ms`))
    }
  }
}
