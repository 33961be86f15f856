import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { startNode, type TestNode } from '../../lib/testing/index.js'
import { openURL } from '../helpers/app.js'
import { buildNode } from '../helpers/node.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { told } from '../helpers/runs.js'
import { until } from '../helpers/wait.js'

// Two processes start the same runs at random instants, while they and Redis are frozen again and again. What was written is seen
// in Redis itself. For more runs: RUN_STARTS=1000 TAP_TIMEOUT=3000.

const RUNS = Number(process.env['RUN_STARTS'] ?? 60)
const AT_ONCE = 10
const MAX_FREEZE_MS = 1_800
const isJoined = (id: string): boolean => Number(id) % 2 === 0

interface Start { id: string, generation: number, started: boolean, end?: { status: string, events: number } }
async function ask<T> (node: TestNode, path: string): Promise<T> {
  return await (await fetch(node.url + path)).json() as T
}

interface Written { key: string, generation?: string, status: string }

/** The starts and ends of runs, as Redis executes them. */
function monitor (t: Test, server: RedisServer): Written[] {
  const written: Written[] = []
  let text = ''
  const socket = connect(server.port, '127.0.0.1').setEncoding('utf8').on('data', part => {
    text += part
    const lines = text.split('\n')
    text = lines.pop()!
    for (const line of lines) {
      if (!/ lua\] "HSET" /.test(line)) continue
      const [key, ...fields] = Array.from(line.matchAll(/"((?:[^"\\]|\\.)*)"/g), ([, word]) => word!).slice(1)
      const { generation, status } = Object.fromEntries(fields.flatMap((field, n) => n % 2 === 0 ? [[field, fields[n + 1]!]] : []))
      if (status !== undefined) written.push({ key: key!, status, ...(generation !== undefined && { generation }) })
    }
  })
  socket.write('MONITOR\r\n')
  t.teardown(() => socket.destroy())
  return written
}

/** Freezes a node or Redis for a random time, again and again, until the test is over. */
function freeze (nodes: readonly TestNode[], server: RedisServer): { counts: { nodes: number, redis: number }, stop (): Promise<void> } {
  const counts = { nodes: 0, redis: 0 }
  const over = new AbortController()
  const frozen = (async () => {
    while (!over.signal.aborted) {
      await sleep(Math.random() * 1_000)
      const node = nodes[Math.floor(Math.random() * 3)]
      if (node === undefined) server.signal('SIGSTOP')
      else node.freeze()
      await sleep(Math.random() * MAX_FREEZE_MS)
      if (node === undefined) server.signal('SIGCONT')
      else node.thaw()
      counts[node === undefined ? 'redis' : 'nodes']++
    }
  })()
  return {
    counts,
    async stop () {
      over.abort()
      await frozen
    }
  }
}

