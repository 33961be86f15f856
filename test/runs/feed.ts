import t from 'tap'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { RunFeed } from '../../lib/runs/feed.js'
import { systemClock } from '../../lib/util/clock.js'

t.test('readers whose clients are slow, and who do not read, are reported all the same', async t => {
  const key = { ownerId: null, runId: 'a' }
  const store = new MemoryRunStore(systemClock, 1_000_000)
  t.teardown(() => store.close())
  store.watch({ news () {}, ended () {} })
  const { state: { generation } } = await store.claim({ key, token: 't', leaseMs: 60_000, ttlMs: 60_000, joinFinished: false, settings: '' })
  const feed = new RunFeed(store, key)
  let wakes = 0
  feed.join({ wake: () => { wakes++ } })
  const isReported = async (poll: () => unknown) => {
    await store.leave(key)
    await poll()
    return (await store.get(key))!.isRead
  }
  t.equal(await isReported(() => feed.poll()), true)
  t.equal(await isReported(() => feed.poll()), true, 'again and again')
  t.equal(wakes, 1, 'beside the usual wake-up')
  await feed.read(generation, 0)
  t.equal(await isReported(() => feed.poll()), false, 'not if one has read meanwhile')
})
