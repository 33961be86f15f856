import { isErrorReply, type Connect, type Connection } from './client.js'

/** Time after which an unused connection is closed. */
const IDLE_MS = 10_000

/** A connection that is made when it is needed, and closed when it was idle or has failed. */
export class OnDemandConnection {
  readonly #connect: Connect
  readonly #stop = new AbortController()
  #connection: Promise<Connection> | null = null
  #users = 0
  #idle: NodeJS.Timeout | undefined

  constructor (connect: Connect) {
    this.#connect = connect
  }

  /** Calls `task` with the connection. If it rejects, the connection is closed, unless Redis answers that a key is of another type. */
  async use<T> (task: (connection: Connection) => Promise<T>): Promise<T> {
    this.#stop.signal.throwIfAborted()
    clearTimeout(this.#idle)
    this.#users++
    const connection: Promise<Connection> = (this.#connection ??= this.#connect(() => this.#drop(connection), this.#stop.signal))
    try {
      return await task(await connection)
    } catch (error) {
      // Other tasks wait for replies on the same connection. After other errors, such as READONLY, a new connection can reach another server.
      if (!isErrorReply(error) || !error.message.includes('WRONGTYPE ')) this.#drop(connection)
      throw error
    } finally {
      if (--this.#users === 0) this.#idle = setTimeout(() => this.#drop(connection), IDLE_MS).unref()
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
