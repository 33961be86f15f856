/** Sequence numbers of messages, ascending. Adds at the end and removes at the beginning in constant time. */
export class Postings {
  #seqs: number[]
  #start = 0

  constructor (...seqs: number[]) {
    this.#seqs = seqs
  }

  /** Adds a number that is greater than all others. Does nothing if it is the newest already. */
  add (seq: number): void {
    if (this.#seqs.at(-1) !== seq) this.#seqs.push(seq)
  }

  /** Removes a number if it is the oldest. Returns how many are left. */
  removeOldest (seq: number): number {
    if (this.#seqs[this.#start] === seq) this.#start++
    if (this.#start * 2 > this.#seqs.length) {
      this.#seqs = this.#seqs.slice(this.#start)
      this.#start = 0
    }
    return this.#seqs.length - this.#start
  }

  /** Returns the index of the first number greater than `seq`, for `at()`; `end` if there is none. */
  indexAfter (seq: number): number {
    let low = this.#start
    let high = this.#seqs.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#seqs[middle]! > seq) high = middle
      else low = middle + 1
    }
    return low
  }

  /** Index behind the newest number. */
  get end (): number {
    return this.#seqs.length
  }

  /** Returns the number at an index. */
  at (index: number): number {
    return this.#seqs[index]!
  }
}
