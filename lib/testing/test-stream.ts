import type { IncomingMessage } from 'node:http'
import { TLSSocket } from 'node:tls'
import { TestMisuse } from '../errors.js'
import type { ReceivedEvent } from './event-parser.js'
import { Inbox } from './inbox.js'
import type { Link, Target } from './link.js'
import { MemorySocket } from './memory-socket.js'

/** How a stream ended. */
export interface StreamEnd {
  /**
   * Who ended the stream: `server` completed the response, `network` stands for a connection that broke before that, `test` for
   * `close()` and `cut()`.
   */
  readonly by: 'server' | 'network' | 'test'
  /** The reason of the last `sse:close` event; null when there was none. */
  readonly reason: string | null
  /** Whether that event asks the client to reconnect; null when there was none. */
  readonly reconnect: boolean | null
}

/** What `reconnect()` changes. Everything else is as in the `openStream()` call of the stream. */
export interface ReconnectOptions {
  /** Where to connect instead: another node, or the application that replaced the first one. */
  app?: Target
  /** Cursor to send instead of the stream's own; null for none. */
  lastEventId?: string | null
  /** Headers to send instead. */
  headers?: Record<string, string>
}

/** What a stream needs of the call that opened it. */
export interface StreamRequest {
  /** Method and path, for messages. */
  readonly label: string
  readonly timeoutMs: number
  /** Bytes per second that the client reads. */
  readonly readRate: number
  /** Called once, when the stream has ended. */
  onEnd (): void
  reopen (change: ReconnectOptions): Promise<TestStream>
}

/** Ended streams and servers that do not answer hold up no `close()` longer than this. */
const CLOSE_MS = 1_000
/** A limited rate over TCP is kept in steps of at least this length. */
const STEP_MS = 10

/**
 * One open stream, as its client sees it. Made by `openStream()`. Every wait has a deadline, and rejects with a message that says what
 * was received instead.
 */
