/** A pending timer or a running interval. */
export interface Timer {
  /** Lets the process end before the timer fires. */
  unref (): unknown
}

/**
 * The clock of everything that users observe: keep-alives, stream age, expiry of rights, history and presence. Tests replace it.
 * Limits on the work of this process, and time-outs of other machines, use real time instead. Each function works without `this`.
 */
export interface Clock {
  /**
   * Returns monotonic time in whole milliseconds. Each connection stores the time of its last write; V8 would allocate an object
   * for each fractional number.
   */
  readonly monotonic: () => number
  /** Returns the time of day in milliseconds since the Unix epoch. */
  readonly wall: () => number
  /** Calls `run` once, after `ms` milliseconds. The test clock waits for a promise that `run` returns. */
  readonly after: (ms: number, run: () => unknown) => Timer
  /** Calls `run` every `ms` milliseconds. The interval does not keep the process alive. */
  readonly every: (ms: number, run: () => unknown) => Timer
  /** Cancels a timer or an interval. Ignores null and undefined. */
  readonly cancel: (timer: Timer | null | undefined) => void
}

/** The clock of production. */
export const systemClock: Clock = {
  monotonic: () => Math.floor(performance.now()),
  wall: () => Date.now(),
  after: (ms, run) => setTimeout(run, ms),
  every: (ms, run) => setInterval(run, ms).unref(),
  cancel: timer => clearTimeout((timer ?? undefined) as NodeJS.Timeout | undefined)
}

/**
 * Key of an internal option of the plugin and of `SSEManager`. Only `fastify-sse-manager/testing` sets it. A registered symbol,
 * because a process can load the package twice, with `import` and with `require`.
 */
export const kClock = Symbol.for('fastify-sse-manager.clock')
