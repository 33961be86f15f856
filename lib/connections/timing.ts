import type { Clock } from '../util/clock.js'

/** The options that set how often connections are looked at. */
export interface TimingOptions {
  readonly clock: Clock
  readonly keepAliveIntervalMs: number
  readonly stallTimeoutMs: number
  readonly maxConnectionAgeMs: number
  readonly drainMs: number
}

/** When a stream ends at the latest, in milliseconds of the monotonic clock. */
export interface Lifetime {
  readonly endsAt: number
  /** Whether the user's rights end then, as opposed to the connection being too old. */
  readonly expires: boolean
}

const TICKS_PER_INTERVAL = 10
// The end of a user's rights is kept to half a second, twice this.
const MAX_TICK_MS = 250

/** The tick of the timing wheel: a fraction of the shortest interval that it serves. */
export function tickMsFor (options: TimingOptions): number {
  const intervals = [options.keepAliveIntervalMs, options.stallTimeoutMs, options.maxConnectionAgeMs, options.drainMs].filter(ms => ms > 0)
  return Math.min(MAX_TICK_MS, Math.max(10, Math.floor(Math.min(...intervals) / TICKS_PER_INTERVAL)))
}

/**
 * Ages are spread by a fifth, so that clients that connected together do not return together.
 * @param expiresAt by the wall clock; Infinity for rights without an end.
 */
export function lifetimeOf (expiresAt: number, { clock, maxConnectionAgeMs }: TimingOptions): Lifetime {
  const start = clock.monotonic()
  const expiryAt = start + expiresAt - clock.wall()
  const tooOldAt = maxConnectionAgeMs === 0 ? Infinity : start + maxConnectionAgeMs * (0.8 + 0.2 * Math.random())
  return { endsAt: Math.min(expiryAt, tooOldAt), expires: expiryAt <= tooOldAt }
}
