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
