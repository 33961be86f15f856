import type { Broker } from './broker.js'

/** A connection that reads what it has missed from the log, page by page. */
export interface Reader {
  readonly isConnected: boolean
  readPage (broker: Broker): Promise<void>
}

// Pages read per turn, over all connections: a herd of returning clients shares the loop with live delivery.
const PAGES_PER_TURN = 32
const RETRY_MS = 500

/** Lets lagging connections read the log in turn, first come, first served, a bounded number of pages at a time. */
export class CatchUp {
  readonly #broker: Broker
  readonly #onError: (error: unknown) => void
  readonly #waiting = new Set<Reader>()
  #scheduled = false

  constructor (broker: Broker, onError: (error: unknown) => void) {
    this.#broker = broker
    this.#onError = onError
  }

  want (reader: Reader): void {
    this.#waiting.add(reader)
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => { this.#run() })
  }

  async #run (): Promise<void> {
    const turn: Reader[] = []
    for (const reader of this.#waiting) {
      if (turn.length === PAGES_PER_TURN) break
      this.#waiting.delete(reader)
      if (reader.isConnected) turn.push(reader)
    }
    const results = await Promise.allSettled(turn.map(reader => reader.readPage(this.#broker)))
    const failed = turn.filter((_, i) => results[i]!.status === 'rejected')
    for (const reader of failed) this.#waiting.add(reader)
    if (failed.length > 0) this.#onError((results.find(result => result.status === 'rejected') as PromiseRejectedResult).reason)
    this.#scheduled = this.#waiting.size > 0
    if (!this.#scheduled) return
    if (failed.length > 0) setTimeout(() => { this.#run() }, RETRY_MS).unref()
    else setImmediate(() => { this.#run() })
  }
}
