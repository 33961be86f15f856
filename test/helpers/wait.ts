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
