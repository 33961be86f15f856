import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { Server } from 'node:http'
import type { FastifyInstance } from 'fastify'
import { IdleSockets } from './idle-sockets.js'

/** Node publishes each server here that is told to listen, before it has a socket. */
const LISTENING = 'tracing:net.server.listen:asyncStart'

/**
 * The servers of an instance: `listen` on a name with two addresses, as `localhost` has, makes one for each. Fastify
 * shows the first only; the others have its request listener, and are made between its `listening` event and the `onListen` hooks.
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

  /** See `IdleSockets.close`. */
  closeIdle (drainMs: number): void {
    for (const idle of this.#idle) idle.close(drainMs)
  }
}
