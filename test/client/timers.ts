import type { Clock, Timer } from '../../lib/util/clock.js'

/** A clock, and its timers that have neither fired nor been cancelled, with their times. */
export function counted (clock: Clock): { clock: Clock, timers: ReadonlyMap<Timer, number> } {
  const timers = new Map<Timer, number>()
  return {
    timers,
    clock: {
      ...clock,
      after (ms, run) {
        const timer = clock.after(ms, () => {
          timers.delete(timer)
          return run()
        })
        timers.set(timer, ms)
        return timer
      },
      cancel (timer) {
        if (timer) timers.delete(timer)
        clock.cancel(timer)
      }
    }
  }
}
