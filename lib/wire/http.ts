import type { FastifyRequest } from 'fastify'
import { ServerResponse, STATUS_CODES, type IncomingMessage, type OutgoingHttpHeaders } from 'node:http'
import type { Http2ServerRequest, Http2ServerResponse, Http2Session } from 'node:http2'
import type { Socket } from 'node:net'

/** The request as the application registered it: Fastify's in a Fastify handler, Node's for `createConnection`. */
export type AnyRequest = FastifyRequest | HttpRequest

// What HTTP/1 and HTTP/2 do differently, and what Node knows of a response.

export type HttpRequest = IncomingMessage | Http2ServerRequest
export type HttpResponse = ServerResponse | Http2ServerResponse

/**
 * Sends the head at once: `writeHead` alone waits for the first byte of the body. Apart from that byte: written with it, Node would keep
 * the head in the pieces it was made of, 700 bytes more for each stream.
 * @param headers given here and not one by one, none of them is kept; the object is the callee's from here on. Null: they have been set already.
 */
export function sendHead (response: HttpResponse, headers: OutgoingHttpHeaders | null): void {
  if (response.headersSent) return
  // Said outright, because then it is known that what follows are chunks; not before, as an onSend hook may send something else.
  const chunked = response instanceof ServerResponse && response.req.httpVersion === '1.1'
  if (headers === null) {
    if (chunked) response.setHeader('transfer-encoding', 'chunked')
  } else {
    if (chunked) headers['transfer-encoding'] = 'chunked'
    response.writeHead(200, headers)
  }
  // Node's HTTP/2 has it too; its types do not.
  ;(response as ServerResponse).flushHeaders()
}

/** Whether the bytes after the head are HTTP/1.1 chunks written by nobody but us. */
export function isPlainChunked (response: HttpResponse): response is ServerResponse {
  return response instanceof ServerResponse &&
    response.write === ServerResponse.prototype.write &&
    response.socket !== null && response.headersSent && response.chunkedEncoding
}

/** Whether the client has gone already, so that no `close` event will come. */
export function isGone (response: HttpResponse): boolean {
  if ('stream' in response) return response.stream === undefined || response.stream.destroyed || response.writableEnded
  return response.destroyed || response.writableEnded || (response.socket ?? socketAhead(response))?.destroyed === true
}

/** Whether all of a request has come, its body included. */
export function isWhole (request: HttpRequest): boolean {
  // Of HTTP/2's, `complete` is only true once it was read, and nobody reads the body of a GET.
  return request.complete || ('stream' in request && (request.stream?.endAfterHeaders ?? true))
}

/** The socket of a pipelined response that is not its turn yet: if that closes first, the response never sees a `close`. */
export function socketAhead (response: HttpResponse): Socket | null {
  // Tests by `inject` have a request of their own making.
  return 'stream' in response || response.socket !== null ? null : response.req.socket ?? null
}

const waiting = new WeakMap<Socket, Set<() => void>>()

/** Calls back once the socket has closed: one listener for as many as a client cares to pipeline. Returns what ends the waiting. */
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

/** Calls back once the response has closed, or the socket that it still waits for; perhaps twice. */
export function whenClosed (response: HttpResponse, callback: () => void): void {
  const ahead = socketAhead(response)
  if (ahead === null) {
    // Not `once`, which makes an object for each; it comes once all the same.
    response.on('close', callback)
    return
  }
  const stop = whenSocketClosed(ahead, callback)
  response.on('close', () => {
    stop()
    callback()
  })
}

/** What a status says in words. */
export function phraseOf (statusCode: number): string {
  return STATUS_CODES[statusCode] ?? 'Error'
}

/** A kept-alive socket or session would hold up a closing server: it goes once what was written is sent. */
export function closeTransport (response: HttpResponse, drainMs: number): void {
  if ('stream' in response) {
    const { session } = response.stream
    if (session !== undefined) closeSession(session, drainMs)
  } else {
    response.once('finish', closeSocket)
  }
}

/** What carries a request need not be a socket: `inject()`, and adapters of other platforms, have something that is less. */
function closeSocket (this: ServerResponse): void {
  const socket: Partial<Socket> = this.req.socket
  // Not `end` where it can be helped: that waits for the client's FIN likewise.
  if (socket.destroySoon !== undefined) socket.destroySoon()
  else socket.end?.()
}

/** Ends a session once its streams have ended. */
export function closeSession (session: Http2Session, drainMs: number): void {
  if (session.closed) return
  // A closed session still waits for its client's FIN, which one that is frozen never sends; only its socket can be told not to.
  const { socket } = session
  const destroySoon = socket.destroySoon.bind(socket)
  // By then the streams that were stalled have been destroyed; those of others are not ours to cut.
  const timer = setTimeout(() => { if (session.destroyed) destroySoon() }, drainMs + 100).unref()
  session.once('close', () => clearTimeout(timer))
  session.close()
}

/** Cuts a stream whose client does not read. `whole`: its session too, as such a client does not answer the end of that either. */
export function destroyTransport (response: HttpResponse, whole: boolean): void {
  if ('stream' in response) {
    if (whole) response.stream.session?.destroy()
    else response.stream.destroy()
    return
  }
  try {
    response.destroy()
  } catch {
    // What wraps the response threw: its socket ends it as well.
    response.socket?.destroy()
  }
}
