import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import type { EventPriority } from '../../lib/events/event-rules.js'
import type { Target } from '../../lib/events/target.js'
import { decodeEntry, decodeNodeMessage, headOf } from '../../lib/log/redis/entry.js'
import { ServerClock } from '../../lib/log/redis/server-clock.js'
import { fakeTimers } from '../helpers/timers.js'

const GOOD = { event: 'e', priority: 1, target: {}, nonce: 'n' }
const NOTHING = { message: null, nonce: '', time: 0, other: 0, command: 0, commandTime: 0 }
const entry = (head: unknown, more: Record<string, string> = {}) => {
  const fields = { t: '100', b: '7', o: '3', h: typeof head === 'string' ? head : JSON.stringify(head), d: 'data', c: '2', ct: '90', ...more }
  return ['5-6', Object.entries(fields).flat()]
}

t.test('a message is decoded as it was encoded', async t => {
  const ids = fc.option(fc.array(fc.string(), { maxLength: 3 }), { nil: undefined })
  const name = fc.string({ minLength: 1 }).filter(text => !/[\r\n\0]/.test(text))
  const message = fc.record({
    event: name,
    priority: fc.constantFrom<EventPriority>(0, 1, 2, 3),
    retry: fc.option(fc.oneof(fc.constantFrom(100, 3_600_000), fc.integer({ min: 100, max: 3_600_000 })), { nil: undefined }),
    key: fc.option(fc.string(), { nil: undefined }),
    target: fc.record({ userIds: ids, subscriptionIds: ids, clientIds: ids, exceptClientIds: ids }).map(lists => Object.fromEntries(Object.entries(lists).filter(([, ids]) => ids !== undefined)) as Target),
    data: fc.string()
  })
  const whole = (value: unknown) => JSON.parse(JSON.stringify(value)) as object
  t.doesNotThrow(() => fc.assert(fc.property(message, fc.string(), fc.boolean(), fc.boolean(), (message, nonce, ephemeral, isOld) => {
    const [id, fields] = entry(headOf({ ...message, ephemeral }, nonce), { d: message.data })
    const seq = ephemeral ? 0 : 6
    const decoded = decodeEntry([id, isOld ? fields!.slice(0, 12) : fields], ephemeral)
    assert.deepEqual(whole(decoded), { message: whole({ ...message, ephemeral, seq }), nonce, epoch: 5, number: 6, time: 100, other: 3, command: 2, commandTime: isOld ? 0 : 90 })
    assert.deepEqual(whole(decodeNodeMessage(['7-8', ['h', headOf({ ...message, ephemeral: true }, ''), 'd', message.data]])), whole({ ...message, ephemeral: true, seq: 0 }))
  }), { numRuns: 300 }))
})

t.test('an entry that this package did not write, or that cannot be delivered, has no message', async t => {
  const heads: unknown[] = ['', '{', 'null', '7', [], { ...GOOD, event: '' }, { ...GOOD, event: 'a\nb' }, { ...GOOD, event: 'a\rb' }, { ...GOOD, event: 'a\0b' }, { ...GOOD, event: 1 }, { ...GOOD, event: undefined },
    { ...GOOD, priority: -1 }, { ...GOOD, priority: 4 }, { ...GOOD, priority: 1.5 }, { ...GOOD, priority: '1' }, { ...GOOD, priority: undefined },
    { ...GOOD, retry: 99 }, { ...GOOD, retry: 3_600_001 }, { ...GOOD, retry: 100.5 }, { ...GOOD, retry: '100' }, { ...GOOD, key: 1 }, { ...GOOD, target: undefined }, { ...GOOD, target: null }, { ...GOOD, nonce: undefined }, { ...GOOD, nonce: 1 },
    ...['userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds'].flatMap(ids => ['ada', [1], {}, null].map(value => ({ ...GOOD, target: { [ids]: value } })))]
  for (const head of heads) {
    t.strictSame(decodeEntry(entry(head), false), { ...NOTHING, epoch: 5, number: 6 }, JSON.stringify(head))
    t.equal(decodeNodeMessage(['7-8', ['h', typeof head === 'string' ? head : JSON.stringify(head), 'd', '']]), null)
  }
  for (const [field, values] of [['t', ['', '-1', '1.5', '1e3', 'x', ' 1', '1\n', '1'.repeat(16)]], ['o', ['', '-1', 'x', '1'.repeat(16)]]] as const) {
    for (const value of values) t.equal(decodeEntry(entry(GOOD, { [field]: value }), false).message, null, `${field}: ${value}`)
  }
  t.match(decodeEntry(entry(GOOD, { t: '9'.repeat(15), o: '0' }), false), { message: { seq: 6 }, time: 999_999_999_999_999, other: 0 })
  const fields = entry(GOOD)[1] as string[]
  for (const at of [0, 2, 4, 6, 8]) t.equal(decodeEntry(['5-6', fields.map((text, i) => i === at ? 'x' : text)], false).message, null, `field ${at}`)
  for (const short of [[], ['a', 'b'], fields.slice(0, 4)]) t.equal(decodeEntry(['5-6', short], false).message, null)
  for (const foreign of [['a', 'b'], ['x', JSON.stringify(GOOD), 'd', ''], ['h', JSON.stringify(GOOD), 'x', '']]) t.equal(decodeNodeMessage(['7-8', foreign]), null)
})

t.test('times of Redis are converted by what its last reply has said', async t => {
  const time = fakeTimers(t)
  const clock = new ServerClock()
  const start = Date.now()
  t.strictSame([clock.now, clock.localTime(5)], [start, 5])
  for (const aheadMs of [60_000, -60_000]) {
    clock.observe(Date.now() + aheadMs)
    await time.advance(1_000)
    t.strictSame([clock.now - Date.now(), clock.localTime(clock.now) - Date.now()], [aheadMs, 0])
  }
})
