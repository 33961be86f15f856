import type { Broker } from '../log/broker.js'
import { inNoContext } from '../util/async-context.js'
import type { Log } from '../util/logger.js'

/** A connection that reads what it has missed from the log, page by page. */
export interface Reader {
  readonly isConnected: boolean
  /** Looks at `turns` for each message: the application is asked about it, and may take its time. */
  readPage (broker: Broker, turns: Turns): Promise<void>
}

/** What a turn of the loop may spend on reading, over all connections: a herd of returning clients shares it with live delivery. */
const TURN_MS = 4
const RETRY_MS = 500
/** How often the clock is looked at costs more than a message that is read fast: every so many of them. */
const STRIDE = 8
const SLOW_MS = 0.25

/** The time that all readers together may spend in each turn of the event loop. */
export class Turns {
  readonly #wait: () => void
  readonly #paused: (() => void)[] = []
  #endsAt = 0
  #over = true
  #lookedAt = 0
  /** Questions until the clock is looked at again. */
  #rest = 0

  /** @param wait called when a reader waits for the next turn. */
  constructor (wait: () => void) {
    this.#wait = wait
  }

  /** Whether readers wait for the next turn. */
  get awaited (): boolean {
    return this.#paused.length > 0
  }

  /** Whether the time of this turn is spent. To be asked before each message. */
  get over (): boolean {
    return this.#over || (--this.#rest <= 0 && this.look())
  }

  /** The same, by the clock. To be asked before each page. */
  look (): boolean {
    const now = performance.now()
    this.#rest = now - this.#lookedAt > SLOW_MS ? 1 : STRIDE
    this.#lookedAt = now
    return (this.#over = now >= this.#endsAt)
  }

  /** Resolves in a later turn, in the order of the calls. */
  async next (): Promise<void> {
    do {
      await new Promise<void>(resolve => {
        this.#paused.push(resolve)
        this.#wait()
      })
    } while (this.over)
  }

  /** Begins a turn: those that wait go on as soon as the caller has returned. */
  begin (): void {
    this.#lookedAt = performance.now()
    this.#endsAt = this.#lookedAt + TURN_MS
    this.#over = false
    this.#rest = 1
    for (const resume of this.#paused.splice(0)) resume()
  }
}

/** Lets lagging connections read the log, first come, first served, for a bounded time in each turn of the loop. */
export class ReplayScheduler {
  readonly #broker: Broker
  readonly #concurrentReads: number
  readonly #log: Log
  readonly #waiting = new Set<Reader>()
  /** Who waits for the next attempt of all. */
  readonly #failed = new Set<Reader>()
  /** Whose last read has failed. */
  readonly #stuck = new Set<Reader>()
  readonly #turns = new Turns(() => this.#schedule())
  /** Reads that were begun in this turn and have not come back. */
  #turn = { reads: 0 }
  #scheduled = false

  /** @param concurrentReads pages that are being read at once, of those begun in one turn; one that takes longer than its turn is not waited for. */
  constructor (broker: Broker, concurrentReads: number, log: Log) {
    this.#broker = broker
    this.#concurrentReads = concurrentReads
    this.#log = log
  }

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
    // Pages that are there come before new ones.
    const resumes = this.#turns.awaited
    this.#turns.begin()
    if (!resumes) this.#go()
    this.#schedule()
  }

  /** Begins reads until the turn is over. Each that comes back within the turn makes room for another. */
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
    // It may have asked again on its way out.
    this.#waiting.delete(reader)
    this.#failed.add(reader)
    if (this.#stuck.size === 0) this.#log.warn({ err: error }, 'Reading the event log failed; lagging connections wait')
    this.#stuck.add(reader)
    if (this.#failed.size > 1) return
    setTimeout(() => {
      for (const reader of this.#failed) this.#waiting.add(reader)
      this.#failed.clear()
      this.#schedule()
    }, RETRY_MS).unref()
  }

  #free (reader: Reader): void {
    if (this.#stuck.delete(reader) && this.#stuck.size === 0) this.#log.info({}, 'The event log is read again; no connection waits for it')
  }
}
