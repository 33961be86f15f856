import type { Test } from 'tap'

/** Timers that wait for the test. */
export interface HeldTimers {
  /** Durations of all timers that were started, in order. */
  readonly durations: number[]
  /** What `performance.now()` returns. */
  now: number
  /** How many timers have neither fired nor been cancelled. */
  readonly count: number
  /** Lets the oldest timer fire, whether it is due or not. */
  fire (): void
}

/** Holds all timers of this process, and `performance.now()`, until the test ends. Those of Node.js itself, such as in sockets, are not held. */
export function holdTimers (t: Test): HeldTimers {
  const held = new Map<object, () => void>()
  const durations: number[] = []
  const { clearTimeout: clear } = globalThis
  const timers: HeldTimers = {
    durations,
    // A whole number: differences of times are exact then.
    now: Math.ceil(performance.now()),
    get count () { return held.size },
    fire () {
      const [[timer, run]] = held as unknown as [[object, () => void]]
      held.delete(timer)
      run()
    }
  }
  const start = (run: () => void, ms: number) => {
    const timer = { ref: () => timer, unref: () => timer }
    durations.push(ms)
    held.set(timer, run)
    return timer
  }
  // Sockets of the test kit do not keep the process alive.
  const alive = setInterval(() => {}, 1 << 30)
  t.teardown(() => clearInterval(alive))
  t.intercept(globalThis, 'setTimeout', { value: start, configurable: true })
  t.intercept(globalThis, 'clearTimeout', { value: (timer: any) => { if (!held.delete(timer)) clear(timer) }, configurable: true })
  t.intercept(performance, 'now', { value: () => timers.now, configurable: true })
  return timers
}
