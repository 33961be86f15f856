import t, { type Test } from 'tap'
import { Flusher } from '../../lib/delivery/flusher.js'
import { BrokerUnavailable } from '../../lib/errors.js'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { PAGE_BYTES, PAGE_EVENTS, runKey } from '../../lib/log/run-store.js'
import { RunFeed, type FeedPage } from '../../lib/runs/feed.js'
import { systemClock } from '../../lib/util/clock.js'
import { encodeEvent } from '../../lib/wire/event-stream.js'
import { turns } from '../helpers/wait.js'

const key = runKey('a', null)
const text = (data: string) => encodeEvent('message', data)

/** A store with one run, and its feed. */
async function start<S extends MemoryRunStore = MemoryRunStore> (t: Test, store: S = new MemoryRunStore(systemClock, 1_000_000) as S) {
  t.teardown(() => store.close())
  store.watch({ news () {}, ended () {} })
  const { state: { generation } } = await store.claim({ key, token: 't', leaseMs: 60_000, ttlMs: 60_000, joinFinished: false, settings: '' })
  const flusher = new Flusher(0)
  return { store, generation, feed: new RunFeed(store, key, feed => flusher.mark(feed)) }
}

t.test('events that come with news are not read by who is at their beginning', async t => {
  const { store, generation, feed } = await start(t)
  const append = (after: number, ...texts: string[]) => store.append({ key, generation, token: 't', leaseMs: 60_000, ttlMs: 60_000 }, after, texts)
  const read = async (after: number) => {
    const { state, frames } = await feed.read(generation, after)
    return [state!.events, ...frames.map(({ head, text }) => head + text)]
  }
  append(0, text('stored 1'))
  feed.tell({ generation, after: 0, texts: [text('told 1')] })
  t.match(await read(0), [1, /stored 1/], 'the state is not known yet')
  await turns()
  append(1, text('stored 2'))
  feed.tell({ generation, after: 1, texts: [text('told 2')] })
  t.same(await read(1), [2, `id: r:${generation.toString(36)}.2\n${text('told 2')}`])
  t.match(await read(1), [2, /told 2/], 'by every reader')
  t.match(await read(0), [2, /stored 1/, /stored 2/])
  await turns()
  append(2, text('stored 3'), text('stored 4'))
  feed.tell({ generation, after: 2, texts: [text('told 3'), text('told 4')] })
  t.match(await read(1), [4, /stored 2/, /stored 3/, /stored 4/], 'not by who is behind')
  t.match(await read(2), [4, /told 3/, /told 4/])
  await turns()
  t.match(await read(1), [4, /stored 2/, /stored 3/, /stored 4/], 'only in this turn')
  feed.tell({ generation, after: 1, texts: [text('told 2')] })
  feed.tell({ generation, after: 2, texts: [text('told 3')] })
  t.match(await read(1), [3, /told 2/, /told 3/], 'twice in a turn')
  feed.tell({ generation, after: 4, texts: [text('told 5')] })
  t.match(await read(1), [4, /stored 2/, /stored 3/, /stored 4/], 'news in between were lost')
  await turns()
  feed.tell({ generation, after: 1, texts: [text('told 2')] })
  feed.tell()
  t.match(await read(1), [4, /stored 2/, /stored 3/, /stored 4/], 'there are others')
  await turns()
  feed.tell({ generation: generation + 1, after: 1, texts: [text('told 2')] })
  t.match(await read(1), [4, /stored 2/, /stored 3/, /stored 4/], 'of another generation')
  await turns()
  feed.tell({ generation, after: 1, texts: [text('told 2'), text('x'.repeat(PAGE_BYTES))] })
  t.match(await read(1), [4, /stored 2/, /stored 3/, /stored 4/], 'a slow reader would keep more than a page')
  await turns()
  feed.tell({ generation, after: 1, texts: Array.from({ length: PAGE_EVENTS + 1 }, () => text('')) })
  t.match(await read(1), [4, /stored 2/, /stored 3/, /stored 4/])
})

t.test('readers at the same position share what is written', async t => {
  const { store, generation, feed } = await start(t)
  store.append({ key, generation, token: 't', leaseMs: 60_000, ttlMs: 60_000 }, 0, [text('1'), text('é')])
  const [page, same] = [await feed.read(generation, 0), await feed.read(generation, 0)]
  t.equal(page.chunk, same.chunk)
  const id = `id: r:${generation.toString(36)}`
  const content = `${id}.1\n${text('1')}${id}.2\n${text('é')}`
  t.equal(String(page.chunk.plain), content)
  t.equal(String(page.chunk.framed), `${Buffer.byteLength(content).toString(16)}\r\n${content}\r\n`, 'with its size in bytes')
})

