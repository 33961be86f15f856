import type { FastifyInstance, FastifyRequest } from 'fastify'
import { until } from './wait.js'

/** Keeps the clients of an application away: those that reconnect wait. */
export class Gate {
  #isOpen: Promise<void> = Promise.resolve()

  /** An `onRequest` hook of the application. */
  readonly hook = async ({ headers }: FastifyRequest): Promise<void> => {
    if (headers.accept === 'text/event-stream') await this.#isOpen
  }

  /** Closes all streams; `what` happens before their clients are back. */
  async away (app: FastifyInstance, what: () => Promise<unknown>): Promise<void> {
    let open = (): void => {}
    this.#isOpen = new Promise(resolve => { open = resolve })
    for (const connection of app.sse.connections()) connection.close('max-age')
    await until(() => app.sse.connectionCount === 0)
    await what()
    open()
    await until(() => app.sse.connectionCount > 0)
  }
}
