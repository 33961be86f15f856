import t from 'tap'
import { systemClock } from '../lib/util/clock.js'
import { createId } from '../lib/util/id.js'
import { MemoryBudget } from '../lib/util/memory-budget.js'
import { portions } from '../lib/util/long-list.js'
import { isThenable } from '../lib/util/promise.js'
import { kindOf, quote, shorten, shown } from '../lib/util/quote.js'
import { alternatives, suggestion } from '../lib/util/suggestion.js'
import { bytesOfText, memoryBytes, ownText } from '../lib/util/text.js'
import { inTime } from '../lib/util/timeout.js'
import { collectAll } from './helpers/heap.js'
import './util/logging.js'
import './util/option-schema.js'

t.test('a budget counts each thing once, however many hold it', async t => {
  const budget = new MemoryBudget(100)
  const [one, other] = [{ bytes: 60, holders: 0 }, { bytes: 41, holders: 0 }]
  budget.hold(one)
  budget.hold(one)
  t.strictSame([budget.used, one.holders, budget.exceeded], [60, 2, false])
  t.strictSame([budget.fits(other), budget.fits(one), budget.fits(one, 40), budget.fits(one, 41)], [false, true, true, false])
  budget.add(40)
  t.strictSame([budget.used, budget.exceeded, budget.fits(one)], [100, false, true])
  budget.hold(other)
  t.strictSame([budget.used, budget.exceeded], [141, true])
  budget.release(one)
  t.equal(budget.used, 141, 'another holds it')
  budget.release(one)
  budget.release(other)
  budget.add(-40)
  t.strictSame([budget.used, one.holders, other.holders], [0, 0, 0])
})

t.test('holders give memory back, oldest first, until a thing fits, and not one more', async t => {
  const budget = new MemoryBudget(100)
  const asked: number[] = []
  budget.add(130)
  for (const bytes of [10, 20, 30, 40]) budget.yielders.add({ giveBack () { asked.push(bytes); budget.add(-bytes) } })
  const thing = { bytes: 20, holders: 0 }
  t.equal(budget.reclaim(thing), true)
  t.strictSame([asked.splice(0), budget.used], [[10, 20, 30], 70])
  t.strictSame([budget.reclaim(thing), budget.reclaim(thing, 10)], [true, true], 'it fits, to the byte')
  t.strictSame(asked, [])
  budget.yielders.clear()
  budget.yielders.add({ giveBack () { budget.add(-1) } })
  t.strictSame([budget.reclaim(thing, 11), budget.reclaim(thing, 13)], [true, false], 'also what the last one gives counts')
  t.equal(budget.used, 68)
})

t.test('portions have all items once, in order, each portion in a turn of its own', async t => {
  for (const [count, sizes] of [[0, [0]], [2, [2]], [3, [3, 0]], [4, [3, 1]], [7, [3, 3, 1]]] as const) {
    let turns = 0
    const next = () => { turns++; turn = setImmediate(next) }
    let turn = setImmediate(next)
    const seen: (readonly number[])[] = []
    const at: number[] = []
    for await (const portion of portions(Array.from({ length: count }, (_, i) => i).values(), 3)) {
      seen.push(portion)
      at.push(turns)
    }
    clearImmediate(turn)
    t.strictSame(seen.map(portion => portion.length), sizes)
    t.strictSame(seen.flat(), Array.from({ length: count }, (_, i) => i))
    t.equal(new Set(at).size, at.length)
  }
})

t.test('names that were meant', async t => {
  const rows: [name: string, known: string[], meant: string | null][] = [
    ['keepAlvie', ['keepAlive', 'keepAliveMs'], 'keepAlive'],
    ['KEEPALIVE', ['other', 'keepAlive'], 'keepAlive'],
    ['retr', ['retryMs'], 'retryMs'],
    ['ret', ['retryMs'], null],
    ['teh', ['the'], 'the'],
    ['ab', ['ba', 'cd'], 'ba'],
    ['a', ['b'], 'b'],
    ['', ['a'], null],
    ['abcdefghi', ['abcdef'], 'abcdef'],
    ['abcdefghij', ['abcdef'], null],
    ['xbcdxf', ['abcdef'], 'abcdef'],
    ['xbxdxf', ['abcdef'], null],
    ['abcd', ['abce', 'abcf'], 'abce']
  ]
  for (const [name, known, meant] of rows) t.equal(suggestion(name, known), meant === null ? '' : `; did you mean "${meant}"?`, name)
  const many = (count: number) => Array.from({ length: count }, (_, i) => `name${i}`)
  t.equal(alternatives('zzz', ['a', 'b']), ': it has a, b')
  t.match(alternatives('zzz', many(12)), /^: it has name0, .*, name11$/)
  t.equal(alternatives('zzz', many(13)), '', 'a long list helps nobody')
})

