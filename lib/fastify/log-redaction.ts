import type { FastifyRequest } from 'fastify'

// An EventSource cannot set headers, so credentials can be in the URL. URLs are logged.

type Serializer = (request: FastifyRequest) => unknown

const SECRETS = new Set(['ticket', 'token', 'access_token'])
const REDACTED = '[redacted]'
const MAX_DEPTH = 4

/**
 * Returns what Fastify logs of a request. The values of `ticket`, `token` and `access_token` in the URL are replaced by `[redacted]`.
 * Routes with the option `sse` are redacted without it; it covers all other routes.
 * @example
 * ```ts
 * const app = fastify({ logger: { serializers: { req: requestSerializer } } })
 * ```
 */
export function requestSerializer (request: FastifyRequest): Record<string, unknown> {
  return {
    method: request.method,
    url: redactUrl(request.url),
    version: request.headers?.['accept-version'],
    host: request.host,
    remoteAddress: request.ip,
    remotePort: request.socket?.remotePort
  }
}

/** Wraps a serializer of the application, and redacts these values in its result. */
export function redacting (serializer: Serializer): Serializer {
  return request => redact(serializer(request), MAX_DEPTH)
}

/** Replaces the values of secret query parameters of a URL. */
export function redactUrl (url: string): string {
  const start = url.indexOf('?') + 1
  if (start === 0) return url
  return url.slice(0, start) + url.slice(start).split('&').map(pair => {
    const equals = pair.indexOf('=')
    return equals >= 0 && SECRETS.has(nameOf(pair.slice(0, equals))) ? `${pair.slice(0, equals)}=${REDACTED}` : pair
  }).join('&')
}

function nameOf (text: string): string {
  const name = text.replaceAll('+', ' ')
  try {
    return decodeURIComponent(name).toLowerCase()
  } catch {
    return name.toLowerCase()
  }
}

function redact (value: unknown, depth: number): unknown {
  if (typeof value === 'string') return redactUrl(value)
  if (typeof value !== 'object' || value === null || depth === 0) return value
  if (Array.isArray(value)) return value.map(item => redact(item, depth - 1))
  // A date or a URL, for example: the log contains the result of `toJSON()`.
  if ('toJSON' in value && typeof value.toJSON === 'function') return redact(value.toJSON(), depth - 1)
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, SECRETS.has(key.toLowerCase()) ? REDACTED : redact(inner, depth - 1)]))
}
