import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { type EventPriority } from '../../lib/events/event-rules.js'
import { bytesOf, type Message } from '../../lib/events/message.js'
import type { Target } from '../../lib/events/target.js'
import type { Page } from '../../lib/log/broker.js'
import { Ring } from '../../lib/log/ring.js'

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
  }), { numRuns: 2 * RUNS }))
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
