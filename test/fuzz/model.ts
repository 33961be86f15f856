import assert from 'node:assert/strict'
import type { BroadcastOptions, EventPriority } from '../../lib/index.js'
import type { Block } from '../helpers/sse.js'

// What a client may, must and must not see, said in the simplest way: every event is held against every client. It
// shares no code with lib/.

export const USERS = ['ada', 'bob', null] as const
export const TOPICS = ['news', 'news:today', 'chat:1', 'chat:1:x'] as const
export const SUBSCRIPTIONS = [...TOPICS, 'news:**', 'chat:*', '*', '**'] as const

export type Lanes = readonly [number, number, number, number]

/** What a client is at a moment. */
interface Identity {
  user: string | null
  subscriptions: ReadonlySet<string>
  /** Of its connection; null while it has none that the application knows. */
  clientId: string | null
}

export interface Published {
  /** Which event this is, in the order of publishing. */
  n: number
  kind: 'logged' | 'ephemeral' | 'direct'
  /** Place in the log, 0 for none. */
  seq: number
  priority: EventPriority
  /** Events of the same one may replace each other while they wait. */
  conflation: string | null
  target: BroadcastOptions
  /** Connections that may get an event without a place in the log: those that were there. */
  audience: ReadonlySet<unknown> | null
}

function covers (subscription: string, topic: string): boolean {
  const source = subscription.split(':').map(segment => segment === '*' ? '[^:]+' : segment).join(':')
  return new RegExp(`^${source === '**' ? '.*' : source.replace(/:\*\*$/, '(:.*)?')}$`).test(topic)
}

export function isFor ({ userIds, subscriptionIds, clientIds, exceptClientIds, filter }: BroadcastOptions, { user, subscriptions, clientId }: Identity): boolean {
  if (userIds !== undefined && (user === null || !userIds.includes(user))) return false
  if (subscriptionIds !== undefined && !subscriptionIds.some(topic => [...subscriptions].some(subscription => covers(subscription, topic)))) return false
  if (clientIds !== undefined && (clientId === null || !clientIds.includes(clientId))) return false
  if (exceptClientIds !== undefined && clientId !== null && exceptClientIds.includes(clientId)) return false
  // The only filter there is.
  return filter === undefined || user === 'ada'
}

export function parseLanes (id: string): { epoch: string, lanes: Lanes } {
  const [epoch, places] = id.split('.') as [string, string]
  const numbers = places.split('~').map(place => parseInt(place, 36))
  const lanes = numbers.length === 1 ? [0, 0, 0, 0].map(() => numbers[0]!) : numbers
  assert.equal(lanes.length, 4, `id ${id}`)
  return { epoch, lanes: lanes as unknown as Lanes }
}

/** The log as the application has filled it. */
export class Journal {
  readonly events: Published[] = []
  /** Only the newest of these many are kept; Infinity when nothing is let go. */
  readonly kept: number
  readonly #maxReplayEvents: number

  constructor (kept: number, maxReplayEvents: number) {
    this.kept = kept
    this.#maxReplayEvents = maxReplayEvents
  }

  /** The newest place; not by a scan, as every block asks. */
  position = 0

  logged (event: Published, seq: number): void {
    event.seq = seq
    this.position = Math.max(this.position, seq)
  }

  /** Whether a client at `lanes` may be told that something is gone. */
  mayBeGone (reason: string, lanes: Lanes): boolean {
    const behind = this.position - Math.min(...lanes)
    if (reason === 'limit') return this.#maxReplayEvents > 0 && behind > this.#maxReplayEvents
    return reason === 'trimmed' && behind > this.kept
  }
}

type Claim = 'none' | 'possible' | 'owed'

/**
 * One reader of the log, over all its connections, from the place it was told first to the place it knows last.
 * `owed`: it must get the event, unless a newer one with its key has come, or a gap has been told that spans it.
 */
export class Reader {
  readonly #journal: Journal
  readonly #claims = new Map<Published, Claim>()
  readonly #received = new Set<Published>()
  readonly #last = [0, 0, 0, 0]
  /** Up to here it was told that something is missing. */
  #gone: Lanes = [0, 0, 0, 0]
  /** Where it began; null until it was told. */
  #base: Lanes | null = null
  readonly #from: number
  readonly #cursorIsValid: boolean
  #place: Lanes | null = null
  /** What it would come back with. */
  cursor: string | null
  gaps = 0
  /** Whether it has always read what came, so that nothing ever waited. */
  keepsUp = true
  #latest = 0

