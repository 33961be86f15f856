/** What many connections may hold at once: a frame, a batch, a chunk. */
export interface Held {
  readonly bytes: number
  /** How many hold it now. Changed only by the budget. */
  holders: number
}

/** Memory budget of all queues of a node. Shared objects are counted once. */
export class MemoryBudget {
  readonly limit: number
  #used = 0

  constructor (limit: number) {
    this.limit = limit
  }

  /** Bytes held now. */
  get used (): number {
    return this.#used
  }

  get exceeded (): boolean {
    return this.#used > this.limit
  }

  hold (thing: Held): void {
    if (thing.holders++ === 0) this.#used += thing.bytes
  }

  release (thing: Held): void {
    if (--thing.holders === 0) this.#used -= thing.bytes
  }

  /** Counts bytes that belong to one holder alone; negative to give them back. */
  add (bytes: number): void {
    this.#used += bytes
  }

  /** Whether it has room for one more holder of the thing, and what that costs beside. */
  fits (thing: Held, beside = 0): boolean {
    return this.#used + beside + (thing.holders === 0 ? thing.bytes : 0) <= this.limit
  }
}
