/** A map with several members per key. Most keys have one member, which is stored without a set to save memory. */
export class MultiMap<M extends object> {
  readonly #entries = new Map<string, M | Set<M>>()

  /** Number of keys. */
  get size (): number {
    return this.#entries.size
  }

  /** Returns the single member of a key, the set of its members, or undefined. Hot paths iterate it without a copy. */
  get (key: string): M | Set<M> | undefined {
    return this.#entries.get(key)
  }

  /** Returns the members of a key as a new array. */
  list (key: string): M[] {
    const found = this.#entries.get(key)
    if (found === undefined) return []
    return found instanceof Set ? [...found] : [found]
  }

  /** Iterates over the keys, with the number of members of each. */
  * counts (): IterableIterator<[key: string, count: number]> {
    for (const [key, found] of this.#entries) yield [key, found instanceof Set ? found.size : 1]
  }

  /** Returns the number of members of a key. */
  count (key: string): number {
    const found = this.#entries.get(key)
    if (found === undefined) return 0
    return found instanceof Set ? found.size : 1
  }

  /** Adds a member to a key. Returns the new number of members. */
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

  /** Removes a member from a key. Returns the number of remaining members. */
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
