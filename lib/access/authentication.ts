import { AuthenticationFailed, InvalidUser, Unauthenticated } from '../errors.js'
import type { Claims } from '../events/event-input.js'
import type { AnyRequest, FastifyRequest } from '../wire/http.js'
import { isThenable } from '../util/promise.js'
import { ownText } from '../util/text.js'
import type { Clock } from '../util/clock.js'

/** The data of a request for authentication, the first argument of `authHandler`. */
export interface AuthData {
  /** The token of the header `Authorization: Bearer …`; null if there is none. */
  readonly token: string | null
  /** The cookies: those of `@fastify/cookie` if it is registered, otherwise parsed from the header. */
  readonly cookies: Readonly<Record<string, string | undefined>>
  /** The query: `request.query` of Fastify, otherwise the first value of each parameter of the URL. */
  readonly query: Readonly<Record<string, unknown>>
  /** The request headers, with names in lower case. */
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  /** Properties that the option `extractAuthData` returns. */
  readonly [key: string]: unknown
}

/** The user of a request. */
export interface SSEUser {
  /** The user id. Must not be empty. */
  readonly userId: string
  /**
   * Expiry of the user's rights in milliseconds since the Unix epoch. The stream is then closed with the reason `auth-expired`. Null or
   * absent: the rights do not expire. `undefined` and times in seconds are rejected.
   */
  readonly expiresAt?: number | null
  /** Any value of the application; it becomes `connection.claims`. */
  readonly claims?: Claims
}

/**
 * Key of the user that a test assigns to a request (`fastify-sse-manager/testing`). It is a symbol, because input from the network
 * cannot set symbols.
 */
export const kTestUser = Symbol.for('fastify-sse-manager.test-user')

type Marked = { readonly [kTestUser]?: SSEUser }

/** Returns the user that a test has assigned to a request; null in production. */
export function testUserOf (request: AnyRequest): SSEUser | null {
  return ((request as { readonly raw?: Marked }).raw ?? request as Marked)[kTestUser] ?? null
}

/** The result of `authHandler`: a user id, a user, or null for an unauthenticated client. */
export type AuthResult = string | SSEUser | null

/**
 * The option `authHandler`: returns the user of a request, or null if the client is unauthenticated. An exception with the `statusCode`
 * 401 or 403 has the effect of null. With any other exception, the request is rejected with SSE_ERR_AUTHENTICATION_FAILED.
 * The request is that of Fastify. `createConnection()` passes a request of Node.js: `AuthHandler<HttpRequest>`.
 * @example
 * ```ts
 * import ssePlugin, { type AuthHandler } from 'fastify-sse-manager'
 *
 * const authHandler: AuthHandler = async ({ cookies }) => {
 *   const session = await findSession(cookies.session)
 *   return session === null ? null : { userId: session.userId, expiresAt: session.expiresAt }
 * }
 * await app.register(ssePlugin, { authHandler })
 * ```
 */
export type AuthHandler<R extends AnyRequest = FastifyRequest> = (authData: AuthData, request: R) => AuthResult | PromiseLike<AuthResult>

/** The options that concern authentication. */
export interface AuthenticationOptions {
  /** The clock of the node. */
  readonly clock: Clock
  /** See `SSEOptions`. */
  readonly requireAuthentication: boolean
  /** See `SSEOptions`. */
  readonly authHandler?: AuthHandler<any> | undefined
  /** See `SSEOptions`. */
  readonly extractAuthData?: ((request: any) => Record<string, unknown>) | undefined
  /** See `SSEOptions`. */
  readonly allowedOrigins: '*' | readonly string[]
}

/** Returns bearer token, cookies, query and headers of a request, and the properties that `extract` adds. */
export function authDataOf (request: AnyRequest, extract?: AuthenticationOptions['extractAuthData']): AuthData {
  const { headers } = request
  const token = /^Bearer +(\S+)$/i.exec(headers.authorization ?? '')?.[1] ?? null
  const cookies = decoration(request, 'cookies') ?? parseCookies(headers.cookie)
  const query = decoration(request, 'query') ?? queryOf('raw' in request ? request.raw : request)
  return { token, cookies, query, headers, ...extract?.(request) }
}

/** Returns a property that the framework has added to the request, or null: `@fastify/cookie` sets `null` until its hook has run. */
function decoration<N extends 'cookies' | 'query'> (request: AnyRequest, name: N): AuthData[N] | null {
  const value: unknown = name in request ? (request as Partial<Record<N, unknown>>)[name] : null
  return typeof value === 'object' && value !== null ? value as AuthData[N] : null
}

/** Returns the first value of a query parameter of a request; null if there is none. */
export function parameterOf ({ url = '' }: { url?: string | undefined }, name: string): string | null {
  const start = url.indexOf('?')
  // Most requests do not have the parameter. This check avoids parsing their query.
  if (start < 0 || !url.includes(name, start)) return null
  return new URLSearchParams(url.slice(start)).get(name)
}

