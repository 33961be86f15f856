import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { type EventPriority } from '../../lib/events/event-rules.js'
import { bytesOf, type Message } from '../../lib/events/message.js'
import type { Target } from '../../lib/events/target.js'
import { covers } from '../../lib/events/topic.js'
import type { Page } from '../../lib/log/broker.js'
import { LogIndex, type Interest } from '../../lib/log/log-index.js'
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
  }), { numRuns: 2 * RUNS }))
})

t.test('a read for a connection returns what a scan returns and the connection can receive', async t => {
  const TOPICS = ['a', 'a:1', 'a:2', 'a:1:x', 'a:2:x', 'b', 'b:1', 'b:1:x:y', 'c']
  const PATTERNS = ['a:*', 'a:**', 'a:1:**', 'a:*:x', '*:1', '**', 'b:1:x:*', 'c:**', 'd:**']
  const USERS = ['ada', 'alan', 'grace']
  const ids = (of: string[]) => fc.option(fc.array(fc.constantFrom(...of), { maxLength: 10 }), { nil: undefined, freq: 2 })
  const target = fc.record({ subscriptionIds: ids(TOPICS), userIds: ids(USERS), clientIds: ids(['one', 'two']), exceptClientIds: ids(['one']) })
    .map(lists => Object.fromEntries(Object.entries(lists).filter(([, ids]) => ids !== undefined)) as Target)
  const interest = fc.record({ clientId: fc.constantFrom('one', 'two', 'three'), userId: fc.constantFrom(null, ...USERS), subscriptions: fc.uniqueArray(fc.constantFrom(...TOPICS, ...PATTERNS), { maxLength: 4 }).map(list => new Set(list)) })
  const step = fc.oneof(
    { weight: 2, arbitrary: fc.record({ append: fc.integer({ min: 1, max: 200 }), targets: fc.array(target, { minLength: 1, maxLength: 12 }), key: fc.constantFrom(undefined, undefined, 'k') }) },
    { weight: 3, arbitrary: fc.record({ append: fc.constant(0 as const), back: fc.nat(700), limit: fc.integer({ min: 1, max: 40 }), priority, interest }) },
    { weight: 1, arbitrary: fc.record({ append: fc.constant(-1 as const), prepend: fc.integer({ min: 1, max: 5 }), target }) })
  let indexed = 0
  t.doesNotThrow(() => fc.assert(fc.property(fc.constantFrom(60, 300, 1e6), fc.array(step, { minLength: 4, maxLength: 25, size: 'max' }), (maxEvents, steps) => {
    const start = 1_000
    const ring = new Ring({ maxEvents, maxAgeMs: 1e9, maxBytes: 1e9 }, () => 0, start)
    let seq = start
    for (const step of steps) {
      if (step.append > 0) {
        const { targets, key } = step as { targets: Target[], key: string | undefined }
        for (let i = 0; i < step.append; i++) ring.append({ ...logged(++seq, (seq % 7 & 3) as EventPriority, 'x'), target: targets[i % targets.length]!, ...(key !== undefined && { key }) })
      } else if ('prepend' in step) {
        for (let i = 0; i < step.prepend; i++) if (ring.full || !ring.prepend({ ...logged(ring.first - 1, 1, 'x'), target: step.target }, 0)) break
      } else if ('interest' in step) {
        const { interest: { clientId, userId, subscriptions } } = step
        const receives = ({ target: { subscriptionIds, userIds, clientIds, exceptClientIds } }: Message) =>
          (subscriptionIds === undefined || subscriptionIds.some(topic => [...subscriptions].some(subscription => covers(subscription, topic)))) &&
          (userIds === undefined || (userId !== null && userIds.includes(userId))) &&
          (clientIds === undefined || clientIds.includes(clientId)) && exceptClientIds?.includes(clientId) !== true
        const after = Math.max(ring.first - 1, ring.last - step.back)
        const lane = { priority: step.priority, limit: step.limit }
        const all = (read: (after: number) => Page) => {
          const messages: Message[] = []
          for (let at = after, pages = 0; at < ring.last; pages++) {
            const page = read(at)
            assert.ok(page.gap === undefined && page.next > at && page.next <= ring.last && page.messages.length <= step.limit && pages <= ring.last - after)
            assert.ok(page.messages.every(({ seq }) => seq > at && seq <= page.next))
            messages.push(...page.messages)
            at = page.next
          }
          return messages
        }
        const scanned = all(after => ring.read({ ...lane, after }))
        const picked = all(after => ring.read({ ...lane, after, interest: step.interest }))
        if (picked.length < scanned.length) indexed++
        assert.deepEqual(picked.filter(receives).map(({ seq }) => seq), scanned.filter(receives).map(({ seq }) => seq))
        assert.deepEqual(picked.map(({ seq }) => seq), [...new Set(picked)].map(({ seq }) => seq).sort((one, other) => one - other), 'in order, each once')
      }
    }
  }), { numRuns: RUNS }))
  t.ok(indexed > 0, `${indexed} reads left something out`)
})

