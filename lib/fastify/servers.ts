import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { Server } from 'node:http'
import type { FastifyInstance } from 'fastify'
import { IdleSockets } from './idle-sockets.js'

/** Channel on which Node publishes each server that starts to listen, before the server has a socket. */
const LISTENING = 'tracing:net.server.listen:asyncStart'

/**
 * The servers of a Fastify instance. `listen` on a host name with two addresses, such as `localhost`, creates a server for each address.
 * Fastify exposes only the first. The others have the same request listener. They are created between its `listening` event and the
 * `onListen` hooks.
 */
export class Servers {
  readonly #idle: IdleSockets[] = []

  constructor (fastify: FastifyInstance) {
    const first = fastify.server as Server
    this.#add(first)
    const [handler] = first.listeners('request')
    const onListening = (message: unknown): void => {
      const { server } = message as { server: Server }
      if (handler !== undefined && server !== first && server.listeners('request').includes(handler)) this.#add(server)
    }
    const stop = (): void => { unsubscribe(LISTENING, onListening) }
    first.on('listening', () => { subscribe(LISTENING, onListening) })
    first.on('close', stop)
    fastify.addHook('onListen', async () => { stop() })
  }

  #add (server: Server): void {
    this.#idle.push(new IdleSockets(server))
  }

  /** Closes the idle connections of all servers, see `IdleSockets.close`. */
  closeIdle (drainMs: number): void {
    for (const idle of this.#idle) idle.close(drainMs)
  }
}
