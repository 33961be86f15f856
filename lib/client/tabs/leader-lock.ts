import type { Locks } from './browser.js'

/** Decides which tab reads: the one that holds a Web Lock. The browser passes it on when a tab is closed or crashes. */
export class LeaderLock {
  readonly #locks: Locks
  readonly #name: string
  readonly #onHeld: (isHeld: boolean) => void
  #waiting = new AbortController()
  /** Releases the lock; null while this tab does not hold it. */
  #release: (() => void) | null = null
  #isLeft = true

  constructor (locks: Locks, name: string, onHeld: (isHeld: boolean) => void) {
    this.#locks = locks
    this.#name = name
    this.#onHeld = onHeld
  }

  get isHeld (): boolean {
    return this.#release !== null
  }

  /** Waits for the lock. */
  wait (): void {
    this.#isLeft = false
    this.#waiting = new AbortController()
    this.#request({ signal: this.#waiting.signal })
  }

  /** Takes the lock from the tab that holds it. */
  steal (): void {
    if (this.#isLeft) return
    // This tab has followed one that had lost the lock and did not know it yet.
    if (this.isHeld) return this.#onHeld(true)
    this.#waiting.abort()
    this.#request({ steal: true })
  }

  /** Releases the lock, and does not wait for it any more. */
  leave (): void {
    this.#isLeft = true
    this.#waiting.abort()
    this.#release?.()
    this.#release = null
  }

  #request (options: Parameters<Locks['request']>[1]): void {
    let release: (() => void) | null = null
    const held = new Promise<void>(resolve => { release = resolve })
    const request = this.#locks.request(this.#name, options, async () => {
      if (this.#isLeft) return
      this.#release = release
      this.#onHeld(true)
      await held
    })
    // It rejects when another tab steals the lock, and when this tab stops to wait.
    request.catch(() => {
      if (this.#release !== release) return
      this.#release = null
      this.#onHeld(false)
      this.wait()
    })
  }
}
