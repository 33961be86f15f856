import { REQUEST_OPTIONS, type CredentialsQuestion, type RequestOptions } from './options.js'

/** Options of `createClient()`, all optional. */
export interface ClientOptions extends RequestOptions {
  /** Topics and patterns, sent as `?subscription=…`. Default: those of the URL. */
  subscriptions?: readonly string[] | undefined
  /**
   * Returns a ticket, sent as `?ticket=…`. It is called before each attempt, one at a time. `null`: the user is signed out, and the client
   * closes with `no-credentials`. If it rejects, the attempt has failed. Default: none.
   */
  ticket?: ((question: CredentialsQuestion) => string | null | Promise<string | null>) | undefined
  /** The cursor to resume after, such as that of a page rendered on the server. Default: none, which begins with the newest event. */
  lastEventId?: string | undefined
  /** `session`: the cursor is kept in `sessionStorage`, and takes precedence over `lastEventId` after a reload. Default: it is not kept. */
  persist?: 'session' | undefined
  /** Whether a hidden page disconnects, and resumes when it is visible. Default false. */
  pauseWhenHidden?: boolean | undefined
}

/** Options of `client.events()`. */
export interface EventsOptions {
  /** Number of unread events above which the loop ends with SSE_ERR_CLIENT_OVERFLOW. Default 1,000. */
  maxBuffered?: number | undefined
}

/** The names of the options. */
export const CLIENT_OPTIONS = [...REQUEST_OPTIONS, 'subscriptions', 'ticket', 'lastEventId', 'persist', 'pauseWhenHidden']
