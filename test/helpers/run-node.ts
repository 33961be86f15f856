// One node with runs as a process of its own, for tests that kill or freeze it. Started by `startRunNode` (runs.ts).
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import ssePlugin from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'

const [url, keyPrefix, leaseMs] = process.argv.slice(2) as [string, string, string]
const app = Fastify()
await app.register(ssePlugin, {
  broker: redisStreamsBroker({ client: url, keyPrefix, replyTimeoutMs: 1_000, startTimeoutMs: 30_000 }),
  runs: { leaseMs: Number(leaseMs), drainMs: 200 },
  drainMs: 300,
  retryMs: 100
})
const owner = { ownerId: null }
let calls = 0
// Starts the run, or joins it: so many tokens, one each `pause` milliseconds.
app.post('/runs/:id', async request => {
  const { count = '1000000', pause = '10', grace } = request.query as { count?: string, pause?: string, grace?: string }
  const { run, started } = await app.sse.startRun((request.params as { id: string }).id, async function * () {
    calls++
    for (let n = 1; n <= Number(count); n++) {
      yield `${n}`
      await sleep(Number(pause))
    }
  }, { ...owner, ...(grace !== undefined && { onDisconnect: { graceMs: Number(grace) } }) })
  return { started, generation: run.startedAt }
})
app.get('/runs/:id', async (request, reply) => reply.sse(await app.sse.getRun((request.params as { id: string }).id, owner)))
// A page that reads a run, and keeps what it has received.
app.get('/pages/:id', async (request, reply) => reply.type('text/html').send(`<script>
  const tokens = [], controls = []
  const source = new EventSource('/runs/${(request.params as { id: string }).id}')
  source.onmessage = ({ data }) => tokens.push(data)
  for (const name of ['sse:gap', 'sse:end']) source.addEventListener(name, ({ data }) => controls.push([name, JSON.parse(data)]))
</script>`))
app.delete('/runs/:id', async request => ({ stopped: await app.sse.stopRun((request.params as { id: string }).id, owner) }))
app.get('/status/:id', async request => ({ status: (await app.sse.getRun((request.params as { id: string }).id, owner))?.status ?? null, calls }))
process.once('SIGTERM', () => app.close().then(() => process.exit()))
await app.listen({ port: Number(process.env['PORT']), host: '127.0.0.1' })
process.send!('listening')
