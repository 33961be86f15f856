import type { IncomingMessage } from 'node:http'
import { TLSSocket } from 'node:tls'
import { TestMisuse } from '../errors.js'
import { Inbox, type ReceivedEvent } from './inbox.js'
import type { Link, Target } from './link.js'
import { MemorySocket } from './memory-socket.js'

/** How a stream ended. */
export interface StreamEnd {
  /** Which side ended the stream. `server`: the response is complete. `network`: the connection broke before that. `test`: `close()` or `cut()`. */
  readonly by: 'server' | 'network' | 'test'
  /** Reason of the last `sse:close` event; null without one. */
  readonly reason: string | null
  /** Whether that event asks the client to reconnect; null without one. */
  readonly reconnect: boolean | null
}

/** Changes of `reconnect()` to the options of the stream's `openStream()` call. */
export interface ReconnectOptions {
  /** The application, server or URL to connect to, such as another node or a restarted application. Default: as before. */
  app?: Target
  /** Cursor to send; null for none. Default: the cursor of the stream. */
  lastEventId?: string | null
  /** Headers to send. Default: as before. */
  headers?: Record<string, string>
}

/** Data of the `openStream()` call that a stream needs. */
export interface StreamRequest {
  /** Method and path, for error messages. */
  readonly label: string
  readonly timeoutMs: number
  /** Read rate of the client in bytes per second; Infinity for no limit. */
  readonly readRate: number
  /** Called once, when the stream has ended. */
  onEnd (): void
  reopen (change: ReconnectOptions): Promise<TestStream>
}

/** Time in milliseconds that `close()` and `cut()` wait for the server at most. */
const CLOSE_MS = 1_000
/** Minimum interval between two parts of a rate-limited read over TCP, in milliseconds. */
const STEP_MS = 10

/**
 * An event stream, as its client receives it. `openStream()` creates it. Every wait has a deadline: option `timeoutMs`. A failed wait rejects with a
 * message that says what was received instead.
 */
export class TestStream implements AsyncDisposable {
  /** Status of the response. */
  readonly status: number
  /** Headers of the response. */
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  /** Whether the response is an event stream. False for a request that was refused by status, see `allowRefusal`. */
  readonly isStream: boolean
  readonly #link: Link
  readonly #request: StreamRequest
  readonly #inbox: Inbox
  readonly #response: IncomingMessage
  #end: StreamEnd | null = null
  #frozen = false
  /** Whether received text is still processed at the limited rate. The response is paused until then. */
  #isBehind = false

  /** @internal */
  constructor (link: Link, response: IncomingMessage, request: StreamRequest, lastEventId: string) {
    this.#link = link
    this.#request = request
    this.#response = response
    this.status = response.statusCode!
    this.headers = response.headers
    this.isStream = this.status === 200 && /^text\/event-stream\b/.test(response.headers['content-type'] ?? '')
    this.#inbox = new Inbox({ isStream: this.isStream, timeoutMs: request.timeoutMs, lastEventId, describe: () => this.#describe() })
    this.#read(response)
  }

  #read (response: IncomingMessage): void {
    const { readRate } = this.#request
    const { socket } = this.#link
    if (socket instanceof MemorySocket) socket.limit(readRate)
    response.setEncoding('utf8')
    const take = (text: string): void => this.#inbox.push(text)
    response.on('data', readRate === Infinity || socket instanceof MemorySocket ? take : (text: string) => this.#takeSlowly(text, readRate, take))
    response.on('error', () => {})
    response.on('close', () => {
      this.#finish(response.complete ? 'server' : 'network')
      // The client does not reuse the connection.
      this.#link.socket.destroy()
    })
  }

