import { firstTopics, type User } from './users.js'

const REMEMBERED_TABS = 1_000

/** A browser tab. Its subscriptions are kept, so that they are the same after a reconnect. */
export interface Tab {
  readonly topics: Set<string>
  /** End of the interruption that the page has requested, in milliseconds since the Unix epoch; 0 for none. */
  cutUntil: number
}

/** Keeps the last thousand tabs, by user and name. The least recently used tab is removed first. */
export class Tabs {
  readonly #tabs = new Map<string, Tab>()

  /** Returns the tab with this name. A new tab has the first subscriptions of the user. */
  of (user: User, name: string): Tab {
    const key = `${user.id}/${name}`
    const tab = this.#tabs.get(key) ?? { topics: new Set(firstTopics(user)), cutUntil: 0 }
    this.#tabs.delete(key)
    this.#tabs.set(key, tab)
    if (this.#tabs.size > REMEMBERED_TABS) this.#tabs.delete(this.#tabs.keys().next().value!)
    return tab
  }
}
