import type { Entry, Slice } from './relay.js'

/** A tab asks for the stream. */
export interface Join {
  readonly type: 'join'
  readonly tab: string
  readonly cursor: string
  readonly subscriptions: readonly string[]
  /** Subscriptions of which the tab has no state. */
  readonly fresh: readonly string[]
}

/** The tabs that share, and their subscriptions. */
export type Tabs = readonly (readonly [tab: string, subscriptions: readonly string[]])[]

/** What tabs say to each other. `term` is higher for each tab that reads: what an earlier one still says is ignored. */
export type Message =
  | Join
  /** Does a tab read? */
  | { readonly type: 'ping' }
  /** Yes, for these. */
  | { readonly type: 'lead', readonly term: number, readonly tabs: Tabs }
  /** The answer to `join`. */
  | { readonly type: 'joined', readonly term: number, readonly to: string, readonly opening: string, readonly slice: Slice }
  /** The answer to `join` of a tab that needs events which are not kept. */
  | { readonly type: 'behind', readonly term: number, readonly to: string }
  | { readonly type: 'entries', readonly term: number, readonly from: number, readonly entries: readonly Entry[] }
  | { readonly type: 'ended', readonly term: number }
  | { readonly type: 'leave', readonly tab: string }
