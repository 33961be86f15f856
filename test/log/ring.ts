import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { type EventPriority } from '../../lib/events/event-rules.js'
import { bytesOf, type Message } from '../../lib/events/message.js'
import type { Target } from '../../lib/events/target.js'
import type { Page } from '../../lib/log/broker.js'
import { Ring } from '../../lib/log/ring.js'
import { collect } from '../helpers/heap.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 300)
fc.configureGlobal({ includeErrorInReport: true })
const priority = fc.constantFrom<EventPriority>(0, 1, 2, 3)
const outgoing = { event: 'x', target: {}, ephemeral: false }
const logged = (seq: number, priority: EventPriority, data: string): Message => ({ ...outgoing, seq, priority, data })

t.test('the ring keeps the newest by count, age and bytes, and pages through one lane without a hole', async t => {
  const target = fc.constantFrom<Target>({}, { userIds: ['a', 'b'] }, { subscriptionIds: ['t'] }, { filter: () => true })
  const key = fc.constantFrom(undefined, undefined, 'k', 'l')
  const step = fc.oneof(
    { weight: 3, arbitrary: fc.record({ append: fc.constant(true as const), priority, target, key, data: fc.constantFrom('', 'x', 'é', '😀😀', 'x'.repeat(20)), wait: fc.constantFrom(0, 0, 1, 7) }) },
    { weight: 1, arbitrary: fc.record({ append: fc.constant(false as const), priority, after: fc.nat(60), limit: fc.integer({ min: 1, max: 5 }), wait: fc.constantFrom(0, 1, 30) }) })
  const history = fc.record({ maxEvents: fc.constantFrom(1, 3, 20, 1000), maxAgeMs: fc.constantFrom(10, 50, 1e9), maxBytes: fc.constantFrom(8, 60, 1e9) })
  t.doesNotThrow(() => fc.assert(fc.property(history, fc.array(step, { maxLength: 80, size: 'max' }), (history, steps) => {
    let now = 1000
    const ring = new Ring(history, () => now)
    let kept: { message: Message, at: number }[] = []
    let last = 0
    const size = () => kept.reduce((sum, { message }) => sum + bytesOf(message), 0)
    const isReplaced = ({ seq, key, target }: Message) => key !== undefined && target.filter === undefined &&
      kept.some(({ message }) => message.seq > seq && message.key === key && message.target === target)
    const trim = () => {
      while (kept.length > 0 && (kept.length > history.maxEvents || (size() > history.maxBytes && kept.length > 1) || now - kept[0]!.at > history.maxAgeMs)) kept = kept.slice(1)
    }
    for (const step of steps) {
      now += step.wait
      if (step.append) {
        const message: Message = { ...logged(++last, step.priority, step.data), target: step.target, ...(step.key !== undefined && { key: step.key }) }
        ring.append(message)
        kept.push({ message, at: now })
        trim()
      } else {
        trim()
        const first = kept[0]?.message.seq ?? last + 1
        const page = ring.read(step)
        if (step.after > last) assert.deepEqual(page, { messages: [], next: last, gap: 'unknown' })
        else if (step.after < first - 1) assert.deepEqual(page, { messages: [], next: last, gap: 'trimmed' })
        else {
          const lane = kept.map(({ message }) => message).filter(({ seq, priority }) => seq > step.after && priority === step.priority).filter(message => !isReplaced(message))
          assert.deepEqual(page.messages, lane.slice(0, step.limit))
          assert.equal(page.gap, undefined)
          // Nothing of the lane may lie between what was read and where the next page begins.
          assert.ok(page.next >= step.after && page.next <= last)
          assert.ok(lane.length > step.limit ? page.next >= lane[step.limit - 1]!.seq && page.next < lane[step.limit]!.seq : page.next === last)
        }
      }
      assert.deepEqual([ring.first, ring.last, ring.bytes], [kept[0]?.message.seq ?? last + 1, last, size()])
    }
    for (let waits = 0; waits < 5; waits++) {
      now += 20
      trim()
      assert.deepEqual([ring.size, ring.first], [{ events: kept.length, bytes: size() }, kept[0]?.message.seq ?? last + 1], 'also while nothing is published')
    }
  }), { numRuns: 2 * RUNS }))
})

t.test('keys of messages that have left the ring take no memory', async t => {
  const ring = new Ring({ maxEvents: 10, maxAgeMs: 1e9, maxBytes: 1e9 }, () => 0)
  const before = collect()
  for (let seq = 1; seq <= 50_000; seq++) ring.append({ ...logged(seq, 1, 'x'), key: `key ${seq} ${'x'.repeat(50)}` })
  t.ok(collect() - before < 1 << 20)
  t.equal(ring.last, 50_000)
})

