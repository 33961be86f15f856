import type { WaitingState } from '../state.js'
import type { Entry, Slice } from './relay.js'

/** A tab asks for the stream. */
export interface Join {
  readonly type: 'join'
  readonly tab: string
  readonly cursor: string
  readonly subscriptions: readonly string[]
  /** Subscriptions of which the tab has no state. */
  readonly fresh: readonly string[]
  /** Whether the tab asks because its back-off has ended, and not because the user or the browser wants it to connect. */
  readonly isRetry: boolean
}

/** The tabs that share, and their subscriptions. */
export type Tabs = readonly (readonly [tab: string, subscriptions: readonly string[]])[]

/** The answer to `join`. */
export type Answer =
  | { readonly type: 'joined', readonly to: string, readonly slice: Slice }
  /** The tab is to read for all. */
  | { readonly type: 'take-over', readonly to: string }
  /** The tab is to read for itself: the server may refuse its subscriptions. */
  | { readonly type: 'alone', readonly to: string }

/** What the tab that reads says. */
export type Report =
  | Answer
  /** It reads for these. */
  | { readonly type: 'lead', readonly tabs: Tabs }
  | { readonly type: 'entries', readonly from: number, readonly entries: readonly Entry[] }
  /** It waits for its next attempt. */
  | { readonly type: 'ended', readonly state: WaitingState }

/** What tabs say to each other. */
export type Message =
  | Report
  | Join
  /** Does a tab read? */
  | { readonly type: 'ping' }
  | { readonly type: 'leave', readonly tab: string }

/** A message as it is sent. `term` is higher for each tab that reads: what an earlier one still says is ignored. */
export type SentMessage = Message & { readonly term: number }
