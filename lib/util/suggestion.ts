/** Maximum number of edits between a misspelt name and a suggestion. Short names allow fewer. */
const MAX_EDITS = 3

/** Maximum number of known names that an error lists. */
const MAX_LISTED = 12
/** Length from which the beginning of a known name counts as the name. */
const MIN_BEGINNING = 4

/** Returns the known names if they are few, and the nearest one: `: it has title, message; did you mean "title"?`. */
export function alternatives (name: string, known: readonly string[]): string {
  return (known.length > MAX_LISTED ? '' : `: it has ${known.join(', ')}`) + suggestion(name, known)
}

/** Returns `; did you mean "keepAlive"?` with the nearest known name, or an empty string if none is close enough. */
export function suggestion (name: string, known: Iterable<string>): string {
  let nearest = ''
  let fewest = Math.min(MAX_EDITS, Math.ceil(name.length / 3)) + 1
  for (const candidate of known) {
    const edits = name.length >= MIN_BEGINNING && candidate.startsWith(name) ? 1 : editsBetween(name.toLowerCase(), candidate.toLowerCase(), fewest)
    if (edits >= fewest) continue
    fewest = edits
    nearest = candidate
  }
  return nearest === '' ? '' : `; did you mean ${JSON.stringify(nearest)}?`
}

/** Returns the number of insertions, deletions, replacements and swaps of neighbours between two texts, at most `limit`. */
function editsBetween (one: string, other: string, limit: number): number {
  if (Math.abs(one.length - other.length) >= limit) return limit
  let before: number[] = []
  let last = Array.from({ length: other.length + 1 }, (_, column) => column)
  for (let row = 1; row <= one.length; row++) {
    const current = [row]
    for (let column = 1; column <= other.length; column++) {
      const isSame = one[row - 1] === other[column - 1]
      let edits = Math.min(current[column - 1]! + 1, last[column]! + 1, last[column - 1]! + (isSame ? 0 : 1))
      if (one[row - 1] === other[column - 2] && one[row - 2] === other[column - 1]) edits = Math.min(edits, before[column - 2]! + 1)
      current.push(edits)
    }
    before = last
    last = current
  }
  return last[other.length]!
}
