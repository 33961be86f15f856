import type { FastifyBaseLogger, FastifySchema, FastifyTypeProvider, FastifyTypeProviderDefault, RawReplyDefaultExpression, RawRequestDefaultExpression, RawServerBase, RawServerDefault } from 'fastify'
import type { ContextConfigDefault } from 'fastify/types/utils.js'
import type { RouteGenericInterface } from 'fastify/types/route.js'
import type { SSEConnection } from '../lib/connections/connection.js'
import type { AnyCatalogue, RegisteredCatalogue } from '../lib/events/event-input.js'
import type { ConnectionSnapshot } from '../lib/connections/snapshot-options.js'
import type { SSEManager } from '../lib/manager.js'
import type { Run } from '../lib/runs/run.js'
import type { SSEUser } from '../lib/access/authentication.js'
import type { ConnectOptions } from '../lib/access/connect-options.js'
import type { Source, SourceFactory, SourceOptions } from '../lib/streams/source.js'
import type { SSERouteOptions } from '../lib/fastify/pin-hooks.js'

/** The type of `reply.sse()`. In a program with several catalogues, that of a plugin with the option `decorators.reply`. */
export interface ReplySSE<C extends AnyCatalogue = RegisteredCatalogue> {
  /**
   * Opens a managed stream, which receives broadcasts. Resolves when the headers are sent. If it rejects, no headers were sent.
   * @throws SSE_ERR_UNAUTHENTICATED, SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_INVALID_OPTION,
   * SSE_ERR_NOT_ACCEPTABLE, SSE_ERR_TOO_MANY_*, SSE_ERR_HEAD_ALREADY_SENT, SSE_ERR_CLIENT_GONE, SSE_ERR_CLOSED
   * @example
   * ```ts
   * const connection = await reply.sse({ subscriptions: ['news'] })
   * ```
   */
  (options?: ConnectOptions<ConnectionSnapshot>): Promise<SSEConnection<C>>
  /**
   * Streams a source to this client only. Resolves when the source has ended, or the client has disconnected.
   * @throws SSE_ERR_UNAUTHENTICATED, SSE_ERR_INVALID_SOURCE, SSE_ERR_INVALID_OPTION, SSE_ERR_NOT_ACCEPTABLE, SSE_ERR_TOO_MANY_*,
   * SSE_ERR_HEAD_ALREADY_SENT, SSE_ERR_CLIENT_GONE, SSE_ERR_CLOSED
   * @example
   * ```ts
   * app.get('/answer', { sse: true }, (request, reply) => reply.sse(({ signal }) => tokens(request.query, signal)))
   * ```
   */
  (source: Source | SourceFactory, options?: SourceOptions): Promise<void>
  /**
   * Streams a run to this client: from its cursor, otherwise from the beginning. Resolves when the run has ended, or the client has
   * disconnected; the run goes on without it. Answers with 204 if the client has received all, or if the run is null and the request has no
   * id of a run.
   * @throws as for a source
   * @example
   * ```ts
   * app.get('/answer', { sse: true }, async (request, reply) => reply.sse(await app.sse.getRun('answer:7', { ownerId: 'ada' })))
   * ```
   */
  (run: Run | null, options?: SourceOptions): Promise<void>
  // The last one, as TypeScript explains why a call does not match that.
  /** Opens a managed stream with a snapshot that clients share, or with one of which the type does not say whether they do. */
  (options?: ConnectOptions): Promise<SSEConnection<C>>
}

declare module 'fastify' {
  interface FastifyInstance {
    /** The manager of this instance. The option `decorators.instance` changes its name. */
    sse: SSEManager
  }
  interface FastifyReply {
    /** Opens an event stream. The option `decorators.reply` changes its name. */
    sse: ReplySSE
  }
  interface FastifyRequest {
    /**
     * The authenticated user; null for an unauthenticated client. On routes with the option `sse` it is set at the end of `onRequest`.
     * Hooks of the application can set it before that. A user that they set later is used by `reply.sse()`.
     */
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
    /**
     * Authenticates requests of the route in `onRequest`, after the route's own hooks. `true` uses the options of the plugin. Errors at
     * boot: SSE_ERR_INVALID_OPTION, and SSE_ERR_UNGUARDED_ROUTE if no plugin in the scope of the route reads the option.
     */
    sse?: boolean | SSERouteOptions
  }
}
