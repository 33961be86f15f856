import type { AnyRequest, HttpRequest, HttpResponse } from '../wire/http.js'
import { NotAcceptable } from '../errors.js'
import { isAcceptable, namesEventStream } from '../wire/headers.js'
import { parameterOf } from './authentication.js'
import type { Reservation } from './capacity.js'

/** A request that may become a stream, from its arrival until it has a connection or is refused. @internal */
export class Arrival {
  readonly request: HttpRequest
  readonly response: HttpResponse
  /** The request as the application knows it. */
  readonly subject: AnyRequest
  /** The address of the client; empty if it is not known. */
  readonly ip: string
  /** Read before authentication starts: users that are disconnected later are rejected. */
  readonly since: number
  /** Null when nothing is limited, and for a request that need not become a stream until it does. */
  reservation: Reservation | null = null
  /** Whether a connection was made of it, which keeps the reservation until the response closes. */
  hasEntered = false

  constructor (request: HttpRequest, response: HttpResponse, subject: AnyRequest, ip: string, since: number) {
    this.request = request
    this.response = response
    this.subject = subject
    this.ip = ip
    this.since = since
  }

  /** @throws SSE_ERR_NOT_ACCEPTABLE if the client does not take an event stream. */
  assertAcceptable (): void {
    if (!isAcceptable(this.request.headers.accept)) throw new NotAcceptable()
  }

  /** Whether the client expects a stream. A request to publish, or for a ticket, is not counted as one unless it becomes one. */
  get expectsStream (): boolean {
    const { method, headers: { accept } } = this.request
    return method === 'GET' || method === 'HEAD' ? isAcceptable(accept) : namesEventStream(accept)
  }

  /** What the client sends as its cursor: the header wins; a browser cannot send it on a first connect, so a first cursor comes in the query. Empty means none. */
  get lastEventId (): string | null {
    const header = this.request.headers['last-event-id']
    return (Array.isArray(header) ? header[0] : header) || parameterOf(this.request, 'lastEventId') || parameterOf(this.request, 'last_event_id')
  }
}
