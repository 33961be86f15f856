import type { Locks } from './browser.js'
import { lifeOf } from './membership.js'
import type { Tabs } from './messages.js'

/** The tabs of a group, and their subscriptions. */
export class Roster {
  readonly #locks: Locks
  readonly #group: string
  #tabs = new Map<string, readonly string[]>()
  /** The tabs whose end is waited for. */
  readonly #watched = new Set<string>()
  #watch = new AbortController()

  constructor (locks: Locks, group: string) {
    this.#locks = locks
    this.#group = group
  }

  get tabs (): Tabs {
    return [...this.#tabs]
  }

  set tabs (tabs: Tabs) {
    this.#tabs = new Map(tabs)
  }

  /** The subscriptions of all tabs. */
  get union (): ReadonlySet<string> {
    return new Set([...this.#tabs.values()].flat())
  }

  has (tab: string): boolean {
    return this.#tabs.has(tab)
  }

  set (tab: string, subscriptions: readonly string[]): void {
    this.#tabs.set(tab, subscriptions)
  }

  /** Returns whether the tab was there. */
  delete (tab: string): boolean {
    this.#watched.delete(tab)
    return this.#tabs.delete(tab)
  }

  /** Waits for the end of a tab, which may crash. */
  watch (tab: string, ended: () => void): void {
    if (this.#watched.has(tab)) return
    this.#watched.add(tab)
    this.#locks.request(lifeOf(this.#group, tab), { signal: this.#watch.signal }, ended).catch(() => {})
  }

  /** Does not wait any more. */
  unwatch (): void {
    this.#watch.abort()
    this.#watch = new AbortController()
    this.#watched.clear()
  }
}
