import type { ClientHeaders, CredentialsQuestion } from '../options.js'
import type { Join, Message } from './messages.js'
import { isIncomplete } from './cursors.js'
import type { Reading } from './reading.js'
import { Relay, type Entry } from './relay.js'

/** What the tab that reads needs of its own tab. */
export interface LeaderContext {
  /** Sends a message to the other tabs, and to this one. */
  post (message: Message): void
  /** The subscriptions of all tabs. */
  union (): ReadonlySet<string>
  /** The attempt of this tab's client; null while it makes none. */
  reading (): Reading | null
  readonly fetch: typeof globalThis.fetch
  /** Returns the headers and the ticket of an attempt; null if there are no credentials. */
  credentials (question: CredentialsQuestion): Promise<{ headers: ClientHeaders, ticket: string | null } | null>
}

/** Names all subscriptions in `fresh`. */
const ALL = '**'

/** Reads the stream for one tab only. */
export async function readAlone ({ fetch, credentials }: LeaderContext, url: URL, init: RequestInit): Promise<Response | null> {
  const given = await credentials({ signal: init.signal! })
  if (given === null) return null
  const own = new URL(url)
  if (given.ticket !== null) own.searchParams.set('ticket', given.ticket)
  return await fetch(own, { ...init, headers: { ...init.headers as ClientHeaders, ...given.headers } })
}

/** The reading of the stream for all tabs, in one of them. */
export class Leader {
  readonly term: number
  readonly #context: LeaderContext
  readonly #relay = new Relay()
  /** The number of the entry from which on the stream has the events of a subscription. */
  readonly #since = new Map<string, number>()
  /** Subscriptions of which a tab has no state. */
  readonly #owed = new Set<string>()
  /** Those of them that the current stream was asked for. */
  #asked: ReadonlySet<string> = new Set()
  #joins: Join[] = []
  #isOpen = false
  #attempt = new AbortController()

  constructor (term: number, context: LeaderContext) {
    this.term = term
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
    const { tab } = join
    this.owe(join)
    this.#joins = [...this.#joins.filter(other => other.tab !== tab), join]
    this.serve()
  }

  /** Answers the tabs that wait. Asks for the stream again, if it lacks something, or has subscriptions that no tab wants. */
  serve (): void {
    if (!this.#isOpen) return
    if (this.#isStale()) {
      this.connect()
      return
    }
    for (const { tab, cursor, subscriptions, fresh } of this.#joins.splice(0)) {
      const slice = cursor === '' ? this.#relay.fromBegin() : this.#relay.after(cursor, fresh.length > 0 || isIncomplete(cursor))
      const { term } = this
      // What has no state at the tab begins with its state. The tab needs all events of the others after its cursor.
      if (slice === null || (cursor !== '' && subscriptions.some(name => !fresh.includes(name) && this.#since.get(name)! > slice.from))) this.#context.post({ type: 'behind', term, to: tab })
      else this.#context.post({ type: 'joined', term, to: tab, opening: this.#relay.opening, slice })
    }
  }

  #isStale (): boolean {
    const union = this.#context.union()
    if (union.size !== this.#since.size || [...union].some(name => !this.#since.has(name))) return true
    return !this.#asked.has(ALL) && [...this.#owed].some(name => !this.#asked.has(name))
  }

  /** Reads the stream, for the attempt of this tab's client. It continues where this tab is. */
  connect (): void {
    this.stop()
    const reading = this.#context.reading()
    if (reading === null) return
    const attempt = this.#attempt = new AbortController()
    this.#read(reading, attempt.signal).catch(() => { if (!attempt.signal.aborted) reading.end() })
  }

  async #read (reading: Reading, signal: AbortSignal): Promise<void> {
    const { cursor, init, url } = reading
    const credentials = await this.#context.credentials({ signal })
    if (signal.aborted) return
    if (credentials === null) {
      reading.answer(null)
      return
    }
    const names = this.#context.union()
    this.#asked = new Set(isIncomplete(cursor) ? [ALL] : this.#owed)
    const headers = { ...init.headers as ClientHeaders, ...credentials.headers, ...(cursor !== '' && { 'last-event-id': cursor }) }
    const response = await this.#context.fetch(this.#request(url, names, cursor, credentials.ticket), { ...init, headers, signal })
    if (signal.aborted) return
    if (response.status !== 200 || response.body === null || !/^text\/event-stream\b/i.test(response.headers.get('content-type') ?? '')) {
      reading.answer(response)
      return
    }
    const reader = response.body.getReader()
    for (const name of this.#since.keys()) if (!names.has(name)) this.#since.delete(name)
    for (const name of names) if (!this.#since.has(name)) this.#since.set(name, this.#relay.next)
    this.#post(this.#relay.next, this.#relay.start(cursor))
    reading.open(cursor, '')
    this.#isOpen = true
    this.serve()
    while (!signal.aborted) {
      const { done, value } = await reader.read()
      if (done) break
      if (!signal.aborted) this.#push(value)
    }
    if (!signal.aborted) reading.end()
  }

  #request (base: URL, names: Iterable<string>, cursor: string, ticket: string | null): URL {
    const url = new URL(base)
    const { searchParams } = url
    for (const name of ['subscription', 'fresh', 'lastEventId']) searchParams.delete(name)
    for (const name of names) searchParams.append('subscription', name)
    if (cursor !== '') for (const name of this.#owed) searchParams.append('fresh', name)
    if (ticket !== null) searchParams.set('ticket', ticket)
    return url
  }

  #push (bytes: Uint8Array): void {
    const from = this.#relay.next
    const entries = this.#relay.push(bytes)
    if (entries.some(({ id }) => id !== null && !isIncomplete(id))) this.#settle()
    this.#post(from, entries)
  }

  /** The state that the stream was asked for has arrived. */
  #settle (): void {
    if (this.#asked.has(ALL)) this.#owed.clear()
    for (const name of this.#asked) this.#owed.delete(name)
    this.#asked = new Set()
  }

  #post (from: number, entries: readonly Entry[]): void {
    if (entries.length > 0) this.#context.post({ type: 'entries', term: this.term, from, entries })
  }
}
