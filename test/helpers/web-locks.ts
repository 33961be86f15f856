type Held = () => Promise<void>
interface Request { held: Held, resolve (): void, reject (error: unknown): void, isStolen: boolean }

/** Web Locks as the specification says, for one process: Node.js 20 has none. Only exclusive locks, with `signal` and `steal`. */
export class WebLocks {
  readonly #queues = new Map<string, Request[]>()

  /** Returns how many requests hold the lock or wait for it. */
  count (name: string): number {
    return this.#queues.get(name)?.length ?? 0
  }

  request (name: string, { signal, steal = false }: { signal?: AbortSignal, steal?: boolean }, held: Held): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) return reject(signal.reason)
      const queue = this.#queues.get(name) ?? []
      this.#queues.set(name, queue)
      const request: Request = { held, resolve, reject, isStolen: false }
      if (steal) {
        const holder = queue.shift()
        if (holder !== undefined) {
          holder.isStolen = true
          // As in Chromium: the next holder knows before.
          setImmediate(() => setImmediate(() => holder.reject(new DOMException('The lock was stolen', 'AbortError'))))
        }
        queue.unshift(request)
      } else queue.push(request)
      signal?.addEventListener('abort', () => {
        const at = queue.indexOf(request)
        // A lock that is held is not released by the signal.
        if (at < 1) return
        queue.splice(at, 1)
        reject(signal.reason)
      })
      if (queue[0] === request) this.#grant(queue, request)
    })
  }

  #grant (queue: Request[], request: Request): void {
    setImmediate(async () => {
      await request.held()
      if (request.isStolen) return
      queue.shift()
      request.resolve()
      if (queue[0] !== undefined) this.#grant(queue, queue[0])
    })
  }
}
