import type { Test } from 'tap'
import { turns } from './wait.js'

interface FakeTimer {
  readonly at: number
  readonly run: () => void
  isRef: boolean
}

/** The timers and clocks of this process, which move only by `advance()`. `setImmediate` and `node:timers/promises` stay real. */
export class FakeTimers {
  readonly #timers = new Set<FakeTimer>()
  readonly #wall = Date.now()
  /** Time of `performance.now()`; it can be set. */
  now = 1_000

  /** How many timers run. */
  get count (): number {
    return this.#timers.size
  }

  /** How many timers keep the process alive. */
  get refs (): number {
    return [...this.#timers].filter(({ isRef }) => isRef).length
  }

  /** Milliseconds until each timer, in the order in which they were started. */
  get delays (): number[] {
    return [...this.#timers].map(({ at }) => at - this.now)
  }

  /** @internal */
  constructor (t: Test) {
    const replace = (object: object, name: string, value: unknown) => t.intercept(object as Record<string, unknown>, name, { value, configurable: true, writable: true })
    replace(performance, 'now', () => this.now)
    replace(Date, 'now', () => this.#wall + this.now)
    replace(globalThis, 'clearTimeout', (timer: FakeTimer | null | undefined) => { if (timer) this.#timers.delete(timer) })
    replace(globalThis, 'setTimeout', (run: () => void, ms = 0) => {
      const timer = { at: this.now + ms, run, isRef: true, unref: () => Object.assign(timer, { isRef: false }), ref: () => Object.assign(timer, { isRef: true }) }
      this.#timers.add(timer)
      return timer
    })
  }

  /** Lets time pass: timers fire in order, each at its time, and the event loop turns after each. */
  async advance (ms: number): Promise<void> {
    const end = this.now + ms
    await turns(2)
    for (;;) {
      const [next] = [...this.#timers].filter(({ at }) => at <= end).sort((one, other) => one.at - other.at)
      if (next === undefined) break
      this.#timers.delete(next)
      this.now = Math.max(this.now, next.at)
      next.run()
      await turns(2)
    }
    this.now = end
  }
}

/** Replaces timers and clocks until the test ends. No test may be started meanwhile: tap uses timers, too. */
export function fakeTimers (t: Test): FakeTimers {
  return new FakeTimers(t)
}