t.test('readers whose clients are slow, and who do not read, are reported all the same', async t => {
  const { store, generation, feed } = await start(t)
  let wakes = 0
  feed.join({ wake: () => { wakes++ } })
  const isReported = async (poll: () => unknown) => {
    await store.leave(key)
    await poll()
    await turns()
    return (await store.get(key))!.isRead
  }
  t.equal(await isReported(() => feed.poll()), true)
  t.equal(await isReported(() => feed.poll()), true, 'again and again')
  t.equal(wakes, 1, 'beside the usual wake-up')
  await feed.read(generation, 0)
  t.equal(await isReported(() => feed.poll()), false, 'not if one has read meanwhile')
  t.equal(await isReported(() => feed.poll()), true, 'and again, when none has read since')
})

/** A store that answers later, and counts its reads. */
class LateRunStore extends MemoryRunStore {
  problem: Error | null = null
  reads = 0

  override read (...args: Parameters<MemoryRunStore['read']>): any {
    this.reads++
    return Promise.resolve().then(() => {
      if (this.problem !== null) throw this.problem
      const { state, texts } = super.read(...args)
      return { state: state && { ...state }, texts }
    })
  }
}

t.test('a page is shared while nothing is new, and a failed read is not kept', async t => {
  const { store, generation, feed } = await start(t, new LateRunStore(systemClock, 1_000_000))
  store.append({ key, generation, token: 't', leaseMs: 60_000, ttlMs: 60_000 }, 0, [text('1'), text('2')])
  store.problem = new BrokerUnavailable('is down')
  const failing = feed.read(generation, 0)
  t.equal(feed.read(generation, 0), failing, 'one read for all that ask meanwhile')
  await t.rejects(failing as Promise<FeedPage>, store.problem)
  store.problem = null
  const page = feed.read(generation, 0)
  t.not(page, failing)
  t.equal((await page).frames.length, 2)
  t.equal(feed.read(generation, 0), page)
  t.equal(store.reads, 2)
  t.same((await feed.read(generation + 1, 0)).frames, [], 'another generation is another page')
  t.equal((await feed.read(generation, 0)).frames.length, 2)
  t.equal((await feed.read(generation, 1)).frames.length, 1)
  t.equal((await feed.read(generation, 0)).frames.length, 2)
  t.equal(store.reads, 6)
  feed.tell()
  t.equal((await feed.read(generation, 0)).frames.length, 2)
  t.equal(store.reads, 7, 'there is something new')
  await turns()
  t.equal((await feed.read(generation, 0)).frames.length, 2)
  t.equal(store.reads, 7, 'and what was read since is kept')
})

t.test('news count for the run that is running, in their turn', async t => {
  const { store, generation, feed } = await start(t, new LateRunStore(systemClock, 1_000_000))
  const lease = { key, generation, token: 't', leaseMs: 60_000, ttlMs: 60_000 }
  const told = (after: number, of = generation) => feed.tell({ generation: of, after, texts: [text('told')] })
  const read = async (after: number, of = generation) => (await feed.read(of, after)).frames.map(({ text }) => text)
  store.append(lease, 0, [text('1'), text('2')])
  t.same(await read(0), [text('1'), text('2')])
  told(1)
  t.same(await read(1), [text('told')])
  await turns()
  t.same(await read(1), [text('2')], 'only in their turn')
  told(1)
  t.same(await read(0), [text('1'), text('2')])
  await turns()
  t.same(await read(1), [text('2')], 'also if they were not read')
  told(1)
  told(2, generation + 1)
  t.same(await read(1), [text('2')], 'two runs do not follow each other')
  await turns()
  told(1)
  told(3)
  t.same(await read(1), [text('2')], 'an event in between is missing')
  await turns()
  // The state that was read last is that of the end: the news are older.
  await store.finish(key, { status: 'done' })
  await read(0)
  told(1)
  t.same(await read(1), [text('2')])
  await turns()
  const { state } = await store.claim({ ...lease, joinFinished: false, settings: '' })
  await read(0)
  told(1)
  t.same(await read(1), [], 'the run was replaced')
  await turns()
  told(0, state.generation)
  const { frames: [frame] } = await feed.read(state.generation, 0)
  t.equal(frame!.head, `id: r:${state.generation.toString(36)}.1\n`, 'with the ids of its generation')
})

t.test('a feed that had news is not woken by the poll, and a poll that fails is the affair of the readers', async t => {
  const { store, feed } = await start(t, new LateRunStore(systemClock, 1_000_000))
  const wakes = [0, 0]
  const readers = wakes.map((_, n) => ({ wake: () => { wakes[n]!++ } }))
  for (const reader of readers) feed.join(reader)
  t.equal(feed.isEmpty, false)
  feed.tell()
  await turns()
  t.same(wakes, [1, 1])
  feed.poll()
  await turns()
  t.same(wakes, [1, 1], 'fresh')
  store.problem = new BrokerUnavailable('is down')
  feed.poll()
  await turns()
  t.same(wakes, [2, 2], 'news can be lost')
  t.equal(feed.leave(readers[0]!), false)
  feed.tell()
  await turns()
  t.same(wakes, [2, 3])
  t.equal(feed.leave(readers[1]!), true)
  t.equal(feed.isEmpty, true)
})
