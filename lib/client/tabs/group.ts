import { systemClock as clock, type Timer } from '../../util/clock.js'
import type { SSEClient } from '../client.js'
import { isHidden } from '../page.js'
import type { ClientState } from '../state.js'
import { watchFreeze, type Locks } from './browser.js'
import { Leader, readAlone, type LeaderContext } from './leader.js'
import type { Join, Message } from './messages.js'
import { Reading, Recent } from './reading.js'
import { hold, Turn } from './turn.js'

/** How often a visible tab asks whether another one reads, in milliseconds. A tab that does not answer three times is replaced. */
const PING_MS = 300
const MAX_UNANSWERED = 3
const FINAL = /^event: ?sse:close\ndata:.*"reconnect":false/m

/** What a tab has while it belongs to its group. */
interface Membership {
  readonly channel: InstanceType<typeof BroadcastChannel>
  readonly turn: Turn
  /** The lock that shows the other tabs that this one exists. */
  readonly life: { readonly held: Promise<void>, release (): void }
  unwatch (): void
}

/** One tab's part in the group of tabs that share a stream. It belongs to the group from an attempt of its client until that closes or pauses. */
export class Group {
  readonly #locks: Locks
  readonly #name: string
  readonly #context: LeaderContext
  readonly #tab = crypto.randomUUID()
  readonly #recent = new Recent()
  #membership: Membership | null = null
  #client!: SSEClient<any>
  #reading: Reading | null = null
  #leader: Leader | null = null
  /** The term of the tab that reads; 0 while none is known. */
  #term = 0
  /** The next question whether another tab reads. */
  #timer: Timer | null = null
  #isHeard = false
  #unanswered = 0
  /** The subscriptions of each tab. */
  #tabs = new Map<string, readonly string[]>()
  /** The tabs whose end this tab waits for, because it reads. */
  readonly #watched = new Map<string, AbortController>()

