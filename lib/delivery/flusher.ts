import { Batch } from './batch.js'
import { inNoContext } from '../util/async-context.js'

/** What can be written to at the end of a turn. The line of those that wait runs through them: standing in it allocates nothing. */
export interface Flushable {
  /** Who waits behind it; null while it does not wait itself. */
  next: Flushable | null
  flush (): void
}

// A broadcast to 10,000 connections in one go stops the event loop for 91 ms; slices of 512 for 6. Where writing
// takes longer than it did there, a slice has fewer: the clock is looked at after each stretch.
const SLICE = 512
const SLICE_MS = 8
const STRETCH = 64
/** Stands behind the last one. */
const END: Flushable = { next: null, flush () {} }

/**
 * Collects the connections that have something to write, and writes to each once a turn of the event loop, or once an
 * interval. First marked, first written; a connection whose turn comes in a later slice takes along what has come since,
 * and one that has been written to waits for the next turn, or interval, like all others.
 */
export class Flusher {
  readonly #intervalMs: number
  readonly #clock: () => number
  #first = END
  #last = END
  #waiting = 0
  /** How many of those that wait are still to be written to in this run. */
  #due = 0
  #scheduled = false
  #root = new Batch()

  /** @param intervalMs 0 flushes at the end of each turn. */
  constructor (intervalMs: number, clock: () => number = () => performance.now()) {
    this.#intervalMs = intervalMs
    this.#clock = clock
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
    if (!this.#scheduled) this.#schedule()
  }

  #schedule (): void {
    this.#scheduled = true
    inNoContext(this.#wait)
  }

  readonly #wait = (): void => {
    if (this.#intervalMs > 0) setTimeout(this.#run, this.#intervalMs)
    else setImmediate(this.#run)
  }

  readonly #run = (): void => {
    this.#due = this.#waiting
    this.#writeSlice()
  }

  readonly #writeSlice = (): void => {
    const endsAt = this.#clock() + SLICE_MS
    const slice = Math.min(this.#due, SLICE)
    try {
      for (let written = 1; written <= slice; written++) {
        const item = this.#first
        this.#first = item.next!
        item.next = null
        this.#waiting--
        this.#due--
        item.flush()
        if (written % STRETCH === 0 && this.#clock() > endsAt) break
      }
    } finally {
      this.#goOn()
    }
  }

  #goOn (): void {
    if (this.#due > 0) {
      setImmediate(this.#writeSlice)
      return
    }
    // The frames of this run may go.
    this.#root = new Batch()
    if (this.#waiting > 0) return this.#schedule()
    this.#scheduled = false
    this.#last = END
  }
}
