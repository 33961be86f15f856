import type { FastifyBaseLogger, FastifySchema, FastifyTypeProvider, FastifyTypeProviderDefault, RawReplyDefaultExpression, RawRequestDefaultExpression, RawServerBase, RawServerDefault } from 'fastify'
import type { ContextConfigDefault } from 'fastify/types/utils.js'
import type { RouteGenericInterface } from 'fastify/types/route.js'
import type { SSEConnection } from '../lib/connections/connection.js'
import type { SSEManager } from '../lib/manager.js'
import type { SSEUser } from '../lib/access/authentication.js'
import type { ConnectOptions } from '../lib/access/connect-options.js'
import type { Source, SourceFactory, SourceOptions } from '../lib/streams/source.js'
import type { SSERouteOptions } from '../lib/fastify/pin-hooks.js'

export interface ReplySSE {
  /** Streams a source to this client only. Resolves when it has ended, or the client has left. */
  (source: Source | SourceFactory, options?: SourceOptions): Promise<void>
  /** Opens a managed stream. Resolves once the head is sent; rejects before it (401, 403, 406, …). */
  (options?: ConnectOptions): Promise<SSEConnection>
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
