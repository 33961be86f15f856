import type { FastifyInstance } from 'fastify'
import { once } from 'node:events'
import type { Server } from 'node:http'
import { connect, type Socket } from 'node:net'
import { connect as connectTLS } from 'node:tls'
import type { SSEUser } from '../access/authentication.js'
import { TestMisuse } from '../errors.js'
import { isId } from '../events/target.js'
import { shown } from '../util/quote.js'
import { MemorySocket } from './memory-socket.js'
import { expectedAt, ServerSide } from './server-side.js'

/** A Fastify instance with any server and type provider. */
export type App = FastifyInstance<any, any, any, any, any>

/** The target of a connection: a Fastify instance, a server of `node:http` or `node:https`, or the base URL of a server. */
export type Target = App | Server | string

/** The options of `openStream()` that affect the connection. See `OpenStreamOptions`. */
export interface LinkOptions {
  readonly user?: string | SSEUser | undefined
  readonly socket?: boolean | undefined
}

/** A connection of a test to a server. */
export interface Link {
  /** The client's end. */
  readonly socket: Socket | MemorySocket
  /** Value of the `host` header. */
  readonly host: string
  /** The server's end; null for a server of another process. */
  readonly serverSide: ServerSide | null
}

/** One function for each open connection. It returns whether bytes are in transit to the client, which reads them. */
const connections = new Set<() => boolean>()

/**
 * Returns whether bytes are in transit to any client. Frozen clients are ignored, and so are clients with TLS, whose number of bytes in
 * transit is unknown.
 */
export function isArriving (): boolean {
  for (const isArriving of connections) if (isArriving()) return true
  return false
}

function observe (socket: Socket | MemorySocket, isArriving: () => boolean): void {
  connections.add(isArriving)
  socket.once('close', () => connections.delete(isArriving))
}

/**
 * Connects to an application or server of this process, or to the server of a URL. Resolves when the connection is established.
 * @throws SSE_ERR_TEST_MISUSE
 */
export async function connectTo (target: Target, { user, socket }: LinkOptions): Promise<Link> {
  if (typeof target === 'string') {
    if (user !== undefined) throw new TestMisuse('Option "user" needs the Fastify instance or the server, not a URL: to a server of another process send credentials in "headers"')
    return await connectToURL(target)
  }
  if (typeof target !== 'object' || target === null || typeof ('server' in target ? target.server : target)?.prependListener !== 'function') throw new TestMisuse(`openStream() needs the Fastify instance, a server or a base URL as text, got ${unusable(target)}`)
  const userId: unknown = typeof user === 'object' ? user?.userId : user
  if (user !== undefined && !isId(userId)) throw new TestMisuse(`Option "user" must be a user id or { userId }, got ${unusable(userId ?? user)}${typeof userId === 'number' ? ': use String(id)' : ''}`)
  if ('ready' in target) await target.ready()
  const server = 'server' in target ? target.server as Server : target
  const secure = 'setSecureContext' in server
  if ('updateSettings' in server && !secure) throw new TestMisuse('openStream() speaks HTTP/1.1, and this server is one of HTTP/2 without TLS: test the routes on a server without the option "http2"')
  const inMemory = !secure && socket !== true && (socket === false || !isOnPort(server))
  return inMemory ? connectInMemory(server, new ServerSide(user)) : await connectByPort(target, server, secure, new ServerSide(user))
}

function unusable (value: unknown): string {
  return shown(value) + (value instanceof Promise ? ': await it first' : '')
}

async function connectToURL (url: string): Promise<Link> {
  const { protocol, hostname, port, host } = new URL(url)
  const address = { host: hostname.replace(/^\[(.*)\]$/, '$1'), port: Number(port) || (protocol === 'https:' ? 443 : 80) }
  return { socket: await established(address, protocol === 'https:'), host, serverSide: null }
}

function connectInMemory (server: Server, side: ServerSide): Link {
  const [client, other] = MemorySocket.pair()
  const forget = expectedAt(server).from(other.remotePort, side)
  client.once('close', forget)
  observe(client, () => client.isArriving)
  server.emit('connection', other)
  return { socket: client, host: 'localhost', serverSide: side }
}

async function connectByPort (target: App | Server, server: Server, secure: boolean, side: ServerSide): Promise<Link> {
  if (!isOnPort(server)) {
    if ('server' in target) await target.listen({ host: '127.0.0.1', port: 0 })
    else await once(target.listen(0, '127.0.0.1'), 'listening')
    // If a test fails before it closes the application, the server must not keep the process alive.
    server.unref()
  }
  const { address, port } = server.address() as { address: string, port: number }
  const host = address === '0.0.0.0' || address === '::' ? '127.0.0.1' : address
  const socket = await established({ host, port }, secure)
  socket.once('close', expectedAt(server).from(socket.localPort!, side))
  if (!secure) observe(socket, () => side.bytesWritten > socket.bytesRead && !socket.isPaused())
  return { socket, host: `${host.includes(':') ? `[${host}]` : host}:${port}`, serverSide: side }
}

function isOnPort (server: Server): boolean {
  return server.listening && typeof server.address() === 'object'
}

/** Resolves with a connected socket. Certificates are not verified, because test servers have self-signed ones. */
function established (address: { host: string, port: number }, secure: boolean): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = secure ? connectTLS({ ...address, rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] }) : connect(address)
    socket.once('error', reject)
    socket.once(secure ? 'secureConnect' : 'connect', () => {
      socket.off('error', reject)
      socket.on('error', () => {})
      socket.unref()
      resolve(socket)
    })
  })
}
