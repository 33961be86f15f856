import type { GapReason } from '../log/broker.js'
import { EventPriority } from '../events/event-rules.js'
import { Frame } from '../delivery/frame.js'
import { encodeControl, encodeComment, encodeRetry } from '../wire/event-stream.js'
import { shouldReconnect } from './close-reason.js'

// What the library itself says to a client: `sse:` events, and the blocks at the beginning and at the end of a stream.

const MAX_RETRY_MS = 3_600_000

export const KEEP_ALIVE = encodeComment('keep-alive')
const GREETING = encodeComment('stream')

/** The client's cursor goes out with this frame: the position at which the stream goes on. */
export function gapFrame (reason: GapReason, lastEventId: string): Frame {
  return new Frame('', encodeControl('gap', { reason, lastEventId }), EventPriority.CRITICAL)
}

export function unsubscribedFrame (subscriptionId: string, reason: string): Frame {
  return new Frame('', encodeControl('unsubscribed', { subscriptionId, reason }), EventPriority.CRITICAL)
}

/** The client learns no more than that the source failed; the log has the error. */
export function sourceErrorFrame (): Frame {
  return new Frame('', encodeControl('error', { message: 'The source of this stream failed' }), EventPriority.NORMAL)
}

/** The first block. @param cursor the block that tells the client its cursor; empty for none. */
export function greetingText (retryMs: number, cursor: string): string {
  return GREETING + encodeRetry(retryMs) + cursor
}

/** The last block: when to reconnect, if the client does so by itself, the cursor, and the reason. */
export function farewellText (reason: string, retryMs: number, drainMs: number, cursor: string): string {
  return returnTime(reason, retryMs, drainMs) + cursor + encodeControl('close', { reason, reconnect: shouldReconnect(reason) })
}

/** Spread over twice the time, as many clients are sent this at once. */
function returnTime (reason: string, retryMs: number, drainMs: number): string {
  if (reason !== 'shutdown' && reason !== 'max-age' && reason !== 'rights-unknown') return ''
  // A client that reconnects before the server has finished closing gets an error, which is final.
  const earliestMs = reason === 'shutdown' ? Math.max(retryMs, drainMs) : retryMs
  return encodeRetry(Math.min(Math.round(earliestMs * (1 + Math.random())), MAX_RETRY_MS))
}
