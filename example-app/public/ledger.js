/** Counts received events. The numbers of a sequence have no gaps: a missing number is a lost event, a lower number is a duplicate. */
export class Ledger {
  received = 0
  replayed = 0
  lost = 0
  duplicates = 0
  #last = new Map()

  /** Counts an event. Returns false for a duplicate. */
  take (sequence, seq) {
    const last = this.#last.get(sequence)
    if (last !== undefined && seq <= last) {
      this.duplicates++
      return false
    }
    if (last !== undefined) this.lost += seq - last - 1
    this.#last.set(sequence, seq)
    return true
  }

  /** Forgets the last number of a sequence, after a time without a subscription for it. */
  forget (sequence) {
    this.#last.delete(sequence)
  }

  /** Forgets the last numbers of all sequences. */
  forgetAll () {
    this.#last.clear()
  }
}
