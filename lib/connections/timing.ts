import type { HttpResponse } from '../wire/http.js'
import type { ConnectionContext } from './context.js'
import { Stall } from './stall.js'

/** What time does to a stream: keep-alive, the end of a user's rights, of a connection that is too old, and of one that is stalled. */
export abstract class Timing extends Stall {
  /** When the stream ends at the latest, in milliseconds of the monotonic clock. */
  readonly #endsAt: number
  /** Whether the user's rights end then, as opposed to the connection being too old. */
  readonly #expires: boolean
  /** By the wall clock, in milliseconds since the epoch; Infinity for rights without an end. */
  readonly #expiresAt: number

  /** @internal */
  constructor (context: ConnectionContext, response: HttpResponse, managed: boolean, expiresAt = Infinity) {
    super(context, response, managed)
    const { clock, maxConnectionAgeMs } = context.options
    const start = clock.monotonic()
    const expiryAt = start + expiresAt - clock.wall()
    // Spread by a fifth, so that clients that connected together do not return together.
    const tooOldAt = maxConnectionAgeMs === 0 ? Infinity : start + maxConnectionAgeMs * (0.8 + 0.2 * Math.random())
    this.#expiresAt = expiresAt
    this.#endsAt = Math.min(expiryAt, tooOldAt)
    this.#expires = expiryAt <= tooOldAt
  }

  // --- What the life of the connection decides ---

  /** Ends what carries the stream, and with it the stream. @internal */
  protected abstract destroy (): void

  // --- When it is looked at ---

  /** The stream is open. @internal */
  protected startTiming (): void {
    const { wheel } = this.context
    wheel.schedule(this, this.#nextDue(wheel.now))
  }

  /** The client has `drainMs` to take what was written. @internal */
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
    const { options: { keepAlive, keepAliveIntervalMs }, keepAliveChunk } = this.context
    if (this.keepCursor()) return
    if (keepAlive && now - this.lastWriteAt >= keepAliveIntervalMs) this.write(keepAliveChunk)
  }

  #nextDue (now: number): number {
    const { keepAliveIntervalMs } = this.context.options
    // The idle interval starts at the last write, or at the last check of an idle connection.
    const silentSince = this.blocked || this.lastWriteAt + keepAliveIntervalMs <= now ? now : this.lastWriteAt
    return Math.min(this.#endsAt, silentSince + keepAliveIntervalMs, this.stalledAt(now))
  }

  /** The wall clock has run ahead of the wheel's. @internal */
  onClockAhead (): void {
    if (this.context.options.clock.wall() >= this.#expiresAt) this.close('auth-expired')
  }
}