  constructor (locks: Locks, name: string, { fetch, credentials }: Pick<LeaderContext, 'fetch' | 'credentials'>) {
    this.#locks = locks
    this.#name = name
    this.#context = {
      fetch,
      credentials,
      post: message => {
        this.#post(message)
        this.#receive(message)
      },
      union: () => new Set([...this.#tabs.values()].flat()),
      reading: () => this.#reading
    }
  }

  /** Follows the client whose attempts call `request()`. */
  serve (client: SSEClient<any>): void {
    this.#client = client
    client.onState(state => this.#become(state))
  }

  /** Returns the response to an attempt of the client: the stream that one tab reads for all. */
  async request (url: URL, init: RequestInit): Promise<Response | null> {
    const signal = init.signal!
    // A client that was closed meanwhile must not become a member again.
    signal.throwIfAborted()
    this.#membership ??= this.#enter()
    try {
      await this.#membership.life.held
    } catch {
      // A page can have locks that it may not use, such as a frame in a sandbox.
      this.#leave()
      return await readAlone(this.#context, url, init)
    }
    signal.throwIfAborted()
    const reading = this.#reading = new Reading(url, init, this.#recent)
    signal.addEventListener('abort', () => {
      reading.end()
      if (this.#reading === reading) this.#stop()
    })
    this.#join(reading)
    return await reading.response
  }

  #enter (): Membership {
    const channel = new BroadcastChannel(this.#name)
    channel.onmessage = ({ data }) => this.#receive(data as Message)
    const turn = new Turn(this.#locks, this.#name, isHeld => isHeld ? this.#lead() : this.#follow())
    turn.wait()
    this.#timer = clock.after(PING_MS, () => this.#ask())
    return {
      channel,
      turn,
      life: hold(this.#locks, this.#lifeOf(this.#tab)),
      // A frozen page still answers messages, but its requests stand still.
      unwatch: watchFreeze(() => {
        turn.leave()
        this.#follow()
      }, () => turn.wait())
    }
  }

  #leave (): void {
    if (this.#membership === null) return
    const { channel, turn, life, unwatch } = this.#membership
    this.#stop()
    this.#follow()
    this.#tabs.clear()
    this.#post({ type: 'leave', tab: this.#tab })
    this.#membership = null
    clock.cancel(this.#timer)
    unwatch()
    turn.leave()
    life.release()
    channel.close()
  }

  #become (state: ClientState): void {
    if (state.name === 'closed' || (state.name === 'waiting' && state.reason === 'hidden')) this.#leave()
    else if (state.name === 'waiting') {
      this.#stop()
      if (this.#leader !== null) this.#post({ type: 'ended', term: this.#term })
    }
  }

  /** Ends the attempt of this tab's client. */
  #stop (): void {
    this.#reading = null
    this.#leader?.stop()
  }

  /** Asks for the stream: the server if this tab reads, otherwise the tab that does. */
  #join (reading: Reading): void {
    const { cursor, subscriptions, fresh } = reading
    const join: Join = { type: 'join', tab: this.#tab, cursor, subscriptions, fresh }
    if (this.#leader === null) {
      this.#post(join)
      return
    }
    this.#setTab(this.#tab, subscriptions)
    this.#leader.owe(join)
    this.#leader.connect()
  }

  /** This tab reads for all. */
  #lead (): void {
    this.#term = Math.max(clock.wall(), this.#term + 1)
    this.#leader = new Leader(this.#term, this.#context)
    this.#announce()
    for (const tab of this.#tabs.keys()) this.#watch(tab)
    if (this.#reading !== null) this.#join(this.#reading)
  }

  /** Another tab reads, or none. */
  #follow (): void {
    this.#leader?.stop()
    this.#leader = null
    for (const watch of this.#watched.values()) watch.abort()
    this.#watched.clear()
  }

  /** Asks whether another tab reads. Timers of hidden tabs can stand still for a minute, messages do not: the tab that reads only answers. */
  #ask (): void {
    this.#timer = clock.after(PING_MS, () => this.#ask())
    const isHeard = this.#isHeard
    this.#isHeard = false
    if (isHeard || this.#leader !== null || isHidden()) this.#unanswered = 0
    else if (this.#unanswered++ < MAX_UNANSWERED) this.#post({ type: 'ping' })
    else this.#replace()
  }

  /** Takes the place of a tab that does not answer, or cannot serve this one. */
  #replace (): void {
    this.#unanswered = 0
    this.#membership?.turn.steal()
  }

  #receive (message: Message): void {
    switch (message.type) {
      case 'ping':
        if (this.#leader !== null) this.#announce()
        return
      case 'join':
        if (this.#leader === null) return
        this.#setTab(message.tab, message.subscriptions)
        this.#watch(message.tab)
        this.#leader.join(message)
        return
      case 'leave':
        this.#removeTab(message.tab)
        return
      default:
        if (message.term > this.#term && message.type === 'lead') this.#obey(message.term)
        if (message.term === this.#term) this.#hear(message)
        // The lock of a tab whose stream the server has closed for good can arrive before the tab's last message.
        else if (message.type === 'entries') this.#reading?.push(message.entries.filter(({ text }) => FINAL.test(text)))
    }
  }

  /** A tab reads that has not read before. */
  #obey (term: number): void {
    this.#term = term
    this.#follow()
    const reading = this.#reading
    if (reading === null) return
    reading.next = null
    this.#join(reading)
  }

  #hear (message: Exclude<Message, { type: 'ping' | 'join' | 'leave' }>): void {
    this.#isHeard = true
    const reading = this.#reading
    if (message.type === 'lead') this.#tabs = new Map(message.tabs)
    else if (message.type === 'entries') this.#read(message)
    else if (message.type === 'ended') {
      if (reading?.next != null) reading.end()
    } else if (message.to === this.#tab && reading !== null) {
      if (message.type === 'behind') return this.#replace()
      // Twice, if this tab has asked again when it heard which tab reads.
      if (reading.next !== null) return
      const { slice: { previous, entries, next }, opening } = message
      reading.open(previous, opening)
      reading.push(entries)
      reading.next = next
    }
  }

  #read ({ from, entries }: Extract<Message, { type: 'entries' }>): void {
    const reading = this.#reading
    if (reading === null) {
      // The stream is open again. This tab need not wait any longer.
      if (this.#client.state.name === 'waiting') this.#client.reconnect()
    } else if (this.#leader !== null) reading.push(entries)
    else if (reading.next === from) {
      reading.next += entries.length
      reading.push(entries)
    }
  }

  #post (message: Message): void {
    this.#membership?.channel.postMessage(message)
  }

  #announce (): void {
    this.#post({ type: 'lead', term: this.#term, tabs: [...this.#tabs] })
  }

  #setTab (tab: string, subscriptions: readonly string[]): void {
    this.#tabs.set(tab, subscriptions)
    this.#announce()
  }

  #removeTab (tab: string): void {
    this.#watched.get(tab)?.abort()
    this.#watched.delete(tab)
    if (!this.#tabs.delete(tab) || this.#leader === null) return
    this.#announce()
    this.#leader.serve()
  }

  /** Waits for the end of a tab, which may crash. */
  #watch (tab: string): void {
    if (tab === this.#tab || this.#watched.has(tab)) return
    const watch = new AbortController()
    this.#watched.set(tab, watch)
    this.#locks.request(this.#lifeOf(tab), { signal: watch.signal }, async () => { this.#removeTab(tab) }).catch(() => {})
  }

  #lifeOf (tab: string): string {
    return `${this.#name} ${tab}`
  }
}
