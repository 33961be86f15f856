import type { CloseReason } from './close-reason.js'
import { StateFirst } from './state-first.js'

/** Destroys a stream whose socket has accepted no byte for `stallTimeoutMs`. A full queue alone is no reason. */
export abstract class Stall extends StateFirst {
  /** @internal */ dueAt = Infinity
  /** @internal */ slot = -1
  /** @internal */ slotIndex = 0
  /** Start of the wait for the socket or an authorization, in running time of the event loop. */
  #waitingSince = 0

  // --- Implemented by subclasses ---

  /** The authenticated user id; null for an anonymous connection. */
  abstract readonly userId: string | null
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

  /** Returns the time since the wait started, in milliseconds. @internal */
  protected waitedMs (): number {
    return this.context.wheel.ran - this.#waitingSince
  }

  /** Returns the time of the next stall check; Infinity for a stream that does not wait. @internal */
  protected stalledAt (now: number): number {
    const { stallTimeoutMs } = this.context.options
    return this.blocked && stallTimeoutMs > 0 ? now + stallTimeoutMs - this.waitedMs() : Infinity
  }

  /** Ends the stream if it has waited for `stallTimeoutMs`. Returns whether it was ended. @internal */
  protected cutIfStalled (): boolean {
    const { options: { stallTimeoutMs }, stalled, unanswered } = this.context
    if (!this.blocked || stallTimeoutMs === 0 || this.waitedMs() < stallTimeoutMs) return false
    const { clientId, userId } = this
    if (this.waitsForRights) {
      unanswered.add({ clientId, userId })
      this.close('rights-unknown' satisfies CloseReason)
    } else {
      const { queuedBytes, lagging } = this.stats()
      stalled.add({ clientId, userId, queuedBytes, lagging })
      this.cut('stalled' satisfies CloseReason)
    }
    return true
  }
}
