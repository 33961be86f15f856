import type { OutgoingHttpHeaders } from 'node:http'
import { Stream, type Writable } from 'node:stream'
import type { FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import type { SSEConnection } from '../connections/connection.js'
import { pinHooks } from './pin-hooks.js'

/**
 * The body for `reply.send()`. With it, Fastify runs the onSend hooks and sends the headers. No data flows through the body: `open()` and
 * `pipe()` pass the destination to the connection.
 */
export class HijackingBody extends Stream {
  readonly #reply: FastifyReply
  readonly #connection: SSEConnection

  constructor (reply: FastifyReply, connection: SSEConnection) {
    super()
    this.#reply = reply
    this.#connection = connection
  }

  /** Sends the current headers of the reply, and then the stream. */
  open (): void {
    const reply = this.#reply
    // Removes a length that a hook has set: a chunked response with a content length is invalid (RFC 9112, 6.3).
    reply.removeHeader('content-length')
    this.#connection.open(reply.raw as unknown as Writable, { headers: reply.getHeaders() as OutgoingHttpHeaders })
    // From here on Fastify does not control the reply, and `handlerTimeout` does not apply.
    reply.hijack()
  }

  /** Writes the stream to `destination`: the response, or a stream that wraps it, such as a compressor. */
  override pipe<T extends NodeJS.WritableStream> (destination: T, options?: { end?: boolean }): T {
    const reply = this.#reply
    if (isTimedOut(reply)) return destination
    reply.hijack()
    reply.removeHeader('content-length')
    const ends = options?.end !== false
    // With `end: false`, as used by `pipeline()` and by Fastify for trailers, the caller ends the destination on these events.
    const finish = (): void => {
      this.emit('end')
      this.emit('close')
    }
    const direct = ends && destination as unknown === reply.raw
    const end = (): void => {
      if (ends) destination.end()
      finish()
    }
    try {
      this.#connection.open(destination as unknown as Writable, direct ? {} : { end })
    } catch (error) {
      // The reply is hijacked: without this call, the response would never end.
      this.#connection.onWriteError(error)
    }
    // The body is not needed any more. Fastify removes its listeners now, not at the end of the stream.
    if (direct) finish()
    return destination
  }

  // Fastify calls these methods of a body that it does not send: for a HEAD request, or after the client has disconnected.
  resume (): this { return this }
  destroy (): this { return this }
}

/** Returns whether `handlerTimeout` has passed during the onSend hooks. Fastify has then set the status, and sends its own response. */
function isTimedOut ({ statusCode, request }: FastifyReply): boolean {
  // The status is checked first, because reading `request.signal` creates a signal. Fastify 5.7 has no signals and no `handlerTimeout`.
  return statusCode !== 200 && (request as Partial<FastifyRequest>).signal?.reason?.code === 'FST_ERR_HANDLER_TIMEOUT'
}

/**
 * Adds an onSend hook that stays the last of the route, and opens a body that no other hook has wrapped or replaced. Without it, Fastify
 * sets each header separately, and listens to body and response during the whole stream. That is a seventh of a stream's memory, and of
 * the time to open it.
 */
export function openBodyLast (route: RouteOptions): void {
  pinHooks(route, 'onSend', isLast => (_request, reply, payload, done) => {
    if (isLast() && payload instanceof HijackingBody && reply.statusCode === 200) payload.open()
    else done()
  })
}
