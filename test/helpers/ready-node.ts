import { pathToFileURL } from 'node:url'
import Fastify from 'fastify'
import ssePlugin from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'

// A node whose routes for a load balancer are those of docs/operations/shutdown.md: `sample` is that sample as a file.

const [redis, sample] = process.argv.slice(2) as [string, string]
const app = Fastify()
await app.register(ssePlugin, { drainMs: 1_000, keepAliveIntervalMs: 500, retryMs: 200, broker: redisStreamsBroker({ client: redis, startTimeoutMs: 30_000 }) })
app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
app.get('/port', async () => String(process.env['PORT']))
app.addHook('onClose', async () => { process.disconnect() })
Object.assign(globalThis, { app })
await import(pathToFileURL(sample).href)

// Whoever started it is gone: so is it.
process.once('disconnect', () => process.exit())
await app.listen({ port: Number(process.env['PORT']), host: '127.0.0.1' })
process.send!('listening')
