import type { FastifyRequest } from 'fastify'
import type { AuthHandler } from '../lib/access/authentication.js'
import type { ResolvedRedisOptions } from '../lib/log/redis/options.js'
import type { ResolvedOptions, ResolvedPublisherOptions } from '../lib/options.js'

// Made from the schemas of lib/options.ts and lib/log/redis/options.ts by test/docs.test.ts; UPDATE_DOCS=1 writes it.

/** Options of the plugin and of `SSEManager`, all optional. */
export interface SSEOptions {
  /** Whether a stream requires an authenticated user. Requests without a user are answered with 401. Default `false`. */
  requireAuthentication?: ResolvedOptions['requireAuthentication']
  /**
   * Function `(authData, request)` that returns, or resolves with, a user id, `{ userId, expiresAt?, claims? }`, or `null`
   * for an anonymous client.
   */
  authHandler?: AuthHandler
  /** Function `(request)` that returns properties to add to `authData`. */
  extractAuthData?: ((request: FastifyRequest) => Record<string, unknown>) | undefined
  /** Functions of `@fastify/auth`, called before `authHandler`. They can set `request.sseUser`. */
  authStrategies?: NonNullable<ResolvedOptions['authStrategies']>
  /** Whether one of `authStrategies` must succeed (`or`) or all of them (`and`). Default `'or'`. */
  authRelation?: ResolvedOptions['authRelation']
  /**
   * Secret that signs tickets: at least 32 characters from a random generator. In an array, the first secret signs and all
   * are accepted. To rotate, add the new secret in front, and remove the old one after `ticketTtlMs`. Absent: tickets are
   * disabled.
   */
  ticketSecret?: ResolvedOptions['ticketSecret'] | undefined
  /** Time for which a ticket is valid, in milliseconds. Integer, 1_000 to 600_000. Default `30_000`. */
  ticketTtlMs?: ResolvedOptions['ticketTtlMs'] | undefined
  /**
   * Function `({ request, userId, claims, subscriptionId })` that returns, or resolves with, `true` if the user can hold the
   * subscription. It is called at connect, when a subscription is added, and by `reauthorize()`. Absent: the application
   * decides alone.
   */
  authorizeSubscription?: NonNullable<ResolvedOptions['authorizeSubscription']>
  /**
   * Function `({ userId, claims, topic, connection })` that returns `true` if the connection receives events of the topic
   * although it holds only a pattern of it. It is called at each delivery and replay, and must be synchronous. Absent: a
   * pattern allows all topics that it covers.
   */
  authorizeTopic?: NonNullable<ResolvedOptions['authorizeTopic']>
  /**
   * Origins whose pages can open streams, in addition to the origin of this server. Examples: `https://app.example`,
   * `capacitor://localhost`. Pages of other origins are answered with 403. `'*'`: all origins. Default `[]`.
   */
  allowedOrigins?: ResolvedOptions['allowedOrigins'] | undefined
  /**
   * What an idle stream sends, so that proxies and clients do not time out. `true`: comments. `'event'`: the event
   * `sse:ping` with the cursor, which a page receives; streams of `reply.sse(source)` still send comments. `false`: nothing.
   * Default `true`.
   */
  keepAlive?: ResolvedOptions['keepAlive'] | undefined
  /** Silence after which a keep-alive is sent, in milliseconds. Integer from 10. Default `15_000`. */
  keepAliveIntervalMs?: ResolvedOptions['keepAliveIntervalMs'] | undefined
  /**
   * Reconnection time that is sent to clients, in milliseconds. Each stream receives one of 32 times from this to twice as
   * long, so that the clients of a node that fails do not reconnect together. Integer, 100 to 3_600_000. Default `3_000`.
   */
  retryMs?: ResolvedOptions['retryMs'] | undefined
  /**
   * Age at which a stream is ended and the client reconnects, in milliseconds, minus a random part of up to 20 percent. 0:
   * no limit. Integer from 0. Default `0`.
   */
  maxConnectionAgeMs?: ResolvedOptions['maxConnectionAgeMs'] | undefined
  /**
   * Time after which a stream is ended if its client reads no bytes of the data that waits for it, in milliseconds. 0: no
   * limit. Integer from 0. Default `30_000`.
   */
  stallTimeoutMs?: ResolvedOptions['stallTimeoutMs'] | undefined
  /** Catalogue from `defineEvents`. Events that do not match it are rejected. Absent: all data with a JSON form can be sent. */
  events?: ResolvedOptions['events'] | undefined
  /** Bounds of the part of the log that is kept for replay. Older events are removed when one bound is exceeded. */
  history?: {
    /** Maximum number of events kept for replay. Integer, 1 to 67_108_864. Default `10_000`. */
    maxEvents?: ResolvedOptions['history']['maxEvents'] | undefined
    /** Age to which events are kept for replay, in milliseconds. Integer from 1. Default `300_000`. */
    maxAgeMs?: ResolvedOptions['history']['maxAgeMs'] | undefined
    /**
     * Maximum size of the events kept for replay, in bytes: names, data, keys, the ids in their targets, and 16 KB for each
     * filter. About 300 bytes for the objects of each event are not counted: `maxEvents` bounds them. Integer from 1_024.
     * Default `67_108_864`.
     */
    maxBytes?: ResolvedOptions['history']['maxBytes'] | undefined
  } | undefined
  /**
   * Maximum size of the events queued for one slow client, in bytes: texts, keys, the ids in targets, 400 bytes for each
   * event, and 16 KB for each filter. Above it, logged events are read from the log later, and ephemeral events are dropped.
   * Integer from 1_024. Default `1_048_576`.
   */
  outboxBytes?: ResolvedOptions['outboxBytes'] | undefined
  /**
   * Maximum size of the events queued for all clients of this node, in bytes. Events that several clients wait for are
   * counted once. Above it, logged events are read from the log later, and ephemeral events are dropped. Data that is being
   * written, at most one event for each client, is not counted. Integer from 1_024. Default `268_435_456`.
   */
  maxQueuedBytes?: ResolvedOptions['maxQueuedBytes'] | undefined
  /**
   * When events are written. `'immediate'`: in one write per connection and turn of the event loop. `{ intervalMs }`: in one
   * write per connection and interval of 1 to 10_000 milliseconds. Default `'immediate'`.
   */
  flush?: ResolvedOptions['flush'] | undefined
  /**
   * Maximum number of streams on this node, including requests that are not authenticated yet. Further requests are answered
   * with 503. 0: no limit. Integer from 0. Default `0`.
   */
  maxConnections?: ResolvedOptions['maxConnections'] | undefined
  /**
   * Maximum number of streams of one user on this node. Further requests are answered with 429. 0: no limit. Integer from 0.
   * Default `0`.
   */
  maxConnectionsPerUser?: ResolvedOptions['maxConnectionsPerUser'] | undefined
  /**
   * Maximum number of streams from one address on this node. IPv6 addresses of one /64 network count as one address. Further
   * requests are answered with 429. Behind a proxy, `trustProxy` of Fastify is required. 0: no limit. Integer from 0.
   * Default `0`.
   */
  maxConnectionsPerIp?: ResolvedOptions['maxConnectionsPerIp'] | undefined
  /**
   * Maximum number of subscriptions of one connection. Further ones are rejected with `SSE_ERR_TOO_MANY_SUBSCRIPTIONS`.
   * Integer, 1 to 100_000. Default `128`.
   */
  maxSubscriptionsPerConnection?: ResolvedOptions['maxSubscriptionsPerConnection'] | undefined
  /**
   * Maximum size of one event, in bytes: its name, its encoded data with six bytes for each line after the first, its key,
   * and the ids in its target with 32 bytes for each. Larger events are rejected with `SSE_ERR_EVENT_TOO_LARGE`. Items of
   * `reply.sse(source)` are not limited. Integer from 1. Default `1_048_576`.
   */
  maxEventBytes?: ResolvedOptions['maxEventBytes'] | undefined
  /**
   * Maximum number of events in the log after the cursor of a reconnecting client. Above it, the client receives `sse:gap`
   * instead of a replay. 0: only the history is a limit. Integer from 0. Default `0`.
   */
  maxReplayEvents?: ResolvedOptions['maxReplayEvents'] | undefined
  /**
   * Maximum size of the replay to a reconnecting client, in bytes. Above it, the client receives `sse:gap` instead of the
   * remaining events. 0: only the history is a limit. Integer from 0. Default `0`.
   */
  maxReplayBytes?: ResolvedOptions['maxReplayBytes'] | undefined
  /**
   * Maximum number of pages of the log that are read at the same time in one turn of the event loop, for reconnecting and
   * slow clients of this node. Other reads wait for the next turn. Integer, 1 to 10_000. Default `32`.
   */
  maxConcurrentReplays?: ResolvedOptions['maxConcurrentReplays'] | undefined
  /**
   * How a rejected GET request for `text/event-stream` is answered. `'auto'`: if a retry can help (429, 503, an
   * authentication that could not be completed), with a short stream that sets the reconnection time; otherwise with the
   * error status. `'status'`: with the error status. `'stop'`: as `'auto'`, but with 204 instead of any other 4xx status.
   * Default `'auto'`.
   */
  refusals?: ResolvedOptions['refusals'] | undefined
  /**
   * Whether clients of `path` can choose topics with `?subscription=`. `'patterns'`: wildcards are allowed too. Requires
   * `path` and `authorizeSubscription`. Default `false`.
   */
  clientSubscriptions?: ResolvedOptions['clientSubscriptions'] | undefined
  /**
   * Time for which a shutdown waits for clients to read their last bytes, in milliseconds. The reconnection time that is
   * sent at shutdown is at least this time. Integer, 0 to 3_600_000. Default `5_000`.
   */
  drainMs?: ResolvedOptions['drainMs'] | undefined
  /** Settings of nodes that share a log. */
  cluster?: {
    /** Name of this node in `clusterStats()`, in addition to its id. Absent: no name. */
    nodeName?: ResolvedOptions['cluster']['nodeName'] | undefined
    /**
     * Interval at which a node sends heartbeats to the others, in milliseconds. A node without a heartbeat for 3.5 intervals
     * is considered down. Integer, 100 to 60_000. Default `2_000`.
     */
    heartbeatIntervalMs?: ResolvedOptions['cluster']['heartbeatIntervalMs'] | undefined
    /**
     * Time limit for answers of other nodes, in milliseconds. When it is exceeded, a call that needs all answers is rejected
     * with `SSE_ERR_NO_ANSWER`. Integer, 100 to 60_000. Default `2_000`.
     */
    answerTimeoutMs?: ResolvedOptions['cluster']['answerTimeoutMs'] | undefined
  } | undefined
  /** Events about users who join and leave a topic. */
  presenceEvents?: {
    /** Topics and patterns of topics whose subscribers receive `sse:join` and `sse:leave`: at most 100. Default `[]`. */
    topics?: ResolvedOptions['presenceEvents']['topics'] | undefined
    /**
     * Delay of `sse:leave` after a user has left a topic, in milliseconds. If the user returns within it, no event is sent.
     * After a shutdown, clients reconnect within twice the larger of `retryMs` and `drainMs`. Integer from 0. Default
     * `15_000`.
     */
    lingerMs?: ResolvedOptions['presenceEvents']['lingerMs'] | undefined
  } | undefined
  /** Bounds of runs, see `startRun()`. */
  runs?: {
    /**
     * Maximum number of runs whose sources this node reads at the same time. Further ones are rejected with
     * `SSE_ERR_TOO_MANY_RUNS`. 0: no limit. Integer from 0. Default `1_000`.
     */
    max?: ResolvedOptions['runs']['max'] | undefined
    /**
     * Maximum number of runs of one owner whose sources this node reads at the same time. Further ones are rejected with
     * `SSE_ERR_TOO_MANY_USER_RUNS`. 0: no limit. Integer from 0. Default `0`.
     */
    maxPerOwner?: ResolvedOptions['runs']['maxPerOwner'] | undefined
    /**
     * Maximum size of the runs whose sources this node reads, in bytes. Above it, the run that grows ends as `failed` with the
     * reason `limit`. In memory, runs that have ended count too, each with 1.5 KB beside its events, and the oldest are
     * removed first. Integer from 1. Default `268_435_456`.
     */
    maxBytes?: ResolvedOptions['runs']['maxBytes'] | undefined
    /**
     * Time after which a run is `lost` if its node has stopped without a shutdown, or cannot reach the shared log, in
     * milliseconds. Integer, 1_000 to 600_000. Default `10_000`.
     */
    leaseMs?: ResolvedOptions['runs']['leaseMs'] | undefined
    /**
     * Time for which a shutdown waits for the sources of runs to end, in milliseconds. Runs that have not ended then are
     * `lost`. Integer, 0 to 3_600_000. Default `5_000`.
     */
    drainMs?: ResolvedOptions['runs']['drainMs'] | undefined
  } | undefined
  /** Event log. Nodes with the same log form a cluster. Absent: `memoryBroker()`, for a single node. */
  broker?: ResolvedOptions['broker'] | undefined
  /** Path of a GET endpoint that the plugin registers. Absent: no endpoint is registered. */
  path?: ResolvedOptions['path'] | undefined
  /**
   * Snapshot of the streams of `path`: an object `{ load, key?, timeoutMs?, maxConcurrent? }`, as for `reply.sse()`.
   * Requires `path`. Absent: no state is sent.
   */
  snapshot?: ResolvedOptions['snapshot'] | undefined
  /** Names of the decorators. */
  decorators?: {
    /** Name of the manager on the Fastify instance. Default `'sse'`. */
    instance?: ResolvedOptions['decorators']['instance'] | undefined
    /** Name of the method on replies and of the route option. Default `'sse'`. */
    reply?: ResolvedOptions['decorators']['reply']
  } | undefined
}