  /** Processes the text in parts at the limited rate, and then continues to read. */
  #takeSlowly (text: string, bytesPerSecond: number, take: (text: string) => void): void {
    const response = this.#response.pause()
    this.#isBehind = true
    const letters = Math.max(1, Math.floor(bytesPerSecond * STEP_MS / 1000))
    const timer = setInterval(() => {
      if (this.#frozen) return
      if (text === '' || this.#end !== null) {
        clearInterval(timer)
        this.#isBehind = false
        response.resume()
        return
      }
      take(text.slice(0, letters))
      text = text.slice(letters)
    }, Math.max(STEP_MS, 1000 / bytesPerSecond)).unref()
  }

  #finish (by: StreamEnd['by']): void {
    if (this.#end !== null) return
    const close = this.events.findLast(({ event }) => event === 'sse:close')?.json
    this.#end = { by, reason: close?.reason ?? null, reconnect: close?.reconnect ?? null }
    this.#request.onEnd()
    this.#inbox.close()
  }

  /** All events received, in order, including control events (`sse:…`). */
  get events (): readonly ReceivedEvent[] {
    return this.#inbox.events
  }

  /** All comments received, in order, such as `keep-alive`. */
  get comments (): readonly string[] {
    return this.#inbox.comments
  }

  /** The cursor that a reconnecting client would send; empty if the server has sent none. */
  get lastEventId (): string {
    return this.#inbox.lastEventId
  }

  /** The last reconnection time received, in milliseconds; null for none. */
  get retryMs (): number | null {
    return this.#inbox.retryMs
  }

  /** Number of bytes of the body received. */
  get receivedBytes (): number {
    return this.#inbox.receivedBytes
  }

  /** The body received so far, decoded as UTF-8. */
  get text (): string {
    return this.#inbox.text
  }

  /** Body of a response that is not a stream, parsed if it is JSON; null for a stream and for an incomplete body. See `allowRefusal`. */
  get body (): any {
    return this.isStream || this.#end === null ? null : parsed(this.#inbox.text)
  }

  /** Whether the stream is open. */
  get isOpen (): boolean {
    return this.#end === null
  }

  /**
   * Resolves with the first unread event: one that no `next()` or `collect()` has returned.
   * @param name returns the first unread event with this name; other events stay unread. Default: any name.
   * @throws SSE_ERR_TEST_TIMEOUT when the event is not received within `timeoutMs`; SSE_ERR_TEST_STREAM_ENDED when the stream ends before it
   */
  next (name?: string): Promise<ReceivedEvent> {
    return this.#inbox.next(name)
  }

  /**
   * Resolves with the next unread events: up to and including the first for which `until` returns true. To verify that an event
   * is not received, broadcast a last event and collect up to it. @throws SSE_ERR_TEST_TIMEOUT, SSE_ERR_TEST_STREAM_ENDED
   */
  collect (until: (event: ReceivedEvent) => boolean): Promise<ReceivedEvent[]>
  /** Resolves with the next `count` unread events, or with those of this name. @throws SSE_ERR_TEST_TIMEOUT, SSE_ERR_TEST_STREAM_ENDED */
  collect (count: number, name?: string): Promise<ReceivedEvent[]>
  collect (until: number | ((event: ReceivedEvent) => boolean), name?: string): Promise<ReceivedEvent[]> {
    return this.#inbox.collect(until, name)
  }

  /** Returns all events received with this name, in order. They stay unread for `next()` and `collect()`. */
  named (name: string): ReceivedEvent[] {
    return this.#inbox.named(name)
  }

  /**
   * Resolves when the condition is true. It is checked at once, and each time data is received. Use it for what is not an event, such as
   * `stream.comments.includes('keep-alive')` or a change of `stream.lastEventId`.
   * @throws SSE_ERR_TEST_TIMEOUT, SSE_ERR_TEST_STREAM_ENDED
   */
  async until (condition: () => boolean): Promise<void> {
    await this.#inbox.wait(`what ${condition} waits for`, () => condition() || undefined)
  }

