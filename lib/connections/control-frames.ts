import type { GapReason } from '../log/broker.js'
import { EventPriority } from '../events/event-rules.js'
import { Frame } from '../delivery/frame.js'
import { encodeControl, encodeComment, encodeRetry } from '../wire/event-stream.js'
import { shouldReconnect } from './close-reason.js'

// Control events, whose names start with `sse:`, and the first and last blocks of a stream.

const MAX_RETRY_MS = 3_600_000

/** The block that is sent to idle clients. */
export const KEEP_ALIVE = encodeComment('keep-alive')
const GREETING = encodeComment('stream')

/** Returns the frame of `sse:gap`. The outbox sends it with the cursor at which the stream continues. */
export function gapFrame (reason: GapReason, lastEventId: string): Frame {
  return new Frame('', encodeControl('gap', { reason, lastEventId }), EventPriority.CRITICAL)
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
 * @param cursor the block with the cursor of the client; empty for none
 */
export function greetingText (retryMs: number, cursor: string): string {
  return GREETING + encodeRetry(retryMs) + cursor
}

/** Returns the last block of a stream: the reconnection time for some reasons, the cursor, and `sse:close`. */
export function farewellText (reason: string, retryMs: number, drainMs: number, cursor: string): string {
  return returnTime(reason, retryMs, drainMs) + cursor + encodeControl('close', { reason, reconnect: shouldReconnect(reason) })
}

/** Returns the block with the reconnection time, up to twice the minimum at random, so that clients do not reconnect together. */
function returnTime (reason: string, retryMs: number, drainMs: number): string {
  if (reason !== 'shutdown' && reason !== 'max-age' && reason !== 'rights-unknown') return ''
  // A client that reconnects while the server is closing would receive an error status, after which an EventSource stops.
  const earliestMs = reason === 'shutdown' ? Math.max(retryMs, drainMs) : retryMs
  return encodeRetry(Math.min(Math.round(earliestMs * (1 + Math.random())), MAX_RETRY_MS))
}
