import type { ResolvedRedisOptions } from '../lib/log/redis/options.js'
import type { ResolvedOptions } from '../lib/options.js'

// Made from the schemas of lib/options.ts and lib/log/redis/options.ts by test/docs.test.ts; UPDATE_DOCS=1 writes it.

/** Options of the plugin and of `SSEManager`, all optional. */
export interface SSEOptions {
  /** No stream without a user: 401 otherwise. Default `false`. */
  requireAuthentication?: ResolvedOptions['requireAuthentication']
  /** `(authData, request)` → user id, `{ userId, expiresAt?, claims? }` or `null`. */
  authHandler?: ResolvedOptions['authHandler']
  /** `(request)` → properties added to `authData`. */
  extractAuthData?: ResolvedOptions['extractAuthData']
  /** Functions of `@fastify/auth`, run before `authHandler`; they may set `request.sseUser`. */
  authStrategies?: ResolvedOptions['authStrategies']
  /** Whether one of `authStrategies` must pass, or all. Default `'or'`. */
  authRelation?: ResolvedOptions['authRelation']
  /**
   * Signs tickets; at least 32 characters of a random generator. Of several the first signs and all are good: add a new one
   * in front, and drop the old one a `ticketTtlMs` later. Absent: there are no tickets.
   */
  ticketSecret?: ResolvedOptions['ticketSecret']
  /** How long a ticket is good, in milliseconds. Integer, 1_000 to 600_000. Default `30_000`. */
  ticketTtlMs?: ResolvedOptions['ticketTtlMs']
  /**
   * `({ request, userId, claims, subscriptionId })` → whether the user may hold the subscription; asked at connect and when
   * one is added. Absent: what the application subscribes is allowed.
   */
  authorizeSubscription?: ResolvedOptions['authorizeSubscription']
  /**
   * `({ userId, claims, topic, connection })` → whether an event of this topic is for a connection that holds only a pattern
   * of it; asked at each delivery and replay, so it answers at once. Absent: what a pattern covers is allowed with it.
   */
  authorizeTopic?: ResolvedOptions['authorizeTopic']
  /**
   * Origins whose pages may open streams beside those of this server's own, such as `https://app.example` or
   * `capacitor://localhost`; others get 403. `'*'`: all. Default `[]`.
   */
  allowedOrigins?: ResolvedOptions['allowedOrigins']
  /** Whether a silent stream carries comments that keep proxies and clients awake. Default `true`. */
  keepAlive?: ResolvedOptions['keepAlive']
  /** Silence after which a keep-alive is sent, in milliseconds. Integer from 10. Default `15_000`. */
  keepAliveIntervalMs?: ResolvedOptions['keepAliveIntervalMs']
  /** Reconnection time told to clients, in milliseconds. Integer, 100 to 3_600_000. Default `3_000`. */
  retryMs?: ResolvedOptions['retryMs']
  /**
   * Age at which a stream is ended for the client to come back, in milliseconds, less a random fifth; 0 for never. Integer
   * from 0. Default `0`.
   */
  maxConnectionAgeMs?: ResolvedOptions['maxConnectionAgeMs']
  /**
   * Time without a byte taken by the socket after which a stream is ended, in milliseconds; 0 for never. Integer from 0.
   * Default `30_000`.
   */
  stallTimeoutMs?: ResolvedOptions['stallTimeoutMs']
  /** Catalogue made by `defineEvents`. Absent: anything that has a JSON form may be sent. */
  events?: ResolvedOptions['events']
  /** How much of the log is kept. */
  history?: {
    /** Events kept for replay. Integer, 1 to 67_108_864. Default `10_000`. */
    maxEvents?: ResolvedOptions['history']['maxEvents']
    /** Age to which events are kept for replay, in milliseconds. Integer from 1. Default `300_000`. */
    maxAgeMs?: ResolvedOptions['history']['maxAgeMs']
    /**
     * Bytes of events kept for replay: texts, keys, the ids in their targets, 16 KB for each filter. The objects of each
     * event, some 300 bytes, come on top: `maxEvents` bounds them. Integer from 1_024. Default `67_108_864`.
     */
    maxBytes?: ResolvedOptions['history']['maxBytes']
  }
  /**
   * Bytes that wait for one slow client: texts, keys, ids of targets, 400 for each event, 16 KB for each filter; beyond that
   * it reads on from the log. Integer from 1_024. Default `1_048_576`.
   */
  outboxBytes?: ResolvedOptions['outboxBytes']
  /**
   * Bytes that wait for all clients of this node together, what several wait for counted once; beyond that logged events are
   * read from the log later, and others are dropped. What is being written, one event for each client at most, comes on top.
   * Integer from 1_024. Default `268_435_456`.
   */
  maxQueuedBytes?: ResolvedOptions['maxQueuedBytes']
  /**
   * `'immediate'`: one write per connection and turn of the event loop; `{ intervalMs }`: one per interval. Default
   * `'immediate'`.
   */
  flush?: ResolvedOptions['flush']
  /** Streams on this node, those that are being let in included; 0 for no limit. Beyond: 503. Integer from 0. Default `0`. */
  maxConnections?: ResolvedOptions['maxConnections']
  /** Streams of one user on this node; 0 for no limit. Beyond: 429. Integer from 0. Default `0`. */
  maxConnectionsPerUser?: ResolvedOptions['maxConnectionsPerUser']
  /**
   * Streams from one address on this node, of IPv6 from one /64; 0 for no limit. Beyond: 429. Behind a proxy it needs
   * `trustProxy`. Integer from 0. Default `0`.
   */
  maxConnectionsPerIp?: ResolvedOptions['maxConnectionsPerIp']
  /** Subscriptions one connection may hold. Integer, 1 to 100_000. Default `128`. */
  maxSubscriptionsPerConnection?: ResolvedOptions['maxSubscriptionsPerConnection']
  /**
   * Bytes of one event: its data as it is written, with six more for each line after the first, its name, its key, and the
   * ids in its target, 32 added for each. Items of `reply.sse(source)` are not limited: they wait in the source. Integer
   * from 1. Default `1_048_576`.
   */
  maxEventBytes?: ResolvedOptions['maxEventBytes']
  /**
   * Events of the log a returning client may be behind; beyond, it gets a gap instead of a replay; 0 for no limit but the
   * history. Integer from 0. Default `0`.
   */
  maxReplayEvents?: ResolvedOptions['maxReplayEvents']
  /**
   * Bytes of the log that a returning client is sent; beyond, it gets a gap instead of the rest; 0 for no limit but the
   * history. Integer from 0. Default `0`.
   */
  maxReplayBytes?: ResolvedOptions['maxReplayBytes']
  /**
   * Pages of the log read at the same time in one turn of the event loop, for clients of this node that return or are slow;
   * others wait for the next turn. Integer, 1 to 10_000. Default `32`.
   */
  maxConcurrentReplays?: ResolvedOptions['maxConcurrentReplays']
  /**
   * How a GET request that asks for `text/event-stream` is refused. `'auto'`: when coming back may help (429, 503, an
   * authentication that failed to answer), with a stream that tells when to, and ends; otherwise by status. `'status'`: by
   * status. `'stop'`: as `'auto'`, and with 204 in place of any other 4xx. Default `'auto'`.
   */
  refusals?: ResolvedOptions['refusals']
  /**
   * Whether clients of `path` may choose their topics with `?subscription=`; `'patterns'` lets them use wildcards too. Needs
   * `authorizeSubscription`. Default `false`.
   */
  clientSubscriptions?: ResolvedOptions['clientSubscriptions']
  /**
   * Time that closing waits for clients to read what they were sent, in milliseconds; the reconnection time told at shutdown
   * is at least this. Integer, 0 to 3_600_000. Default `5_000`.
   */
  drainMs?: ResolvedOptions['drainMs']
  /** How nodes that share a log know each other. */
  cluster?: {
    /** What `clusterStats()` calls this node, beside its id. */
    nodeName?: ResolvedOptions['cluster']['nodeName']
    /**
     * How often a node tells the others that it lives, in milliseconds; one that misses three is gone. Integer, 100 to 60_000.
     * Default `2_000`.
     */
    heartbeatIntervalMs?: ResolvedOptions['cluster']['heartbeatIntervalMs']
    /** Time that other nodes have to answer, in milliseconds. Integer, 100 to 60_000. Default `2_000`. */
    answerTimeoutMs?: ResolvedOptions['cluster']['answerTimeoutMs']
  }
  /** Who is told who comes and who leaves. */
  presenceEvents?: {
    /** Topics, or patterns of them, whose hearers are sent `sse:join` and `sse:leave`. Default `[]`. */
    topics?: ResolvedOptions['presenceEvents']['topics']
    /** Time that a user who has left has to come back unnoticed, in milliseconds. Integer from 0. Default `5_000`. */
    lingerMs?: ResolvedOptions['presenceEvents']['lingerMs']
  }
  /** The log that nodes share. Absent: `memoryBroker()`. */
  broker?: ResolvedOptions['broker']
  /** Registers a ready GET endpoint at this path. */
  path?: ResolvedOptions['path']
  /** Names of the decorators. */
  decorators?: {
    /** Name of the manager on the Fastify instance. Default `'sse'`. */
    instance?: ResolvedOptions['decorators']['instance']
    /** Name of the method on replies, and of the route option. Default `'sse'`. */
    reply?: ResolvedOptions['decorators']['reply']
  }
}

