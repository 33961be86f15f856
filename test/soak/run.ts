import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import Fastify from 'fastify'
import { Redis } from 'ioredis'
import ssePlugin, { memoryBroker, type EventPriority, type SSEError } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { collect } from '../helpers/heap.js'
import { RedisServer } from '../helpers/redis.js'
import { onTrouble } from '../helpers/trouble.js'
import { BULK, BULK_BYTES, COUNTED, HISTORY_BYTES, laneOf, ROOMS, type Base, type FromClients, type Tally, type ToClients } from './protocol.js'

// npm run soak -- --minutes 20 [--clients 1000] [--redis]
// One server, its clients in two processes of their own, and every misfortune there is; then a verdict.

const { values } = parseArgs({ options: { minutes: { type: 'string', default: '20' }, clients: { type: 'string', default: '1000' }, redis: { type: 'boolean', default: false } } })
const minutes = Number(values.minutes)
const clients = Number(values.clients)
const bulkClients = Math.ceil(clients / 50)
const EVENTS_PER_SECOND = 50

const trouble: string[] = []
onTrouble((what, event) => { trouble.push(`${event}: ${what instanceof Error ? what.stack : what}`) })

// --- The server ---

const redis = values.redis ? await RedisServer.start('--appendonly', 'yes') : null
const app = Fastify({ logger: { level: 'fatal' }, forceCloseConnections: true })
await app.register(ssePlugin, {
  broker: redis === null ? memoryBroker() : redisStreamsBroker({ client: new Redis(redis.port, { lazyConnect: true }) }),
  authHandler: async ({ query }) => {
    if (query['slow'] !== undefined) await sleep(Math.random() * 200)
    return query['user'] as string | undefined ?? null
  },
  keepAliveIntervalMs: 5000,
  stallTimeoutMs: 10_000,
  maxConnectionAgeMs: 120_000,
  retryMs: 500,
  outboxBytes: 256 * 1024,
  history: { maxEvents: 20_000, maxAgeMs: 3_600_000, maxBytes: HISTORY_BYTES },
  drainMs: 3000
})
const counters: Base = {}
app.get('/sse', async (request, reply) => {
  const { topics = '', base } = request.query as { topics?: string, base?: string }
  const connection = await reply.sse({ subscriptions: topics === '' ? [] : topics.split(',') })
  if (base !== undefined) connection.sendEvent({ event: 'base', data: counters })
})
app.get('/short', (request, reply) => reply.sse(['a', 'b']))
app.post('/sse', async (request, reply) => { await reply.sse() })
await app.listen({ host: '127.0.0.1', port: 0 })
const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`

// --- What is published ---

let publishing = true
let published = 0
let rejected = 0
const attempts: Base = {}

async function publish (topic: string, priority: EventPriority, size: number): Promise<void> {
  const lane = laneOf(topic, priority)
  // One at a time in each sequence, so that a place is known to be published before the next one says so.
  const n = attempts[lane] = (attempts[lane] ?? 0) + 1
  const previous = counters[lane] ?? 0
  try {
    await app.sse.broadcastEvent({ event: 'counted', data: { topic, priority, n, previous, filling: 'x'.repeat(size) }, priority }, { subscriptionIds: [topic] })
    counters[lane] = n
    published++
  } catch {
    rejected++
  }
}

const queues = new Map<string, Promise<void>>()
function enqueue (topic: string, priority: EventPriority, size: number): void {
  const lane = laneOf(topic, priority)
  queues.set(lane, (queues.get(lane) ?? Promise.resolve()).then(() => publish(topic, priority, size)))
}

let tick = 0
const publisher = setInterval(() => {
  if (!publishing) return
  tick++
  const priority = COUNTED[tick % 5 === 0 ? 1 : 0]!
  enqueue(tick % 50 === 0 ? 'everyone' : `room:${Math.floor(Math.random() * ROOMS)}`, priority, 50 + Math.random() * 300)
  if (tick % 25 === 0) enqueue(BULK, 1, BULK_BYTES)
  if (tick % EVENTS_PER_SECOND === 0) for (const crowd of crowds) crowd.tell({ do: 'published', counters })
  if (tick % 10 === 0) app.sse.broadcastEvent({ event: 'typing', data: 'x' }, { subscriptionIds: [`room:${tick % ROOMS}`], ephemeral: true }).catch(() => {})
  if (tick % 77 === 0 && redis === null) app.sse.broadcastEvent({ event: 'odd', data: 1 }, { filter: () => { throw new RangeError('a filter that throws') } }).catch(() => {})
}, 1000 / EVENTS_PER_SECOND)

// --- The clients ---

const empty: Tally = { clients: 0, received: 0, lost: 0, duplicates: 0, gapsProvoked: 0, gaps: 0, streams: 0, refused: 0, behind: Infinity, firstFault: '' }
const CLIENTS = fileURLToPath(new URL('clients.ts', import.meta.url))
class Crowd {
  tally = empty
  readonly #process: ChildProcess

  constructor (count: number, role: 'rooms' | 'bulk') {
    this.#process = fork(CLIENTS, [url, String(count), role])
    this.#process.on('message', (message: FromClients) => { this.tally = message.tally })
  }

  tell (message: ToClients): void {
    this.#process.send(message)
  }

  signal (signal: NodeJS.Signals): void {
    this.#process.kill(signal)
  }

  async leave (): Promise<void> {
    this.tell({ do: 'leave' })
    await once(this.#process, 'exit')
  }
}
const resources = () => process.getActiveResourcesInfo().reduce<Record<string, number>>((sum, name) => ({ ...sum, [name]: (sum[name] ?? 0) + 1 }), {})
const before = resources()
const crowds = [new Crowd(clients, 'rooms'), new Crowd(bulkClients, 'bulk')] as const
process.once('exit', () => { for (const crowd of crowds) crowd.signal('SIGKILL') })
const sum = (name: Exclude<keyof Tally, 'firstFault'>) => crowds.reduce((total, { tally }) => total + tally[name], 0)

// --- Misfortune on this side ---

let freezes = 0
let outages = 0
async function misfortune (): Promise<void> {
  const [, bulk] = crowds
  const connections = [...app.sse.connections()]
  const some = connections[Math.floor(Math.random() * connections.length)]
  try {
    if (some !== undefined) {
      if (Math.random() < 0.5) await app.sse.closeConnection(some.clientId, 'kicked')
      else if (some.userId !== null) await app.sse.disconnectUser(some.userId)
    }
  } catch (error) {
    // Redis has not come back from its last outage yet.
    if (redis === null || (error as SSEError).code !== 'SSE_ERR_BROKER_UNAVAILABLE') throw error
  }
  if (Math.random() < 0.15) {
    freezes++
    bulk.signal('SIGSTOP')
    await sleep(2000 + Math.random() * 20_000)
    bulk.signal('SIGCONT')
  }
  if (redis !== null && Math.random() < 0.1) {
    outages++
    redis.signal('SIGSTOP')
    await sleep(500 + Math.random() * 4000)
    redis.signal('SIGCONT')
  }
}

// --- Watching ---

const began = Date.now()
const heap: { minute: number, megabytes: number }[] = []
let peakRss = 0
let peakQueued = 0
function line (): void {
  const { lagging, queuedBytes, closed } = app.sse.stats()
  const megabytes = collect() / 2 ** 20
  const rss = process.memoryUsage.rss() / 2 ** 20
  peakRss = Math.max(peakRss, rss)
  peakQueued = Math.max(peakQueued, queuedBytes)
  const elapsed = Date.now() - began
  if (publishing) heap.push({ minute: elapsed / 60_000, megabytes })
  const { Timeout = 0, TCPSocketWrap = 0, TCPServerWrap = 0 } = resources()
  console.log(`${(elapsed / 60_000).toFixed(1)} min: ${sum('clients')} streams (${sum('streams')} opened), ${published} published, ${rejected} rejected, ${sum('received')} received, ${sum('lost')} lost, ${sum('duplicates')} twice, ${sum('gaps')}+${sum('gapsProvoked')} gaps, heap ${megabytes.toFixed(1)} MB, rss ${rss.toFixed(0)} MB, ${lagging} lag, ${(queuedBytes / 1024).toFixed(0)} KB wait, ${TCPSocketWrap + TCPServerWrap} sockets, ${Timeout} timers, ${freezes} freezes, ${outages} outages, ended ${JSON.stringify(closed)}`)
}

/** Megabytes a minute, by least squares, over the second half: in the first the log fills. */
function slope (): number {
  const late = heap.slice(Math.floor(heap.length / 2))
  const count = late.length
  if (count < 2) return 0
  const x = late.reduce((total, { minute }) => total + minute, 0) / count
  const y = late.reduce((total, { megabytes }) => total + megabytes, 0) / count
  return late.reduce((total, { minute, megabytes }) => total + (minute - x) * (megabytes - y), 0) / late.reduce((total, { minute }) => total + (minute - x) ** 2, 0)
}

const watch = setInterval(line, 10_000)
while (Date.now() - began < minutes * 60_000) {
  await sleep(2000)
  // Thrown from here it would only end this loop: what handles uncaught exceptions keeps the process alive.
  await misfortune().catch((error: Error) => trouble.push(`misfortune: ${error.stack ?? error}`))
}

// --- The end: all is quiet, and everybody must have everything ---

for (const crowd of crowds) crowd.tell({ do: 'churn', on: false })
publishing = false
await Promise.all(queues.values())
for (const crowd of crowds) crowd.tell({ do: 'final', counters })
const deadline = Date.now() + 60_000
await sleep(2500)
while (sum('behind') > 0 && Date.now() < deadline) await sleep(500)
line()
const behind = sum('behind')
clearInterval(watch)
clearInterval(publisher)
await Promise.all(crowds.map(crowd => crowd.leave()))
for (let i = 0; i < 100 && app.sse.connectionCount > 0; i++) await sleep(50)
await sleep(200)
const left = resources()
const { connections, users, subscriptions, queuedBytes } = app.sse.stats()
await app.close()
await redis?.stop()

const rate = slope()
const faults = [
  sum('lost') > 0 && `${sum('lost')} events lost`,
  sum('duplicates') > 0 && `${sum('duplicates')} events twice`,
  sum('gaps') > 0 && redis === null && `${sum('gaps')} gaps that nobody provoked`,
  behind > 0 && `${behind} clients do not have everything`,
  connections + users + subscriptions + queuedBytes > 0 && `left behind: ${JSON.stringify({ connections, users, subscriptions, queuedBytes })}`,
  (left['TCPSocketWrap'] ?? 0) > (before['TCPSocketWrap'] ?? 0) && `sockets: ${JSON.stringify(left)}, before ${JSON.stringify(before)}`,
  (left['Timeout'] ?? 0) > (before['Timeout'] ?? 0) && `timers: ${JSON.stringify(left)}, before ${JSON.stringify(before)}`,
  minutes >= 10 && rate > 0.5 && `the heap grows by ${rate.toFixed(2)} MB a minute`,
  ...trouble
].filter(fault => fault !== false)
console.log(`first fault seen by a client: ${crowds.map(({ tally }) => tally.firstFault || 'none').join(' | ')}`)
console.log(`heap slope ${rate.toFixed(3)} MB a minute, peak rss ${peakRss.toFixed(0)} MB, at most ${(peakQueued / 1024).toFixed(0)} KB waited, resources ${JSON.stringify(left)}, before ${JSON.stringify(before)}`)
console.log(faults.length === 0 ? `VERDICT: sound. ${minutes} minutes, ${published} published, ${rejected} rejected, ${sum('received')} received, 0 lost, 0 twice, ${sum('gaps')} gaps beside ${sum('gapsProvoked')} provoked` : `VERDICT: ${faults.length} faults\n${faults.join('\n')}`)
process.exit(faults.length === 0 ? 0 : 1)
