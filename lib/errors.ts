import createError, { type FastifyErrorConstructor } from '@fastify/error'

/**
 * The base class of all errors of this package. `error instanceof SSEError` also holds for errors of another copy of the package (ESM
 * beside CommonJS).
 * @example
 * ```ts
 * import { SSEError } from 'fastify-sse-manager'
 *
 * try {
 *   await app.sse.broadcastEvent({ event: 'order-paid', data: { orderId: '7' } }, { subscriptionIds: ['orders:7'] })
 * } catch (error) {
 *   if (!(error instanceof SSEError) || error.code !== 'SSE_ERR_BROKER_UNAVAILABLE') throw error
 *   app.log.warn({ err: error }, 'The event was not published')
 * }
 * ```
 */
export class SSEError extends Error {
  /** The code of the error, beginning with `SSE_ERR_`. */
  declare readonly code: string
  /** The HTTP status that fits the error. */
  declare readonly statusCode: number
  /** For SSE_ERR_NO_ANSWER of a call that resolves with a number: the sum over the nodes that answered. Otherwise absent. */
  declare readonly count?: number

  static override [Symbol.hasInstance] (value: unknown): boolean {
    try {
      return value instanceof Error && 'code' in value && typeof value.code === 'string' && value.code.startsWith('SSE_ERR_')
    } catch {
      // A getter of the application's error threw. This check is used in catch blocks, so it must not throw.
      return false
    }
  }
}

type Arguments = [(string | number | { cause: unknown })?, (string | number | { cause: unknown })?, ({ cause: unknown })?]

type Constructor = FastifyErrorConstructor<{ code: string }, Arguments>
const byCode = new Map<string, Constructor>()

function define (code: string, message: string, statusCode = 500): Constructor {
  // @fastify/error declares its base as ErrorConstructor, but uses only the prototype.
  const constructor = createError<Arguments>(code, message, statusCode, SSEError as unknown as ErrorConstructor)
  byCode.set(code, constructor)
  return constructor
}

/** Returns an error that another node has sent, with the same code. For a code that this version does not know, returns CommandFailed. */
export function reviveError (code: string, message: string): Error {
  return Object.assign(new (byCode.get(code) ?? CommandFailed)(), { message })
}

// Errors of the configuration, at the start of the application
export const InvalidOption = define('SSE_ERR_INVALID_OPTION', 'Option "%s" %s')
export const AlreadyRegistered = define('SSE_ERR_ALREADY_REGISTERED', 'The SSE plugin is already registered here as "fastify.%s"; choose other names with the "decorators" option')
export const DecoratorTaken = define('SSE_ERR_DECORATOR_TAKEN', 'Another plugin already decorates %s; choose another name with the "decorators" option')
export const UnguardedRoute = define('SSE_ERR_UNGUARDED_ROUTE', 'Requests of %s would not be authenticated: %s')
export const ImportedTooLate = define('SSE_ERR_IMPORTED_TOO_LATE', 'Routes were declared before fastify-sse-manager was imported, so their option "%s" is unknown: import the package before you call fastify()')
export const InvalidCatalogue = define('SSE_ERR_INVALID_CATALOGUE', 'Catalogue entry "%s" %s')

