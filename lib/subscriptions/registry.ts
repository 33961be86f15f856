import type { Target } from '../events/target.js'
import { MultiMap } from './multimap.js'
import { covers, isPattern } from '../events/topic.js'
import { PatternIndex } from './pattern-index.js'
import { ownText } from '../util/text.js'

/** What the registry knows of a connection. */
export interface Member {
  readonly clientId: string
  readonly userId: string | null
  /** False for a stream of its own source: broadcasts do not reach it. */
  readonly managed: boolean
  /** Changed only by the registry, once it has been added. */
  readonly held: Set<string>
  /** Place in the dense array of receivers. */
  index: number
  /** The selection that last saw it, so that one message selects it once. */
  mark: number
}

/** Who is told when subscriptions of this node change. */
export interface RegistryObserver {
  held (member: Member, subscription: string): void
  left (member: Member, subscription: string): void
}

/** Who is connected to this node: by client, by user, by topic and pattern. Never scanned to find a few. */
export class Registry<M extends Member> {
  readonly #byClient = new Map<string, M>()
  readonly #byUser = new MultiMap<M>()
  readonly #receivers: M[] = []
  readonly #bySubscription = new MultiMap<M>()
  readonly #patterns = new PatternIndex<string>()
  #observer: RegistryObserver | null = null
  #marks = 0

  get size (): number {
    return this.#byClient.size
  }

  get users (): number {
    return this.#byUser.size
  }

  get subscriptions (): number {
    return this.#bySubscription.size
  }

  observe (observer: RegistryObserver): void {
    this.#observer = observer
  }

  /** With what it holds already. */
  add (member: M): void {
    this.#byClient.set(member.clientId, member)
    if (member.userId !== null) this.#byUser.add(member.userId, member)
    if (!member.managed) return
    member.index = this.#receivers.length
    this.#receivers.push(member)
    for (const subscription of member.held) this.#subscribe(member, subscription)
  }

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

  unsubscribe (member: M, subscription: string): boolean {
    if (!member.held.delete(subscription)) return false
    this.#unsubscribe(member, subscription)
    return true
  }

  #unsubscribe (member: Member, subscription: string): void {
    if (this.#bySubscription.delete(subscription, member) === 0 && isPattern(subscription)) this.#patterns.delete(subscription)
    this.#observer?.left(member, subscription)
  }

  client (clientId: string): M | undefined {
    return this.#byClient.get(clientId)
  }

  user (userId: string): M[] {
    return this.#byUser.list(userId)
  }

  /** Those who hold exactly this topic or pattern. */
  subscription (subscription: string): M[] {
    return this.#bySubscription.list(subscription)
  }

  all (): IterableIterator<M> {
    return this.#byClient.values()
  }

  /** Who gets a message now, each once; `filter` is not applied. For everyone it is the list itself, good until somebody comes or goes. */
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
    // The narrowest index first; what else is named is then checked for each.
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

  /** Whether one connection is among those a target names; `filter` is not applied. */
  isTargeted (member: M, target: Target): boolean {
    const { userIds, subscriptionIds, clientIds, exceptClientIds } = target
    if (exceptClientIds?.includes(member.clientId) === true) return false
    if (clientIds !== undefined && !clientIds.includes(member.clientId)) return false
    if (userIds !== undefined && (member.userId === null || !userIds.includes(member.userId))) return false
    return subscriptionIds === undefined || this.#holdsAny(member, subscriptionIds)
  }

  /** Whether a connection holds the topic, or a pattern that covers it. */
  holds (member: M, topic: string): boolean {
    const { held } = member
    if (held.has(topic)) return true
    if (held.size === 0 || this.#patterns.size === 0) return false
    // A returning client asks this for each event it has missed: by the shorter list.
    const patterns = this.#patterns.match(topic)
    if (patterns.length <= held.size) return patterns.some(pattern => held.has(pattern))
    for (const subscription of held) if (covers(subscription, topic)) return true
    return false
  }

  #holdsAny (member: M, topics: readonly string[]): boolean {
    return topics.some(topic => this.holds(member, topic))
  }
}
