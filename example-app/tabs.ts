import { firstTopics, type User } from './users.js'

const REMEMBERED_TABS = 1_000

/** One page: what it listens to now, so that it comes back to the same after a cut. */
export interface Tab {
  readonly topics: Set<string>
  /** Until when it may not come back: the cut it asked for. */
  cutUntil: number
}

/** The pages of late, by user and the name each page gave itself; the longest unseen are forgotten first. */
export class Tabs {
  readonly #tabs = new Map<string, Tab>()

  of (user: User, name: string): Tab {
    const key = `${user.id}/${name}`
    const tab = this.#tabs.get(key) ?? { topics: new Set(firstTopics(user)), cutUntil: 0 }
    this.#tabs.delete(key)
    this.#tabs.set(key, tab)
    if (this.#tabs.size > REMEMBERED_TABS) this.#tabs.delete(this.#tabs.keys().next().value!)
    return tab
  }
}
