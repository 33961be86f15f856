/** Maximum number of labels. Close reasons belong to the application, which may take them from its users. */
const MAX_LABELS = 64

/** Counts by label. Beyond the limit of labels, new ones count as `other`. */
export class Tally {
  readonly #counts: Record<string, number> = Object.create(null)
  #size = 0

  /** @param isKnown whether the label counts as itself in any case */
  add (label: string, isKnown = false): void {
    const counts = this.#counts
    if (!(label in counts)) {
      if (!isKnown && this.#size >= MAX_LABELS) label = 'other'
      if (!(label in counts)) this.#size++
    }
    counts[label] = (counts[label] ?? 0) + 1
  }

  /** Returns a copy of the counts. */
  read (): Record<string, number> {
    return { ...this.#counts }
  }
}
