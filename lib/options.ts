import { Type, type SchemaOptions, type Static, type TSchema } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { FastifyAuthFunction } from '@fastify/auth'
import { resolveSnapshot, type SnapshotOptions } from './connections/snapshot-options.js'
import type { Broker } from './log/broker.js'
import { isCatalogue, type Catalogue } from './events/catalogue.js'
import { InvalidOption } from './errors.js'
import { MAX_BEAT_MS } from './cluster/node-message.js'
import { assertSubscription } from './events/topic.js'
import { any, bytes, count, durationMs, fn, resolve } from './util/option-schema.js'
import { quote, shown } from './util/quote.js'
import { kClock, systemClock, type Clock } from './util/clock.js'
import type { AuthHandler } from './access/authentication.js'
import { isOrigin } from './access/origin.js'
import type { AuthorizeTopic } from './subscriptions/audience.js'
import type { AuthorizeSubscription } from './subscriptions/authorization.js'

const refusals = (options: SchemaOptions) => Type.Union([Type.Literal('auto'), Type.Literal('status'), Type.Literal('stop')], options)

/** The schema of all options. The documentation, the validation at boot and the public type come from it. */
export const OptionsSchema = Type.Object({
  // authentication
  requireAuthentication: Type.Boolean({ default: false, protects: true, description: 'Whether a stream requires an authenticated user. Requests without a user are answered with 401.' }),
  authHandler: fn<AuthHandler<any>>('Function `(authData, request)` that returns, or resolves with, a user id, `{ userId, expiresAt?, claims? }`, or `null` for an anonymous client.', { protects: true, publicType: 'AuthHandler' }),
  extractAuthData: fn<(request: any) => Record<string, unknown>>('Function `(request)` that returns properties to add to `authData`.', { publicType: '((request: FastifyRequest) => Record<string, unknown>)' }),
  authStrategies: Type.Optional(Type.Unsafe<(FastifyAuthFunction | FastifyAuthFunction[])[]>(Type.Array(Type.Union([Type.Function([], Type.Unknown()), Type.Array(Type.Function([], Type.Unknown()))]), { minItems: 1, description: 'Functions of `@fastify/auth`, called before `authHandler`. They can set `request.sseUser`.', protects: true, pluginOnly: true }))),
  authRelation: Type.Union([Type.Literal('or'), Type.Literal('and')], { default: 'or', protects: true, pluginOnly: true, description: 'Whether one of `authStrategies` must succeed (`or`) or all of them (`and`).' }),
  ticketSecret: Type.Optional(Type.Union([Type.String({ minLength: 32 }), Type.Array(Type.String({ minLength: 32 }), { minItems: 1 })], { description: 'Secret that signs tickets: at least 32 characters from a random generator. In an array, the first secret signs and all are accepted. To rotate, add the new secret in front, and remove the old one after `ticketTtlMs`. Absent: tickets are disabled.' })),
  ticketTtlMs: durationMs('Time for which a ticket is valid, in milliseconds.', 30_000, 1_000, 600_000),
  authorizeSubscription: fn<AuthorizeSubscription>('Function `({ request, userId, claims, subscriptionId })` that returns, or resolves with, `true` if the user can hold the subscription. It is called at connect, when a subscription is added, and by `reauthorize()`. Absent: the application decides alone.', { protects: true }),
  authorizeTopic: fn<AuthorizeTopic>('Function `({ userId, claims, topic, connection })` that returns `true` if the connection receives events of the topic although it holds only a pattern of it. It is called at each delivery and replay, and must be synchronous. Absent: a pattern allows all topics that it covers.', { protects: true }),
  allowedOrigins: Type.Union([Type.Literal('*'), Type.Array(Type.String({ minLength: 1 }))], { default: [], description: 'Origins whose pages can open streams, in addition to the origin of this server. Examples: `https://app.example`, `capacitor://localhost`. Pages of other origins are answered with 403. `\'*\'`: all origins.' }),
  // stream
  keepAlive: Type.Union([Type.Boolean(), Type.Literal('event')], { default: true, description: "What an idle stream sends, so that proxies and clients do not time out. `true`: comments. `'event'`: the event `sse:ping` with the cursor, which a page receives; streams of `reply.sse(source)` still send comments. `false`: nothing." }),
  keepAliveIntervalMs: durationMs('Silence after which a keep-alive is sent, in milliseconds.', 15_000, 10),
  retryMs: durationMs('Reconnection time that is sent to clients, in milliseconds. Each stream receives one of 32 times from this to twice as long, so that the clients of a node that fails do not reconnect together.', 3_000, 100, 3_600_000),
  maxConnectionAgeMs: durationMs('Age at which a stream is ended and the client reconnects, in milliseconds, minus a random part of up to 20 percent. 0: no limit.', 0),
  stallTimeoutMs: durationMs('Time after which a stream is ended if its client reads no bytes of the data that waits for it, in milliseconds. 0: no limit.', 30_000),
  // delivery
  events: any<Catalogue<any, any>>('Catalogue from `defineEvents`. Events that do not match it are rejected. Absent: all data with a JSON form can be sent.'),
  history: Type.Object({
    maxEvents: Type.Integer({ minimum: 1, maximum: 2 ** 26, default: 10_000, description: 'Maximum number of events kept for replay.' }),
    maxAgeMs: durationMs('Age to which events are kept for replay, in milliseconds.', 300_000, 1),
    maxBytes: bytes('Maximum size of the events kept for replay, in bytes: names, data, keys, the ids in their targets, and 16 KB for each filter. About 300 bytes for the objects of each event are not counted: `maxEvents` bounds them.', 64 * 1024 * 1024)
  }, { default: {}, additionalProperties: false, description: 'Bounds of the part of the log that is kept for replay. Older events are removed when one bound is exceeded.' }),
  outboxBytes: bytes('Maximum size of the events queued for one slow client, in bytes: texts, keys, the ids in targets, 400 bytes for each event, and 16 KB for each filter. Above it, logged events are read from the log later, and ephemeral events are dropped.', 1024 * 1024),
  maxQueuedBytes: bytes('Maximum size of the events queued for all clients of this node, in bytes. Events that several clients wait for are counted once. Above it, logged events are read from the log later, and ephemeral events are dropped. Data that is being written, at most one event for each client, is not counted.', 256 * 1024 * 1024),
  flush: Type.Union([Type.Literal('immediate'), Type.Object({ intervalMs: Type.Integer({ minimum: 1, maximum: 10_000 }) }, { additionalProperties: false })], { default: 'immediate', description: "When events are written. `'immediate'`: in one write per connection and turn of the event loop. `{ intervalMs }`: in one write per connection and interval of 1 to 10_000 milliseconds." }),
  // limits
  maxConnections: count('Maximum number of streams on this node, including requests that are not authenticated yet. Further requests are answered with 503. 0: no limit.', 0),
  maxConnectionsPerUser: count('Maximum number of streams of one user on this node. Further requests are answered with 429. 0: no limit.', 0),
  maxConnectionsPerIp: count('Maximum number of streams from one address on this node. IPv6 addresses of one /64 network count as one address. Further requests are answered with 429. Behind a proxy, `trustProxy` of Fastify is required. 0: no limit.', 0),
  maxSubscriptionsPerConnection: Type.Integer({ minimum: 1, maximum: 100_000, default: 128, description: 'Maximum number of subscriptions of one connection. Further ones are rejected with `SSE_ERR_TOO_MANY_SUBSCRIPTIONS`.' }),
  maxEventBytes: bytes('Maximum size of one event, in bytes: its name, its encoded data with six bytes for each line after the first, its key, and the ids in its target with 32 bytes for each. Larger events are rejected with `SSE_ERR_EVENT_TOO_LARGE`. Items of `reply.sse(source)` are not limited.', 1024 * 1024, 1),
  maxReplayEvents: count('Maximum number of events in the log after the cursor of a reconnecting client. Above it, the client receives `sse:gap` instead of a replay. 0: only the history is a limit.', 0),
  maxReplayBytes: count('Maximum size of the replay to a reconnecting client, in bytes. Above it, the client receives `sse:gap` instead of the remaining events. 0: only the history is a limit.', 0),
  maxConcurrentReplays: Type.Integer({ minimum: 1, maximum: 10_000, default: 32, description: 'Maximum number of pages of the log that are read at the same time in one turn of the event loop, for reconnecting and slow clients of this node. Other reads wait for the next turn.' }),
  refusals: refusals({ default: 'auto', description: "How a rejected GET request for `text/event-stream` is answered. `'auto'`: if a retry can help (429, 503, an authentication that could not be completed), with a short stream that sets the reconnection time; otherwise with the error status. `'status'`: with the error status. `'stop'`: as `'auto'`, but with 204 instead of any other 4xx status." }),
  clientSubscriptions: Type.Union([Type.Boolean(), Type.Literal('patterns')], { default: false, pluginOnly: true, description: 'Whether clients of `path` can choose topics with `?subscription=`. `\'patterns\'`: wildcards are allowed too. Requires `path` and `authorizeSubscription`.' }),
  drainMs: durationMs('Time for which a shutdown waits for clients to read their last bytes, in milliseconds. The reconnection time that is sent at shutdown is at least this time.', 5_000, 0, 3_600_000),
  // other nodes
  cluster: Type.Object({
    nodeName: Type.Optional(Type.String({ minLength: 1, maxLength: 128, description: 'Name of this node in `clusterStats()`, in addition to its id. Absent: no name.' })),
    heartbeatIntervalMs: durationMs('Interval at which a node sends heartbeats to the others, in milliseconds. A node without a heartbeat for 3.5 intervals is considered down.', 2_000, 100, MAX_BEAT_MS),
    answerTimeoutMs: durationMs('Time limit for answers of other nodes, in milliseconds. When it is exceeded, a call that needs all answers is rejected with `SSE_ERR_NO_ANSWER`.', 2_000, 100, 60_000)
  }, { default: {}, additionalProperties: false, description: 'Settings of nodes that share a log.' }),
  presenceEvents: Type.Object({
    topics: Type.Array(Type.String(), { default: [], maxItems: 100, description: 'Topics and patterns of topics whose subscribers receive `sse:join` and `sse:leave`: at most 100.' }),
    lingerMs: durationMs('Delay of `sse:leave` after a user has left a topic, in milliseconds. If the user returns within it, no event is sent. After a shutdown, clients reconnect within twice the larger of `retryMs` and `drainMs`.', 15_000)
  }, { default: {}, additionalProperties: false, description: 'Events about users who join and leave a topic.' }),
  // runs
  runs: Type.Object({
    max: count('Maximum number of runs whose sources this node reads at the same time. Further ones are rejected with `SSE_ERR_TOO_MANY_RUNS`. 0: no limit.', 1_000),
    maxPerOwner: count('Maximum number of runs of one owner whose sources this node reads at the same time. Further ones are rejected with `SSE_ERR_TOO_MANY_USER_RUNS`. 0: no limit.', 0),
    maxBytes: bytes('Maximum size of the runs whose sources this node reads, in bytes. Above it, the run that grows ends as `failed` with the reason `limit`. In memory, runs that have ended count too, each with 1.5 KB beside its events, and the oldest are removed first.', 256 * 1024 * 1024, 1),
    leaseMs: durationMs('Time after which a run is `lost` if its node has stopped without a shutdown, or cannot reach the shared log, in milliseconds.', 10_000, 1_000, 600_000),
    drainMs: durationMs('Time for which a shutdown waits for the sources of runs to end, in milliseconds. Runs that have not ended then are `lost`.', 5_000, 0, 3_600_000)
  }, { default: {}, additionalProperties: false, description: 'Bounds of runs, see `startRun()`.' }),
  // wiring
  broker: any<Broker>('Event log. Nodes with the same log form a cluster. Absent: `memoryBroker()`, for a single node.'),
  path: Type.Optional(Type.String({ pattern: '^/', rule: 'must begin with "/"', pluginOnly: true, description: 'Path of a GET endpoint that the plugin registers. Absent: no endpoint is registered.' })),
  snapshot: any<SnapshotOptions>('Snapshot of the streams of `path`: an object `{ load, key?, timeoutMs?, maxConcurrent? }`, as for `reply.sse()`. Requires `path`. Absent: no state is sent.', { pluginOnly: true }),
  decorators: Type.Object({
    instance: Type.String({ minLength: 1, default: 'sse', description: 'Name of the manager on the Fastify instance.' }),
    reply: Type.String({ minLength: 1, default: 'sse', protects: true, description: 'Name of the method on replies and of the route option.' })
  }, { default: {}, additionalProperties: false, pluginOnly: true, description: 'Names of the decorators.' })
}, { additionalProperties: false })

