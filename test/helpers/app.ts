import type { AddressInfo } from 'node:net'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import type { Test } from 'tap'
import ssePlugin, { EventPriority, type BroadcastOptions, type ConnectOptions, type SSEConnection, type SSEOptions } from '../../lib/index.js'
import { openStream, type OpenStreamOptions, type ReceivedEvent, type TestStream } from '../../lib/testing/index.js'
import { turns } from './wait.js'

/** Listens on a free port of the loopback interface and returns the base URL. */
export async function listen (app: FastifyInstance): Promise<string> {
  // Of a thousand that come at once the usual 511 would leave the rest to try again, after up to a minute.
  await app.listen({ host: '127.0.0.1', port: 0, backlog: 4096 })
  return `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
}

/** Answers of any kind resolve. An `EventSource`, which asks for a stream by `accept`, is refused by a short stream where a status is wanted here. */
export const anyAnswer = (t: Test, { headers, ...options }: OpenStreamOptions = {}): OpenStreamOptions =>
  ({ test: t, timeoutMs: 30_000, allowRefusal: true, headers: { accept: '*/*', ...headers }, ...options })

/** A stream of the server at this URL that is closed when the test ends. */
export async function openURL (t: Test, url: string, options?: OpenStreamOptions): Promise<TestStream> {
  const { origin, pathname, search } = new URL(url)
  return await openStream(origin, pathname + search, anyAnswer(t, options))
}

export interface Joined {
  stream: TestStream
  connection: SSEConnection
}

export interface Service {
  app: FastifyInstance
  url: string
  /** Opens a stream as `user` (null for nobody) with these subscriptions. */
  join (user?: string | null, subscriptions?: readonly string[], options?: JoinOptions): Promise<Joined>
  /** A stream that is closed when the test ends. */
  open (path: string, options?: OpenStreamOptions): Promise<TestStream>
}

export interface JoinOptions extends Pick<OpenStreamOptions, 'headers' | 'readRate'>, ConnectOptions {
  /** Sent as the header, so that it is the client's word, not the application's. */
  cursor?: string
}

/** A server with the plugin and one route, `/sse`, which opens a managed stream for `?user=`. */
export async function serve (t: Test, options: SSEOptions = {}, server: FastifyServerOptions = {}, setup?: (app: FastifyInstance) => void): Promise<Service> {
  const app = Fastify(server)
  const pending = new Map<string, ConnectOptions>()
  const joined = new Map<string, SSEConnection>()
  let count = 0
  t.teardown(() => app.close())
  await app.register(ssePlugin, { authHandler: ({ query }) => query['user'] as string | undefined ?? null, drainMs: 500, ...options })
  app.get('/sse', { sse: true }, async (request, reply) => {
    const { join = '' } = request.query as { join?: string }
    joined.set(join, await reply.sse(pending.get(join)))
  })
  setup?.(app)
  const url = await listen(app)
  return {
    app,
    url,
    open: (path, options) => openStream(app, path, anyAnswer(t, options)),
    async join (user = null, subscriptions = [], { cursor, headers = {}, readRate = Infinity, ...connect }: JoinOptions = {}) {
      const join = String(++count)
      pending.set(join, { subscriptions, ...connect })
      const query = new URLSearchParams({ join, ...(user !== null && { user }) })
      const stream = await openStream(app, `/sse?${query}`, anyAnswer(t, { headers, lastEventId: cursor ?? null, readRate, allowRefusal: false }))
      return { stream, connection: joined.get(join)! }
    }
  }
}

export const FILLER_BYTES = 100_000

/** Freezes a client and sends it filler (not logged), so that everything after that has to wait on the server. */
export async function block ({ stream, connection }: Joined, event = 'filler'): Promise<void> {
  stream.freeze()
  connection.sendEvent({ event, data: 'x'.repeat(FILLER_BYTES) })
  await turns(1)
  if (connection.stats().queuedBytes < FILLER_BYTES) throw new Error('The filler does not wait')
}

let marks = 0

/** Publishes a last event for everyone, of the lowest priority, and waits for it: what has not arrived by then will not. */
export async function settle ({ app }: Pick<Service, 'app'>, ...streams: TestStream[]): Promise<void> {
  await publishLast(app, {}, streams)
}

/** The same by an event that is not logged: no id of the log is used up. */
export async function settleUnlogged ({ app }: Pick<Service, 'app'>, ...streams: TestStream[]): Promise<void> {
  await publishLast(app, { ephemeral: true }, streams)
}

async function publishLast (app: FastifyInstance, options: BroadcastOptions, streams: readonly TestStream[]): Promise<void> {
  const mark = String(++marks)
  await app.sse.broadcastEvent({ event: 'settled', data: mark, priority: EventPriority.LOW }, options)
  for (const stream of streams) await stream.until(() => !stream.isOpen || stream.named('settled').some(({ data }) => data === mark))
}

/** The data of the events of this name that a client has received. */
export const texts = (stream: TestStream, event = 'x'): string[] => stream.named(event).map(({ data }) => data)

/** The same parsed. */
export const payloads = (stream: TestStream, event = 'message'): any[] => stream.named(event).map(({ json }) => json)

export const isApplicationEvent = ({ event }: ReceivedEvent): boolean => !event.startsWith('sse:')
