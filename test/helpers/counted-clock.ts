import type { Clock, Timer } from '../../lib/util/clock.js'

/** A clock with the timers of its users that are neither over nor cancelled. */
export interface CountedClock extends Clock {
  readonly timers: ReadonlySet<Timer>
  /** As when the process stands still, or the machine sleeps: the time passes, and no timer fires. */
  standStill (ms: number): void
}

/** Counts the timers of a test clock, which fire in its time only, however long the test takes. */
export function counted (clock: Clock): CountedClock {
  const timers = new Set<Timer>()
  let stoodMs = 0
  return {
    timers,
    standStill: ms => { stoodMs += ms },
    monotonic: () => clock.monotonic() + stoodMs,
    wall: () => clock.wall() + stoodMs,
    after: (ms, run) => {
      const timer = clock.after(ms, () => {
        timers.delete(timer)
        return run()
      })
      timer.unref()
      timers.add(timer)
      return timer
    },
    every: (ms, run) => {
      const timer = clock.every(ms, run)
      timers.add(timer)
      return timer
    },
    cancel: timer => {
      if (timer) timers.delete(timer)
      clock.cancel(timer)
    }
  }
}
