// One node of a cluster as a process of its own, for tests that kill or freeze it. Started by `startClusterNode` (cluster.ts).
import Fastify from 'fastify'
import { redisStreamsBroker } from '../../lib/redis.js'
import ssePlugin from '../../lib/index.js'

const [url, keyPrefix, nodeName] = process.argv.slice(2) as [string, string, string]
const app = Fastify()
await app.register(ssePlugin, {
  broker: redisStreamsBroker({ client: url, keyPrefix }),
  authHandler: ({ query }) => query['user'] as string | undefined ?? null,
  cluster: { nodeName, heartbeatIntervalMs: 200 },
  presenceEvents: { topics: ['room:*'], lingerMs: 50 }
})
app.get('/sse', { sse: true }, async (request, reply) => {
  const connection = await reply.sse({ subscriptions: ['room:1'] })
  connection.sendEvent({ event: 'welcome', data: connection.clientId })
})
await app.listen({ port: Number(process.env['PORT']), host: '127.0.0.1' })
process.send!('listening')
