// A process without HTTP that publishes events or produces a run, for tests that kill it. Started by `startNode`; it writes a line of JSON.
import { setTimeout as sleep } from 'node:timers/promises'
import { createPublisher } from '../../lib/publisher.js'
import { redisStreamsBroker } from '../../lib/redis.js'

const [url, keyPrefix, task, count] = process.argv.slice(2) as [string, string, 'publish' | 'produce', string]
const publisher = createPublisher({
  broker: redisStreamsBroker({ client: url, keyPrefix, replyTimeoutMs: 1_000, startTimeoutMs: 30_000 }),
  runs: { leaseMs: 2_000, drainMs: 200 }
})

if (task === 'publish') {
  const createdAt = performance.now()
  await publisher.open()
  const openedAt = performance.now()
  const ids: (string | null)[] = []
  for (let n = 1; n <= Number(count); n++) ids.push((await publisher.broadcastEvent({ event: 'n', data: String(n) }, { subscriptionIds: ['topic'] })).id)
  const position = await publisher.position()
  await publisher.close()
  console.log(JSON.stringify({ ids, position, openMs: Math.round(openedAt - createdAt), loadMs: Math.round(createdAt) }))
} else {
  await publisher.startRun('job', async function * () {
    for (let n = 1; n <= Number(count); n++) {
      yield String(n)
      await sleep(10)
    }
  }, { ownerId: null })
  // Nothing else ends the process: it ends by itself once the publisher is closed.
  process.once('SIGTERM', () => publisher.close())
}
process.send!('ready')
