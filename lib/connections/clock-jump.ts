import type { Clock } from '../util/clock.js'
import type { Timed, TimingWheel } from './timing-wheel.js'

/** Slower changes than this in one interval are those of a clock that is adjusted; together they count. */
const STEP_MS = 100
/** The end of a user's rights is kept to half a second: two intervals. */
const INTERVAL_MS = 200

/**
 * Sees that the wall clock has run ahead of the monotonic one, by which timers go: the machine was suspended, the virtual
 * machine paused, or the clock set. What ends at a time of day has to be looked at then: its timer would be late.
 */
export class ClockJump implements Timed {
  dueAt = Infinity
  slot = -1
  slotIndex = 0
  readonly #clock: Clock
  readonly #wheel: TimingWheel
  readonly #onAhead: () => void
  /** How far the wall clock was ahead when last looked at; the least since then. */
  #ahead: number

  constructor (clock: Clock, wheel: TimingWheel, onAhead: () => void) {
    this.#clock = clock
    this.#wheel = wheel
    this.#onAhead = onAhead
    this.#ahead = clock.wall() - clock.monotonic()
  }

  onTime (now: number): void {
    const ahead = this.#clock.wall() - now
    const stepped = ahead - this.#ahead > STEP_MS
    if (stepped || ahead < this.#ahead) this.#ahead = ahead
    this.#wheel.schedule(this, now + INTERVAL_MS)
    if (stepped) this.#onAhead()
  }
}
