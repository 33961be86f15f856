import { readFileSync } from 'node:fs'
import { microseconds } from './clock.mjs'

/** A sample is disturbed when others used more than this share of the two cores meanwhile. */
export const MAX_FOREIGN = 0.1
const TICK_MICROSECONDS = 10_000

/** Microseconds that all cores have worked so far; null where the system does not say. */
function busy () {
  try {
    const [, ...fields] = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0].split(/\s+/)
    const [user, nice, system, , , irq, softirq, steal] = fields.map(Number)
    return (user + nice + system + irq + softirq + steal) * TICK_MICROSECONDS
  } catch {
    return null
  }
}

function own () {
  const { user, system } = process.cpuUsage()
  return user + system
}

/**
 * Begins to watch the machine. The function it returns tells which share of two cores others than this benchmark have
 * used since, given the microseconds its processes used; 0 where the system does not say.
 */
export function watchMachine () {
  const before = busy()
  const ownBefore = own()
  const start = microseconds()
  return used => {
    if (before === null) return 0
    const foreign = busy() - before - (own() - ownBefore) - used
    return Math.max(0, foreign / 2 / (microseconds() - start))
  }
}
