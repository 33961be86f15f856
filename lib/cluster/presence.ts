import type { MessageOf, Saying } from './node-message.js'
import { covers, isPattern } from '../events/topic.js'
import type { Clock, Timer } from '../util/clock.js'

/** Entries of one message between nodes. */
const ENTRIES_PER_MESSAGE = 500

export interface PresenceOptions {
  readonly topics: readonly string[]
  readonly lingerMs: number
}

/** What the list needs of its node. */
export interface PresenceHost {
  say (saying: Saying): void
  /** Tells those connections of this node that hear the topic. */
  announce (event: 'join' | 'leave', topic: string, userId: string): void
}

/** A place is a user in a topic; its key is both, apart by a line end, which no topic has. */
type Key = string

/**
 * Which users are in which of the watched topics, on all nodes. Every node keeps the whole list and reads the changes to it
 * in the order of the log, so all agree who came first and who left last, and each tells its own connections.
 */
export class PresenceList {
  readonly #clock: Clock
  readonly #topics: readonly string[]
  readonly #lingerMs: number
  readonly #host: PresenceHost
  /** Connections of this node at each place. */
  readonly #here = new Map<Key, number>()
  /** What the other nodes have not been told yet. */
  readonly #changes = new Map<Key, boolean>()
  /** By topic and user, the nodes that hold the place: those who are announced, and whose leaving is not. */
  readonly #places = new Map<string, Map<string, Set<string>>>()
  /** Places that nobody holds any more, and until when somebody may come back, in order. */
  readonly #leaving = new Map<Key, number>()
  /** Nodes that have told all they have, and of how many places each is one. */
  readonly #nodes = new Map<string, number>()
  /** Of a node that is telling all it has: what it has not told again so far. */
  readonly #stale = new Map<string, Set<Key>>()
  #timer: Timer | null = null
  #scheduled = false

  constructor (clock: Clock, { topics, lingerMs }: PresenceOptions, nodeId: string, host: PresenceHost) {
    this.#clock = clock
    this.#topics = topics
    this.#lingerMs = lingerMs
    this.#host = host
    this.#nodes.set(nodeId, 0)
  }

  /** How many places this node holds. */
  get size (): number {
    return this.#here.size
  }

  // --- This node's connections, told by the registry ---

