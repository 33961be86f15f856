import type { Timer } from '../../util/clock.js'
import type { SSEClient } from '../client.js'
import { isHidden } from '../page.js'
import type { ClientState } from '../state.js'
import type { Locks } from './browser.js'
import { Leader, type LeaderContext } from './leader.js'
import { Membership, type Member } from './membership.js'
import type { Answer, Join, Message, Report, SentMessage } from './messages.js'
import { Reading, Recent } from './reading.js'
import { Roster } from './roster.js'

/** How often a visible tab asks whether another one reads, in milliseconds. A tab that does not answer three times is replaced. */
const PING_MS = 300
const MAX_UNANSWERED = 3
const MAX_FORMER_TERMS = 4
const FINAL = /^event: ?sse:close\ndata:.*"reconnect":false/m

/** One tab's part in the group of tabs that share a stream. It belongs to the group from an attempt of its client until that closes or pauses. */
export class Group implements LeaderContext, Member {
  readonly client: SSEClient<any>
  readonly roster: Roster
  reading: Reading | null = null
  readonly #locks: Locks
  readonly #name: string
  readonly #recent = new Recent()
  #membership: Membership | null = null
  #leader: Leader | null = null
  /** The term of the tab that reads; 0 while none is known. */
  #term = 0
  /** The terms before it, the newest first. */
  #formerTerms: readonly number[] = []
  /** The next question whether another tab reads. */
  #timer: Timer | null = null
  #unanswered = 0

