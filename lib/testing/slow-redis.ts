import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { whenTestEnds, type TestContext } from './cleanup.js'

/** Options of `slowRedis()`, all optional. */
export interface SlowRedisOptions {
  /** Port of the server behind the proxy. Default 6379. */
  port?: number
  /** Host of the server. Default 127.0.0.1. */
  host?: string
  /** Delay of each chunk in each direction, in milliseconds. Default 0. */
  delayMs?: number
  /** Bytes per second from the server, for each connection. Absent: no limit. */
  bytesPerSecond?: number
  /** The test that the proxy belongs to. The proxy is closed when the test ends. Absent: call `close()`. */
  test?: TestContext
}

/** Bytes that a lane queues before it pauses its source. */
const QUEUE_BYTES = 64 * 1024

/** One direction of one connection. It forwards chunks in order, each at its due time. */
class Lane {
  readonly #from: Socket
  readonly #to: Socket
  readonly #pieces: { readonly at: number, readonly bytes: Buffer }[] = []
  #queued = 0
  #freeAt = 0
  #timer: NodeJS.Timeout | null = null
  /** Whether chunks wait until `release()`. */
  #held = false

  constructor (from: Socket, to: Socket) {
    this.#from = from
    this.#to = to
  }

  put (bytes: Buffer, delayMs: number, bytesPerSecond: number): void {
    if (delayMs === 0 && bytesPerSecond === Infinity && !this.#held && this.#pieces.length === 0) {
      this.#to.write(bytes)
      return
    }
    const at = Math.max(performance.now() + delayMs, this.#freeAt)
    this.#freeAt = at + bytes.length / bytesPerSecond * 1000
    this.#pieces.push({ at: this.#freeAt, bytes })
    this.#queued += bytes.length
    if (this.#queued > QUEUE_BYTES) this.#from.pause()
    this.#run()
  }

  hold (): void {
    this.#held = true
  }

  release (): void {
    this.#held = false
    this.#run()
  }

  #run (): void {
    if (this.#timer !== null || this.#held) return
    const now = performance.now()
    while (this.#pieces.length > 0 && this.#pieces[0]!.at <= now) {
      const { bytes } = this.#pieces.shift()!
      this.#queued -= bytes.length
      this.#to.write(bytes)
    }
    if (this.#queued <= QUEUE_BYTES) this.#from.resume()
    if (this.#pieces.length === 0) return
    this.#timer = setTimeout(() => {
      this.#timer = null
      this.#run()
    }, this.#pieces[0]!.at - now)
  }
}

interface Connection {
  readonly client: Socket
  readonly server: Socket
  readonly replies: Lane
  /** The last chunk that the client has sent. */
  asked: Buffer
  /** Whether the reply to that chunk is dropped, and the connection closed. */
  loses: boolean
  /** Whether bytes were dropped. The other side cannot parse what follows. */
  hasDropped: boolean
}

/**
 * A TCP proxy in front of Redis, or of any server that replies to commands. Tests use it to delay, drop and close connections.
 * `slowRedis()` creates it.
 */
export class SlowRedis {
  /** Delay of each chunk in each direction, in milliseconds. Can be changed at any time. */
  delayMs: number
  /** Bytes per second from the server, for each connection; Infinity for no limit. Can be changed at any time. */
  bytesPerSecond: number
  readonly #server: Server
  readonly #connections = new Set<Connection>()
  #refuses = false
  #drops: 'commands' | 'replies' | 'both' | null = null
  #held: string | null = null
  #lost: { readonly text: string, resolve (): void } | null = null

  /** @internal */
  constructor (server: Server, { port = 6379, host = '127.0.0.1', delayMs = 0, bytesPerSecond = Infinity }: SlowRedisOptions) {
    this.delayMs = delayMs
    this.bytesPerSecond = bytesPerSecond
    this.#server = server
    server.on('connection', client => {
      if (this.#refuses) client.destroy()
      else this.#join(client, connect(port, host))
    })
  }

  /** Port of the proxy on 127.0.0.1. */
  get port (): number {
    return (this.#server.address() as AddressInfo).port
  }

  /** URL of the proxy, for the option `client` of `redisStreamsBroker()`. */
  get url (): string {
    return `redis://127.0.0.1:${this.port}`
  }

  /**
   * Delays replies until `release()`.
   * @param text delays only replies to commands that contain this text. Default: all replies.
   */
  hold (text = ''): void {
    this.#held = text
    for (const connection of this.#connections) if (connection.asked.includes(text)) connection.replies.hold()
  }

  /** Sends the replies that `hold()` has delayed. */
  release (): void {
    this.#held = null
    for (const { replies } of this.#connections) replies.release()
  }

  /**
   * Drops the reply to the next command that contains the text, and closes its connection. Redis has executed the command, and the node
   * does not know. Resolves when the reply is dropped.
   */
  loseReply (text: string): Promise<void> {
    return new Promise(resolve => { this.#lost = { text, resolve } })
  }

  /**
   * Drops all bytes until `heal()`. Connections stay open, as to a machine that has lost power.
   * @param what drops commands, replies or both. Default `both`.
   */
  drop (what: 'commands' | 'replies' | 'both' = 'both'): void {
    this.#drops = what
  }

  /** Closes all connections, and refuses new ones until `heal()`. */
  cut (): void {
    this.#refuses = true
    for (const { client, server } of this.#connections) {
      client.destroy()
      server.destroy()
    }
  }

  /** Ends `cut()`, `drop()` and `hold()`. Connections with dropped bytes are closed, so that both sides start a new connection. */
  heal (): void {
    this.#refuses = false
    this.#drops = null
    for (const { client, hasDropped } of this.#connections) if (hasDropped) client.destroy()
    this.release()
  }

  /** Closes all connections and stops listening. */
  async close (): Promise<void> {
    this.cut()
    if (!this.#server.listening) return
    this.#server.close()
    await once(this.#server, 'close')
  }

  #join (client: Socket, server: Socket): void {
    const commands = new Lane(client, server)
    const connection: Connection = { client, server, replies: new Lane(server, client), asked: Buffer.alloc(0), loses: false, hasDropped: false }
    this.#connections.add(connection)
    if (this.#held === '') connection.replies.hold()
    client.on('data', bytes => {
      connection.asked = bytes
      if (this.#held !== null && bytes.includes(this.#held)) connection.replies.hold()
      if (this.#lost !== null && bytes.includes(this.#lost.text)) connection.loses = true
      if (this.#isDropped('commands', connection)) return
      commands.put(bytes, this.delayMs, Infinity)
    })
    server.on('data', bytes => {
      if (connection.loses) {
        client.destroy()
        this.#lost?.resolve()
        this.#lost = null
      } else if (!this.#isDropped('replies', connection)) {
        connection.replies.put(bytes, this.delayMs, this.bytesPerSecond)
      }
    })
    for (const [socket, other] of [[client, server], [server, client]] as const) {
      socket.unref()
      socket.on('error', () => {}).on('close', () => {
        this.#connections.delete(connection)
        other.destroy()
      })
    }
  }

  #isDropped (what: 'commands' | 'replies', connection: Connection): boolean {
    if (this.#drops !== what && this.#drops !== 'both') return false
    return (connection.hasDropped = true)
  }
}

/**
 * Starts a TCP proxy in front of Redis, on a free port of 127.0.0.1. The proxy does not keep the process alive.
 * @example
 * ```ts
 * const proxy = await slowRedis({ delayMs: 20, test: t })
 * await app.register(ssePlugin, { broker: redisStreamsBroker({ client: proxy.url }) })
 * proxy.cut()
 * ```
 */
export async function slowRedis (options: SlowRedisOptions = {}): Promise<SlowRedis> {
  const server = createServer()
  const proxy = new SlowRedis(server, options)
  whenTestEnds(options.test, () => proxy.close())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  server.unref()
  return proxy
}
