import type { GapReason } from '../log/broker.js'
import { EventPriority } from '../events/event-rules.js'
import { Frame } from '../delivery/frame.js'
import { encodeControl, encodeComment, encodeIdLine, encodeRetry } from '../wire/event-stream.js'
import { shouldReconnect, type CloseReason } from './close-reason.js'

// Control events, whose names start with `sse:`, and the first and last blocks of a stream.

/** The longest reconnection time that is sent. */
export const MAX_RETRY_MS = 3_600_000
/** Reasons for which many streams can end at the same time. */
const SPREAD: ReadonlySet<string> = new Set<CloseReason>(['shutdown', 'max-age', 'rights-unknown', 'snapshot-error'])

/** The block that is sent to idle clients. */
export const KEEP_ALIVE = encodeComment('keep-alive')
/** The last block of a stream without control events. */
export const FAREWELL = encodeComment('end')

/** Returns the event that is sent to idle clients instead of a comment, so that a page receives it. Null: no cursor can be sent. */
export function pingText (cursor: string | null): string {
  return (cursor === null ? '' : encodeIdLine(cursor)) + encodeControl('ping', { lastEventId: cursor })
}

/** Returns the frame of `sse:gap`. The outbox sends it with the cursor at which the stream continues. */
export function gapFrame (reason: GapReason, lastEventId: string, snapshot = false): Frame {
  return new Frame('', encodeControl('gap', { reason, lastEventId, ...(snapshot && { snapshot }) }), EventPriority.CRITICAL)
}

/** Returns the frame of `sse:unsubscribed`. */
export function unsubscribedFrame (subscriptionId: string, reason: string): Frame {
  return new Frame('', encodeControl('unsubscribed', { subscriptionId, reason }), EventPriority.CRITICAL)
}

/** Returns the frame of `sse:error` for a failed source. The error itself is only logged: it can contain internal information. */
export function sourceErrorFrame (): Frame {
  return new Frame('', encodeControl('error', { message: 'The source of this stream failed' }), EventPriority.NORMAL)
}

/**
 * Returns the first block of a stream.
 * @param keepAliveMs longest silence, by which a client recognises a dead connection; null if there is no limit
 * @param retryMs reconnection time; null for a stream without control events
 * @param cursor the block with the cursor of the client; empty for none
 */
export function greetingText (keepAliveMs: number | null, retryMs: number | null, cursor: string): string {
  return encodeComment(keepAliveMs === null ? 'stream' : `stream keep-alive=${keepAliveMs}`) + (retryMs === null ? '' : encodeRetry(retryMs)) + cursor
}

/** Returns the last block of a stream: the reconnection time for some reasons, the cursor, and `sse:close`. */
export function farewellText (reason: string, retryMs: number, drainMs: number, cursor: string): string {
  return returnTime(reason, retryMs, drainMs) + cursor + encodeControl('close', { reason, reconnect: shouldReconnect(reason) })
}

/** Returns the block with the reconnection time, up to twice the minimum at random, so that clients do not reconnect together. */
function returnTime (reason: string, retryMs: number, drainMs: number): string {
  if (!SPREAD.has(reason)) return ''
  // A client that reconnects while the server is closing would receive an error status, after which an EventSource stops.
  const earliestMs = reason === 'shutdown' ? Math.max(retryMs, drainMs) : retryMs
  return encodeRetry(Math.min(Math.round(earliestMs * (1 + Math.random())), MAX_RETRY_MS))
}
