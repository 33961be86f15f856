/** A timer that has not fired, or that fires again and again. */
export interface Timer {
  /** Lets the process end before the timer fires. */
  unref (): unknown
}

/**
 * The time by which users see things happen: keep-alives, the age of a stream, the end of rights, the history, who is present. What bounds
 * the work of this process, or a wait for an answer of a machine, goes by real time. Each function may be called without its object.
 */
export interface Clock {
  /** Whole milliseconds of a clock that is never set: each connection notes when it was written to, and a fraction would take an object of its own. */
  readonly monotonic: () => number
  /** Milliseconds since the epoch. */
  readonly wall: () => number
  /** Calls `run` once. A promise that it returns is of the work that it has begun: the clock of a test waits for it. */
  readonly after: (ms: number, run: () => unknown) => Timer
  /** Calls `run` at each interval. Does not keep the process alive. */
  readonly every: (ms: number, run: () => unknown) => Timer
  readonly cancel: (timer: Timer | null | undefined) => void
}

export const systemClock: Clock = {
  monotonic: () => Math.floor(performance.now()),
  wall: () => Date.now(),
  after: (ms, run) => setTimeout(run, ms),
  every: (ms, run) => setInterval(run, ms).unref(),
  cancel: timer => clearTimeout((timer ?? undefined) as NodeJS.Timeout | undefined)
}

/** Option of the plugin and of `SSEManager` that only `fastify-sse-manager/testing` sets. `Symbol.for`: the package may be loaded twice, for `import` and for `require`. */
export const kClock = Symbol.for('fastify-sse-manager.clock')
