import { Stream, type Writable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { SSEConnection } from './connection.js'
import { HeadAlreadySent, InvalidOption, InvalidSource } from './errors.js'
import { streamHeaders } from './head.js'
import type { Log } from './log.js'
import type { SSEManager } from './manager.js'
import type { SSEUser } from './options.js'
import { discard, hold, isSource, pump } from './source.js'
import type { HttpResponse } from './transport.js'
import type { ConnectOptions, Source, SourceFactory, SourceOptions } from '../types/index.js'

/** Finds out who a request is from, once. */
export type Guard = (request: FastifyRequest, reply: FastifyReply, requireAuthentication?: boolean) => Promise<SSEUser | null>

/** `reply.sse()`: authenticates unless the route did, lets the connection in, and hands Fastify its body. */
export function replySSE (manager: SSEManager, guard: Guard, request: FastifyRequest, reply: FastifyReply, first?: unknown, second?: unknown): Promise<SSEConnection | void> {
  const answer = begin(manager, guard, request, reply, first, second)
  // A handler that neither awaits nor returns this promise must not let any client end the process.
  answer.catch(err => {
    setImmediate(() => { if (!reply.sent) request.log.warn({ err }, 'reply.sse() failed, and its request is unanswered: the handler must await or return its promise') })
  })
  return answer
}

async function begin (manager: SSEManager, guard: Guard, request: FastifyRequest, reply: FastifyReply, first?: unknown, second?: unknown): Promise<SSEConnection | void> {
  if (!isSource(first)) {
    assertOptions(first, CONNECT_OPTIONS)
    return await connect(manager, guard, request, reply, true, first)
  }
  assertOptions(second, SOURCE_OPTIONS)
  await stream(manager, guard, request, reply, first, second)
}

const SOURCE_OPTIONS = ['clientInfo', 'retryMs', 'lastEventId']
const CONNECT_OPTIONS = ['subscriptions', ...SOURCE_OPTIONS]

/** A misspelt name would open a stream that holds nothing, a forgotten `await` one without its source. */
function assertOptions (options: unknown, names: readonly string[]): asserts options is ConnectOptions | undefined {
  if (options === undefined) return
  if (typeof options !== 'object' || options === null) throw new InvalidSource(`or options of reply.sse() must be an object, not ${options === null ? 'null' : `a ${typeof options}`}`)
  if ('then' in options) throw new InvalidSource('is still a promise: await it first')
  for (const name of Object.keys(options)) if (!names.includes(name)) throw new InvalidOption(`${name} of reply.sse()`, 'is not an option')
}

async function stream (manager: SSEManager, guard: Guard, request: FastifyRequest, reply: FastifyReply, source: Source | SourceFactory, options?: SourceOptions): Promise<void> {
  let connection: SSEConnection
  hold(source)
  try {
    connection = await connect(manager, guard, request, reply, false, options)
  } catch (error) {
    discard(source)
    throw error
  }
  await play(connection, source, request.log)
}

/** Streams the source and ends the connection; a failure is the log's to know, the client is only told that there was one. */
async function play (connection: SSEConnection, source: Source | SourceFactory, log: Log): Promise<void> {
  if (!connection.isConnected) return discard(source)
  try {
    await pump(connection, source)
    await connection.drained()
    connection.close('source-end')
  } catch (err) {
    log.error({ err, clientId: connection.clientId }, 'The source of an event stream failed')
    await connection.drained()
    connection.fail()
  }
}

async function connect (manager: SSEManager, guard: Guard, request: FastifyRequest, reply: FastifyReply, managed: boolean, options: ConnectOptions = {}): Promise<SSEConnection> {
  if (reply.sent || reply.raw.headersSent) throw new HeadAlreadySent()
  const user = await guard(request, reply)
  const connection = await manager.admit({ ...options, request: request.raw, response: reply.raw, subject: request, ip: request.ip, user, requireAuthentication: false, managed })
  // @fastify/compress leaves such a request alone; a compressor that buffers would hold back every event (FACTS 2.11).
  request.raw.headers['x-no-compression'] ??= '1'
  // Only 200 opens an EventSource, and a body of chunks has no length.
  reply.code(200).removeHeader('content-length')
  reply.headers(streamHeaders(request.raw))
  reply.send(new Body(reply, connection))
  await connection.opened()
  return connection
}

// What Node's `finished` listens to on a response.
const WATCHED = ['aborted', 'close', 'end', 'error', 'finish']

/**
 * The body Fastify is given, so that its onSend hooks run and its headers are sent. Nothing flows through it: asked to
 * pipe, it hands the destination to the connection.
 */
class Body extends Stream {
  readonly #reply: FastifyReply
  readonly #connection: SSEConnection
  /** How many listened to the response before Fastify began to watch over it, which it does after the body: for each of WATCHED. */
  #listeners: number[] = []

  constructor (reply: FastifyReply, connection: SSEConnection) {
    super()
    this.#reply = reply
    this.#connection = connection
  }

  override on (event: string | symbol, listener: (...args: any[]) => void): this {
    // The last that Fastify listens to here.
    if (event === 'close') this.#listeners = WATCHED.map(watched => this.#reply.raw.listenerCount(watched))
    return super.on(event, listener)
  }

  override pipe<T extends NodeJS.WritableStream> (destination: T, options?: { end?: boolean }): T {
    const response: HttpResponse = this.#reply.raw
    // Takes the reply from Fastify: no handlerTimeout from here on.
    this.#reply.hijack()
    if (destination as unknown === response) {
      // The body has done its work. Its watchers would only keep it and the reply in memory for as long as the stream lasts.
      this.removeAllListeners()
      this.#listeners.forEach((count, i) => {
        const event = WATCHED[i]!
        if (response.listenerCount(event) === count) return
        for (const watcher of response.rawListeners(event).slice(count)) response.removeListener(event, watcher as () => void)
      })
      this.#connection.open(response as unknown as Writable)
    } else {
      this.#connection.open(destination as unknown as Writable, () => {
        if (options?.end !== false) destination.end()
        // Whoever piped without `end`, as a pipeline does, ends the destination when it hears this.
        this.emit('end')
        this.emit('close')
      })
    }
    return destination
  }

  // What Fastify may ask of a body it does not send: that of a HEAD request, or of a client that has left.
  resume (): this { return this }
  destroy (): this { return this }
}
