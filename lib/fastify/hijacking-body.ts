import type { OutgoingHttpHeaders } from 'node:http'
import { Stream, type Writable } from 'node:stream'
import type { FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import type { SSEConnection } from '../connections/connection.js'
import { pinHooks } from './pin-hooks.js'

/**
 * The body Fastify is given, so that its onSend hooks run and its headers are sent. Nothing flows through it: asked to
 * open or to pipe, it hands the destination to the connection.
 */
export class HijackingBody extends Stream {
  readonly #reply: FastifyReply
  readonly #connection: SSEConnection

  constructor (reply: FastifyReply, connection: SSEConnection) {
    super()
    this.#reply = reply
    this.#connection = connection
  }

  /** Sends the head of the reply as it is now, and the stream after it. */
  open (): void {
    const reply = this.#reply
    // A stream has no length, whoever said so; with one beside the chunks the answer would be void (RFC 9112, 6.3).
    reply.removeHeader('content-length')
    this.#connection.open(reply.raw as unknown as Writable, { headers: reply.getHeaders() as OutgoingHttpHeaders })
    // Takes the reply from Fastify: no handlerTimeout from here on.
    reply.hijack()
  }

  override pipe<T extends NodeJS.WritableStream> (destination: T, options?: { end?: boolean }): T {
    const reply = this.#reply
    if (isTimedOut(reply)) return destination
    reply.hijack()
    reply.removeHeader('content-length')
    const ends = options?.end !== false
    // Whoever piped without `end`, as a pipeline does, or Fastify when there are trailers, ends the destination when it hears this.
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
      // The reply is not Fastify's any more: nothing else would end it.
      this.#connection.onWriteError(error)
    }
    // The body has done its work: nobody need watch it for as long as the stream lasts.
    if (direct) finish()
    return destination
  }

  // What Fastify may ask of a body it does not send: that of a HEAD request, or of a client that has left.
  resume (): this { return this }
  destroy (): this { return this }
}

/** Whether handlerTimeout has passed while onSend hooks were at work: its answer has set the status, and is on its way. */
function isTimedOut ({ statusCode, request }: FastifyReply): boolean {
  // The status first, as a request that is asked for its signal makes one. Fastify 5.7 has no signals, and no handlerTimeout.
  return statusCode !== 200 && (request as Partial<FastifyRequest>).signal?.reason?.code === 'FST_ERR_HANDLER_TIMEOUT'
}

/**
 * Sees to it that a body which nobody has wrapped or replaced is opened by the last onSend hook of its route. Fastify would
 * set each header by itself, and watch over body and response for as long as the stream lasts: a seventh of what a stream
 * takes in memory, and of the time to open it.
 */
export function openBodyLast (route: RouteOptions): void {
  pinHooks(route, 'onSend', isLast => (_request, reply, payload, done) => {
    if (isLast() && payload instanceof HijackingBody && reply.statusCode === 200) payload.open()
    else done()
  })
}
