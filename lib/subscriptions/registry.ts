import type { Target } from '../events/target.js'
import { MultiMap } from './multimap.js'
import { covers, isPattern } from '../events/topic.js'
import { PatternIndex } from './pattern-index.js'
import { ownText } from '../util/text.js'

/** A connection in the registry. */
export interface Member {
  /** The id of the connection. */
  readonly clientId: string
  /** The authenticated user id; null for an anonymous connection. */
  readonly userId: string | null
  /** Whether broadcasts reach the connection; false for a stream of `reply.sse(source)`. */
  readonly managed: boolean
  /** The topics and patterns of the connection. After `add`, only the registry changes them. */
  readonly held: Set<string>
  /** Index in the array of receivers. */
  index: number
  /** Number of the last selection that included or excluded the connection, so that each selection has it once. */
  mark: number
}

/** Observes changes of the subscriptions on this node. */
export interface RegistryObserver {
  /** A connection now holds a subscription. */
  held (member: Member, subscription: string): void
  /** A connection no longer holds a subscription. */
  left (member: Member, subscription: string): void
}

/** Indexes the connections of this node by client, user, topic and pattern. A selection never scans all connections to find a few. */
export class Registry<M extends Member> {
  readonly #byClient = new Map<string, M>()
  readonly #byUser = new MultiMap<M>()
  readonly #receivers: M[] = []
  readonly #bySubscription = new MultiMap<M>()
  readonly #patterns = new PatternIndex<string>()
  #observer: RegistryObserver | null = null
  #marks = 0

  /** Number of connections. */
  get size (): number {
    return this.#byClient.size
  }

  /** Number of users with a connection. */
  get users (): number {
    return this.#byUser.size
  }

  /** Number of distinct topics and patterns that connections hold. */
  get subscriptions (): number {
    return this.#bySubscription.size
  }

  /** Sets the observer. */
  observe (observer: RegistryObserver): void {
    this.#observer = observer
  }

  /** Adds a connection with the subscriptions in its `held`. */
  add (member: M): void {
    this.#byClient.set(member.clientId, member)
    if (member.userId !== null) this.#byUser.add(member.userId, member)
    if (!member.managed) return
    member.index = this.#receivers.length
    this.#receivers.push(member)
    for (const subscription of member.held) this.#subscribe(member, subscription)
  }