t.test('one read of the ring looks at a bounded number of messages, and an event for many counts for what it keeps', async t => {
  const ring = new Ring({ maxEvents: 1e6, maxAgeMs: 1e9, maxBytes: 1_000_000 }, Date.now)
  for (let seq = 1; seq <= 10_000; seq++) ring.append(logged(seq, seq === 9_999 ? 3 : 1, 'x'))
  const pages: Page[] = []
  for (let after = 0; after < ring.last; after = pages.at(-1)!.next) pages.push(ring.read({ after, priority: 3, limit: 128 }))
  t.ok(pages.length >= 4, `${pages.length} pages`)
  t.strictSame(pages.flatMap(({ messages }) => messages.map(({ seq }) => seq)), [9_999])
  const userIds = Array.from({ length: 5_000 }, (_, i) => `user-${i}`)
  for (let seq = 10_001; seq <= 10_050; seq++) ring.append({ ...logged(seq, 1, 'x'), target: { userIds } })
  t.ok(ring.last - ring.first < 20 && ring.bytes <= 1_000_000)
})

t.test('the ring over many rounds of its own size', async t => {
  const ring = new Ring({ maxEvents: 100, maxAgeMs: 1e9, maxBytes: 1e9 }, Date.now)
  for (let seq = 1; seq <= 10_000; seq++) ring.append(logged(seq, (seq % 4) as EventPriority, String(seq)))
  t.strictSame([ring.first, ring.last], [9_901, 10_000])
  for (const priority of [0, 1, 2, 3] as const) {
    const seqs: number[] = []
    for (let after = 9_900; after < ring.last;) {
      const page = ring.read({ after, priority, limit: 7 })
      seqs.push(...page.messages.map(message => message.seq))
      after = page.next
    }
    t.strictSame(seqs, Array.from({ length: 25 }, (_, i) => 9_901 + i * 4 + (priority + 3) % 4))
  }
})

t.test('what the bounds exclude is not put before the others, and a message is as old as the log says', async t => {
  let now = 10_000
  const ring = new Ring({ maxEvents: 3, maxAgeMs: 1_000, maxBytes: 1e9 }, () => now, 4)
  const state = () => [ring.first, ring.last, ring.full]
  t.strictSame(state(), [5, 4, false])
  ring.append(logged(5, 1, 'x'), now - 400)
  ring.append(logged(6, 1, 'x'), now - 300)
  t.equal(ring.prepend(logged(4, 1, 'x'), now - 500), true)
  t.strictSame(ring.read({ after: 3, priority: 1, limit: 9 }).messages.map(({ seq }) => seq), [4, 5, 6])
  t.strictSame(state(), [4, 6, false])
  t.equal(ring.prepend(logged(3, 1, 'x'), now - 600), false, 'one too many')
  t.strictSame(state(), [4, 6, true])
  now += 650
  t.equal(ring.read({ after: 5, priority: 1, limit: 9 }).messages.length, 1, 'by the times at which they were logged')
  t.strictSame(state(), [6, 6, true])
  t.equal(ring.read({ after: 4, priority: 1, limit: 9 }).gap, 'trimmed')
  t.equal(ring.prepend(logged(5, 1, 'x'), now - 1_001), false, 'too old')
  t.strictSame(state(), [6, 6, true])
})

t.test('an older message with a key does not replace a newer one', async t => {
  const ring = new Ring({ maxEvents: 100, maxAgeMs: 1e9, maxBytes: 1e9 }, () => 0, 20)
  const keyed = (seq: number) => ({ ...logged(seq, 1, 'x'), key: 'k' })
  ring.append(keyed(21))
  for (let seq = 20; seq > 0; seq--) ring.prepend(keyed(seq), 0)
  t.strictSame(ring.read({ after: 0, priority: 1, limit: 9 }), { messages: [keyed(21)], next: 21 })
})

t.test('what was trimmed is let go', async t => {
  const small = new Ring({ maxEvents: 2, maxAgeMs: 1e9, maxBytes: 1e9 }, () => 0)
  const references = [1, 2, 3].map(seq => {
    const message = logged(seq, 1, 'x')
    small.append(message)
    return new WeakRef(message)
  })
  await new Promise(resolve => setImmediate(resolve))
  collect()
  t.strictSame(references.map(reference => reference.deref() === undefined), [true, false, false])
  t.equal(small.last, 3)
})
