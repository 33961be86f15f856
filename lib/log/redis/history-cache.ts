import type { History, LogSize, Page, ReadRequest } from '../broker.js'
import type { Message } from '../../events/message.js'
import type { Interest } from '../log-index.js'
import { Ring } from '../ring.js'
import type { Entry } from './entry.js'

/**
 * Reads entries with numbers from `from` to `to` from Redis, newest first, with times by this node's clock. Can return fewer than there are;
 * an empty list means none.
 */
export type Fetch = (from: number, to: number) => Promise<readonly Entry[]>

/**
 * A contiguous part of the log in the memory of this node: messages that have arrived, and older ones that were fetched from Redis
 * for a read. Each page is fetched once for all readers and kept within the bounds of the history. Many clients that reconnect at
 * once therefore cost Redis at most one read of the history.
 */
export class HistoryCache {
  readonly #ring: Ring
  readonly #fetch: Fetch
  /** Whether Redis has no older entry that the history still covers. */
  #complete = false
  #fetching: Promise<void> | null = null

  /** @param position sequence number before the first message that will be appended */
  constructor (history: History, position: number, fetch: Fetch) {
    this.#ring = new Ring(history, Date.now, position)
    this.#fetch = fetch
  }

  /** See `Ring.size`. */
  get size (): LogSize {
    return this.#ring.size
  }

  /** Sequence number of the newest message. */
  get position (): number {
    return this.#ring.last
  }

  /**
   * Adds a message after the newest one.
   * @param time when the message was logged, by this node's clock, in milliseconds since the Unix epoch
   */
  append (message: Message, time: number): void {
    this.#ring.append(message, time)
  }

  /** Reads a page, and fetches older entries if needed. Rejects if they are needed and Redis does not answer. */
  async read (request: Omit<ReadRequest, 'epoch'>): Promise<Page> {
    for (;;) {
      const page = this.#ring.read(request)
      // `trimmed` only means that the ring does not have the entries; Redis may have them.
      if (page.gap !== 'trimmed' || this.#complete || this.#ring.full) return page
      await (this.#fetching ??= this.#fetchPage().finally(() => { this.#fetching = null }))
    }
  }

  /** See `Ring.hasNothing`. */
  hasNothing (after: number, interest: Interest): boolean {
    return this.#ring.hasNothing(after, interest)
  }

  async #fetchPage (): Promise<void> {
    const entries = await this.#fetch(1, this.#ring.first - 1)
    for (const { message, time, number } of entries) {
      // A missing or unreadable entry: older entries are unusable, because the history must be contiguous.
      if (message === null || number !== this.#ring.first - 1 || !this.#ring.prepend(message, time)) {
        this.#complete = true
        return
      }
    }
    this.#complete = entries.length === 0
  }
}
