import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { BrokerUnavailable, InvalidOption } from '../../errors.js'
import { inTime } from '../../util/timeout.js'

/** The application's `ioredis` client, or the decorator of `@fastify/redis`. It is only duplicated, never used for commands. */
export interface IoredisClient {
  /** State of the client's own connection. Not read. */
  readonly status: string
  /** Sends a command. Called on duplicates only. */
  call (command: string, ...args: string[]): Promise<unknown>
  /** Returns a client with the same address and credentials. */
  duplicate (override?: object): object
}

/** The application's node-redis client (`redis` or `@redis/client`). It is only duplicated, never used for commands. */
export interface NodeRedisClient {
  /** State of the client's own connection. Pools and clusters do not have this property. */
  readonly isReady: boolean
  /** Sends a command. Called on duplicates only. */
  sendCommand (args: string[]): Promise<unknown>
  /** Returns a client with the same address and credentials. */
  duplicate (overrides?: object): object
}

/**
 * A connection to Redis that only this package uses. It does not reconnect and has no queue: after a loss, a new connection is
 * made. So both client libraries behave alike, and pending commands are under the control of this package.
 */
export interface Connection {
  /**
   * Sends a command and resolves with the reply. Rejects with Redis's error reply, or when no reply arrives within `timeoutMs`. Without
   * the time-out, a command to a frozen Redis would never settle. The time-out starts again while bytes of the reply arrive, so that a
   * slow link does not end the connection.
   */
  send (command: readonly string[], timeoutMs: number): Promise<unknown>
  /** Closes the connection at once. */
  destroy (): void
}

/**
 * Makes a connection that is authenticated and has its database selected. `onLost` is called when the connection is lost later.
 * `signal` aborts the attempt.
 */
export interface Connect {
  (onLost: (error: Error) => void, signal: AbortSignal): Promise<Connection>
  /** The server, for the log. Absent if it is not known, as with Sentinels. */
  readonly peer?: Peer | undefined
}

/** Host and port, or the path of a Unix socket, with the names that network errors of Node.js use. */
export interface Peer {
  readonly address: string
  readonly port?: number
}

interface OwnIoredis extends IoredisClient {
  connect (): Promise<void>
  disconnect (): void
  on (event: string, listener: (error: Error) => void): void
  readonly stream?: ReadSocket
}

interface OwnNodeRedis extends NodeRedisClient {
  connect (): Promise<unknown>
  readonly isOpen: boolean
  destroy (): void
  on (event: string, listener: (error: Error) => void): void
}

/** The part of a client library's socket that is used. */
interface ReadSocket {
  readonly bytesRead?: number
  destroy (error: Error): void
}

interface Attempt {
  database: number | undefined
  connectTimeoutMs: number
  onLost: (error: Error) => void
  signal: AbortSignal
}

const NAME = 'fastify-sse-manager'
const URL_FORM = /^(?:rediss?|unix):\/\//

/**
 * Returns a function that makes connections with the settings of the application's client, or of a URL.
 * @throws SSE_ERR_INVALID_OPTION
 */
export function connector (client: unknown, database: number | undefined, connectTimeoutMs: number): Connect {
  if (typeof client === 'string') return fromUrl(client, database, connectTimeoutMs)
  const { options } = Object(client) as { options?: ServerOptions & { socket?: ServerOptions } }
  if (isIoredis(client)) return withPeer((onLost, signal) => connectIoredis(client, { database, connectTimeoutMs, onLost, signal }), options)
  if (isNodeRedis(client)) return withPeer((onLost, signal) => connectNodeRedis(client, { database, connectTimeoutMs, onLost, signal }), options?.socket ?? {})
  throw new InvalidOption('broker.client', 'must be a client of ioredis or node-redis for one server (no cluster, no pool), or a URL')
}

/** The part of the options of a client that names the server. */
interface ServerOptions {
  readonly host?: string
  readonly port?: number
  readonly path?: string
  readonly sentinels?: readonly unknown[] | null
}

function withPeer (connect: Connect, server: ServerOptions | undefined): Connect {
  if (server === undefined || server.sentinels) return connect
  const { host, port, path } = server
  return Object.assign(connect, { peer: path ? { address: path } : { address: host || 'localhost', port: port || 6379 } })
}

function serverOf (url: string): ServerOptions | undefined {
  if (!URL.canParse(url)) return undefined
  const { protocol, hostname, port, pathname } = new URL(url)
  return protocol === 'unix:' ? { path: pathname } : { host: hostname, port: Number(port) }
}

function isIoredis (client: unknown): client is IoredisClient {
  return has(client, 'call', 'duplicate') && 'isCluster' in client && client.isCluster === false
}

// Cluster, pool and sentinel of node-redis also have `sendCommand`, but lack `select` or `isReady`.
function isNodeRedis (client: unknown): client is NodeRedisClient {
  return has(client, 'sendCommand', 'duplicate', 'select') && 'isReady' in client
}

function has (client: unknown, ...methods: string[]): client is object {
  return typeof client === 'object' && client !== null && methods.every(method => typeof (client as Record<string, unknown>)[method] === 'function')
}

