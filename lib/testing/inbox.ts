import { EventParser, type ParsedEvent } from '../client/event-parser.js'
import { TestStreamEnded, TestTimeout } from '../errors.js'

/** An event as a client receives it. */
export interface ReceivedEvent extends ParsedEvent {
  /** Name of the event; `message` without an `event:` line. Names of control events start with `sse:`. */
  readonly event: string
  /** The data parsed as JSON; undefined if it is not JSON. */
  readonly json: any
  /** Value of the `id:` line of this event; null without one. `stream.lastEventId` has the newest id of the stream. */
  readonly id: string | null
}

interface Waiter {
  look (): void
}

/** Options of an inbox. */
export interface InboxOptions {
  /** Whether the body is an event stream. */
  readonly isStream: boolean
  /** Deadline of each wait, in milliseconds. */
  readonly timeoutMs: number
  /** The cursor that the client has sent; empty for none. */
  readonly lastEventId: string
  /** Returns the stream's name and state, for the error of a failed wait. */
  describe (): string
}

const SHOWN_EVENTS = 5
const SHOWN_LETTERS = 80

/**
 * Holds what a client has received, and the pending waits. Each wait has a deadline. A failed wait rejects with a message that says what
 * was received instead.
 */
export class Inbox {
  readonly events: ReceivedEvent[] = []
  readonly comments: string[] = []
  /** The client's current cursor; empty for none. */
  lastEventId: string
  /** The last reconnection time received, in milliseconds; null for none. */
  retryMs: number | null = null
  /** Bytes of the body received. */
  receivedBytes = 0
  /** Events that no wait has returned. */
  readonly #unread: ReceivedEvent[] = []
  readonly #waiters = new Set<Waiter>()
  readonly #parser: EventParser | null
  readonly #timeoutMs: number
  readonly #describe: () => string
  #texts: string[] = []
  #isClosed = false

  constructor ({ isStream, timeoutMs, lastEventId, describe }: InboxOptions) {
    this.#timeoutMs = timeoutMs
    this.#describe = describe
    this.lastEventId = lastEventId
    this.#parser = !isStream
      ? null
      : new EventParser({
        event: parsed => {
          const event = { ...parsed, json: jsonOf(parsed.data) }
          this.events.push(event)
          this.#unread.push(event)
        },
        comment: text => { this.comments.push(text) },
        retry: ms => { this.retryMs = ms },
        lastEventId: id => { this.lastEventId = id }
      })
  }

  /** Adds received text. */
  push (text: string): void {
    this.receivedBytes += Buffer.byteLength(text)
    this.#texts.push(text)
    this.#parser?.push(text)
    this.look()
  }

  /** Ends the inbox: pending waits that are not fulfilled reject. */
  close (): void {
    this.#isClosed = true
    this.look()
  }

  /** The received text. */
  get text (): string {
    if (this.#texts.length > 1) this.#texts = [this.#texts.join('')]
    return this.#texts[0] ?? ''
  }

  /** See `TestStream.named`. */
  named (name: string): ReceivedEvent[] {
    return this.events.filter(({ event }) => event === name)
  }

  /** See `TestStream.next`. */
  next (name?: string): Promise<ReceivedEvent> {
    return this.wait(name === undefined ? 'an event' : `event ${JSON.stringify(name)}`, () => {
      const index = name === undefined ? 0 : this.#unread.findIndex(({ event }) => event === name)
      return index < 0 ? undefined : this.#unread.splice(index, 1)[0]
    })
  }

  /** See `TestStream.collect`. */
  collect (until: number | ((event: ReceivedEvent) => boolean), name?: string): Promise<ReceivedEvent[]> {
    if (typeof until === 'number') return this.wait(`${until} events${name === undefined ? '' : ` ${JSON.stringify(name)}`}`, () => this.#take(until, name))
    return this.wait(`an event for which ${until} is true`, () => {
      const index = this.#unread.findIndex(event => until(event))
      return index < 0 ? undefined : this.#unread.splice(0, index + 1)
    })
  }

  #take (count: number, name: string | undefined): ReceivedEvent[] | undefined {
    const events = (name === undefined ? this.#unread : this.#unread.filter(({ event }) => event === name)).slice(0, count)
    if (events.length < count) return undefined
    for (const event of events) this.#unread.splice(this.#unread.indexOf(event), 1)
    return events
  }

  /**
   * Waits until `look` returns a value other than undefined. It is called at once, and each time text is received.
   * @throws SSE_ERR_TEST_TIMEOUT, SSE_ERR_TEST_STREAM_ENDED
   */
  wait<T> (what: string, look: () => T | undefined): Promise<T> {
    const wait = new Promise<T>((resolve, reject) => {
      const settle = (result: () => void) => {
        clearTimeout(timer)
        this.#waiters.delete(waiter)
        result()
      }
      const waiter: Waiter = {
        look: () => {
          try {
            const found = look()
            if (found !== undefined) settle(() => resolve(found))
            else if (this.#isClosed) settle(() => reject(new TestStreamEnded(`${what}. ${this.summary()}`)))
          } catch (error) {
            settle(() => reject(error))
          }
        }
      }
      // The timer keeps the process alive, because the sockets do not.
      const timer = setTimeout(() => settle(() => reject(new TestTimeout(this.#timeoutMs, `${what}. ${this.summary()}`))), this.#timeoutMs)
      this.#waiters.add(waiter)
      waiter.look()
    })
    // A test that has failed meanwhile does not await the promise: without this handler, its rejection would be unhandled.
    wait.catch(() => {})
    return wait
  }

  /** Checks all pending waits. */
  look (): void {
    for (const waiter of this.#waiters) waiter.look()
  }

  /** Returns a summary of what was received, for errors. */
  summary (): string {
    const { events, comments, lastEventId } = this
    const shown = events.slice(-SHOWN_EVENTS).map(({ event, data }) => `${event} ${data.length > SHOWN_LETTERS ? `${data.slice(0, SHOWN_LETTERS)}…` : data}`)
    return `${this.#describe()}; ${events.length} events${shown.length === 0 ? '' : `, the last ${shown.length}: ${shown.join(' | ')}`}; ` +
      `${this.#unread.length} unread; ${comments.length} comments; last event id ${JSON.stringify(lastEventId)}`
  }
}

function jsonOf (text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
