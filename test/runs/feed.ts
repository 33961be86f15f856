import t, { type Test } from 'tap'
import { Flusher } from '../../lib/delivery/flusher.js'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { PAGE_BYTES, PAGE_EVENTS, runKey } from '../../lib/log/run-store.js'
import { RunFeed } from '../../lib/runs/feed.js'
import { systemClock } from '../../lib/util/clock.js'
import { encodeEvent } from '../../lib/wire/event-stream.js'
import { turns } from '../helpers/wait.js'

const key = runKey('a', null)
const text = (data: string) => encodeEvent('message', data)

/** A store with one run, and its feed. */
async function start (t: Test) {
  const store = new MemoryRunStore(systemClock, 1_000_000)
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
  t.equal(String(page.chunk.plain), `${id}.1\n${text('1')}${id}.2\n${text('é')}`)
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
