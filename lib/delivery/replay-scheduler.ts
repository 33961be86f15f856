import type { Broker } from '../log/broker.js'
import { inNoContext } from '../util/async-context.js'
import type { Log } from '../util/logger.js'

/** A connection that reads missed events from the log, page by page. */
export interface Reader {
  /** Whether the client is connected. */
  readonly isConnected: boolean
  /** Reads a page. It checks `turns` before each message, because the application's filter or `authorizeTopic` can be slow. */
  readPage (broker: Broker, turns: Turns): Promise<void>
}

/** Time per turn of the event loop for the replays of all connections. Without a limit, replays would delay live delivery. */
const TURN_MS = 4
/** Time before failed reads are tried again. */
const RETRY_MS = 500
/** Messages between two reads of the clock. Reading the clock takes longer than reading a message. */
const STRIDE = 8
/** Time between two reads of the clock after which it is read before each message. */
const SLOW_MS = 0.25

/** Limits the time that all readers together use in each turn of the event loop. */
export class Turns {
  readonly #wait: () => void
  readonly #paused: (() => void)[] = []
  #endsAt = 0
  #over = true
  #lookedAt = 0
  /** Number of calls of `over` until the clock is read again. */
  #rest = 0

  /** @param wait called when a reader starts to wait for the next turn */
  constructor (wait: () => void) {
    this.#wait = wait
  }

  /** Whether readers wait for the next turn. */
  get awaited (): boolean {
    return this.#paused.length > 0
  }

  /** Whether the time of this turn is used up. Readers check it before each message. */
  get over (): boolean {
    return this.#over || (--this.#rest <= 0 && this.look())
  }

  /** Reads the clock and returns whether the time of this turn is used up. Called before each page. */
  look (): boolean {
    const now = performance.now()
    this.#rest = now - this.#lookedAt > SLOW_MS ? 1 : STRIDE
    this.#lookedAt = now
    return (this.#over = now >= this.#endsAt)
  }

  /** Resolves in the next turn, in the order of the calls. Readers check `over` again: those before them may have used up the time. */
  next (): Promise<void> {
    return new Promise(resolve => {
      this.#paused.push(resolve)
      this.#wait()
    })
  }

  /** Starts a turn. Waiting readers continue after the caller has returned. */
  begin (): void {
    this.#lookedAt = performance.now()
    this.#endsAt = this.#lookedAt + TURN_MS
    this.#over = false
    this.#rest = 1
    for (const resume of this.#paused.splice(0)) resume()
  }
}

/** Schedules the reads of lagging connections, in the order of their requests, for a limited time in each turn of the event loop. */
export class ReplayScheduler {
  readonly #broker: Broker
  readonly #concurrentReads: number
  readonly #log: Log
  readonly #waiting = new Set<Reader>()
  /** Readers that wait for the next attempt after a failure. */
  readonly #failed = new Set<Reader>()
  /** Readers whose last read has failed. */
  readonly #stuck = new Set<Reader>()
  readonly #turns = new Turns(() => this.#schedule())
  /** Unfinished reads that were started in this turn. */
  #turn = { reads: 0 }
  #scheduled = false

  /**
   * @param concurrentReads maximum number of unfinished reads that were started in the same turn. A read that takes longer than its
   * turn does not count in the next one.
   */
  constructor (broker: Broker, concurrentReads: number, log: Log) {
    this.#broker = broker
    this.#concurrentReads = concurrentReads
    this.#log = log
  }

  /** Queues a reader. After a failed read, the reader waits for the next attempt. */
  want (reader: Reader): void {
    if (this.#failed.has(reader)) return
    this.#waiting.add(reader)
    this.#schedule()
  }

  #schedule (): void {
    if (this.#scheduled || (this.#waiting.size === 0 && !this.#turns.awaited)) return
    this.#scheduled = true
    inNoContext(() => setImmediate(this.#begin))
  }

  readonly #begin = (): void => {
    this.#scheduled = false
    this.#turn = { reads: 0 }
    // Pages that were read before are processed before new reads.
    const resumes = this.#turns.awaited
    this.#turns.begin()
    if (!resumes) this.#go()
    this.#schedule()
  }

  /** Starts reads until the time of the turn is used up. A read that completes within the turn lets another one start. */
  #go (): void {
    const turn = this.#turn
    for (const reader of this.#waiting) {
      if (turn.reads === this.#concurrentReads || this.#turns.awaited || this.#turns.look()) return
      this.#waiting.delete(reader)
      if (!reader.isConnected) {
        this.#free(reader)
        continue
      }
      turn.reads++
      reader.readPage(this.#broker, this.#turns).then(() => this.#free(reader), (error: unknown) => this.#fail(reader, error)).then(() => {
        turn.reads--
        this.#go()
      })
    }
  }

  #fail (reader: Reader, error: unknown): void {
    // The reader may have queued itself again before it failed.
    this.#waiting.delete(reader)
    this.#failed.add(reader)
    if (this.#stuck.size === 0) this.#log.warn({ err: error }, `Reading the event log failed; it is tried again every ${RETRY_MS} ms`)
    this.#stuck.add(reader)
    if (this.#failed.size > 1) return
    setTimeout(() => {
      for (const reader of this.#failed) this.#waiting.add(reader)
      this.#failed.clear()
      this.#schedule()
    }, RETRY_MS).unref()
  }

  #free (reader: Reader): void {
    if (this.#stuck.delete(reader) && this.#stuck.size === 0) this.#log.info({}, 'The event log can be read again')
  }
}
