/** An event as a client receives it. */
export interface ReceivedEvent {
  /** Name of the event; `message` without an `event:` line. Names of control events start with `sse:`. */
  readonly event: string
  /** Text of the `data:` lines, joined by line feeds. */
  readonly data: string
  /** The data parsed as JSON; undefined if it is not JSON. */
  readonly json: any
  /** Value of the `id:` line of this event; null without one. `stream.lastEventId` has the newest id of the stream. */
  readonly id: string | null
}

/** Receives what a parser has read. */
export interface EventSink {
  /** Called for each event. */
  event (event: ReceivedEvent): void
  /** Called for each comment, without its colon. */
  comment (text: string): void
  /** Called for each valid `retry:` line, with its value in milliseconds. */
  retry (ms: number): void
  /** Called at the end of each block with an `id:` line, also without data. */
  lastEventId (id: string): void
}

const LINE_END = /\r\n|\n|\r(?!$)/g

/**
 * Parses an event stream (WHATWG HTML, 9.2.6) that arrives in parts of any size. It shares no code with the encoder. `eventsource-parser`
 * is not used: it ignores the `id:` of a block without data, which moves the cursor of a client that receives no events.
 */
export class EventParser {
  readonly #sink: EventSink
  #rest = ''
  #atStart = true
  #event = ''
  #data: string[] = []
  #id: string | null = null

  constructor (sink: EventSink) {
    this.#sink = sink
  }

  /** Parses the next part of the stream. */
  push (text: string): void {
    if (this.#atStart && text !== '') {
      this.#atStart = false
      if (text.startsWith('\uFEFF')) text = text.slice(1)
    }
    const all = this.#rest + text
    let from = 0
    // A CR at the end of the text is not yet a line end: it can be the first half of a CRLF.
    for (const { 0: end, index } of all.matchAll(LINE_END)) {
      this.#line(all.slice(from, index))
      from = index + end.length
    }
    this.#rest = all.slice(from)
  }

  #line (line: string): void {
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
    if (lines.length === 0) return
    const data = lines.join('\n')
    this.#sink.event({ event, data, json: parsed(data), id })
  }
}

function parsed (text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
