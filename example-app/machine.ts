import { cpus, freemem, loadavg, totalmem } from 'node:os'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import type { Sample } from './events.js'

const RESOLUTION_MS = 10
const KEPT_SAMPLES = 180

/** Measures the machine of this process: processor, load, memory and event-loop delay. */
export class Machine {
  /** The last samples, oldest first. */
  readonly recent: Sample[] = []
  readonly #delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS })
  #times = processorTimes()
  #seq = 0

  start (): void {
    this.#delay.enable()
  }

  stop (): void {
    this.#delay.disable()
  }

  /** Takes a sample of the time since the last one, and returns it. */
  read (): Sample {
    const before = this.#times
    const now = this.#times = processorTimes()
    const total = now.total - before.total
    const sample: Sample = {
      seq: ++this.#seq,
      at: Date.now(),
      cpuPercent: total === 0 ? 0 : round((now.busy - before.busy) / total * 100),
      cores: cpus().length,
      load: loadavg().map(round) as [number, number, number],
      memoryUsedBytes: totalmem() - freemem(),
      memoryTotalBytes: totalmem(),
      processBytes: process.memoryUsage.rss(),
      delayP50Ms: lateness(this.#delay.percentile(50)),
      delayP99Ms: lateness(this.#delay.percentile(99))
    }
    this.#delay.reset()
    this.recent.push(sample)
    if (this.recent.length > KEPT_SAMPLES) this.recent.shift()
    return sample
  }
}

function processorTimes (): { busy: number, total: number } {
  let busy = 0
  let total = 0
  for (const { times } of cpus()) {
    busy += times.user + times.nice + times.sys + times.irq
    total += times.user + times.nice + times.sys + times.irq + times.idle
  }
  return { busy, total }
}

/**
 * Converts a value of the histogram to the delay in milliseconds. The histogram contains whole timer intervals, so the interval is
 * subtracted.
 */
function lateness (nanoseconds: number): number {
  return round(Math.max(0, nanoseconds / 1e6 - RESOLUTION_MS))
}

function round (value: number): number {
  return Math.round(value * 100) / 100
}
