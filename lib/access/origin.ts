import { OriginForbidden } from '../errors.js'
import { quote } from '../util/quote.js'
import type { AnyRequest } from '../wire/http.js'
import type { AuthenticationOptions } from './authentication.js'

/** Origins with other schemes, such as `capacitor://localhost` or `file://`. `URL` reports `null` as their origin. */
const CUSTOM_ORIGIN = /^[a-z][a-z0-9+.-]*:\/\/[^\s/?#\\@,*]*$/

/**
 * Rejects requests of pages whose origin is not allowed. It runs before authentication, because browsers send cookies to other origins
 * too. The header `Sec-Fetch-Site` decides. Without it, as in older browsers, the host of `Origin` must be the host of the request.
 * A request with neither header does not come from a page.
 * @throws SSE_ERR_ORIGIN_FORBIDDEN
 */
export function assertOrigin ({ allowedOrigins }: Pick<AuthenticationOptions, 'allowedOrigins'>, request: AnyRequest): void {
  if (allowedOrigins === '*') return
  const { origin, 'sec-fetch-site': site } = request.headers
  if (origin !== undefined && allowedOrigins.includes(origin)) return
  // `none`: the user has entered the URL in the address bar.
  if (site === undefined ? origin === undefined || isOwnOrigin(origin, request) : site === 'same-origin' || site === 'none') return
  throw new OriginForbidden(origin === undefined ? `another origin (Sec-Fetch-Site: ${quote(site)})` : `origin ${quote(origin)}`)
}

/** Compares an origin with the request by host and port. Behind a proxy that terminates TLS, the scheme is not that of the browser. */
function isOwnOrigin (origin: string, request: AnyRequest): boolean {
  // Fastify's `host` uses `X-Forwarded-Host` only with `trustProxy`.
  const asked = 'host' in request ? request.host : request.headers.host ?? request.headers[':authority']
  if (typeof asked !== 'string' || !URL.canParse(origin)) return false
  const { protocol, host } = new URL(origin)
  // Mobile applications and browser extensions can have the same host with a scheme of their own.
  if (protocol !== 'https:' && protocol !== 'http:') return false
  const defaultPort = protocol === 'https:' ? ':443' : ':80'
  return asked.toLowerCase() === host || asked.toLowerCase() === host + defaultPort
}

/** Returns whether browsers and web views can send a text as the `Origin` header. */
export function isOrigin (text: string): boolean {
  if (text === 'null') return true
  if (!URL.canParse(text)) return false
  const { origin } = new URL(text)
  return origin === 'null' ? CUSTOM_ORIGIN.test(text) : origin === text
}
