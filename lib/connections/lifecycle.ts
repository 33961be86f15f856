import type { Writable } from 'node:stream'
import { StreamEnded } from '../errors.js'
import { Chunk } from '../wire/chunk.js'
import { destroyTransport, isGone, sendHead, type HttpResponse } from '../wire/http.js'
import type { Opening } from '../wire/writer.js'
import { assertCloseReason, type CloseReason } from './close-reason.js'
import type { ConnectionContext } from './context.js'
import { FAREWELL, farewellText } from './control-frames.js'
import { NO_POSITION } from './sender.js'
import { Timing } from './timing.js'

/** The settings of a stream, fixed before it opens. */
export interface StreamSettings {
  /** Whether broadcasts reach the stream; false for a stream of `reply.sse(source)`. */
  readonly managed: boolean
  /** Whether control events and a reconnection time are sent; see `SourceOptions`. */
  readonly control: boolean
  /** Whether the request is a HEAD request, whose response has no body. */
  readonly headOnly: boolean
  /** Reconnection time of the first block, in milliseconds. */
  readonly retryMs: number
  /** Time of the request by the monotonic clock, in milliseconds. */
  readonly arrivedAt: number
  /** Expiry of the user's rights in milliseconds since the Unix epoch; undefined for rights that do not expire. */
  readonly expiresAt: number | undefined
}

/** Opens and ends a stream. */
export abstract class Lifecycle extends Timing {
  /** Whether control events and a reconnection time are sent. @internal */ readonly control: boolean
  readonly #response: HttpResponse
  readonly #retryMs: number
  readonly #headOnly: boolean
  readonly #arrivedAt: number
  #abort: AbortController | null = null
  /** Whether the application has received the connection. Earlier, no listener of its signal can exist, so it must not abort. */
  #handedOver = false
  #onOpened: ((open: boolean) => void) | null = null

  /** @internal */
  constructor (context: ConnectionContext, response: HttpResponse, { managed, control, headOnly, retryMs, arrivedAt, expiresAt }: StreamSettings) {
    super(context, response, managed, expiresAt)
    this.#response = response
    this.#retryMs = retryMs
    this.#headOnly = headOnly
    this.#arrivedAt = arrivedAt
    this.control = control
  }