  held ({ userId }: { readonly userId: string | null }, subscription: string): void {
    if (userId === null || !this.#watches(subscription)) return
    const key = keyOf(subscription, userId)
    const count = this.#here.get(key) ?? 0
    this.#here.set(key, count + 1)
    if (count === 0) this.#change(key, true)
  }

  left ({ userId }: { readonly userId: string | null }, subscription: string): void {
    if (userId === null || !this.#watches(subscription)) return
    const key = keyOf(subscription, userId)
    const rest = this.#here.get(key)! - 1
    if (rest > 0) {
      this.#here.set(key, rest)
    } else {
      this.#here.delete(key)
      this.#change(key, false)
    }
  }

  /** Who holds a pattern hears a topic, but is not in it. */
  #watches (subscription: string): boolean {
    return !isPattern(subscription) && this.#topics.some(pattern => covers(pattern, subscription))
  }

  #change (key: Key, present: boolean): void {
    this.#changes.set(key, present)
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => this.flush())
  }

  /** Tells all nodes what has changed. */
  flush (): void {
    this.#scheduled = false
    const changes = Array.from(this.#changes, ([key, present]): [string, string, boolean] => [...partsOf(key), present])
    this.#changes.clear()
    for (let i = 0; i < changes.length; i += ENTRIES_PER_MESSAGE) this.#host.say({ kind: 'presence', changes: changes.slice(i, i + ENTRIES_PER_MESSAGE) })
  }

  /** Tells all nodes all that this one has. */
  tellAll (): void {
    this.flush()
    const entries = Array.from(this.#here.keys(), partsOf)
    for (let i = 0; i === 0 || i < entries.length; i += ENTRIES_PER_MESSAGE) {
      this.#host.say({ kind: 'present', first: i === 0, more: i + ENTRIES_PER_MESSAGE < entries.length, entries: entries.slice(i, i + ENTRIES_PER_MESSAGE) })
    }
  }

  // --- All nodes, in the order of the log ---

  /** Who is in a topic by what the connections of this node have been told. */
  usersOf (topic: string): Iterable<string> {
    return this.#places.get(topic)?.keys() ?? []
  }

  changed ({ from, changes }: MessageOf<'presence'>): void {
    for (const [topic, userId, present] of changes) {
      if (present) this.#add(from, keyOf(topic, userId), true)
      else this.#remove(from, keyOf(topic, userId))
    }
  }

  /**
   * A node tells all it has. That is no news to a node that has just come: the users were there before. To others it is,
   * also of a node that they do not know: it was taken for dead, and its users have left.
   */
  listed ({ from, first, more, entries }: MessageOf<'present'>, established: boolean): void {
    const known = this.#nodes.has(from)
    if (first) this.#stale.set(from, this.#of(from))
    const stale = this.#stale.get(from)
    for (const [topic, userId] of entries) {
      const key = keyOf(topic, userId)
      this.#add(from, key, known || established)
      stale?.delete(key)
    }
    if (more) return
    this.#stale.delete(from)
    for (const key of stale ?? []) this.#remove(from, key)
    if (!known) this.#nodes.set(from, this.#of(from).size)
  }

  /** Whether a node that says it holds so many places has told something that did not arrive. */
  misses (nodeId: string, count: number): boolean {
    return this.#nodes.get(nodeId) !== count
  }

  gone (nodeId: string): void {
    for (const key of this.#of(nodeId)) this.#remove(nodeId, key)
    this.#nodes.delete(nodeId)
    this.#stale.delete(nodeId)
  }

  close (): void {
    this.#clock.cancel(this.#timer)
    this.#leaving.clear()
  }

  #of (nodeId: string): Set<Key> {
    const keys = new Set<Key>()
    for (const [topic, users] of this.#places) for (const [userId, nodes] of users) if (nodes.has(nodeId)) keys.add(keyOf(topic, userId))
    return keys
  }

  #add (nodeId: string, key: Key, news: boolean): void {
    const [topic, userId] = partsOf(key)
    let users = this.#places.get(topic)
    if (users === undefined) this.#places.set(topic, users = new Map())
    const nodes = users.get(userId)
    if (nodes?.has(nodeId) === true) return
    this.#count(nodeId, 1)
    if (nodes !== undefined) {
      nodes.add(nodeId)
      this.#leaving.delete(key)
      return
    }
    users.set(userId, new Set([nodeId]))
    if (news) this.#host.announce('join', topic, userId)
  }

  #remove (nodeId: string, key: Key): void {
    const [topic, userId] = partsOf(key)
    const nodes = this.#places.get(topic)?.get(userId)
    if (nodes?.delete(nodeId) !== true) return
    this.#count(nodeId, -1)
    if (nodes.size > 0) return
    this.#leaving.set(key, this.#clock.monotonic() + this.#lingerMs)
    this.#wait()
  }

  #count (nodeId: string, change: number): void {
    const count = this.#nodes.get(nodeId)
    if (count !== undefined) this.#nodes.set(nodeId, count + change)
  }

  #wait (): void {
    const [due] = this.#leaving.values()
    if (this.#timer !== null || due === undefined) return
    // Whoever came back while the event loop stood still has yet to be read.
    this.#timer = this.#clock.after(Math.max(1, due - this.#clock.monotonic()), () => setImmediate(() => {
      this.#timer = null
      const now = this.#clock.monotonic()
      for (const [key, due] of this.#leaving) {
        if (due > now) break
        this.#leaving.delete(key)
        const [topic, userId] = partsOf(key)
        const users = this.#places.get(topic)!
        users.delete(userId)
        if (users.size === 0) this.#places.delete(topic)
        this.#host.announce('leave', topic, userId)
      }
      this.#wait()
    }))
    this.#timer.unref()
  }
}

function keyOf (topic: string, userId: string): Key {
  return `${topic}\n${userId}`
}

function partsOf (key: Key): [topic: string, userId: string] {
  const end = key.indexOf('\n')
  return [key.slice(0, end), key.slice(end + 1)]
}
