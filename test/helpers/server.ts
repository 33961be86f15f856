import Fastify, { type FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import ssePlugin, { type SSEOptions } from '../../lib/index.js'
import { listen } from './app.js'
import { SSEClient, type ClientOptions } from './sse.js'

export interface Server {
  app: FastifyInstance
  /** A request whose answer is not waited for. */
  dial (path?: string, options?: ClientOptions): SSEClient
  open (path?: string, options?: ClientOptions): Promise<SSEClient>
  /** What was logged at level error and above. */
  errors (): any[]
  /** All that was logged. */
  lines: any[]
}

/** A server with what `setup` registers; `/sse` is a guarded route unless `setup` makes it. */
export async function start (t: Test, setup: SSEOptions | ((app: FastifyInstance) => Promise<void> | void)): Promise<Server> {
  const lines: any[] = []
  const app = Fastify({ logger: { level: 'info', stream: { write: line => { lines.push(JSON.parse(line)) } } } })
  const clients: SSEClient[] = []
  t.teardown(async () => {
    for (const client of clients) client.close()
    await app.close()
  })
  if (typeof setup === 'function') {
    await setup(app)
  } else {
    await app.register(ssePlugin, { drainMs: 500, ...setup })
    app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
  }
  const url = await listen(app)
  const dial = (path = '/sse', options?: ClientOptions): SSEClient => {
    const client = new SSEClient(url + path, options)
    clients.push(client)
    return client
  }
  return {
    app,
    dial,
    open: (path, options) => dial(path, options).ready(),
    lines,
    errors: () => lines.filter(({ level }) => level >= 50)
  }
}

export const bearer = (token: string): ClientOptions => ({ headers: { authorization: `Bearer ${token}` } })

/** The answer to a request that was refused by status. */
export const refusal = (t: Test, client: SSEClient, status: number, code: string) => {
  t.equal(client.status, status)
  t.match(client.headers['content-type'], /^application\/json/)
  t.equal(client.answer.code, code)
}
