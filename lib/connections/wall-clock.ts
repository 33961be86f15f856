import type { Timed, TimingWheel } from './timing-wheel.js'

/** Slower changes than this in one interval are those of a clock that is adjusted; together they count. */
const STEP_MS = 100
/** The end of a user's rights is kept to half a second: two intervals. */
const INTERVAL_MS = 200

/**
 * Sees that the wall clock has run ahead of the monotonic one, by which timers go: the machine was suspended, the virtual
 * machine paused, or the clock set. What ends at a time of day has to be looked at then: its timer would be late.
 */
export class WallClock implements Timed {
  dueAt = Infinity
  slot = -1
  slotIndex = 0
  readonly #wheel: TimingWheel
  readonly #onAhead: () => void
  /** How far the wall clock was ahead when last looked at; the least since then. */
  #ahead: number

  /** @param now the clock of the wheel. */
  constructor (wheel: TimingWheel, now: number, onAhead: () => void) {
    this.#wheel = wheel
    this.#onAhead = onAhead
    this.#ahead = Date.now() - now
  }

  onTime (now: number): void {
    const ahead = Date.now() - now
    const stepped = ahead - this.#ahead > STEP_MS
    if (stepped || ahead < this.#ahead) this.#ahead = ahead
    this.#wheel.schedule(this, now + INTERVAL_MS)
    if (stepped) this.#onAhead()
  }
}
