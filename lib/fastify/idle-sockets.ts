import type { Server, ServerResponse } from 'node:http'
import type { Http2ServerResponse, Http2Session } from 'node:http2'
import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { closeSession, isWhole, socketAhead, whenClosed, type HttpResponse } from '../wire/http.js'

const IDLE_CHECK_MS = 100
const LEAST_SWEPT = 512

/**
 * Closes the connections of a server that carry no response: unused connections that browsers open in advance, and incomplete handshakes
 * and requests. Node expects a request on each of them, so a closing server waits for them until `headersTimeout`. It waits two minutes
 * for an incomplete handshake, and forever for an incomplete body or an idle HTTP/2 session.
 */
export class IdleSockets {
  readonly #server: Server
  /** HTTP/1 sockets, each with its pending response; null for an idle socket. Closed idle sockets are removed by `#sweep()`. */
  readonly #sockets = new Map<Socket, ServerResponse | null>()
  /** TCP sockets that carry TLS or HTTP/2. */
  readonly #carriers = new Set<Socket>()
  /** Open HTTP/2 sessions. */
  readonly #sessions = new Set<Http2Session>()
  /** Pending responses of HTTP/2 sessions. */
  readonly #responses = new Set<Http2ServerResponse>()
  #sweepAt = LEAST_SWEPT

  constructor (server: Server) {
    this.#server = server
    // With TLS or HTTP/2, the connection is another object, above the TCP socket.
    const layered = 'setSecureContext' in server || 'updateSettings' in server
    const { sockets, carriers, sessions, responses } = { sockets: this.#sockets, carriers: this.#carriers, sessions: this.#sessions, responses: this.#responses }
    // Shared listeners: a closure for each response or socket would take memory.
    function answered (this: HttpResponse): void {
      if ('stream' in this) responses.delete(this)
      // A closed socket is removed: the entry would keep the response, and all objects that the response references, in memory.
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
      // Not `once`, which allocates an object for each listener: `close` is emitted once. A pipelined response may never emit `close`.
      if (socketAhead(response) === null) response.on('close', answered)
      else whenClosed(response, answered.bind(response))
    })
    server.on('session', (session: Http2Session) => {
      sessions.add(session)
      session.once('close', () => sessions.delete(session))
    })
  }

  /** Removes closed idle sockets each time the map has doubled. A `close` listener would take 160 bytes for each stream. */
  #sweep (): void {
    const sockets = this.#sockets
    if (sockets.size < this.#sweepAt) return
    for (const socket of sockets.keys()) if (socket.destroyed) sockets.delete(socket)
    this.#sweepAt = Math.max(LEAST_SWEPT, 2 * sockets.size)
  }

  /**
   * Closes the connections without a response: those that have sent no byte at once, incomplete handshakes and requests after `drainMs`.
   * HTTP/2 sessions accept no new streams. Sockets are closed after their pending responses.
   */
  close (drainMs: number): void {
    const server = this.#server
    if (!server.listening) return
    for (const session of this.#sessions) closeSession(session, drainMs)
    for (const socket of [...this.#sockets.keys(), ...this.#carriers]) if (socket.bytesRead === 0) socket.destroy()
    let late = false
    // After a blocked event loop, timers run before sockets are read. `setImmediate` lets the server read received bytes first.
    const timer = setTimeout(() => setImmediate(() => {
      late = true
      this.#cut()
    }), drainMs).unref()
    const check = setInterval(() => {
      // Node closes idle sockets only once, when it stops listening. A socket whose response ends later would stay open.
      if ('closeIdleConnections' in server) server.closeIdleConnections()
      // An incomplete request can follow a request that was answered.
      if (late) this.#cut()
    }, IDLE_CHECK_MS).unref()
    server.once('close', () => {
      clearTimeout(timer)
      clearInterval(check)
    })
  }

  /** Destroys all sockets and sessions that carry no response to a complete request. */
  #cut (): void {
    for (const [socket, response] of this.#sockets) if (response === null || !isWhole(response.req)) socket.destroy()
    const busy = new Set(Array.from(this.#responses, response => isWhole(response.req) ? response.stream?.session : undefined))
    for (const session of this.#sessions) if (!busy.has(session)) session.destroy()
    // A TCP socket without a known socket or session above it has not completed its handshake.
    const known = new Set(Array.from(this.#sockets.keys(), peerOf))
    for (const session of this.#sessions) if (!session.destroyed) known.add(peerOf(session.socket))
    for (const carrier of this.#carriers) if (!known.has(peerOf(carrier))) carrier.destroy()
  }
}

/** Returns a key that a socket and the TCP socket below it have in common. */
function peerOf ({ remoteAddress, remotePort }: Pick<Socket, 'remoteAddress' | 'remotePort'>): string {
  return `${remoteAddress} ${remotePort}`
}
