/** Upper bounds of the buckets in seconds, for times from a write in memory to a log that hardly answers. */
export const BUCKETS: readonly number[] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]

/** A histogram of durations. */
export class Histogram {
  /** Number of durations in each bucket alone; the last one has no bound. */
  readonly #counts: number[] = new Array(BUCKETS.length + 1).fill(0)
  #sum = 0

  observe (durationMs: number): void {
    const seconds = durationMs / 1000
    const bucket = BUCKETS.findIndex(bound => seconds <= bound)
    this.#counts[bucket < 0 ? BUCKETS.length : bucket]!++
    this.#sum += seconds
  }

  /** Returns the number of durations up to each bound and in total, and their sum in seconds. */
  read (): { readonly upTo: readonly number[], readonly count: number, readonly sum: number } {
    let count = 0
    const upTo = this.#counts.map(own => (count += own))
    return { upTo: upTo.slice(0, -1), count, sum: this.#sum }
  }
}
