/** Counts what came: every sequence is numbered without holes, so a hole is a loss and a step back a repetition. */
export class Ledger {
  received = 0
  replayed = 0
  lost = 0
  repeated = 0
  #last = new Map()

  /** False when this one has been here before. */
  take (sequence, seq) {
    const last = this.#last.get(sequence)
    if (last !== undefined && seq <= last) {
      this.repeated++
      return false
    }
    if (last !== undefined) this.lost += seq - last - 1
    this.#last.set(sequence, seq)
    return true
  }

  /** What comes next of this sequence does not follow on what came before: it was not listened to. */
  forget (sequence) {
    this.#last.delete(sequence)
  }

  forgetAll () {
    this.#last.clear()
  }
}