t.test('a read for a connection looks only at what concerns it', async t => {
  const ring = new Ring({ maxEvents: 1e6, maxAgeMs: 1e9, maxBytes: 1e9 }, Date.now)
  const message = (seq: number, target: Target) => ({ ...logged(seq, 1, 'x'), target })
  for (let seq = 1; seq <= 100_000; seq++) ring.append(message(seq, seq % 1_000 === 0 ? { subscriptionIds: [`user:ada:${seq}`] } : { userIds: [`u${seq % 5_000}`] }))
  const read = (interest: Interest, after = 0) => ring.read({ after, priority: 1, limit: 128, interest })
  const ada = { clientId: 'c', userId: 'ada', subscriptions: new Set(['user:ada:**']) }
  const nobody = { clientId: 'c', userId: null, subscriptions: new Set(['user:grace:**', 'news']) }
  // The index is made in portions, by reads that scan meanwhile.
  let reads = 0
  while (read(nobody).next < ring.last) t.ok(reads++ < 100)
  t.ok(reads > 20, 'each does a part')
  t.strictSame(read(nobody), { messages: [], next: 100_000 })
  const page = read(ada)
  t.equal(page.next, 100_000)
  t.strictSame(page.messages.map(({ seq }) => seq), Array.from({ length: 100 }, (_, i) => (i + 1) * 1_000))
  t.strictSame(read({ ...nobody, userId: 'u7' }, 50_000).messages.map(({ seq }) => seq % 5_000), new Array(10).fill(7))
  // What is published afterwards is found as well.
  for (let seq = 100_001; seq <= 100_200; seq++) ring.append(message(seq, seq === 100_100 ? { subscriptionIds: ['news'] } : {}))
  t.same(read(nobody, 100_050).messages.length, 128, 'messages for everyone are for this connection, too')
  t.ok(read(nobody, 90_000).messages.some(({ seq }) => seq === 100_100))
})

