import { inNoContext } from '../util/async-context.js'
import type { Clock, Timer } from '../util/clock.js'

/** The options that set how often connections are looked at. */
export interface TimingOptions {
  readonly clock: Clock
  readonly keepAliveIntervalMs: number
  readonly stallTimeoutMs: number
  readonly maxConnectionAgeMs: number
  readonly drainMs: number
}

const TICKS_PER_INTERVAL = 10
// The end of a user's rights is kept to half a second, twice this.
const MAX_TICK_MS = 250

/** The tick of the timing wheel: a fraction of the shortest interval that it serves. */
export function tickMsFor (options: TimingOptions): number {
  const intervals = [options.keepAliveIntervalMs, options.stallTimeoutMs, options.maxConnectionAgeMs, options.drainMs].filter(ms => ms > 0)
  return Math.min(MAX_TICK_MS, Math.max(10, Math.floor(Math.min(...intervals) / TICKS_PER_INTERVAL)))
}

/** What a wheel turns: its own place in the wheel is kept on it, so that moving it allocates nothing. */
export interface Timed {
  /** When to look at it next, in milliseconds of the wheel's clock; Infinity for never. */
  dueAt: number
  slot: number
  slotIndex: number
  /** Called at or shortly after `dueAt`; sets the next time with `wheel.schedule`. */
  onTime (now: number): void
}

const SLOTS = 512

/** One timer for all connections. An item is found again within two ticks after it is due. */
export class TimingWheel {
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

  /** The time of its last turn: up to a tick ago, and free. */
  get now (): number {
    return this.#now
  }

  /**
   * How long the event loop has run. A turn that comes more than a tick late shows that it stood still, as in a process that was
   * stopped or one that computes: what that took counts as two ticks.
   */
  get ran (): number {
    return this.#ran + this.#ranSince(this.#clock.monotonic())
  }

  #ranSince (now: number): number {
    return Math.min(now - this.#now, 2 * this.tickMs)
  }

  start (): void {
    if (this.#timer !== null) return
    inNoContext(() => {
      this.turn()
      this.#timer = this.#clock.every(this.tickMs, () => this.turn())
    })
  }

  stop (): void {
    this.#clock.cancel(this.#timer)
    this.#timer = null
  }

  /** Looks at everything that has come due. */
  turn (): void {
    const now = this.#clock.monotonic()
    this.#ran += this.#ranSince(now)
    this.#now = now
    const last = Math.floor(now / this.tickMs)
    // After a stall one round sees every slot; more rounds would see them again.
    const first = Math.max(this.#tick, last - SLOTS + 1)
    // Set before: what is scheduled from inside for a time that has passed must not land in a slot already seen.
    this.#tick = last
    for (let tick = first; tick <= last; tick++) {
      const items = this.#slots[tick % SLOTS]!
      for (let i = items.length - 1; i >= 0; i--) {
        const item = items[i]
        if (item !== undefined && item.dueAt <= now) item.onTime(now)
      }
    }
  }

  schedule (item: Timed, dueAt: number): void {
    this.cancel(item)
    item.dueAt = dueAt
    if (dueAt === Infinity) return
    item.slot = Math.max(Math.ceil(dueAt / this.tickMs), this.#tick) % SLOTS
    const items = this.#slots[item.slot]!
    item.slotIndex = items.length
    items.push(item)
  }

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
