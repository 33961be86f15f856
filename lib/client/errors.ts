const MESSAGES = {
  SSE_ERR_CLIENT_OPTION: 'Invalid option',
  SSE_ERR_CLIENT_CLOSED: 'The stream was closed for good',
  SSE_ERR_CLIENT_OVERFLOW: 'Too many unread events are buffered',
  SSE_ERR_CLIENT_REFUSED: 'The server refused the request',
  SSE_ERR_CLIENT_BROKEN: 'The stream broke, and cannot be continued',
  SSE_ERR_CLIENT_UNKNOWN_OUTCOME: 'The request was sent, and no response arrived. It is not sent again',
  SSE_ERR_CLIENT_RUN_NOT_DONE: 'The run did not complete',
  SSE_ERR_CLIENT_GAP: 'Events are lost, and no onGap was given'
} as const

/** The codes of `SSEClientError`. */
export type ClientErrorCode = keyof typeof MESSAGES

/** All codes, for the test of the documentation. @internal */
export const CLIENT_ERROR_CODES = Object.keys(MESSAGES) as ClientErrorCode[]

/** Why a stream ended. */
interface Cause {
  readonly reason?: string | undefined
  readonly status?: number | undefined
  readonly code?: string | undefined
}

/** An error of `fastify-sse-manager/client`. */
export class SSEClientError extends Error {
  /** `SSEClientError`. */
  override readonly name = 'SSEClientError'
  /** The code of the error, beginning with `SSE_ERR_CLIENT_`. */
  readonly code: ClientErrorCode
  /** Why the stream ended: a close reason of the server, a reason of `WaitingState` or `ClosedState`, the status of a run, or the reason of a gap. */
  readonly reason: string | undefined
  /** Status of the response that refused the request. */
  readonly status: number | undefined
  /** Error code of the server, such as `SSE_ERR_UNAUTHENTICATED`. */
  readonly serverCode: string | undefined

  /** @internal */
  constructor (code: ClientErrorCode, detail?: string, { reason, status, code: serverCode }: Cause = {}) {
    super(detail === undefined ? MESSAGES[code] : `${MESSAGES[code]}: ${detail}`)
    this.code = code
    this.reason = reason
    this.status = status
    this.serverCode = serverCode
  }
}

/** Returns the error of a stream that has ended: SSE_ERR_CLIENT_REFUSED if the server has refused it, otherwise one with this code. */
export function endError (code: ClientErrorCode, cause: Cause): SSEClientError {
  if (cause.reason !== 'refused') return new SSEClientError(code, cause.reason, cause)
  return new SSEClientError('SSE_ERR_CLIENT_REFUSED', [cause.status === undefined ? '' : `status ${cause.status}`, cause.code ?? ''].join(' ').trim(), cause)
}
