import type { Frame } from '../delivery/frame.js'

/** The waiting frames of an outbox by key. A newer frame with the same key replaces the older one. */
export class OutboxKeys {
  readonly #waiting = new Map<string, Frame>()
  /** Newest sequence number per key, queued while a page is read. Frames of the page with a lower one are outdated. */
  #overtaking: Map<string, number> | null = null

  /** Handles that the log is read, or that nothing of it must be read any more. */
  read (isReading: boolean): void {
    this.#overtaking = isReading ? new Map() : null
  }

  /** Returns the waiting frame that this frame replaces. */
  replacedBy ({ key }: Frame): Frame | undefined {
    return key === null ? undefined : this.#waiting.get(key)
  }

  /** Returns whether a newer frame with the same key was queued meanwhile. */
  outdates ({ key, seq }: Frame): boolean {
    return key !== null && Math.max(this.#overtaking?.get(key) ?? 0, this.#waiting.get(key)?.seq ?? 0) >= seq
  }

  add (frame: Frame): void {
    if (frame.key === null) return
    this.#waiting.set(frame.key, frame)
    if (frame.seq > 0) this.#overtaking?.set(frame.key, frame.seq)
  }

  remove ({ key }: Frame): void {
    if (key !== null) this.#waiting.delete(key)
  }
}
