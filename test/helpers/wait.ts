import { setTimeout as sleep } from 'node:timers/promises'

/** Waits until `condition` holds and returns what it returned. Throws when it does not within `ms`. */
export async function until<T> (condition: () => T | Promise<T>, ms = 30_000, what = condition.toString()): Promise<NonNullable<T>> {
  const deadline = Date.now() + ms
  for (;;) {
    const result = await condition()
    if (result) return result
    if (Date.now() >= deadline) throw new Error(`Not within ${ms} ms: ${what}`)
    await sleep(5)
  }
}

/** Lets the event loop turn, so that what was published is written. */
export async function turns (count = 3): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise(resolve => setImmediate(resolve))
}

/** How many of these times (in milliseconds) fall into one window of 100 ms: in the mean from the first to the last, and at most. */
export function windows (times: readonly number[]): { mean: number, most: number } {
  const start = Math.min(...times)
  const counts = new Array<number>(Math.ceil((Math.max(...times) - start + 1) / 100)).fill(0)
  for (const time of times) counts[Math.floor((time - start) / 100)]!++
  return { mean: times.length / counts.length, most: Math.max(...counts) }
}
