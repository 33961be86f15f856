/** A function that is called with what has happened. */
export type Listener = (...args: any[]) => void

/** Listeners by what they listen to. */
export class Listeners {
  readonly #byKey = new Map<string, Set<Listener>>()

  /** Adds a listener, and returns the function that removes it. A listener that is added twice is called twice. */
  add (key: string, listener: Listener): () => void {
    let listeners = this.#byKey.get(key)
    if (listeners === undefined) this.#byKey.set(key, listeners = new Set())
    const own: Listener = (...args) => listener(...args)
    listeners.add(own)
    return () => { listeners.delete(own) }
  }

  /** Calls the listeners. An exception of one is reported as uncaught, and does not stop the others. */
  call (key: string, ...args: unknown[]): void {
    for (const listener of this.#byKey.get(key) ?? []) {
      try {
        listener(...args)
      } catch (error) {
        queueMicrotask(() => { throw error })
      }
    }
  }
}
