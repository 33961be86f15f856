import Fastify, { type FastifyInstance, type FastifyRequest, type FastifyServerOptions } from 'fastify'
import { getDefaultHighWaterMark, Writable } from 'node:stream'
import { type Test } from 'tap'
import type { Source, SourceFactory } from '../../lib/index.js'
import ssePlugin, { type SSEOptions } from '../../lib/index.js'
import { listen } from './app.js'
import { RawSocket, requestText } from './raw.js'

// The response: what `reply.sse()` and `createConnection()` put on the wire, and what becomes of a source.

export interface Log {
  lines: string[]
  stream: Writable
}

export function createLog (): Log {
  const lines: string[] = []
  return { lines, stream: new Writable({ write (line, _, done) { lines.push(String(line)); done() } }) }
}

export type Register = (app: FastifyInstance) => void | Promise<void>

/** A Fastify with the plugin, listening; closed at the end of the test. */
export async function start (t: Test, register: Register, options: SSEOptions = {}, server: FastifyServerOptions = {}): Promise<{ app: FastifyInstance, url: string, log: Log }> {
  const log = createLog()
  const app = Fastify({ logger: { level: 'error', stream: log.stream }, ...server } as FastifyServerOptions) as FastifyInstance
  await app.register(ssePlugin, { drainMs: 300, ...options })
  await register(app)
  t.teardown(() => app.close())
  return { app, url: await listen(app), log }
}

/** A Fastify whose route `/` streams the source. */
export function startSource (t: Test, source: (request: FastifyRequest) => Source | SourceFactory, options?: SSEOptions): ReturnType<typeof start> {
  return start(t, app => { app.route({ method: ['GET', 'POST'], url: '/', handler: (request, reply) => reply.sse(source(request)) }) }, options)
}

export function raw (t: Test, url: string, request?: Parameters<typeof requestText>[0]): RawSocket {
  const socket = new RawSocket(url, request)
  t.teardown(() => socket.close())
  return socket
}

/** What a socket takes before it asks for a pause, and a Node stream hands over at once: 16 KB, from Node 22 on 64 KB. */
export const HIGH_WATER_MARK = getDefaultHighWaterMark(false)

/** The bytes that may wait for the client of a source: a socket that is not full yet takes one item more, or the 16 KB of small items that are written together. */
export function waitingAtMost (itemBytes: number): number {
  return HIGH_WATER_MARK + Math.max(itemBytes, 16 * 1024) + 100
}
