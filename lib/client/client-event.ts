import type { ParsedEvent } from './event-parser.js'

/** An event as listeners receive it. */
export interface ClientEvent<N extends string = string, D = unknown> {
  /** Name of the event; `message` for an event without a name. */
  readonly event: N
  /** The data, parsed as JSON. A text that is not JSON is returned as it is. The string `'1'` is JSON: use `text` for data that is a string. */
  readonly data: D
  /** The data as it was sent. */
  readonly text: string
  /** Value of the `id:` line of this event; null without one. */
  readonly id: string | null
}

/** An event whose data is parsed when it is first read. */
export class ReadEvent implements ClientEvent {
  readonly event: string
  readonly text: string
  readonly id: string | null
  #data: unknown
  #isParsed = false

  constructor ({ event, data, id }: ParsedEvent) {
    this.event = event
    this.text = data
    this.id = id
  }

  get data (): any {
    if (!this.#isParsed) {
      this.#isParsed = true
      try {
        this.#data = JSON.parse(this.text)
      } catch {
        this.#data = this.text
      }
    }
    return this.#data
  }
}
