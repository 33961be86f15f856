/** An object that many connections can hold at once: a frame, a batch or a chunk. */
export interface Held {
  /** Memory in bytes. */
  readonly bytes: number
  /** Number of current holders. Only the budget changes it. */
  holders: number
}

/** Memory budget of all queues of a node. Shared objects are counted once. */
export class MemoryBudget {
  /** Limit in bytes. */
  readonly limit: number
  #used = 0

  constructor (limit: number) {
    this.limit = limit
  }

  /** Bytes held at present. */
  get used (): number {
    return this.#used
  }

  /** Whether `used` is above `limit`. */
  get exceeded (): boolean {
    return this.#used > this.limit
  }

  /** Adds a holder. The first holder adds the bytes. */
  hold (thing: Held): void {
    if (thing.holders++ === 0) this.#used += thing.bytes
  }

  /** Removes a holder. The last holder gives the bytes back. */
  release (thing: Held): void {
    if (--thing.holders === 0) this.#used -= thing.bytes
  }

  /** Adds bytes that only one holder has. A negative number gives them back. */
  add (bytes: number): void {
    this.#used += bytes
  }

  /** Returns whether one more holder of `thing`, plus `beside` further bytes, stays within the limit. */
  fits (thing: Held, beside = 0): boolean {
    return this.#used + beside + (thing.holders === 0 ? thing.bytes : 0) <= this.limit
  }
}
