import { covers, earlier, isIncomplete } from './cursors.js'
import type { WaitingState } from '../state.js'
import { MAX_CHARS, type Entry, type Slice } from './relay.js'

const MAX_RECENT = 200

interface Received {
  readonly text: string
  readonly id: string
}

/** The events with an id that a tab has received last, without their ids. */
export class Recent {
  readonly #events: Received[] = []
  #chars = 0
  /** Those that the stream can repeat, and has not yet. */
  #repeatable: Received[] = []

  add (text: string, id: string): void {
    this.#events.push({ text, id })
    this.#chars += text.length
    while (this.#events.length > MAX_RECENT || this.#chars > MAX_CHARS) this.#chars -= this.#events.shift()!.text.length
  }

  /** A stream begins after this cursor. */
  begin (cursor: string): void {
    this.#repeatable = this.#events.filter(({ id }) => !covers(cursor, id))
  }

  /** Returns whether the stream repeats an event. */
  take (text: string): boolean {
    const at = this.#repeatable.findLastIndex(event => event.text === text)
    if (at >= 0) this.#repeatable.splice(at, 1)
    return at >= 0
  }
}

/** A gap that a state follows. It replaces all that was received. */
const REPLACED = /^event: ?sse:gap\ndata:.*"snapshot":true/m

/**
 * The response that one attempt of a client receives: the blocks that one tab reads for all, without those that this client has received
 * before. It goes on when another tab reads.
 */
export class Reading {
  readonly url: URL
  readonly subscriptions: readonly string[]
  /** Undefined: the tab is to read for itself. */
  readonly response: Promise<Response | null | undefined>
  /** The cursor after all that was passed to the client. */
  cursor: string
  /** The number of the next entry; null until the tab has joined. */
  next: number | null = null
  #settle!: (response: Response | null | undefined) => void
  #fail!: () => void
  #controller: ReadableStreamDefaultController<Uint8Array> | null = null
  readonly #encoder = new TextEncoder()
  readonly #recent: Recent
  /** Whether an id has arrived: the client has the state of what it asked for. */
  #isSettled = false
  #previous = ''
  /** The stream may repeat what this cursor covers; empty once it has passed it. */
  #until = ''

  constructor (url: URL, lastEventId: string, recent: Recent) {
    this.url = url
    this.subscriptions = url.searchParams.getAll('subscription')
    this.cursor = lastEventId || url.searchParams.get('lastEventId') || ''
    this.#recent = recent
    this.response = new Promise((resolve, reject) => {
      this.#settle = resolve
      this.#fail = reject
    })
    // It is rejected also when the client has stopped to wait for it.
    this.response.catch(() => {})
  }

  /** Subscriptions of which the client has no state yet. */
  get fresh (): readonly string[] {
    return this.#isSettled ? [] : this.url.searchParams.getAll('fresh')
  }

  /** Begins the response, or continues it. */
  open ({ previous, entries, next }: Omit<Slice, 'from'>): void {
    this.next = next
    this.#continue(previous)
    if (this.#controller === null) {
      const body = new ReadableStream<Uint8Array>({ start: controller => { this.#controller = controller } })
      this.#settle(new Response(body, { headers: { 'content-type': 'text/event-stream' } }))
    }
    this.push(entries)
  }

  /** Answers with a response that is no stream, with null: there are no credentials, or with undefined: the tab is to read for itself. */
  answer (response: Response | null | undefined): void {
    if (this.#controller === null) this.#settle(response)
    else this.end()
  }

  /** Breaks the response, as a lost connection does. */
  end (): void {
    this.#controller?.error()
    this.#controller = null
    this.#fail()
  }

  /** Ends the attempt as that of the tab that reads has ended. */
  interrupt ({ status, code, retryInMs }: WaitingState): void {
    if (status === undefined) this.end()
    else this.answer(Response.json({ code }, { status, headers: { 'retry-after': String(Math.ceil(retryInMs! / 1000)) } }))
  }

  /** Passes on what the client has not received. */
  push (entries: readonly Entry[]): void {
    let text = ''
    for (const entry of entries) {
      if (entry.text === '') this.#continue(entry.id!)
      else text += this.#filtered(entry)
    }
    if (text !== '') this.#controller?.enqueue(this.#encoder.encode(text))
  }

  #continue (previous: string): void {
    this.#previous = previous
    this.#until = this.cursor
    this.#recent.begin(previous)
  }

  #filtered ({ text, id }: Entry): string {
    // It has passed it, or the log was lost.
    if (covers(this.#previous, this.#until) || REPLACED.test(text) || (id !== null && earlier(id, this.#until) === null)) this.#until = ''
    if (id === null) return text
    this.#previous = id
    const withoutId = text.replace(/^id:.*\n/m, '')
    // Between the two cursors, a replay has another order than the live stream: higher priorities are first.
    // A tab that lacks a state needs it, although its id covers nothing new.
    if (this.#until !== '' && ((!isIncomplete(this.#until) && covers(this.#until, id)) || this.#recent.take(withoutId))) return ''
    if (/^data:/m.test(text)) this.#recent.add(withoutId, id)
    // The cursor stays: this id does not cover all that the client has received.
    if (this.#until !== '') return withoutId
    this.cursor = id
    this.#isSettled = true
    return text
  }
}
