import type { Clock } from '../util/clock.js'
import type { Timed, TimingWheel } from './timing-wheel.js'

/** Lead of the wall clock that counts as a jump. Small adjustments of the clock add up until they reach it. */
const STEP_MS = 100
/** Interval of the checks. The rights of a user must end within half a second, which is two intervals. */
const INTERVAL_MS = 200

/**
 * Detects that the wall clock has jumped ahead of the monotonic clock, which timers use. Causes are a suspended machine, a paused virtual
 * machine, and a clock that was set. Rights that expire at a time of day are then checked, because their timers are late.
 */
export class ClockJump implements Timed {
  dueAt = Infinity
  slot = -1
  slotIndex = 0
  readonly #clock: Clock
  readonly #wheel: TimingWheel
  readonly #onAhead: () => void
  /** Lead of the wall clock at the last jump, or the smallest lead since then. */
  #ahead: number

  constructor (clock: Clock, wheel: TimingWheel, onAhead: () => void) {
    this.#clock = clock
    this.#wheel = wheel
    this.#onAhead = onAhead
    this.#ahead = clock.wall() - clock.monotonic()
  }

  /** Compares the clocks, and calls `onAhead` after a jump. */
  onTime (now: number): void {
    const ahead = this.#clock.wall() - now
    const stepped = ahead - this.#ahead > STEP_MS
    if (stepped || ahead < this.#ahead) this.#ahead = ahead
    this.#wheel.schedule(this, now + INTERVAL_MS)
    if (stepped) this.#onAhead()
  }
}
