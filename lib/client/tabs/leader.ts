import type { SSEClient } from '../client.js'
import type { Join, Report } from './messages.js'
import { earlier, isEmpty, isIncomplete } from './cursors.js'
import type { Reading } from './reading.js'
import { Relay, type Entry } from './relay.js'
import type { Roster } from './roster.js'

/** What the tab that reads needs of its own tab. */
export interface LeaderContext {
  readonly client: SSEClient<any>
  /** Sends a message to the other tabs. */
  post (message: Report): void
  readonly roster: Roster
  /** The attempt of this tab's client; null while it makes none. */
  readonly reading: Reading | null
}

/** Names all subscriptions in `fresh`. */
const ALL = '**'
/** Refusals below 500 that do not depend on the subscriptions. */
const GENERAL = [401, 408, 425, 429]

/** The reading of the stream for all tabs, in one of them. */
export class Leader {
  readonly #context: LeaderContext
  readonly #relay = new Relay()
  /** The subscriptions of the stream. */
  #names: ReadonlySet<string> = new Set()
  /** The number of the entry from which on it has had all of them. */
  #since = 0
  /** Subscriptions of which a tab has no state. */
  readonly #owed = new Set<string>()
  /** Those of them that the current stream was asked for. */
  #asked: ReadonlySet<string> = new Set()
  #joins: Join[] = []
  #isOpen = false
  #attempt = new AbortController()

  constructor (context: LeaderContext) {
    this.#context = context
  }

  /** Ends the stream. */
  stop (): void {
    this.#attempt.abort()
    this.#isOpen = false
  }

  /** Records what a tab has no state of. */
  owe ({ subscriptions, fresh, cursor }: Pick<Join, 'subscriptions' | 'fresh' | 'cursor'>): void {
    for (const name of !isIncomplete(cursor) ? fresh : subscriptions.length > 0 ? subscriptions : [ALL]) this.#owed.add(name)
  }

  /** Answers a tab, once the stream has what it needs. */
  join (join: Join): void {
    this.owe(join)
    this.#joins = [...this.#joins.filter(({ tab }) => tab !== join.tab), join]
    this.serve()
  }

  /** Answers the tabs that wait. Asks for the stream again, if it lacks something, or has subscriptions that no tab wants. */
  serve (): void {
    const { reading } = this.#context
    if (!this.#isOpen || reading === null) return
    if (this.#isStale()) return this.connect()
    this.#joins = this.#joins.filter(join => !this.#answer(join))
    if (this.#joins.some(({ cursor }) => isEmpty(cursor) || earlier(reading.cursor, cursor) !== null)) this.connect()
    // One of two logs was lost, and only the server knows which one. If this stream goes on, it is not its log.
    else if (this.#relay.isLive) for (const { tab } of this.#joins.splice(0)) this.#context.post({ type: 'take-over', to: tab })
  }

  /** Returns whether the relay has all that the tab needs. */
  #answer ({ tab, cursor, fresh }: Join): boolean {
    const slice = isEmpty(cursor) ? this.#relay.fromBegin() : this.#relay.after(cursor, fresh.length > 0 || isIncomplete(cursor))
    if (slice === null || slice.from < this.#since) return false
    this.#context.post({ type: 'joined', to: tab, slice })
    return true
  }

  #isStale (): boolean {
    const { union } = this.#context.roster
    return union.size !== this.#names.size || [...union].some(name => !this.#names.has(name)) ||
      (!this.#asked.has(ALL) && [...this.#owed].some(name => !this.#asked.has(name)))
  }

  /** Reads the stream, for the attempt of this tab's client. */
  connect (): void {
    this.stop()
    const { reading } = this.#context
    if (reading === null) return
    const attempt = this.#attempt = new AbortController()
    this.#read(reading, attempt.signal).catch(() => { if (!attempt.signal.aborted) reading.end() })
  }

  async #read (reading: Reading, signal: AbortSignal): Promise<void> {
    const { roster } = this.#context
    const names = roster.union
    this.#joins = this.#joins.filter(({ tab }) => roster.has(tab))
    // Where the tabs are that have joined, or an earlier position that this tab or one that waits needs.
    const cursor = [this.#relay.cursor, ...this.#joins.map(join => join.cursor)].reduce((from, other) => earlier(from, other) ?? from, reading.cursor)
    this.#asked = new Set(isIncomplete(cursor) ? [ALL] : this.#owed)
    const response = await this.#context.client.request(this.#request(reading.url, names, cursor), cursor, signal)
    if (signal.aborted) return
    if (response?.status !== 200 || response.headers.get('content-type')?.startsWith('text/event-stream') !== true) {
      if (response !== null && response.status < 500 && !GENERAL.includes(response.status) && this.#dismiss(reading)) this.connect()
      else reading.answer(response)
      return
    }
    const reader = response.body!.getReader()
    if ([...names].some(name => !this.#names.has(name))) this.#since = this.#relay.next
    this.#names = names
    this.#post(this.#relay.next, this.#relay.start(cursor))
    reading.open({ previous: cursor, entries: [], next: this.#relay.next })
    this.#isOpen = true
    this.serve()
    while (!signal.aborted) {
      const { done, value } = await reader.read()
      if (done) break
      if (!signal.aborted) this.#push(value)
    }
    if (!signal.aborted) reading.end()
  }

  /** Leaves tabs to themselves whose subscriptions the server may refuse: those that were added, otherwise those of others. */
  #dismiss ({ subscriptions }: Reading): boolean {
    for (const known of [[...subscriptions, ...this.#names], subscriptions]) {
      const others = this.#context.roster.tabs.filter(([, names]) => names.some(name => !known.includes(name)))
      for (const [tab] of others) {
        this.#context.roster.delete(tab)
        this.#context.post({ type: 'alone', to: tab })
      }
      if (others.length > 0) return true
    }
    return false
  }

  #request (base: URL, names: Iterable<string>, cursor: string): URL {
    const url = new URL(base)
    const { searchParams } = url
    for (const name of ['subscription', 'fresh', 'lastEventId']) searchParams.delete(name)
    for (const name of names) searchParams.append('subscription', name)
    if (cursor !== '') for (const name of this.#owed) searchParams.append('fresh', name)
    return url
  }

  #push (bytes: Uint8Array): void {
    const from = this.#relay.next
    const entries = this.#relay.push(bytes)
    if (entries.some(({ id }) => id !== null && !isIncomplete(id))) this.#settle()
    this.#post(from, entries)
    if (this.#joins.length > 0) this.serve()
  }

  /** The state that the stream was asked for has arrived. */
  #settle (): void {
    this.#owed.clear()
    this.#asked = new Set()
  }

  #post (from: number, entries: readonly Entry[]): void {
    if (entries.length === 0) return
    this.#context.post({ type: 'entries', from, entries })
    this.#context.reading?.push(entries)
  }
}
