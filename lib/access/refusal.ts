import { SSEError } from '../errors.js'
import { encodeControl, encodeRetry } from '../wire/event-stream.js'
import { namesEventStream, streamHeaders } from '../wire/headers.js'
import { phraseOf, type HttpRequest } from '../wire/http.js'

// Every status but 200 is final for an EventSource: told 503 because the server is busy just now, it never
// comes back. So what time may change is told in a stream that carries the time to come back, and ends.

/** How an error before the head is answered. */
export interface Refusal {
  readonly statusCode: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** Whether coming back may help. */
  readonly retryable: boolean
}

export interface RefusalOptions {
  readonly refusals: 'auto' | 'status' | 'stop'
  readonly retryMs: number
  readonly drainMs: number
}

const MAX_RETRY_MS = 3_600_000

/**
 * The answer to a client that asks for an event stream and cannot have one now; null when it is the usual one, by status.
 * @param retryAfter the `Retry-After` that others have set, in seconds.
 */
export function streamRefusal (error: unknown, request: HttpRequest, { refusals, retryMs, drainMs }: RefusalOptions, retryAfter?: unknown): Refusal | null {
  // An EventSource sends GET requests only; any other client reads the status.
  if (refusals === 'status' || request.method !== 'GET' || !namesEventStream(request.headers.accept)) return null
  const { statusCode, code, message } = factsOf(error)
  if (isRetryable(statusCode, code)) {
    const least = Math.max(retryMs, code === 'SSE_ERR_CLOSED' ? drainMs : 0, Number(retryAfter) * 1000 || 0)
    // Spread, so that those who were refused together do not come back together.
    const retry = encodeRetry(Math.min(Math.round(least * (1 + Math.random())), MAX_RETRY_MS))
    return { statusCode: 200, headers: streamHeaders(request), body: retry + encodeControl('error', { ...(code !== '' && { code }), message, retryable: true }), retryable: true }
  }
  return refusals === 'stop' && statusCode >= 400 && statusCode < 500 ? { statusCode: 204, headers: {}, body: '', retryable: false } : null
}

/** The answer to any client, as Fastify would give it. An error that is not from this package is a 500 without its words. */
export function refusalOf (error: unknown, request: HttpRequest, options: RefusalOptions): Refusal {
  const known = error instanceof SSEError ? error : null
  const refusal = streamRefusal(known, request, options)
  if (refusal !== null) return refusal
  const { statusCode, code, message } = known === null ? UNKNOWN : factsOf(known)
  const retryable = isRetryable(statusCode, code)
  return {
    statusCode,
    headers: { 'content-type': 'application/json; charset=utf-8', ...(retryable && { 'retry-after': String(Math.ceil(options.retryMs / 1000)) }) },
    body: JSON.stringify({ statusCode, ...(code !== '' && { code }), error: phraseOf(statusCode), message }),
    retryable
  }
}

/** Busy, closing or out of reach; and an authentication that could not be completed, which says neither yes nor no. */
function isRetryable (statusCode: number, code: string): boolean {
  return statusCode === 429 || statusCode === 503 || code === 'SSE_ERR_AUTHENTICATION_FAILED'
}

interface Facts {
  readonly statusCode: number
  readonly code: string
  readonly message: string
}

const UNKNOWN: Facts = { statusCode: 500, code: '', message: 'Something went wrong' }

/** What a client may know of an error. Message and code of an error that is not from this package may tell anything: of it only the status is told. */
function factsOf (error: unknown): Facts {
  const status: unknown = typeof error === 'object' && error !== null && 'statusCode' in error ? error.statusCode : null
  const statusCode = typeof status === 'number' ? status : 500
  return error instanceof SSEError ? { statusCode, code: error.code, message: error.message } : { statusCode, code: '', message: phraseOf(statusCode) }
}
