import { createServer, type Socket } from 'node:net'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import Fastify, { type FastifyInstance } from 'fastify'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { parseCursor } from '../../lib/log/cursor.js'
import ssePlugin, { EventPriority, type SSEError } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { listen } from '../helpers/app.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { SSEClient, type Block } from '../helpers/sse.js'
import { until } from '../helpers/wait.js'

// Two nodes, 200 clients, 500 events a second, and a Redis to which things happen. What a publisher was told holds: an
// acknowledged event arrives once and in order at everybody it is for, or they are told that there is a gap.

const NODES = 2
const CLIENTS = 200
const TOPICS = 10
const EVENTS_PER_SECOND = 500
const RECOVERY_MS = 2_000
const PUBLISH_TIMEOUT_MS = 2_000

/** Where an event stands: lives of the log follow one another, and so do the events of each. */
interface Place {
  epoch: number
  seq: number
}

function placeOf (id: string): Place {
  const { epoch, lanes } = parseCursor(id)!
  return { epoch: parseInt(epoch, 36), seq: lanes[EventPriority.NORMAL]! }
}

function compare (a: Place, b: Place): number {
  return a.epoch - b.epoch || a.seq - b.seq
}

interface Acknowledged extends Place {
  n: number
  topic: number
}

/** A client that keeps no more of what it reads than is needed to judge it. */
class Witness {
  readonly client: SSEClient
  readonly topic: number
  readonly received: { n: number, node: number, place: Place, gapsBefore: number }[] = []
  readonly gaps: string[] = []

  constructor (url: string, topic: number) {
    this.topic = topic
    this.client = new SSEClient(`${url}/sse?topic=${topic}`)
    this.client.onBlock = block => this.#take(block)
  }

  #take ({ event, data, id }: Block): undefined {
    this.client.blocks.length = 0
    if (event === 'sse:gap') this.gaps.push(JSON.parse(data!).reason)
    if (event !== 'n') return
    const { n, node } = JSON.parse(data!) as { n: number, node: number }
    this.received.push({ n, node, place: placeOf(id!), gapsBefore: this.gaps.length })
  }

  /** What is wrong with it: nothing twice, in order, ids that grow, and of what was acknowledged all but what gaps stand for. */
  faults (acknowledged: readonly Acknowledged[]): string[] {
    const faults: string[] = []
    const seen = new Set<number>()
    const lastOf = new Map<number, number>()
    let last: Place = { epoch: 0, seq: 0 }
    for (const { n, node, place } of this.received) {
      if (seen.has(n)) faults.push(`${n} twice`)
      if ((lastOf.get(node) ?? 0) > n) faults.push(`${n} after ${lastOf.get(node)}`)
      if (compare(place, last) <= 0) faults.push(`id of ${n} does not grow`)
      seen.add(n)
      lastOf.set(node, n)
      last = place
    }
    let next = 0
    for (const event of acknowledged) {
      if (event.topic !== this.topic) continue
      while (next < this.received.length && compare(this.received[next]!.place, event) < 0) next++
      if (seen.has(event.n)) continue
      // Missing: a gap must stand between what was received before it and after it.
      const before = this.received[next - 1]?.gapsBefore ?? 0
      const after = this.received[next]?.gapsBefore ?? this.gaps.length
      if (after === before) faults.push(`${event.n} lost without a gap`)
    }
    return faults
  }

  get duplicates (): number {
    return this.received.length - new Set(this.received.map(({ n }) => n)).size
  }
}

/** Publishes at a steady rate, on the nodes in turn, whatever happens. */
class Publisher {
  readonly acknowledged: Acknowledged[] = []
  readonly rejected: Record<string, number> = {}
  /** Longest time that a publish was left without an answer. */
  slowestMs = 0
  /** Of each node, when its last publish was acknowledged. */
  readonly lastAcknowledgedAt = new Array<number>(NODES).fill(0)
  readonly #apps: readonly FastifyInstance[]
  readonly #startedAt = performance.now()
  readonly #timer = setInterval(() => this.#tick(), 10)
  readonly #open = new Set<Promise<void>>()
  #n = 0

  constructor (apps: readonly FastifyInstance[]) {
    this.#apps = apps
  }

