import Fastify from 'fastify'
import ssePlugin from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'

// A node of an application with many, as README has it: a stream, a route that publishes, a health check, a page.

const redis = process.argv[2]!

const PAGE = `<!doctype html>
<link rel="icon" href="data:,">
<script>
  const seen = []
  let opened = 0
  let refused = 0
  const source = new EventSource('/sse')
  source.addEventListener('open', () => opened++)
  source.addEventListener('n', event => seen.push(event.data))
  source.addEventListener('error', () => { if (source.readyState === EventSource.CLOSED) refused++ })
</script>`

const app = Fastify()
await app.register(ssePlugin, { drainMs: 1_000, keepAliveIntervalMs: 500, broker: redisStreamsBroker({ client: redis, startTimeoutMs: 30_000 }) })
app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: [`topic:${(request.query as { topic?: string }).topic ?? '*'}`] }) })
app.post('/publish', async request => {
  const { text, topic } = request.body as { text: string, topic: number }
  return await app.sse.broadcastEvent({ event: 'n', data: text }, { subscriptionIds: [`topic:${topic}`] })
})
app.get('/', async (request, reply) => reply.type('text/html').send(PAGE))
app.get('/health', async (request, reply) => {
  const { status, since } = app.sse.health()
  return reply.code(status === 'up' ? 200 : 503).send({ status, since })
})

// Whoever started it is gone: so is it.
process.once('disconnect', () => process.exit())
process.once('SIGTERM', async () => {
  await app.close()
  process.disconnect()
})

// Room for all clients of another node at once: who finds none tries again seconds later.
await app.listen({ port: Number(process.env['PORT']), host: '127.0.0.1', backlog: 4_096 })
process.send!('listening')
