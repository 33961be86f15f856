import type { Server, ServerResponse } from 'node:http'
import type { Http2ServerResponse, Http2Session } from 'node:http2'
import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { closeSession, isWhole, socketAhead, whenClosed, type HttpResponse } from '../wire/http.js'

const IDLE_CHECK_MS = 100
const LEAST_SWEPT = 512

/**
 * Connections of a server on which nothing is being answered: browsers open them ahead, and anybody may send half a handshake
 * or half a request. Node takes each for one whose request is on its way, and so a closing server waits for them until
 * `headersTimeout`, for half a handshake two minutes, and for half a body or an idle HTTP/2 session for ever.
 */
export class IdleSockets {
  readonly #server: Server
  /** Sockets of HTTP/1, each with the response that is being made on it; idle ones that have closed, too, until they are swept. */
  readonly #sockets = new Map<Socket, ServerResponse | null>()
  /** Whose bytes belong to TLS or HTTP/2 on top of them. */
  readonly #carriers = new Set<Socket>()
  readonly #sessions = new Set<Http2Session>()
  /** Responses that are being made on sessions. */
  readonly #responses = new Set<Http2ServerResponse>()
  #sweepAt = LEAST_SWEPT

  constructor (server: Server) {
    this.#server = server
    // TLS and HTTP/2 have their own idea of a connection, on top of the socket.
    const layered = 'setSecureContext' in server || 'updateSettings' in server
    const { sockets, carriers, sessions, responses } = { sockets: this.#sockets, carriers: this.#carriers, sessions: this.#sessions, responses: this.#responses }
    // Listeners shared by all: no closure for each.
    function answered (this: HttpResponse): void {
      if ('stream' in this) responses.delete(this)
      // What has closed under its response still has it, and whatever that leads to.
      else if (this.req.socket.destroyed) sockets.delete(this.req.socket)
      else if (sockets.get(this.req.socket) === this) sockets.set(this.req.socket, null)
    }
    function forget (this: Socket): void {
      carriers.delete(this)
    }
    server.on('connection', (socket: Socket) => {
      this.#sweep()
      if (!layered) return sockets.set(socket, null)
      carriers.add(socket)
      socket.on('close', forget)
    })
    server.on('secureConnection', (socket: TLSSocket) => { if (socket.alpnProtocol !== 'h2') sockets.set(socket, null) })
    server.on('request', (_request: unknown, response: HttpResponse) => {
      if ('stream' in response) responses.add(response)
      else if (sockets.has(response.req.socket)) sockets.set(response.req.socket, response)
      // Not `once`, which makes an object for each; it comes once all the same. To one that waits for its turn it may never come.
      if (socketAhead(response) === null) response.on('close', answered)
      else whenClosed(response, answered.bind(response))
    })
    server.on('session', (session: Http2Session) => {
      sessions.add(session)
      session.once('close', () => sessions.delete(session))
    })
  }

  /** Forgets the idle sockets that have closed, when they may be half of all: a listener would cost each stream 160 bytes. */
  #sweep (): void {
    const sockets = this.#sockets
    if (sockets.size < this.#sweepAt) return
    for (const socket of sockets.keys()) if (socket.destroyed) sockets.delete(socket)
    this.#sweepAt = Math.max(LEAST_SWEPT, 2 * sockets.size)
  }

  /**
   * Ends them: what has sent nothing at once, half a handshake or request after `drainMs`. HTTP/2 sessions take no new
   * streams, and sockets no new requests once those are answered that are at work now.
   */
  close (drainMs: number): void {
    const server = this.#server
    if (!server.listening) return
    for (const session of this.#sessions) closeSession(session, drainMs)
    for (const socket of [...this.#sockets.keys(), ...this.#carriers]) if (socket.bytesRead === 0) socket.destroy()
    let late = false
    // After a time in which the loop stood still, timers come before what has arrived meanwhile: that is read first.
    const timer = setTimeout(() => setImmediate(() => {
      late = true
      this.#cut()
    }), drainMs).unref()
    const check = setInterval(() => {
      // Node does this once, when it stops listening; a socket whose request is answered after that is kept alive.
      if ('closeIdleConnections' in server) server.closeIdleConnections()
      // Half a request may stand behind one that was at work.
      if (late) this.#cut()
    }, IDLE_CHECK_MS).unref()
    server.once('close', () => {
      clearTimeout(timer)
      clearInterval(check)
    })
  }

  /** Cuts all on which no whole request is being answered. */
  #cut (): void {
    for (const [socket, response] of this.#sockets) if (response === null || !isWhole(response.req)) socket.destroy()
    const busy = new Set(Array.from(this.#responses, response => isWhole(response.req) ? response.stream?.session : undefined))
    for (const session of this.#sessions) if (!busy.has(session)) session.destroy()
    // What carries neither has not got to the end of its handshake.
    const known = new Set(Array.from(this.#sockets.keys(), peerOf))
    for (const session of this.#sessions) if (!session.destroyed) known.add(peerOf(session.socket))
    for (const carrier of this.#carriers) if (!known.has(peerOf(carrier))) carrier.destroy()
  }
}

/** What a socket and its carrier have in common. */
function peerOf ({ remoteAddress, remotePort }: Pick<Socket, 'remoteAddress' | 'remotePort'>): string {
  return `${remoteAddress} ${remotePort}`
}
