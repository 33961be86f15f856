/**
 * A cursor of the log: the epoch, and one number for each priority, or one for all. The server's `log/cursor.ts` writes it. At its end is
 * the mark of `connections/snapshot-mark.ts` while the client lacks a state.
 */
const FORM = /^([\w-]+)\.([0-9a-z]+(?:~[0-9a-z]+)*)(?:!.)?$/

/** Returns whether a tab at this cursor has nothing. */
export function isEmpty (cursor: string): boolean {
  return /^(?:!.)?$/.test(cursor)
}

/** Returns whether a tab at this cursor lacks a state. */
export function isIncomplete (cursor: string): boolean {
  return cursor === '' || /!.$/.test(cursor)
}

/**
 * Returns whether a tab at the cursor `a` has received all events that a tab at the cursor `b` has. False for texts that are no cursors of one
 * log, unless they are equal.
 */
export function covers (a: string, b: string): boolean {
  return a === b || pair(a, b)?.every(([one, other]) => one >= other) === true
}

/** Returns the newest cursor that both cursors cover; null for texts that are no cursors of one log, unless they are equal. */
export function earlier (a: string, b: string): string | null {
  if (a === b) return a
  const numbers = pair(a, b)?.map(both => Math.min(...both).toString(36))
  return numbers === undefined ? null : `${FORM.exec(a)![1]}.${numbers.join('~')}`
}

/** Returns the numbers of two cursors of one log. */
function pair (a: string, b: string): [number, number][] | undefined {
  const [[, epoch, lanes = ''], [, otherEpoch, otherLanes = '']] = [FORM.exec(a) ?? [], FORM.exec(b) ?? []] as const
  if (epoch === undefined || epoch !== otherEpoch) return undefined
  const [one, other] = [lanes, otherLanes].map(text => text.split('~').map(number => parseInt(number, 36))) as [number[], number[]]
  return (one.length > other.length ? one : other).map((_, i) => [one[i] ?? one[0]!, other[i] ?? other[0]!])
}
