import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { once } from 'node:events'

/** A way to a server on the loopback interface that can be cut between a command and its reply. */
export class Proxy {
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  /** The connections to the server, and what was sent on each last. */
  readonly #asked = new Map<Socket, Buffer>()
  /** While set, replies to connections that have sent this text are swallowed, and those connections cut. */
  swallow: string | null = null
  swallowed = 0
  /** Whether connections are taken. */
  open = true
  /** What a connection carries from the server. */
  bytesPerMs = Infinity
  /** While set, replies to connections that have sent this text wait. */
  #hold: string | null = null

  private constructor (server: Server) {
    this.#server = server
  }

  static async to (port: number): Promise<Proxy> {
    const server = createServer()
    const proxy = new Proxy(server)
    server.on('connection', client => { if (proxy.open) proxy.#join(client, connect(port, '127.0.0.1')); else client.destroy() })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return proxy
  }

  get port (): number {
    return (this.#server.address() as AddressInfo).port
  }

  get url (): string {
    return `redis://127.0.0.1:${this.port}`
  }

  /** Lets all replies wait, or those to commands with this text. */
  hold (text = ''): void {
    this.#hold = text
    for (const [server, asked] of this.#asked) if (asked.includes(text)) server.pause()
  }

  /** What has waited comes now. */
  release (): void {
    this.#hold = null
    for (const server of this.#asked.keys()) server.resume()
  }

  #join (client: Socket, server: Socket): void {
    let marked = false
    this.#asked.set(server, Buffer.alloc(0))
    server.on('close', () => this.#asked.delete(server))
    if (this.#hold === '') server.pause()
    client.on('data', data => {
      marked ||= this.swallow !== null && data.includes(this.swallow)
      this.#asked.set(server, data)
      if (this.#hold !== null && data.includes(this.#hold)) server.pause()
      server.write(data)
    })
    server.on('data', data => {
      if (!marked) {
        client.write(data)
        if (this.bytesPerMs === Infinity) return
        server.pause()
        setTimeout(() => server.resume(), data.length / this.bytesPerMs)
        return
      }
      this.swallow = null
      this.swallowed++
      client.destroy()
    })
    for (const [socket, other] of [[client, server], [server, client]] as const) {
      this.#sockets.add(socket)
      socket.on('error', () => {}).on('close', () => {
        this.#sockets.delete(socket)
        other.destroy()
      })
    }
  }

  /** Cuts all connections, and takes none until it is open again. */
  cut (): void {
    this.open = false
    for (const socket of this.#sockets) socket.destroy()
  }

  async close (): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    await new Promise(resolve => this.#server.close(resolve))
  }
}
