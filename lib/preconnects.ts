import type { Server } from 'node:http'
import type { Http2Session } from 'node:http2'
import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { closeSession } from './transport.js'

const SWEEP_MS = 100

/**
 * Connections of a server on which nothing has been asked for yet, as browsers open them ahead. Node takes each for one
 * whose request is on its way, and so a closing server waits for them until `headersTimeout` (FACTS 2.4); for idle
 * HTTP/2 sessions it has no end at all.
 */
export class Preconnects {
  readonly #server: Server
  readonly #silent = new Set<Socket>()
  /** Whose bytes belong to TLS or HTTP/2 on top of them. */
  readonly #carriers = new Set<Socket>()
  readonly #sessions = new Set<Http2Session>()

  constructor (server: Server) {
    this.#server = server
    // TLS and HTTP/2 have their own idea of a connection, on top of the socket.
    const layered = 'setSecureContext' in server || 'updateSettings' in server
    const { silent, carriers, sessions } = { silent: this.#silent, carriers: this.#carriers, sessions: this.#sessions }
    // One listener for all sockets: no closure for each.
    function forget (this: Socket): void {
      silent.delete(this)
      carriers.delete(this)
    }
    const watch = (set: Set<Socket>, socket: Socket) => {
      set.add(socket)
      socket.on('close', forget)
    }
    server.on('connection', (socket: Socket) => watch(layered ? carriers : silent, socket))
    server.on('secureConnection', (socket: TLSSocket) => { if (socket.alpnProtocol !== 'h2') watch(silent, socket) })
    server.on('request', ({ socket }: { socket: Socket }) => { if (silent.delete(socket)) socket.off('close', forget) })
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
    for (const socket of [...this.#silent, ...this.#carriers]) if (socket.bytesRead === 0) socket.destroy()
    const cut = setTimeout(() => { for (const socket of this.#silent) socket.destroy() }, drainMs).unref()
    // Node does this once, when it stops listening; a socket whose request is answered after that is kept alive.
    const sweep = setInterval(() => { if ('closeIdleConnections' in server) server.closeIdleConnections() }, SWEEP_MS).unref()
    server.once('close', () => {
      clearTimeout(cut)
      clearInterval(sweep)
    })
  }
}
