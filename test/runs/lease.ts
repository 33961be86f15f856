import t from 'tap'
import { BrokerUnavailable, Closed } from '../../lib/errors.js'
import { startProducer } from '../helpers/producing.js'
import { turns } from '../helpers/wait.js'

// How a producer keeps its run while the store cannot be reached, and when it gives the run up.

const down = new BrokerUnavailable('is down')

t.test('an append that fails is repeated with growing pauses, until the lease must be over', async t => {
  // The last attempt is the first one after the lease: at the end of the lease itself, it may still hold.
  for (const [leaseMs, attempts] of [[3_000, [0, 50, 150, 350, 750, 1_550, 2_550, 3_550]], [3_550, [0, 50, 150, 350, 750, 1_550, 2_550, 3_550, 4_550]]] as const) {
    const { clock, store, producer, hand, logged } = await startProducer({}, leaseMs)
    hand.yield('one')
    await turns(5)
    await clock.advance(2_900)
    hand.yield('two')
    await turns(5)
    // The second append has renewed the lease.
    store.problem = down
    hand.yield('three')
    await turns(5)
    await clock.advance(leaseMs + 2_000)
    store.problem = null
    t.match({ ...await producer.finished }, { status: 'lost', events: 2, reason: undefined, endedAt: Number }, `${leaseMs}`)
    t.same(store.appends, [[0, 0, 1], [2_900, 1, 1], ...attempts.map(at => [2_900 + at, 2, 1])])
    t.same(new Set(logged), new Set(['A run is lost: its events could not be stored']))
    t.equal(hand.signal!.reason.closeReason, 'lost')
  }
})

t.test('an append that fails once loses nothing, and what comes meanwhile waits for it', async t => {
  const { clock, store, producer, hand, logged } = await startProducer()
  store.problem = down
  hand.yield('one', 'two')
  await turns(5)
  hand.yield('three')
  hand.end()
  await turns(5)
  store.problem = null
  await clock.advance(50)
  t.match({ ...await producer.finished }, { status: 'done', events: 3 })
  t.same(store.appends, [[0, 0, 1], [50, 0, 1], [50, 1, 2]])
  t.same(logged, [])
})

t.test('the end is stored as soon as the store can be reached; without it, the run ends as lost', async t => {
  for (const [outMs, status] of [[2_000, 'done'], [4_000, 'lost']] as const) {
    const { clock, store, producer, hand, ended } = await startProducer({}, 2_500)
    hand.yield('one')
    await turns(5)
    store.problem = down
    hand.end()
    await turns(5)
    await clock.advance(outMs)
    store.problem = null
    await clock.advance(1_000)
    const state = await producer.finished
    t.same([state.status, state.events, state.endedAt === null, producer.state.status], [status, 1, false, status])
    t.same(ended, [producer], 'once')
  }
})

t.test('a store that is closed, and a node whose time is over, are not waited for', async t => {
  for (const what of ['store', 'node', 'answer'] as const) {
    const { store, host, producer, hand, logged } = await startProducer()
    hand.yield('one')
    await turns(5)
    if (what === 'store') await store.close()
    else store.problem = what === 'answer' ? new Closed() : down
    if (what === 'node') host.isOver = true
    hand.yield('two')
    t.match({ ...await producer.finished }, { status: 'lost', events: 1 }, what)
    t.ok(logged.length > 0 && logged.every(line => line.startsWith('A run is lost')), what)
    t.ok(store.appends.every(([at]) => at === 0), what)
  }
})