  #tick (): void {
    const due = (performance.now() - this.#startedAt) / 1000 * EVENTS_PER_SECOND
    while (this.#n < due) {
      const publish = this.#publish(++this.#n).finally(() => this.#open.delete(publish))
      this.#open.add(publish)
    }
  }

  async #publish (n: number): Promise<void> {
    const node = n % NODES
    const topic = Math.floor(n / NODES) % TOPICS
    const at = performance.now()
    try {
      const { id } = await this.#apps[node]!.sse.broadcastEvent({ event: 'n', data: { n, node } }, { subscriptionIds: [`topic:${topic}`] })
      this.acknowledged.push({ n, topic, ...placeOf(id!) })
      this.lastAcknowledgedAt[node] = performance.now()
    } catch (error) {
      const { code } = error as SSEError
      this.rejected[code] = (this.rejected[code] ?? 0) + 1
    }
    this.slowestMs = Math.max(this.slowestMs, performance.now() - at)
  }

  /** Waits until each node has had an event acknowledged that was after `since`. */
  async acknowledgedAfter (since: number): Promise<void> {
    await until(() => this.lastAcknowledgedAt.every(at => at > since), undefined, 'publishing goes on')
  }

  async stop (): Promise<void> {
    clearInterval(this.#timer)
    await Promise.all(this.#open)
    this.acknowledged.sort(compare)
  }
}

interface World {
  server: RedisServer
  apps: FastifyInstance[]
  publisher: Publisher
  witnesses: Witness[]
}

interface Outcome {
  /** When Redis was as before again, by `performance.now()`. */
  backAt: number
}

const table: string[][] = [['fault', 'acknowledged', 'rejected', 'received', 'duplicates', 'gaps per client', 'recovery ms', 'slowest publish ms']]

async function node (t: Test, server: RedisServer): Promise<FastifyInstance> {
  const app = Fastify()
  await app.register(ssePlugin, { drainMs: 500, keepAliveIntervalMs: 500, broker: redisStreamsBroker({ client: server.url, publishTimeoutMs: PUBLISH_TIMEOUT_MS }) })
  app.get('/sse', { sse: true }, async (request, reply) => {
    await reply.sse({ subscriptions: [`topic:${(request.query as { topic: string }).topic}`] })
  })
  t.teardown(() => app.close())
  return app
}

/** Lets something happen to Redis while events flow, and judges what the clients have received. */
async function fault (t: Test, name: string, args: readonly string[], gaps: { least: number, most: number }, happen: (world: World) => Promise<Outcome>): Promise<void> {
  await t.test(name, { skip: withoutRedis, timeout: 60_000 }, async t => {
    const server = await RedisServer.start(...args)
    t.teardown(() => server.stop())
    const apps = await Promise.all(Array.from({ length: NODES }, () => node(t, server)))
    const urls = await Promise.all(apps.map(listen))
    const witnesses = Array.from({ length: CLIENTS }, (_, i) => new Witness(urls[i % NODES]!, Math.floor(i / NODES) % TOPICS))
    t.teardown(() => { for (const { client } of witnesses) client.close() })
    await until(() => apps.reduce((sum, { sse }) => sum + sse.connectionCount, 0) === CLIENTS && witnesses.every(({ client }) => client.isStream), undefined, 'all clients are connected')
    const publisher = new Publisher(apps)
    t.teardown(() => publisher.stop())
    const world: World = { server, apps, publisher, witnesses }
    await publisher.acknowledgedAfter(performance.now() + 500)
    const stalls = monitorEventLoopDelay({ resolution: 10 })
    stalls.enable()
    const { backAt } = await happen(world)
    await publisher.acknowledgedAfter(backAt)
    const recoveryMs = Math.max(...publisher.lastAcknowledgedAt) - backAt
    // What this machine itself stood still, in each of a handful of steps, is not Redis's.
    const stalledMs = stalls.max / 1e6 * 4
    stalls.disable()
    await publisher.acknowledgedAfter(performance.now() + 500)
    await publisher.stop()

    const { acknowledged, rejected, slowestMs } = publisher
    const ends = Array.from({ length: TOPICS }, (_, topic) => acknowledged.findLast(event => event.topic === topic)!)
    await until(() => witnesses.every(({ received, topic }) => received.length > 0 && compare(received.at(-1)!.place, ends[topic]!) >= 0), undefined, 'everybody has come to the end')
    const faults = witnesses.flatMap(witness => witness.faults(acknowledged))
    t.strictSame(faults.slice(0, 10), [], 'nothing twice, nothing out of order, nothing lost without a gap')
    t.ok(apps.every(({ sse }) => sse.health().status === 'up'), 'all is well again')
    t.ok(witnesses.every(({ client }) => !client.closed && !client.ended), 'connected clients stay connected')
    const counts = witnesses.map(witness => witness.gaps.length)
    t.ok(Math.min(...counts) >= gaps.least && Math.max(...counts) <= gaps.most, `${Math.min(...counts)} to ${Math.max(...counts)} gaps`)
    t.ok(recoveryMs <= RECOVERY_MS + stalledMs, `recovery within ${RECOVERY_MS} ms`)
    t.strictSame(Object.keys(rejected).filter(code => code !== 'SSE_ERR_BROKER_UNAVAILABLE'), [], 'rejected as unavailable')
    t.ok(witnesses.reduce((sum, { received }) => sum + received.length, 0) > acknowledged.length * CLIENTS / TOPICS * 0.5, 'gaps stand for little')
    t.ok(slowestMs < PUBLISH_TIMEOUT_MS + 1_000 + stalledMs, 'every publish is answered in time')
    table.push([name, String(acknowledged.length), String(rejected['SSE_ERR_BROKER_UNAVAILABLE'] ?? 0), String(witnesses.reduce((sum, { received }) => sum + received.length, 0)), String(witnesses.reduce((sum, { duplicates }) => sum + duplicates, 0)), `${Math.min(...counts)}–${Math.max(...counts)}`, recoveryMs.toFixed(0), slowestMs.toFixed(0)])
  })
}

/** Counts who knocks where Redis was, for a while. */
async function knocks (port: number, ms: number): Promise<number> {
  let count = 0
  const server = createServer((socket: Socket) => {
    count++
    socket.destroy()
  })
  await new Promise<void>((resolve, reject) => { server.once('error', reject).listen(port, '127.0.0.1', resolve) })
  const until = performance.now() + ms
  while (performance.now() < until) await new Promise(resolve => setTimeout(resolve, 50))
  await new Promise(resolve => server.close(resolve))
  return count
}

const NO_GAP = { least: 0, most: 0 }
const ONE_GAP = { least: 1, most: 1 }

t.test('what Redis goes through', { timeout: 600_000 }, async t => {
  await fault(t, 'kill -9 and restart, nothing on disk', [], ONE_GAP, async ({ server, publisher, apps }) => {
    await server.kill()
    const { rejected } = publisher
    const count = await knocks(server.port, 2_000)
    t.ok(count > 0 && count <= NODES * 2 * 10, `no retry storm: ${count} attempts of ${NODES * 2} connections in 2 s`)
    t.ok(rejected['SSE_ERR_BROKER_UNAVAILABLE']! > 100, 'publishing is rejected meanwhile')
    for (const { sse } of apps) {
      t.match(sse.health(), { status: 'degraded', reason: /./ })
      t.equal((await sse.broadcastEvent({ event: 'local', data: 1 }, { local: true })).delivered, CLIENTS / NODES, 'what needs no log goes on')
    }
    await server.run()
    return { backAt: performance.now() }
  })

  await fault(t, 'kill -9 and restart, append-only file', ['--appendonly', 'yes'], NO_GAP, async ({ server }) => {
    await server.kill()
    await server.run()
    return { backAt: performance.now() }
  })

  await fault(t, 'kill -9 and restart from an older snapshot', [], ONE_GAP, async ({ server, publisher }) => {
    await server.ask('SAVE')
    await publisher.acknowledgedAfter(performance.now() + 300)
    await server.kill()
    await server.run()
    return { backAt: performance.now() }
  })

  await fault(t, 'frozen for 5 s', [], NO_GAP, async ({ server, publisher, apps }) => {
    const before = await server.info('total_connections_received')
    const frozenAt = performance.now()
    server.signal('SIGSTOP')
    await until(() => publisher.rejected['SSE_ERR_BROKER_UNAVAILABLE']! > 500, undefined, 'it is noticed')
    await until(() => performance.now() - frozenAt >= 5_000)
    for (const { sse } of apps) t.match(sse.health(), { status: 'degraded', reason: /did not answer/ })
    server.signal('SIGCONT')
    const backAt = performance.now()
    await publisher.acknowledgedAfter(backAt)
    const count = await server.info('total_connections_received') - before
    t.ok(count <= NODES * 2 * 5, `no retry storm: ${count} connections`)
    return { backAt }
  })

  await fault(t, 'FLUSHALL', [], ONE_GAP, async ({ server }) => {
    await server.ask('FLUSHALL')
    return { backAt: performance.now() }
  })

  await fault(t, 'the reader of one node is killed', [], NO_GAP, async ({ server }) => {
    const [, id] = /id=(\d+) [^\n]*cmd=xread/.exec(await server.ask('CLIENT', 'LIST'))!
    t.match(await server.ask('CLIENT', 'KILL', 'ID', id!), ':1')
    return { backAt: performance.now() }
  })

  await fault(t, 'the output buffers of all readers overflow', [], NO_GAP, async ({ server, apps }) => {
    const clients = async (which: RegExp) => Array.from((await server.ask('CLIENT', 'LIST')).matchAll(which), ([, id]) => id)
    // Each node reads events on one connection, and what nodes tell each other on another, which has little to read.
    const readers = await until(async () => {
      const ids = await clients(/\bid=(\d+) [^\n]*cmd=xread/g)
      return ids.length === 2 * NODES ? ids : null
    })
    await server.ask('CONFIG', 'SET', 'client-output-buffer-limit', 'normal 256kb 0 0')
    const big = Array.from({ length: 40 }, () => apps[0]!.sse.broadcastEvent({ event: 'big', data: 'x'.repeat(20_000) }, { subscriptionIds: ['nobody'] }))
    const gone = async () => {
      const ids = await clients(/\bid=(\d+) /g)
      return readers.filter(id => !ids.includes(id)).length >= NODES
    }
    await until(gone, undefined, 'the connections that read events are gone')
    await server.ask('CONFIG', 'SET', 'client-output-buffer-limit', 'normal 0 0 0')
    const backAt = performance.now()
    await Promise.all(big)
    return { backAt }
  })

  const widths = table[0]!.map((_, column) => Math.max(...table.map(row => row[column]!.length)))
  for (const row of table) t.comment(row.map((cell, column) => column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)).join('  '))
})

