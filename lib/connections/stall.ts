import type { CloseReason } from './close-reason.js'
import { Sender } from './sender.js'

/** Cuts a client that is slow for too long: one whose socket has taken nothing for `stallTimeoutMs`. A full queue alone cuts no client. */
export abstract class Stall extends Sender {
  /** @internal */ dueAt = Infinity
  /** @internal */ slot = -1
  /** @internal */ slotIndex = 0
  /** Since when the stream has waited for its socket, or for a decision about rights, in time that the event loop has run. */
  #waitingSince = 0

  // --- What the life of the connection decides ---

  /** Ends the stream in good order. */
  abstract close (reason?: string): void
  /** See `Timed`. @internal */
  abstract onTime (now: number): void

  // --- Waiting ---

  /** @internal */
  protected startWaiting (): void {
    this.#waitingSince = this.context.wheel.ran
  }

  /** @internal */
  protected override onWait (): void {
    const { options: { clock, stallTimeoutMs }, wheel } = this.context
    this.startWaiting()
    const stalledAt = clock.monotonic() + stallTimeoutMs
    if (stallTimeoutMs > 0 && stalledAt < this.dueAt) wheel.schedule(this, stalledAt)
  }

  /** How long the socket has had to take what was written. @internal */
  protected waitedMs (): number {
    return this.context.wheel.ran - this.#waitingSince
  }

  /** When a stream that waits is to be looked at again; Infinity for one that does not. @internal */
  protected stalledAt (now: number): number {
    const { stallTimeoutMs } = this.context.options
    return this.blocked && stallTimeoutMs > 0 ? now + stallTimeoutMs - this.waitedMs() : Infinity
  }

  /** Ends the stream if it has waited for too long. Returns whether it has. @internal */
  protected cutIfStalled (): boolean {
    const { stallTimeoutMs } = this.context.options
    if (!this.blocked || stallTimeoutMs === 0 || this.waitedMs() < stallTimeoutMs) return false
    if (this.waitsForRights) this.close('rights-unknown' satisfies CloseReason)
    else this.cut('stalled')
    return true
  }
}