const { events, history, maxEventBytes, runs } = OptionsSchema.properties

/** The schema of the options of `createPublisher`. */
export const PublisherOptionsSchema = Type.Object({
  broker: Type.Unsafe<Broker>(Type.Unknown({ description: 'Event log that this process shares with the nodes, such as `redisStreamsBroker()`.' })),
  events,
  history: Type.Object(history.properties, { default: {}, additionalProperties: false, description: 'Bounds of the part of the log that is kept for replay. A publisher applies them when it publishes: give it those of the nodes.' }),
  maxEventBytes,
  runs
}, { additionalProperties: false })

/** The schema of the route option `sse` as an object. Each property overrides the option of the plugin for the route. */
export const RouteOptionsSchema = Type.Object({
  requireAuthentication: Type.Optional(Type.Boolean({ protects: true })),
  refusals: Type.Optional(refusals({}))
}, { additionalProperties: false })

/** The route option `sse` as an object. */
export type RouteOptions = Static<typeof RouteOptionsSchema>
/** The options with their defaults. */
export interface ResolvedOptions extends Static<typeof OptionsSchema> {
  /** See `kClock`. */
  readonly clock: Clock
}

/** The options of a publisher with their defaults. */
export interface ResolvedPublisherOptions extends Static<typeof PublisherOptionsSchema> {
  /** See `kClock`. */
  readonly clock: Clock
}

