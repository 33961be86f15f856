import type { Connect, Connection } from './client.js'
import type { Entry } from './entry.js'
import { ReadSize } from './read-size.js'
import type { RedisStore } from './store.js'

/** Time after which an unused connection is closed. */
const IDLE_MS = 10_000

/**
 * Reads entries from Redis that are older than this node's cache, on a separate connection. So its large replies do not delay
 * publishes on a slow link, and a time-out loses only this connection. The connection is made on demand and closed when idle.
 */
export class HistoryReader {
  readonly #log: RedisStore
  readonly #connect: Connect
  readonly #readSize = new ReadSize()
  readonly #stop = new AbortController()
  #connection: Promise<Connection> | null = null
  #reads = 0
  #idle: NodeJS.Timeout | undefined

  constructor (log: RedisStore, connect: Connect) {
    this.#log = log
    this.#connect = connect
  }

  /** Resolves with the newest of the entries `from` to `to`, newest first, limited to one reply. Rejects if Redis does not answer. */
  async read (epoch: number, from: number, to: number): Promise<Entry[]> {
    this.#stop.signal.throwIfAborted()
    clearTimeout(this.#idle)
    this.#reads++
    const connection: Promise<Connection> = (this.#connection ??= this.#connect(() => this.#drop(connection), this.#stop.signal))
    try {
      return await this.#log.range(await connection, epoch, from, to, this.#readSize)
    } catch (error) {
      this.#drop(connection)
      throw error
    } finally {
      if (--this.#reads === 0) this.#idle = setTimeout(() => this.#drop(connection), IDLE_MS).unref()
    }
  }

  /** Closes the connection and aborts an attempt to connect. */
  close (): void {
    this.#stop.abort()
    clearTimeout(this.#idle)
    if (this.#connection !== null) this.#drop(this.#connection)
  }

  #drop (connection: Promise<Connection>): void {
    if (this.#connection === connection) this.#connection = null
    connection.then(made => made.destroy(), () => {})
  }
}
