import type { Static, TSchema } from '@sinclair/typebox'
import type { FastifyBaseLogger, FastifySchema, FastifyTypeProvider, FastifyTypeProviderDefault, RawReplyDefaultExpression, RawRequestDefaultExpression, RawServerBase, RawServerDefault } from 'fastify'
import type { ContextConfigDefault } from 'fastify/types/utils.js'
import type { RouteGenericInterface } from 'fastify/types/route.js'
import type { Target } from '../lib/log/broker.js'
import type { Notification, NotificationLevel } from '../lib/events/catalogue.js'
import type { SSEConnection } from '../lib/connections/connection.js'
import type { EventPriority } from '../lib/events/event.js'
import type { SSEManager } from '../lib/manager.js'
import type { RouteOptions, SSEUser } from '../lib/options.js'

/**
 * Augment this once, in a file that imports from the package, and names and payloads are checked at compile time everywhere:
 *
 *     declare module 'fastify-sse-manager' { interface Register { catalogue: typeof events } }
 */
export interface Register {}

type Payloads<S extends Record<string, TSchema>> = { [N in keyof S & string]: Static<S[N]> }
type Events = Register extends { catalogue: { events: infer E extends Record<string, TSchema> } } ? Payloads<E> : Record<string, unknown>
type Resources = Register extends { catalogue: { resources: infer R extends Record<string, TSchema> } } ? Payloads<R> : Record<string, unknown>

/** A resource of the registered catalogue; without one any string. */
export type ResourceName = keyof Resources & string
export type ResourcePayload<N extends ResourceName> = Resources[N]
/** An event of the registered catalogue, or a built-in one; without a catalogue any string. */
export type EventName = (keyof Events & string) | 'data' | 'notification'

/** What an event carries beside its name and data. */
export interface EventOptions {
  /** Order of delivery in a backlog. Default NORMAL; notifications made by this package HIGH. */
  priority?: EventPriority
  /** Reconnection time this event tells the client, 100 to 3,600,000 milliseconds. */
  retry?: number
  /** Conflation: an undelivered older event with the same key and target is replaced by this one. 1 to 256 characters. */
  key?: string
}

type AnyEvent = { event?: string, data: unknown }
type CatalogueEvent = { [N in keyof Events & string]: N extends 'message' ? { event?: N, data: Events[N] } : { event: N, data: Events[N] } }[keyof Events & string]
type DataEvent = { [N in ResourceName]: { event: 'data', data: { resource: N, data: Resources[N] } } }[ResourceName]
type NotificationEvent = { event: 'notification', data: NotificationInput }

/** `{ event, data }`: with a registered catalogue exactly its names and payloads; without one any name and data. No name is `message`. */
export type EventInput = EventOptions & (Register extends { catalogue: unknown } ? CatalogueEvent | DataEvent | NotificationEvent : AnyEvent)

/** A notification as the application gives it. */
export interface NotificationInput {
  title: string
  message: string
  /** Default `info`. */
  level?: NotificationLevel
  actions?: NonNullable<Notification['actions']>
}

/** Who gets a broadcast, and how. Users and subscriptions intersect; nothing named means everyone. */
export interface BroadcastOptions extends Target, EventOptions {
  /** Not logged: no id, no replay, and dropped first under pressure. Default false. */
  ephemeral?: boolean
  /** This node only; implies `ephemeral`. Default false. */
  local?: boolean
}

/** What became of a broadcast. */
export interface Delivery {
  /** The event's id, null when it was ephemeral. */
  id: string | null
  /** Connections of this node that it was written or queued for. */
  delivered: number
}

/** Options of `reply.sse()`. */
export interface ConnectOptions {
  /** Topics and patterns to hold from the start. */
  subscriptions?: readonly string[]
  /** What the application wants to find again in `clientInfo`. */
  clientInfo?: Record<string, unknown>
  /** Reconnection time told to this client, 100 to 3,600,000 milliseconds. Default: option `retryMs`. */
  retryMs?: number
  /** The cursor to resume after, in place of the request's own; null for none. */
  lastEventId?: string | null
}

export type SourceOptions = Omit<ConnectOptions, 'subscriptions'>

/** An event of a stream of its own; `id` is the application's. Strings go as they are, anything else as JSON. */
export interface SourceEvent {
  event?: string
  data: unknown
  id?: string
  retry?: number
}
export type SourceItem = string | Uint8Array | SourceEvent
/** An iterable or async iterable, which Node and web streams are; or a function that makes one. */
export type Source = Iterable<SourceItem> | AsyncIterable<SourceItem> | ReadableStream<SourceItem>
export type SourceFactory = (context: { signal: AbortSignal, lastEventId: string | null }) => Source | Promise<Source>

export interface ReplySSE {
  /** Streams a source to this client only. Resolves when it has ended, or the client has left. */
  (source: Source | SourceFactory, options?: SourceOptions): Promise<void>
  /** Opens a managed stream. Resolves once the head is sent; rejects before it (401, 403, 406, …). */
  (options?: ConnectOptions): Promise<SSEConnection>
}

export interface SSERouteOptions {
  /** Overrides the plugin's option for this route. */
  requireAuthentication?: boolean
  /** Overrides the plugin's option for this route: `'auto'`, `'status'` or `'stop'`. */
  refusals?: RouteOptions['refusals']
}

declare module 'fastify' {
  interface FastifyInstance {
    sse: SSEManager
  }
  interface FastifyReply {
    sse: ReplySSE
  }
  interface FastifyRequest {
    /** The user of the request: set at the end of `onRequest` on a route with `sse`; null for an anonymous client. Hooks of the application may set it before; if they set it later, it counts at `reply.sse()`. */
    sseUser: SSEUser | null
  }
  interface RouteShorthandOptions<
    RawServer extends RawServerBase = RawServerDefault,
    RawRequest extends RawRequestDefaultExpression<RawServer> = RawRequestDefaultExpression<RawServer>,
    RawReply extends RawReplyDefaultExpression<RawServer> = RawReplyDefaultExpression<RawServer>,
    RouteGeneric extends RouteGenericInterface = RouteGenericInterface,
    ContextConfig = ContextConfigDefault,
    SchemaCompiler extends FastifySchema = FastifySchema,
    TypeProvider extends FastifyTypeProvider = FastifyTypeProviderDefault,
    Logger extends FastifyBaseLogger = FastifyBaseLogger
  > {
    /** Authenticates the request in `onRequest`, after the route's own hooks. Throws at boot: SSE_ERR_UNGUARDED_ROUTE if no plugin in the scope of the route reads it, SSE_ERR_INVALID_OPTION. */
    sse?: boolean | SSERouteOptions
  }
}
