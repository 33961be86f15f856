import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import type { AddressInfo } from 'node:net'
import fastifyStatic from '@fastify/static'
import { Type, type Static } from '@sinclair/typebox'
import fastify from 'fastify'
import { redisStreamsBroker } from '../../lib/redis.js'
import ssePlugin, { EventPriority } from '../../lib/index.js'
import { allowedHosts, allowSameOrigin } from '../same-origin.js'

// One node of the cluster, a process like any other. What makes it one of many are the option `broker` and its name.

const [name, redisUrl] = process.argv.slice(2) as [string, string]
const TICK_MS = 500
const LINGER_MS = 10_000
const ROOM = 'room:lobby'
const PAGE_POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

const Visitor = Type.Object({ user: Type.String({ pattern: '^[a-z]{2,12}-[0-9]{1,4}$' }) })
const Saying = Type.Object({ user: Visitor.properties.user, text: Type.String({ minLength: 1, maxLength: 300 }) })
const Victim = Type.Object({ name: Type.String({ maxLength: 32 }) })

// Without a supervisor there is nobody to end this process.
process.once('disconnect', () => process.exit())

const app = fastify()
// Kills, too, are for the page of this cluster only. The supervisor's environment is that of its nodes.
allowSameOrigin(app, allowedHosts(process.env))

await app.register(ssePlugin, {
  broker: redisStreamsBroker({ client: redisUrl }),
  cluster: { nodeName: name, heartbeatIntervalMs: 500 },
  presenceEvents: { topics: ['room:*'], lingerMs: LINGER_MS },
  // Everybody is who they say they are: a demo has no secrets.
  authHandler: ({ query }) => typeof query['user'] === 'string' ? query['user'] : null,
  retryMs: 500,
  drainMs: 500
})

app.addHook('onSend', async (request, reply) => { reply.header('content-security-policy', PAGE_POLICY) })
// Browsers open connections in advance; one that has not asked for anything would keep a closing server for a minute.
app.addHook('preClose', async () => { setTimeout(() => { app.server.closeAllConnections() }, 500).unref() })

app.get<{ Querystring: Static<typeof Visitor> }>('/sse', { sse: true, schema: { querystring: Visitor } }, async (request, reply) => {
  const connection = await reply.sse({ subscriptions: ['ticks', ROOM] })
  // Before any replay: by its time the page tells what is one.
  connection.sendEvent({ event: 'welcome', data: { node: name, clientId: connection.clientId, at: connection.clientInfo.connectedAt }, priority: EventPriority.CRITICAL })
  // Also users who were cut and are not back yet: nobody will be told that they have come, as nobody was told that they left.
  const { users } = await app.sse.presence(ROOM)
  connection.sendEvent({ event: 'present', data: users.map(({ userId }) => userId) })
})

app.post<{ Body: Static<typeof Saying> }>('/say', { schema: { body: Saying } }, async request => {
  const { id } = await app.sse.broadcastToSubscriptions({ event: 'said', data: { ...request.body, node: name, at: Date.now() } }, [ROOM])
  return { id, node: name }
})

// Whatever node is asked, the one that is named dies; the supervisor starts it again.
app.post<{ Params: Static<typeof Victim> }>('/nodes/:name/kill', { schema: { params: Victim } }, async (request, reply) => {
  process.send!({ kill: request.params.name })
  return reply.code(202).send({ killed: request.params.name })
})

app.get('/health', async (request, reply) => {
  const { status, since } = app.sse.health()
  return reply.code(status === 'up' ? 200 : 503).send({ node: name, status, since })
})

await app.register(fastifyStatic, { root: [new URL('public', import.meta.url), new URL('../public', import.meta.url)].map(url => fileURLToPath(url)) })

// Each node counts, and whoever listens hears both counts: a hole in one would be a loss.
const run = randomBytes(4).toString('hex')
let seq = 0
const ticking = setInterval(() => {
  app.sse.broadcastToSubscriptions({ event: 'tick', data: { node: name, run, seq: ++seq, at: Date.now() } }, ['ticks']).catch(() => {
    // Not logged, so nobody is to miss it.
    seq--
  })
  // What this node knows of the others is for those who are here.
  app.sse.broadcastEvent({ event: 'nodes', data: app.sse.clusterStats().nodes, key: 'nodes' }, { local: true }).catch(() => {})
}, TICK_MS)

app.addHook('preClose', async () => { clearInterval(ticking) })
process.once('SIGTERM', () => { app.close().then(() => process.exit()) })
// A terminal sends it to all processes: the supervisor ends its nodes by itself.
process.on('SIGINT', () => {})

await app.listen({ host: '127.0.0.1', port: 0 })
process.send!({ port: (app.server.address() as AddressInfo).port })
