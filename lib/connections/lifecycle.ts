import type { Writable } from 'node:stream'
import { StreamEnded } from '../errors.js'
import { Chunk } from '../wire/chunk.js'
import { destroyTransport, isGone, sendHead, type HttpResponse } from '../wire/http.js'
import type { Opening } from '../wire/writer.js'
import { assertCloseReason, type CloseReason } from './close-reason.js'
import type { ConnectionContext } from './context.js'
import { farewellText, greetingText } from './control-frames.js'
import { NO_POSITION } from './sender.js'
import { Timing } from './timing.js'

/** How a stream lives: set before it opens. */
export interface StreamSettings {
  /** False for a stream of its own source. */
  readonly managed: boolean
  /** A HEAD request: there is no body. */
  readonly headOnly: boolean
  readonly retryMs: number
  /** When the rights end, in milliseconds since the epoch; undefined for never. */
  readonly expiresAt: number | undefined
}

/** The life of a stream: how it opens, and how it ends. */
export abstract class Lifecycle extends Timing {
  readonly #response: HttpResponse
  readonly #retryMs: number
  readonly #headOnly: boolean
  #abort: AbortController | null = null
  /** Whether the application has it: before, there was no chance to listen to its signal. */
  #handedOver = false
  #onOpened: ((open: boolean) => void) | null = null

  /** @internal */
  constructor (context: ConnectionContext, response: HttpResponse, { managed, headOnly, retryMs, expiresAt }: StreamSettings) {
    super(context, response, managed, expiresAt)
    this.#response = response
    this.#retryMs = retryMs
    this.#headOnly = headOnly
  }

  /**
   * Aborts when the stream ends, whatever ends it. Its reason is an error with the name `AbortError`, the code SSE_ERR_STREAM_ENDED
   * and the close reason as `closeReason`. It never aborts before the turn in which `reply.sse()` or `createConnection()` resolves is over.
   */
  get signal (): AbortSignal {
    if (this.#abort === null) {
      this.#abort = new AbortController()
      if (this.state === 'closed' && this.#handedOver) this.#abortSignal()
    }
    return this.#abort.signal
  }

  /** Why the stream ended, or is ending; null while it is open. */
  get closeReason (): string | null {
    return this.reason
  }

  /**
   * Ends the stream: what waits in this turn is written, then the client's cursor and `sse:close` with the reason. Events
   * that a slow client has not read stay in the log for its return.
   * @param reason one of `CloseReason`, or the application's own: `a-z`, `0-9` and `-`, at most 64.
   * @throws SSE_ERR_INVALID_CLOSE_REASON
   */
  override close (reason: string = 'closed'): void {
    assertCloseReason(reason)
    if (this.hasEnded()) return
    this.reason = reason
    if (this.state === 'opening') return
    this.flush()
    this.state = 'closing'
    const { drainMs } = this.context.options
    const farewell = new Chunk(farewellText(reason, this.#retryMs, drainMs, this.cursorBlock()))
    this.startDraining()
    this.stopSending()
    this.writer.end(farewell, reason === 'shutdown' ? drainMs : null)
  }

  /** The stream has ended. Called once. @internal */
  protected abstract onEnd (reason: string): void

  // --- From the request to the open stream ---

  /** Resolves with true once the head is sent, with false when that will not happen any more. @internal */
  opened (): Promise<boolean> {
    if (this.state !== 'opening') return Promise.resolve(this.isConnected)
    return new Promise(resolve => { this.#onOpened = resolve })
  }

  /**
   * Sends the head and the first block, and goes live from this moment, or from the client's cursor.
   * @param destination where to write: the response, or a stream that leads to it, such as a compressor.
   * @internal
   */
  open (destination: Writable, opening: Opening = {}): void {
    // The request may have been answered in the meantime, as by a handlerTimeout: then only the end is to come.
    if (this.state !== 'opening' || isGone(this.#response)) return
    if (this.#headOnly) return this.#openHead(opening)
    const { eventLog, greetings } = this.context
    // A client that is behind is told its own cursor, which is not that of the log yet.
    const position = this.backlog.behind ? NO_POSITION : eventLog.position
    this.writer.open(destination, opening, greetings.of(greetingText(this.#retryMs, this.cursorBlock())))
    // What wraps the response has thrown: the stream was cut.
    if (!this.#isOpening()) return
    this.state = 'open'
    this.goLive(position)
    this.startTiming()
    this.#tellOpened(true)
    const { reason } = this
    if (reason !== null) {
      this.reason = null
      this.close(reason)
    }
  }

  // The compiler does not see that opening the writer may end the stream.
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
   * The application gets the connection. If its stream has ended meanwhile, as that of a HEAD request, the signal aborts a turn
   * later: whatever listens by then hears of it. @internal
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

  /** Destroys the stream without a close event: the client is not reading, or must not read on. @internal */
  protected override cut (reason: CloseReason): void {
    this.reason ??= reason
    this.state = 'closing'
    this.destroy()
  }

  /** The time for a graceful end is over. @internal */
  cutShort (): void {
    if (this.state === 'closing') this.destroy()
  }

  /** @internal */
  protected override destroy (): void {
    this.context.wheel.schedule(this, Infinity)
    destroyTransport(this.#response, this.reason === 'shutdown')
  }

  /** The one way out. @internal */
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
