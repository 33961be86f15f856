import type { Frame } from '../delivery/frame.js'

/** The waiting frames of one priority in an outbox, and the positions up to which its events are read and sent. */
export class OutboxLane {
  readonly #logged = new Set<Frame>()
  /** Ephemeral frames, each with the log position at its delivery. */
  readonly #ephemeral = new Map<Frame, number>()
  /** Position up to which the client was sent this lane, while logged frames wait. */
  #sent = 0
  /** Position up to which the log was read, while the lane lags. */
  read = 0

  /** Whether no frames wait. */
  get empty (): boolean {
    return this.#logged.size === 0 && this.#ephemeral.size === 0
  }

  /** Whether logged frames wait. */
  get hasLogged (): boolean {
    return this.#logged.size > 0
  }

  /** The waiting logged frames, oldest first. */
  get logged (): Iterable<Frame> {
    return this.#logged
  }

  /** The waiting ephemeral frames, oldest first. */
  get ephemeral (): Iterable<Frame> {
    return this.#ephemeral.keys()
  }

  /** Yields all waiting frames. Those that were yielded can be removed meanwhile. */
  * all (): Generator<Frame> {
    yield * this.#logged
    yield * this.#ephemeral.keys()
  }

  /**
   * Appends a frame.
   * @param position position of the log. An ephemeral frame is sent after the events that were logged before it.
   */
  append (frame: Frame, position: number): void {
    if (frame.seq === 0) {
      this.#ephemeral.set(frame, position)
      return
    }
    if (this.#logged.size === 0) this.#sent = frame.seq - 1
    this.#logged.add(frame)
  }

  /** Removes a frame without sending it. */
  remove (frame: Frame): void {
    if (frame.seq === 0) this.#ephemeral.delete(frame)
    else this.#logged.delete(frame)
  }

  /** Removes a frame that is sent now. */
  send (frame: Frame): void {
    this.remove(frame)
    if (frame.seq > 0) this.#sent = frame.seq
  }

  /**
   * Yields the frames that can be sent, in publishing order. While the lane lags, an ephemeral frame waits until the events logged before
   * it are read.
   */
  * ready (lagging: boolean): Generator<Frame> {
    const logged = this.#logged.values()
    let next = logged.next()
    for (const [frame, behind] of this.#ephemeral) {
      for (; next.done !== true && next.value.seq <= behind; next = logged.next()) yield next.value
      if (lagging && this.read < behind) return
      yield frame
    }
    for (; next.done !== true; next = logged.next()) yield next.value
  }

  /**
   * Returns the position in this lane from which the client would resume now.
   * @param otherwise the position if no logged frame waits
   */
  seen (otherwise: number): number {
    return this.#logged.size > 0 ? this.#sent : otherwise
  }

  /** Returns the sequence number of the newest waiting logged frame, or `otherwise` if that is higher. */
  newest (otherwise: number): number {
    let newest = otherwise
    for (const { seq } of this.#logged) newest = Math.max(newest, seq)
    return newest
  }

  /** Lets ephemeral frames be sent without the logged frames before them, which were discarded. */
  unchain (): void {
    for (const frame of this.#ephemeral.keys()) this.#ephemeral.set(frame, 0)
  }
}