  /** @param cursor what it comes with; null for nothing. */
  constructor (journal: Journal, epoch: string, cursor: string | null, identity: Identity) {
    this.#journal = journal
    this.cursor = cursor
    this.#from = journal.position
    const valid = cursor !== null && /^[\w-]+\.[0-9a-z~]+$/.test(cursor) ? parseLanes(cursor) : null
    this.#cursorIsValid = valid?.epoch === epoch && Math.max(...valid.lanes) <= journal.position
    if (this.#cursorIsValid) this.#base = this.#place = valid!.lanes
    else if (cursor !== null) this.#base = [0, 0, 0, 0]
    if (cursor !== null) this.keepsUp = false
    for (const event of journal.events) if (event.seq > 0) this.#claims.set(event, isFor(event.target, identity) ? 'owed' : 'none')
  }

  /** An event has been published. `certain` and `possible` are what the client was, for certain and at most. */
  published (event: Published, certain: Identity, possible: Identity): void {
    this.#claims.set(event, isFor(event.target, certain) ? 'owed' : isFor(event.target, possible) ? 'possible' : 'none')
  }

  /** The client is not what it was: what it has not got yet it may get, or not get any more. */
  changed (certain: Identity, possible: Identity): void {
    for (const [event, claim] of this.#claims) {
      if (this.#received.has(event)) continue
      const now = isFor(event.target, certain) ? 'owed' : isFor(event.target, possible) ? 'possible' : 'none'
      // What it was not to get when it was published stays uncertain; what it may not get now may be on its way already.
      if (claim !== now) this.#claims.set(event, 'possible')
    }
  }

  /** It comes back: rights are those of now, and nothing is on its way from before. */
  returned (identity: Identity): void {
    this.keepsUp = false
    for (const [event, claim] of this.#claims) {
      if (this.#received.has(event)) continue
      if (!isFor(event.target, identity)) this.#claims.set(event, 'none')
      else if (claim !== 'owed') this.#claims.set(event, 'possible')
    }
  }

  take (block: Block, connection: unknown): void {
    if (block.id !== null) this.#takePlace(block)
    if (block.data === null || (block.event.startsWith('sse:') && block.event !== 'sse:gap')) return
    if (block.event === 'sse:gap') return this.#takeGap(block)
    const event = this.#journal.events[JSON.parse(block.data).n]!
    assert.ok(event !== undefined, `something nobody published: ${block.text}`)
    assert.ok(!this.#received.has(event), `${event.n} came twice`)
    if (this.keepsUp && event.conflation === null) {
      assert.ok(event.n > this.#latest, `${event.n} came after ${this.#latest}, with nothing waiting`)
      this.#latest = event.n
    }
    this.#received.add(event)
    if (event.kind !== 'logged') {
      assert.equal(block.id, null, 'an event without a place')
      assert.ok(event.audience!.has(connection), `${event.n} was not for this connection`)
      return
    }
    assert.ok(block.id !== null, 'a logged event tells its place')
    assert.ok(event.seq > 0, `${event.n} came before it was logged`)
    assert.notEqual(this.#claims.get(event) ?? 'none', 'none', `${event.n} is foreign`)
    assert.ok(event.seq > this.#last[event.priority]!, `${event.n}: order within priority ${event.priority}`)
    assert.ok(event.seq > this.#base![event.priority]!, `${event.n} is from before its place`)
    assert.ok(this.#place![event.priority]! >= event.seq, `${event.n} came with a place before it`)
    this.#last[event.priority] = event.seq
  }

  #takePlace ({ id, event, data }: Block): void {
    this.cursor = id
    const { lanes } = parseLanes(id!)
    for (const [priority, seq] of lanes.entries()) {
      assert.ok(seq <= this.#journal.position, `place ${id} has not been reached`)
      assert.ok(this.#place === null || seq >= this.#place[priority]!, `place ${id} is behind the one before`)
    }
    if (this.#base === null) {
      assert.ok(Math.min(...lanes) >= this.#from, 'a new client begins now')
      this.#base = lanes
    } else if (!this.#cursorIsValid && this.#place === null) {
      assert.equal(event, 'sse:gap', 'a cursor that leads nowhere is answered with a gap')
      assert.ok(data !== null)
    }
    if (event !== 'sse:gap') this.#place = lanes
  }

  #takeGap ({ id, data, text }: Block): void {
    this.gaps++
    const { reason } = JSON.parse(data!)
    assert.ok(id !== null, 'a gap tells where it ends')
    if (this.#cursorIsValid || this.#place !== null) assert.ok(this.#journal.mayBeGone(reason, this.#place!), `nothing is gone: ${text}`)
    else assert.ok(['malformed', 'epoch', 'unknown'].includes(reason), text)
    this.#gone = parseLanes(id).lanes
    this.#place = this.#gone
  }

  /** Everything there was has come. */
  settled (): void {
    const missing: number[] = []
    for (const [event, claim] of this.#claims) {
      if (event.kind !== 'logged' || claim !== 'owed' || this.#received.has(event)) continue
      if (event.seq <= this.#base![event.priority]! || event.seq <= this.#gone[event.priority]!) continue
      if (event.conflation !== null && this.#journal.events.some(({ conflation, seq }) => conflation === event.conflation && seq > event.seq)) continue
      missing.push(event.n)
    }
    assert.deepEqual(missing, [], 'lost')
  }
}