function fromUrl (url: string, database: number | undefined, connectTimeoutMs: number): Connect {
  if (!URL_FORM.test(url)) throw new InvalidOption('broker.client', 'as a URL begins with redis://, rediss:// or unix://')
  return withPeer(async (onLost, signal) => {
    const { Redis } = await import('ioredis').catch((cause: unknown) => {
      throw new InvalidOption('broker.client', 'is a URL, which needs ioredis: npm install ioredis', { cause })
    })
    // No event follows if it was aborted meanwhile.
    signal.throwIfAborted()
    // ioredis expects the path of a Unix socket without a scheme.
    const template = new Redis(url.replace(/^unix:\/\//, ''), { lazyConnect: true })
    return connectIoredis(template, { database, connectTimeoutMs, onLost, signal })
  }, serverOf(url))
}

async function connectIoredis (client: IoredisClient, { database, connectTimeoutMs, onLost, signal }: Attempt): Promise<Connection> {
  const redis = client.duplicate({
    lazyConnect: true,
    connectTimeout: connectTimeoutMs,
    disconnectTimeout: 100,
    retryStrategy: null,
    reconnectOnError: null,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: null,
    enableReadyCheck: false,
    enableAutoPipelining: false,
    commandTimeout: undefined,
    socketTimeout: undefined,
    blockingTimeout: undefined,
    readOnly: false,
    stringNumbers: false,
    // Replies have the same form whatever the application configured.
    protocol: 2,
    replyMapping: 'legacy',
    connectionName: NAME,
    ...(database !== undefined && { db: database })
  }) as OwnIoredis
  // The promise of `connect` rejects without the cause; the `error` event has it. A failed SELECT is only an event.
  const failures: Error[] = []
  redis.on('error', error => { failures[0] = withoutCommand(error) })
  const connection: Connection = {
    send: (command, timeoutMs) => inTime(redis.call(command[0]!, ...command.slice(1)).catch(error => { throw withoutCommand(error) }), timeoutMs, () => redis.stream?.bytesRead),
    destroy: () => redis.disconnect()
  }
  await established(redis.connect(), connection, connectTimeoutMs, signal).catch(error => { throw failures[0] ?? withoutCommand(error) })
  if (failures[0] !== undefined) {
    connection.destroy()
    throw failures[0]
  }
  redis.on('end', () => onLost(failures[0] ?? new BrokerUnavailable('has closed the connection')))
  return connection
}

/** Removes the command from an ioredis error. Errors are logged, and the command has the password or the data of a batch. */
function withoutCommand (error: Error): Error {
  Reflect.deleteProperty(error, 'command')
  return error
}

async function connectNodeRedis (client: NodeRedisClient, { database, connectTimeoutMs, onLost, signal }: Attempt): Promise<Connection> {
  const { options } = client as { options?: { socket?: object } }
  const redis = client.duplicate({
    socket: { ...options?.socket, connectTimeout: connectTimeoutMs, socketTimeout: undefined, reconnectStrategy: false },
    disableOfflineQueue: true,
    pingInterval: undefined,
    commandsQueueMaxLength: undefined,
    readonly: false,
    // Replies have the same form whatever the application configured.
    RESP: 2,
    commandOptions: undefined,
    clientSideCache: undefined,
    emitInvalidate: false,
    maintNotifications: 'disabled',
    name: NAME,
    // A database in the URL would replace this one. The other parts of the URL are in the client's options.
    ...(database !== undefined && { database, url: undefined })
  }) as OwnNodeRedis
  redis.on('error', onLost)
  let socket: ReadSocket | undefined
  const connection: Connection = {
    send: (command, timeoutMs) => inTime(redis.sendCommand([...command]), timeoutMs, () => socket?.bytesRead),
    destroy: () => {
      if (redis.isOpen) redis.destroy()
      // While it connects, node-redis does not close its socket.
      socket?.destroy(new BrokerUnavailable('is disconnected'))
    }
  }
  const attempt = noticingSocket(() => redis.connect(), made => { socket = made })
  await established(attempt, connection, connectTimeoutMs, signal)
  return connection
}

/**
 * Calls `connect` and reports the socket that it makes, which node-redis does not expose. TLS sockets are not reported: on them,
 * the time-out of a reply does not start again while bytes arrive, and an attempt that is aborted before the socket is connected is not
 * closed.
 */
function noticingSocket<T> (connect: () => T, made: (socket: ReadSocket) => void): T {
  const onSocket = (message: unknown) => made((message as { socket: ReadSocket }).socket)
  subscribe('net.client.socket', onSocket)
  try {
    return connect()
  } finally {
    unsubscribe('net.client.socket', onSocket)
  }
}

/** Waits for the handshake. After a failure or an abort, the connection is destroyed, so that no socket is leaked. */
async function established (attempt: Promise<unknown>, connection: Connection, timeoutMs: number, signal: AbortSignal): Promise<void> {
  const destroy = () => connection.destroy()
  signal.addEventListener('abort', destroy)
  try {
    await inTime(attempt, timeoutMs)
  } catch (error) {
    destroy()
    throw error
  } finally {
    signal.removeEventListener('abort', destroy)
  }
}

/** Returns whether an error is an error reply of Redis, as opposed to a missing reply. Error replies begin with a code in capitals. */
export function isErrorReply (error: unknown): error is Error {
  return error instanceof Error && /^[A-Z]{2,} /.test(error.message)
}
