import { AsyncResource } from 'node:async_hooks'
import type { SSEOptions } from '../../types/options.js'
import { TestMisuse } from '../errors.js'
import { kClock, type Clock, type Timer } from '../util/clock.js'
import { isArriving } from './link.js'

interface TestTimer extends Timer {
  dueAt: number
  /** 0 for one that fires once. */
  readonly everyMs: number
  run (): unknown
  /** By real time; see `#after`. */
  real: NodeJS.Timeout | undefined
}

/** What a timer has begun, such as a write after a write, is with the sockets after so many turns of the event loop. */
const TURNS = 4
/** Real time that one call of `advance()` waits at most for sockets, and each timer for the log. */
const PATIENCE_MS = 100

/** A clock that stands still until `advance()` moves it. Made by `testClock()`. */
export class TestClock {
  /** Options that give the clock to the plugin, or to an `SSEManager`: `{ ...options, ...clock.options }`. */
  readonly options: SSEOptions
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
    this.options = options as SSEOptions
  }

  /** The time of the clock, in milliseconds since the epoch. At first that of the machine. */
  get now (): number {
    return this.#startedAt + this.#elapsed
  }

  /**
   * Moves the clock. Everything that falls due happens at its time and in its order; between two times the event loop turns, so that
   * clients receive what was sent. Resolves when all of it has happened.
   * @param ms a whole number.
   */
  async advance (ms: number): Promise<void> {
    if (!Number.isSafeInteger(ms) || ms < 0) throw new TestMisuse(`advance() needs a whole number of milliseconds, not ${ms}`)
    await this.#inTurn(() => this.#moveTo(this.#elapsed + ms))
  }

  /** After the calls before it. */
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
   * Something waits for a timer that keeps the process alive, such as the end of `app.close()` while a client hangs. If the test does not
   * move the clock, real time does.
   */
  #after (ms: number, run: () => unknown): Timer {
    const timer = this.#add(ms, 0, run)
    timer.real = setTimeout(() => {
      // What the timer throws is uncaught, as without this clock.
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

/** Lets the event loop turn until clients have received what is on its way to them. */
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

/** A clock for one test, and for all its nodes. It stands still until `advance()` moves it. */
export function testClock (): TestClock {
  return new TestClock()
}
