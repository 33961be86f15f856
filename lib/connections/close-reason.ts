import { InvalidCloseReason } from '../errors.js'

/**
 * Why a stream ended. The application may add words of its own (`closeConnection(clientId, 'kicked')`).
 * - `client`: the client left, or the network did.
 * - `closed`: the application closed it without a reason of its own.
 * - `disconnected`: `disconnectUser`.
 * - `shutdown`: the server is closing; clients come back by themselves.
 * - `max-age`: `maxConnectionAgeMs` is over; clients come back by themselves.
 * - `auth-expired`: `expiresAt` has passed.
 * - `revoked`: rights were taken away while something they had covered was being written; it comes back by itself.
 * - `rights-unknown`: this node has missed a command of another node that may have concerned the user, or `authorizeSubscription` has not answered `reauthorize` within `stallTimeoutMs`; clients come back by themselves.
 * - `stalled`: the socket took no byte for `stallTimeoutMs`.
 * - `source-end`, `source-error`: the source of `reply.sse(source)` ended, or failed.
 * - `head`: it was a HEAD request.
 */
export type CloseReason = typeof CLOSE_REASONS[number]
export const CLOSE_REASONS = ['client', 'closed', 'disconnected', 'shutdown', 'max-age', 'auth-expired', 'revoked', 'rights-unknown', 'stalled', 'source-end', 'source-error', 'head'] as const

const RECONNECT: ReadonlySet<string> = new Set<CloseReason>(['shutdown', 'max-age', 'auth-expired', 'rights-unknown', 'source-error'])
const FORM = /^[a-z0-9-]{1,64}$/

export function isCloseReason (reason: string): reason is CloseReason {
  return (CLOSE_REASONS as readonly string[]).includes(reason)
}

/** Whether a client that is told this reason should come back. */
export function shouldReconnect (reason: string): boolean {
  return RECONNECT.has(reason)
}

/** Throws SSE_ERR_INVALID_CLOSE_REASON unless `reason` is 1 to 64 characters of a-z, 0-9 and -. */
export function assertCloseReason (reason: unknown): asserts reason is string {
  if (typeof reason !== 'string' || !FORM.test(reason)) throw new InvalidCloseReason(typeof reason === 'string' ? JSON.stringify(reason) : `a value of type ${typeof reason}`)
}
