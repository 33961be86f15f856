import { type AuthenticationOptions, authenticate, currentUser, parameterOf, type SSEUser, testUserOf } from './authentication.js'
import { assertOrigin } from './origin.js'
import { Arrival } from './arrival.js'
import { Capacity, type CapacityOptions } from './capacity.js'
import { SSEConnection } from '../connections/connection.js'
import type { ConnectionContext } from '../connections/context.js'
import { parseClaimedId } from '../connections/snapshot-mark.js'
import type { SnapshotPlan } from '../connections/snapshot.js'
import type { SnapshotSource } from '../connections/snapshot-loads.js'
import { resolveSnapshot } from '../connections/snapshot-options.js'
import type { DisconnectedUsers } from './disconnected-users.js'
import { BrokerUnavailable, ClientGone, Closed, HeadAlreadySent, InvalidSubscription, InvalidTicket, TooManySubscriptions, Unauthenticated } from '../errors.js'
import type { CreateConnection, EnterOptions } from './connect-options.js'
import { assertRetry } from '../events/event-rules.js'
import { isAcceptable } from '../wire/headers.js'
import { createId } from '../util/id.js'
import { isThenable } from '../util/promise.js'
import { type AnyRequest, isGone, whenClosed, type HttpRequest, type HttpResponse } from '../wire/http.js'
import type { EventLog } from '../log/event-log.js'
import type { Registry } from '../subscriptions/registry.js'
import type { Authorization } from '../subscriptions/authorization.js'
import { Ticket, type Tickets } from './tickets.js'
import { assertSubscription } from '../events/topic.js'
import { ownText } from '../util/text.js'
import { isTaken } from '../wire/writer.js'

/** The options that concern new streams; see `SSEOptions`. */
export interface AdmissionOptions extends AuthenticationOptions, CapacityOptions {
  readonly retryMs: number
  readonly maxSubscriptionsPerConnection: number
}

/** Runs all checks that can refuse a stream, in order, before its headers are sent. @internal */
export class Admission {
  readonly #options: AdmissionOptions
  readonly #registry: Registry<SSEConnection>
  readonly #subscriptions: Authorization<SSEConnection>
  readonly #tickets: Tickets
  readonly #disconnections: DisconnectedUsers
  readonly #context: ConnectionContext
  readonly #eventLog: EventLog
  readonly #capacity: Capacity
  /** Key under which a response stores its arrival. A WeakMap would cost each stream more than the rest of its admission. */
  readonly #arrival = Symbol('fastify-sse-manager.arrival')
  #closed = false

  constructor (options: AdmissionOptions, registry: Registry<SSEConnection>, subscriptions: Authorization<SSEConnection>, tickets: Tickets, disconnections: DisconnectedUsers, context: ConnectionContext, eventLog: EventLog) {
    this.#options = options
    this.#registry = registry
    this.#subscriptions = subscriptions
    this.#tickets = tickets
    this.#disconnections = disconnections
    this.#context = context
    this.#eventLog = eventLog
    this.#capacity = new Capacity(options)
  }

  /** Rejects all further requests with SSE_ERR_CLOSED. */
  close (): void {
    this.#closed = true
  }

