/** Members by key. Most keys have one: it stands there by itself, a set is made for the second. */
export class MultiMap<M extends object> {
  readonly #entries = new Map<string, M | Set<M>>()

  /** How many keys have members. */
  get size (): number {
    return this.#entries.size
  }

  /** The member of this key, or the set of them: a hot path walks it without a copy. */
  get (key: string): M | Set<M> | undefined {
    return this.#entries.get(key)
  }

  list (key: string): M[] {
    const found = this.#entries.get(key)
    if (found === undefined) return []
    return found instanceof Set ? [...found] : [found]
  }

  count (key: string): number {
    const found = this.#entries.get(key)
    if (found === undefined) return 0
    return found instanceof Set ? found.size : 1
  }

  /** Returns how many members the key has now. */
  add (key: string, member: M): number {
    const found = this.#entries.get(key)
    if (found instanceof Set) return found.add(member).size
    if (found === undefined || found === member) {
      this.#entries.set(key, member)
      return 1
    }
    this.#entries.set(key, new Set([found, member]))
    return 2
  }

  /** Returns how many members the key has left. */
  delete (key: string, member: object): number {
    const found: object | undefined = this.#entries.get(key)
    if (found instanceof Set) {
      found.delete(member)
      if (found.size === 0) this.#entries.delete(key)
      return found.size
    }
    if (found === member) this.#entries.delete(key)
    return this.count(key)
  }
}