const compiled = TypeCompiler.Compile(OptionsSchema)
const compiledPublisher = TypeCompiler.Compile(PublisherOptionsSchema)
const compiledRoute = TypeCompiler.Compile(RouteOptionsSchema)
const BROKER_METHODS = ['open', 'publish', 'read', 'claim', 'close'] as const

/** Options that are validated already: the plugin passes its own to its manager. */
const complete = new WeakSet<object>()

/**
 * Validates options and returns them with their defaults.
 * @throws SSE_ERR_INVALID_OPTION for an unknown option, a wrong type, an option with the mark `protects` that is `undefined`, or a
 * contradiction between options
 */
export function resolveOptions (given: unknown = {}): ResolvedOptions {
  const options: ResolvedOptions = { ...resolve(OptionsSchema, compiled, given), clock: clockOf(given) }
  assertSense(options)
  complete.add(options)
  return options
}

/**
 * Validates the options of `createPublisher` and returns them with their defaults.
 * @throws SSE_ERR_INVALID_OPTION as `resolveOptions`, and for a broker that cannot be opened for publishing only
 */
export function resolvePublisherOptions (given: unknown): ResolvedPublisherOptions {
  const options: ResolvedPublisherOptions = { ...resolve(PublisherOptionsSchema, compiledPublisher, given), clock: clockOf(given) }
  assertEvents(options)
  const { broker } = options
  if (!broker.shared) throw new InvalidOption('broker', 'is the log of one process, which no node could read: use a log that nodes share, such as redisStreamsBroker()')
  if (typeof broker.openForPublishing !== 'function') throw new InvalidOption('broker', 'cannot be opened for publishing only: it has no method openForPublishing. Use an SSEManager, which is a node')
  return options
}

