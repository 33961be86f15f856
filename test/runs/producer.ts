import t, { type Test } from 'tap'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { runKey } from '../../lib/log/run-store.js'
import { Producer } from '../../lib/runs/producer.js'
import { resolveRunOptions, type RunOptions } from '../../lib/runs/run-options.js'
import { systemClock } from '../../lib/util/clock.js'
import { turns } from '../helpers/wait.js'

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

/** A run in a slow store, and its producer. */
async function start (t: Test, options: Partial<RunOptions> = {}) {
  const store = new SlowRunStore(systemClock, 100_000_000)
  t.teardown(() => store.close())
  store.watch({ news () {}, ended () {} })
  const key = runKey('a', null)
  const { state } = await store.claim({ key, token: 't', leaseMs: 60_000, ttlMs: 60_000, joinFinished: false, settings: '' })
  const lease = { key, generation: state.generation, token: 't', leaseMs: 60_000, ttlMs: 60_000 }
  const host = { store, clock: systemClock, log: console, isOver: false, reserve: () => true, ended () {} }
  return { store, key, producer: new Producer(host, lease, resolveRunOptions({ ownerId: null, ...options }), state) }
}

t.test('a run that is ended elsewhere ends here, however much waits to be appended', async t => {
  const { store, key, producer } = await start(t)
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

t.test('a run that is stopped without readers keeps the events that wait to be appended', async t => {
  const { producer } = await start(t, { onDisconnect: 'stop' })
  const produced = producer.produce(async function * () {
    yield * ['1', '2', '3']
    await producer.finished
  })
  await turns()
  producer.age(60_000)
  t.match({ ...await producer.finished }, { status: 'stopped', reason: 'disconnect', events: 3 })
  await produced
})
