import type { FastifyReply, FastifyRequest } from 'fastify'
import { assertNames, CONNECT_OPTIONS, SOURCE_OPTIONS, type EnterOptions } from '../access/connect-options.js'
import type { Guard } from './guard.js'
import { HijackingBody } from './hijacking-body.js'
import type { SSEConnection } from '../connections/connection.js'
import { isSubscription } from '../events/topic.js'
import { Run } from '../runs/run.js'
import { endUnknown } from '../runs/reader.js'
import { hasNothing } from '../runs/run-position.js'
import type { Runs } from '../runs/runs.js'
import { HeadAlreadySent, InvalidOption, InvalidSource } from '../errors.js'
import { streamHeaders } from '../wire/headers.js'
import { kindOf, quote, shown } from '../util/quote.js'
import { safeLog, type Log } from '../util/logger.js'
import { writeSource } from '../streams/write-source.js'
import { discard, hold, isSource, type SourceFactory, type Source } from '../streams/source.js'

/** Time in which an error handler of the application answers for a handler that has awaited. */
const ANSWER_MS = 2_000

/** Implements `reply.sse()`: authenticates the request unless its route did, admits the connection, and passes the body to Fastify. */
export function replySSE (guard: Guard, runs: Runs | null, request: FastifyRequest, reply: FastifyReply, first?: unknown, second?: unknown): Promise<SSEConnection | void> {
  const answer = first === null || first instanceof Run ? streamRun(guard, runs, request, reply, first, second) : isSource(first) ? stream(guard, request, reply, first, second) : connect(guard, request, reply, true, first)
  // Without this handler, a rejection would end the process if the route handler neither awaits nor returns the promise.
  answer.catch(err => {
    // A call after the answer, from a timer for instance, has nobody else who could report it.
    if (reply.sent) warn(request, err, 'after the request was answered: call it once, before anything is sent, and await or return its promise')
    else setTimeout(() => { if (!reply.sent) warn(request, err, 'and the request has no answer: await or return its promise in the handler') }, ANSWER_MS).unref()
  })
  return answer
}

function warn (request: FastifyRequest, err: unknown, what: string): void {
  safeLog(request.log).warn({ err, route: request.routeOptions.url }, `reply.sse() failed ${what}`)
}

/**
 * Rejects options that are not an object, are a promise, or have unknown names. A source without its `await` would otherwise count as
 * options.
 * @throws SSE_ERR_INVALID_SOURCE, SSE_ERR_INVALID_OPTION
 */
function assertOptions (options: unknown, names: readonly string[]): asserts options is EnterOptions {
  if (typeof options !== 'object' || options === null) throw new InvalidSource(`or options of reply.sse() must be an object, got ${kindOf(options)}`)
  if ('then' in options) throw new InvalidSource('is still a promise: await it first')
  if ('run' in options && options.run instanceof Run) throw new InvalidSource('is the result of startRun(): pass its property "run"')
  assertNames(options, names, names === SOURCE_OPTIONS ? 'reply.sse(source)' : 'reply.sse()')
  const { control } = options as { control?: unknown }
  if (control !== undefined && typeof control !== 'boolean') throw new InvalidOption('control', `of reply.sse(source) must be true or false, got ${shown(control)}`)
}

/** Returns whether an array has only topics and patterns: a stream of them would send their names, and receive no event. */
function looksLikeTopics (source: Source | SourceFactory): source is string[] {
  return Array.isArray(source) && source.slice(0, 128).every(isSubscription) && source.some(topic => /[:*]/.test(String(topic)))
}

async function stream (guard: Guard, request: FastifyRequest, reply: FastifyReply, source: Source | SourceFactory, options: unknown): Promise<void> {
  let connection: SSEConnection
  if (looksLikeTopics(source)) throw new InvalidSource(`is an array that looks like topics: write reply.sse({ subscriptions: [${quote(source[0])}, …] }). To send these texts, use a generator`)
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
    await writeSource(connection, source)
    await connection.drained()
    connection.close('source-end')
  } catch (err) {
    const told = connection.drained().then(() => connection.fail())
    safeLog(log).error({ err, clientId: connection.clientId }, 'The source of an event stream failed')
    await told
  }
}

/** Streams a run. A client that has everything, or for which there is nothing, is answered with 204: an EventSource then stops. */
async function streamRun (guard: Guard, runs: Runs | null, request: FastifyRequest, reply: FastifyReply, given: Run | null, options: unknown = {}): Promise<void> {
  assertOptions(options, SOURCE_OPTIONS)
  if (reply.sent || reply.raw.headersSent) throw new HeadAlreadySent()
  const { lastEventId } = options
  const cursor = lastEventId === undefined ? guard.arrive(request, reply).arrival.lastEventId : lastEventId
  const run = given === null ? null : await runs!.current(given, cursor)
  if (hasNothing(run, cursor, options.control !== false)) {
    await guard.decide(request, reply)
    reply.code(204).header('cache-control', 'no-store').send()
    return
  }
  const connection = await connect(guard, request, reply, false, options)
  try {
    if (run === null) await endUnknown(connection)
    else await runs!.play(connection, run, cursor)
  } catch (err) {
    if (connection.isConnected) safeLog(request.log).error({ err, clientId: connection.clientId }, 'A run could not be read; its client reconnects')
    connection.fail()
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
