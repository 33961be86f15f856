import { createServer, connect, type AddressInfo, type Socket } from 'node:net'
import { Transform } from 'node:stream'
import type { Test } from 'tap'

/** An address that forwards each connection to the server of the moment, as a proxy does. If the server dies, its connections end. */
export interface Front {
  readonly url: string
  /** Port of the server to which new connections lead. */
  port: number
  /** The first connection on which a client sends this text is cut, and the server does not receive it. Then null again. */
  cutAt: string | null
}

export async function startFront (t: Test, port: number): Promise<Front> {
  const sockets = new Set<Socket>()
  const server = createServer(client => {
    const node = connect(front.port, '127.0.0.1')
    for (const socket of [client, node]) {
      sockets.add(socket)
      socket.on('error', () => {}).on('close', () => {
        sockets.delete(socket)
        client.destroy()
        node.destroy()
      })
    }
    // Not a listener beside a pipe, which would still forward the bytes.
    const guard = new Transform({
      transform (bytes: Buffer, _encoding, done) {
        if (front.cutAt === null || !bytes.includes(front.cutAt)) return done(null, bytes)
        front.cutAt = null
        client.destroy()
      }
    })
    client.pipe(guard).pipe(node).pipe(client)
  })
  t.teardown(() => {
    server.close()
    for (const socket of sockets) socket.destroy()
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const front: Front = { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, port, cutAt: null }
  return front
}
