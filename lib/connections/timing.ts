import type { HttpResponse } from '../wire/http.js'
import type { ConnectionContext } from './context.js'
import { pingText } from './control-frames.js'
import { Stall } from './stall.js'

/** Schedules the timed actions of a stream: keep-alives, the expiry of rights, the maximum age, and stall checks. */
export abstract class Timing extends Stall {
  /** Latest end of the stream, in milliseconds of the monotonic clock. */
  readonly #endsAt: number
  /** Whether the rights expire at `#endsAt`; false if the connection reaches its maximum age then. */
  readonly #expires: boolean
  /** Expiry of the rights in milliseconds since the Unix epoch; Infinity for rights that do not expire. */
  readonly #expiresAt: number

  /** @internal */
  constructor (context: ConnectionContext, response: HttpResponse, managed: boolean, expiresAt = Infinity) {
    super(context, response, managed)
    const { clock, maxConnectionAgeMs } = context.options
    const start = clock.monotonic()
    const expiryAt = start + expiresAt - clock.wall()
    // Reduced at random by up to a fifth, so that clients that connected together do not reconnect together.
    const tooOldAt = maxConnectionAgeMs === 0 ? Infinity : start + maxConnectionAgeMs * (0.8 + 0.2 * Math.random())
    this.#expiresAt = expiresAt
    this.#endsAt = Math.min(expiryAt, tooOldAt)
    this.#expires = expiryAt <= tooOldAt
  }

  // --- Implemented by subclasses ---

  /** Destroys the response or its socket, which ends the stream. @internal */
  protected abstract destroy (): void

  // --- Scheduling ---

  /** Starts the timers of an open stream. @internal */
  protected startTiming (): void {
    const { wheel } = this.context
    wheel.schedule(this, this.#nextDue(wheel.now))
  }

  /** Destroys a closing stream after `drainMs`, the time for the client to read the rest. @internal */
  protected startDraining (): void {
    const { options: { clock, drainMs }, wheel } = this.context
    this.startWaiting()
    wheel.schedule(this, clock.monotonic() + drainMs)
  }

  /** @internal */
  override onTime (now: number): void {
    const { options: { drainMs }, wheel } = this.context
    if (this.state === 'closing') {
      const leftMs = drainMs - this.waitedMs()
      return leftMs > 0 ? wheel.schedule(this, now + leftMs) : this.destroy()
    }
    if (now >= this.#endsAt) return this.close(this.#expires ? 'auth-expired' : 'max-age')
    if (!this.blocked) this.#keepAlive(now)
    else if (this.cutIfStalled()) return
    wheel.schedule(this, this.#nextDue(now))
  }

  #keepAlive (now: number): void {
    const { options: { keepAlive, keepAliveIntervalMs }, keepAliveChunk, cursors } = this.context
    const isSilent = now - this.lastWriteAt >= keepAliveIntervalMs
    // A source decides alone which events its client receives. The cursor is not sent before the events of this turn, which it includes.
    if (isSilent && keepAlive === 'event' && this.managed) return this.backlog.textBytes > 0 ? undefined : this.write(cursors.of(pingText(this.backlog.cursor)))
    if (this.keepCursor()) return
    if (isSilent && keepAlive !== false) this.write(keepAliveChunk)
  }

  #nextDue (now: number): number {
    const { keepAliveIntervalMs } = this.context.options
    // The idle interval starts at the last write, or at the last check of an idle connection.
    const silentSince = this.blocked || this.lastWriteAt + keepAliveIntervalMs <= now ? now : this.lastWriteAt
    return Math.min(this.#endsAt, silentSince + keepAliveIntervalMs, this.stalledAt(now))
  }

  /** Ends the stream if its rights have expired by the wall clock, which has jumped ahead. @internal */
  onClockAhead (): void {
    if (this.context.options.clock.wall() >= this.#expiresAt) this.close('auth-expired')
  }
}
