import { InvalidOption } from '../errors.js'
import { alternatives } from '../util/suggestion.js'
import type { SnapshotOptions } from '../connections/snapshot-options.js'
import type { HttpRequest, HttpResponse } from '../wire/http.js'
import type { SSEUser } from './authentication.js'

/** Options of `reply.sse()`. The type parameter is that of `snapshot`. */
export interface ConnectOptions<S extends SnapshotOptions = SnapshotOptions> {
  /** Topics and patterns that the connection holds from the start, in addition to those of its ticket. */
  subscriptions?: readonly string[] | undefined
  /** Properties to add to `connection.clientInfo`. */
  clientInfo?: Record<string, unknown> | undefined
  /** Shortest reconnection time for this client in milliseconds, 100 to 3,600,000. Default: option `retryMs`. */
  retryMs?: number | undefined
  /** Cursor after which the client resumes; replaces that of the request. Null: no resume. Default: the cursor of the request. */
  lastEventId?: string | null | undefined
  /** Loads the state that the client receives before the events that change it. Absent: no state is sent. */
  snapshot?: S | undefined
}

/** Options of any new stream. */
export interface EnterOptions extends ConnectOptions {
  /** See `SourceOptions`. */
  readonly control?: boolean
}

/** Options of `createConnection()`. The type parameter is that of `snapshot`. */
export interface CreateConnection<S extends SnapshotOptions = SnapshotOptions> extends ConnectOptions<S> {
  /** The request of `node:http` or `node:http2`; requests of Express and `ctx.req` of Koa are such requests. */
  request: HttpRequest
  /** The response of the request. */
  response: HttpResponse
  /** The authenticated user, or null for an anonymous connection. Absent: `authHandler` is called. `undefined` is rejected. */
  user?: SSEUser | null
  /** Properties to add to the first argument of `authHandler`. */
  authData?: Record<string, unknown> | undefined
}

/** Names of the options of `reply.sse(source, options)`. */
export const SOURCE_OPTIONS: readonly string[] = ['clientInfo', 'retryMs', 'lastEventId', 'control']
/** Names of the options of `reply.sse(options)`. */
export const CONNECT_OPTIONS: readonly string[] = ['subscriptions', 'snapshot', 'clientInfo', 'retryMs', 'lastEventId']
/** Names of the options of `createConnection(options)`. */
export const CREATE_OPTIONS: readonly string[] = ['request', 'response', 'user', 'authData', ...CONNECT_OPTIONS]

/**
 * Rejects unknown names. A misspelt `subscriptions` would open a stream that receives no event, a misspelt `user` an anonymous one.
 * @throws SSE_ERR_INVALID_OPTION
 */
export function assertNames (options: object, names: readonly string[], method: string): void {
  for (const name of Object.keys(options)) if (!names.includes(name)) throw new InvalidOption(name, `of ${method} is not an option${alternatives(name, names)}`)
}
