import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import type { AddressInfo } from 'node:net'
import fastifyStatic from '@fastify/static'
import { Type, type Static } from '@sinclair/typebox'
import fastify from 'fastify'
import { redisStreamsBroker } from '../../lib/redis.js'
import ssePlugin, { EventPriority } from '../../lib/index.js'
import { answerRoutes } from '../answers.js'
import { clientRoute } from '../client-file.js'
import { allowedHosts, allowSameOrigin } from '../same-origin.js'

// One node of the cluster. It differs from a single-node application only by the option `broker` and its name.

const [name, redisUrl] = process.argv.slice(2) as [string, string]
const TICK_MS = 500
const LINGER_MS = 10_000
const ROOM = 'room:lobby'
const PAGE_POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

const Visitor = Type.Object({ user: Type.String({ pattern: '^[a-z]{2,12}-[0-9]{1,4}$' }) })
const Saying = Type.Object({ user: Visitor.properties.user, text: Type.String({ minLength: 1, maxLength: 300 }) })
const Victim = Type.Object({ name: Type.String({ maxLength: 32 }) })

// Without its supervisor, this process would run forever.
process.once('disconnect', () => process.exit())

const app = fastify()
// Only the page of this cluster can kill a node. Nodes inherit the environment of the supervisor.
allowSameOrigin(app, allowedHosts(process.env))

await app.register(ssePlugin, {
  broker: redisStreamsBroker({ client: redisUrl }),
  cluster: { nodeName: name, heartbeatIntervalMs: 500 },
  presenceEvents: { topics: ['room:*'], lingerMs: LINGER_MS },
  // The demo trusts the user id of the client.
  authHandler: ({ query }) => typeof query['user'] === 'string' ? query['user'] : null,
  // The shortest lease: the answers of a killed node are continued soon.
  runs: { leaseMs: 1_000 },
  retryMs: 500,
  drainMs: 500
})

app.addHook('onSend', async (request, reply) => { reply.headers({ 'content-security-policy': PAGE_POLICY, 'x-node': name }) })
// Browsers open connections in advance. Without this, an unused connection delays `close()` by a minute.
app.addHook('preClose', async () => { setTimeout(() => { app.server.closeAllConnections() }, 500).unref() })

app.get<{ Querystring: Static<typeof Visitor> }>('/sse', { sse: true, schema: { querystring: Visitor } }, async (request, reply) => {
  const connection = await reply.sse({ subscriptions: ['ticks', ROOM] })
  // Sent before a replay: the page compares event times with the time of connection to detect replayed events.
  connection.sendEvent({ event: 'welcome', data: { node: name, clientId: connection.clientId, at: connection.clientInfo.connectedAt }, priority: EventPriority.CRITICAL })
  // The list includes users that are reconnecting: they have caused no `sse:leave`, and will cause no `sse:join`.
  const { users } = await app.sse.presence(ROOM)
  connection.sendEvent({ event: 'present', data: users.map(({ userId }) => userId) })
  connection.sendEvent({ event: 'nodes', data: nodes() })
})

await answerRoutes(app)
await clientRoute(app)

app.post<{ Body: Static<typeof Saying> }>('/say', { schema: { body: Saying } }, async request => {
  const { id } = await app.sse.broadcastToSubscriptions({ event: 'said', data: { ...request.body, node: name, at: Date.now() } }, [ROOM])
  return { id, node: name }
})

// Any node can receive the request. The supervisor kills the named node, and starts it again.
app.post<{ Params: Static<typeof Victim> }>('/nodes/:name/kill', { schema: { params: Victim } }, async (request, reply) => {
  process.send!({ kill: request.params.name })
  return reply.code(202).send({ killed: request.params.name })
})

app.get('/health', async (request, reply) => {
  const { status, since } = app.sse.health()
  return reply.code(status === 'up' ? 200 : 503).send({ node: name, status, since })
})

await app.register(fastifyStatic, { root: [new URL('public', import.meta.url), new URL('../public', import.meta.url)].map(url => fileURLToPath(url)) })

// Each node numbers its own events. Clients receive the events of both nodes, and detect a lost event by a missing number.
const run = randomBytes(4).toString('hex')
let seq = 0
const ticking = setInterval(() => {
  app.sse.broadcastToSubscriptions({ event: 'tick', data: { node: name, run, seq: ++seq, at: Date.now() } }, ['ticks']).catch(() => {
    // The event was not logged, so its number is used again.
    seq--
  })
  publishNodes()
}, TICK_MS)

app.addHook('preClose', async () => { clearInterval(ticking) })

// A killed node is missed by the others after some heartbeats. The supervisor knows it at once.
let running: readonly string[] | null = null
process.on('message', (message: { running: readonly string[] }) => {
  running = message.running
  publishNodes()
})

/** The nodes as this one knows them. */
function nodes () {
  return app.sse.clusterStats().nodes.filter(node => node.name === null || running === null || running.includes(node.name))
}

/** Sends the nodes to the clients of this node. */
function publishNodes (): void {
  app.sse.broadcastEvent({ event: 'nodes', data: nodes(), key: 'nodes' }, { local: true }).catch(() => {})
}

process.once('SIGTERM', () => { app.close().then(() => process.exit()) })
// A terminal sends SIGINT to all processes. The supervisor ends its nodes.
process.on('SIGINT', () => {})

await app.listen({ host: '127.0.0.1', port: 0 })
process.send!({ port: (app.server.address() as AddressInfo).port })
