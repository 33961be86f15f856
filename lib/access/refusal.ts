import type { ServerResponse } from 'node:http'
import { SSEError } from '../errors.js'
import { encodeControl, encodeRetry } from '../wire/event-stream.js'
import { namesEventStream, streamHeaders } from '../wire/headers.js'
import { isGone, phraseOf, type HttpRequest, type HttpResponse } from '../wire/http.js'

// An EventSource does not reconnect after an error status. So a temporary refusal is sent as a short stream with status 200: it
// contains the reconnection time and `sse:error`, and ends.

/** The response to a request that is refused before its headers are sent. */
export interface Refusal {
  readonly statusCode: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** Whether a later request can succeed. */
  readonly retryable: boolean
}

/** The options that concern refusals; see `SSEOptions`. */
export interface RefusalOptions {
  readonly refusals: 'auto' | 'status' | 'stop'
  readonly retryMs: number
  readonly drainMs: number
}

const MAX_RETRY_MS = 3_600_000

/**
 * Returns the short stream, or the response 204, for a client that expects an event stream; null if the error is answered by its status.
 * @param retryAfter header `Retry-After` that other plugins have set, in seconds
 */
export function streamRefusal (error: unknown, request: HttpRequest, { refusals, retryMs, drainMs }: RefusalOptions, retryAfter?: unknown): Refusal | null {
  // An EventSource sends GET requests only; any other client reads the status.
  if (refusals === 'status' || request.method !== 'GET' || !namesEventStream(request.headers.accept)) return null
  const { statusCode, code, message } = factsOf(error)
  if (isRetryable(statusCode, code)) {
    const least = Math.max(retryMs, code === 'SSE_ERR_CLOSED' ? drainMs : 0, Number(retryAfter) * 1000 || 0)
    // Random, so that clients that were refused together do not reconnect together.
    const retry = encodeRetry(Math.min(Math.round(least * (1 + Math.random())), MAX_RETRY_MS))
    return { statusCode: 200, headers: streamHeaders(request), body: retry + encodeControl('error', { ...(code !== '' && { code }), message, retryable: true }), retryable: true }
  }
  return refusals === 'stop' && statusCode >= 400 && statusCode < 500 ? { statusCode: 204, headers: {}, body: '', retryable: false } : null
}

/** Returns the response to any client, as Fastify would send it. For an error of other code it is a 500 without the message. */
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

/** Answers a refused request of plain Node. Does nothing if the headers are already sent or the client has disconnected. */
export function sendRefusal (error: unknown, request: HttpRequest, response: HttpResponse, options: RefusalOptions): void {
  if (response.headersSent || isGone(response)) return
  const { statusCode, headers, body } = refusalOf(error, request, options)
  response.statusCode = statusCode
  for (const [name, value] of Object.entries(headers)) response.setHeader(name, value)
  ;(response as ServerResponse).end(body)
}

/** Returns whether a later request can succeed: the server is busy, closing or without its log, or authentication has failed. */
function isRetryable (statusCode: number, code: string): boolean {
  return statusCode === 429 || statusCode === 503 || code === 'SSE_ERR_AUTHENTICATION_FAILED'
}

interface Facts {
  readonly statusCode: number
  readonly code: string
  readonly message: string
}

const UNKNOWN: Facts = { statusCode: 500, code: '', message: 'Something went wrong' }

/** Returns the parts of an error that a client can see. Errors of other code can contain secrets, so only their status is used. */
function factsOf (error: unknown): Facts {
  const status: unknown = typeof error === 'object' && error !== null && 'statusCode' in error ? error.statusCode : null
  const statusCode = typeof status === 'number' ? status : 500
  return error instanceof SSEError ? { statusCode, code: error.code, message: error.message } : { statusCode, code: '', message: phraseOf(statusCode) }
}
