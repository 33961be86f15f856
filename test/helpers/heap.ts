import { setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as () => void

/** Collects what can be, and returns the bytes of heap that are left. */
export function collect (): number {
  gc()
  gc()
  return process.memoryUsage().heapUsed
}

/** Collects until nothing more goes, and returns the bytes of heap that are left: what a turn or a socket still held is let go by then. */
export async function collectAll (): Promise<number> {
  let left = collect()
  for (;;) {
    await sleep(10)
    const now = collect()
    if (now > left - 10_000) return Math.min(now, left)
    left = now
  }
}