t.test('a lease is renewed when a third of it has passed, or often enough to know of readers', async t => {
  for (const [options, leaseMs, everyMs] of [[{}, 60_000, 20_000], [{ onDisconnect: { graceMs: 600_000 } }, 60_000, 500], [{ onDisconnect: { graceMs: 600_000 } }, 1_200, 400]] as const) {
    const { clock, store, producer, hand } = await startProducer(options, leaseMs)
    const wait = async (ms: number) => {
      await clock.advance(ms)
      producer.age(0)
      await turns(3)
    }
    await wait(everyMs - 1)
    t.same(store.appends, [], 'not before')
    await wait(1)
    t.same(store.appends, [[everyMs, 0, 0]])
    await wait(everyMs - 1)
    hand.yield('one')
    await turns(3)
    await wait(everyMs - 1)
    t.same(store.appends.slice(1), [[2 * everyMs - 1, 0, 1]], 'an append renews it as well')
    await wait(1)
    await wait(everyMs)
    t.same(store.appends.slice(2), [[3 * everyMs - 1, 1, 0], [4 * everyMs - 1, 1, 0]], 'again and again')
    t.equal(producer.state.status, 'running')
  }
})

t.test('a renewal is not sent beside another one, beside an append, or after the end', async t => {
  const { clock, store, producer, hand } = await startProducer()
  store.held = []
  hand.yield('one')
  await turns(3)
  await clock.advance(20_000)
  producer.age(0)
  producer.check()
  await turns(3)
  t.equal(store.appends.length, 1, 'an append is under way')
  store.release()
  await turns(3)
  await clock.advance(20_000)
  store.held = []
  for (let n = 0; n < 3; n++) producer.age(0)
  producer.check()
  await turns(3)
  t.equal(store.appends.length, 2, 'a renewal is under way')
  store.release()
  await turns(3)
  await clock.advance(20_000)
  producer.age(0)
  await turns(3)
  t.equal(store.appends.length, 3)
  hand.end()
  await producer.finished
  await clock.advance(20_000)
  producer.age(60_000_000)
  producer.check()
  await turns(3)
  t.equal(store.appends.length, 3, 'the run has ended')
  t.equal(producer.state.status, 'done')
})

t.test('a renewal that events have overtaken is no sign that the run is lost', async t => {
  for (const isAnswered of [true, false]) {
    const { clock, store, producer, hand } = await startProducer()
    await clock.advance(20_000)
    store.held = []
    producer.age(0)
    await turns(3)
    hand.yield('one')
    await turns(3)
    const [renewal, append] = store.held
    append!.perform()
    if (isAnswered) append!.answer()
    await turns(3)
    renewal!.perform()
    renewal!.answer()
    await turns(3)
    append!.answer()
    await turns(3)
    t.equal(producer.isOpen, true)
    store.held = null
    hand.yield('two')
    hand.end()
    t.match({ ...await producer.finished }, { status: 'done', events: 2 })
  }
})

t.test('a producer whose run was ended or replaced elsewhere stops its source, and says why', async t => {
  const elsewhere: Record<string, { end?: 'stopped' | 'failed', next?: 'running' | 'stopped', unreadable?: true, status: string, reason: string }> = {
    'ended by stopRun()': { end: 'stopped', status: 'stopped', reason: 'stopped' },
    'ended, and replaced': { end: 'stopped', next: 'running', status: 'lost', reason: 'lost' },
    'ended, replaced and ended again': { end: 'stopped', next: 'stopped', status: 'lost', reason: 'lost' },
    'with events that this producer has not appended': { status: 'lost', reason: 'lost' },
    'ended, and the store cannot be asked': { end: 'stopped', unreadable: true, status: 'stopped', reason: 'lost' }
  }
  for (const [name, { end, next, unreadable, status, reason }] of Object.entries(elsewhere)) {
    const { clock, store, key, producer, hand } = await startProducer()
    if (end !== undefined) await store.finish(key, { status: end })
    else store.append(producer.lease, 0, ['data: another\n\n'])
    if (next !== undefined) await store.claim({ ...producer.lease, token: 'other', joinFinished: false, settings: '' })
    if (next === 'stopped') await store.finish(key, { status: next })
    if (unreadable) store.get = async () => { throw down }
    await clock.advance(20_000)
    producer.age(0)
    t.equal((await producer.finished).status, status, name)
    t.equal(producer.state.status, status, name)
    t.equal(hand.signal!.reason.closeReason, reason, name)
    await turns(3)
    t.equal(hand.returned, 1, name)
  }
})
