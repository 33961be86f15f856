import { AsyncResource } from 'node:async_hooks'
import type { SSEOptions } from '../../types/options.js'
import { TestMisuse } from '../errors.js'
import { kClock, type Clock, type Timer } from '../util/clock.js'
import { isArriving } from './link.js'

interface TestTimer extends Timer {
  dueAt: number
  /** Interval in milliseconds; 0 for a timer that fires once. */
  readonly everyMs: number
  run (): unknown
  /** The timer in real time, see `#after`; undefined for none. */
  real: NodeJS.Timeout | undefined
}

/** Turns of the event loop after which the writes that a timer has caused are in the sockets. */
const TURNS = 4
/** Real time in milliseconds that one `advance()` waits for sockets at most, and that each timer waits for the log at most. */
const PATIENCE_MS = 100

/** A clock that only `advance()` moves. `testClock()` creates it. */
export class TestClock {
  /** Options that pass the clock to the plugin or to an `SSEManager`: `{ ...options, ...clock.options }`. */
  readonly options: Omit<SSEOptions, 'authHandler' | 'extractAuthData'>
  /** @internal */ readonly clock: Clock
  readonly #startedAt = Date.now()
  readonly #timers = new Set<TestTimer>()
  #elapsed = 0
  #moving: Promise<unknown> = Promise.resolve()

  /** @internal */
  constructor () {
    this.clock = {
      monotonic: () => this.#elapsed,
      wall: () => this.now,
      after: (ms, run) => this.#after(ms, run),
      every: (ms, run) => this.#add(ms, ms, run),
      cancel: timer => { if (timer) this.#remove(timer as TestTimer) }
    }
    const options: { readonly [kClock]: Clock } = { [kClock]: this.clock }
    this.options = options as TestClock['options']
  }

  /** Time of the clock, in milliseconds since the Unix epoch. The clock starts at the current time. */
  get now (): number {
    return this.#startedAt + this.#elapsed
  }

  /**
   * Moves the clock forward. Timers fire in order, each at its due time. Between two due times, the event loop runs, so that clients
   * receive what was sent. Resolves when all due timers have fired.
   * @param ms an integer of 0 or more, in milliseconds
   * @throws SSE_ERR_TEST_MISUSE
   * @example
   * ```ts
   * const clock = testClock()
   * await app.register(ssePlugin, { keepAliveIntervalMs: 15_000, ...clock.options })
   * await clock.advance(15_000)
   * ```
   */
  async advance (ms: number): Promise<void> {
    if (!Number.isSafeInteger(ms) || ms < 0) throw new TestMisuse(`advance() needs a whole number of milliseconds, not ${ms}`)
    await this.#inTurn(() => this.#moveTo(this.#elapsed + ms))
  }

  /** Runs a move of the clock after all earlier moves. */
  #inTurn (move: () => Promise<void>): Promise<void> {
    const moved = this.#moving.then(move)
    this.#moving = moved.catch(() => {})
    return moved
  }

  async #moveTo (time: number): Promise<void> {
    const waiting = { restMs: PATIENCE_MS }
    await settle(waiting)
    for (;;) {
      let dueAt = Infinity
      for (const timer of this.#timers) dueAt = Math.min(dueAt, timer.dueAt)
      if (dueAt > time) break
      this.#elapsed = dueAt
      for (const timer of this.#timers) if (timer.dueAt === dueAt) await this.#fire(timer)
      await settle(waiting)
    }
    this.#elapsed = Math.max(this.#elapsed, time)
  }

  async #fire (timer: TestTimer): Promise<void> {
    if (timer.everyMs === 0) this.#remove(timer)
    else timer.dueAt += timer.everyMs
    const work = timer.run()
    if (work instanceof Promise) await Promise.race([work, new Promise(resolve => { setTimeout(resolve, PATIENCE_MS).unref() })])
  }

  /**
   * Adds a timer that fires once. If the test does not advance the clock, the timer fires in real time. Otherwise a test without
   * `advance()` would wait forever, for example for `app.close()` with a client that does not read.
   */
  #after (ms: number, run: () => unknown): Timer {
    const timer = this.#add(ms, 0, run)
    timer.real = setTimeout(() => {
      // An exception of the timer is uncaught, as without this clock.
      this.#inTurn(async () => { if (this.#timers.has(timer)) await this.#moveTo(timer.dueAt) }).catch((error: unknown) => { setImmediate(() => { throw error }) })
    }, ms)
    return timer
  }

  #add (ms: number, everyMs: number, run: () => unknown): TestTimer {
    const timer: TestTimer = { dueAt: this.#elapsed + Math.max(1, Math.ceil(ms)), everyMs, run: AsyncResource.bind(run), real: undefined, unref: () => clearTimeout(timer.real) }
    this.#timers.add(timer)
    return timer
  }

  #remove (timer: TestTimer): void {
    this.#timers.delete(timer)
    clearTimeout(timer.real)
  }
}

/** Runs the event loop until clients have received the bytes in transit. */
async function settle (waiting: { restMs: number }): Promise<void> {
  await turns(TURNS)
  const startedAt = performance.now()
  while (isArriving() && performance.now() - startedAt < waiting.restMs) await turns(1)
  waiting.restMs -= performance.now() - startedAt
}

function turns (count: number): Promise<void> {
  return new Promise(resolve => {
    const next = () => { setImmediate(--count > 0 ? next : resolve) }
    next()
  })
}

/** Creates a clock for one test and all its nodes. Only `advance()` moves it. */
export function testClock (): TestClock {
  return new TestClock()
}
