/** An object that many connections can hold at once: a frame, a batch or a chunk. */
export interface Held {
  /** Memory in bytes. */
  readonly bytes: number
  /** Number of current holders. Only the budget changes it. */
  holders: number
}

/** A holder of things that it can get again. */
export interface Yielder {
  /** The memory is needed. Gives back what can be got again. */
  giveBack (): void
}

/** Memory budget of all queues of a node. Shared objects are counted once. */
export class MemoryBudget {
  /** Limit in bytes. */
  readonly limit: number
  /** Holders that can be asked to give memory back, oldest first. */
  readonly yielders = new Set<Yielder>()
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

  /** Asks holders to give memory back until `thing` fits. Parameters and result are those of `fits`. */
  reclaim (thing: Held, beside = 0): boolean {
    for (const yielder of this.yielders) {
      if (this.fits(thing, beside)) return true
      yielder.giveBack()
    }
    return this.fits(thing, beside)
  }
}
