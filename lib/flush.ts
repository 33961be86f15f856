import { Batch } from './frame.js'

/** What can be written to at the end of a turn. The line of those that wait runs through them: standing in it allocates nothing. */
export interface Flushable {
  /** Who waits behind it; null while it does not wait itself. */
  next: Flushable | null
  flush (): void
}

// A broadcast to 10,000 connections in one go stops the event loop for 91 ms; slices of 512 for 6 (FACTS 4.6).
const SLICE = 512
/** Stands behind the last one. */
const END: Flushable = { next: null, flush () {} }

/**
 * Collects the connections that have something to write, and writes to each once a turn of the event loop, or once an
 * interval. First marked, first written; a connection whose turn comes in a later slice takes along what has come since.
 */
export class Flusher {
  readonly #intervalMs: number
  #first = END
  #last = END
  #waiting = 0
  #scheduled = false
  #root = new Batch()

  /** @param intervalMs 0 flushes at the end of each turn. */
  constructor (intervalMs: number) {
    this.#intervalMs = intervalMs
  }

  /** The empty batch that all batches of this turn grow from. */
  get root (): Batch {
    return this.#root
  }

  mark (item: Flushable): void {
    if (item.next !== null) return
    item.next = END
    if (this.#first === END) this.#first = item
    else this.#last.next = item
    this.#last = item
    this.#waiting++
    if (this.#scheduled) return
    this.#scheduled = true
    if (this.#intervalMs > 0) setTimeout(this.#run, this.#intervalMs)
    else setImmediate(this.#run)
  }

  readonly #run = (): void => {
    // Those marked while this slice is written wait for the next.
    for (let left = Math.min(this.#waiting, SLICE); left > 0; left--) {
      const item = this.#first
      this.#first = item.next!
      item.next = null
      this.#waiting--
      item.flush()
    }
    if (this.#waiting > 0) {
      setImmediate(this.#run)
      return
    }
    this.#scheduled = false
    // The last one, and the frames of this turn, may go.
    this.#last = END
    this.#root = new Batch()
  }
}
