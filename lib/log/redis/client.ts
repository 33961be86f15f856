import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { BrokerUnavailable, InvalidOption } from '../../errors.js'
import { inTime } from '../../util/timeout.js'

/** The application's client of `ioredis`, or what `@fastify/redis` decorates with. Only copied: see `duplicate`. */
export interface IoredisClient {
  readonly status: string
  call (command: string, ...args: string[]): Promise<unknown>
  duplicate (override?: object): object
}

/** The application's client of node-redis (`redis` or `@redis/client`). Only copied: see `duplicate`. */
export interface NodeRedisClient {
  readonly isReady: boolean
  sendCommand (args: string[]): Promise<unknown>
  duplicate (overrides?: object): object
}

/**
 * One connection to Redis that is ours. It does not reconnect and queues nothing: when it is lost another is made, so that
 * both client libraries behave alike and what is pending stays in our hands.
 */
export interface Connection {
  /**
   * Rejects with Redis's error reply, or when there is no reply in time. While bytes of it arrive, a reply has as much time
   * again: a slow link is no silent Redis. A frozen Redis raises no event.
   */
  send (command: readonly string[], timeoutMs: number): Promise<unknown>
  destroy (): void
}

/** Makes a connection, authenticated and on its database. `onLost` may be called once it was made; `signal` ends the attempt. */
export type Connect = (onLost: (error: Error) => void, signal: AbortSignal) => Promise<Connection>

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

/** What is known of a socket of a client library. */
interface ReadSocket {
  readonly bytesRead?: number
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
 * How connections are made that are like the application's client.
 * @throws SSE_ERR_INVALID_OPTION
 */
export function connector (client: unknown, database: number | undefined, connectTimeoutMs: number): Connect {
  if (typeof client === 'string') return fromUrl(client, database, connectTimeoutMs)
  if (isIoredis(client)) return (onLost, signal) => connectIoredis(client, { database, connectTimeoutMs, onLost, signal })
  if (isNodeRedis(client)) return (onLost, signal) => connectNodeRedis(client, { database, connectTimeoutMs, onLost, signal })
  throw new InvalidOption('broker.client', 'must be a client of ioredis or node-redis for one server (no cluster, no pool), or a URL')
}

function isIoredis (client: unknown): client is IoredisClient {
  return has(client, 'call', 'duplicate') && 'isCluster' in client && client.isCluster === false
}

// Cluster, pool and sentinel of node-redis have `sendCommand` as well, but are not a connection.
function isNodeRedis (client: unknown): client is NodeRedisClient {
  return has(client, 'sendCommand', 'duplicate', 'select') && 'isReady' in client
}

function has (client: unknown, ...methods: string[]): client is object {
  return typeof client === 'object' && client !== null && methods.every(method => typeof (client as Record<string, unknown>)[method] === 'function')
}

function fromUrl (url: string, database: number | undefined, connectTimeoutMs: number): Connect {
  if (!URL_FORM.test(url)) throw new InvalidOption('broker.client', 'as a URL begins with redis://, rediss:// or unix://')
  return async (onLost, signal) => {
    const { Redis } = await import('ioredis').catch((cause: unknown) => {
      throw new InvalidOption('broker.client', 'is a URL, which needs ioredis: npm install ioredis', { cause })
    })
    // What ioredis calls a path has no scheme.
    const template = new Redis(url.replace(/^unix:\/\//, ''), { lazyConnect: true })
    return connectIoredis(template, { database, connectTimeoutMs, onLost, signal })
  }
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
    // Replies of one shape, whatever the application asks for.
    protocol: 2,
    replyMapping: 'legacy',
    connectionName: NAME,
    ...(database !== undefined && { db: database })
  }) as OwnIoredis
  // The promise only says that the connection was closed; why, the event does. A failed SELECT is an event alone.
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

/** ioredis puts on its errors what was asked, and they are logged: the password, or the data of all that was published together. */
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
    // Replies of one shape, whatever the application asks for.
    RESP: 2,
    commandOptions: undefined,
    clientSideCache: undefined,
    emitInvalidate: false,
    maintNotifications: 'disabled',
    name: NAME,
    ...(database !== undefined && { database })
  }) as OwnNodeRedis
  redis.on('error', onLost)
  let socket: ReadSocket | undefined
  const connection: Connection = {
    send: (command, timeoutMs) => inTime(redis.sendCommand([...command]), timeoutMs, () => socket?.bytesRead),
    destroy: () => { if (redis.isOpen) redis.destroy() }
  }
  const attempt = noticingSocket(() => redis.connect(), made => { socket = made })
  await established(attempt, connection, connectTimeoutMs, signal)
  return connection
}

/**
 * Tells which socket `connect` makes: node-redis keeps it to itself. A socket of TLS is not told; a reply on it has to be
 * there whole in the time that it has.
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

/** Waits for the handshake; one that is given up leaves no socket behind. */
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

/** Whether an error is Redis's answer, as opposed to the want of one: those begin with a word in capitals. */
export function isErrorReply (error: unknown): error is Error {
  return error instanceof Error && /^[A-Z]{2,} /.test(error.message)
}
