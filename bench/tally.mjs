import { createHistogram } from 'node:perf_hooks'

const MEMORIES = 256
const CREDIT_EVERY = 4096

/** What all connections together have received: how much, how late, and what was wrong with it. */
export class Tally {
  /** Whether connections get the same bytes, so that bytes read once need not be read again. */
  remember = true
  #credit
  #histogram = createHistogram()
  #received = 0
  #announced = 0
  #scheduled = false
  #faults
  #memories = new Array(MEMORIES)

  constructor (credit) {
    this.#credit = credit
    this.reset()
  }

  reset () {
    this.#histogram.reset()
    this.#faults = { lost: 0, repeated: 0, misrouted: 0, closed: 0 }
    this.#received = 0
    this.#memories.fill(undefined)
    this.#announce()
  }

  /** Takes the times of publication of events that were received now. */
  receive (times, now) {
    for (const time of times) this.#histogram.record(Math.max(1, now - time))
    this.#received += times.length
    if (this.#received - this.#announced >= CREDIT_EVERY) {
      this.#announce()
    } else if (!this.#scheduled) {
      this.#scheduled = true
      setImmediate(() => {
        this.#scheduled = false
        this.#announce()
      })
    }
  }

  fault (kind, count = 1) {
    this.#faults[kind] += count
  }

  /** What these bytes have meant to another connection that had received as many events. */
  recall (next, bytes, length) {
    const memory = this.#memories[next % MEMORIES]
    if (memory === undefined || memory.next !== next || memory.bytes.length !== length) return undefined
    return memory.bytes.compare(bytes, 0, length) === 0 ? memory : undefined
  }

  memorise (next, bytes, length, times) {
    this.#memories[next % MEMORIES] = { next, bytes: Buffer.from(bytes.subarray(0, length)), times }
  }

  result () {
    return {
      received: this.#received,
      p50: this.#histogram.percentile(50),
      p99: this.#histogram.percentile(99),
      max: this.#received === 0 ? 0 : this.#histogram.max,
      faults: { ...this.#faults }
    }
  }

  #announce () {
    this.#announced = this.#received
    this.#credit.count = this.#received
  }
}
