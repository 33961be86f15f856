import type { Broker } from '../log/broker.js'

/** A connection that reads what it has missed from the log, page by page. */
export interface Reader {
  readonly isConnected: boolean
  readPage (broker: Broker): Promise<void>
}

/** Is told when reads begin to fail, and when nobody is left whose last one has. */
export interface CatchUpListener {
  stuck (error: unknown): void
  free (): void
}

/** What a turn of the loop may spend on reading, over all connections: a herd of returning clients shares it with live delivery. */
const TURN_MS = 4
const RETRY_MS = 500

interface Turn {
  readonly endsAt: number
  reads: number
}

/** Lets lagging connections read the log, first come, first served, for a bounded time in each turn of the loop. */
export class CatchUp {
  readonly #broker: Broker
  readonly #concurrentReads: number
  readonly #listener: CatchUpListener
  readonly #waiting = new Set<Reader>()
  /** Who waits for the next attempt of all. */
  readonly #failed = new Set<Reader>()
  /** Whose last read has failed. */
  readonly #stuck = new Set<Reader>()
  #scheduled = false

  /** @param concurrentReads pages that are being read at once, of those begun in one turn; one that takes longer than its turn is not waited for. */
  constructor (broker: Broker, concurrentReads: number, listener: CatchUpListener) {
    this.#broker = broker
    this.#concurrentReads = concurrentReads
    this.#listener = listener
  }

  want (reader: Reader): void {
    if (this.#failed.has(reader)) return
    this.#waiting.add(reader)
    this.#schedule()
  }

  #schedule (): void {
    if (this.#scheduled || this.#waiting.size === 0) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#go({ endsAt: performance.now() + TURN_MS, reads: 0 })
      this.#schedule()
    })
  }

  /** Begins reads until the turn is over. Each that comes back within the turn makes room for another. */
  #go (turn: Turn): void {
    for (const reader of this.#waiting) {
      if (turn.reads === this.#concurrentReads || performance.now() >= turn.endsAt) return
      this.#waiting.delete(reader)
      if (!reader.isConnected) {
        this.#free(reader)
        continue
      }
      turn.reads++
      reader.readPage(this.#broker).then(() => this.#free(reader), (error: unknown) => this.#fail(reader, error)).then(() => {
        turn.reads--
        this.#go(turn)
      })
    }
  }

  #fail (reader: Reader, error: unknown): void {
    // It may have asked again on its way out.
    this.#waiting.delete(reader)
    this.#failed.add(reader)
    if (this.#stuck.size === 0) this.#listener.stuck(error)
    this.#stuck.add(reader)
    if (this.#failed.size > 1) return
    setTimeout(() => {
      for (const reader of this.#failed) this.#waiting.add(reader)
      this.#failed.clear()
      this.#schedule()
    }, RETRY_MS).unref()
  }

  #free (reader: Reader): void {
    if (this.#stuck.delete(reader) && this.#stuck.size === 0) this.#listener.free()
  }
}
