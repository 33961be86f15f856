/** An event as it was sent. */
export interface ParsedEvent {
  /** Name of the event; `message` without an `event:` line. */
  readonly event: string
  /** Text of the `data:` lines, joined by line feeds. */
  readonly data: string
  /** Value of the `id:` line of this event; null without one. */
  readonly id: string | null
}

/** Receives what a parser has read. */
export interface EventSink {
  /** Called for each event. */
  event (event: ParsedEvent): void
  /** Called for each comment, without its colon. */
  comment (text: string): void
  /** Called for each valid `retry:` line, with its value in milliseconds. */
  retry (ms: number): void
  /** Called at the end of each block with an `id:` line, also without data. */
  lastEventId (id: string): void
}

/** Longest event that clients hold, in characters. A server that never ends one would exhaust the memory. */
const MAX_CHARS = 64 * 1024 * 1024
const LINE_END = /\r\n?|\n/g

/**
 * Parses an event stream (WHATWG HTML, 9.2.6) that arrives in parts of any size. It shares no code with the encoder. `eventsource-parser`
 * is not used: it ignores the `id:` of a block without data, which moves the cursor of a client that receives no events.
 */
export class EventParser {
  readonly #sink: EventSink
  /** The parts of a line whose end has not arrived. Joined once: joined with each part, a long line would take quadratic time. */
  readonly #line: string[] = []
  #chars = 0
  #atStart = true
  #afterCR = false
  #event = ''
  #data: string[] = []
  #id: string | null = null

  constructor (sink: EventSink) {
    this.#sink = sink
  }

  /** Whether the event that arrives is too long. */
  get isOverlong (): boolean {
    return this.#chars > MAX_CHARS
  }

  /** Parses the next part of the stream. */
  push (text: string): void {
    if (text === '') return
    const isLeadingMark = this.#atStart && text.startsWith('\uFEFF')
    // The second half of a CRLF, whose first half has already ended the line.
    const isSecondHalf = this.#afterCR && text.startsWith('\n')
    this.#atStart = false
    this.#afterCR = text.endsWith('\r')
    if (isLeadingMark || isSecondHalf) text = text.slice(1)
    this.#chars += text.length
    let from = 0
    for (const { 0: end, index } of text.matchAll(LINE_END)) {
      this.#line.push(text.slice(from, index))
      from = index + end.length
      this.#endLine()
      if (this.#data.length === 0) this.#chars = text.length - from
    }
    if (from < text.length) this.#line.push(text.slice(from))
  }

  #endLine (): void {
    const line = this.#line.join('')
    this.#line.length = 0
    if (line === '') return this.#dispatch()
    const colon = line.indexOf(':')
    if (colon === 0) return this.#sink.comment(line.slice(1).replace(/^ /, ''))
    const name = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
    if (name === 'event') this.#event = value
    else if (name === 'data') this.#data.push(value)
    else if (name === 'id' && !value.includes('\0')) this.#id = value
    else if (name === 'retry' && /^[0-9]+$/.test(value)) this.#sink.retry(Number(value))
  }

  #dispatch (): void {
    const event = this.#event === '' ? 'message' : this.#event
    const lines = this.#data
    const id = this.#id
    this.#event = ''
    this.#data = []
    this.#id = null
    if (id !== null) this.#sink.lastEventId(id)
    if (lines.length > 0) this.#sink.event({ event, data: lines.join('\n'), id })
  }
}
