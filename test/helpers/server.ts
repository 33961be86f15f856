import Fastify, { type FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import ssePlugin, { type SSEOptions } from '../../lib/index.js'
import { openStream, type OpenStreamOptions, type TestStream } from '../../lib/testing/index.js'
import { anyAnswer, listen } from './app.js'

export interface Server {
  app: FastifyInstance
  url: string
  /** Resolves with the answer, of any kind. */
  open (path?: string, options?: OpenStreamOptions): Promise<TestStream>
  /** What was logged at level error and above. */
  errors (): any[]
  /** All that was logged. */
  lines: any[]
}

/** A server with what `setup` registers; `/sse` is a guarded route unless `setup` makes it. */
export async function start (t: Test, setup: SSEOptions | ((app: FastifyInstance) => Promise<void> | void)): Promise<Server> {
  const lines: any[] = []
  const app = Fastify({ logger: { level: 'info', stream: { write: line => { lines.push(JSON.parse(line)) } } } })
  t.teardown(() => app.close())
  if (typeof setup === 'function') {
    await setup(app)
  } else {
    await app.register(ssePlugin, { drainMs: 500, ...setup })
    app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
  }
  const url = await listen(app)
  return {
    app,
    url,
    open: (path = '/sse', options) => openStream(app, path, anyAnswer(t, options)),
    lines,
    errors: () => lines.filter(({ level }) => level >= 50)
  }
}

export const bearer = (token: string): OpenStreamOptions => ({ headers: { authorization: `Bearer ${token}` } })

/** The answer to a request that was refused by status. */
export const refusal = (t: Test, { status: received, headers, body }: Pick<TestStream, 'status' | 'headers' | 'body'>, status: number, code: string) => {
  t.equal(received, status)
  t.match(headers['content-type'], /^application\/json/)
  t.equal(body.code, code)
}
