import type { Clock, Timer } from './clock.js'
import type { Log } from './logger.js'

/** Time in which occurrences become one line. */
const GROUP_MS = 5_000

/** Logs a warning that many connections can cause at once: one line with the details of the first, and the number of all as `count`. */
export class GroupedWarning {
  readonly #log: Log
  readonly #clock: Clock
  readonly #message: string
  #first: object | null = null
  #count = 0
  #timer: Timer | null = null

  constructor (log: Log, clock: Clock, message: string) {
    this.#log = log
    this.#clock = clock
    this.#message = message
  }

  /** Adds an occurrence. The line follows within five seconds. */
  add (details: object): void {
    this.#count++
    if (this.#first !== null) return
    this.#first = details
    this.#timer = this.#clock.after(GROUP_MS, () => this.flush())
    this.#timer.unref()
  }

  /** Logs now what waits. */
  flush (): void {
    if (this.#first === null) return
    this.#clock.cancel(this.#timer)
    this.#log.warn({ ...this.#first, count: this.#count }, this.#message)
    this.#first = null
    this.#count = 0
  }
}