t.test('two processes start the same runs at random instants', { skip: withoutRedis, timeout: 60_000 + RUNS * 5_000 }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const written = monitor(t, server)
  const main = buildNode(t, 'test/helpers/starts-node.ts')
  const nodes = await Promise.all(['a', 'b'].map(name => startNode(main, { test: t, args: [server.url, name], execArgv: [], timeoutMs: 60_000 })))
  const freezing = freeze(nodes, server)
  t.teardown(() => freezing.stop())

  let rejected = 0
  /** What the readers have received, by run and id of the event. */
  const received = new Map<string, string>()
  const differing: string[] = []
  /** By source call: the generations in whose events it appears. By generation: the source calls. */
  const generationsOf = new Map<string, Set<string>>()
  const callsOf = new Map<string, Set<string>>()
  const add = (map: Map<string, Set<string>>, key: string, value: string) => map.set(key, (map.get(key) ?? new Set()).add(value))

  async function startRun (id: string, node: TestNode): Promise<void> {
    await sleep(Math.random() * 150)
    const response = await fetch(`${node.url}/runs/${id}?ifFinished=${isJoined(id) ? 'join' : 'restart'}`, { method: 'POST' })
    if (!response.ok) rejected++
    await response.body!.cancel()
  }

  /** Reads a run on a node to its end. A stream that ends before is read again, as an EventSource does. */
  async function read (id: string, node: TestNode): Promise<void> {
    for (let lastEventId: string | null = null; ;) {
      const stream = await openURL(t, `${node.url}/runs/${id}`, { lastEventId, timeoutMs: 60_000 })
      if (stream.status === 204) return
      if (stream.status !== 200) {
        await sleep(50)
        continue
      }
      await stream.ended
      for (const [eventId, event, data] of told(stream)) {
        if (event === 'sse:gap') continue
        const [key, content] = [`${id} ${eventId}`, `${event} ${data}`]
        const known = received.get(key) ?? content
        if (known !== content) differing.push(`${key}: ${known}, ${content}`)
        received.set(key, content)
        if (event !== 'message') continue
        const [generation, call] = [`${id} ${eventId.slice(0, eventId.indexOf('.'))}`, data.split(' ')[0]!]
        add(generationsOf, call, generation)
        add(callsOf, generation, call)
      }
      if (stream.named('sse:end').length > 0) return
      lastEventId = stream.lastEventId
    }
  }

  for (let first = 0; first < RUNS; first += AT_ONCE) {
    const ids = Array.from({ length: Math.min(AT_ONCE, RUNS - first) }, (_, n) => String(first + n))
    await Promise.all(ids.map(async id => {
      await Promise.all(nodes.flatMap(node => [startRun(id, node), startRun(id, node), sleep(Math.random() * 200).then(() => read(id, node))]))
      await until(async () => (await ask<{ status: string }>(nodes[0]!, `/status/${id}`)).status !== 'running', 60_000, `run ${id} ends`)
      await Promise.all(nodes.map(node => read(id, node)))
    }))
  }
  await freezing.stop()
  const records = await until(async () => {
    const records = await Promise.all(nodes.map(node => ask<{ calls: number, starts: Start[] }>(node, '/record')))
    return records.every(({ starts }) => starts.every(({ end }) => end !== undefined)) ? records : null
  }, 60_000, '`run.finished` of all starts')

  // In Redis: each start is followed by one end, then the next start.
  const running = new Map<string, string>()
  const faults: string[] = []
  for (const { key, generation, status } of written) {
    if (generation !== undefined) {
      if (running.has(key)) faults.push(`${key}: started twice`)
      running.set(key, generation)
    } else if (!running.delete(key)) faults.push(`${key}: ended twice, with ${status}`)
  }
  t.same(faults, [], 'one end of each start')
  t.same([...running], [], 'nothing is running')

  const generations = written.filter(({ generation }) => generation !== undefined).length
  const starts = records.flatMap(({ starts }) => starts)
  const started = starts.filter(({ started }) => started).map(({ id, generation }) => `${id} ${generation}`)
  const calls = records.reduce((sum, { calls }) => sum + calls, 0)
  t.equal(new Set(started).size, started.length, 'a generation is started once')
  t.equal(calls, started.length, 'its source is called once')
  t.ok(generations - calls <= rejected, `without a source only if the start was rejected: ${generations} generations, ${calls} calls, ${rejected} rejected`)
  t.same([...generationsOf].filter(([, generations]) => generations.size > 1), [], 'what a source yields is in one generation')
  t.same([...callsOf].filter(([, calls]) => calls.size > 1), [], 'and a generation has the items of one source')
  t.same(differing, [], 'all readers receive the same')
  t.ok(callsOf.size > RUNS / 2)
  const joined = new Set(starts.filter(({ id }) => isJoined(id)).map(({ id, generation }) => `${id} ${generation}`))
  t.equal(joined.size, new Set([...joined].map(start => start.split(' ')[0])).size, "one generation with ifFinished: 'join'")

  const ends: Record<string, number> = {}
  for (const { status, generation } of written) if (generation === undefined) ends[status] = (ends[status] ?? 0) + 1
  for (const [what, count] of Object.entries({ runs: RUNS, 'starts asked for': RUNS * 4, rejected, generations, 'source calls': calls, ...ends, 'node frozen': freezing.counts.nodes, 'Redis frozen': freezing.counts.redis })) t.comment(`${what}: ${count}`)
})
