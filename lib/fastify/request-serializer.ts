import type { FastifyRequest } from 'fastify'

// A browser's EventSource can show who it is in the URL only, and URLs are logged.

type Serializer = (request: FastifyRequest) => unknown

const SECRETS = new Set(['ticket', 'token', 'access_token'])
const REDACTED = '[redacted]'
const MAX_DEPTH = 4

/** What Fastify logs of a request, without the values of `ticket`, `token` and `access_token` in its URL. For `logger: { serializers: { req: requestSerializer } }`. */
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

/** What the application's own serializer says of a request, without those values. */
export function redacting (serializer: Serializer): Serializer {
  return request => redact(serializer(request), MAX_DEPTH)
}

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
  // A date, an URL: what the log would make of it.
  if ('toJSON' in value && typeof value.toJSON === 'function') return redact(value.toJSON(), depth - 1)
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, SECRETS.has(key.toLowerCase()) ? REDACTED : redact(inner, depth - 1)]))
}
