import { type AuthenticationOptions, assertOrigin, authenticate, currentUser, parameterOf, type SSEUser } from './authentication.js'
import { Capacity, type CapacityOptions, type Seat } from './capacity.js'
import { SSEConnection } from '../connections/connection.js'
import type { ConnectionContext } from '../connections/context.js'
import type { DisconnectedUsers } from './disconnected-users.js'
import { BrokerUnavailable, ClientGone, Closed, HeadAlreadySent, InvalidSubscription, InvalidTicket, NotAcceptable, TooManySubscriptions, Unauthenticated } from '../errors.js'
import { assertRetry } from '../events/event.js'
import { isAcceptable } from '../wire/headers.js'
import { createId } from '../util/id.js'
import { type AnyRequest, isGone, whenClosed, type HttpRequest, type HttpResponse } from '../wire/http.js'
import type { Registry } from '../subscriptions/registry.js'
import type { Subscriptions } from '../subscriptions/subscriptions.js'
import { Ticket, type Tickets } from './tickets.js'
import { assertSubscription } from '../events/topic.js'
import { ownText } from '../util/text.js'
import { isTaken } from '../wire/writer.js'

/** Options of `reply.sse()`. */
export interface ConnectOptions {
  /** Topics and patterns to hold from the start. */
  subscriptions?: readonly string[]
  /** What the application wants to find again in `clientInfo`. */
  clientInfo?: Record<string, unknown>
  /** Reconnection time told to this client, 100 to 3,600,000 milliseconds. Default: option `retryMs`. */
  retryMs?: number
  /** The cursor to resume after, in place of the request's own; null for none. */
  lastEventId?: string | null
}

/** What `createConnection` is given: a request and response of `node:http` or `node:http2`, also in Express's or Koa's coat. */
export interface CreateConnection extends ConnectOptions {
  request: HttpRequest
  response: HttpResponse
  /** Who this is, when the application knows already; null for nobody. Absent: `authHandler` is asked. */
  user?: SSEUser | null
  /** Added to what `authHandler` is given. */
  authData?: Record<string, unknown>
}

/** Who is at the door; what `reply.sse()` does not know comes from `createConnection`. @internal */
export interface Candidate {
  request: HttpRequest
  response: HttpResponse
  user?: SSEUser | null | undefined
  authData?: Record<string, unknown> | undefined
  /** The request as the application knows it. */
  subject?: AnyRequest
  ip?: string | undefined
  managed?: boolean
  /** The moment before anybody was asked who this is. */
  since: number
  /** Whether `user` may be nobody; absent: as the option says. */
  requireAuthentication?: boolean
  options: ConnectOptions
}

export interface AdmissionOptions extends AuthenticationOptions, CapacityOptions {
  readonly retryMs: number
  readonly maxSubscriptionsPerConnection: number
}

/** The door: everything that can refuse a stream, in order, before its head. @internal */
export class Admission {
  readonly #options: AdmissionOptions
  readonly #registry: Registry<SSEConnection>
  readonly #subscriptions: Subscriptions<SSEConnection>
  readonly #tickets: Tickets
  readonly #disconnections: DisconnectedUsers
  readonly #context: ConnectionContext
  readonly #capacity: Capacity
  readonly #seats = new WeakMap<HttpResponse, Seat>()
  #closed = false

  constructor (options: AdmissionOptions, registry: Registry<SSEConnection>, subscriptions: Subscriptions<SSEConnection>, tickets: Tickets, disconnections: DisconnectedUsers, context: ConnectionContext) {
    this.#options = options
    this.#registry = registry
    this.#subscriptions = subscriptions
    this.#tickets = tickets
    this.#disconnections = disconnections
    this.#context = context
    this.#capacity = new Capacity(options)
  }

  /** Nobody is let in any more. */
  close (): void {
    this.#closed = true
  }

  /**
   * Counts a client in before anything slow is done for it, until its response closes or it is refused; null when nothing
   * is limited. The same seat for the same response.
   * @throws SSE_ERR_TOO_MANY_CONNECTIONS, SSE_ERR_TOO_MANY_IP_CONNECTIONS
   */
  seat (response: HttpResponse, ip: string | undefined): Seat | null {
    const taken = this.#seats.get(response)
    if (taken !== undefined && !taken.left) return taken
    const seat = this.#capacity.take(ip)
    if (seat === null) return null
    this.#seats.set(response, seat)
    if (isGone(response)) seat.leave()
    else whenClosed(response, () => seat.leave())
    return seat
  }

