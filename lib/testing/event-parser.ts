/** An event as a client dispatches it. */
export interface ReceivedEvent {
  /** Name of the event: `message` when the stream had no `event:` line. Control events of this package begin with `sse:`. */
  readonly event: string
  /** The text of the `data:` lines, joined by line feeds. */
  readonly data: string
  /** The same parsed as JSON; undefined when it is not JSON. */
  readonly json: any
  /** The `id:` line of this event; null when it had none. `stream.lastEventId` has the newest. */
  readonly id: string | null
}

/** What a parser has read so far. */
export interface EventSink {
  event (event: ReceivedEvent): void
  comment (text: string): void
  /** Each `retry:` line that counts, in milliseconds. */
  retry (ms: number): void
  /** A block has ended that had an `id:` line, with or without data. */
  lastEventId (id: string): void
}

const LINE_END = /\r\n|\n|\r(?!$)/g

/**
 * Reads an event stream by WHATWG HTML 9.2.6, from text cut anywhere. Shares no code with the encoder. `eventsource-parser` is not
 * used: it leaves out the `id:` of a block without data, by which a silent client's cursor moves.
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

  push (text: string): void {
    if (this.#atStart && text !== '') {
      this.#atStart = false
      if (text.startsWith('\uFEFF')) text = text.slice(1)
    }
    const all = this.#rest + text
    let from = 0
    // A CR at the very end may be the first half of a CRLF.
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