/** Options of `createPublisher`, all but `broker` optional. */
export interface PublisherOptions {
  /** Event log that this process shares with the nodes, such as `redisStreamsBroker()`. */
  broker: ResolvedPublisherOptions['broker']
  /** Catalogue from `defineEvents`. Events that do not match it are rejected. Absent: all data with a JSON form can be sent. */
  events?: ResolvedPublisherOptions['events'] | undefined
  /**
   * Bounds of the part of the log that is kept for replay. A publisher applies them when it publishes: give it those of the
   * nodes.
   */
  history?: {
    /** Maximum number of events kept for replay. Integer, 1 to 67_108_864. Default `10_000`. */
    maxEvents?: ResolvedPublisherOptions['history']['maxEvents'] | undefined
    /** Age to which events are kept for replay, in milliseconds. Integer from 1. Default `300_000`. */
    maxAgeMs?: ResolvedPublisherOptions['history']['maxAgeMs'] | undefined
    /**
     * Maximum size of the events kept for replay, in bytes: names, data, keys, the ids in their targets, and 16 KB for each
     * filter. About 300 bytes for the objects of each event are not counted: `maxEvents` bounds them. Integer from 1_024.
     * Default `67_108_864`.
     */
    maxBytes?: ResolvedPublisherOptions['history']['maxBytes'] | undefined
  } | undefined
  /**
   * Maximum size of one event, in bytes: its name, its encoded data with six bytes for each line after the first, its key,
   * and the ids in its target with 32 bytes for each. Larger events are rejected with `SSE_ERR_EVENT_TOO_LARGE`. Items of
   * `reply.sse(source)` are not limited. Integer from 1. Default `1_048_576`.
   */
  maxEventBytes?: ResolvedPublisherOptions['maxEventBytes'] | undefined
  /** Bounds of runs, see `startRun()`. */
  runs?: {
    /**
     * Maximum number of runs whose sources this node reads at the same time. Further ones are rejected with
     * `SSE_ERR_TOO_MANY_RUNS`. 0: no limit. Integer from 0. Default `1_000`.
     */
    max?: ResolvedPublisherOptions['runs']['max'] | undefined
    /**
     * Maximum number of runs of one owner whose sources this node reads at the same time. Further ones are rejected with
     * `SSE_ERR_TOO_MANY_USER_RUNS`. 0: no limit. Integer from 0. Default `0`.
     */
    maxPerOwner?: ResolvedPublisherOptions['runs']['maxPerOwner'] | undefined
    /**
     * Maximum size of the runs whose sources this node reads, in bytes. Above it, the run that grows ends as `failed` with the
     * reason `limit`. In memory, runs that have ended count too, each with 1.5 KB beside its events, and the oldest are
     * removed first. Integer from 1. Default `268_435_456`.
     */
    maxBytes?: ResolvedPublisherOptions['runs']['maxBytes'] | undefined
    /**
     * Time after which a run is `lost` if its node has stopped without a shutdown, or cannot reach the shared log, in
     * milliseconds. Integer, 1_000 to 600_000. Default `10_000`.
     */
    leaseMs?: ResolvedPublisherOptions['runs']['leaseMs'] | undefined
    /**
     * Time for which a shutdown waits for the sources of runs to end, in milliseconds. Runs that have not ended then are
     * `lost`. Integer, 0 to 3_600_000. Default `5_000`.
     */
    drainMs?: ResolvedPublisherOptions['runs']['drainMs'] | undefined
  } | undefined
}

