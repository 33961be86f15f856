// A node that starts runs when it is told to, and keeps a record of it. A process of its own, for `test/faults/starts.test.ts`.
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import ssePlugin from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'

const [url, name] = process.argv.slice(2) as [string, string]
const app = Fastify()
await app.register(ssePlugin, {
  broker: redisStreamsBroker({ client: url, keyPrefix: 'starts', replyTimeoutMs: 500, startTimeoutMs: 30_000 }),
  runs: { leaseMs: 1_000, max: 0 },
  retryMs: 100
})
const owner = { ownerId: null }
let calls = 0
const starts: { id: string, generation: number, started: boolean, end?: object }[] = []

app.post('/runs/:id', async (request, reply) => {
  const { params: { id }, query: { ifFinished } } = request as { params: { id: string }, query: { ifFinished: 'join' | 'restart' } }
  const { run, started } = await app.sse.startRun(id, async function * () {
    const call = `${name}${++calls}`
    for (let n = 1; n <= 5; n++) {
      yield `${call} ${n}`
      await sleep(Math.random() * 40)
    }
  }, { ...owner, ifFinished })
  const start: typeof starts[number] = { id, generation: run.state.generation, started }
  starts.push(start)
  run.finished.then(end => { start.end = end })
  return reply.send({ started })
})
app.get('/runs/:id', async (request, reply) => reply.sse(await app.sse.getRun((request.params as { id: string }).id, owner)))
app.get('/status/:id', async request => ({ status: (await app.sse.getRun((request.params as { id: string }).id, owner))?.status ?? null }))
app.get('/record', async () => ({ calls, starts }))
await app.listen({ port: Number(process.env['PORT']), host: '127.0.0.1' })
process.send!('listening')