// Errors of events that the application sends
export const InvalidEvent = define('SSE_ERR_INVALID_EVENT', 'Event %s', 400)
export const InvalidEventName = define('SSE_ERR_INVALID_EVENT_NAME', 'Event name %s %s', 400)
export const InvalidId = define('SSE_ERR_INVALID_ID', 'Event id %s', 400)
export const InvalidKey = define('SSE_ERR_INVALID_KEY', 'key must be a string of 1 to %s characters', 400)
export const InvalidRetry = define('SSE_ERR_INVALID_RETRY', 'retry must be an integer from 100 to 3600000 milliseconds, got %s', 400)
export const InvalidData = define('SSE_ERR_INVALID_DATA', 'Event data %s', 400)
export const InvalidPriority = define('SSE_ERR_INVALID_PRIORITY', 'Priority must be one of EventPriority.LOW, NORMAL, HIGH, CRITICAL, got %s', 400)
export const EventTooLarge = define('SSE_ERR_EVENT_TOO_LARGE', 'The event has %s bytes with its key and target; maxEventBytes is %s', 413)
export const UnknownEvent = define('SSE_ERR_UNKNOWN_EVENT', 'Event %s is not in the catalogue%s', 400)
export const UnknownResource = define('SSE_ERR_UNKNOWN_RESOURCE', 'Resource %s is not in the catalogue%s', 400)
export const InvalidPayload = define('SSE_ERR_INVALID_PAYLOAD', 'Payload of %s is invalid at %s', 400)
export const InvalidTarget = define('SSE_ERR_INVALID_TARGET', 'Target %s', 400)
export const FilterNotShared = define('SSE_ERR_FILTER_NOT_SHARED', 'A filter function cannot reach other nodes; pass { local: true } to send on this node only', 400)

// Errors of subscriptions and connections
export const InvalidTopic = define('SSE_ERR_INVALID_TOPIC', 'Topic %s %s', 400)
export const InvalidSubscription = define('SSE_ERR_INVALID_SUBSCRIPTION', 'Subscription %s %s', 400)
export const TooManySubscriptions = define('SSE_ERR_TOO_MANY_SUBSCRIPTIONS', 'A connection holds at most %s subscriptions (option "maxSubscriptionsPerConnection")', 400)
export const SubscriptionForbidden = define('SSE_ERR_SUBSCRIPTION_FORBIDDEN', 'Subscription %s is not allowed: %s', 403)
export const UnknownConnection = define('SSE_ERR_UNKNOWN_CONNECTION', 'No connection with client id %s', 404)

export const InvalidCloseReason = define('SSE_ERR_INVALID_CLOSE_REASON', 'A close reason is 1 to 64 characters of a-z, 0-9 and -, got %s', 400)

// Errors of requests, before the response headers are sent
export const Unauthenticated = define('SSE_ERR_UNAUTHENTICATED', 'Authentication required', 401)
export const InvalidTicket = define('SSE_ERR_INVALID_TICKET', 'The ticket is not valid: it is forged, expired, used already, or of another event log, or the option "ticketSecret" is not set', 401)
export const TicketNotIssued = define('SSE_ERR_TICKET_NOT_ISSUED', 'No ticket was issued: %s')
export const AuthenticationFailed = define('SSE_ERR_AUTHENTICATION_FAILED', 'Authentication could not be completed%s', 500)
export const InvalidUser = define('SSE_ERR_INVALID_USER', 'The user that authHandler returned, or that was set as request.sseUser, is %s: it must be a user id, { userId, expiresAt?, claims? } or null, with expiresAt in milliseconds since the epoch, and null or absent for rights that do not expire')
export const OriginForbidden = define('SSE_ERR_ORIGIN_FORBIDDEN', 'Pages of %s are not allowed here; add the origin to the option "allowedOrigins"', 403)
export const NotAcceptable = define('SSE_ERR_NOT_ACCEPTABLE', 'This resource is a text/event-stream', 406)
export const TooManyConnections = define('SSE_ERR_TOO_MANY_CONNECTIONS', 'Too many open streams', 503)
export const TooManyUserConnections = define('SSE_ERR_TOO_MANY_USER_CONNECTIONS', 'Too many open streams for this user', 429)
export const TooManyIpConnections = define('SSE_ERR_TOO_MANY_IP_CONNECTIONS', 'Too many open streams from this address', 429)
export const HeadAlreadySent = define('SSE_ERR_HEAD_ALREADY_SENT', 'The response has already started: reply.sse() was called twice, its promise was not awaited, or something else was sent before it')
export const InvalidSource = define('SSE_ERR_INVALID_SOURCE', 'A source %s')
export const ClientGone = define('SSE_ERR_CLIENT_GONE', 'The client disconnected before the stream started', 499)

/**
 * The reason with which the signals of a stream are aborted. Its name is `AbortError`, so that `fetch`, Node and SDKs treat it as an
 * abort and not as a failure.
 */