  /** @param client calls `request()` for each attempt */
  constructor (locks: Locks, name: string, client: SSEClient<any>) {
    this.#locks = locks
    this.#name = name
    this.client = client
    this.roster = new Roster(locks, name)
    client.onState(state => this.#become(state))
  }

  /** Returns the response to an attempt of the client: the stream that one tab reads for all. */
  async request (url: URL, lastEventId: string, signal: AbortSignal): Promise<Response | null> {
    const isSeen = await (this.#membership ??= this.#enter()).isSeen
    // A client that was closed meanwhile has left.
    signal.throwIfAborted()
    // A page can have locks that it may not use, such as a frame in a sandbox.
    const response = isSeen ? await this.#share(new Reading(url, lastEventId, this.#recent), signal) : undefined
    if (response !== undefined) return response
    this.#leave()
    return await this.client.request(url, lastEventId, signal)
  }

  /** Returns the response that is shared; undefined if this tab is to read for itself. */
  #share (reading: Reading, signal: AbortSignal): Promise<Response | null | undefined> {
    this.reading = reading
    signal.addEventListener('abort', () => {
      reading.end()
      this.#stop()
    })
    this.#join(reading)
    return reading.response
  }

  #enter (): Membership {
    this.#timer = this.client.clock.after(PING_MS, () => this.#ask())
    return new Membership(this.#locks, this.#name, this)
  }

  #leave (): void {
    this.#stop()
    this.follow()
    this.roster.tabs = []
    this.client.clock.cancel(this.#timer)
    if (this.#membership === null) return
    this.post({ type: 'leave', tab: this.#membership.tab })
    this.#membership.leave()
    this.#membership = null
  }

  #become (state: ClientState): void {
    if (state.name === 'closed' || (state.name === 'waiting' && state.reason === 'hidden')) this.#leave()
    else if (state.name === 'waiting' && this.#leader !== null) this.post({ type: 'ended', state })
  }

  /** Ends the attempt of this tab's client. */
  #stop (): void {
    this.reading = null
    this.#leader?.stop()
  }

  /** Asks for the stream: the server if this tab reads, otherwise the tab that does. */
  #join (reading: Reading): void {
    const { tab } = this.#membership!
    const { cursor, subscriptions, fresh } = reading
    const join: Message = { type: 'join', tab, cursor, subscriptions, fresh, isRetry: this.client.isRetry }
    reading.next = null
    if (this.#leader === null) return this.post(join)
    this.#setTab(tab, subscriptions)
    this.#leader.owe(join)
    this.#leader.connect()
  }

  /** This tab reads for all. */
  lead (): void {
    // A tab that has stolen the lock twice holds it again before it hears that it has lost it: its first stream would be read for ever.
    this.follow()
    // Two tabs can begin to read in the same millisecond.
    this.#begin(Math.max(this.client.clock.wall(), this.#term + 1) + Math.random())
    this.#leader = new Leader(this)
    this.#announce()
    for (const [tab] of this.roster.tabs) this.#watch(tab)
    if (this.reading !== null) this.#join(this.reading)
  }

  /** Another tab reads, or none. */
  follow (): void {
    this.#leader?.stop()
    this.#leader = null
    this.roster.unwatch()
  }

  /** Asks whether another tab reads. Timers of hidden tabs can stand still for a minute, messages do not: the tab that reads only answers. */
  #ask (): void {
    this.#timer = this.client.clock.after(PING_MS, () => this.#ask())
    if (this.#leader !== null || (isHidden() && !this.#membership!.lock.isHeld)) this.#unanswered = 0
    else if (this.#unanswered++ < MAX_UNANSWERED) this.post({ type: 'ping' })
    else this.#replace()
  }

  /** Takes the place of the tab that reads. */
  #replace (): void {
    this.#unanswered = 0
    this.#membership?.lock.steal()
  }

  receive (message: SentMessage): void {
    switch (message.type) {
      case 'ping':
        return this.#announce()
      case 'join':
        if (this.#leader !== null) this.#answer(this.#leader, message)
        return
      case 'leave':
        return this.#removeTab(message.tab)
      default:
        if (message.term > this.#term && message.type === 'lead') this.#obey(message.term)
        if (message.term === this.#term) this.#hear(message)
        // The server can have closed a stream for good whose last message arrives only now, after the lock of its tab and after a new stream.
        else if (message.type === 'entries' && (this.reading?.next === null || this.#formerTerms.includes(message.term))) this.reading?.push(message.entries.filter(({ text }) => FINAL.test(text)))
    }
  }

  #answer (leader: Leader, join: Join): void {
    const { state } = this.client
    const { tab, subscriptions, isRetry } = join
    this.#setTab(tab, subscriptions)
    leader.join(join)
    // No tab waits for the back-off of another one when its user wants it to connect.
    if (state.name === 'waiting') this.post(isRetry ? { type: 'ended', state } : { type: 'take-over', to: tab })
  }

  /** A tab reads that has not read before. */
  #obey (term: number): void {
    this.#begin(term)
    this.follow()
    if (this.reading !== null) this.#join(this.reading)
  }

  #begin (term: number): void {
    this.#formerTerms = [this.#term, ...this.#formerTerms].slice(0, MAX_FORMER_TERMS)
    this.#term = term
  }

  #hear (message: Report): void {
    this.#unanswered = 0
    const { reading } = this
    if (message.type === 'lead') this.roster.tabs = message.tabs
    else if (message.type === 'entries') this.#read(message)
    else if (message.type === 'ended') reading?.interrupt(message.state)
    else if (message.to === this.#membership?.tab) this.#take(message)
  }

  /** Takes the answer to `join`. */
  #take (message: Answer): void {
    const { reading } = this
    // Twice, if this tab has asked again when it heard which tab reads.
    if (message.type === 'joined') {
      if (reading?.next !== null) return
      reading.open(message.slice)
      // The client is open, also if no event follows. It is the tab that reads which notices a dead connection.
      reading.push([{ text: ': stream\n\n', id: null }])
    } else if (message.type === 'alone') reading?.answer(undefined)
    // The attempt that is to take over can have ended meanwhile.
    else if (reading === null) this.client.reconnect()
    else this.#replace()
  }

  #read ({ from, entries }: Extract<Report, { type: 'entries' }>): void {
    const reading = this.reading
    if (reading === null) {
      // The stream is open again. This tab need not wait any longer.
      this.client.reconnect()
    } else if (reading.next === from) {
      reading.next += entries.length
      reading.push(entries)
    }
  }

  post (message: Message): void {
    this.#membership?.post({ ...message, term: this.#term })
  }

  /** Says that this tab reads, if it does. */
  #announce (): void {
    if (this.#leader !== null) this.post({ type: 'lead', tabs: this.roster.tabs })
  }

  #setTab (tab: string, subscriptions: readonly string[]): void {
    this.roster.set(tab, subscriptions)
    this.#watch(tab)
    this.#announce()
  }

  #removeTab (tab: string): void {
    if (!this.roster.delete(tab)) return
    this.#announce()
    this.#leader?.serve()
  }

  #watch (tab: string): void {
    if (tab !== this.#membership?.tab) this.roster.watch(tab, () => this.#removeTab(tab))
  }
}
