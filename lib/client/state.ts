/** The reason of the state after `close()`. */
export const CLOSED = 'client'

/** An attempt to connect is under way. */
export interface ConnectingState {
  /** The state. */
  readonly name: 'connecting'
}

/** The server serves the stream. */
export interface OpenState {
  /** The state. */
  readonly name: 'open'
}

/** The connection is interrupted. The client connects again by itself, and resumes. */
export interface WaitingState {
  /** The state. */
  readonly name: 'waiting'
  /** Time to the next attempt in milliseconds. Null: when the page is visible again. */
  readonly retryInMs: number | null
  /**
   * Why: a close reason of the server, such as `shutdown`, or
   * - `network`: the request failed, the connection broke, or an event had more than 64 Mi characters.
   * - `timeout`: the server was silent for too long.
   * - `end`: the response ended without `sse:close`, as a proxy ends it.
   * - `refused`: the server refuses the client for now, see `status` and `code`.
   * - `hidden`: the page is hidden.
   */
  readonly reason: string
  /** Status of the response, if it was not a stream. */
  readonly status?: number
  /** Error code of the server, such as `SSE_ERR_TOO_MANY_CONNECTIONS`. */
  readonly code?: string
}

/** The client does not connect again, except by `reconnect()`, and by `setSubscriptions()` unless `close()` was called. */
export interface ClosedState {
  /** The state. */
  readonly name: 'closed'
  /**
   * Why: a close reason of the server, such as `disconnected` or one of the application, or
   * - `client`: `close()` was called.
   * - `refused`: the server refuses the client, see `status` and `code`.
   * - `no-credentials`: `headers()` or `ticket()` has returned null.
   * - `no-content`: the server has answered 204, which stops clients.
   * - `not-a-stream`: the response is no event stream, for example a page to sign in.
   */
  readonly reason: string
  /** Status of the response, if it was not a stream. */
  readonly status?: number
  /** Error code of the server, such as `SSE_ERR_UNAUTHENTICATED`. */
  readonly code?: string
}

/** The state of a connection. */
export type ClientState = ConnectingState | OpenState | WaitingState | ClosedState