t.test('values in messages', async t => {
  t.strictSame([shorten('x'.repeat(80)), shorten('x'.repeat(81))], ['x'.repeat(80), `${'x'.repeat(80)}…`])
  t.strictSame(['a"b', 7, null].map(quote), ['"a\\"b"', 'of type number', 'of type object'])
  const values = ['a', 7, NaN, true, null, undefined, [], {}, Promise.resolve(), () => {}, Symbol('s'), 1n]
  t.strictSame(values.map(shown), ['"a"', '7', 'NaN', 'true', 'null', 'undefined', 'an array', 'an object', 'a promise', 'a function', 'a symbol', 'a bigint'])
  t.strictSame(values.slice(0, 4).map(kindOf), ['a string', 'a number', 'a number', 'a boolean'])
  t.strictSame([null, undefined, 7, {}, { then: 1 }, { then () {} }, Object.assign(() => {}, { then () {} }), Promise.resolve()].map(value => isThenable<unknown>(value)), [false, false, false, false, false, true, true, true])
})

t.test('memory of texts', async t => {
  t.strictSame([bytesOfText(''), bytesOfText('é'.repeat(40)), bytesOfText('x'.repeat(41)), bytesOfText('é'.repeat(41)), bytesOfText('€'.repeat(41)), bytesOfText(`€${'x'.repeat(99)}`)], [0, 40, 41, 82, 123, 200])
  t.strictSame([memoryBytes(10, 10), memoryBytes(10, 11), memoryBytes(10, 30)], [10, 20, 30])
  for (const text of ['', 'x', 'x'.repeat(12), 'x'.repeat(13), 'é'.repeat(20), 'x'.repeat(100), `${'x'.repeat(100)}\ud800`, '😀'.repeat(50)]) t.equal(ownText(text), text)
})

t.test('an own text keeps nothing of the text that it was cut from', async t => {
  for (const [length, unit] of [[12, 'x'], [13, 'x'], [40, 'x'], [41, 'x'], [400, 'x'], [13, 'é'], [41, 'é'], [13, '字'], [41, '字']] as const) {
    const kept: string[] = []
    const keep = (i: number) => { kept.push(ownText(Buffer.from(`${i} ${unit.repeat(200_000)}`).toString().slice(0, length))) }
    keep(0)
    const before = await collectAll()
    for (let i = 1; i <= 20; i++) keep(i)
    const grown = await collectAll() - before
    t.ok(grown < 400_000, `${grown} bytes for 20 texts of ${length}, where all would be 4 MB`)
    t.equal(kept[9]!.length, length)
  }
})

t.test('ids are many and different, and of one form', async t => {
  const ids = Array.from({ length: 1_000 }, createId)
  t.equal(new Set(ids).size, 1_000)
  t.ok(ids.every(id => /^[\w-]{22}$/.test(id)))
})

t.test('a reply has its time anew while it progresses, and no timer is left', async t => {
  const timers = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length
  const before = timers()
  t.equal(await inTime(Promise.resolve(1), 60_000), 1)
  await t.rejects(inTime(Promise.reject(new Error('own')), 60_000), { message: 'own' })
  t.equal(timers(), before)
  let looks = 0
  const startedAt = performance.now()
  // Each time-out looks twice: when it begins and when it ends.
  await t.rejects(inTime(new Promise(() => {}), 30, () => Math.min(++looks, 8)), { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: 'did not answer within 30 ms' })
  t.ok(performance.now() - startedAt > 100, 'several times as long')
  t.equal(timers(), before)
  // The reply comes between the end of a time and the turn that it waits for: the time does not start again.
  let asks = 0
  let answer = (): void => {}
  const answered = inTime(new Promise<void>(resolve => { answer = resolve }), 5, () => { asks++ })
  setTimeout(answer, 5)
  await answered
  t.equal(asks, 1)
  await new Promise(resolve => setImmediate(resolve))
  t.strictSame([asks, timers()], [1, before])
  const every = systemClock.every(60_000, () => {})
  t.equal(timers(), before, 'an interval keeps no process alive')
  systemClock.cancel(every)
  for (const nothing of [null, undefined]) systemClock.cancel(nothing)
  t.ok(Number.isInteger(systemClock.monotonic()))
})
