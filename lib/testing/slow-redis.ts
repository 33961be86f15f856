import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { whenTestEnds, type TestContext } from './cleanup.js'

/** Options of `slowRedis()`, all optional. */
export interface SlowRedisOptions {
  /** Port of the server behind the proxy. Default 6379. */
  port?: number
  /** Host of the server. Default 127.0.0.1. */
  host?: string
  /** Time that each piece takes in each direction, in milliseconds. Default 0. */
  delayMs?: number
  /** Bytes per second from the server, for each connection. Default: no limit. */
  bytesPerSecond?: number
  /** The test that the proxy belongs to: it is closed when the test ends. */
  test?: TestContext
}

/** What a lane keeps before its source has to wait. */
const QUEUE_BYTES = 64 * 1024

/** One direction of one connection: pieces leave it in order, each when its time has come. */
class Lane {
  readonly #from: Socket
  readonly #to: Socket
  readonly #pieces: { readonly at: number, readonly bytes: Buffer }[] = []
  #queued = 0
  #freeAt = 0
  #timer: NodeJS.Timeout | null = null
  /** Whether pieces wait until `release()`. */
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
  /** What the client has sent last. */
  asked: Buffer
  /** Whether the reply to what it has sent is to be lost. */
  loses: boolean
  /** Whether bytes of it were dropped: what follows makes no sense to the other side. */
  hasDropped: boolean
}

/** A TCP proxy in front of Redis, or of any server that answers commands, that a test can slow down and break. Made by `slowRedis()`. */
export class SlowRedis {
  /** Time that each piece takes in each direction, in milliseconds. */
  delayMs: number
  /** Bytes per second from the server, for each connection. */
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

  get port (): number {
    return (this.#server.address() as AddressInfo).port
  }

  /** For the option `client` of `redisStreamsBroker`. */
  get url (): string {
    return `redis://127.0.0.1:${this.port}`
  }

  /** Lets the replies wait until `release()`: all, or those to commands that contain the text. */
  hold (text = ''): void {
    this.#held = text
    for (const connection of this.#connections) if (connection.asked.includes(text)) connection.replies.hold()
  }

  /** Sends the replies that have waited since `hold()`. */
  release (): void {
    this.#held = null
    for (const { replies } of this.#connections) replies.release()
  }

  /** Loses the reply to the next command that contains the text, and cuts its connection: Redis has done it, and the node does not know. Resolves when that has happened. */
  loseReply (text: string): Promise<void> {
    return new Promise(resolve => { this.#lost = { text, resolve } })
  }

  /** Drops what is sent, without a word: connections stay open, as to a machine that has lost power. Until `heal()`. */
  drop (what: 'commands' | 'replies' | 'both' = 'both'): void {
    this.#drops = what
  }

  /** Cuts all connections and refuses new ones until `heal()`. */
  cut (): void {
    this.#refuses = true
    for (const { client, server } of this.#connections) {
      client.destroy()
      server.destroy()
    }
  }

  /** Ends `cut()`, `drop()` and `hold()`. Connections that have lost bytes are cut, so that both sides begin anew. */
  heal (): void {
    this.#refuses = false
    this.#drops = null
    for (const { client, hasDropped } of this.#connections) if (hasDropped) client.destroy()
    this.release()
  }

  /** Cuts all connections and stops listening. */
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

/** Starts a TCP proxy in front of Redis, on a free port of 127.0.0.1. The proxy does not keep the process alive. */
export async function slowRedis (options: SlowRedisOptions = {}): Promise<SlowRedis> {
  const server = createServer()
  const proxy = new SlowRedis(server, options)
  whenTestEnds(options.test, () => proxy.close())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  server.unref()
  return proxy
}