  /**
   * Handles a request before authentication. Checks its origin, and counts a client that expects a stream until the response closes or
   * the request is refused. Later calls for the same response return the same arrival.
   * @throws SSE_ERR_HEAD_ALREADY_SENT, SSE_ERR_ORIGIN_FORBIDDEN, SSE_ERR_TOO_MANY_CONNECTIONS, SSE_ERR_TOO_MANY_IP_CONNECTIONS
   */
  arrive (request: HttpRequest, response: HttpResponse, subject: AnyRequest = request, ip = request.socket.remoteAddress ?? ''): Arrival {
    const arrivals = response as unknown as Record<symbol, Arrival | null | undefined>
    const known = arrivals[this.#arrival] ?? null
    if (known !== null) return known
    try {
      if (isTaken(response)) throw new HeadAlreadySent()
      assertOrigin(this.#options, subject)
      const arrival = new Arrival(request, response, subject, ip, this.#options.clock.monotonic(), this.#disconnections.moment)
      if (arrival.expectsStream) this.#reserve(arrival)
      return (arrivals[this.#arrival] = arrival)
    } catch (error) {
      this.refused(response, error)
      throw error
    }
  }

  #reserve (arrival: Arrival): void {
    const { response } = arrival
    if (isGone(response)) return
    // The listener lives as long as the stream. It must not refer to the arrival, which would keep the request in memory.
    const reservation = arrival.reservation = this.#capacity.take(arrival.ip)
    if (reservation !== null) whenClosed(response, () => reservation.leave())
  }

  /**
   * Resolves with the user of the ticket in the URL. Returns null without a ticket, and without the option `ticketSecret`. Only GET
   * requests can use tickets, so that a ticket cannot be exchanged for a new ticket or used to publish. See `Tickets.redeem`.
   * @throws SSE_ERR_INVALID_TICKET, SSE_ERR_BROKER_UNAVAILABLE
   */
  redeem (request: AnyRequest): Promise<SSEUser> | null {
    const testUser = testUserOf(request)
    if (testUser !== null) return Promise.resolve(testUser)
    // A ticket is valid once, so a request that does not accept an event stream must not use it up.
    if (!this.#tickets.enabled || request.method !== 'GET' || !isAcceptable(request.headers.accept)) return null
    const ticket = ticketOf(request)
    return ticket === null ? null : this.#tickets.redeem(ticket)
  }

  /**
   * Rejects a request with a ticket for which no user was found: it would become an anonymous connection.
   * @throws SSE_ERR_INVALID_TICKET
   */
  assertRecognised (request: AnyRequest, user: SSEUser | null): void {
    if (user === null && ticketOf(request) !== null) throw new InvalidTicket()
  }

  /** Admits a request of plain Node: calls `arrive`, authenticates, and calls `enter`. Rejects with the errors of all three. */
  async admit (options: CreateConnection): Promise<SSEConnection<any>> {
    const { request, response, user, authData } = options
    const arrival = this.arrive(request, response)
    try {
      this.#assertOpen()
      // Checked first, so that `authHandler` is not called for a request that is refused in any case.
      arrival.assertAcceptable()
      return await this.enter(arrival, user === undefined ? await this.#recognise(request, authData) : this.#vouched(user), options)
    } catch (error) {
      this.#refuse(arrival, error)
      throw error
    }
  }

  async #recognise (request: HttpRequest, authData?: Record<string, unknown>): Promise<SSEUser | null> {
    const user = await (this.redeem(request) ?? authenticate(this.#options, request, authData))
    this.assertRecognised(request, user)
    return user
  }

  /** Checks a user from the caller of `createConnection` by the same rules as a user from `authHandler`. */
  #vouched (user: SSEUser | null): SSEUser | null {
    const current = currentUser(user, this.#options)
    if (current === null && this.#options.requireAuthentication) throw new Unauthenticated()
    return current
  }

  /**
   * Creates the connection of an authenticated request, after all checks. The connection receives events from now on. The caller must
   * call `connection.open()`.
   * @throws SSE_ERR_CLOSED, SSE_ERR_NOT_ACCEPTABLE, SSE_ERR_TOO_MANY_CONNECTIONS, SSE_ERR_TOO_MANY_USER_CONNECTIONS,
   * SSE_ERR_TOO_MANY_IP_CONNECTIONS, SSE_ERR_TOO_MANY_SUBSCRIPTIONS, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_SUBSCRIPTION_FORBIDDEN,
   * SSE_ERR_UNAUTHENTICATED, SSE_ERR_AUTHENTICATION_FAILED, SSE_ERR_INVALID_RETRY, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLIENT_GONE,
   * SSE_ERR_HEAD_ALREADY_SENT
   */
  async enter (arrival: Arrival, user: SSEUser | null, options: EnterOptions, managed = true): Promise<SSEConnection> {
    try {
      this.#assertOpen()
      arrival.assertAcceptable()
      // There is no reservation yet if the request did not announce a stream, or if an earlier attempt was refused.
      this.#keepReservation(arrival)
      // Copied: a substring of a header or a URL would keep all of it in memory.
      const userId = user === null ? null : ownText(user.userId)
      arrival.reservation?.assign(userId)
      const granted = user instanceof Ticket ? user.subscriptions : []
      const subscriptions = this.#checked(options.subscriptions, granted)
      if (options.retryMs !== undefined) assertRetry(options.retryMs)
      const snapshot = managed ? resolveSnapshot(options.snapshot) : null
      if (!this.#eventLog.isOpen) await this.#eventLog.open()
      const asked = granted.length === 0 ? subscriptions : [...subscriptions].filter(subscription => !granted.includes(subscription))
      const entered = this.#subscriptions.grant({ request: arrival.subject, userId, claims: user?.claims }, asked, () => {
        if (userId !== null && this.#disconnections.hit(userId, arrival.since)) {
          // Without certainty the answer is 503: an EventSource stops after 401, and its user may not have been disconnected.
          throw this.#disconnections.isUnsure(userId, arrival.since) ? new BrokerUnavailable('has lost messages of other nodes while the request was authenticated; try again') : new Unauthenticated()
        }
        return this.#connect(arrival, user, userId, subscriptions, options, managed ? { snapshot } : null)
      })
      return isThenable(entered) ? await entered : entered
    } catch (error) {
      this.#refuse(arrival, error)
      throw error
    }
  }

  /** Counts a request that is refused with this error, once for its response. */
  refused (response: HttpResponse, error: unknown): void {
    this.#context.telemetry.onRefuse(response, error)
  }

  /** Makes a reservation if there is none, or if it was released by a refused second call for the same request. */
  #keepReservation (arrival: Arrival): void {
    if (arrival.reservation === null || arrival.reservation.left) this.#reserve(arrival)
  }

  /** Releases the reservation of a refused request, unless an earlier call for the same request has opened its stream. */
  #refuse (arrival: Arrival, error: unknown): void {
    this.refused(arrival.response, error)
    if (!arrival.hasEntered) arrival.reservation?.leave()
  }

  #connect (arrival: Arrival, user: SSEUser | null, userId: string | null, held: Set<string>, options: EnterOptions, broadcasts: { readonly snapshot: SnapshotSource | null } | null): SSEConnection {
    const { request, response } = arrival
    this.#assertOpen()
    if (isGone(response)) throw new ClientGone()
    // The rights can have expired during the authorization.
    if (user !== null && currentUser(user, this.#options) === null) throw new Unauthenticated()
    // The response can have been started during the authorization, also by a second call for it.
    if (isTaken(response)) throw new HeadAlreadySent()
    this.#keepReservation(arrival)
    arrival.reservation?.assign(userId)
    const managed = broadcasts !== null
    const given = (options.lastEventId === undefined ? arrival.lastEventId : options.lastEventId) || ''
    // An id of a source belongs to the application.
    const { cursor, failures } = managed ? parseClaimedId(given) : { cursor: given, failures: null }
    const connection = new SSEConnection(this.#context, response, {
      clientId: createId(),
      userId,
      claims: user?.claims,
      expiresAt: user?.expiresAt ?? undefined,
      clientInfo: { ...options.clientInfo, ip: ownText(arrival.ip), userAgent: request.headers['user-agent'] ?? '', connectedAt: this.#options.clock.wall() },
      lastEventId: cursor === '' ? null : ownText(cursor),
      managed,
      control: options.control ?? true,
      // Broadcasts do not reach a stream of a source, so it holds no subscriptions, whatever its ticket grants.
      held: managed ? held : new Set(),
      headOnly: request.method === 'HEAD',
      snapshot: managed && broadcasts.snapshot !== null ? planOf(broadcasts.snapshot, arrival, held, failures) : null,
      retryMs: options.retryMs ?? this.#options.retryMs,
      arrivedAt: arrival.at
    })
    this.#registry.add(connection)
    this.#context.telemetry.onAdmit()
    arrival.hasEntered = true
    // Otherwise the response would keep the framework's request in memory as long as the stream is open.
    ;(response as unknown as Record<symbol, Arrival | null>)[this.#arrival] = null
    return connection
  }

  /** Validates the subscriptions of the request and of its ticket, and returns each once. */
  #checked (asked: readonly string[] | undefined, granted: readonly string[]): Set<string> {
    // A string is iterable too: its characters would become subscriptions.
    if (asked !== undefined && !Array.isArray(asked)) throw new InvalidSubscription(`list of type ${typeof asked}`, 'must be an array')
    const { maxSubscriptionsPerConnection } = this.#options
    const checked = new Set<string>()
    for (const list of asked === undefined ? [granted] : [granted, asked]) {
      for (const subscription of list) {
        assertSubscription(subscription)
        if (checked.add(ownText(subscription)).size > maxSubscriptionsPerConnection) throw new TooManySubscriptions(maxSubscriptionsPerConnection)
      }
    }
    return checked
  }

  #assertOpen (): void {
    if (this.#closed) throw new Closed()
  }
}

/** Returns which state a client needs that resumes: all after an incomplete snapshot, otherwise that of `?fresh=`, where `**` names all. */
function planOf (source: SnapshotSource, { fresh }: Arrival, held: Set<string>, failures: number | null): SnapshotPlan {
  const all = failures !== null || fresh.includes('**')
  return { source, fresh: all ? held : fresh.filter(subscription => held.has(subscription)), failures: failures ?? 0 }
}

function ticketOf (request: AnyRequest): string | null {
  return parameterOf('raw' in request ? request.raw : request, 'ticket')
}
