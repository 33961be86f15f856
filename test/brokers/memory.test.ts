import { test } from 'tap'
import type { OutgoingMessage } from '../../lib/events/message.js'
import { memoryBroker } from '../../lib/log/memory-broker.js'
import { EventPriority } from '../../lib/events/event-rules.js'
import { brokerContract, testClock } from '../../lib/testing/index.js'
import { collect } from '../helpers/heap.js'

brokerContract(test, 'memory', memoryBroker)

test('a delivery that throws against its promise rejects its own publish, and no other', async t => {
  const broker = memoryBroker()
  const message = (data: string): OutgoingMessage => ({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false })
  const publish = async (data: string) => await broker.publish(message(data))
  const delivered: string[] = []
  const inner: Promise<unknown>[] = []
  await broker.open({
    deliver: ({ data }) => {
      delivered.push(data)
      if (data === 'outer') inner.push(publish('first'), publish('second'))
      if (data !== 'second') throw new Error(`${data} fails`)
      return 7
    },
    gap: () => {},
    state: () => {}
  }, { maxEvents: 10, maxAgeMs: 60_000, maxBytes: 1_000 })
  await t.rejects(publish('outer'), { message: 'outer fails' })
  const [first, second] = await Promise.allSettled(inner)
  t.match(first, { status: 'rejected', reason: { message: 'first fails' } })
  t.strictSame(second, { status: 'fulfilled', value: { seq: 3, delivered: 7 } })
  t.strictSame(delivered, ['outer', 'first', 'second'])
})

const HISTORY = { maxEvents: 1_000, maxAgeMs: 60_000, maxBytes: 1 << 20 }
const SILENT = { deliver: () => 0, gap: () => {}, state: () => {} }

test('ages and claims go by the clock of the node, and claims that are over take no memory', async t => {
  const time = testClock()
  const broker = memoryBroker()
  await broker.open(SILENT, HISTORY, time.clock.wall)
  await broker.publish({ event: 'e', data: 'x', priority: EventPriority.NORMAL, target: {}, ephemeral: false })
  const read = () => broker.read({ epoch: broker.epoch, after: 0, priority: EventPriority.NORMAL, limit: 1 })
  t.equal(await broker.claim('key', 1_000), true)
  await time.advance(999)
  t.equal(await broker.claim('key', 1_000), false)
  await time.advance(1)
  t.equal(await broker.claim('key', 1_000), true, 'its time is over')
  await time.advance(59_000)
  t.equal((await read()).messages.length, 1)
  const { size } = broker
  t.ok(size!.events === 1 && size!.bytes > 0)
  t.strictSame(await broker.read({ epoch: 'other', after: 0, priority: EventPriority.NORMAL, limit: 1 }), { messages: [], next: 1, gap: 'epoch' })
  await time.advance(1)
  t.strictSame(broker.size, { events: 0, bytes: 0 })
  t.equal((await read()).gap, 'trimmed')

  const before = collect()
  for (let i = 0; i < 30_000; i++) {
    await broker.claim(`${i}-${'x'.repeat(1_000)}`, 1_000)
    if (i % 1_000 === 0) await time.advance(1_000)
  }
  t.ok(collect() - before < 8 << 20, 'of 30 MB')
})

test('a claim of which the time is over is over, also behind a longer one, and those claimed in between leave', async t => {
  const time = testClock()
  const broker = memoryBroker()
  await broker.open(SILENT, HISTORY, time.clock.wall)
  const before = collect()
  await broker.claim('long', 1_000)
  await broker.claim('short', 10)
  for (let i = 0; i < 10_000; i++) await broker.claim(`${i}-${'x'.repeat(1_000)}`, 1_000)
  await time.advance(9)
  t.equal(await broker.claim('short', 10), false)
  await time.advance(1)
  t.equal(await broker.claim('short', 1e9), true)
  await time.advance(990)
  t.equal(await broker.claim('long', 1), true)
  t.ok(collect() - before < 4 << 20, 'of 10 MB')
  t.equal(await broker.claim('short', 10), false)
})

test('a broker that is closed during a delivery answers what waits, and keeps nothing', async t => {
  const broker = memoryBroker()
  const waiting: unknown[] = []
  const message = (data: string): OutgoingMessage => ({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false })
  await broker.open({
    ...SILENT,
    deliver: () => {
      waiting.push(broker.publish(message('second')))
      broker.close()
      return 1
    }
  }, HISTORY)
  const kept = new WeakRef(await (async () => {
    const first = message('first')
    t.strictSame(await broker.publish(first), { seq: 1, delivered: 1 })
    return first
  })())
  t.strictSame(await Promise.all(waiting), [{ seq: 2, delivered: 0 }])
  await new Promise(resolve => setImmediate(resolve))
  collect()
  t.equal(kept.deref(), undefined)
})
