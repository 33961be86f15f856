const DEFAULT_RETRY_MS = 3_000
/** A stream that was open for this time resets the back-off. */
const STABLE_MS = 60_000
const MIN_RETRY_MS = 100
const MAX_RETRY_MS = 3_600_000

/** The time before each attempt: doubled after each failure, and spread, so that clients that failed together do not return together. */
export class BackOff {
  readonly #maxMs: number
  /** The reconnection time of the server, in milliseconds. */
  retryMs: number
  #failures = 0

  constructor (maxMs: number) {
    this.#maxMs = maxMs
    this.retryMs = Math.min(DEFAULT_RETRY_MS, maxMs)
  }

  /**
   * Returns the time before the next attempt, in milliseconds, after a stream that was open for `openMs`.
   * @param leastMs what the server asked for in `Retry-After`
   */
  next (openMs: number, leastMs = 0): number {
    if (openMs >= STABLE_MS) this.reset()
    const retryMs = clamp(this.retryMs)
    const grown = Math.min(retryMs * 2 ** this.#failures++, Math.max(this.#maxMs, retryMs))
    return Math.round(Math.max(grown, clamp(leastMs)) * (1 + Math.random() / 2))
  }

  /** Forgets earlier failures. */
  reset (): void {
    this.#failures = 0
  }
}

/** Without the minimum, `retry: 0` would cause a request storm. */
function clamp (ms: number): number {
  return Math.min(Math.max(ms, MIN_RETRY_MS), MAX_RETRY_MS)
}
