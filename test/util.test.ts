import t from 'tap'
import { systemClock } from '../lib/util/clock.js'
import { createId } from '../lib/util/id.js'
import { reasonsOf, warnings } from '../lib/util/logger.js'
import { MemoryBudget } from '../lib/util/memory-budget.js'
import { isThenable } from '../lib/util/promise.js'
import { kindOf, quote, shorten, shown } from '../lib/util/quote.js'
import { alternatives, suggestion } from '../lib/util/suggestion.js'
import { bytesOfText, memoryBytes, ownText } from '../lib/util/text.js'
import { inTime } from '../lib/util/timeout.js'
import { until } from './helpers/wait.js'

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

t.test('reasons of an error and of its causes', async t => {
  const nested = (depth: number): Error => new Error(`level ${depth}`, depth > 1 ? { cause: nested(depth - 1) } : {})
  t.equal(reasonsOf(nested(2)), 'level 2: level 1')
  t.equal(reasonsOf(nested(9)), 'level 9: level 8: level 7: level 6')
  t.equal(reasonsOf(new Error('x'.repeat(301))), `${'x'.repeat(300)}…`)
  t.equal(reasonsOf(new Error('x'.repeat(300))), 'x'.repeat(300))
  t.strictSame(['text', 7, null, undefined].map(reasonsOf), ['text', 'a value of type number', '', ''])
  t.strictSame([Object.assign(new Error(''), { code: 'ECONNREFUSED' }), new AggregateError([new Error('first'), new Error('second')]), new TypeError('')].map(reasonsOf), ['ECONNREFUSED', 'first', 'TypeError'])
  t.equal(reasonsOf(Object.defineProperty(new Error('x'), 'message', { get () { throw new Error() } })), 'Error')
})

t.test('without a logger, a process warning has the error of a line, or else its details', async t => {
  for (const [details, detail] of [[{ err: new Error('no answer'), clientId: 'a' }, /^Error: no answer/], [{ clientId: 'a', count: 2 }, /^\{ clientId: 'a', count: 2 \}$/]] as const) {
    const own: Error[] = []
    // Node.js has warnings of its own.
    const note = (warning: Error) => { if (warning.name === 'SSEManager') own.push(warning) }
    process.on('warning', note)
    warnings.warn(details, 'Something is wrong')
    await until(() => own.length > 0)
    process.off('warning', note)
    t.match(own, [{ name: 'SSEManager', message: 'Something is wrong', detail }])
  }
})

t.test('memory of texts', async t => {
  t.strictSame([bytesOfText(''), bytesOfText('é'.repeat(40)), bytesOfText('x'.repeat(41)), bytesOfText('é'.repeat(41)), bytesOfText('€'.repeat(41)), bytesOfText(`€${'x'.repeat(99)}`)], [0, 40, 41, 82, 123, 200])
  t.strictSame([memoryBytes(10, 10), memoryBytes(10, 11), memoryBytes(10, 30)], [10, 20, 30])
  for (const text of ['', 'x', 'x'.repeat(12), 'x'.repeat(13), 'é'.repeat(20), 'x'.repeat(100), `${'x'.repeat(100)}\ud800`, '😀'.repeat(50)]) t.equal(ownText(text), text)
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
  const every = systemClock.every(60_000, () => {})
  t.equal(timers(), before, 'an interval keeps no process alive')
  systemClock.cancel(every)
  for (const nothing of [null, undefined]) systemClock.cancel(nothing)
  t.ok(Number.isInteger(systemClock.monotonic()))
})
