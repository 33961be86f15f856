import { randomUUID } from 'node:crypto'
import { assertOrigin, authenticate, currentUser, queryOf } from './auth.js'
import { SSEConnection, type ConnectionHost } from './connection.js'
import { ClientGone, Closed, HeadAlreadySent, InvalidSubscription, NotAcceptable, TooManyConnections, TooManyIpConnections, TooManySubscriptions, TooManyUserConnections, Unauthenticated } from './errors.js'
import { assertRetry } from './event.js'
import { isAcceptable } from './head.js'
import type { AnyRequest, ResolvedOptions, SSEUser } from './options.js'
import type { Registry } from './registry.js'
import type { Rights } from './rights.js'
import { assertSubscription } from './topic.js'
import { isGone, type HttpRequest, type HttpResponse } from './transport.js'
import { isTaken } from './writer.js'
import type { ConnectOptions } from '../types/index.js'

/** What `createConnection` is given: a request and response of `node:http` or `node:http2`, also in Express's or Koa's coat. */
export interface CreateConnection extends ConnectOptions {
  request: HttpRequest
  response: HttpResponse
  /** Who this is, when the application knows already; null for nobody. Absent: `authHandler` is asked. */
  user?: SSEUser | null
  /** Added to what `authHandler` is given. */
  authData?: Record<string, unknown>
}

/** What `reply.sse()` knows beside that. @internal */
export interface Candidate extends CreateConnection {
  /** The request as the application knows it. */
  subject?: AnyRequest
  ip?: string
  managed?: boolean
  /** Whether `user` may be nobody; absent: as the option says. */
  requireAuthentication?: boolean
}

/** The door: everything that can refuse a stream, in order, before its head. */
export class Admission {
  readonly #options: ResolvedOptions
  readonly #registry: Registry<SSEConnection>
  readonly #rights: Rights
  readonly #host: ConnectionHost
  #closed = false

  constructor (options: ResolvedOptions, registry: Registry<SSEConnection>, rights: Rights, host: ConnectionHost) {
    this.#options = options
    this.#registry = registry
    this.#rights = rights
    this.#host = host
  }

  /** Nobody is let in any more. */
  close (): void {
    this.#closed = true
  }

  /** Lets a stream in. It is counted, and receives, from here on; what is missing is `connection.open()`. */
  async admit (candidate: Candidate): Promise<SSEConnection> {
    const { request, subject = request } = candidate
    this.#assertOpen()
    if (!isAcceptable(request.headers.accept)) throw new NotAcceptable()
    assertOrigin(this.#options, subject)
    const user = candidate.user === undefined ? await authenticate(this.#options, subject, candidate.authData) : this.#vouched(candidate)
    const subscriptions = this.#checked(candidate.subscriptions)
    if (candidate.retryMs !== undefined) assertRetry(candidate.retryMs)
    const { userId = null, claims } = user ?? {}
    return await this.#rights.grant({ request: subject, userId, claims }, subscriptions, () => this.#enter(candidate, user, subscriptions))
  }

  /** The user that the caller names, held to the same rules as one that `authHandler` returns. */
  #vouched ({ user, requireAuthentication = this.#options.requireAuthentication }: Candidate): SSEUser | null {
    const current = currentUser(user)
    if (current === null && requireAuthentication) throw new Unauthenticated()
    return current
  }

  #enter (candidate: Candidate, user: SSEUser | null, subscriptions: ReadonlySet<string>): SSEConnection {
    const { request, response, managed = true } = candidate
    this.#assertOpen()
    if (isGone(response)) throw new ClientGone()
    // Begun while the application was asked, or by a second call beside this one.
    if (isTaken(response)) throw new HeadAlreadySent()
    const ip = candidate.ip ?? request.socket.remoteAddress ?? ''
    this.#assertRoom(user?.userId ?? null, ip)
    const connection = new SSEConnection(this.#host, candidate.response, {
      clientId: randomUUID(),
      userId: user?.userId ?? null,
      claims: user?.claims,
      expiresAt: user?.expiresAt,
      clientInfo: { ...candidate.clientInfo, ip, userAgent: request.headers['user-agent'] ?? '', connectedAt: Date.now() },
      // An empty one is what a client sends that has been told no place.
      lastEventId: (candidate.lastEventId === undefined ? lastEventIdOf(request) : candidate.lastEventId) || null,
      managed,
      headOnly: request.method === 'HEAD',
      retryMs: candidate.retryMs ?? this.#options.retryMs
    })
    this.#registry.add(connection)
    if (managed) for (const subscription of subscriptions) this.#registry.subscribe(connection, subscription)
    return connection
  }

  /** The subscriptions asked for, each once. */
  #checked (asked: readonly string[] | undefined): ReadonlySet<string> {
    // A string is iterable too: its letters would be the subscriptions.
    if (asked !== undefined && !Array.isArray(asked)) throw new InvalidSubscription(`list of type ${typeof asked}`, 'must be an array')
    const subscriptions = new Set(asked)
    const { maxSubscriptionsPerConnection } = this.#options
    if (subscriptions.size > maxSubscriptionsPerConnection) throw new TooManySubscriptions(maxSubscriptionsPerConnection)
    for (const subscription of subscriptions) assertSubscription(subscription)
    return subscriptions
  }

  #assertOpen (): void {
    if (this.#closed) throw new Closed()
  }

  #assertRoom (userId: string | null, ip: string): void {
    const { maxConnections, maxConnectionsPerUser, maxConnectionsPerIp } = this.#options
    if (maxConnections > 0 && this.#registry.size >= maxConnections) throw new TooManyConnections()
    if (maxConnectionsPerUser > 0 && userId !== null && this.#registry.countOfUser(userId) >= maxConnectionsPerUser) throw new TooManyUserConnections()
    if (maxConnectionsPerIp > 0 && this.#registry.countOfIp(ip) >= maxConnectionsPerIp) throw new TooManyIpConnections()
  }
}

/** The header wins; a browser cannot send it on a first connect, so a first cursor comes in the query (FACTS 1.9). */
function lastEventIdOf (request: HttpRequest): string | null {
  const header = request.headers['last-event-id']
  const query = queryOf(request)
  return (Array.isArray(header) ? header[0] : header) ?? query['lastEventId'] ?? query['last_event_id'] ?? null
}
