import { Type, type SchemaOptions, type Static, type TSchema } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { FastifyAuthFunction } from '@fastify/auth'
import type { Broker } from './log/broker.js'
import { isCatalogue, type Catalogue } from './events/catalogue.js'
import type { AnyRequest } from './wire/http.js'
import { InvalidOption } from './errors.js'
import { MAX_BEAT_MS } from './cluster/node-message.js'
import { assertSubscription } from './events/topic.js'
import { any, bytes, count, durationMs, fn, resolve } from './util/schema.js'
import { kClock, systemClock, type Clock } from './util/clock.js'
import type { AuthHandler } from './access/authentication.js'
import type { AuthorizeTopic } from './subscriptions/audience.js'
import type { AuthorizeSubscription } from './subscriptions/authorization.js'

const refusals = (options: SchemaOptions) => Type.Union([Type.Literal('auto'), Type.Literal('status'), Type.Literal('stop')], options)

/** Every option: its type, range, default and meaning. README's table, the boot check and the public type are made from it. */
export const OptionsSchema = Type.Object({
  // authentication
  requireAuthentication: Type.Boolean({ default: false, protects: true, description: 'No stream without a user: 401 otherwise.' }),
  authHandler: fn<AuthHandler>('`(authData, request)` → user id, `{ userId, expiresAt?, claims? }` or `null`.', { protects: true }),
  extractAuthData: fn<(request: AnyRequest) => Record<string, unknown>>('`(request)` → properties added to `authData`.'),
  authStrategies: Type.Optional(Type.Unsafe<(FastifyAuthFunction | FastifyAuthFunction[])[]>(Type.Array(Type.Union([Type.Function([], Type.Unknown()), Type.Array(Type.Function([], Type.Unknown()))]), { minItems: 1, description: 'Functions of `@fastify/auth`, run before `authHandler`; they may set `request.sseUser`.', protects: true, pluginOnly: true }))),
  authRelation: Type.Union([Type.Literal('or'), Type.Literal('and')], { default: 'or', protects: true, pluginOnly: true, description: 'Whether one of `authStrategies` must pass, or all.' }),
  ticketSecret: Type.Optional(Type.Union([Type.String({ minLength: 32 }), Type.Array(Type.String({ minLength: 32 }), { minItems: 1 })], { description: 'Signs tickets; at least 32 characters of a random generator. Of several the first signs and all are good: add a new one in front, and drop the old one a `ticketTtlMs` later. Absent: there are no tickets.' })),
  ticketTtlMs: durationMs('How long a ticket is good, in milliseconds.', 30_000, 1_000, 600_000),
  authorizeSubscription: fn<AuthorizeSubscription>('`({ request, userId, claims, subscriptionId })` → whether the user may hold the subscription; asked at connect and when one is added. Absent: what the application subscribes is allowed.', { protects: true }),
  authorizeTopic: fn<AuthorizeTopic>('`({ userId, claims, topic, connection })` → whether an event of this topic is for a connection that holds only a pattern of it; asked at each delivery and replay, so it answers at once. Absent: what a pattern covers is allowed with it.', { protects: true }),
  allowedOrigins: Type.Union([Type.Literal('*'), Type.Array(Type.String({ minLength: 1 }))], { default: [], description: 'Origins whose pages may open streams beside those of this server\'s own, such as `https://app.example` or `capacitor://localhost`; others get 403. `\'*\'`: all.' }),
  // stream
  keepAlive: Type.Boolean({ default: true, description: 'Whether a silent stream carries comments that keep proxies and clients awake.' }),
  keepAliveIntervalMs: durationMs('Silence after which a keep-alive is sent, in milliseconds.', 15_000, 10),
  retryMs: durationMs('Reconnection time told to clients, in milliseconds.', 3_000, 100, 3_600_000),
  maxConnectionAgeMs: durationMs('Age at which a stream is ended for the client to come back, in milliseconds, less a random fifth; 0 for never.', 0),
  stallTimeoutMs: durationMs('Time without a byte taken by the socket after which a stream is ended, in milliseconds; 0 for never.', 30_000),
  // delivery
  events: any<Catalogue<any, any>>('Catalogue made by `defineEvents`. Absent: anything that has a JSON form may be sent.'),
  history: Type.Object({
    maxEvents: Type.Integer({ minimum: 1, maximum: 2 ** 26, default: 10_000, description: 'Events kept for replay.' }),
    maxAgeMs: durationMs('Age to which events are kept for replay, in milliseconds.', 300_000, 1),
    maxBytes: bytes('Bytes of events kept for replay: texts, keys, the ids in their targets, 16 KB for each filter. The objects of each event, some 300 bytes, come on top: `maxEvents` bounds them.', 64 * 1024 * 1024)
  }, { default: {}, additionalProperties: false, description: 'How much of the log is kept.' }),
  outboxBytes: bytes('Bytes that wait for one slow client: texts, keys, ids of targets, 400 for each event, 16 KB for each filter; beyond that it reads on from the log.', 1024 * 1024),
  maxQueuedBytes: bytes('Bytes that wait for all clients of this node together, what several wait for counted once; beyond that logged events are read from the log later, and others are dropped. What is being written, one event for each client at most, comes on top.', 256 * 1024 * 1024),
  flush: Type.Union([Type.Literal('immediate'), Type.Object({ intervalMs: Type.Integer({ minimum: 1, maximum: 10_000 }) }, { additionalProperties: false })], { default: 'immediate', description: "`'immediate'`: one write per connection and turn of the event loop; `{ intervalMs }`: one per interval." }),
  // limits
  maxConnections: count('Streams on this node, those that are being let in included; 0 for no limit. Beyond: 503.', 0),
  maxConnectionsPerUser: count('Streams of one user on this node; 0 for no limit. Beyond: 429.', 0),
  maxConnectionsPerIp: count('Streams from one address on this node, of IPv6 from one /64; 0 for no limit. Beyond: 429. Behind a proxy it needs `trustProxy`.', 0),
  maxSubscriptionsPerConnection: Type.Integer({ minimum: 1, maximum: 100_000, default: 128, description: 'Subscriptions one connection may hold.' }),
  maxEventBytes: bytes('Bytes of one event: its data as it is written, with six more for each line after the first, its name, its key, and the ids in its target, 32 added for each. Items of `reply.sse(source)` are not limited: they wait in the source.', 1024 * 1024, 1),
  maxReplayEvents: count('Events of the log a returning client may be behind; beyond, it gets a gap instead of a replay; 0 for no limit but the history.', 0),
  maxReplayBytes: count('Bytes of the log that a returning client is sent; beyond, it gets a gap instead of the rest; 0 for no limit but the history.', 0),
  maxConcurrentReplays: Type.Integer({ minimum: 1, maximum: 10_000, default: 32, description: 'Pages of the log read at the same time in one turn of the event loop, for clients of this node that return or are slow; others wait for the next turn.' }),
  refusals: refusals({ default: 'auto', description: "How a GET request that asks for `text/event-stream` is refused. `'auto'`: when coming back may help (429, 503, an authentication that failed to answer), with a stream that tells when to, and ends; otherwise by status. `'status'`: by status. `'stop'`: as `'auto'`, and with 204 in place of any other 4xx." }),
  clientSubscriptions: Type.Union([Type.Boolean(), Type.Literal('patterns')], { default: false, pluginOnly: true, description: 'Whether clients of `path` may choose their topics with `?subscription=`; `\'patterns\'` lets them use wildcards too. Needs `authorizeSubscription`.' }),
  drainMs: durationMs('Time that closing waits for clients to read what they were sent, in milliseconds; the reconnection time told at shutdown is at least this.', 5_000, 0, 3_600_000),
  // other nodes
  cluster: Type.Object({
    nodeName: Type.Optional(Type.String({ minLength: 1, maxLength: 128, description: 'What `clusterStats()` calls this node, beside its id.' })),
    heartbeatIntervalMs: durationMs('How often a node tells the others that it lives, in milliseconds; one that misses three is gone.', 2_000, 100, MAX_BEAT_MS),
    answerTimeoutMs: durationMs('Time that other nodes have to answer, in milliseconds.', 2_000, 100, 60_000)
  }, { default: {}, additionalProperties: false, description: 'How nodes that share a log know each other.' }),
  presenceEvents: Type.Object({
    topics: Type.Array(Type.String(), { default: [], maxItems: 100, description: 'Topics, or patterns of them, whose hearers are sent `sse:join` and `sse:leave`.' }),
    lingerMs: durationMs('Time that a user who has left has to come back unnoticed, in milliseconds.', 5_000)
  }, { default: {}, additionalProperties: false, description: 'Who is told who comes and who leaves.' }),
  // wiring
  broker: any<Broker>('The log that nodes share. Absent: `memoryBroker()`.'),
  path: Type.Optional(Type.String({ pattern: '^/', pluginOnly: true, description: 'Registers a ready GET endpoint at this path.' })),
  decorators: Type.Object({
    instance: Type.String({ minLength: 1, default: 'sse', description: 'Name of the manager on the Fastify instance.' }),
    reply: Type.String({ minLength: 1, default: 'sse', protects: true, description: 'Name of the method on replies, and of the route option.' })
  }, { default: {}, additionalProperties: false, pluginOnly: true, description: 'Names of the decorators.' })
}, { additionalProperties: false })

