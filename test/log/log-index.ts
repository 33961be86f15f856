import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { type EventPriority } from '../../lib/events/event-rules.js'
import type { Message } from '../../lib/events/message.js'
import type { Target } from '../../lib/events/target.js'
import { covers } from '../../lib/events/topic.js'
import type { Page } from '../../lib/log/broker.js'
import { LogIndex, type Interest } from '../../lib/log/log-index.js'
import { Postings } from '../../lib/log/postings.js'
import { Ring } from '../../lib/log/ring.js'
import { collect } from '../helpers/heap.js'

const STRANGER: Interest = { clientId: 'stranger', userId: null, subscriptions: new Set(['stranger']) }
const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 300)
fc.configureGlobal({ includeErrorInReport: true })
const priority = fc.constantFrom<EventPriority>(0, 1, 2, 3)
const outgoing = { event: 'x', target: {}, ephemeral: false }
const logged = (seq: number, priority: EventPriority, data: string): Message => ({ ...outgoing, seq, priority, data })

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
  let quiet = 0
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
        const receivesAs = ({ clientId, userId, subscriptions }: Interest) => ({ target: { subscriptionIds, userIds, clientIds, exceptClientIds } }: Message) =>
          (subscriptionIds === undefined || subscriptionIds.some(topic => [...subscriptions].some(subscription => covers(subscription, topic)))) &&
          (userIds === undefined || (userId !== null && userIds.includes(userId))) &&
          (clientIds === undefined || clientIds.includes(clientId)) && exceptClientIds?.includes(clientId) !== true
        const receives = receivesAs(step.interest)
        const after = Math.max(ring.first - 1, ring.last - step.back)
        const missed: Message[] = []
        for (let priority = 0 as EventPriority; priority < 4; priority++) {
          for (let at = after; at < ring.last;) {
            const page = ring.read({ after: at, priority, limit: 1_000 })
            missed.push(...page.messages)
            at = page.next
          }
        }
        for (const interest of [step.interest, STRANGER]) {
          if (!ring.hasNothing(after, interest)) continue
          assert.ok(!missed.some(receivesAs(interest)))
          if (after < ring.last) quiet++
        }
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
  t.ok(quiet > 0, `${quiet} times nothing was known to be missed`)
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

t.test('nothing is known of messages that have become too old meanwhile', t => {
  let now = 0
  const ring = new Ring({ maxEvents: 10_000, maxAgeMs: 1_000, maxBytes: 1e9 }, () => now)
  for (let seq = 1; seq <= 200; seq++) ring.append({ ...logged(seq, 1, 'x'), target: { userIds: ['ada'] } })
  t.equal(ring.hasNothing(0, STRANGER), true)
  now = 1_001
  t.equal(ring.hasNothing(0, STRANGER), false)
  t.end()
})

