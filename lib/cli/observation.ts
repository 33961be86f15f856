import type { ParsedEvent } from '../client/event-parser.js'
import type { BodyEnd } from './answer.js'

/** What a stream has shown while it was watched. Times are in milliseconds. */
export interface Observation {
  readonly durationMs: number
  /** Time from the headers to the first text; null without any text. */
  readonly firstTextMs: number | null
  /** The longest time without text, the end included. */
  readonly longestSilenceMs: number
  /** Time without text before the end. */
  readonly lastSilenceMs: number
  readonly ending: 'open' | BodyEnd
  /** Whether the server is of this package: it begins with its opening comment. */
  readonly isOwn: boolean
  /** The interval of keep-alives that the opening comment announces; null without one. */
  readonly announcedMs: number | null
  /** The longest silence that a keep-alive has ended, and no event; null without one. */
  readonly keepAliveMs: number | null
  /** How often several keep-alives came at once: something has collected them. */
  readonly bunches: number
  /** How often an event came alone and whole. */
  readonly singles: number
  /** How often several events came at once. */
  readonly lumps: number
  /** How often the parts of an event came a second or more apart: something has waited until a buffer was full. */
  readonly torn: number
  readonly retryMs: number | null
  /** The cursor at the end; null if no id was received. */
  readonly lastEventId: string | null
  /** The newest event with an id; null without one. */
  readonly newestEvent: ParsedEvent | null
  /** The event with another id before it; null without one. */
  readonly previousEvent: ParsedEvent | null
  /** Number of events, control events of this package included, but no pings. */
  readonly events: number
  readonly firstEvent: ParsedEvent | null
  readonly lastEvent: ParsedEvent | null
  /** The beginning of the text. */
  readonly beginning: string
  /** Whether an event was longer than clients accept. */
  readonly isOverlong: boolean
}

/** The time after which a server that has announced its interval is late. */
export function latestMs (announcedMs: number): number {
  return 2 * announcedMs + 1_000
}
