import type { FastifyReply, FastifyRequest } from 'fastify'
import { assertNames, CONNECT_OPTIONS, SOURCE_OPTIONS, type ConnectOptions } from '../access/connect-options.js'
import type { Guard } from './guard.js'
import { HijackingBody } from './hijacking-body.js'
import type { SSEConnection } from '../connections/connection.js'
import { isSubscription } from '../events/topic.js'
import { HeadAlreadySent, InvalidSource } from '../errors.js'
import { streamHeaders } from '../wire/headers.js'
import { kindOf } from '../util/quote.js'
import { safeLog, type Log } from '../util/logger.js'
import { discard, hold, isSource, pump, type SourceFactory, type Source } from '../streams/source.js'

/** Time in which an error handler of the application answers for a handler that has awaited. */
const ANSWER_MS = 2_000

/** Implements `reply.sse()`: authenticates the request unless its route did, admits the connection, and passes the body to Fastify. */
export function replySSE (guard: Guard, request: FastifyRequest, reply: FastifyReply, first?: unknown, second?: unknown): Promise<SSEConnection | void> {
  const { sent } = reply
  const answer = isSource(first) ? stream(guard, request, reply, first, second) : connect(guard, request, reply, true, first)
  // Without this handler, a rejection would end the process if the route handler neither awaits nor returns the promise.
  answer.catch(err => {
    // A call after the answer, from a timer for instance, has nobody else who could report it.
    if (reply.sent && (!sent || err instanceof HeadAlreadySent)) warn(request, err, 'after the request was answered')
    else setTimeout(() => { if (!reply.sent) warn(request, err, 'and the request has no answer') }, ANSWER_MS).unref()
  })
  return answer
}

function warn (request: FastifyRequest, err: unknown, what: string): void {
  safeLog(request.log).warn({ err, route: request.routeOptions.url }, `reply.sse() failed ${what}: await or return its promise in the handler`)
}

/**
 * Rejects options that are not an object, are a promise, or have unknown names. A source without its `await` would otherwise count as
 * options.
 * @throws SSE_ERR_INVALID_SOURCE, SSE_ERR_INVALID_OPTION
 */
function assertOptions (options: unknown, names: readonly string[]): asserts options is ConnectOptions {
  if (typeof options !== 'object' || options === null) throw new InvalidSource(`or options of reply.sse() must be an object, got ${kindOf(options)}`)
  if ('then' in options) throw new InvalidSource('is still a promise: await it first')
  assertNames(options, names, names === SOURCE_OPTIONS ? 'reply.sse(source)' : 'reply.sse()')
}

async function stream (guard: Guard, request: FastifyRequest, reply: FastifyReply, source: Source | SourceFactory, options: unknown): Promise<void> {
  let connection: SSEConnection
  if (Array.isArray(source) && source.length > 0 && source.slice(0, 128).every(isSubscription) && source.some(topic => /[:*]/.test(String(topic)))) safeLog(request.log).warn({ first: source[0] }, 'reply.sse() sends this array as data, and it looks like topics: subscriptions belong in reply.sse({ subscriptions })')
  hold(source)
  try {
    connection = await connect(guard, request, reply, false, options)
  } catch (error) {
    discard(source)
    throw error
  }
  await play(connection, source, request.log)
}

/**
 * Streams a source and then closes the connection. If the source fails, its error is logged, and the client receives only that it failed.
 */
async function play (connection: SSEConnection, source: Source | SourceFactory, log: Log): Promise<void> {
  if (!connection.isConnected) return discard(source)
  try {
    await pump(connection, source)
    await connection.drained()
    connection.close('source-end')
  } catch (err) {
    const told = connection.drained().then(() => connection.fail())
    safeLog(log).error({ err, clientId: connection.clientId }, 'The source of an event stream failed')
    await told
  }
}

async function connect (guard: Guard, request: FastifyRequest, reply: FastifyReply, managed: boolean, options: unknown = {}): Promise<SSEConnection> {
  assertOptions(options, managed ? CONNECT_OPTIONS : SOURCE_OPTIONS)
  if (reply.sent || reply.raw.headersSent) throw new HeadAlreadySent()
  const connection = await guard.connect(request, reply, options, managed)
  // @fastify/compress does not compress the response of a request with this header. A compressor that buffers would delay every event.
  request.raw.headers['x-no-compression'] ??= '1'
  try {
    // The handler has returned meanwhile, and Fastify has answered for it.
    if (reply.sent || reply.raw.headersSent) throw new HeadAlreadySent()
    // An EventSource accepts no other status than 200.
    reply.code(200).headers(streamHeaders(request.raw)).send(new HijackingBody(reply, connection))
    if (!connection.isConnected) await connection.opened()
  } finally {
    connection.handOver()
  }
  return connection
}
