import { InvalidOption } from '../errors.js'
import { suggestion } from '../util/suggestion.js'
import type { HttpRequest, HttpResponse } from '../wire/http.js'
import type { SSEUser } from './authentication.js'

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

/** What `createConnection` is given: a request and response of `node:http` or `node:http2`, also as Express or Koa wrap them. */
export interface CreateConnection extends ConnectOptions {
  request: HttpRequest
  response: HttpResponse
  /** Who this is, when the application knows already; null for nobody. Absent: `authHandler` is asked. */
  user?: SSEUser | null
  /** Added to what `authHandler` is given. */
  authData?: Record<string, unknown>
}

/** Options of `reply.sse(source, options)`. */
export const SOURCE_OPTIONS: readonly string[] = ['clientInfo', 'retryMs', 'lastEventId']
/** Options of `reply.sse(options)`. */
export const CONNECT_OPTIONS: readonly string[] = ['subscriptions', ...SOURCE_OPTIONS]
/** Options of `createConnection(options)`. */
export const CREATE_OPTIONS: readonly string[] = ['request', 'response', 'user', 'authData', ...CONNECT_OPTIONS]

/**
 * Rejects unknown names: a misspelt `subscriptions` would open a stream that receives nothing, a misspelt `user` an anonymous stream.
 * @throws SSE_ERR_INVALID_OPTION
 */
export function assertNames (options: object, names: readonly string[], method: string): void {
  for (const name of Object.keys(options)) if (!names.includes(name)) throw new InvalidOption(name, `of ${method} is not an option: it has ${names.join(', ')}${suggestion(name, names)}`)
}