  /**
   * A signal that aborts when the stream ends, for any reason. Its `reason` is an error with the name `AbortError`, the code
   * SSE_ERR_STREAM_ENDED and the property `closeReason`. It aborts only after the turn of the event loop in which `reply.sse()` or
   * `createConnection()` resolves.
   * @example
   * ```ts
   * const connection = await reply.sse()
   * const timer = setInterval(() => connection.sendEvent({ data: Date.now() }), 1_000)
   * connection.signal.addEventListener('abort', () => clearInterval(timer))
   * ```
   */
  get signal (): AbortSignal {
    if (this.#abort === null) {
      this.#abort = new AbortController()
      if (this.state === 'closed' && this.#handedOver) this.#abortSignal()
    }
    return this.#abort.signal
  }

  /** The reason why the stream has ended or is closing; null while it is open. */
  get closeReason (): string | null {
    return this.reason
  }

  /**
   * Closes the stream. The events of this turn are written, then the cursor and `sse:close` with the reason. Events in the log that a
   * slow client has not received are replayed when it reconnects. Has no effect on a stream that has ended or is closing.
   * @param reason a `CloseReason`, or a reason of the application: 1 to 64 characters of `a-z`, `0-9` and `-`. Default `closed`.
   * @throws SSE_ERR_INVALID_CLOSE_REASON
   * @example
   * ```ts
   * for (const connection of app.sse.getConnectionsByUser('ada')) connection.close('kicked')
   * ```
   */
  override close (reason: string = 'closed'): void {
    assertCloseReason(reason)
    if (this.hasEnded()) return
    this.reason = reason
    if (this.state === 'opening') return
    this.flush()
    // Without `sse:close`, a client would take the orderly end of a response for the end of its source.
    if (!this.control && reason !== 'source-end') return this.cut(reason)
    this.state = 'closing'
    const { drainMs } = this.context.options
    const farewell = new Chunk(this.control ? farewellText(reason, this.retryAfter(this.#retryMs), drainMs, this.cursorBlock()) : FAREWELL)
    this.startDraining()
    this.stopSending()
    this.writer.end(farewell, reason === 'shutdown' ? drainMs : null)
  }

  /** Time since the request arrived, in milliseconds. @internal */
  get ageMs (): number {
    return this.context.options.clock.monotonic() - this.#arrivedAt
  }

  /** Handles the end of the stream. Called once. @internal */
  protected abstract onEnd (reason: string): void

  // --- From the request to the open stream ---

  /** Resolves with true when the headers are sent, and with false if the stream ends earlier. @internal */
  opened (): Promise<boolean> {
    if (this.state !== 'opening') return Promise.resolve(this.isConnected)
    return new Promise(resolve => { this.#onOpened = resolve })
  }

  /**
   * Sends the headers and the first block. Deliveries start now, after a replay from the client's cursor if there is one.
   * @param destination the response, or a stream that is piped to it, such as a compressor
   * @internal
   */
  open (destination: Writable, opening: Opening = {}): void {
    // Fastify can have answered the request meanwhile, for example after `handlerTimeout`. Then only the end of the response follows.
    if (this.state !== 'opening' || isGone(this.#response)) return
    if (this.#headOnly) return this.#openHead(opening)
    const { eventLog, greetings } = this.context
    // A client with a backlog receives its own cursor, which is not the position of the log.
    const position = this.backlog.behind ? NO_POSITION : eventLog.position
    this.writer.open(destination, opening, greetings.next(this.control ? this.#retryMs : null, this.cursorBlock()))
    // A wrapper of the response has thrown, so the stream was destroyed.
    if (!this.#isOpening()) return
    this.state = 'open'
    this.context.telemetry.onOpen(this)
    this.goLive(position)
    this.startTiming()
    this.#tellOpened(true)
    const { reason } = this
    if (reason !== null) {
      this.reason = null
      this.close(reason)
    }
  }

  // A method, because the compiler does not know that opening the writer can change the state.
  #isOpening (): boolean {
    return this.state === 'opening'
  }

  #openHead ({ headers }: Opening): void {
    this.reason = 'head'
    this.state = 'closing'
    if (headers !== undefined) sendHead(this.#response, headers)
    this.writer.endResponse()
    this.#tellOpened(false)
  }

  #tellOpened (open: boolean): void {
    const tell = this.#onOpened
    this.#onOpened = null
    tell?.(open)
  }

  /**
   * Marks that the application receives the connection. If the stream has already ended, as for a HEAD request, the signal aborts in the
   * next turn of the event loop. The application can add listeners until then. @internal
   */
  handOver (): void {
    if (this.state !== 'closed') {
      this.#handedOver = true
      return
    }
    setImmediate(() => {
      this.#handedOver = true
      this.#abortSignal()
    })
  }

  #abortSignal (): void {
    this.#abort?.abort(new StreamEnded(this.reason!))
  }

  // --- The end ---

  /** Destroys the stream without `sse:close`, because the client does not read, or must not read further. @internal */
  protected override cut (reason: string): void {
    this.reason ??= reason
    this.state = 'closing'
    this.destroy()
  }

  /** Destroys a stream that is still closing. @internal */
  cutShort (): void {
    if (this.state === 'closing') this.destroy()
  }

  /** @internal */
  protected override destroy (): void {
    this.context.wheel.schedule(this, Infinity)
    destroyTransport(this.#response, this.reason === 'shutdown')
  }

  /** Ends the connection. Every end of a stream leads here. @internal */
  finish (): void {
    if (this.state === 'closed') return
    const reason = (this.reason ??= (this.#headOnly ? 'head' : 'client') satisfies CloseReason)
    this.state = 'closed'
    this.context.wheel.cancel(this)
    this.onEnd(reason)
    this.release()
    this.#tellOpened(false)
    if (this.#handedOver) this.#abortSignal()
  }
}
