import type { Server, ServerResponse } from 'node:http'
import type { Http2Session } from 'node:http2'
import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { closeSession } from './transport.js'

const SWEEP_MS = 100

/**
 * Connections of a server on which nothing is being answered: browsers open them ahead, and anybody may send half a request.
 * Node takes each for one whose request is on its way, and so a closing server waits for them until `headersTimeout` (FACTS 2.4),
 * for half a body or an idle HTTP/2 session for ever.
 */
export class Preconnects {
  readonly #server: Server
  /** Sockets of HTTP/1, each with the response that is being made on it. */
  readonly #sockets = new Map<Socket, ServerResponse | null>()
  /** Whose bytes belong to TLS or HTTP/2 on top of them. */
  readonly #carriers = new Set<Socket>()
  readonly #sessions = new Set<Http2Session>()

  constructor (server: Server) {
    this.#server = server
    // TLS and HTTP/2 have their own idea of a connection, on top of the socket.
    const layered = 'setSecureContext' in server || 'updateSettings' in server
    const { sockets, carriers, sessions } = { sockets: this.#sockets, carriers: this.#carriers, sessions: this.#sessions }
    // One listener for all sockets, and one for all responses: no closure for each.
    function forget (this: Socket): void {
      sockets.delete(this)
      carriers.delete(this)
    }
    function answered (this: ServerResponse): void {
      const { socket } = this.req
      if (sockets.get(socket) === this) sockets.set(socket, null)
    }
    const watch = (socket: Socket) => {
      sockets.set(socket, null)
      socket.on('close', forget)
    }
    server.on('connection', (socket: Socket) => {
      if (!layered) return watch(socket)
      carriers.add(socket)
      socket.on('close', forget)
    })
    server.on('secureConnection', (socket: TLSSocket) => { if (socket.alpnProtocol !== 'h2') watch(socket) })
    server.on('request', ({ socket }: { socket: Socket }, response: ServerResponse) => {
      if (!sockets.has(socket)) return
      sockets.set(socket, response)
      response.once('close', answered)
    })
    server.on('session', (session: Http2Session) => {
      sessions.add(session)
      session.once('close', () => sessions.delete(session))
    })
  }

  /**
   * Ends them: what has sent nothing at once, half a request after `drainMs`. HTTP/2 sessions take no new streams, and
   * sockets no new requests once those are answered that are at work now.
   */
  close (drainMs: number): void {
    const server = this.#server
    if (!server.listening) return
    for (const session of this.#sessions) closeSession(session, drainMs)
    for (const socket of [...this.#sockets.keys(), ...this.#carriers]) if (socket.bytesRead === 0) socket.destroy()
    let late = false
    const cut = () => { for (const [socket, response] of this.#sockets) if (response === null || !response.req.complete) socket.destroy() }
    const timer = setTimeout(() => {
      late = true
      cut()
    }, drainMs).unref()
    const sweep = setInterval(() => {
      // Node does this once, when it stops listening; a socket whose request is answered after that is kept alive.
      if ('closeIdleConnections' in server) server.closeIdleConnections()
      // Half a request may stand behind one that was at work.
      if (late) cut()
    }, SWEEP_MS).unref()
    server.once('close', () => {
      clearTimeout(timer)
      clearInterval(sweep)
    })
  }
}