function clockOf (given: unknown): Clock {
  return (given as { readonly [kClock]?: Clock } | null)?.[kClock] ?? systemClock
}

/**
 * Validates options of `SSEManager` and returns them with their defaults. Rejects options that only the plugin reads, because they
 * would have no effect.
 * @throws SSE_ERR_INVALID_OPTION
 */
export function resolveManagerOptions (given: unknown = {}): ResolvedOptions {
  if (complete.has(given as object)) return given as ResolvedOptions
  for (const [name, schema] of Object.entries<TSchema>(OptionsSchema.properties)) {
    if (schema['pluginOnly'] === true && (given as Record<string, unknown> | null)?.[name] !== undefined) throw new InvalidOption(name, `has no effect in an SSEManager: give it to the plugin, app.register(ssePlugin, { ${name}: … })`)
  }
  return resolveOptions(given)
}

/**
 * Returns the route option `sse`, or null for a route without it.
 * @param name the name of the option, `sse` by default
 * @throws SSE_ERR_INVALID_OPTION
 */
export function resolveRouteOptions (route: { readonly url: string }, name: string): RouteOptions | null {
  const wanted = Object.hasOwn(route, name) ? (route as Record<string, unknown>)[name] : false
  if (wanted === false) return null
  if (wanted === true) return {}
  const where = `of route ${route.url} `
  if (wanted === undefined) throw new InvalidOption(name, `${where}is undefined, which would remove a protection: set a value or omit the option`)
  if (typeof wanted !== 'object' || wanted === null) throw new InvalidOption(name, `${where}must be true, false or an object, got ${shown(wanted)}`)
  return resolve(RouteOptionsSchema, compiledRoute, wanted, { prefix: `${name}.`, where })
}

