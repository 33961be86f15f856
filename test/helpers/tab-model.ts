import type { SSEClient } from '../../lib/client/index.js'
import { shareTabs } from '../../lib/client/tabs.js'
import type { EventPriority } from '../../lib/index.js'
import type { TabPage } from './tab-page.js'

/** What was published: each event has a number of its own. */
export class Published {
  readonly events: { readonly topic: string, readonly priority: EventPriority }[] = []

  add (topic: string, priority: EventPriority): number {
    return this.events.push({ topic, priority }) - 1
  }

  /** The number of the last event of a topic; -1 without one. */
  last (topic: string): number {
    return this.events.findLastIndex(event => event.topic === topic)
  }
}

/** A tab, and what its client has received: compared with what was published. */
export class Tab {
  readonly page: TabPage
  readonly client: SSEClient<any>
  readonly faults: string[] = []
  gaps = 0
  /** What the page shows: the last number of each topic, whether from a state or an event. */
  readonly shown = new Map<string, number>()
  readonly #published: Published
  readonly #seen = new Set<number>()
  /** The newest event of each priority and topic. */
  readonly #newest = new Map<string, number>()
  /** For each subscription the first number that must arrive; null until the client was open. */
  readonly #from = new Map<string, number | null>()
  #isAfterGap = false
  readonly log: string[] = []

  constructor (page: TabPage, url: string, subscriptions: string[], pauseWhenHidden: boolean, published: Published, losses: () => number) {
    this.page = page
    this.#published = published
    this.client = page.run(() => shareTabs(url, { user: 'ada', subscriptions, pauseWhenHidden, fetch: page.fetch, maxRetryMs: 150, timeoutMs: 5_000 }))
    this.#follow(subscriptions, null)
    const { client } = this
    client.on('n', n => this.#event(n))
    client.on('state', state => {
      this.#isAfterGap = false
      this.log.push(`state ${JSON.stringify(state)}`)
      for (const [topic, n] of Object.entries(state)) {
        this.shown.set(topic, n as number)
        if (this.#from.has(topic)) this.#from.set(topic, Math.max(this.#from.get(topic) ?? 0, n as number + 1))
      }
    })
    client.onGap(gap => {
      this.log.push(`gap ${JSON.stringify(gap)}`)
      // A gap whose stream ends before the next event is told again. Tabs that connect at the same time share it.
      if (!this.#isAfterGap) this.gaps++
      this.#isAfterGap = true
      if (this.gaps > losses()) this.faults.push(`${this.gaps} gaps, ${losses()} losses`)
      for (const topic of this.#from.keys()) this.#from.set(topic, published.events.length)
    })
    client.onState(state => {
      this.log.push(state.name)
      if (state.name !== 'open') return
      for (const [topic, from] of this.#from) this.#from.set(topic, from ?? published.events.length)
    })
  }

  #follow (subscriptions: readonly string[], from: number | null): void {
    for (const topic of this.#from.keys()) if (!subscriptions.includes(topic)) this.#from.delete(topic)
    for (const topic of subscriptions) if (!this.#from.has(topic)) this.#from.set(topic, from)
  }

  subscribe (subscriptions: string[]): void {
    this.log.push(`subscribe ${subscriptions}`)
    // A client that was never open begins with the newest event.
    this.#follow(subscriptions, [...this.#from.values()].includes(null) ? null : this.#published.events.length)
    this.page.run(() => this.client.setSubscriptions(subscriptions))
  }

  #event (n: number): void {
    this.#isAfterGap = false
    this.log.push(`${n}`)
    const { topic, priority } = this.#published.events[n]!
    if (this.#seen.has(n)) this.faults.push(`${n} of ${topic} twice`)
    this.#seen.add(n)
    this.shown.set(topic, Math.max(this.shown.get(topic) ?? -1, n))
    if (!this.#from.has(topic)) return
    const lane = `${topic} ${priority}`
    if (n < (this.#newest.get(lane) ?? -1)) this.faults.push(`${n} of ${lane} after ${this.#newest.get(lane)}`)
    this.#newest.set(lane, n)
  }

  /** What is missing. */
  missing (): string[] {
    return this.#published.events.flatMap(({ topic }, n) => {
      const from = this.#from.get(topic)
      return from !== undefined && from !== null && n >= from && !this.#seen.has(n) ? [`${n} of ${topic}`] : []
    })
  }

  get subscriptions (): string[] {
    return [...this.#from.keys()]
  }
}