t.test('what a read by the index has not looked at is left to the next read', async t => {
  const ring = new Ring({ maxEvents: 1e6, maxAgeMs: 1e9, maxBytes: 1e9 }, () => 0)
  // A list of 1,250 messages for one user, of which a read looks at 1,024. The next one is the only one of its priority.
  const urgent = 12 * 1_025
  for (let seq = 1; seq <= 15_000; seq++) ring.append({ ...logged(seq, seq === urgent ? 2 : 1, 'x'), target: { userIds: [seq % 12 === 0 ? 'ada' : `u${seq}`] } })
  const read = (after: number) => ring.read({ after, priority: 2, limit: 128, interest: { clientId: 'c', userId: 'ada', subscriptions: new Set() } })
  // The index is made in portions, by reads that scan meanwhile.
  for (let reads = 0; reads < 20; reads++) read(0)
  t.strictSame(read(0), { messages: [], next: urgent - 1 })
  t.strictSame(read(urgent - 1).messages.map(({ seq }) => seq), [urgent])
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

t.test('a message that is put before the others is found by readers that use the index', async t => {
  const ring = new Ring({ maxEvents: 1e6, maxAgeMs: 1e9, maxBytes: 1e9 }, () => 0, 1_000)
  const message = (seq: number, topic: string) => ({ ...logged(seq, 1, 'x'), target: { subscriptionIds: [topic] } })
  for (let seq = 1_001; seq <= 2_000; seq++) ring.append(message(seq, 'other'), 0)
  const read = () => ring.read({ after: ring.first - 1, priority: 1, limit: 10, interest: { clientId: 'c', userId: null, subscriptions: new Set(['mine']) } })
  t.strictSame(read(), { messages: [], next: 2_000 })
  ring.prepend(message(1_000, 'mine'), 0)
  t.strictSame(read(), { messages: [message(1_000, 'mine')], next: 2_000 })
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

t.test('the index lists each message once, by all that can find it, and forgets what leaves the log', async t => {
  const nine = Array.from({ length: 9 }, (_, i) => `id-${i}`)
  const messages: [target: Target, lists: number, found: string[]][] = [
    [{}, 1, ['all']],
    [{ exceptClientIds: ['one'] }, 1, ['all']],
    [{ subscriptionIds: ['a:1:x'] }, 3, ['a:1:x', 'a:**', 'a:1:*']],
    [{ subscriptionIds: ['a:1:y', 'a:1:x', 'a:1:y'] }, 9, ['a:1:x', 'a:1:y', 'a:**', 'a:1:*']],
    [{ subscriptionIds: ['a'], userIds: ['ada'], clientIds: ['one'] }, 2, ['a', 'a:**']],
    [{ userIds: ['a:1', 'ada'], clientIds: ['one'] }, 2, ['user ada']],
    [{ clientIds: ['one', 'one'] }, 2, ['client one']],
    [{ subscriptionIds: [] }, 1, []],
    [{ userIds: nine.slice(1) }, 8, ['user id-3']],
    [{ userIds: nine }, 1, ['all']],
    [{ subscriptionIds: ['b:2'] }, 3, ['b:2', 'b:*']],
    [{ subscriptionIds: ['b:2'] }, 3, ['b:2', 'b:*']]
  ]
  const names = ['all', 'a', 'a:1:x', 'a:1:y', 'a:**', 'a:1:*', 'b:2', 'b:*', 'user ada', 'user id-3', 'client one']
  const index = new LogIndex()
  const listed = (name: string) => {
    const [kind, id] = name.split(' ')
    const interest = { clientId: kind === 'client' ? id! : 'other', userId: kind === 'user' ? id! : null, subscriptions: new Set(name === 'all' || id !== undefined ? [] : [name]) }
    t.ok(LogIndex.serves(interest))
    return index.lists(interest).map(list => Array.from({ length: list.end - list.indexAfter(0) }, (_, i) => list.at(list.indexAfter(0) + i)))
  }
  const check = (from: number) => {
    for (const name of names) {
      const seqs = (of: string) => messages.flatMap(([,, found], i) => i >= from && found.includes(of) ? [i + 1] : [])
      t.strictSame(listed(name), name === 'all' || seqs(name).length === 0 ? [seqs('all')] : [seqs('all'), seqs(name)], `${name} from ${from}`)
    }
  }
  messages.forEach(([target, lists], i) => t.equal(index.add(i + 1, target), lists, JSON.stringify(target)))
  check(0)
  messages.forEach(([target], i) => {
    index.remove(i + 1, target)
    check(i + 1)
  })
  const many = (count: number) => ({ clientId: 'c', userId: null, subscriptions: new Set(Array.from({ length: count }, (_, i) => `t${i}`)) })
  t.strictSame([160, 161].map(count => LogIndex.serves(many(count))), [true, false], 'with more a scan is cheaper')
  for (const subscription of ['**', '*', '*:a']) t.notOk(LogIndex.serves({ ...many(0), subscriptions: new Set([subscription]) }), `${subscription} finds everything`)
})

t.test('an index that is not complete is not read, and what was trimmed is let go', async t => {
  const ring = new Ring({ maxEvents: 1e6, maxAgeMs: 1e9, maxBytes: 1e9 }, () => 0)
  // As many as one read takes into the index, and one more.
  for (let seq = 1; seq <= 2_049; seq++) ring.append({ ...logged(seq, 1, 'x'), target: { userIds: [seq === 2_049 ? 'ada' : `u${seq}`] } })
  const found: Message[] = []
  for (let after = 0; after < ring.last;) {
    const page = ring.read({ after, priority: 1, limit: 10, interest: { clientId: 'c', userId: 'ada', subscriptions: new Set() } })
    found.push(...page.messages.filter(({ target }) => target.userIds!.includes('ada')))
    after = page.next
  }
  t.equal(found.length, 1)

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
