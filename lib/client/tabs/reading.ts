import { covers, isIncomplete, isOtherLog } from './cursors.js'
import type { Entry } from './relay.js'

const MAX_RECENT = 200

/** The events with an id that a tab has received last, without their ids. */
export class Recent {
  readonly #events: { readonly text: string, readonly id: string }[] = []

  add (text: string, id: string): void {
    if (this.#events.push({ text, id }) > MAX_RECENT) this.#events.shift()
  }

  /** Removes an event that a stream after this cursor can repeat. Returns whether it was there. */
  take (text: string, cursor: string): boolean {
    const at = this.#events.findLastIndex(event => event.text === text && !covers(cursor, event.id))
    if (at >= 0) this.#events.splice(at, 1)
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
  readonly init: RequestInit
  readonly subscriptions: readonly string[]
  readonly response: Promise<Response | null>
  /** The cursor after all that was passed to the client. */
  cursor: string
  /** The number of the next entry; null until the tab has joined. */
  next: number | null = null
  #settle!: (response: Response | null) => void
  #fail!: () => void
  #controller: ReadableStreamDefaultController<Uint8Array> | null = null
  readonly #encoder = new TextEncoder()
  readonly #recent: Recent
  /** Whether an id has arrived: the client has the state of what it asked for. */
  #isSettled = false
  #previous = ''
  /** The cursor at which the stream has begun. */
  #begin = ''
  /** The stream may repeat what this cursor covers; empty once it has passed it. */
  #until = ''

  constructor (url: URL, init: RequestInit, recent: Recent) {
    this.url = url
    this.init = init
    this.subscriptions = url.searchParams.getAll('subscription')
    this.cursor = (init.headers as Record<string, string>)['last-event-id'] ?? url.searchParams.get('lastEventId') ?? ''
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

  /** Begins the response, or continues it, with entries after the cursor `previous`. */
  open (previous: string, opening: string): void {
    this.#continue(previous)
    if (this.#controller === null) {
      const body = new ReadableStream<Uint8Array>({ start: controller => { this.#controller = controller } })
      this.#settle(new Response(body, { headers: { 'content-type': 'text/event-stream' } }))
    }
    this.#write(opening)
  }

  /** Answers with a response that is no stream, or with null: there are no credentials. */
  answer (response: Response | null): void {
    if (this.#controller === null) this.#settle(response)
    else this.end()
  }

  /** Breaks the response, as a lost connection does. */
  end (): void {
    this.#controller?.error()
    this.#controller = null
    this.#fail()
  }

  /** Passes on what the client has not received. */
  push (entries: readonly Entry[]): void {
    let text = ''
    for (const entry of entries) {
      if (entry.text === '') this.#continue(entry.id!)
      else text += this.#filtered(entry)
    }
    this.#write(text)
  }

  #continue (previous: string): void {
    this.#previous = this.#begin = previous
    this.#until = this.cursor
  }

  #filtered ({ text, id }: Entry): string {
    if (this.#until !== '' && covers(this.#previous, this.#until)) this.#until = ''
    if (REPLACED.test(text) || (id !== null && isOtherLog(id, this.#until))) this.#until = ''
    if (id === null) return text
    this.#previous = id
    const withoutId = text.replace(/^id:.*\n/m, '')
    if (this.#until !== '') {
      // Between the two cursors, a replay has another order than the live stream: higher priorities are first.
      // A tab that lacks a state needs it, although its id covers nothing new.
      if ((!isIncomplete(this.#until) && covers(this.#until, id)) || this.#recent.take(withoutId, this.#begin)) return ''
      // The cursor stays: this id does not cover all that the client has received.
      return withoutId
    }
    this.cursor = id
    this.#isSettled = true
    if (/^data:/m.test(text)) this.#recent.add(withoutId, id)
    return text
  }

  #write (text: string): void {
    if (text !== '') this.#controller?.enqueue(this.#encoder.encode(text))
  }
}
