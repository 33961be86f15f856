import { AuthenticationFailed, InvalidUser, OriginForbidden, Unauthenticated } from '../errors.js'
import type { AnyRequest } from '../wire/http.js'
import { isThenable } from '../util/promise.js'
import { quote } from '../util/quote.js'
import { ownText } from '../util/text.js'
import type { Clock } from '../util/clock.js'

/** What a request brings that an authentication may rest on. */
export interface AuthData {
  /** The token of `Authorization: Bearer …`, or null. */
  readonly token: string | null
  readonly cookies: Readonly<Record<string, string | undefined>>
  readonly query: Readonly<Record<string, unknown>>
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  /** What the application's `extractAuthData` adds. */
  readonly [key: string]: unknown
}

/** Who a request is from. */
export interface SSEUser {
  readonly userId: string
  /** When the rights end, in milliseconds since the epoch; the stream ends then. Absent or null: they do not end by themselves. */
  readonly expiresAt?: number | null
  /** Whatever the application wants to find again on the connection. */
  readonly claims?: unknown
}

/** The user that a test gives a request of its own process (`fastify-sse-manager/testing`). A symbol: nothing that arrives from a network can set it. */
export const kTestUser = Symbol.for('fastify-sse-manager.test-user')

type Marked = { readonly [kTestUser]?: SSEUser }

/** See `kTestUser`; null for every request of production. */
export function testUserOf (request: AnyRequest): SSEUser | null {
  return ((request as { readonly raw?: Marked }).raw ?? request as Marked)[kTestUser] ?? null
}

export type AuthResult = string | SSEUser | null

export type AuthHandler = (authData: AuthData, request: AnyRequest) => AuthResult | PromiseLike<AuthResult>

export interface AuthenticationOptions {
  readonly clock: Clock
  readonly requireAuthentication: boolean
  readonly authHandler?: AuthHandler | undefined
  readonly extractAuthData?: ((request: AnyRequest) => Record<string, unknown>) | undefined
  readonly allowedOrigins: '*' | readonly string[]
}

/** What the request brings: bearer token, cookies, query, headers, and what the application extracts. */
export function authDataOf (request: AnyRequest, extract?: AuthenticationOptions['extractAuthData']): AuthData {
  const { headers } = request
  const token = /^Bearer +(\S+)$/i.exec(headers.authorization ?? '')?.[1] ?? null
  const cookies = decoration(request, 'cookies') ?? parseCookies(headers.cookie)
  const query = decoration(request, 'query') ?? queryOf('raw' in request ? request.raw : request)
  return { token, cookies, query, headers, ...extract?.(request) }
}

/** What a framework has made of the request; null before it has: `@fastify/cookie` decorates requests with `null` until its hook runs. */
function decoration<N extends 'cookies' | 'query'> (request: AnyRequest, name: N): AuthData[N] | null {
  const value: unknown = name in request ? (request as Partial<Record<N, unknown>>)[name] : null
  return typeof value === 'object' && value !== null ? value as AuthData[N] : null
}

/** The first value of a parameter of a request's URL; null when there is none. */
export function parameterOf ({ url = '' }: { url?: string | undefined }, name: string): string | null {
  const start = url.indexOf('?')
  // Most requests do not have it, which is seen without taking the query apart.
  if (start < 0 || !url.includes(name, start)) return null
  return new URLSearchParams(url.slice(start)).get(name)
}

/** The query of a plain request; the first value of each name. */
export function queryOf (request: { url?: string | undefined }): Record<string, string> {
  const url = request.url ?? ''
  // No prototype: a parameter may be called `constructor`.
  const query: Record<string, string> = Object.create(null)
  const start = url.indexOf('?')
  if (start < 0) return query
  for (const [name, value] of new URLSearchParams(url.slice(start))) query[name] ??= value
  return query
}

/**
 * Asks the application who this is; null for nobody. How long it may take is the application's to say, as by Fastify's `handlerTimeout`.
 * @throws SSE_ERR_AUTHENTICATION_FAILED, with the cause, when the application's code fails.
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

/** What the application threw may mean that it knows nobody. */
function nobody (cause: unknown): null {
  if (isRefusal(cause)) return null
  throw new AuthenticationFailed({ cause })
}