/** What the route option `sse` may say beside `true` and `false`: each replaces the plugin's option for the route. */
export const RouteOptionsSchema = Type.Object({
  requireAuthentication: Type.Optional(Type.Boolean({ protects: true })),
  refusals: Type.Optional(refusals({}))
}, { additionalProperties: false })

export type RouteOptions = Static<typeof RouteOptionsSchema>
export interface ResolvedOptions extends Static<typeof OptionsSchema> {
  /** See `kClock`. */
  readonly clock: Clock
}

const compiled = TypeCompiler.Compile(OptionsSchema)
const compiledRoute = TypeCompiler.Compile(RouteOptionsSchema)
const BROKER_METHODS = ['open', 'publish', 'read', 'claim', 'close'] as const

/** Options that are complete: the plugin gives its own to its manager. */
const complete = new WeakSet<object>()

/** Fills in defaults. Throws SSE_ERR_INVALID_OPTION, which names the option, for an unknown key, a wrong type, a protection that is `undefined`, or a combination that makes no sense. */
export function resolveOptions (given: unknown = {}): ResolvedOptions {
  const options: ResolvedOptions = { ...resolve(OptionsSchema, compiled, given), clock: (given as { readonly [kClock]?: Clock })[kClock] ?? systemClock }
  assertSense(options)
  complete.add(options)
  return options
}

