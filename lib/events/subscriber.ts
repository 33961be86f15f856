/** Who is connected, from where and since when; and what the application adds. */
export interface ClientInfo {
  readonly ip: string
  readonly userAgent: string
  /** Milliseconds since the epoch. */
  readonly connectedAt: number
  readonly [key: string]: unknown
}

/** A connection, as filters and `authorizeTopic` see it. */
export interface Subscriber {
  /** The id of this connection; a client that reconnects gets another one. */
  readonly clientId: string
  /** The authenticated user id; null for an anonymous connection. */
  readonly userId: string | null
  /** The claims that `authHandler` returned with the user. */
  readonly claims: unknown
  /** Address, user agent and time of the connection, and what the application added. */
  readonly clientInfo: ClientInfo
  /** Whether the connection has an authenticated user. */
  readonly isAuthenticated: boolean
  /** The topics and patterns that the connection holds. */
  readonly subscriptions: ReadonlySet<string>
  /**
   * Whether the connection holds the topic, or a pattern that covers it.
   * @throws SSE_ERR_INVALID_TOPIC
   */
  hasSubscription (topic: string): boolean
}
