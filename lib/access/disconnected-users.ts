import { ownText } from '../util/text.js'

const MAX_REMEMBERED = 10_000

/** Order of `disconnectUser()` calls: a request whose authentication began before the call for its user is rejected. */
export class DisconnectedUsers {
  readonly #lastOf = new Map<string, number>()
  #count = 0
  /** The last one that is not known: it was forgotten, or never heard of, and may have been anybody's. */
  #forgotten = 0

  /** Read before authentication starts; users disconnected later are rejected. */
  get moment (): number {
    return this.#count
  }

  add (userId: string): void {
    // Last in line, wherever it was.
    this.#lastOf.delete(userId)
    this.#lastOf.set(ownText(userId), ++this.#count)
    if (this.#lastOf.size <= MAX_REMEMBERED) return
    const [[oldest, at]] = this.#lastOf as Iterable<[string, number]> as [[string, number]]
    this.#lastOf.delete(oldest)
    this.#forgotten = at
  }

  /** Users may have been disconnected without this node having heard of it. */
  miss (): void {
    this.#forgotten = ++this.#count
  }

  /** Whether the user has been disconnected since that moment; true, too, when so many have been that it cannot be known. */
  hit (userId: string, since: number): boolean {
    return since < Math.max(this.#lastOf.get(userId) ?? 0, this.#forgotten)
  }

  /** Whether that is only because it cannot be known. */
  isUnsure (userId: string, since: number): boolean {
    return since >= (this.#lastOf.get(userId) ?? 0) && since < this.#forgotten
  }
}
