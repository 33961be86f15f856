/**
 * A cursor of the log: the epoch, and one number for each priority, or one for all. The server's `log/cursor.ts` writes it. At its end is
 * the mark of `connections/snapshot-mark.ts` while the client lacks a state.
 */
const FORM = /^([\w-]{1,32})\.([0-9a-z]{1,11}(?:~[0-9a-z]{1,11})*)(?:![0-9a-z])?$/

/** Returns whether a tab at this cursor lacks a state. */
export function isIncomplete (cursor: string): boolean {
  return cursor === '' || /![0-9a-z]$/.test(cursor)
}

/** Returns whether two texts are cursors of different logs: the log was lost between them. */
export function isOtherLog (a: string, b: string): boolean {
  const [epoch, otherEpoch] = [a, b].map(cursor => FORM.exec(cursor)?.[1])
  return epoch !== undefined && otherEpoch !== undefined && epoch !== otherEpoch
}

/**
 * Returns whether a tab at the cursor `a` has received all events that a tab at the cursor `b` has. False for texts that are no cursors of one
 * log, unless they are equal.
 */
export function covers (a: string, b: string): boolean {
  if (a === b) return true
  const [, epoch, lanes = ''] = FORM.exec(a) ?? []
  const [, otherEpoch, otherLanes = ''] = FORM.exec(b) ?? []
  if (epoch === undefined || epoch !== otherEpoch) return false
  const [one, other] = [numbers(lanes), numbers(otherLanes)]
  const longer = one.length > other.length ? one : other
  return longer.every((_, i) => (one[i] ?? one[0]!) >= (other[i] ?? other[0]!))
}

function numbers (lanes: string): number[] {
  return lanes.split('~').map(number => parseInt(number, 36))
}
