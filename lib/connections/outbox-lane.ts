import type { Frame } from '../delivery/frame.js'

/** One priority's part of an outbox: the frames that wait, and how far this lane of the log has been read and sent. */
export class OutboxLane {
  readonly #logged = new Set<Frame>()
  /** Each with the place in the log it was published behind. */
  readonly #ephemeral = new Map<Frame, number>()
  /** The client has seen this lane up to here: where it stands while logged frames wait. */
  #sent = 0
  /** The log has been read up to here: where the lane stands while it lags and nothing waits. */
  read = 0

  get empty (): boolean {
    return this.#logged.size === 0 && this.#ephemeral.size === 0
  }

  get hasLogged (): boolean {
    return this.#logged.size > 0
  }

  get logged (): Iterable<Frame> {
    return this.#logged
  }

  get ephemeral (): Iterable<Frame> {
    return this.#ephemeral.keys()
  }

  /** @param position where the log stands: an ephemeral frame comes after what has been logged before it. */
  append (frame: Frame, position: number): void {
    if (frame.seq === 0) {
      this.#ephemeral.set(frame, position)
      return
    }
    if (this.#logged.size === 0) this.#sent = frame.seq - 1
    this.#logged.add(frame)
  }

  remove (frame: Frame): void {
    if (frame.seq === 0) this.#ephemeral.delete(frame)
    else this.#logged.delete(frame)
  }

  send (frame: Frame): void {
    this.remove(frame)
    if (frame.seq > 0) this.#sent = frame.seq
  }

  /** The frames that may leave, in the order they were published. While the lane lags, an ephemeral one stays until what was logged before it has been read. */
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
   * The position in this lane that the client would resume from now.
   * @param otherwise where that is when no logged frame waits.
   */
  seen (otherwise: number): number {
    return this.#logged.size > 0 ? this.#sent : otherwise
  }

  /** Logged frames were discarded: ephemeral frames no longer wait for them. */
  unchain (): void {
    for (const frame of this.#ephemeral.keys()) this.#ephemeral.set(frame, 0)
  }
}
