/** The prefix of control events. Applications cannot send an event whose name begins with it. */
export const CONTROL_PREFIX = 'sse:'

/** The names of the control events, without their prefix. */
export type ControlEvent = 'gap' | 'close' | 'end' | 'error' | 'unsubscribed' | 'join' | 'leave' | 'ping'

/**
 * Why events after a client's cursor cannot be replayed.
 * - `malformed`: the cursor was not issued by this package.
 * - `epoch`: the cursor belongs to an earlier epoch of the log, before a restart or a wiped store.
 * - `unknown`: the cursor is ahead of the newest event of the log.
 * - `trimmed`: events after the cursor are no longer in the history.
 * - `limit`: more events follow the cursor than `maxReplayEvents` or `maxReplayBytes` allow.
 */
export type GapReason = 'malformed' | 'epoch' | 'unknown' | 'trimmed' | 'limit'

/** The name of messages between nodes. Applications cannot publish it, and clients never receive it. */
export const NODE_EVENT = 'sse:node'
