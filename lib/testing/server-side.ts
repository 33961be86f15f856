import type { IncomingMessage, Server } from 'node:http'
import type { Socket } from 'node:net'
import { kTestUser, type SSEUser } from '../access/authentication.js'

/** The server's end of a stream that a test has opened in the same process. */
export class ServerSide {
  /** The user of the request; undefined if the application authenticates it. */
  readonly user: SSEUser | undefined
  #socket: Socket | null = null
  #closed: Promise<void> | null = null

  constructor (user: string | SSEUser | undefined) {
    this.user = typeof user === 'string' ? { userId: user } : user
  }

  /** Called when the request arrives, before the application receives it. */
  arrived (request: IncomingMessage): void {
    const socket = this.#socket = request.socket
    if (this.user !== undefined) (request as unknown as Record<symbol, unknown>)[kTestUser] = this.user
    // If a test fails before it closes the stream, the socket must not keep the process alive.
    request.socket.unref?.()
    // One turn later, when the application has received the event as well.
    this.#closed = new Promise(resolve => { socket.once('close', () => setImmediate(resolve)) })
  }

  /** Bytes written to the socket so far. */
  get bytesWritten (): number {
    return this.#socket?.bytesWritten ?? 0
  }

  /** Keeps all written bytes, and the end of the socket, in the server. The kernel would otherwise buffer several megabytes. */
  cork (): void {
    const socket = this.#socket
    if (socket === null) return
    socket.cork()
    // `end()` and HTTP also call `uncork()`, which must have no effect here.
    socket.uncork = () => {}
  }

  /** Ends `cork()`, and writes the kept bytes. */
  uncork (): void {
    const socket = this.#socket
    if (socket === null) return
    Reflect.deleteProperty(socket, 'uncork')
    while (socket.writableCorked > 0) socket.uncork()
  }

  /** Resolves when the server has noticed the end of the connection, and at once if no request has arrived. */
  async closed (): Promise<void> {
    await this.#closed
  }
}

/** The expected requests of tests to one server, by their client port. */
class Expected {
  readonly #sides = new Map<number, ServerSide>()

  constructor (server: Server) {
    // Prepended: Fastify's own listener runs the application's hooks, and the user must be set before them.
    server.prependListener('request', (request: IncomingMessage) => {
      const port = request.socket.remotePort ?? -1
      const side = this.#sides.get(port)
      if (side === undefined || !isLocal(request.socket.remoteAddress)) return
      this.#sides.delete(port)
      side.arrived(request)
    })
  }

  /** Expects a request from this port. Returns a function that stops expecting it. */
  from (port: number, side: ServerSide): () => void {
    this.#sides.set(port, side)
    return () => { this.#sides.delete(port) }
  }
}

const expected = new WeakMap<Server, Expected>()

/** Returns the expected requests of a server. */
export function expectedAt (server: Server): Expected {
  let all = expected.get(server)
  if (all === undefined) expected.set(server, all = new Expected(server))
  return all
}

function isLocal (address: string | undefined): boolean {
  return address === '::1' || address?.replace('::ffff:', '').startsWith('127.') === true
}