  /**
   * Resolves when the stream ends, with the side that ended it and the reason of `sse:close`. Each access starts a new deadline.
   * @throws SSE_ERR_TEST_TIMEOUT
   */
  get ended (): Promise<StreamEnd> {
    return this.#inbox.wait('the end of the stream', () => this.#end ?? undefined)
  }

  /** Resolves with the first comment; if there is none, with the first event or the end of the stream. @internal */
  comment (): Promise<string | ReceivedEvent | StreamEnd> {
    return this.#inbox.wait('the first comment', () => this.comments[0] ?? this.events[0] ?? this.#end ?? undefined)
  }

  /** Describes the request and the state of the stream, for error messages. */
  #describe (): string {
    const state = this.#end === null ? this.#frozen ? 'frozen' : 'open' : `ended by ${this.#end.by}${this.#end.reason === null ? '' : ` (${this.#end.reason})`}`
    return `${this.#request.label}: status ${this.status}, ${state}`
  }

  // --- Faults ---

  /**
   * Stops reading, as a client that hangs: the server's next write waits, and so does the end of the response. Takes effect immediately. For a server
   * in another process, the kernel first buffers several megabytes. @throws SSE_ERR_TEST_MISUSE when the stream has ended
   */
  freeze (): void {
    this.#assertOpen('freeze')
    if (this.#frozen) return
    this.#frozen = true
    const { socket, serverSide } = this.#link
    if (socket instanceof MemorySocket) return socket.stop()
    this.#response.pause()
    socket.pause()
    serverSide?.cork()
  }

  /** Continues to read after `freeze()`. */
  thaw (): void {
    if (!this.#frozen) return
    this.#frozen = false
    const { socket, serverSide } = this.#link
    if (socket instanceof MemorySocket) return socket.start()
    serverSide?.uncork()
    socket.resume()
    // Later text would be mixed with it.
    if (!this.#isBehind) this.#response.resume()
  }

  /**
   * Breaks the connection with a reset (RST), as a failing network does; a TLS connection is closed. Resolves when a server of this process has
   * noticed. @throws SSE_ERR_TEST_MISUSE when the stream has ended
   */
  async cut (): Promise<void> {
    this.#assertOpen('cut')
    this.#finish('test')
    const { socket } = this.#link
    // Node.js cannot reset the TCP connection below TLS.
    if (socket instanceof TLSSocket) socket.destroy()
    else socket.resetAndDestroy()
    await this.#gone()
  }

  /** Ends the client's half of the connection (FIN), and continues to read. @throws SSE_ERR_TEST_MISUSE when the stream has ended */
  halfClose (): void {
    this.#assertOpen('halfClose')
    this.#link.socket.end()
  }

  /**
   * Closes the stream, and opens it again with its cursor as `Last-Event-ID`. Resolves with a new stream, which has only the events received since
   * then.
   * @throws as `openStream()`
   */
  async reconnect (change: ReconnectOptions = {}): Promise<TestStream> {
    await this.close()
    return await this.#request.reopen({ lastEventId: this.lastEventId === '' ? null : this.lastEventId, ...change })
  }

  /** Disconnects. Resolves when a server of this process has noticed. A second call does nothing. */
  async close (): Promise<void> {
    this.#finish('test')
    this.#link.socket.destroy()
    await this.#gone()
  }

  /** Calls `close()`, for `await using`. */
  async [Symbol.asyncDispose] (): Promise<void> {
    await this.close()
  }

  async #gone (): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    // A server of a frozen process does not notice.
    const late = new Promise<void>(resolve => { timer = setTimeout(resolve, CLOSE_MS) })
    // Bytes that `freeze()` keeps in the server would delay the end of the connection.
    if (this.#frozen) this.#link.serverSide?.uncork()
    await Promise.race([this.#link.serverSide?.closed(), late])
    clearTimeout(timer)
  }

  #assertOpen (call: string): void {
    if (this.#end !== null) throw new TestMisuse(`${call}() needs an open stream. ${this.#inbox.summary()}`)
  }
}

function parsed (text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}