export class StreamEnded extends define('SSE_ERR_STREAM_ENDED', 'The stream has ended: %s', 499) {
  override readonly name: string = 'AbortError'
  /** Why the stream ended. */
  readonly closeReason: string

  constructor (closeReason: string) {
    super(closeReason)
    this.closeReason = closeReason
  }
}

/** The reason with which the signal of `snapshot.load` is aborted. Its name is `AbortError`, as that of `StreamEnded`. */
export class SnapshotAborted extends define('SSE_ERR_SNAPSHOT_ABORTED', 'The load of a snapshot was aborted: %s', 499) {
  override readonly name: string = 'AbortError'
}
export const SnapshotTooLarge = define('SSE_ERR_SNAPSHOT_TOO_LARGE', 'The snapshot does not fit into the memory of all queued events, %s bytes (option "maxQueuedBytes")')
export const SnapshotMemoryFull = define('SSE_ERR_SNAPSHOT_MEMORY_FULL', 'The snapshot does not fit beside the events and snapshots that are queued now, of which there can be %s bytes (option "maxQueuedBytes")', 503)

// Errors of runs
export const InvalidRunId = define('SSE_ERR_INVALID_RUN_ID', 'A run id %s', 400)
export const TooManyRuns = define('SSE_ERR_TOO_MANY_RUNS', 'This node already produces %s runs (option "runs.max")', 503)
export const TooManyUserRuns = define('SSE_ERR_TOO_MANY_USER_RUNS', 'This node already produces %s runs of the owner (option "runs.maxPerOwner")', 429)

// Errors of commands to other nodes
export const NoAnswer = define('SSE_ERR_NO_ANSWER', 'Not every node answered within %s ms', 504)
export const CommandFailed = define('SSE_ERR_COMMAND_FAILED', 'The command failed on another node; see the log of that node')
export const TooManyCommands = define('SSE_ERR_TOO_MANY_COMMANDS', 'More than %s commands are waiting for answers of other nodes', 503)

// Errors of `fastify-sse-manager/admin`
export const AdminForbidden = define('SSE_ERR_ADMIN_FORBIDDEN', 'The admin page is not allowed here: %s', 403)
export const InvalidAction = define('SSE_ERR_INVALID_ACTION', 'The body of an action %s', 400)

// Errors of the service
export const Closed = define('SSE_ERR_CLOSED', 'The SSE manager or publisher is closing or closed', 503)
export const BrokerUnavailable = define('SSE_ERR_BROKER_UNAVAILABLE', 'The event log %s', 503)

// Errors of the command line
export const InvalidArgument = define('SSE_ERR_INVALID_ARGUMENT', '%s')

// Errors of `fastify-sse-manager/testing`
export const TestTimeout = define('SSE_ERR_TEST_TIMEOUT', 'Not received within %s ms: %s')
export const TestStreamEnded = define('SSE_ERR_TEST_STREAM_ENDED', 'The stream ended before it received %s')
export const TestConnectionCut = define('SSE_ERR_TEST_CONNECTION_CUT', 'The test has cut the connection')
export const TestNode = define('SSE_ERR_TEST_NODE', 'The node %s')
export const TestMisuse = define('SSE_ERR_TEST_MISUSE', '%s')

/** The error with which `openStream` rejects if the server does not answer with a stream. */
export class TestRefused extends define('SSE_ERR_TEST_REFUSED', '%s was refused: %s') {
  /** Status of the response; 200 for a rejection that was sent as a short stream. */
  declare readonly statusCode: number
  /** Body of the response, parsed if it is JSON. For a rejection that was sent as a stream, the data of its `sse:error`. */
  readonly body: unknown
  /** Headers of the response. */
  readonly headers: Readonly<Record<string, string | string[] | undefined>>

  constructor (request = '', answer = '', statusCode = 500, body?: unknown, headers = {}) {
    super(request, answer)
    Object.assign(this, { statusCode })
    this.body = body
    this.headers = headers
  }
}