function assertSense (options: ResolvedOptions): void {
  const { allowedOrigins } = options
  for (const origin of allowedOrigins === '*' ? [] : allowedOrigins) {
    if (origin.includes('*')) throw new InvalidOption('allowedOrigins', `has ${quote(origin)}: wildcards are not supported in the array; list each origin, or set '*' for all`)
    if (!isOrigin(origin)) throw new InvalidOption('allowedOrigins', `has ${quote(origin)}, which is no origin: scheme, host and port as browsers send them, without a slash at the end`)
  }
  assertEvents(options)
  if (options.requireAuthentication && options.authHandler === undefined && options.authStrategies === undefined && options.ticketSecret === undefined) throw new InvalidOption('requireAuthentication', 'needs authHandler, authStrategies or ticketSecret: otherwise no client can connect')
  if (options.clientSubscriptions !== false && options.authorizeSubscription === undefined) throw new InvalidOption('clientSubscriptions', 'needs authorizeSubscription: otherwise clients could read everything')
  if (options.clientSubscriptions !== false && options.path === undefined) throw new InvalidOption('clientSubscriptions', 'needs path: only the built-in endpoint reads ?subscription=')
  if (resolveSnapshot(options.snapshot) !== null && options.path === undefined) throw new InvalidOption('snapshot', 'needs path: give it to reply.sse() in routes of your own')
  for (const topic of options.presenceEvents.topics) assertWatchable(topic)
}

/** Checks the options that say what can be published, and where. */
function assertEvents ({ events, broker, history, maxEventBytes }: Pick<ResolvedOptions, 'events' | 'broker' | 'history' | 'maxEventBytes'>): void {
  if (events !== undefined && !isCatalogue(events)) throw new InvalidOption('events', 'must be the result of defineEvents()')
  if (broker !== undefined) {
    if (typeof broker === 'string') throw new InvalidOption('broker', "is a text: write redisStreamsBroker({ client: 'redis://…' }), which is in fastify-sse-manager/redis")
    const missing = BROKER_METHODS.find(method => typeof (broker as Partial<Broker> | null)?.[method] !== 'function')
    if (missing !== undefined) throw new InvalidOption('broker', `must be a Broker, such as memoryBroker(): it has no method ${missing}`)
  }
  if (maxEventBytes > history.maxBytes) throw new InvalidOption('maxEventBytes', 'must not exceed history.maxBytes: the event could not be kept')
}

function assertWatchable (topic: string): void {
  try {
    assertSubscription(topic)
  } catch (cause) {
    throw new InvalidOption('presenceEvents.topics', `has an invalid topic or pattern: ${(cause as Error).message}`, { cause })
  }
}
