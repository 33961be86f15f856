import type { Writable } from 'node:stream'
import { StreamEnded } from '../errors.js'
import { Chunk } from '../wire/chunk.js'
import { destroyTransport, isGone, sendHead, type HttpResponse } from '../wire/http.js'
import type { Opening } from '../wire/writer.js'
import { assertCloseReason, type CloseReason } from './close-reason.js'
import type { ConnectionContext } from './context.js'
import { farewellText, greetingText } from './control-frames.js'
import { NO_POSITION, Outbound } from './outbound.js'
import { lifetimeOf } from './timing.js'

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

/** The life of a stream: how it opens, what time does to it, and how it ends. */
export abstract class Lifecycle extends Outbound {
  /** @internal */ dueAt = Infinity
  /** @internal */ slot = -1
  /** @internal */ slotIndex = 0
  readonly #response: HttpResponse
  readonly #retryMs: number
  readonly #headOnly: boolean
  /** See `Lifetime`. */
  readonly #endsAt: number
  readonly #expires: boolean
  /** By the wall clock, in milliseconds since the epoch; Infinity for rights without an end. */
  readonly #expiresAt: number
  /** Since when the stream has waited for its socket, or for a decision about rights, in time that the event loop has run. */
  #waitingSince = 0
  #abort: AbortController | null = null
  /** Whether the application has it: before, there was no chance to listen to its signal. */
  #handedOver = false
  #onOpened: ((open: boolean) => void) | null = null

  /** @internal */
  constructor (context: ConnectionContext, response: HttpResponse, { managed, headOnly, retryMs, expiresAt = Infinity }: StreamSettings) {
    super(context, response, managed)
    this.#response = response
    this.#retryMs = retryMs
    this.#headOnly = headOnly
    this.#expiresAt = expiresAt
    const { endsAt, expires } = lifetimeOf(expiresAt, context.options)
    this.#endsAt = endsAt
    this.#expires = expires
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
  close (reason: string = 'closed'): void {
    assertCloseReason(reason)
    if (this.hasEnded()) return
    this.reason = reason
    if (this.state === 'opening') return
    this.flush()
    this.state = 'closing'
    const { options: { clock, drainMs }, wheel } = this.context
    const farewell = new Chunk(farewellText(reason, this.#retryMs, drainMs, this.cursorBlock()))
    this.#waitingSince = wheel.ran
    wheel.schedule(this, clock.monotonic() + drainMs)
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
    const { eventLog, greetings, wheel } = this.context
    // A client that is behind is told its own cursor, which is not that of the log yet.
    const position = this.backlog.behind ? NO_POSITION : eventLog.position
    this.writer.open(destination, opening, greetings.of(greetingText(this.#retryMs, this.cursorBlock())))
    // What wraps the response has thrown: the stream was cut.
    if (!this.#isOpening()) return
    this.state = 'open'
    this.goLive(position)
    wheel.schedule(this, this.#nextDue(wheel.now))
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

  // --- Time ---

  /** @internal */
  onTime (now: number): void {
    const { options: { stallTimeoutMs, drainMs }, wheel } = this.context
    if (this.state === 'closing') {
      const leftMs = drainMs - this.#waitedMs()
      return leftMs > 0 ? wheel.schedule(this, now + leftMs) : this.#destroy()
    }
    if (now >= this.#endsAt) return this.close(this.#expires ? 'auth-expired' : 'max-age')
    if (!this.blocked) {
      this.#keepAlive(now)
    } else if (stallTimeoutMs > 0 && this.#waitedMs() >= stallTimeoutMs) {
      return this.isHeld ? this.close('rights-unknown' satisfies CloseReason) : this.cut('stalled')
    }
    wheel.schedule(this, this.#nextDue(now))
  }

  #keepAlive (now: number): void {
    const { options: { keepAlive, keepAliveIntervalMs }, keepAliveChunk } = this.context
    if (this.keepCursor()) return
    if (keepAlive && now - this.lastWriteAt >= keepAliveIntervalMs) this.write(keepAliveChunk)
  }

  #nextDue (now: number): number {
    const { keepAliveIntervalMs, stallTimeoutMs } = this.context.options
    const { blocked } = this
    // The idle interval starts at the last write, or at the last check of an idle connection.
    const silentSince = blocked || this.lastWriteAt + keepAliveIntervalMs <= now ? now : this.lastWriteAt
    const due = Math.min(this.#endsAt, silentSince + keepAliveIntervalMs)
    return blocked && stallTimeoutMs > 0 ? Math.min(due, now + stallTimeoutMs - this.#waitedMs()) : due
  }

  /** @internal */
  protected override onWait (): void {
    const { options: { clock, stallTimeoutMs }, wheel } = this.context
    this.#waitingSince = wheel.ran
    const stalledAt = clock.monotonic() + stallTimeoutMs
    if (stallTimeoutMs > 0 && stalledAt < this.dueAt) wheel.schedule(this, stalledAt)
  }

  /** How long the socket has had to take what was written. */
  #waitedMs (): number {
    return this.context.wheel.ran - this.#waitingSince
  }

  /** The wall clock has run ahead of the wheel's. @internal */
  onClockAhead (): void {
    if (this.context.options.clock.wall() >= this.#expiresAt) this.close('auth-expired')
  }

  // --- The end ---

  /** Destroys the stream without a close event: the client is not reading, or must not read on. @internal */
  protected override cut (reason: CloseReason): void {
    this.reason ??= reason
    this.state = 'closing'
    this.#destroy()
  }

  /** The time for a graceful end is over. @internal */
  cutShort (): void {
    if (this.state === 'closing') this.#destroy()
  }

  #destroy (): void {
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
