import type { MessageOf, Saying } from './node-message.js'
import { covers, isPattern } from '../events/topic.js'
import type { Clock, Timer } from '../util/clock.js'

/** Maximum number of entries in one message between nodes. */
const ENTRIES_PER_MESSAGE = 500

/** The options of presence events; see `SSEOptions`. */
export interface PresenceOptions {
  readonly topics: readonly string[]
  readonly lingerMs: number
}

/** The functions of the node that the list uses. */
export interface PresenceHost {
  /** Publishes a message to all nodes. */
  say (saying: Saying): void
  /** Sends `sse:join` or `sse:leave` to the connections of this node that receive events of the topic. */
  announce (event: 'join' | 'leave', topic: string, userId: string): void
}

/** Key of an entry, which is a user in a topic: both, separated by a line end. Topics do not contain line ends. */
type Key = string

/**
 * The users in the watched topics, on all nodes. Every node keeps the full list and applies all changes in log order. So all nodes agree
 * when a user joins and leaves, and each node announces it to its own connections.
 */
export class PresenceList {
  readonly #clock: Clock
  readonly #topics: readonly string[]
  readonly #lingerMs: number
  readonly #host: PresenceHost
  /** Number of connections of this node for each entry. */
  readonly #here = new Map<Key, number>()
  /** Changes of this node that are not published yet. */
  readonly #changes = new Map<Key, boolean>()
  /** By topic and user, the nodes with a connection. Users stay in the map until their leave is announced. */
  readonly #places = new Map<string, Map<string, Set<string>>>()
  /** Entries without a node, with the time at which the leave is announced, oldest first. */
  readonly #leaving = new Map<Key, number>()
  /** Nodes that have sent their full list, with the number of their entries. */
  readonly #nodes = new Map<string, number>()
  /** By node that is sending its full list: earlier entries that the new list does not contain so far. */
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

  /** Number of entries of this node. */
  get size (): number {
    return this.#here.size
  }

  // --- Connections of this node: the observer of the registry ---

  /** Handles that a connection holds a subscription. */
  held ({ userId }: { readonly userId: string | null }, subscription: string): void {
    if (userId === null || !this.#watches(subscription)) return
    const key = keyOf(subscription, userId)
    const count = this.#here.get(key) ?? 0
    this.#here.set(key, count + 1)
    if (count === 0) this.#change(key, true)
  }

  /** Handles that a connection no longer holds a subscription. */
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

  /** Returns whether a subscription is a watched topic. The holder of a pattern receives events of a topic, but is not present in it. */
  #watches (subscription: string): boolean {
    return !isPattern(subscription) && this.#topics.some(pattern => covers(pattern, subscription))
  }

  #change (key: Key, present: boolean): void {
    this.#changes.set(key, present)
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => this.flush())
  }

  /** Publishes the changes of this node. */
  flush (): void {
    this.#scheduled = false
    const changes = Array.from(this.#changes, ([key, present]): [string, string, boolean] => [...partsOf(key), present])
    this.#changes.clear()
    for (let i = 0; i < changes.length; i += ENTRIES_PER_MESSAGE) this.#host.say({ kind: 'presence', changes: changes.slice(i, i + ENTRIES_PER_MESSAGE) })
  }

  /** Publishes the full list of this node. */
  tellAll (): void {
    this.flush()
    const entries = Array.from(this.#here.keys(), partsOf)
    for (let i = 0; i === 0 || i < entries.length; i += ENTRIES_PER_MESSAGE) {
      this.#host.say({ kind: 'present', first: i === 0, more: i + ENTRIES_PER_MESSAGE < entries.length, entries: entries.slice(i, i + ENTRIES_PER_MESSAGE) })
    }
    const now = this.#clock.monotonic()
    const leaving = Array.from(this.#leaving, ([key, due]): [string, string, number] => [...partsOf(key), Math.max(0, due - now)])
    for (let i = 0; i < leaving.length; i += ENTRIES_PER_MESSAGE) this.#host.say({ kind: 'leaving', entries: leaving.slice(i, i + ENTRIES_PER_MESSAGE) })
  }

  // --- All nodes, in log order ---

  /**
   * Returns the announced users of a topic, and how many nodes hold each: `sse:join` was sent for them on this node, and `sse:leave` was
   * not. A user whom no node holds may still return unannounced.
   * @param only the nodes that may hold them; absent: any
   */
  announced (topic: string, only?: readonly string[]): Map<string, number> {
    const users = new Map<string, number>()
    for (const [userId, nodes] of this.#places.get(topic) ?? []) {
      if (only === undefined || [...nodes].every(nodeId => only.includes(nodeId))) users.set(userId, nodes.size)
    }
    return users
  }

  /** Applies changes of a node. */
  changed ({ from, changes }: MessageOf<'presence'>): void {
    for (const [topic, userId, present] of changes) {
      if (present) this.#add(from, keyOf(topic, userId), true)
      else this.#remove(from, keyOf(topic, userId))
    }
  }

  /**
   * Applies a part of the full list of a node. Entries of an unknown node are announced only if `established` is true: the node was
   * removed before, and its users were announced as left. Otherwise the users were present before this node started.
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

  /** Returns whether changes of a node were lost: it reports another number of entries than this node has counted. */
  misses (nodeId: string, count: number): boolean {
    return this.#nodes.get(nodeId) !== count
  }

  /**
   * Adds users who had left before this node started, and may return unannounced. Without them, a list that this node returns would lack
   * a user who returns, for good.
   */
  lingering ({ entries }: MessageOf<'leaving'>): void {
    const now = this.#clock.monotonic()
    const leaving = [...this.#leaving]
    for (const [topic, userId, restMs] of entries) {
      let users = this.#places.get(topic)
      if (users === undefined) this.#places.set(topic, users = new Map())
      if (users.has(userId)) continue
      users.set(userId, new Set())
      leaving.push([keyOf(topic, userId), now + Math.min(restMs, this.#lingerMs)])
    }
    this.#leaving.clear()
    for (const [key, due] of leaving.sort(([, one], [, other]) => one - other)) this.#leaving.set(key, due)
    // An added entry can be due before the timer.
    this.#stop()
    this.#wait()
  }

  /** Removes the entries of a node that has ended. */
  gone (nodeId: string): void {
    for (const key of this.#of(nodeId)) this.#remove(nodeId, key)
    this.#nodes.delete(nodeId)
    this.#stale.delete(nodeId)
  }

  /** Publishes the last changes of this node, and stops announcements. */
  close (): void {
    this.flush()
    this.#stop()
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
    // `setImmediate`: after a blocked event loop, messages about users who have returned are read first.
    const timer = this.#timer = this.#clock.after(Math.max(1, due - this.#clock.monotonic()), () => setImmediate(() => {
      if (this.#timer !== timer) return
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
    timer.unref()
  }

  #stop (): void {
    this.#clock.cancel(this.#timer)
    this.#timer = null
  }
}

function keyOf (topic: string, userId: string): Key {
  return `${topic}\n${userId}`
}

function partsOf (key: Key): [topic: string, userId: string] {
  const end = key.indexOf('\n')
  return [key.slice(0, end), key.slice(end + 1)]
}
