import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import type { Test } from 'tap'

/** What is between a client and its server: a TCP proxy that a test cuts, lets buffer, and leads to another port. */
export class Network {
  /** Port of the server. New connections go there. */
  target: number
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  /** Bytes of the server after which connections are reset. */
  #bytesLeft = Infinity
  #isDown = false
  #held: (() => void)[] | null = null

  private constructor (target: number) {
    this.target = target
    this.#server = createServer(client => this.#carry(client))
  }

  static async start (t: Test, target: number): Promise<Network> {
    const network = new Network(target)
    network.#server.listen(0, '127.0.0.1')
    await once(network.#server, 'listening')
    t.teardown(() => {
      network.reset()
      network.#server.close()
    })
    return network
  }

  get url (): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  #carry (client: Socket): void {
    if (this.#isDown) {
      client.resetAndDestroy()
      return
    }
    const server = connect(this.target, '127.0.0.1')
    for (const [socket, other] of [[client, server], [server, client]] as const) {
      this.#sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => {
        this.#sockets.delete(socket)
        // What a server that is killed has written arrives before the end.
        if (this.#held === null) other.end()
        else this.#held.push(() => { other.end() })
      })
    }
    client.on('data', bytes => { server.write(bytes) })
    server.on('data', bytes => {
      if (this.#held === null) this.#pass(client, bytes)
      else this.#held.push(() => this.#pass(client, bytes))
    })
  }

  #pass (client: Socket, bytes: Buffer): void {
    const part = bytes.subarray(0, this.#bytesLeft)
    this.#bytesLeft -= part.length
    if (this.#bytesLeft > 0) {
      client.write(part)
      return
    }
    this.#bytesLeft = Infinity
    client.write(part, () => this.reset())
  }

  /** Resets all connections (RST): what is still under way is lost. */
  reset (): void {
    this.#held = null
    for (const socket of this.#sockets) {
      // Node.js leaks the handle of a socket that is reset after its end.
      if (socket.writableEnded) socket.destroy()
      else socket.resetAndDestroy()
    }
  }

  /** Resets all connections once the client has been sent this many more bytes, perhaps in the middle of a character. */
  cutAfter (bytes: number): void {
    this.#bytesLeft = bytes
  }

  /** Buffers what the server sends, as some proxies do. */
  hold (): void {
    this.#held ??= []
  }

  /** Passes on what was buffered. */
  release (): void {
    const held = this.#held ?? []
    this.#held = null
    for (const pass of held) pass()
  }

  /** Cuts all connections, and refuses new ones. */
  down (): void {
    this.#isDown = true
    this.reset()
  }

  up (): void {
    this.#isDown = false
  }
}