t.test('a replica is promoted', { skip: withoutRedis, timeout: 60_000 }, async t => {
  const main = await RedisServer.start()
  const replica = await RedisServer.start('--replicaof', `127.0.0.1 ${main.port}`)
  const sentinel = await main.watch()
  t.teardown(() => Promise.all([main, replica, sentinel].map(server => server.stop())))
  await until(async () => (await sentinel.ask('SENTINEL', 'REPLICAS', 'main')).includes(String(replica.port)), 30_000, 'Sentinel has found the replica')
  const client = new Redis({ sentinels: [{ host: '127.0.0.1', port: sentinel.port }], name: 'main', lazyConnect: true })
  const broker = redisStreamsBroker({ client, startTimeoutMs: 20_000 })
  t.teardown(() => broker.close())
  const delivered: string[] = []
  const gaps: string[] = []
  await broker.open({
    deliver: ({ data }) => delivered.push(data),
    gap: reason => { gaps.push(reason) },
    state: () => {}
  }, { maxEvents: 10_000, maxAgeMs: 60_000, maxBytes: 1 << 20 })
  let n = 0
  const acknowledged: string[] = []
  const publish = async () => {
    const data = String(++n)
    await broker.publish({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false })
    acknowledged.push(data)
  }
  for (let i = 0; i < 50; i++) await publish()
  const { epoch } = broker
  // What the main one has and the replica has not is lost with it.
  replica.signal('SIGSTOP')
  for (let i = 0; i < 50; i++) await publish()
  await main.kill()
  replica.signal('SIGCONT')
  await until(() => publish().then(() => true, () => false), 30_000, 'publishing goes on')
  t.not(broker.epoch, epoch)
  t.strictSame(gaps, ['epoch'])
  t.equal(broker.position, 1)
  t.strictSame(delivered, acknowledged, 'what was acknowledged had arrived')
  t.match(await broker.read({ epoch, after: 90, priority: EventPriority.NORMAL, limit: 1 }), { gap: 'epoch' })
})
