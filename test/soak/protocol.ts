import type { EventPriority } from '../../lib/index.js'

// What the server of a soak and the process with its clients know of each other.

export const ROOMS = 20
export const BULK = 'bulk'
export const BULK_BYTES = 200_000
/** Bytes of history: a few minutes of bulk. */
export const HISTORY_BYTES = 64 << 20
/** Counted events come in these priorities; each is a sequence of its own, so that order within a priority shows as well. */
export const COUNTED: readonly EventPriority[] = [1, 2]

/**
 * A counted event: the place in the sequence of its topic and priority, and the place of the one before it that is known
 * to have been published. A client that has seen `previous` has missed nothing.
 */
export interface Counted {
  topic: string
  priority: EventPriority
  n: number
  previous: number
}

/** Told to each new client: from here on it is owed everything. */
export type Base = Record<string, number>
export const laneOf = (topic: string, priority: EventPriority): string => `${topic}/${priority}`

export interface Tally {
  clients: number
  received: number
  lost: number
  duplicates: number
  /** Gaps that a made-up cursor or being further behind than history reaches had earned, and others. */
  gapsProvoked: number
  gaps: number
  streams: number
  refused: number
  /** Clients that lag behind what they were told to have at the end. */
  behind: number
  firstFault: string
}

export type ToClients = { do: 'churn', on: boolean } | { do: 'published', counters: Base } | { do: 'final', counters: Base } | { do: 'leave' }
export type FromClients = { tally: Tally }
