// One node of a cluster as a process of its own, for tests that kill or freeze it. Started by `startNode` (node-process.ts).
import Fastify from 'fastify'
import { redisStreamsBroker } from '../../lib/redis.js'
import ssePlugin from '../../lib/index.js'
import { listen } from './app.js'

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
process.send!(await listen(app))