t.test('it is known at once that a connection has missed nothing, without a scan and not beyond what the ring has', t => {
  const ring = new Ring({ maxEvents: 10_000, maxAgeMs: 1e9, maxBytes: 1e9 }, () => 0)
  const connection = (userId: string | null, ...subscriptions: string[]): Interest => ({ clientId: 'c', userId, subscriptions: new Set(subscriptions) })
  const append = (count: number, target: Target): void => { for (let n = 0; n < count; n++) ring.append({ ...logged(ring.last + 1, 1, 'x'), target }) }
  const nobody = connection(null, 'news')
  append(127, { userIds: ['ada'] })
  t.equal(ring.hasNothing(0, nobody), false, 'for a few messages no index is made')
  append(1, { userIds: ['ada'] })
  t.equal(ring.hasNothing(0, nobody), true)
  append(5_000, { userIds: ['ada'] })
  const answers: boolean[] = []
  for (let asked = 0; asked < 5; asked++) answers.push(ring.hasNothing(0, nobody))
  t.strictSame(answers, [false, false, true, true, true], 'the index is made in portions')
  t.equal(ring.hasNothing(ring.last - 1, nobody), true, 'then it serves for a few messages, too')
  t.equal(ring.hasNothing(ring.last, connection('ada')), true)
  t.equal(ring.hasNothing(ring.last - 1, connection('ada')), false)
  t.equal(ring.hasNothing(0, connection(null, 'room:*:x')), true)
  t.equal(ring.hasNothing(0, connection(null, '*')), false, 'a wildcard at the beginning needs a scan')
  t.equal(ring.hasNothing(ring.last + 1, nobody), false, 'ahead of the ring')
  append(1, {})
  t.equal(ring.hasNothing(0, nobody), false, 'one for everyone')
  t.equal(ring.hasNothing(ring.last, nobody), true)
  append(10_000, { userIds: ['ada'] })
  while (!ring.hasNothing(ring.first - 1, nobody)) t.ok(answers.push(true) < 20)
  t.equal(ring.hasNothing(ring.first - 2, nobody), false, 'older messages are gone')
  append(1, { subscriptionIds: ['news'] })
  t.equal(ring.hasNothing(ring.last - 1, nobody), false)
  t.end()
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

t.test('several long lists are read by the index as far as all of them were looked at, each message once and in order', async t => {
  const ring = new Ring({ maxEvents: 1e6, maxAgeMs: 1e9, maxBytes: 1e9 }, () => 0)
  // Of five lists, a read looks at 409 messages each: those of `a` and `d` are cut, at different places.
  const EVERY = { a: 50, b: 400, c: 1_000, d: 60 }
  const topicsOf = (seq: number) => Object.entries(EVERY).filter(([, every]) => seq % every === 0).map(([topic]) => topic)
  const priorityOf = (seq: number) => seq % 100 === 0 || seq % 180 === 0 ? 2 : 1
  for (let seq = 1; seq <= 40_000; seq++) ring.append({ ...logged(seq, priorityOf(seq), 'x'), target: topicsOf(seq).length > 0 ? { subscriptionIds: topicsOf(seq) } : { userIds: [`u${seq}`] } })
  const interest = { clientId: 'c', userId: null, subscriptions: new Set(Object.keys(EVERY)) }
  const read = (after: number, limit: number) => ring.read({ after, priority: 2, limit, interest })
  for (let reads = 0; reads < 100; reads++) read(0, 1)
  for (const limit of [100, 300, 400]) {
    const found: number[] = []
    let pages = 0
    for (let after = 0; after < ring.last; pages++) {
      const { messages, next, gap } = read(after, limit)
      assert.ok(gap === undefined && next > after && messages.length <= limit && messages.every(({ seq }) => seq > after && seq <= next))
      found.push(...messages.map(({ seq }) => seq))
      after = next
    }
    t.ok(pages > 1 && pages < 10, `${pages} pages: a scan needs 20`)
    t.strictSame(found.filter(seq => topicsOf(seq).length > 0), Array.from({ length: 40_000 }, (_, i) => i + 1).filter(seq => topicsOf(seq).length > 0 && priorityOf(seq) === 2))
  }
})

t.test('a list of numbers is what a naive list is, and keeps no more than twice its numbers', async t => {
  const step = fc.oneof({ weight: 3, arbitrary: fc.record({ add: fc.nat(3) }) }, { weight: 2, arbitrary: fc.record({ remove: fc.nat(2) }) })
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(fc.nat(3), { maxLength: 2 }), fc.array(step, { maxLength: 60, size: 'max' }), (start, steps) => {
    let list = [...new Set(start)].sort((one, other) => one - other)
    let newest = list.at(-1) ?? 0
    const postings = new Postings(...list)
    for (const step of steps) {
      if ('add' in step) {
        // Some are the newest already.
        newest += step.add
        if (list.length === 0) newest++
        if (list.at(-1) !== newest) list.push(newest)
        postings.add(newest)
      } else {
        const seq = (list[0] ?? newest) + (step.remove === 0 ? 0 : step.remove - 3)
        list = list.filter((other, i) => i > 0 || other !== seq)
        assert.equal(postings.removeOldest(seq), list.length)
      }
      for (let after = (list[0] ?? newest) - 2; after <= newest + 1; after++) {
        const at = postings.indexAfter(after)
        assert.deepEqual(Array.from({ length: postings.end - at }, (_, i) => postings.at(at + i)), list.filter(seq => seq > after))
      }
      assert.ok(postings.end <= Math.max(2, 2 * list.length))
    }
  }), { numRuns: RUNS }))
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

t.test('the index lists each message once, by all that can find it, and forgets what leaves the log', async t => {
  const nine = Array.from({ length: 9 }, (_, i) => `id-${i}`)
  const messages: [target: Target, lists: number, found: string[]][] = [
    [{}, 1, ['all']],
    [{ exceptClientIds: ['one'] }, 1, ['all']],
    [{ subscriptionIds: ['a:1:x'] }, 3, ['a:1:x', 'a:**', 'a:1:*', 'a:1:x:*']],
    [{ subscriptionIds: ['a:1:y', 'a:1:x', 'a:1:y'] }, 9, ['a:1:x', 'a:1:y', 'a:**', 'a:1:*', 'a:1:x:*']],
    [{ subscriptionIds: ['a'], userIds: ['ada'], clientIds: ['one'] }, 2, ['a', 'a:**']],
    [{ userIds: ['a:1', 'ada'], clientIds: ['one'] }, 2, ['user ada']],
    [{ clientIds: ['one', 'one'] }, 2, ['client one']],
    [{ subscriptionIds: [] }, 1, []],
    [{ userIds: nine.slice(1) }, 8, ['user id-3']],
    [{ userIds: nine }, 1, ['all']],
    [{ subscriptionIds: ['b:2'] }, 3, ['b:2', 'b:*']],
    [{ subscriptionIds: ['b:2'] }, 3, ['b:2', 'b:*']]
  ]
  const names = ['all', 'a', 'a:1:x', 'a:1:y', 'a:**', 'a:1:*', 'a:1:x:*', 'b:2', 'b:*', 'user ada', 'user id-3', 'client one']
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
  t.equal(index.lists({ clientId: 'one', userId: 'ada', subscriptions: new Set(names.slice(1, 9)) }).length, 1, 'empty lists are no lists')
  const many = (count: number) => ({ clientId: 'c', userId: null, subscriptions: new Set(Array.from({ length: count }, (_, i) => `t${i}`)) })
  t.strictSame([160, 161].map(count => LogIndex.serves(many(count))), [true, false], 'with more a scan is cheaper')
  for (const subscription of ['**', '*', '*:a']) t.notOk(LogIndex.serves({ ...many(0), subscriptions: new Set([subscription]) }), `${subscription} finds everything`)
})

t.test('an index that is not complete is not read', async t => {
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
})

t.test('the index of what has left the ring takes no memory', async t => {
  const ring = new Ring({ maxEvents: 300, maxAgeMs: 1e9, maxBytes: 1e9 }, () => 0)
  const before = collect()
  for (let seq = 1; seq <= 60_000; seq++) {
    ring.append({ ...logged(seq, 1, 'x'), target: seq % 2 === 0 ? {} : { subscriptionIds: ['a', `b:${seq}:${'x'.repeat(50)}`] } })
    if (seq % 100 === 0) ring.read({ after: ring.first - 1, priority: 1, limit: 1, interest: { clientId: 'c', userId: null, subscriptions: new Set(['a']) } })
  }
  t.ok(collect() - before < 2 << 20)
  t.equal(ring.last, 60_000)
})
