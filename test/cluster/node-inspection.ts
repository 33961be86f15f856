import { performance } from 'node:perf_hooks'
import t from 'tap'
import { NodeInspection } from '../../lib/cluster/node-inspection.js'
import type { SSEConnection } from '../../lib/connections/connection.js'
import type { Statistics } from '../../lib/connections/statistics.js'
import type { Runs } from '../../lib/runs/runs.js'
import { Registry } from '../../lib/subscriptions/registry.js'
import { testClock } from '../../lib/testing/index.js'

// What a node reports about itself, however many ask.

function inspect (runs: Runs | null = null) {
  const time = testClock()
  const registry = new Registry<SSEConnection>()
  let reads = 0
  const statistics = { readInTurns: async () => ({ reads: ++reads }) } as unknown as Statistics
  return { time, registry, inspection: new NodeInspection('a', time.clock, registry, statistics, runs) }
}

t.test('an answer is returned again for a second, to all who ask', async t => {
  const { time, inspection } = inspect()
  const [first, second] = await Promise.all([inspection.read(), inspection.read()])
  t.equal(first, second)
  t.match(first, { nodeId: 'a', stats: { reads: 1 }, topics: [], runs: [], runCount: 0, memoryBytes: Number })
  await time.advance(999)
  t.equal(await inspection.read(), first)
  await time.advance(1)
  const next = await inspection.read()
  t.match(next, { stats: { reads: 2 } })
  await time.advance(999)
  t.equal(await inspection.read(), next, 'a second from then')
})

t.test('how busy the event loop was is measured since the answer before, if that was in the last ten seconds', async t => {
  // A reading is a number: the utilization between two is their distance.
  const { eventLoopUtilization } = performance
  let readings = 0
  performance.eventLoopUtilization = ((now?: { at: number }, before?: { at: number }) => ({ at: readings++, utilization: now && before ? now.at - before.at : -1 })) as never
  t.teardown(() => { performance.eventLoopUtilization = eventLoopUtilization })
  const { time, inspection } = inspect()
  let last = readings
  t.equal((await inspection.read()).busy, null, 'there was none before')
  for (const [since, busy] of [[1_000, 7], [1_000, 7], [10_000, 7], [10_001, null], [1_000, 7]] as const) {
    await time.advance(since)
    const at = readings = last + 7
    t.equal((await inspection.read()).busy, busy, `${since} ms`)
    last = at
  }
})

t.test('the twenty topics with the most holders, of any number', async t => {
  const { inspection, registry } = inspect()
  const holders = Array.from({ length: 60 }, (_, i) => ({ clientId: `c${i}`, userId: null, managed: true, held: new Set<string>(), index: 0, mark: 0 }) as unknown as SSEConnection & { held: Set<string> })
  for (const holder of holders) registry.add(holder)
  // The largest are in each portion of the scan: 60 to 41 holders, and all others fewer.
  const expected: number[] = []
  for (let i = 0; i < 4_500; i++) {
    const isLarge = i % 225 === 224
    const count = isLarge ? 41 + (i / 225 | 0) * 7 % 20 : 1 + i % 3
    if (isLarge) expected.push(count)
    for (const holder of holders.slice(0, count)) registry.subscribe(holder, `topic:${i}`)
  }
  const { topics } = await inspection.read()
  t.strictSame(topics.map(({ connections }) => connections), expected.sort((one, other) => other - one))
  for (const { subscription, connections } of topics) t.equal(registry.subscription(subscription).length, connections)
})

t.test('the twenty newest runs, the newest first, and the number of all', async t => {
  const producers = Array.from({ length: 25 }, (_, i) => ({ key: { runId: `run ${i}`, ownerId: i % 2 === 0 ? null : 'ada' }, state: { startedAt: i, events: 2 * i, isRead: i % 3 === 0 }, bytes: 3 * i }))
  const { inspection } = inspect({ producing: () => producers } as unknown as Runs)
  const { runs, runCount } = await inspection.read()
  t.equal(runCount, 25)
  t.strictSame(runs.map(({ startedAt }) => startedAt), Array.from({ length: 20 }, (_, i) => 24 - i))
  t.strictSame(runs[0], { runId: 'run 24', ownerId: null, startedAt: 24, events: 48, bytes: 72, isRead: true })
})
