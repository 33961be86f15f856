import type { Clock, Timer } from '../util/clock.js'

/** Calls `onSilence` when nothing has been received for `limitMs`. */
export class Watchdog {
  readonly #clock: Clock
  readonly #onSilence: () => void
  #limitMs: number
  #timer: Timer | null = null
  #heardAt = 0
  #heardAtWall = 0

  constructor (clock: Clock, limitMs: number, onSilence: () => void) {
    this.#clock = clock
    this.#limitMs = limitMs
    this.#onSilence = onSilence
    this.start()
  }

  /** Sets the longest silence in milliseconds; Infinity for no limit. */
  limit (ms: number): void {
    this.#limitMs = ms
    this.start()
  }

  /** Starts to count, from now. */
  start (): void {
    this.stop()
    this.heard()
    this.#arm()
  }

  /** Records that something was received. It only stores the time: a timer for each read would cost more than the read. */
  heard (): void {
    this.#heardAt = this.#clock.monotonic()
    this.#heardAtWall = this.#clock.wall()
  }

  /** Stops counting, until `start()`. */
  stop (): void {
    this.#clock.cancel(this.#timer)
    this.#timer = null
  }

  /** Looks at the clock now. Timers stand still while the machine is suspended, and are late in a hidden tab. */
  check (): void {
    if (this.#timer === null) return
    this.stop()
    this.#arm()
  }

  #arm (): void {
    if (this.#limitMs === Infinity) return
    // The monotonic clock of some systems stands still in suspend, and the wall clock can be set back.
    const silentMs = Math.max(this.#clock.monotonic() - this.#heardAt, this.#clock.wall() - this.#heardAtWall)
    if (silentMs >= this.#limitMs) this.#onSilence()
    else this.#timer = this.#clock.after(this.#limitMs - silentMs, () => { this.check() })
  }
}
