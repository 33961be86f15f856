import t, { type Test } from 'tap'
import { BrokerUnavailable } from '../../lib/errors.js'
import { memoryBroker } from '../../lib/index.js'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { runKey, type RunWatcher } from '../../lib/log/run-store.js'
import { formatRunId } from '../../lib/runs/run-position.js'
import { testClock } from '../../lib/testing/index.js'
import { encodeEvent } from '../../lib/wire/event-stream.js'
import { RawSocket } from '../helpers/raw.js'
import { serveRuns, tokens } from '../helpers/runs.js'
import { turns, until } from '../helpers/wait.js'

// A node that only reads runs, which another node produces.

/** A store of several nodes, whose news can be lost. */
class SharedRunStore extends MemoryRunStore {
  areNewsLost = false
  reads = 0
  leaves = 0

  override watch (watcher: RunWatcher): void {
    super.watch({
      news: (key, events) => { if (!this.areNewsLost) watcher.news(key, events) },
      ended: key => { if (!this.areNewsLost) watcher.ended(key) }
    })
  }

  override read (...args: Parameters<MemoryRunStore['read']>) {
    this.reads++
    return super.read(...args)
  }

  override async leave (): Promise<void> {
    this.leaves++
    throw new BrokerUnavailable('is down')
  }
}

async function start (t: Test) {
  const clock = testClock()
  const store = Object.assign(new SharedRunStore(clock.clock, 1 << 30), { shared: true as false })
  const service = await serveRuns(t, { ...clock.options, broker: Object.assign(memoryBroker(), { runs: store }) })
  return {
    ...service,
    clock,
    store,
    /** Starts a run as another node does. */
    async produce (id: string) {
      const claim = { key: runKey(id, null), token: 'other', leaseMs: 60_000, ttlMs: 600_000, joinFinished: false, settings: '' }
      const { state } = await store.claim(claim)
      let count = 0
      return {
        id: (event: number) => formatRunId(state.generation, event),
        append: (data: string) => { store.append({ ...claim, generation: state.generation }, count++, [encodeEvent('message', data)]) },
        finish: () => store.finish(claim.key, { status: 'done' })
      }
    }
  }
}

t.test('news that are lost are found within a second, with one read a second', async t => {
  const { clock, store, produce, read } = await start(t)
  for (const id of ['first', 'second, after the timer has stopped']) {
    const run = await produce(id)
    store.areNewsLost = false
    const stream = await read(id)
    run.append('told')
    await until(() => tokens(stream).length === 1)
    store.areNewsLost = true
    run.append('found')
    await clock.advance(750)
    await turns(5)
    t.same(tokens(stream), ['told'])
    // The news of the first second do not need a look.
    await clock.advance(1_250)
    await until(() => tokens(stream).length === 2)
    const { reads } = store
    await clock.advance(10_000)
    t.ok(store.reads - reads >= 10 && store.reads - reads <= 12, `${store.reads - reads} reads in ten seconds`)
    await run.finish()
    await clock.advance(1_000)
    await stream.ended
    await until(() => store.leaves === 1)
    await clock.advance(1_000)
    const after = store.reads
    await clock.advance(5_000)
    t.equal(store.reads, after, 'nobody reads')
    store.leaves = 0
  }
})

t.test('how the streams of runs begin is counted, and a HEAD request is no stream', async t => {
  const { app, url, produce, read } = await start(t)
  const run = await produce('a')
  run.append('1')
  run.append('2')
  for (const [cursor, expected] of [
    [null, { resumes: { fresh: 1, resumed: 0, gap: 0 }, gaps: { malformed: 0, unknown: 0 } }],
    [run.id(1), { resumes: { fresh: 1, resumed: 1, gap: 0 }, gaps: { malformed: 0, unknown: 0 } }],
    ['17', { resumes: { fresh: 1, resumed: 1, gap: 1 }, gaps: { malformed: 1, unknown: 0 } }],
    [run.id(9), { resumes: { fresh: 1, resumed: 1, gap: 2 }, gaps: { malformed: 1, unknown: 1 } }]
  ] as const) {
    const stream = await read('a', { lastEventId: cursor })
    await until(() => tokens(stream).at(-1) === '2')
    t.match(app.sse.stats(), expected)
  }
  const { resumes } = app.sse.stats()
  const socket = new RawSocket(url, { method: 'HEAD', path: '/runs/a', headers: { 'last-event-id': '17', connection: 'close' } })
  await until(() => socket.closed)
  await turns(5)
  t.same(app.sse.stats().resumes, resumes)
})
