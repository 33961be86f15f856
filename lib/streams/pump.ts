import type { SSEConnection } from '../connections/connection.js'
import type { Frame } from '../delivery/frame.js'
import { cancel, Departure, discard, frameOf, frameOfText, GONE, hold, read, type Reading, type Result, type Source, type SourceFactory, type SourceItem } from './source.js'

// After this many events, the source waits for one turn of the event loop. A source that never waits would block the process.
const EVENTS_PER_TURN = 256

/**
 * Writes a source to one connection, as fast as the client reads. Resolves when the source or the stream has ended. The source is then
 * stopped, so that its `finally` runs. Rejects with the error of the source.
 * @throws SSE_ERR_INVALID_SOURCE, SSE_ERR_INVALID_EVENT_NAME, SSE_ERR_INVALID_ID, SSE_ERR_INVALID_RETRY, SSE_ERR_INVALID_DATA
 */
export async function pump (connection: SSEConnection, source: Source | SourceFactory): Promise<void> {
  const { signal, lastEventId } = connection
  const made = typeof source === 'function' ? source({ signal, lastEventId }) : source
  const given = await new Departure(signal).or(made)
  if (given === GONE) {
    Promise.resolve(made).then(discard, () => {})
    return
  }
  hold(given)
  await new Pump(connection, read(given)).ended
}

/**
 * Writes what is read to a connection. It continues in callbacks that are made once: an `await` beside the end of the stream would cost
 * an item of an asynchronous source two more promises, and one of a synchronous source any.
 */
class Pump {
  readonly #connection: SSEConnection
  readonly #reading: Reading
  readonly #decoder = new TextDecoder()
  #events = 0
  #hasEnded = false
  #resolve!: () => void
  #reject!: (error: unknown) => void
  readonly ended = new Promise<void>((resolve, reject) => {
    this.#resolve = resolve
    this.#reject = reject
  })

  constructor (connection: SSEConnection, reading: Reading) {
    this.#connection = connection
    this.#reading = reading
    // Later, because the source itself can end the stream: a generator cannot be stopped while it runs.
    connection.signal.addEventListener('abort', () => queueMicrotask(this.#end), { once: true })
    this.#read()
  }

  /** Writes items until the source or the client must be waited for. */
  readonly #read = (): void => {
    try {
      while (!this.#hasEnded && this.#connection.isConnected) {
        const result = this.#reading.next()
        if ('then' in result) {
          result.then(this.#take, this.#fail)
          return
        }
        if (!this.#write(result)) return
      }
      this.#end()
    } catch (error) {
      this.#fail(error)
    }
  }

  readonly #take = (result: Result): void => {
    if (this.#hasEnded) return
    try {
      if (this.#write(result)) this.#read()
    } catch (error) {
      this.#fail(error)
    }
  }

  /** Writes an item. Returns false if the next item must not be read yet. */
  #write ({ done, value }: Result): boolean {
    const frame = done === true ? frameOfText(this.#decoder.decode()) : frameOf(value as SourceItem, this.#decoder)
    if (frame !== null && !this.#send(frame, done === true)) return false
    return this.#goOn(done === true)
  }

  /** Returns false if the client is behind: the frame is sent later. */
  #send (frame: Frame, isLast: boolean): boolean {
    const connection = this.#connection
    if (connection.writeAtOnce(frame)) return true
    if (connection.crowdedFor(frame)) {
      connection.drained().then(() => { if (this.#send(frame, isLast) && this.#goOn(isLast)) this.#read() })
      return false
    }
    // A frame that waits must not keep a larger string that its data was cut from.
    connection.receive(frame.withOwnText())
    return true
  }

  /** Returns whether the next item can be read at once. */
  #goOn (wasLast: boolean): boolean {
    if (wasLast) this.#end()
    else if (++this.#events % EVENTS_PER_TURN !== 0) return true
    else setImmediate(this.#read)
    return false
  }

  readonly #end = (): void => {
    if (this.#hasEnded) return
    this.#hasEnded = true
    cancel(this.#reading)
    this.#resolve()
  }

  readonly #fail = (error: unknown): void => {
    if (this.#hasEnded) return
    this.#hasEnded = true
    cancel(this.#reading)
    this.#reject(error)
  }
}
