import { EventParser, type EventSink, type ParsedEvent } from '../client/event-parser.js'
import { OPENING } from '../client/stream.js'
import { systemClock } from '../util/clock.js'
import { latestMs, type Observation } from './observation.js'

/** How many keep-alives are enough. */
const ENOUGH = 2
/** Text after a shorter pause belongs to the text before it: a write can arrive in several parts. */
const PAUSE_MS = 50
/** Text after a shorter silence is no keep-alive of a server that does not announce its interval. */
const MIN_SILENCE_MS = 250
/** An event whose parts come further apart was not delayed by the network alone. */
const TORN_MS = 1_000
/** How much of the beginning of the stream is kept, in characters. */
const MAX_BEGINNING = 65_536
/** How much of its end is looked at. */
const MAX_END = 1_024
/** The end of a text that has begun an event: a line that is no comment, without an empty line after it. */
const UNFINISHED = /(?:^|[\r\n])[^:\r\n][^\r\n]*(?:\r\n|\r|\n)?$/

/** How long a stream is watched. */
export interface Limits {
  /** Longest time. The watch ends earlier when enough was seen. */
  readonly watchMs: number
  /** Ends the watch if no text has arrived by then. */
  readonly giveUpMs?: number
  /** Ends the watch after an event for which it returns true. */
  readonly isLast?: (event: ParsedEvent) => boolean
}

/** Text without a pause in it. */
interface Arrival {
  readonly isFirst: boolean
  readonly silenceMs: number
  /** Whether it begins between two events. */
  readonly isWhole: boolean
  comments: number
  events: number
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] }

/** Receives the text of a stream, and counts what it shows. */
export class Observer implements EventSink {
  readonly #limits: Limits
  readonly #parser = new EventParser(this)
  readonly #startedAt = systemClock.monotonic()
  #heardAt = this.#startedAt
  #arrival: Arrival | null = null
  /** The last text. */
  #end = ''
  /** No event since the last keep-alive: a keep-alive now ends a silence. Those of a timer come among events, too. */
  #isIdle = true
  #keepAlives = 0
  #isOver = false
  readonly #seen: Mutable<Omit<Observation, 'durationMs' | 'lastSilenceMs' | 'ending' | 'isOverlong'>> = {
    firstTextMs: null,
    longestSilenceMs: 0,
    isOwn: false,
    announcedMs: null,
    keepAliveMs: null,
    bunches: 0,
    singles: 0,
    lumps: 0,
    torn: 0,
    retryMs: null,
    lastEventId: null,
    newestEvent: null,
    previousEvent: null,
    events: 0,
    firstEvent: null,
    lastEvent: null,
    beginning: ''
  }

  constructor (limits: Limits) {
    this.#limits = limits
  }

  /** Time after which more can be told; 0 if enough was seen. */
  leftMs (): number {
    const now = systemClock.monotonic()
    const silenceMs = now - this.#heardAt
    if (silenceMs >= this.#pauseMs) this.#settle()
    if (this.#isOver || this.#parser.isOverlong || this.#keepAlives >= ENOUGH) return 0
    const { firstTextMs, announcedMs } = this.#seen
    const { watchMs, giveUpMs = Infinity } = this.#limits
    return Math.min(
      this.#startedAt + (firstTextMs === null ? Math.min(watchMs, giveUpMs) : watchMs) - now,
      announcedMs === null ? Infinity : latestMs(announcedMs) + 1 - silenceMs,
      this.#arrival === null ? Infinity : this.#pauseMs - silenceMs
    )
  }

  take (text: string): void {
    const seen = this.#seen
    const now = systemClock.monotonic()
    const silenceMs = now - this.#heardAt
    if (silenceMs >= this.#pauseMs) this.#settle()
    this.#heardAt = now
    this.#arrival ??= this.#begin(silenceMs)
    seen.firstTextMs ??= silenceMs
    seen.longestSilenceMs = Math.max(seen.longestSilenceMs, silenceMs)
    if (seen.beginning.length < MAX_BEGINNING) seen.beginning += text
    this.#end = (this.#end + text).slice(-MAX_END)
    this.#parser.push(text)
  }

  observation (ending: Observation['ending']): Observation {
    this.#settle()
    const now = systemClock.monotonic()
    const lastSilenceMs = now - this.#heardAt
    return { ...this.#seen, durationMs: now - this.#startedAt, ending, lastSilenceMs, longestSilenceMs: Math.max(this.#seen.longestSilenceMs, lastSilenceMs), isOverlong: this.#parser.isOverlong }
  }

  get #pauseMs (): number {
    return Math.min(PAUSE_MS, (this.#seen.announcedMs ?? Infinity) / 2)
  }

  #begin (silenceMs: number): Arrival {
    const isWhole = !UNFINISHED.test(this.#end)
    if (!isWhole && silenceMs >= TORN_MS) this.#seen.torn++
    return { isFirst: this.#seen.firstTextMs === null, silenceMs, isWhole, comments: 0, events: 0 }
  }

  /** Ends an arrival, and counts it. */
  #settle (): void {
    const arrival = this.#arrival
    this.#arrival = null
    if (arrival === null || arrival.isFirst) return
    const seen = this.#seen
    const isWhole = arrival.isWhole && !UNFINISHED.test(this.#end)
    if (arrival.events > 0) this.#isIdle = false
    if (arrival.events > 1) seen.lumps++
    else if (isWhole && arrival.events === 1) seen.singles++
    else if (isWhole) this.#keepAlive(arrival)
  }

  #keepAlive ({ silenceMs, comments }: Arrival): void {
    const seen = this.#seen
    if (silenceMs < (seen.announcedMs === null ? MIN_SILENCE_MS : seen.announcedMs / 2)) return
    if (comments > 1) seen.bunches++
    // A server that announces its interval writes only when it is silent.
    if (this.#isIdle || seen.announcedMs !== null) {
      this.#keepAlives++
      seen.keepAliveMs = Math.max(seen.keepAliveMs ?? 0, silenceMs)
    }
    this.#isIdle = true
  }

  // --- EventSink ---

  comment (text: string): void {
    const opening = OPENING.exec(text)
    if (opening !== null) {
      this.#seen.isOwn = true
      if (Number(opening[1]) > 0) this.#seen.announcedMs = Number(opening[1])
    } else if (this.#arrival !== null) this.#arrival.comments++
  }

  retry (ms: number): void {
    this.#seen.retryMs = ms
  }

  lastEventId (id: string): void {
    this.#seen.lastEventId = id
  }

  event (event: ParsedEvent): void {
    // A keep-alive, whose id is the newest one, again and again.
    if (event.event === 'sse:ping' || this.#isOver) return
    const seen = this.#seen
    if (this.#arrival !== null) this.#arrival.events++
    if (event.id !== null && event.id !== seen.newestEvent?.id) {
      seen.previousEvent = seen.newestEvent
      seen.newestEvent = event
    }
    seen.events++
    seen.firstEvent ??= event
    seen.lastEvent = event
    this.#isOver = this.#limits.isLast?.(event) ?? false
  }
}
