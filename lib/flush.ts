import { Batch } from './frame.js'

/** What can be written to at the end of a turn. */
export interface Flushable {
  marked: boolean
  flush (): void
}

// A broadcast to 10,000 connections in one go stops the event loop for 91 ms; slices of 512 for 6 (FACTS 4.6).
const SLICE = 512

/**
 * Collects the connections that have something to write, and writes to each once a turn of the event loop, or once an
 * interval. First marked, first written; a connection whose turn comes in a later slice takes along what has come since.
 */
export class Flusher {
  readonly #intervalMs: number
  #waiting: Flushable[] = []
  #next = 0
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
    if (item.marked) return
    item.marked = true
    this.#waiting.push(item)
    if (this.#scheduled) return
    this.#scheduled = true
    if (this.#intervalMs > 0) setTimeout(() => this.#run(), this.#intervalMs)
    else setImmediate(() => this.#run())
  }

  #run (): void {
    // Those marked while this slice is written wait for the next.
    const end = Math.min(this.#next + SLICE, this.#waiting.length)
    while (this.#next < end) {
      const item = this.#waiting[this.#next++]!
      item.marked = false
      item.flush()
    }
    if (this.#next < this.#waiting.length) {
      if (this.#next >= 16 * SLICE) {
        this.#waiting.splice(0, this.#next)
        this.#next = 0
      }
      setImmediate(() => this.#run())
      return
    }
    this.#waiting.length = 0
    this.#next = 0
    this.#scheduled = false
    // A new root lets the frames of this turn go.
    this.#root = new Batch()
  }
}