/** Returns the query of a plain request, with the first value of each parameter. */
export function queryOf (request: { url?: string | undefined }): Record<string, string> {
  const url = request.url ?? ''
  // Without a prototype, because a parameter can be named `constructor`.
  const query: Record<string, string> = Object.create(null)
  const start = url.indexOf('?')
  if (start < 0) return query
  for (const [name, value] of new URLSearchParams(url.slice(start))) query[name] ??= value
  return query
}

/**
 * Calls `authHandler`. Returns its user, or null if the client is unauthenticated. There is no time limit here; an application can use
 * Fastify's `handlerTimeout`.
 * @throws SSE_ERR_AUTHENTICATION_FAILED, with the cause, if code of the application fails
 */
export function findUser (options: AuthenticationOptions, request: AnyRequest, extra?: Record<string, unknown>): SSEUser | null | Promise<SSEUser | null> {
  const { authHandler, extractAuthData } = options
  if (authHandler === undefined) return null
  try {
    const data = authDataOf(request, extractAuthData)
    const result = authHandler(extra === undefined ? data : { ...data, ...extra }, request)
    return isThenable(result) ? Promise.resolve(result).then(user => currentUser(user, options)).catch(nobody) : currentUser(result, options)
  } catch (cause) {
    return nobody(cause)
  }
}

/** Returns null for an exception that means "unauthenticated", and throws for any other. */
function nobody (cause: unknown): null {
  if (isRefusal(cause)) return null
  throw new AuthenticationFailed('', { cause })
}

/**
 * Calls `authHandler`, and applies `requireAuthentication`. Resolves with null for an unauthenticated client if that is allowed.
 * @throws SSE_ERR_UNAUTHENTICATED; SSE_ERR_AUTHENTICATION_FAILED, with the cause, if code of the application fails
 */
export async function authenticate (options: AuthenticationOptions, request: AnyRequest, extra?: Record<string, unknown>): Promise<SSEUser | null> {
  const user = await findUser(options, request, extra)
  if (user === null && options.requireAuthentication) throw new Unauthenticated()
  return user
}

/** Returns whether an error means "unauthenticated": its `statusCode` is 401 or 403. Any other error is a failure. */
export function isRefusal (error: unknown): boolean {
  return error instanceof Error && 'statusCode' in error && (error.statusCode === 401 || error.statusCode === 403)
}

/**
 * Validates a user from the application. Returns null for an unauthenticated client, and for expired rights.
 * @throws SSE_ERR_INVALID_USER
 */
export function currentUser (result: unknown, { clock }: { readonly clock: Clock }): SSEUser | null {
  const user = toUser(result)
  return typeof user?.expiresAt === 'number' && user.expiresAt <= clock.wall() ? null : user
}

function toUser (result: unknown): SSEUser | null {
  if (result === null || result === undefined) return null
  if (typeof result === 'string' && result !== '') return { userId: ownText(result) }
  if (typeof result === 'object' && 'userId' in result && typeof result.userId === 'string' && result.userId !== '') {
    const user = result as SSEUser
    if (isEnd(user)) return user
  }
  throw new InvalidUser(describe(result))
}

/** Returns the fault of an invalid user for the error message. */
function describe (result: unknown): string {
  if (typeof result !== 'object' || result === null) return result === '' ? 'an empty string' : `a ${typeof result}`
  if (result instanceof Promise) return 'a promise: await it first'
  const { userId, expiresAt } = result as { userId?: unknown, expiresAt?: unknown }
  if (typeof userId !== 'string' || userId === '') return `an object whose userId is ${userId === '' ? 'empty' : `of type ${typeof userId}`}`
  return `an object whose expiresAt is ${typeof expiresAt === 'number' ? `${expiresAt}${expiresAt >= 1e9 ? ', which looks like seconds' : ''}` : `of type ${typeof expiresAt}`}`
}

/** Returns whether `expiresAt` is a time, null or absent. `undefined` is invalid: a misspelt variable would give rights without end. */
export function isEnd (rights: { readonly expiresAt?: unknown }): boolean {
  return !('expiresAt' in rights) || rights.expiresAt === null || isTime(rights.expiresAt)
}

/** Returns whether a value is a time in milliseconds. Numbers from 1e9 to 1e11 are times in seconds, such as `exp` of a token. */
function isTime (value: unknown): value is number {
  return Number.isFinite(value) && !((value as number) >= 1e9 && (value as number) < 1e11)
}

function parseCookies (header: string | undefined): Record<string, string> {
  const cookies: Record<string, string> = Object.create(null)
  for (const part of header?.split(';') ?? []) {
    const equals = part.indexOf('=')
    if (equals < 0) continue
    const name = part.slice(0, equals).trim()
    const value = part.slice(equals + 1).trim().replace(/^"(.*)"$/, '$1')
    if (name in cookies) continue
    try {
      cookies[name] = decodeURIComponent(value)
    } catch {
      // The value is not percent-encoded.
      cookies[name] = value
    }
  }
  return cookies
}
