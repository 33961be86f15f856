import type { History, Page, ReadRequest } from '../broker.js'
import type { Message } from '../../events/message.js'
import { Ring } from '../ring.js'
import type { Entry } from './entry.js'

/** Reads the newest of these entries of the log from Redis, newest first, as many as come at once; none when there are none. */
export type Fetch = (from: number, to: number) => Promise<readonly Entry[]>

/**
 * One stretch of the log without a hole, as this node has it: what has arrived, and in front of it what has been fetched
 * because somebody asked for it. Each page is fetched once, for all who ask, and then kept as the history says: a herd of
 * returning clients costs Redis at most the history's length in pages.
 */
export class HistoryCache {
  readonly #ring: Ring
  readonly #fetch: Fetch
  /** Redis has nothing in front of this that the history still covers. */
  #complete = false
  #fetching: Promise<void> | null = null

  /** @param position the sequence number it begins behind. */
  constructor (history: History, position: number, fetch: Fetch) {
    this.#ring = new Ring(history, Date.now, position)
    this.#fetch = fetch
  }

  get position (): number {
    return this.#ring.last
  }

  /** @param time when it was logged, by this node's clock. */
  append (message: Message, time: number): void {
    this.#ring.append(message, time)
  }

  /** Rejects when it needs Redis, and Redis does not answer. */
  async read (request: Omit<ReadRequest, 'epoch'>): Promise<Page> {
    for (;;) {
      const page = this.#ring.read(request)
      // `trimmed` only says that the ring does not have it.
      if (page.gap !== 'trimmed' || this.#complete || this.#ring.full) return page
      await (this.#fetching ??= this.#fetchPage().finally(() => { this.#fetching = null }))
    }
  }

  async #fetchPage (): Promise<void> {
    const to = this.#ring.first - 1
    const entries = to < 1 ? [] : await this.#fetch(1, to)
    for (const { message, time, number } of entries) {
      // A hole, or an entry that cannot be delivered: what is in front of it is out of reach.
      if (message === null || number !== this.#ring.first - 1 || !this.#ring.prepend(message, time)) {
        this.#complete = true
        return
      }
    }
    this.#complete = entries.length === 0
  }
}