/** Options of `redisStreamsBroker`, all but `client` optional. */
export interface RedisStreamsOptions {
  /**
   * Client of `ioredis` (also `fastify.redis`) or node-redis for one server, or, with `ioredis` installed, a URL. It is
   * copied, not used.
   */
  client: ResolvedRedisOptions['client']
  /** What the keys begin with, in braces: one log for each prefix. Default `'sse'`. */
  keyPrefix?: ResolvedRedisOptions['keyPrefix']
  /** Database to use. Absent: the client's. Integer from 0. */
  database?: ResolvedRedisOptions['database']
  /**
   * Time that Redis has for an answer, or to take a connection, in milliseconds; then the connection is given up. It begins
   * anew while bytes of an answer arrive. Integer, 100 to 60_000. Default `2_000`.
   */
  replyTimeoutMs?: ResolvedRedisOptions['replyTimeoutMs']
  /** Time after which a publish that is not confirmed is rejected, in milliseconds. Integer, 100 to 60_000. Default `2_000`. */
  publishTimeoutMs?: ResolvedRedisOptions['publishTimeoutMs']
  /**
   * Whether a publish waits up to `publishTimeoutMs` for a lost connection to come back, instead of being rejected at once.
   * Default `false`.
   */
  waitWhenDown?: ResolvedRedisOptions['waitWhenDown']
  /** Bytes of publishes that are not confirmed yet; beyond that they are rejected. Integer from 1_024. Default `16_777_216`. */
  maxPendingBytes?: ResolvedRedisOptions['maxPendingBytes']
  /** Time that boot waits for Redis, in milliseconds. Integer, 100 to 60_000. Default `4_000`. */
  startTimeoutMs?: ResolvedRedisOptions['startTimeoutMs']
  /** Whether the application starts all the same when Redis is not reached in that time. Default `false`. */
  startDegraded?: ResolvedRedisOptions['startDegraded']
}
