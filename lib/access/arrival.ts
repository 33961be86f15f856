import type { AnyRequest, HttpRequest, HttpResponse } from '../wire/http.js'
import type { Seat } from './capacity.js'

/** A request that may become a stream, from its arrival until it has a connection or is refused. @internal */
export class Arrival {
  readonly request: HttpRequest
  readonly response: HttpResponse
  /** The request as the application knows it. */
  readonly subject: AnyRequest
  /** The address of the client; empty if it is not known. */
  readonly ip: string
  /** Whether the client takes an event stream. */
  readonly isAcceptable: boolean
  /** Read before authentication starts: users that are disconnected later are rejected. */
  readonly since: number
  /** Null when nothing is limited, and for a client that does not take a stream. */
  seat: Seat | null = null
  /** Whether a connection was made of it, which keeps the seat until the response closes. */
  hasEntered = false

  constructor (request: HttpRequest, response: HttpResponse, subject: AnyRequest, ip: string, isAcceptable: boolean, since: number) {
    this.request = request
    this.response = response
    this.subject = subject
    this.ip = ip
    this.isAcceptable = isAcceptable
    this.since = since
  }
}
