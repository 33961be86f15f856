import t from 'tap'
import type { RunFactory, RunOptions } from '../../lib/index.js'
import { startProducer } from '../helpers/producing.js'
import { turns } from '../helpers/wait.js'

// How much a producer takes of its source, and when it ends the run.

/** An item whose event has this size in bytes: `data: `, the text and two line feeds. */
const sized = (bytes: number) => 'x'.repeat(bytes - 8)

t.test('a source waits while more than 64 KB wait to be appended, and goes on when they are sent', async t => {
  const { store, producer, hand } = await startProducer()
  let taken = 0
  const take = producer.take.bind(producer)
  producer.take = result => {
    taken++
    return take(result)
  }
  for (let n = 0; n < 12; n++) hand.yield(sized(32 * 1024))
  store.held = []
  for (const expected of [4, 7, 10, 12]) {
    await turns(20)
    // One or three are on their way, and three wait: 64 KB are not too much.
    t.equal(taken, expected)
    const [append] = store.held.splice(0)
    append!.perform()
    append!.answer()
  }
  hand.end()
  await turns(20)
  store.release()
  t.match({ ...await producer.finished }, { status: 'done', events: 12 })
  t.same(store.appends.map(([, after, count]) => [after, count]), [[0, 1], [1, 3], [4, 3], [7, 3], [10, 2]])
})

t.test('each limit is reached exactly', async t => {
  interface Case { options: Partial<RunOptions>, items?: number, status?: 'stopped', reason: string, ageMs: number }
  const times: Record<string, Case> = {
    maxDurationMs: { options: { maxDurationMs: 10_000 }, reason: 'timeout', ageMs: 10_000 },
    idleTimeoutMs: { options: { idleTimeoutMs: 10_000 }, reason: 'timeout', ageMs: 10_000 },
    onDisconnect: { options: { onDisconnect: { graceMs: 10_000 } }, status: 'stopped', reason: 'disconnect', ageMs: 10_000 }
  }
  for (const [name, { options, status = 'failed', reason, ageMs }] of Object.entries(times)) {
    const { producer, hand } = await startProducer(options)
    await turns(3)
    producer.age(ageMs - 1)
    await turns(3)
    t.equal(producer.isOpen, true, `${name}: not before`)
    producer.age(1)
    t.match({ ...await producer.finished }, { status, reason }, name)
    t.match(hand.signal!.reason, { code: 'SSE_ERR_STREAM_ENDED', closeReason: reason }, name)
  }
  // Three events of 20 bytes.
  for (const [options, events] of [[{ maxBytes: 60 }, 3], [{ maxBytes: 59 }, 2], [{ maxEvents: 3 }, 3], [{ maxEvents: 2 }, 2]] as const) {
    const { producer, hand, reserved, logged } = await startProducer(options)
    hand.yield(sized(20), sized(20), sized(20))
    hand.end()
    t.match({ ...await producer.finished }, { ...events === 3 ? { status: 'done' } : { status: 'failed', reason: 'limit' }, events }, JSON.stringify(options))
    t.equal(reserved.reduce((sum, bytes) => sum + bytes, 0), producer.bytes, 'nothing is reserved for an event that is not appended')
    t.equal(producer.bytes, 20 * events)
    t.same(logged, events === 3 ? [] : ['A run has exceeded a limit and is ended'])
  }
})

t.test('the idle time begins again with each item, and after the source has waited for the store', async t => {
  const { producer, hand, store } = await startProducer({ idleTimeoutMs: 1_000, maxDurationMs: 1_000_000 })
  for (let n = 0; n < 5; n++) {
    producer.age(999)
    hand.yield('x')
    await turns(3)
  }
  t.equal(producer.isOpen, true)
  store.held = []
  hand.yield(...Array.from({ length: 4 }, () => sized(30_000)))
  await turns(5)
  producer.age(60_000)
  t.equal(producer.isOpen, true, 'the source does not wait for itself')
  store.release()
  await turns(5)
  producer.age(999)
  t.equal(producer.isOpen, true)
  producer.age(1)
  t.match({ ...await producer.finished }, { status: 'failed', reason: 'timeout', events: 9 })
})

t.test('a reader begins the time without readers again, also one that was there between two looks', async t => {
  const { clock, producer, hand, store, key } = await startProducer({ onDisconnect: { graceMs: 1_000 } })
  const look = async () => {
    await clock.advance(500)
    producer.age(500)
    await turns(3)
  }
  for (let n = 0; n < 3; n++) {
    await look()
    store.read(key, 0, 0, true)
    // The time is over, and so the store is asked: there is a reader.
    await look()
    t.equal(producer.isOpen, true)
    await store.leave(key)
    hand.yield('x')
    await turns(3)
    t.equal(producer.isOpen, true, 'it has left, and its time begins')
  }
  await look()
  t.equal(producer.isOpen, true)
  await look()
  t.match({ ...await producer.finished }, { status: 'stopped', reason: 'disconnect' })
})

t.test('a source that ends is not aborted, and one that fails because it was aborted has not failed', async t => {
  const done = await startProducer()
  await turns(3)
  done.hand.end()
  await done.producer.finished
  t.equal(done.hand.signal!.aborted, false)
  const source: RunFactory = ({ signal }) => new ReadableStream({ start: controller => { signal.addEventListener('abort', () => controller.error(signal.reason)) } })
  const { producer, produced, logged } = await startProducer({}, 60_000, source)
  await turns(3)
  producer.end({ status: 'stopped' })
  producer.end({ status: 'failed', reason: 'timeout' })
  t.match({ ...await producer.finished }, { status: 'stopped', reason: undefined }, 'the first end counts')
  await produced
  t.same(logged, [])
})

t.test('the end of a run without readers comes after the events that wait when it is decided', async t => {
  const { store, producer, hand } = await startProducer({ onDisconnect: 'stop' })
  store.held = []
  hand.yield('1', '2', '3')
  await turns(3)
  t.equal(store.held.length, 1, 'two events wait for the first')
  producer.age(1_000)
  store.release()
  t.match({ ...await producer.finished }, { status: 'stopped', reason: 'disconnect', events: 3 })
})
