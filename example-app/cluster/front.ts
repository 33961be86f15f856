import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'

/** A TCP proxy in front of all nodes. It forwards each connection to the next node, and closes the connection when the node does. */
export class Front {
  readonly #server = createServer(client => this.#forward(client))
  readonly #ports: () => readonly number[]
  readonly #clients = new Set<Socket>()
  #turn = 0

  constructor (ports: () => readonly number[]) {
    this.#ports = ports
  }

  /** Starts to listen. Resolves with the port. */
  async listen (host: string, port: number): Promise<number> {
    this.#server.listen(port, host)
    await once(this.#server, 'listening')
    return (this.#server.address() as AddressInfo).port
  }

  close (): void {
    this.#server.close()
    for (const client of this.#clients) client.destroy()
  }

  #forward (client: Socket): void {
    const ports = this.#ports()
    const port = ports[this.#turn++ % ports.length]
    if (port === undefined) {
      client.destroy()
      return
    }
    const node = connect(port, '127.0.0.1')
    this.#clients.add(client)
    for (const [from, to] of [[client, node], [node, client]] as const) {
      from.pipe(to)
      from.on('error', () => {})
      from.on('close', () => {
        this.#clients.delete(client)
        to.destroy()
      })
    }
  }
}
