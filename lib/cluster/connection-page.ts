import { Type, type Static } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import { assertSubscription } from '../events/topic.js'
import { resolve } from '../util/option-schema.js'

/** The filters and the page of `listConnections()`. A connection must match every filter that is given. */
export interface ConnectionQuery {
  /** Only the connection with this id. */
  clientId?: string
  /** Only connections of this user; null: only anonymous connections. */
  userId?: string | null
  /** A topic: only connections that hold the topic, or a pattern that covers it. A pattern: only connections that hold exactly this pattern. */
  subscription?: string
  /** Only connections from this IP address, or from this IPv6 network in the form `2001:db8:1:2::/64`, as `maxConnectionsPerIp` counts them. */
  address?: string
  /** `true`: only connections that are lagging; `false`: only those that are not. */
  lagging?: boolean
  /** Maximum number of connections of the page, 1 to 1,000. Default 100. */
  limit?: number
  /** The `after` of the page before; null for the first page. Default null. */
  after?: string | null
}

const Count = Type.Integer({ minimum: 0 })
const Text = Type.String()
const OrNull = <T extends ReturnType<typeof Type.String> | ReturnType<typeof Type.Boolean>>(schema: T) => Type.Union([schema, Type.Null()])

const only = 'A filter that is undefined would list connections of everyone.'
const QuerySchema = Type.Object({
  clientId: Type.Optional(Type.String({ maxLength: 256, protects: true, description: only })),
  userId: Type.Optional(Type.Union([Type.String(), Type.Null()], { protects: true, description: only })),
  subscription: Type.Optional(Type.String({ maxLength: 512, protects: true, description: only })),
  address: Type.Optional(Type.String({ maxLength: 64, protects: true, description: only })),
  lagging: Type.Optional(Type.Boolean({ description: '`true` lists connections that are lagging, `false` the others.' })),
  limit: Type.Integer({ minimum: 1, maximum: 1_000, default: 100, description: 'Maximum number of connections of the page.' }),
  after: Type.Union([Type.String({ pattern: '^\\d{1,16}:[\\w-]{1,64}$', rule: 'must be the `after` of an earlier page' }), Type.Null()], { default: null })
}, { additionalProperties: false })

const compiled = TypeCompiler.Compile(QuerySchema)

/** A query with its defaults, as nodes receive it. */
export type ResolvedQuery = Static<typeof QuerySchema>
export { QuerySchema as ConnectionQuerySchema }

/** Validates a query. @throws SSE_ERR_INVALID_OPTION, SSE_ERR_INVALID_SUBSCRIPTION */
export function resolveQuery (given: unknown): ResolvedQuery {
  const query = resolve(QuerySchema, compiled, given, { where: 'of listConnections() ' })
  if (query.subscription !== undefined) assertSubscription(query.subscription)
  return query
}

const ListedSchema = Type.Object({
  clientId: Text,
  nodeId: Text,
  userId: OrNull(Type.String()),
  subscriptions: Type.Array(Text),
  subscriptionCount: Count,
  managed: Type.Boolean(),
  connectedAt: Count,
  address: Text,
  userAgent: Text,
  resumed: OrNull(Type.Boolean()),
  lagging: Type.Boolean(),
  queuedBytes: Count,
  sentEvents: Count,
  droppedEvents: Count
})

/** The connections that a node has listed, newest first. `until`: it has more after this position; null: these are all. */
export const NodePageSchema = Type.Object({
  connections: Type.Array(ListedSchema),
  total: Count,
  until: OrNull(Type.String())
})
/** The connections that a node has listed. */
export type NodePage = Static<typeof NodePageSchema>

/** A connection of any node, as `listConnections()` returns it. It is a copy of the moment at which the node answered. */
export interface ListedConnection {
  /** The id of the connection, for `closeConnection()` and other methods. */
  readonly clientId: string
  /** The id of its node, as in `clusterStats()`. */
  readonly nodeId: string
  /** The authenticated user id; null for an anonymous connection. */
  readonly userId: string | null
  /** The topics and patterns that it holds, at most 32. */
  readonly subscriptions: readonly string[]
  /** Number of topics and patterns that it holds. */
  readonly subscriptionCount: number
  /** Whether broadcasts reach the stream; false for a stream of `reply.sse(source)`. */
  readonly managed: boolean
  /** Time of the connection in milliseconds since the Unix epoch, by the clock of its node. */
  readonly connectedAt: number
  /** IP address of the client. */
  readonly address: string
  /** The `User-Agent` header, at most 256 characters; empty if the request had none. */
  readonly userAgent: string
  /** Whether the stream continues at the cursor of the client; see `connection.resumed`. */
  readonly resumed: boolean | null
  /** Whether the client reads older events from the log; see `connection.stats()`. */
  readonly lagging: boolean
  /** Bytes that wait for the client; see `connection.stats()`. */
  readonly queuedBytes: number
  /** Number of events written to the client. */
  readonly sentEvents: number
  /** Number of ephemeral events that were dropped because the client was too slow. */
  readonly droppedEvents: number
}

/** A page of connections, returned by `listConnections()`. */
export interface ConnectionPage {
  /** The connections, the newest first. */
  readonly connections: readonly ListedConnection[]
  /** Pass it as `after` for the next page; null: this page is the last. */
  readonly after: string | null
  /** Number of connections on the nodes that answered that match the query, on any page. */
  readonly total: number
  /** Whether every node has answered. If not, connections of the nodes in `missing` are absent. */
  readonly complete: boolean
  /** Ids of the nodes that did not answer, or that run another version and cannot. */
  readonly missing: readonly string[]
}

/** The order of connections: by time, the newest first, then by id. It never changes, so that pages do not overlap. */
export interface Position {
  readonly connectedAt: number
  readonly clientId: string
}

/** Returns a negative number if `one` comes before `other`. */
export function compare (one: Position, other: Position): number {
  return other.connectedAt - one.connectedAt || (one.clientId < other.clientId ? -1 : one.clientId > other.clientId ? 1 : 0)
}

/** Returns the text of a position. */
export function formatPosition ({ connectedAt, clientId }: Position): string {
  return `${connectedAt}:${clientId}`
}

/** Parses a valid position. */
export function parsePosition (text: string): Position {
  const colon = text.indexOf(':')
  return { connectedAt: Number(text.slice(0, colon)), clientId: text.slice(colon + 1) }
}

/** Combines the pages of two nodes up to the position until which both are known. */
export function mergePages (one: NodePage, other: NodePage): NodePage {
  const [until = null] = [one.until, other.until].filter(text => text !== null).sort((a, b) => compare(parsePosition(a), parsePosition(b)))
  const connections = [...one.connections, ...other.connections].sort(compare)
  const end = until === null ? -1 : connections.findIndex(connection => compare(connection, parsePosition(until)) > 0)
  return { connections: end < 0 ? connections : connections.slice(0, end), total: one.total + other.total, until }
}
