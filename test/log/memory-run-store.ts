import assert from 'node:assert/strict'
import t from 'tap'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { runKey, type RunKey } from '../../lib/log/run-store.js'
import { testClock } from '../../lib/testing/index.js'
import { encodeEvent } from '../../lib/wire/event-stream.js'
import { counted } from '../helpers/counted-clock.js'

// What the contract of run stores leaves open: the memory of this one, its timers and its news.

const SETTINGS = 'settings'
/** As `runs.maxBytes` documents it: 1.5 KB beside the texts. */
const RUN_BYTES = 1_536

interface Model {
  readonly key: RunKey
  readonly token: string
  readonly generation: number
  readonly texts: string[]
  readonly ttlMs: number
  status: string
  expiresAt: number
}

const bytesOf = ({ key, texts }: Model) => RUN_BYTES + key.text.length + SETTINGS.length + Buffer.byteLength(texts.join(''))

t.test('runs are removed at their time, or oldest first for those that need the memory: as a list would do it', async t => {
  let seed = 7
  const random = (below: number) => (seed = seed * 48_271 % 2_147_483_647) % below
  const testing = testClock()
  const clock = counted(testing.clock)
  const maxBytes = 12_000
  const store = new MemoryRunStore(clock, maxBytes)
  const news: unknown[] = []
  store.watch({ news: (key, events) => { news.push([key, events]) }, ended: key => { news.push([key]) } })
  /** The runs that are kept: those that run, and those that have ended in the order of their ends. */
  const running = new Map<string, Model>()
  let ended: Model[] = []
  const used = () => [...running.values(), ...ended].reduce((sum, run) => sum + bytesOf(run), 0)
  const evict = () => { while (ended.length > 0 && used() > maxBytes) ended.shift() }
  let tokens = 0
  for (let step = 0; step < 3_000; step++) {
    const key = runKey(`run ${random(6)}`, random(4) === 0 ? 'ada' : null)
    const run = running.get(key.text) ?? ended.find(({ key: { text } }) => text === key.text)
    news.length = 0
    const action = random(5)
    if (action === 0) {
      const joinFinished = random(2) === 0
      const ttlMs = 10_000 * (1 + random(3))
      const token = `t${tokens++}`
      const { state, started } = await store.claim({ key, token, leaseMs: 1, ttlMs, joinFinished, settings: SETTINGS })
      assert.equal(started, run === undefined || (run.status !== 'running' && !joinFinished))
      if (started) {
        ended = ended.filter(other => other !== run)
        assert.ok(run === undefined || state.generation > run.generation)
        running.set(key.text, { key, token, generation: state.generation, texts: [], ttlMs, status: 'running', expiresAt: Infinity })
        evict()
      } else {
        assert.equal(state.generation, run!.generation)
      }
      assert.deepEqual(news, [])
    } else if (action === 1 || action === 2) {
      const texts = Array.from({ length: random(4) }, () => encodeEvent('message', 'é'.repeat(random(200))))
      const after = run?.texts.length ?? 0
      const lease = { key, generation: run?.generation ?? 1, token: run?.token ?? '', leaseMs: 1, ttlMs: 1 }
      const state = store.append(lease, after, texts)
      assert.equal(state?.events, run?.status === 'running' ? after + texts.length : undefined)
      if (state !== null) {
        run!.texts.push(...texts)
        evict()
      }
      assert.deepEqual(news, state === null || texts.length === 0 ? [] : [[key.text, { generation: run!.generation, after, texts }]], 'a renewal is no news')
    } else if (action === 3) {
      const state = await store.finish(key, { status: 'stopped' })
      assert.equal(state?.status, run && 'stopped')
      assert.deepEqual(news, run?.status === 'running' ? [[key.text]] : [])
      if (run?.status === 'running') {
        assert.equal(state!.endedAt, clock.wall())
        running.delete(key.text)
        ended.push(Object.assign(run, { status: 'stopped', expiresAt: testing.now + run.ttlMs }))
      }
    } else if (random(4) === 0) {
      await testing.advance(1_000 * random(8))
      ended = ended.filter(({ expiresAt }) => expiresAt > testing.now)
    }
    const kept = [...running.values(), ...ended]
    for (const ownerId of [null, 'ada']) {
      const expected = kept.filter(({ key }) => key.ownerId === ownerId).sort((one, other) => other.generation - one.generation)
      assert.deepEqual((await store.list(ownerId)).map(({ runId, state: { generation, status } }) => [runId, generation, status]), expected.map(({ key, generation, status }) => [key.runId, generation, status]))
    }
    assert.equal(clock.timers.size, ended.length, 'a timer for each run that has ended')
  }
  for (const { key, generation, texts } of [...running.values(), ...ended]) t.same(store.read(key, generation, 0, false).texts, texts)
  const key = runKey('last', null)
  await store.claim({ key, token: 't', leaseMs: 1, ttlMs: 10_000, joinFinished: false, settings: SETTINGS })
  await store.finish(key, { status: 'done' })
  t.ok(clock.timers.size > 0)
  await store.close()
  t.equal(clock.timers.size, 0)
})

t.test('a run that has ended is kept while the memory is just enough', async t => {
  const { clock } = testClock()
  const key = (id: string) => runKey(id, null)
  const run = (id: string): Model => ({ key: key(id), token: '', generation: 0, texts: [], ttlMs: 0, status: '', expiresAt: 0 })
  const needed = bytesOf(run('a')) + bytesOf(run('b'))
  for (const [maxBytes, isKept] of [[needed, true], [needed - 1, false]] as const) {
    const store = new MemoryRunStore(clock, maxBytes)
    store.watch({ news () {}, ended () {} })
    const claim = (id: string) => store.claim({ key: key(id), token: 't', leaseMs: 1, ttlMs: 5_000, joinFinished: false, settings: SETTINGS })
    await claim('a')
    await store.finish(key('a'), { status: 'done' })
    await claim('b')
    t.equal(await store.get(key('a')) !== null, isKept)
    await store.close()
  }
})

t.test('a run that was replaced does not take the next one with it when its time is over', async t => {
  const testing = testClock()
  const store = new MemoryRunStore(testing.clock, 1 << 20)
  t.teardown(() => store.close())
  store.watch({ news () {}, ended () {} })
  const key = runKey('a', null)
  const claim = (ttlMs: number) => store.claim({ key, token: 't', leaseMs: 1, ttlMs, joinFinished: false, settings: SETTINGS })
  await claim(5_000)
  await store.finish(key, { status: 'failed', reason: 'timeout' })
  const { state: { generation } } = await claim(10_000)
  await testing.advance(60_000)
  t.match({ ...await store.get(key) }, { generation, status: 'running' }, 'a run that is running is kept')
  await store.finish(key, { status: 'done' })
  await testing.advance(9_999)
  t.match({ ...await store.get(key) }, { generation, status: 'done' })
  await testing.advance(1)
  t.equal(await store.get(key), null)
})
