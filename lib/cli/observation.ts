import { EventParser, type ParsedEvent } from '../client/event-parser.js'
import { OPENING } from '../client/stream.js'
import { systemClock, type Timer } from '../util/clock.js'
import type { Answer } from './exchange.js'

/** How many keep-alives are enough. */
const ENOUGH = 2
/** Text after a shorter silence belongs to the text before it. */
const MIN_SILENCE_MS = 250
/** How many events are kept for the comparison with those of a second stream. */
const MAX_EVENTS = 1_000
/** Length of their data. */
const MAX_CHARS = 8 * 1024 * 1024

/** What a stream has shown while it was watched. Times are in milliseconds. */
export interface Observation {
  readonly durationMs: number
  /** Time from the headers to the first text; null without any text. */
  readonly firstTextMs: number | null
  /** The longest time without text, the end included. */
  readonly longestSilenceMs: number
  /** Time without text before the end. */
  readonly lastSilenceMs: number
  readonly ending: 'open' | 'end' | 'cut'
  /** The interval of keep-alives that the opening comment announces; null without one. */
  readonly announcedMs: number | null
  /** The longest silence that a keep-alive has ended; null without one. */
  readonly keepAliveMs: number | null
  /** How often several keep-alives came at once: something has collected them. */
  readonly bunches: number
  readonly retryMs: number | null
  /** The cursor at the end; null if no id was received. */
  readonly lastEventId: string | null
  /** The first thousand events, control events of this package included. */
  readonly events: readonly ParsedEvent[]
}

export interface Watch {
  /** Longest time. The watch ends earlier when enough was seen. */
  readonly watchMs: number
  /** Ends the watch if no text has arrived by then. */
  readonly giveUpMs?: number
  /** Ends the watch after an event for which it returns true. */
  readonly isLast?: (event: ParsedEvent) => boolean
}

/** The time after which a server that has announced its interval is late. */
export function latestMs (announcedMs: number): number {
  return 2 * announcedMs + 1_000
}

/** Watches a stream, then disconnects. */
export async function observe (answer: Answer, { watchMs, giveUpMs = Infinity, isLast = () => false }: Watch): Promise<Observation> {
  const { monotonic, after, cancel } = systemClock
  const startedAt = monotonic()
  const seen = {
    firstTextMs: null as number | null,
    longestSilenceMs: 0,
    announcedMs: null as number | null,
    keepAliveMs: null as number | null,
    bunches: 0,
    retryMs: null as number | null,
    lastEventId: null as string | null,
    events: [] as ParsedEvent[]
  }
  let ending: Observation['ending'] = 'open'
  let heardAt = startedAt
  let keepAlives = 0
  let keptChars = 0
  /** Of the part that is parsed now. */
  let part = { comments: 0, hasEvents: false }
  let isOver = false
  const parser = new EventParser({
    comment (text) {
      const opening = OPENING.exec(text)
      if (opening === null) part.comments++
      else if (opening[1] !== undefined) seen.announcedMs = Number(opening[1])
    },
    retry (ms) { seen.retryMs = ms },
    lastEventId (id) { seen.lastEventId = id },
    event (event) {
      // A keep-alive, whose id is the newest one, again and again.
      if (event.event === 'sse:ping') return
      keptChars += event.data.length
      if (seen.events.length < MAX_EVENTS && keptChars <= MAX_CHARS) seen.events.push(event)
      part.hasEvents = true
      isOver ||= isLast(event)
    }
  })
  let timer: Timer | null = null
  const stop = new Promise<'open'>(resolve => {
    const check = (): void => {
      cancel(timer)
      const now = monotonic()
      const isSilent = seen.announcedMs !== null && now - heardAt > latestMs(seen.announcedMs)
      const until = seen.firstTextMs === null ? Math.min(watchMs, giveUpMs) : watchMs
      const leftMs = Math.min(startedAt + until - now, seen.announcedMs === null ? Infinity : heardAt + latestMs(seen.announcedMs) + 1 - now)
      if (isOver || parser.isOverlong || isSilent || keepAlives >= ENOUGH || leftMs <= 0) resolve('open')
      else timer = after(leftMs, check)
    }
    const take = (text: string): void => {
      const now = monotonic()
      const silenceMs = now - heardAt
      const isNext = seen.firstTextMs !== null && silenceMs >= Math.min(MIN_SILENCE_MS, (seen.announcedMs ?? Infinity) / 2)
      seen.firstTextMs ??= silenceMs
      seen.longestSilenceMs = Math.max(seen.longestSilenceMs, silenceMs)
      heardAt = now
      part = { comments: 0, hasEvents: false }
      parser.push(text)
      if (part.comments > 1) seen.bunches++
      if (isNext && !part.hasEvents) {
        keepAlives++
        seen.keepAliveMs = Math.max(seen.keepAliveMs ?? 0, silenceMs)
      }
      check()
    }
    check()
    answer.read(take).then(ended => {
      ending = ended
      resolve('open')
    })
  })
  await stop
  cancel(timer)
  answer.close()
  const now = monotonic()
  const lastSilenceMs = now - heardAt
  return { ...seen, durationMs: now - startedAt, ending, lastSilenceMs, longestSilenceMs: Math.max(seen.longestSilenceMs, lastSilenceMs) }
}