export class TestStream implements AsyncDisposable {
  /** Status of the answer. */
  readonly status: number
  /** Headers of the answer. */
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  /** Whether the answer is an event stream: false with `allowRefusal` when it is refused by its status. */
  readonly isStream: boolean
  readonly #link: Link
  readonly #request: StreamRequest
  readonly #inbox: Inbox
  readonly #response: IncomingMessage
  #end: StreamEnd | null = null
  #frozen = false

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
      // A client keeps no connection for another request.
      this.#link.socket.destroy()
    })
  }

  /** Takes the text in steps, and reads on after the last one. */
  #takeSlowly (text: string, bytesPerSecond: number, take: (text: string) => void): void {
    const response = this.#response.pause()
    const letters = Math.max(1, Math.floor(bytesPerSecond * STEP_MS / 1000))
    const timer = setInterval(() => {
      if (this.#frozen) return
      if (text === '' || this.#end !== null) {
        clearInterval(timer)
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

  /** All events received, in order, control events (`sse:…`) included. */
  get events (): readonly ReceivedEvent[] {
    return this.#inbox.events
  }

  /** All comments received, such as `keep-alive`, in order. */
  get comments (): readonly string[] {
    return this.#inbox.comments
  }

  /** The cursor that a reconnecting client would send; empty when the server has sent none. */
  get lastEventId (): string {
    return this.#inbox.lastEventId
  }

  /** The reconnection time that the server has sent last, in milliseconds; null when it has sent none. */
  get retryMs (): number | null {
    return this.#inbox.retryMs
  }

  /** Bytes of the body received. */
  get receivedBytes (): number {
    return this.#inbox.receivedBytes
  }

  /** The body as it was received, decoded as UTF-8. */
  get text (): string {
    return this.#inbox.text
  }

  /** Body of an answer that is not a stream, parsed when it is JSON; null for a stream, and until all of it is received. See `allowRefusal`. */
  get body (): any {
    return this.isStream || this.#end === null ? null : parsed(this.#inbox.text)
  }

  /** Whether the stream has not ended. */
  get isOpen (): boolean {
    return this.#end === null
  }

  /**
   * Resolves with the first event that no `next()` or `collect()` has returned before; with a name, with the first of that name, and
   * events of other names stay unread.
   * @throws SSE_ERR_TEST_TIMEOUT when the event is not received within `timeoutMs`; SSE_ERR_TEST_STREAM_ENDED when the stream ends before it.
   */
  next (name?: string): Promise<ReceivedEvent> {
    return this.#inbox.next(name)
  }

  /**
   * Resolves with the next unread events: with a number, with that many, of any name or this one; with a function, with all up to and
   * including the first for which it returns true. To show that an event is not received, broadcast a last event and collect up to that.
   * @throws SSE_ERR_TEST_TIMEOUT, SSE_ERR_TEST_STREAM_ENDED
   */
  collect (until: (event: ReceivedEvent) => boolean): Promise<ReceivedEvent[]>
  collect (count: number, name?: string): Promise<ReceivedEvent[]>
  collect (until: number | ((event: ReceivedEvent) => boolean), name?: string): Promise<ReceivedEvent[]> {
    return this.#inbox.collect(until, name)
  }

  /** All events of this name received, in order. Reads none of them: `next()` and `collect()` return them all the same. */
  named (name: string): ReceivedEvent[] {
    return this.#inbox.named(name)
  }

  /**
   * Resolves when the condition holds. It is checked at once and whenever something is received: for what is not an event, such as
   * `stream.comments.includes('keep-alive')` or a change of `stream.lastEventId`.
   * @throws SSE_ERR_TEST_TIMEOUT, SSE_ERR_TEST_STREAM_ENDED
   */
  async until (condition: () => boolean): Promise<void> {
    await this.#inbox.wait(`what ${condition} waits for`, () => condition() || undefined)
  }

  /**
   * Resolves when the stream ends, with who ended it and the reason of `sse:close`. Each access has a deadline of its own.
   * @throws SSE_ERR_TEST_TIMEOUT
   */
  get ended (): Promise<StreamEnd> {
    return this.#inbox.wait('the end of the stream', () => this.#end ?? undefined)
  }

  /** Resolves with the first comment, or the first event when there is no comment, received ones included; or with the end of the stream. @internal */
  comment (): Promise<string | ReceivedEvent | StreamEnd> {
    return this.#inbox.wait('the first comment', () => this.comments[0] ?? this.events[0] ?? this.#end ?? undefined)
  }

  /** What the stream is, and what has become of it. */
  #describe (): string {
    const state = this.#end === null ? this.#frozen ? 'frozen' : 'open' : `ended by ${this.#end.by}${this.#end.reason === null ? '' : ` (${this.#end.reason})`}`
    return `${this.#request.label}: status ${this.status}, ${state}`
  }

  // --- Misfortune ---

  /**
   * Takes no byte any more, as a client that hangs: the server's next write waits, and so does the end of the response. Over a socket to
   * another process the kernel takes several megabytes first. Takes effect before it returns.
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

  /** Reads on after `freeze()`. */
  thaw (): void {
    if (!this.#frozen) return
    this.#frozen = false
    const { socket, serverSide } = this.#link
    if (socket instanceof MemorySocket) return socket.start()
    serverSide?.uncork()
    socket.resume()
    this.#response.resume()
  }

  /** Cuts the connection, as a network that breaks: with a reset (RST), with TLS by closing it. Resolves once a server of this process has noticed. */
  async cut (): Promise<void> {
    this.#assertOpen('cut')
    this.#finish('test')
    const { socket } = this.#link
    // Node cannot reset the connection below TLS.
    if (socket instanceof TLSSocket) socket.destroy()
    else socket.resetAndDestroy()
    await this.#gone()
  }

  /** Ends the client's half of the connection (FIN), as a client that has nothing more to say. The test still reads. */
  halfClose (): void {
    this.#assertOpen('halfClose')
    this.#link.socket.end()
  }

  /**
   * Closes the stream and opens it again as its client would: with the cursor as `Last-Event-ID`. The result is a stream of its own,
   * with no events yet.
   */
  async reconnect (change: ReconnectOptions = {}): Promise<TestStream> {
    await this.close()
    return await this.#request.reopen({ lastEventId: this.lastEventId === '' ? null : this.lastEventId, ...change })
  }

  /** Disconnects, as a client that leaves. Resolves once a server of this process has noticed; a second call does nothing. */
  async close (): Promise<void> {
    this.#finish('test')
    this.#link.socket.destroy()
    await this.#gone()
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.close()
  }

  async #gone (): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    // A server that is stopped does not notice.
    const late = new Promise<void>(resolve => { timer = setTimeout(resolve, CLOSE_MS) })
    // Bytes that were kept for a frozen client hold up the end of the connection.
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
