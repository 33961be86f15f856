import type { Claims } from './event-input.js'

/** Information about a client. The application can add properties. */
export interface ClientInfo {
  /** IP address of the client: Fastify's `request.ip`, or the address of the socket for a request of plain Node. */
  readonly ip: string
  /** The `User-Agent` header; empty if the request has none. */
  readonly userAgent: string
  /** Time of the connection in milliseconds since the Unix epoch. */
  readonly connectedAt: number
  /** Properties of the option `clientInfo`. */
  readonly [key: string]: unknown
}

/** A connection, as broadcast filters and `authorizeTopic` receive it. */
export interface Subscriber {
  /** The id of the connection. A client that reconnects gets a new id. */
  readonly clientId: string
  /** The authenticated user id; null for an anonymous connection. */
  readonly userId: string | null
  /** The claims that `authHandler` returned with the user. */
  readonly claims: Claims | undefined
  /** Address, user agent and time of the connection, and the properties that the application added. */
  readonly clientInfo: ClientInfo
  /** Whether the connection has an authenticated user. */
  readonly isAuthenticated: boolean
  /** The topics and patterns that the connection holds. */
  readonly subscriptions: ReadonlySet<string>
  /**
   * Returns whether the connection holds the topic, or a pattern that covers it.
   * @throws SSE_ERR_INVALID_TOPIC
   */
  hasSubscription (topic: string): boolean
}
