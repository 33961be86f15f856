import { cancel, discard, hold, read, type Reading, type Result, type Source } from './source.js'

// After this many items, the source waits for one turn of the event loop. A source that never waits would block the process.
const ITEMS_PER_TURN = 256
const ABORTED = Symbol('aborted')

/** What takes the items of a source. */
export interface Sink {
  /** Whether it takes more. */
  readonly isOpen: boolean
  /** Takes a result of the source. Returns a promise if the source must wait before the next one. */
  take (result: Result): Promise<unknown> | null
}

/**
 * Reads a source until it has ended, the sink is closed or the signal aborts. The source is then stopped, so that its `finally` runs.
 * Rejects with the error of the source or of the sink.
 * @throws SSE_ERR_INVALID_SOURCE
 */
export async function readSource (made: Source | PromiseLike<Source>, signal: AbortSignal, sink: Sink): Promise<void> {
  const given = await unlessAborted(made, signal)
  if (given === ABORTED) {
    Promise.resolve(made).then(discard, () => {})
    return
  }
  hold(given)
  await new SourceReader(read(given), signal, sink).ended
}

function unlessAborted<T> (value: T | PromiseLike<T>, signal: AbortSignal): Promise<T | typeof ABORTED> {
  return new Promise((resolve, reject) => {
    Promise.resolve(value).then(resolve, reject)
    if (signal.aborted) resolve(ABORTED)
    else signal.addEventListener('abort', () => resolve(ABORTED), { once: true })
  })
}

/**
 * Continues in callbacks that are made once: an `await` beside the signal would cost an item of an asynchronous source two more promises,
 * and one of a synchronous source any. `Promise.race` would leak memory: it adds a reaction to the longer-lived promise for each item.
 */
class SourceReader {
  readonly #reading: Reading
  readonly #sink: Sink
  #items = 0
  #hasEnded = false
  #resolve!: () => void
  #reject!: (error: unknown) => void
  readonly ended = new Promise<void>((resolve, reject) => {
    this.#resolve = resolve
    this.#reject = reject
  })

  constructor (reading: Reading, signal: AbortSignal, sink: Sink) {
    this.#reading = reading
    this.#sink = sink
    // Later, because the source itself can cause the end: a generator cannot be stopped while it runs.
    signal.addEventListener('abort', () => queueMicrotask(this.#end), { once: true })
    this.#read()
  }

  /** Takes items until one must be waited for. */
  readonly #read = (): void => {
    try {
      while (this.#goesOn()) {
        const result = this.#reading.next()
        if ('then' in result) {
          result.then(this.#take, this.#fail)
          return
        }
        if (!this.#give(result)) return
      }
    } catch (error) {
      this.#fail(error)
    }
  }

  readonly #take = (result: Result): void => {
    try {
      if (this.#give(result)) this.#read()
    } catch (error) {
      this.#fail(error)
    }
  }

  /** Returns whether the next item can be read at once. */
  #give (result: Result): boolean {
    // The source itself can close the sink.
    if (!this.#goesOn()) return false
    const waiting = this.#sink.take(result)
    if (waiting !== null) waiting.then(result.done === true ? this.#end : this.#read, this.#fail)
    else if (result.done === true) this.#end()
    else if (++this.#items % ITEMS_PER_TURN !== 0) return true
    else setImmediate(this.#read)
    return false
  }

  #goesOn (): boolean {
    if (!this.#sink.isOpen) this.#end()
    return !this.#hasEnded
  }

  readonly #end = (): void => {
    if (this.#stop()) this.#resolve()
  }

  readonly #fail = (error: unknown): void => {
    if (this.#stop()) this.#reject(error)
  }

  #stop (): boolean {
    if (this.#hasEnded) return false
    this.#hasEnded = true
    cancel(this.#reading)
    return true
  }
}