/**
 * Asks the application who this is.
 * @throws SSE_ERR_UNAUTHENTICATED when nobody and somebody is required; SSE_ERR_AUTHENTICATION_FAILED, with the cause, when the application's code fails.
 */
export async function authenticate (options: AuthenticationOptions, request: AnyRequest, extra?: Record<string, unknown>): Promise<SSEUser | null> {
  const user = await findUser(options, request, extra)
  if (user === null && options.requireAuthentication) throw new Unauthenticated()
  return user
}

/**
 * Throws SSE_ERR_ORIGIN_FORBIDDEN for a page of another origin that is not allowed; before anything else, as cookies come
 * along by themselves. What the browser says of itself counts most; an older one, which does not say, names the page's
 * origin at most: then its host must be the one that was asked. What names neither is no page.
 */
export function assertOrigin ({ allowedOrigins }: Pick<AuthenticationOptions, 'allowedOrigins'>, request: AnyRequest): void {
  if (allowedOrigins === '*') return
  const { origin, 'sec-fetch-site': site } = request.headers
  if (origin !== undefined && allowedOrigins.includes(origin)) return
  // `none` was typed into the address bar.
  if (site === undefined ? origin === undefined || isOwnOrigin(origin, request) : site === 'same-origin' || site === 'none') return
  throw new OriginForbidden(origin === undefined ? `another origin (Sec-Fetch-Site: ${quote(site)})` : `origin ${quote(origin)}`)
}

/** By host and port only: where a proxy ends TLS, the scheme that arrives here is not the browser's. */
function isOwnOrigin (origin: string, request: AnyRequest): boolean {
  // Fastify's heeds X-Forwarded-Host when, and only when, `trustProxy` says so.
  const asked = 'host' in request ? request.host : request.headers.host ?? request.headers[':authority']
  if (typeof asked !== 'string' || !URL.canParse(origin)) return false
  const { protocol, host } = new URL(origin)
  // An application or an extension may have the same host in a scheme of its own.
  if (protocol !== 'https:' && protocol !== 'http:') return false
  const defaultPort = protocol === 'https:' ? ':443' : ':80'
  return asked.toLowerCase() === host || asked.toLowerCase() === host + defaultPort
}

/** Whether an error of the application or of an authentication plugin means "not this one", rather than "it broke". */
export function isRefusal (error: unknown): boolean {
  return error instanceof Error && 'statusCode' in error && (error.statusCode === 401 || error.statusCode === 403)
}

/** A user as the application gave it, if it is one; null for nobody, and for rights that have ended. Throws SSE_ERR_INVALID_USER. */
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

/** What is wrong with a user, for the error. */
function describe (result: unknown): string {
  if (typeof result !== 'object' || result === null) return result === '' ? 'an empty string' : `a ${typeof result}`
  if (result instanceof Promise) return 'a promise: await it first'
  const { userId, expiresAt } = result as { userId?: unknown, expiresAt?: unknown }
  if (typeof userId !== 'string' || userId === '') return `an object whose userId is ${userId === '' ? 'empty' : `of type ${typeof userId}`}`
  return `an object whose expiresAt is ${typeof expiresAt === 'number' ? `${expiresAt}${expiresAt > 1e9 ? ', which looks like seconds' : ''}` : `of type ${typeof expiresAt}`}`
}

/** Whether the end of rights is a time, or null or absent for none. `undefined` would be rights without an end by mistake: see `util/schema`. */
export function isEnd (rights: { readonly expiresAt?: unknown }): boolean {
  return !('expiresAt' in rights) || rights.expiresAt === null || isTime(rights.expiresAt)
}

/** Whether it is a time in milliseconds. What would be one of 1970 to 1973 is the `exp` of a token, which counts in seconds. */
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
      // Not percent-encoded: the value is what it is.
      cookies[name] = value
    }
  }
  return cookies
}
