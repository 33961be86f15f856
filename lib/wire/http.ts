import type { FastifyRequest } from 'fastify'
import { ServerResponse, STATUS_CODES, type IncomingMessage, type OutgoingHttpHeaders } from 'node:http'
import type { Http2ServerRequest, Http2ServerResponse, Http2Session } from 'node:http2'
import type { Socket } from 'node:net'

export type { FastifyRequest }

/** A request: Fastify's in a Fastify handler, Node's for `createConnection`. */
export type AnyRequest = FastifyRequest | HttpRequest

// The differences between HTTP/1 and HTTP/2, and the state of Node's responses.

/** A request of Node, HTTP/1 or HTTP/2. */
export type HttpRequest = IncomingMessage | Http2ServerRequest
/** A response of Node, HTTP/1 or HTTP/2. */
export type HttpResponse = ServerResponse | Http2ServerResponse

/**
 * Sends the response headers at once; `writeHead` alone would wait for the first byte of the body. They are not written together
 * with that byte: Node would keep the headers in pieces, 700 bytes more for each stream.
 * @param headers the headers; Node does not keep headers that are passed together. The object can be modified here. Null: the headers
 * are already set on the response.
 */
export function sendHead (response: HttpResponse, headers: OutgoingHttpHeaders | null): void {
  if (response.headersSent) return
  // Set explicitly, so that chunks can be written to the socket. Not set earlier, because an onSend hook can send another response.
  const chunked = response instanceof ServerResponse && response.req.httpVersion === '1.1'
  if (headers === null) {
    if (chunked) response.setHeader('transfer-encoding', 'chunked')
  } else {
    if (chunked) headers['transfer-encoding'] = 'chunked'
    response.writeHead(200, headers)
  }
  // HTTP/2 responses also have `flushHeaders`, but their types do not.
  ;(response as ServerResponse).flushHeaders()
}

/** Returns whether the body is HTTP/1.1 chunks that only this package writes: nothing has wrapped the response. */
export function isPlainChunked (response: HttpResponse): response is ServerResponse {
  return response instanceof ServerResponse &&
    response.write === ServerResponse.prototype.write &&
    response.socket !== null && response.chunkedEncoding
}

/** Returns whether the client has already disconnected, so that no `close` event will follow. */
export function isGone (response: HttpResponse): boolean {
  if ('stream' in response) return response.stream === undefined || response.stream.destroyed || response.writableEnded
  return response.destroyed || response.writableEnded || (response.socket ?? socketAhead(response))?.destroyed === true
}

/** Returns whether a request has arrived completely, including its body. */
export function isWhole (request: HttpRequest): boolean {
  // For HTTP/2, `complete` is true only after the body was read, and the body of a GET is never read.
  return request.complete || ('stream' in request && (request.stream?.endAfterHeaders ?? true))
}

/**
 * Returns the socket of a pipelined response that waits for earlier responses; null for any other response. If that socket closes
 * first, the response emits no `close` event.
 */
export function socketAhead (response: HttpResponse): Socket | null {
  // Requests of `inject()` have no real socket.
  return 'stream' in response || response.socket !== null ? null : response.req.socket ?? null
}

const waiting = new WeakMap<Socket, Set<() => void>>()

/** Calls `callback` when the socket closes, with one listener for all pipelined responses. Returns a function that cancels it. */
export function whenSocketClosed (socket: Socket, callback: () => void): () => void {
  let callbacks = waiting.get(socket)
  if (callbacks === undefined) {
    const all = callbacks = new Set()
    waiting.set(socket, all)
    socket.once('close', () => { for (const callback of all) callback() })
  }
  const known = callbacks.add(callback)
  return () => { known.delete(callback) }
}

/** Calls `callback` when the response closes, or the socket for which it waits. It can be called twice. */
export function whenClosed (response: HttpResponse, callback: () => void): void {
  const ahead = socketAhead(response)
  if (ahead === null) {
    // `once` would allocate a wrapper for each stream. `close` is emitted only once.
    response.on('close', callback)
    return
  }
  const stop = whenSocketClosed(ahead, callback)
  response.on('close', () => {
    stop()
    callback()
  })
}

/** Returns the reason phrase of a status code. */
export function phraseOf (statusCode: number): string {
  return STATUS_CODES[statusCode] ?? 'Error'
}

/** Closes the socket or the session after the response is sent. A kept-alive connection would delay the shutdown of the server. */
export function closeTransport (response: HttpResponse, drainMs: number): void {
  if ('stream' in response) {
    const { session } = response.stream
    if (session !== undefined) closeSession(session, drainMs)
  } else {
    response.once('finish', closeSocket)
  }
}

/** Closes the socket of a response. `inject()` and adapters of other platforms use objects that lack some methods of a socket. */
function closeSocket (this: ServerResponse): void {
  const socket: Partial<Socket> = this.req.socket
  // `end` would wait for the FIN of the client.
  if (socket.destroySoon !== undefined) socket.destroySoon()
  else socket.end?.()
}

/** Closes an HTTP/2 session after its streams have ended. */
export function closeSession (session: Http2Session, drainMs: number): void {
  if (session.closed) return
  // A closed session still waits for the FIN of the client, which a frozen client never sends. Only its socket can be destroyed.
  const { socket } = session
  const destroySoon = socket.destroySoon.bind(socket)
  // By then, stalled streams of this package are destroyed. Streams of other handlers are left to end by themselves.
  const timer = setTimeout(() => { if (session.destroyed) destroySoon() }, drainMs + 100).unref()
  session.once('close', () => clearTimeout(timer))
  session.close()
}

/**
 * Destroys a stream whose client does not read.
 * @param whole whether an HTTP/2 session is destroyed too; such a client does not answer the end of the session either
 */
export function destroyTransport (response: HttpResponse, whole: boolean): void {
  if ('stream' in response) {
    if (whole) response.stream.session?.destroy()
    else response.stream.destroy()
    return
  }
  try {
    response.destroy()
  } catch {
    // A wrapper of the response threw. Destroying the socket ends the response too.
    response.socket?.destroy()
  }
}
