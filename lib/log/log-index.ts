import { isPattern } from '../events/topic.js'
import type { Target } from '../events/target.js'
import { Postings } from './postings.js'

/** The connection for which the log is read. */
export interface Interest {
  /** Id of the connection. */
  readonly clientId: string
  /** User id; null for an anonymous connection. */
  readonly userId: string | null
  /** The topics and patterns that the connection holds. */
  readonly subscriptions: ReadonlySet<string>
}

/** Most keys have one message: it stands for the list of it, to save memory. */
type Lists = Map<string, number | Postings>

/** Maximum number of ids by which a message is indexed. A message with more is in the list of those that every reader looks at. */
const MAX_IDS = 8
/** Maximum number of lists that a read merges. For a connection with more subscriptions, scanning the log is cheaper. */
const MAX_LISTS = 160
/** Segments of a topic by which patterns find it. */
const MAX_PREFIX = 2

/**
 * Finds the messages of the log that a connection can receive, without a look at all others. A message is listed by each topic and
 * by the first segments of it, or by user or client if it has no topics. The result can contain more messages than the connection
 * receives, and never lacks one.
 */
export class LogIndex {
  readonly #topics: Lists = new Map()
  /** By the first one and two segments of topics, for patterns. */
  readonly #prefixes: Lists = new Map()
  readonly #users: Lists = new Map()
  readonly #clients: Lists = new Map()
  /** Messages that any connection can receive. */
  readonly #others = new Postings()

  /** Returns whether a connection can be served without a scan of the log. */
  static serves ({ subscriptions }: Interest): boolean {
    if (subscriptions.size > MAX_LISTS) return false
    for (const subscription of subscriptions) if (isPattern(subscription) && literalPrefix(subscription) === '') return false
    return true
  }

  /** Adds a message that is newer than all others. Returns in how many lists it is. */
  add (seq: number, target: Target): number {
    let count = 0
    if (!this.#each(target, (lists, key) => {
      count++
      const list = lists.get(key)
      if (list === undefined || list === seq) lists.set(key, seq)
      else if (typeof list === 'number') lists.set(key, new Postings(list, seq))
      else list.add(seq)
    })) this.#others.add(seq)
    return Math.max(1, count)
  }

  /** Removes the oldest message. */
  remove (seq: number, target: Target): void {
    if (!this.#each(target, (lists, key) => {
      const list = lists.get(key)
      if (list === seq || (typeof list === 'object' && list.removeOldest(seq) === 0)) lists.delete(key)
    })) this.#others.removeOldest(seq)
  }

  /** Returns the lists that contain all messages the connection can receive. The connection is one that the index `serves()`. */
  lists ({ clientId, userId, subscriptions }: Interest): Postings[] {
    const found = [this.#others]
    const want = (list: number | Postings | undefined) => { if (list !== undefined) found.push(typeof list === 'number' ? new Postings(list) : list) }
    want(this.#clients.get(clientId))
    if (userId !== null) want(this.#users.get(userId))
    for (const subscription of subscriptions) {
      if (isPattern(subscription)) want(this.#prefixes.get(literalPrefix(subscription)))
      else want(this.#topics.get(subscription))
    }
    return found
  }

  /** Calls `visit` for each list of a message. Returns false if it belongs to the list for all connections. */
  #each ({ subscriptionIds, userIds, clientIds }: Target, visit: (lists: Lists, key: string) => void): boolean {
    const ids = subscriptionIds ?? userIds ?? clientIds
    if (ids === undefined || ids.length > MAX_IDS) return false
    const lists = subscriptionIds !== undefined ? this.#topics : userIds !== undefined ? this.#users : this.#clients
    for (const id of ids) {
      visit(lists, id)
      if (lists !== this.#topics) continue
      let end = id.indexOf(':')
      for (let segments = 1; segments < MAX_PREFIX && end >= 0; segments++) {
        visit(this.#prefixes, id.slice(0, end))
        end = id.indexOf(':', end + 1)
      }
      visit(this.#prefixes, end < 0 ? id : id.slice(0, end))
    }
    return true
  }
}

/** Returns the segments before the first wildcard, at most as many as topics are listed by; an empty text if there are none. */
function literalPrefix (pattern: string): string {
  const segments = pattern.split(':')
  const wildcard = segments.findIndex(segment => segment.includes('*'))
  return segments.slice(0, Math.min(wildcard, MAX_PREFIX)).join(':')
}