  /**
   * The user that the ticket in the request's URL names; null when there is none, or there are no tickets here. A ticket is
   * for an EventSource, which asks by GET: what issues tickets, or publishes, does not take one. See `Tickets.redeem`.
   */
  redeem (request: AnyRequest): Promise<Ticket> | null {
    if (!this.#tickets.enabled || request.method !== 'GET') return null
    const ticket = ticketOf(request)
    return ticket === null ? null : this.#tickets.redeem(ticket)
  }

  /**
   * A request with a ticket is its user's, or refused: what is not redeemed here, nor recognised by the application, does not get what an anonymous client gets.
   * @throws SSE_ERR_INVALID_TICKET
   */
  assertRecognised (request: AnyRequest, user: SSEUser | null): void {
    if (user === null && ticketOf(request) !== null) throw new InvalidTicket()
  }

  /** To be noted before anybody is asked who a client is: `disconnectUser` concerns it from here on. */
  get moment (): number {
    return this.#disconnections.moment
  }

  /** Lets a stream in. It is counted, and receives, from here on; what is missing is `connection.open()`. */
  async admit (candidate: Candidate): Promise<SSEConnection> {
    const { request, response, options, subject = request, ip = request.socket.remoteAddress ?? '', since } = candidate
    this.#assertOpen()
    if (!isAcceptable(request.headers.accept)) throw new NotAcceptable()
    assertOrigin(this.#options, subject)
    const seat = this.seat(response, ip)
    try {
      const user = candidate.user !== undefined ? this.#vouched(candidate) : await (this.redeem(subject) ?? authenticate(this.#options, subject, candidate.authData))
      if (candidate.user === undefined) this.assertRecognised(subject, user)
      // Cut from a header or an URL, what is kept with the connection would keep all of it.
      const userId = user === null ? null : ownText(user.userId)
      const claims = user?.claims
      seat?.assign(userId)
      const granted = user instanceof Ticket ? user.subscriptions : []
      const subscriptions = this.#checked(options.subscriptions, granted)
      if (options.retryMs !== undefined) assertRetry(options.retryMs)
      const asked = granted.length === 0 ? subscriptions : [...subscriptions].filter(subscription => !granted.includes(subscription))
      return await this.#subscriptions.grant({ request: subject, userId, claims }, asked, () => {
        if (userId !== null && this.#disconnections.hit(userId, since)) {
          // A 401 would be final for an EventSource whose user may never have been disconnected.
          throw this.#disconnections.isUnsure(userId, since) ? new BrokerUnavailable('has lost messages of other nodes while the request was authenticated; try again') : new Unauthenticated()
        }
        return this.#enter(candidate, user, userId, subscriptions, ownText(ip))
      })
    } catch (error) {
      // Not that of a stream that the response carries already, if this was a second call.
      if (!isTaken(response)) seat?.leave()
      throw error
    }
  }

  /** The user that the caller names, held to the same rules as one that `authHandler` returns. */
  #vouched ({ user, requireAuthentication = this.#options.requireAuthentication }: Candidate): SSEUser | null {
    const current = currentUser(user)
    if (current === null && requireAuthentication) throw new Unauthenticated()
    return current
  }

  #enter (candidate: Candidate, user: SSEUser | null, userId: string | null, held: Set<string>, ip: string): SSEConnection {
    const { request, response, options, managed = true } = candidate
    this.#assertOpen()
    if (isGone(response)) throw new ClientGone()
    // Rights may have ended while the application was asked.
    if (user !== null && currentUser(user) === null) throw new Unauthenticated()
    // Begun while the application was asked, or by a second call beside this one.
    if (isTaken(response)) throw new HeadAlreadySent()
    const lastEventId = options.lastEventId === undefined ? lastEventIdOf(request) : options.lastEventId
    const connection = new SSEConnection(this.#context, response, {
      clientId: createId(),
      userId,
      claims: user?.claims,
      expiresAt: user?.expiresAt ?? undefined,
      clientInfo: { ...options.clientInfo, ip, userAgent: request.headers['user-agent'] ?? '', connectedAt: Date.now() },
      lastEventId: lastEventId ? ownText(lastEventId) : null,
      managed,
      // Broadcasts do not reach a stream of its own source: whatever its ticket grants, there is nothing to take away.
      held: managed ? held : new Set(),
      headOnly: request.method === 'HEAD',
      retryMs: options.retryMs ?? this.#options.retryMs
    })
    this.#registry.add(connection)
    return connection
  }

  /** The subscriptions asked for and granted, each once. */
  #checked (asked: readonly string[] | undefined, granted: readonly string[]): Set<string> {
    // A string is iterable too: its letters would be the subscriptions.
    if (asked !== undefined && !Array.isArray(asked)) throw new InvalidSubscription(`list of type ${typeof asked}`, 'must be an array')
    const subscriptions = new Set([...granted, ...asked ?? []])
    const { maxSubscriptionsPerConnection } = this.#options
    if (subscriptions.size > maxSubscriptionsPerConnection) throw new TooManySubscriptions(maxSubscriptionsPerConnection)
    for (const subscription of subscriptions) assertSubscription(subscription)
    return new Set(Array.from(subscriptions, ownText))
  }

  #assertOpen (): void {
    if (this.#closed) throw new Closed()
  }
}

function ticketOf (request: AnyRequest): string | null {
  return parameterOf('raw' in request ? request.raw : request, 'ticket')
}

/** The header wins; a browser cannot send it on a first connect, so a first cursor comes in the query (FACTS 1.9). An empty one names nothing. */
function lastEventIdOf (request: HttpRequest): string | null {
  const header = request.headers['last-event-id']
  return (Array.isArray(header) ? header[0] : header) || parameterOf(request, 'lastEventId') || parameterOf(request, 'last_event_id')
}