/** See `resolveOptions`. Without the plugin, an option that only the plugin reads would protect nothing, or open nothing. */
export function resolveManagerOptions (given: unknown = {}): ResolvedOptions {
  if (complete.has(given as object)) return given as ResolvedOptions
  for (const [name, schema] of Object.entries<TSchema>(OptionsSchema.properties)) {
    if (schema['pluginOnly'] === true && (given as Record<string, unknown> | null)?.[name] !== undefined) throw new InvalidOption(name, `has no effect in an SSEManager: give it to the plugin, app.register(ssePlugin, { ${name}: … })`)
  }
  return resolveOptions(given)
}

/** The route option `sse`, whatever its name; null for a route without it. Throws SSE_ERR_INVALID_OPTION, which names the route. */
export function resolveRouteOptions (route: { readonly url: string }, name: string): RouteOptions | null {
  const wanted = Object.hasOwn(route, name) ? (route as Record<string, unknown>)[name] : false
  if (wanted === false) return null
  if (wanted === true) return {}
  const where = `of route ${route.url} `
  if (wanted === undefined) throw new InvalidOption(name, `${where}is undefined, which would take a protection away: write true or false, or leave it out`)
  if (typeof wanted !== 'object' || wanted === null) throw new InvalidOption(name, `${where}must be true, false or an object`)
  return resolve(RouteOptionsSchema, compiledRoute, wanted, { prefix: `${name}.`, where })
}

function assertSense (options: ResolvedOptions): void {
  const { events, broker, allowedOrigins } = options
  if (allowedOrigins !== '*') for (const origin of allowedOrigins) if (!isOrigin(origin)) throw new InvalidOption('allowedOrigins', `has ${JSON.stringify(origin)}, which is no origin: scheme, host and port as browsers send them, without a slash at the end`)
  if (events !== undefined && !isCatalogue(events)) throw new InvalidOption('events', 'must be made by defineEvents()')
  if (broker !== undefined) {
    const missing = BROKER_METHODS.find(method => typeof (broker as Partial<Broker> | null)?.[method] !== 'function')
    if (missing !== undefined) throw new InvalidOption('broker', `must be a Broker, such as memoryBroker(): it has no method ${missing}`)
  }
  if (options.requireAuthentication && options.authHandler === undefined && options.authStrategies === undefined && options.ticketSecret === undefined) throw new InvalidOption('requireAuthentication', 'needs authHandler, authStrategies or ticketSecret: nobody could connect')
  if (options.clientSubscriptions !== false && options.authorizeSubscription === undefined) throw new InvalidOption('clientSubscriptions', 'needs authorizeSubscription: clients could read everything')
  if (options.clientSubscriptions !== false && options.path === undefined) throw new InvalidOption('clientSubscriptions', 'needs path: only the ready endpoint reads ?subscription=')
  for (const topic of options.presenceEvents.topics) assertWatchable(topic)
  if (options.maxEventBytes > options.history.maxBytes) throw new InvalidOption('maxEventBytes', 'must not exceed history.maxBytes: the event could not be kept')
}

/** Outside the web, such as `capacitor://localhost` or `file://`: `URL` knows no origin of these. */
const CUSTOM_ORIGIN = /^[a-z][a-z0-9+.-]*:\/\/[^\s/?#\\@,*]*$/

/** Whether browsers and web views may send this as `Origin`. */
function isOrigin (text: string): boolean {
  if (text === 'null') return true
  if (!URL.canParse(text)) return false
  const { origin } = new URL(text)
  return origin === 'null' ? CUSTOM_ORIGIN.test(text) : origin === text
}

function assertWatchable (topic: string): void {
  try {
    assertSubscription(topic)
  } catch (cause) {
    throw new InvalidOption('presenceEvents.topics', `has no topic or pattern: ${(cause as Error).message}`, { cause })
  }
}
