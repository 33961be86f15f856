// The id of a client that does not have its complete state ends with `!` and the number of loads that have failed for it, in base 36.
// So the server keeps nothing about a disconnected client, and every node can continue to count.
//   k3f9x2.2s!0  The events up to 100 were received. A snapshot is missing.
//   !3           The client has nothing, and three loads have failed.

const MARK = /^(.*)!([0-9a-z])$/s
const MAX_FAILURES = 35

/** The end of an id that is sent while a snapshot is missing. */
export const INCOMPLETE = '!0'

/** The id of a client, as it was sent by this package. */
export interface ClaimedId {
  /** The cursor; empty for a client that has received no cursor. */
  readonly cursor: string
  /** Number of loads that have failed for a client with an incomplete state; null for a complete state. */
  readonly failures: number | null
}

/** Splits an id into the cursor and the mark. */
export function parseClaimedId (id: string): ClaimedId {
  const parts = MARK.exec(id)
  return parts === null ? { cursor: id, failures: null } : { cursor: parts[1]!, failures: parseInt(parts[2]!, 36) }
}

/** Returns the id of a client after a failed load. */
export function failedId (cursor: string, failures: number): string {
  return `${cursor}!${Math.min(failures, MAX_FAILURES).toString(36)}`
}
