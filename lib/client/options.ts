import { kClock, systemClock, type Clock } from '../util/clock.js'
import { SSEClientError } from './errors.js'

/** What `headers()` and `ticket()` receive. */
export interface CredentialsQuestion {
  /** Aborts when the attempt has taken too long, or the client was closed. */
  readonly signal: AbortSignal
}

/** Headers of a request: an object, `Headers`, or pairs of names and values. */
export type ClientHeaders = Readonly<Record<string, string>> | Headers | [name: string, value: string][]

/** Options of each request. */
export interface RequestOptions {
  /**
   * Headers, or a function that returns them. It is called before each attempt, one at a time, so a fresh token is sent after each
   * interruption. `null`: there are no credentials, and the client closes with `no-credentials`. If it rejects, the attempt has failed.
   * Default: none.
   */
  headers?: ClientHeaders | ((question: CredentialsQuestion) => ClientHeaders | null | Promise<ClientHeaders | null>) | undefined
  /** Which cookies are sent, as for `fetch`. `include` for another origin. Default `same-origin`. */
  credentials?: 'omit' | 'same-origin' | 'include' | undefined
  /** Longest reconnection time in milliseconds, if the server does not ask for a longer one. Default 60,000. */
  maxRetryMs?: number | undefined
  /**
   * Time in milliseconds from the beginning of an attempt, `headers()` included, to the first byte of the stream. Afterwards the server
   * counts as dead after two of its keep-alive intervals without a byte. Default 30,000.
   */
  timeoutMs?: number | undefined
  /** Replaces the global `fetch`. */
  fetch?: typeof globalThis.fetch | undefined
}

/** Options with their defaults. */
export type ResolvedRequestOptions = { readonly [N in keyof RequestOptions]-?: NonNullable<RequestOptions[N]> } & { readonly clock: Clock }

/** The names of these options. */
export const REQUEST_OPTIONS = ['headers', 'credentials', 'maxRetryMs', 'timeoutMs', 'fetch'] as const

/** Rejects unknown options, and completes the others. @throws SSE_ERR_CLIENT_OPTION */
export function resolveOptions (options: RequestOptions, names: readonly string[]): ResolvedRequestOptions {
  for (const name of Object.keys(options)) {
    if (!names.includes(name)) throw new SSEClientError('SSE_ERR_CLIENT_OPTION', `there is no option "${name}"; the options are ${names.join(', ')}`)
  }
  const { headers = {}, credentials = 'same-origin', maxRetryMs = 60_000, timeoutMs = 30_000, fetch = globalThis.fetch } = options
  for (const [name, ms] of Object.entries({ maxRetryMs, timeoutMs })) {
    if (!(ms > 0)) throw new SSEClientError('SSE_ERR_CLIENT_OPTION', `${name} must be a number of milliseconds above 0`)
  }
  try {
    if (typeof headers !== 'function') headersIn(headers)
  } catch {
    throw new SSEClientError('SSE_ERR_CLIENT_OPTION', 'headers cannot be sent')
  }
  return { headers, credentials, maxRetryMs, timeoutMs, fetch, clock: (options as { [kClock]?: Clock })[kClock] ?? systemClock }
}

/** Returns the headers of an attempt, by lower-case name; null if there are no credentials. */
export async function headersOf ({ headers }: ResolvedRequestOptions, signal: AbortSignal, lastEventId: string): Promise<Record<string, string> | null> {
  const own = typeof headers === 'function' ? await headers({ signal }) : headers
  if (own === null) return null
  return { accept: 'text/event-stream', ...headersIn(own), ...(lastEventId !== '' && { 'last-event-id': asHeader(lastEventId) }) }
}

/** Returns headers by lower-case name: `fetch` would join the values of `Accept` and `accept`. */
function headersIn (given: ClientHeaders): Record<string, string> {
  return Object.fromEntries(new Headers(given))
}

/** A header is bytes: `fetch` rejects other characters. An `EventSource` sends UTF-8, too. */
function asHeader (text: string): string {
  return String.fromCharCode(...new TextEncoder().encode(text))
}
