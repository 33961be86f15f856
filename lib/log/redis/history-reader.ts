import type { Connect } from './client.js'
import type { Entry } from './entry.js'
import { OnDemandConnection } from './on-demand.js'
import { ReadSize } from './read-size.js'
import type { RedisStore } from './store.js'

/**
 * Reads entries from Redis that are older than this node's cache, on a separate connection. So its large replies do not delay
 * publishes on a slow link, and a time-out loses only this connection.
 */
export class HistoryReader {
  readonly #log: RedisStore
  readonly #link: OnDemandConnection
  readonly #readSize = new ReadSize()

  constructor (log: RedisStore, connect: Connect) {
    this.#log = log
    this.#link = new OnDemandConnection(connect)
  }

  /** Resolves with the newest of the entries `from` to `to`, newest first, limited to one reply. Rejects if Redis does not answer. */
  async read (epoch: number, from: number, to: number): Promise<Entry[]> {
    return await this.#link.use(connection => this.#log.range(connection, epoch, from, to, this.#readSize))
  }

  /** Closes the connection and aborts an attempt to connect. */
  close (): void {
    this.#link.close()
  }
}
