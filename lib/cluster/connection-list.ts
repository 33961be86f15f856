import { Buffer } from 'node:buffer'
import { addressOf } from '../access/address.js'
import type { SSEConnection } from '../connections/connection.js'
import { isPattern } from '../events/topic.js'
import type { Registry } from '../subscriptions/registry.js'
import { portions } from '../util/long-list.js'
import { compare, formatPosition, parsePosition, type ListedConnection, type NodePage, type Position, type ResolvedQuery } from './connection-page.js'

/** Number of connections that are looked at in one turn of the event loop. */
const SCANNED_PER_TURN = 1_000
/** Maximum size of the connections that a node lists, in bytes of JSON. A page is then shorter than its limit. */
const MAX_ANSWER_BYTES = 256 * 1024
const MAX_LISTED_SUBSCRIPTIONS = 32
/** Length to which texts are cut that clients and applications can choose. */
const MAX_TEXT_LENGTH = 256

interface Found extends Position {
  readonly connection: SSEConnection
}

/** Lists the connections of this node. */
export class ConnectionList {
  readonly #nodeId: string
  readonly #registry: Registry<SSEConnection>

  constructor (nodeId: string, registry: Registry<SSEConnection>) {
    this.#nodeId = nodeId
    this.#registry = registry
  }

  /** Returns the first connections after the position of a query. */
  async page (query: ResolvedQuery): Promise<NodePage> {
    const { limit, after } = query
    const start = after === null ? null : parsePosition(after)
    let found: Found[] = []
    let total = 0
    let rest = 0
    for await (const portion of portions(this.#candidates(query), SCANNED_PER_TURN)) {
      for (const connection of portion) {
        // A connection can end between the portions.
        if (this.#registry.client(connection.clientId) !== connection || !this.#matches(connection, query)) continue
        total++
        const position = { connection, connectedAt: connection.clientInfo.connectedAt, clientId: connection.clientId }
        if (start !== null && compare(position, start) <= 0) continue
        rest++
        found.push(position)
        if (found.length >= 2 * limit) found = found.sort(compare).slice(0, limit)
      }
    }
    const connections = this.#facts(found.sort(compare).slice(0, limit))
    return { connections, total, until: connections.length < rest ? formatPosition(connections.at(-1)!) : null }
  }

  /** Returns the connections of the narrowest index. Those of a client id are exactly that connection. */
  #candidates ({ clientId, userId, subscription }: ResolvedQuery): Iterable<SSEConnection> {
    const registry = this.#registry
    if (clientId !== undefined) return [registry.client(clientId)].filter(connection => connection !== undefined)
    if (typeof userId === 'string') return registry.user(userId)
    if (subscription === undefined) return registry.all()
    return isPattern(subscription) ? registry.subscription(subscription) : registry.select({ subscriptionIds: [subscription] })
  }

  #matches (connection: SSEConnection, { userId, subscription, address, lagging }: ResolvedQuery): boolean {
    if (userId !== undefined && connection.userId !== userId) return false
    if (subscription !== undefined && !(isPattern(subscription) ? connection.subscriptions.has(subscription) : this.#registry.holds(connection, subscription))) return false
    const { ip } = connection.clientInfo
    if (address !== undefined && ip !== address && addressOf(ip) !== address) return false
    return lagging === undefined || connection.stats().lagging === lagging
  }

  #facts (found: readonly Found[]): NodePage['connections'] {
    const connections: NodePage['connections'] = []
    let bytes = 0
    for (const { connection } of found) {
      const facts = { nodeId: this.#nodeId, ...factsOf(connection) }
      bytes += Buffer.byteLength(JSON.stringify(facts))
      if (bytes > MAX_ANSWER_BYTES && connections.length > 0) break
      connections.push(facts)
    }
    return connections
  }
}

function factsOf (connection: SSEConnection): Omit<ListedConnection, 'nodeId' | 'subscriptions'> & { subscriptions: string[] } {
  const { clientId, userId, subscriptions, managed, clientInfo: { connectedAt, ip, userAgent }, resumed } = connection
  const { lagging, queuedBytes, sentEvents, droppedEvents } = connection.stats()
  const listed: string[] = []
  for (const subscription of subscriptions) {
    if (listed.length === MAX_LISTED_SUBSCRIPTIONS) break
    listed.push(subscription)
  }
  return { clientId, userId, subscriptions: listed, subscriptionCount: subscriptions.size, managed, connectedAt, address: ip, userAgent: userAgent.slice(0, MAX_TEXT_LENGTH), resumed, lagging, queuedBytes, sentEvents, droppedEvents }
}