  /** Removes a connection and its subscriptions. */
  remove (member: Member): void {
    if (!this.#byClient.delete(member.clientId)) return
    if (member.userId !== null) this.#byUser.delete(member.userId, member)
    if (!member.managed) return
    for (const subscription of member.held) this.#unsubscribe(member, subscription)
    member.held.clear()
    const last = this.#receivers.pop()!
    if (last as Member !== member) {
      this.#receivers[member.index] = last
      last.index = member.index
    }
  }

  /** Adds a subscription to a connection. */
  subscribe (member: M, subscription: string): void {
    if (member.held.has(subscription)) return
    const own = ownText(subscription)
    member.held.add(own)
    this.#subscribe(member, own)
  }

  #subscribe (member: M, subscription: string): void {
    if (this.#bySubscription.add(subscription, member) === 1 && isPattern(subscription)) this.#patterns.set(subscription, subscription)
    this.#observer?.held(member, subscription)
  }

  /** Removes a subscription from a connection. Returns false if the connection did not hold it. */
  unsubscribe (member: M, subscription: string): boolean {
    if (!member.held.delete(subscription)) return false
    this.#unsubscribe(member, subscription)
    return true
  }

  #unsubscribe (member: Member, subscription: string): void {
    if (this.#bySubscription.delete(subscription, member) === 0 && isPattern(subscription)) this.#patterns.delete(subscription)
    this.#observer?.left(member, subscription)
  }

  /** Returns the connection with this client id; undefined if there is none. */
  client (clientId: string): M | undefined {
    return this.#byClient.get(clientId)
  }

  /** Returns the connections of a user. */
  user (userId: string): M[] {
    return this.#byUser.list(userId)
  }

  /** Returns the connections that hold exactly this topic or pattern. */
  subscription (subscription: string): M[] {
    return this.#bySubscription.list(subscription)
  }

  /** Iterates over the topics and patterns that connections hold, with the number of their holders. */
  holders (): IterableIterator<[subscription: string, connections: number]> {
    return this.#bySubscription.counts()
  }

  /** Iterates over all connections. */
  all (): IterableIterator<M> {
    return this.#byClient.values()
  }

  /**
   * Returns the connections that match a target, each once. `filter` is not applied. Without lists in the target, the result is the
   * internal array: it is valid only until a connection is added or removed.
   */
  select (target: Target): readonly M[] {
    const { userIds, subscriptionIds, clientIds, exceptClientIds } = target
    if (userIds === undefined && subscriptionIds === undefined && clientIds === undefined && exceptClientIds === undefined) return this.#receivers
    const selected: M[] = []
    const mark = ++this.#marks
    if (exceptClientIds !== undefined) {
      for (const clientId of exceptClientIds) {
        const member = this.#byClient.get(clientId)
        if (member !== undefined) member.mark = mark
      }
    }
    // The most selective index is used first. The other lists are then checked for each connection.
    if (clientIds !== undefined) {
      for (const clientId of clientIds) {
        const member = this.#byClient.get(clientId)
        if (member !== undefined) this.#take(selected, member, mark, userIds, subscriptionIds)
      }
    } else if (userIds !== undefined) {
      for (const userId of userIds) {
        const members = this.#byUser.get(userId)
        if (members instanceof Set) for (const member of members) this.#take(selected, member, mark, undefined, subscriptionIds)
        else if (members !== undefined) this.#take(selected, members, mark, undefined, subscriptionIds)
      }
    } else if (subscriptionIds !== undefined) {
      for (const topic of subscriptionIds) {
        this.#takeHolders(selected, topic, mark)
        if (this.#patterns.size > 0) for (const pattern of this.#patterns.match(topic)) this.#takeHolders(selected, pattern, mark)
      }
    } else {
      for (const member of this.#receivers) this.#take(selected, member, mark)
    }
    return selected
  }

  #takeHolders (selected: M[], subscription: string, mark: number): void {
    const members = this.#bySubscription.get(subscription)
    if (members instanceof Set) for (const member of members) this.#take(selected, member, mark)
    else if (members !== undefined) this.#take(selected, members, mark)
  }

  #take (selected: M[], member: M, mark: number, userIds?: readonly string[], subscriptionIds?: readonly string[]): void {
    if (member.mark === mark || !member.managed) return
    if (userIds !== undefined && (member.userId === null || !userIds.includes(member.userId))) return
    if (subscriptionIds !== undefined && !this.#holdsAny(member, subscriptionIds)) return
    member.mark = mark
    selected.push(member)
  }

  /** Returns whether a connection matches a target. `filter` is not applied. */
  isTargeted (member: M, target: Target): boolean {
    const { userIds, subscriptionIds, clientIds, exceptClientIds } = target
    if (exceptClientIds?.includes(member.clientId) === true) return false
    if (clientIds !== undefined && !clientIds.includes(member.clientId)) return false
    if (userIds !== undefined && (member.userId === null || !userIds.includes(member.userId))) return false
    return subscriptionIds === undefined || this.#holdsAny(member, subscriptionIds)
  }

  /** Returns whether a connection holds the topic, or a pattern that covers it. */
  holds (member: M, topic: string): boolean {
    const { held } = member
    if (held.has(topic)) return true
    if (held.size === 0 || this.#patterns.size === 0) return false
    // A replay calls this for each missed event, so the shorter list is scanned.
    const patterns = this.#patterns.match(topic)
    if (patterns.length <= held.size) return patterns.some(pattern => held.has(pattern))
    for (const subscription of held) if (covers(subscription, topic)) return true
    return false
  }

  #holdsAny (member: M, topics: readonly string[]): boolean {
    return topics.some(topic => this.holds(member, topic))
  }
}
