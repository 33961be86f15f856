import { InvalidCloseReason } from '../errors.js'

/**
 * Why a stream ended. Applications can use reasons of their own, as in `closeConnection(clientId, 'kicked')`.
 * - `client`: the client disconnected, or the network failed.
 * - `closed`: the application closed the stream without a reason of its own, or a plugin that wraps the response threw.
 * - `disconnected`: `disconnectUser()` was called.
 * - `shutdown`: the server is closing. The client reconnects.
 * - `max-age`: the stream has reached `maxConnectionAgeMs`, minus up to a fifth at random. The client reconnects.
 * - `auth-expired`: the time `expiresAt` of the user has passed. The client reconnects.
 * - `revoked`: a right was revoked while an event that needed it was being written, or a snapshot that may contain it was waiting. The
 *   socket is destroyed, and the client reconnects.
 * - `rights-unknown`: this node has missed a command of another node that may concern the user, or `authorizeSubscription` has not
 *   answered `reauthorize()` within `stallTimeoutMs`. The client reconnects.
 * - `stalled`: the socket accepted no byte for `stallTimeoutMs`. The socket is destroyed, and the client reconnects.
 * - `source-end`: the source of `reply.sse(source)` has ended.
 * - `source-error`: the source of `reply.sse(source)` has failed. The client reconnects.
 * - `snapshot-error`: the state of the client could not be loaded, or was not read while its memory was needed. The client reconnects,
 *   after a time that doubles with each failed load.
 * - `head`: the request was a HEAD request, which has no stream.
 */
export type CloseReason = typeof CLOSE_REASONS[number]
/** The reasons of this package. */
export const CLOSE_REASONS = ['client', 'closed', 'disconnected', 'shutdown', 'max-age', 'auth-expired', 'revoked', 'rights-unknown', 'stalled', 'source-end', 'source-error', 'snapshot-error', 'head'] as const

const RECONNECT: ReadonlySet<string> = new Set<CloseReason>(['shutdown', 'max-age', 'auth-expired', 'rights-unknown', 'source-error', 'snapshot-error'])
const FORM = /^[a-z0-9-]{1,64}$/

/** Returns whether a reason is one of this package. */
export function isCloseReason (reason: string): reason is CloseReason {
  return (CLOSE_REASONS as readonly string[]).includes(reason)
}

/** Returns whether a client that receives this reason should reconnect. */
export function shouldReconnect (reason: string): boolean {
  return RECONNECT.has(reason)
}

/**
 * Rejects a reason that is not 1 to 64 characters of `a-z`, `0-9` and `-`.
 * @throws SSE_ERR_INVALID_CLOSE_REASON
 */
export function assertCloseReason (reason: unknown): asserts reason is string {
  if (typeof reason !== 'string' || !FORM.test(reason)) throw new InvalidCloseReason(typeof reason === 'string' ? JSON.stringify(reason) : `a value of type ${typeof reason}`)
}
