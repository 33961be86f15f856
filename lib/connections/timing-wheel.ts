import { inNoContext } from '../util/async-context.js'
import type { Clock, Timer } from '../util/clock.js'

/** The options from which the tick of the wheel is computed; see `SSEOptions`. */
export interface TimingOptions {
  readonly clock: Clock
  readonly keepAliveIntervalMs: number
  readonly stallTimeoutMs: number
  readonly maxConnectionAgeMs: number
  readonly drainMs: number
}

const TICKS_PER_INTERVAL = 10
// Rights must end within half a second, which is two ticks.
const MAX_TICK_MS = 250

/** Returns the tick of the wheel in milliseconds: a tenth of the shortest interval, from 10 to 250. */
export function tickMsFor (options: TimingOptions): number {
  const intervals = [options.keepAliveIntervalMs, options.stallTimeoutMs, options.maxConnectionAgeMs, options.drainMs].filter(ms => ms > 0)
  return Math.min(MAX_TICK_MS, Math.max(10, Math.floor(Math.min(...intervals) / TICKS_PER_INTERVAL)))
}

/** An item of a wheel. The item stores its own slot, so that scheduling allocates nothing. */
export interface Timed {
  /** Time of the next call, in milliseconds of the wheel's clock; Infinity for never. */
  dueAt: number
  /** Number of the slot; -1 if the item is not scheduled. Only the wheel changes it. */
  slot: number
  /** Index in the slot. Only the wheel changes it. */
  slotIndex: number
  /** Called at or shortly after `dueAt`. Must schedule the item again. */
  onTime (now: number): void
}

const SLOTS = 512

/** Replaces the timers of all connections by one. Items are called within two ticks after they are due. */
export class TimingWheel {
  /** Duration of a tick in milliseconds. */
  readonly tickMs: number
  readonly #slots: Timed[][] = Array.from({ length: SLOTS }, () => [])
  readonly #clock: Clock
  #timer: Timer | null = null
  #now: number
  #ran = 0
  #tick: number

  constructor (tickMs: number, clock: Clock) {
    this.tickMs = tickMs
    this.#clock = clock
    this.#now = clock.monotonic()
    this.#tick = Math.floor(this.#now / tickMs)
  }

  /** Time of the last turn: cheaper than reading the clock, and up to one tick old. */
  get now (): number {
    return this.#now
  }

  /**
   * Running time of the event loop in milliseconds. If a turn is late because the loop was blocked or the process was stopped, the time
   * since the last turn counts as two ticks.
   */
  get ran (): number {
    return this.#ran + this.#ranSince(this.#clock.monotonic())
  }

  #ranSince (now: number): number {
    return Math.min(now - this.#now, 2 * this.tickMs)
  }

  /** Starts the timer. */
  start (): void {
    if (this.#timer !== null) return
    inNoContext(() => {
      this.turn()
      this.#timer = this.#clock.every(this.tickMs, () => this.turn())
    })
  }

  /** Stops the timer. */
  stop (): void {
    this.#clock.cancel(this.#timer)
    this.#timer = null
  }

  /** Calls all items that are due. */
  turn (): void {
    const now = this.#clock.monotonic()
    this.#ran += this.#ranSince(now)
    this.#now = now
    const last = Math.floor(now / this.tickMs)
    // After a long delay, one round visits every slot once.
    const first = Math.max(this.#tick, last - SLOTS + 1)
    // Set first: an item that is scheduled for a past time during this loop must not be put into a slot that was already visited.
    this.#tick = last
    for (let tick = first; tick <= last; tick++) {
      const items = this.#slots[tick % SLOTS]!
      for (let i = items.length - 1; i >= 0; i--) {
        const item = items[i]
        if (item !== undefined && item.dueAt <= now) item.onTime(now)
      }
    }
  }

  /** Schedules an item, in place of its earlier time. */
  schedule (item: Timed, dueAt: number): void {
    this.cancel(item)
    item.dueAt = dueAt
    if (dueAt === Infinity) return
    item.slot = Math.max(Math.ceil(dueAt / this.tickMs), this.#tick) % SLOTS
    const items = this.#slots[item.slot]!
    item.slotIndex = items.length
    items.push(item)
  }

  /** Removes an item from the wheel. */
  cancel (item: Timed): void {
    if (item.slot < 0) return
    const items = this.#slots[item.slot]!
    const last = items.pop()!
    if (last !== item) {
      items[item.slotIndex] = last
      last.slotIndex = item.slotIndex
    }
    item.slot = -1
  }
}
