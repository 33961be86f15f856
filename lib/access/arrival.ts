import type { AnyRequest, HttpRequest, HttpResponse } from '../wire/http.js'
import { NotAcceptable } from '../errors.js'
import { isAcceptable, namesEventStream } from '../wire/headers.js'
import { parameterOf } from './authentication.js'
import type { Reservation } from './capacity.js'

/** A request that can become a stream, until it has a connection or is refused. @internal */
export class Arrival {
  readonly request: HttpRequest
  readonly response: HttpResponse
  /** The request as the application receives it: Fastify's request, or the same as `request`. */
  readonly subject: AnyRequest
  /** IP address of the client; empty if it is not known. */
  readonly ip: string
  /** Time of the request by the monotonic clock, in milliseconds. */
  readonly at: number
  /** Read before authentication starts: users that are disconnected later are rejected. */
  readonly since: number
  /** The reservation of the client. Null without limits, and for a request that does not expect a stream, until it opens one. */
  reservation: Reservation | null = null
  /** Whether the request has a connection, which keeps the reservation until the response closes. */
  hasEntered = false

  constructor (request: HttpRequest, response: HttpResponse, subject: AnyRequest, ip: string, at: number, since: number) {
    this.request = request
    this.response = response
    this.subject = subject
    this.ip = ip
    this.at = at
    this.since = since
  }

  /**
   * Rejects a client that does not accept event streams.
   * @throws SSE_ERR_NOT_ACCEPTABLE
   */
  assertAcceptable (): void {
    if (!isAcceptable(this.request.headers.accept)) throw new NotAcceptable()
  }

  /** Whether the client expects a stream. Other requests, such as a request that publishes, are counted only if they open a stream. */
  get expectsStream (): boolean {
    const { method, headers: { accept } } = this.request
    return method === 'GET' || method === 'HEAD' ? isAcceptable(accept) : namesEventStream(accept)
  }

  /**
   * The cursor of the client; null or empty if it has none. The header takes precedence. The query is for first connects, because an
   * EventSource sends the header only when it reconnects.
   */
  get lastEventId (): string | null {
    return this.#header || parameterOf(this.request, 'lastEventId') || parameterOf(this.request, 'last_event_id')
  }

  get #header (): string | undefined {
    const header = this.request.headers['last-event-id']
    return Array.isArray(header) ? header[0] : header
  }

  /**
   * The topics and patterns of `?fresh=`, of which a client that resumes has no state. Ignored if the cursor of the URL is outdated: an
   * EventSource keeps its URL, and its header shows that it has received more since then.
   */
  get fresh (): string[] {
    const { url = '' } = this.request
    const start = url.indexOf('?')
    if (start < 0) return []
    const query = new URLSearchParams(url.slice(start + 1))
    const inUrl = query.get('lastEventId') || query.get('last_event_id')
    return inUrl && this.#header && this.#header !== inUrl ? [] : query.getAll('fresh')
  }
}
