import type { AddressInfo } from 'node:net'
import { getDefaultHighWaterMark } from 'node:stream'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import type { Test } from 'tap'
import ssePlugin, { EventPriority, type BroadcastOptions, type ConnectOptions, type SSEConnection, type SSEOptions } from '../../lib/index.js'
import { SSEClient, type ClientOptions } from './sse.js'
import { turns, until } from './wait.js'

/** Listens on a free port of the loopback interface and returns the base URL. */
export async function listen (app: FastifyInstance): Promise<string> {
  // Of a thousand that come at once the usual 511 would leave the rest to try again, after up to a minute.
  await app.listen({ host: '127.0.0.1', port: 0, backlog: 4096 })
  return `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
}

export interface Joined {
  client: SSEClient
  connection: SSEConnection
}

export interface Service {
  app: FastifyInstance
  url: string
  /** Opens a stream as `user` (null for nobody) with these subscriptions. */
  join (user?: string | null, subscriptions?: readonly string[], options?: JoinOptions): Promise<Joined>
  /** A stream that is closed when the test ends. */
  open (path: string, options?: ClientOptions): Promise<SSEClient>
}

export interface JoinOptions extends ClientOptions, ConnectOptions {
  /** Sent as the header, so that it is the client's word, not the application's. */
  cursor?: string
}

/** A server with the plugin and one route, `/sse`, which opens a managed stream for `?user=`. */
export async function serve (t: Test, options: SSEOptions = {}, server: FastifyServerOptions = {}, setup?: (app: FastifyInstance) => void): Promise<Service> {
  const app = Fastify(server)
  const clients: SSEClient[] = []
  const pending = new Map<string, ConnectOptions>()
  const joined = new Map<string, SSEConnection>()
  let count = 0
  t.teardown(async () => {
    for (const client of clients) client.close()
    await app.close()
  })
  await app.register(ssePlugin, { authHandler: ({ query }) => query['user'] as string | undefined ?? null, drainMs: 500, ...options })
  app.get('/sse', { sse: true }, async (request, reply) => {
    const { join = '' } = request.query as { join?: string }
    joined.set(join, await reply.sse(pending.get(join)))
  })
  setup?.(app)
  const url = await listen(app)
  const open = async (path: string, options?: ClientOptions): Promise<SSEClient> => {
    const client = new SSEClient(url + path, options)
    clients.push(client)
    return client.ready()
  }
  return {
    app,
    url,
    open,
    async join (user = null, subscriptions = [], { cursor, headers, method, body, ...connect }: JoinOptions = {}) {
      const join = String(++count)
      pending.set(join, { subscriptions, ...connect })
      const query = new URLSearchParams({ join, ...(user !== null && { user }) })
      const client = await open(`/sse?${query}`, { headers: { ...headers, ...(cursor !== undefined && { 'last-event-id': cursor }) } })
      if (!client.isStream) throw new Error(`${client.status} ${client.body}`)
      return { client, connection: joined.get(join)! }
    }
  }
}

export const FILLER_BYTES = 100_000

/** Stops a client from reading and sends it filler (not logged) until something has to wait on the server, and goes on waiting. */
export async function block ({ client, connection }: Joined, event = 'filler'): Promise<void> {
  client.pause()
  const data = 'x'.repeat(FILLER_BYTES)
  const waiting = () => connection.stats().queuedBytes
  // The kernel takes several megabytes before anything waits; up to 36 MB where a receive buffer may grow to 32.
  for (let i = 0; i < 600; i++) {
    connection.sendEvent({ event, data })
    await turns(1)
    // A socket that has less is not full yet: 16 KB, from Node 22 on 64 KB. What waits may be on its way to a kernel that has
    // room for it, as after a pause that followed a short time of reading.
    for (let before = Infinity; waiting() > getDefaultHighWaterMark(false);) {
      if (waiting() === before) return
      before = waiting()
      await turns(20)
    }
  }
  throw new Error('The socket took 60 MB from a client that does not read')
}

let marks = 0

/** Publishes a last event for everyone, of the lowest priority, and waits for it: what has not arrived by then will not. */
export async function settle ({ app }: Pick<Service, 'app'>, ...clients: SSEClient[]): Promise<void> {
  await publishLast(app, {}, clients)
}

/** The same by an event that is not logged: no id of the log is used up. */
export async function settleUnlogged ({ app }: Pick<Service, 'app'>, ...clients: SSEClient[]): Promise<void> {
  await publishLast(app, { ephemeral: true }, clients)
}

async function publishLast (app: FastifyInstance, options: BroadcastOptions, clients: readonly SSEClient[]): Promise<void> {
  const mark = String(++marks)
  await app.sse.broadcastEvent({ event: 'settled', data: mark, priority: EventPriority.LOW }, options)
  for (const client of clients) await until(() => client.closed || client.named('settled').some(({ data }) => data === mark), undefined, 'the last event')
}

/** The data of the events of this name that a client has received. */
export const texts = (client: SSEClient, event = 'x') => client.named(event).map(({ data }) => data)