/** Options of `redisStreamsBroker`, all but `client` optional. */
export interface RedisStreamsOptions {
  /**
   * Client of `ioredis` (also `fastify.redis`) or node-redis for a single server. With `ioredis` installed, also a URL:
   * `redis://`, `rediss://` or `unix://`. The client is duplicated and not used itself.
   */
  client: ResolvedRedisOptions['client']
  /**
   * Prefix of all keys, written in braces: 1 to 128 characters without braces and white space. Each prefix is a separate
   * log. Default `'sse'`.
   */
  keyPrefix?: ResolvedRedisOptions['keyPrefix'] | undefined
  /** Number of the Redis database. Absent: the database of the client. Integer from 0. */
  database?: ResolvedRedisOptions['database'] | undefined
  /**
   * Time limit for a reply and for a new connection, in milliseconds. When it is exceeded, the connection is closed and a
   * new one is made. The time starts again while bytes of a reply arrive. Integer, 100 to 60_000. Default `2_000`.
   */
  replyTimeoutMs?: ResolvedRedisOptions['replyTimeoutMs'] | undefined
  /**
   * Time limit for the confirmation of a publish, in milliseconds. When it is exceeded, the publish is rejected with
   * `SSE_ERR_BROKER_UNAVAILABLE`. Integer, 100 to 60_000. Default `2_000`.
   */
  publishTimeoutMs?: ResolvedRedisOptions['publishTimeoutMs'] | undefined
  /**
   * Whether a publish waits up to `publishTimeoutMs` for a new connection while Redis is unreachable. With `false`, it is
   * rejected at once. Default `false`.
   */
  waitWhenDown?: ResolvedRedisOptions['waitWhenDown'] | undefined
  /**
   * Maximum size of all publishes that are not confirmed yet, in bytes. When it is exceeded, further publishes are rejected
   * with `SSE_ERR_BROKER_UNAVAILABLE`. Integer from 1_024. Default `16_777_216`.
   */
  maxPendingBytes?: ResolvedRedisOptions['maxPendingBytes'] | undefined
  /** Time for which the start of the application waits for Redis, in milliseconds. Integer, 100 to 60_000. Default `4_000`. */
  startTimeoutMs?: ResolvedRedisOptions['startTimeoutMs'] | undefined
  /**
   * Whether the application starts without Redis if Redis is not reached within `startTimeoutMs`. With `false`, the start
   * fails. Default `false`.
   */
  startDegraded?: ResolvedRedisOptions['startDegraded'] | undefined
}
