import { ownText } from '../util/text.js'

const MAX_REMEMBERED = 10_000

/** Tracks the order of `disconnectUser()` calls: a request whose authentication began before the call for its user is rejected. */
export class DisconnectedUsers {
  readonly #lastOf = new Map<string, number>()
  #count = 0
  /** Number of the last call whose user is not known, because it was forgotten or missed. It can concern any user. */
  #forgotten = 0

  /** Number of the last call. Read before authentication starts; users that are disconnected later are rejected. */
  get moment (): number {
    return this.#count
  }

  /** Records a call. */
  add (userId: string): void {
    // Deleted first, so that the user moves to the end of the map: the oldest entry is forgotten first.
    this.#lastOf.delete(userId)
    this.#lastOf.set(ownText(userId), ++this.#count)
    if (this.#lastOf.size <= MAX_REMEMBERED) return
    const [[oldest, at]] = this.#lastOf as Iterable<[string, number]> as [[string, number]]
    this.#lastOf.delete(oldest)
    // Calls that were missed later remain unknown.
    this.#forgotten = Math.max(this.#forgotten, at)
  }

  /** Records that calls on other nodes may have been missed. */
  miss (): void {
    this.#forgotten = ++this.#count
  }

  /** Returns whether the user was disconnected after `since`. Also true if that is not known. */
  hit (userId: string, since: number): boolean {
    return since < Math.max(this.#lastOf.get(userId) ?? 0, this.#forgotten)
  }

  /** Returns whether `hit` is true only because it is not known whether the user was disconnected. */
  isUnsure (userId: string, since: number): boolean {
    return since >= (this.#lastOf.get(userId) ?? 0) && since < this.#forgotten
  }
}
