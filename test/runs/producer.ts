import t from 'tap'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { runKey } from '../../lib/log/run-store.js'
import { Producer } from '../../lib/runs/producer.js'
import { resolveRunOptions } from '../../lib/runs/run-options.js'
import { systemClock } from '../../lib/util/clock.js'

/** Answers late, as a store on another machine does. */
class SlowRunStore extends MemoryRunStore {
  override append (...args: Parameters<MemoryRunStore['append']>): any {
    return new Promise(resolve => setTimeout(() => resolve(super.append(...args)), 5))
  }

  override async get (key: Parameters<MemoryRunStore['get']>[0]): ReturnType<MemoryRunStore['get']> {
    await new Promise(resolve => setTimeout(resolve, 5))
    return super.get(key)
  }
}

t.test('a run that is ended elsewhere ends here, however much waits to be appended', async t => {
  const store = new SlowRunStore(systemClock, 100_000_000)
  t.teardown(() => store.close())
  store.watch({ news () {}, ended () {} })
  const key = runKey('a', null)
  const { state } = await store.claim({ key, token: 't', leaseMs: 60_000, ttlMs: 60_000, joinFinished: false, settings: '' })
  const producer = new Producer({ store, clock: systemClock, log: console, isOver: false, reserve: () => true, ended () {} }, { key, generation: state.generation, token: 't', leaseMs: 60_000, ttlMs: 60_000 }, resolveRunOptions({ ownerId: null }), state)
  let items = 0
  let isStopped = false
  const produced = producer.produce(() => (function * () {
    try {
      for (; items < 10_000; items++) yield 'x'.repeat(10_000)
    } finally {
      isStopped = true
    }
  })())
  await store.finish(key, { status: 'stopped' })
  t.equal((await producer.finished).status, 'stopped')
  await produced
  t.ok(isStopped)
  t.ok(items < 100, 'the source has waited')
})
