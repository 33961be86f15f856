import type { OutgoingHttpHeaders } from 'node:http'
import { Stream, type Writable } from 'node:stream'
import type { FastifyReply, FastifyRequest, onSendHookHandler, RouteOptions } from 'fastify'
import type { SSEConnection } from '../connections/connection.js'

/**
 * The body Fastify is given, so that its onSend hooks run and its headers are sent. Nothing flows through it: asked to
 * open or to pipe, it hands the destination to the connection.
 */
export class Body extends Stream {
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

const prepared = new WeakSet<RouteOptions>()

/**
 * Sees to it that a body which nobody has wrapped or replaced is opened by the last onSend hook of its route. Fastify would
 * set each header by itself, and watch over body and response for as long as the stream lasts: a seventh of what a stream
 * takes in memory, and of the time to open it.
 * Hooks may be added to the route, and wrapped, as long as it is not ready: whenever they are read, ours comes last, once.
 */
export function openBodyLast (route: RouteOptions): void {
  // Two managers may want it.
  if (prepared.has(route)) return
  prepared.add(route)
  let hooks: onSendHookHandler[] = []
  let last: onSendHookHandler | null = null
  const give = (given: RouteOptions['onSend']): void => { hooks = [given ?? []].flat() as onSendHookHandler[] }
  give(route.onSend)
  Object.defineProperty(route, 'onSend', {
    enumerable: true,
    configurable: true,
    get: () => {
      // The same list each time: others add to it.
      if (last !== null && hooks.at(-1) === last) return hooks
      const at = last === null ? -1 : hooks.indexOf(last)
      if (at >= 0) hooks.splice(at, 1)
      // A new one, as the old may be in somebody's wrapping, with others after it by now.
      const opener: onSendHookHandler = (_request, reply, payload, done) => {
        if (opener === last && payload instanceof Body && reply.statusCode === 200) payload.open()
        else done()
      }
      hooks.push(last = opener)
      return hooks
    },
    set: give
  })
}
