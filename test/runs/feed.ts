import t, { type Test } from 'tap'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { RunFeed } from '../../lib/runs/feed.js'
import { systemClock } from '../../lib/util/clock.js'

const key = { ownerId: null, runId: 'a' }

/** A store with one run, and its feed. */
async function start (t: Test) {
  const store = new MemoryRunStore(systemClock, 1_000_000)
  t.teardown(() => store.close())
  store.watch({ news () {}, ended () {} })
  const { state: { generation } } = await store.claim({ key, token: 't', leaseMs: 60_000, ttlMs: 60_000, joinFinished: false, settings: '' })
  return { store, generation, feed: new RunFeed(store, key) }
}

t.test('events that come with news are not read, unless a reader is not at their beginning', async t => {
  const { store, generation, feed } = await start(t)
  const append = (after: number, ...texts: string[]) => store.append({ key, generation, token: 't', leaseMs: 60_000, ttlMs: 60_000 }, after, texts)
  const read = async (after: number) => {
    const { state, frames } = await feed.read(generation, after)
    return [state!.events, ...frames.map(({ head, text }) => head + text)]
  }
  append(0, 'stored 1')
  feed.wake({ generation, after: 0, texts: ['told 1'] })
  t.match(await read(0), [1, /stored 1/], 'the state is not known yet')
  append(1, 'stored 2')
  feed.wake({ generation, after: 1, texts: ['told 2'] })
  t.match(await read(1), [2, new RegExp(`^id: ?r:${generation.toString(36)}\\.2\ntold 2$`)])
  t.match(await read(1), [2, /told 2/], 'by every reader')
  t.match(await read(0), [2, /stored 1/, /stored 2/])
  feed.wake({ generation, after: 1, texts: ['told 2'] })
  feed.wake()
  t.match(await read(1), [2, /stored 2/], 'there can be more since')
  feed.wake({ generation: generation + 1, after: 1, texts: ['told 2'] })
  t.match(await read(1), [2, /stored 2/], 'of another generation')
})

t.test('readers whose clients are slow, and who do not read, are reported all the same', async t => {
  const { store, generation, feed } = await start(t)
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
