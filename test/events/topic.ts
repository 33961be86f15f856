import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { SSEError } from '../../lib/errors.js'
import { assertSubscription, assertTopic, covers, isPattern } from '../../lib/events/topic.js'
import { PatternIndex } from '../../lib/subscriptions/pattern-index.js'
import { pattern, topic } from './arbitraries.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 300)
fc.configureGlobal({ includeErrorInReport: true })

// --- topic.ts ---

t.test('the grammar of topics and subscriptions', async t => {
  const topics = ['a', 'a:b', 'user:1', 'chat:général', '日本:東京', '😀', 'a.b-c_d/e', 'x'.repeat(512), new Array(32).fill('a').join(':')]
  const patterns = ['*', '**', 'a:*', '*:a', 'a:*:b', 'a:**', '*:**', 'a:*:*:**']
  const neither = [
    '', ':', 'a:', ':a', 'a::b', 'a b', 'a\tb', 'a\n', ' a', 'a\u00a0b', 'a\0b', 'a\u200bb', 'a\u202eb', '\ud800', 'a*', '*a', 'a*:b', '***', '**:a', 'a:**:b', '**:**', 'a:***',
    'e\u0301', 'x'.repeat(513), new Array(33).fill('a').join(':'), undefined, null, 1, {}, ['a'], Symbol('a'), Object.create(null)]
  for (const topic of topics) {
    t.doesNotThrow(() => assertTopic(topic))
    t.doesNotThrow(() => assertSubscription(topic))
    t.notOk(isPattern(topic))
  }
  for (const pattern of patterns) {
    t.throws(() => assertTopic(pattern), { code: 'SSE_ERR_INVALID_TOPIC' })
    t.doesNotThrow(() => assertSubscription(pattern))
    t.ok(isPattern(pattern))
  }
  for (const wrong of neither) {
    t.throws(() => assertTopic(wrong), { code: 'SSE_ERR_INVALID_TOPIC' })
    t.throws(() => assertSubscription(wrong), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
  }
})

t.test('the grammar, for arbitrary text', async t => {
  const part = fc.oneof(fc.constantFrom(':', '*', '**', ':*', ':**', 'a', 'b:', ' ', '\0', '\ud800', '\u2028', '\ufeff', '\ufffd', '\u180b', '\u{e0100}', 'é', 'e\u0301', '😀'), fc.string({ unit: 'binary', maxLength: 3 }))
  const text = fc.array(part, { maxLength: 8 }).map(parts => parts.join(''))
  const plain = (segment: string) => segment !== '' && [...segment].every(c => c !== ':' && c !== '*' && !/\s/.test(c) && c !== '\ufffd' && !/\p{C}|\p{Default_Ignorable_Code_Point}/u.test(c))
  const valid = (text: string, wildcards: boolean) => text.normalize('NFC') === text && text.split(':').every((segment, i, all) =>
    plain(segment) || (wildcards && (segment === '*' || (segment === '**' && i === all.length - 1))))
  let accepted = 0
  t.doesNotThrow(() => fc.assert(fc.property(text, text => {
    for (const [check, wildcards] of [[assertTopic, false], [assertSubscription, true]] as const) {
      let refused = false
      try {
        check(text)
        accepted++
      } catch (error) {
        assert.ok(error instanceof SSEError)
        refused = true
      }
      assert.equal(refused, !valid(text, wildcards))
    }
  }), { numRuns: 3 * RUNS }))
  t.ok(accepted > 0)
})

/** The grammar's sentence, letter by letter: `*` is one segment, a last `**` zero or more. */
function coversNaively (wanted: string[], given: string[]): boolean {
  if (wanted.length === 0) return given.length === 0
  const [first, ...rest] = wanted
  if (first === '**') return true
  return given.length > 0 && (first === '*' || first === given[0]) && coversNaively(rest, given.slice(1))
}

t.test('a subscription covers what the grammar says', async t => {
  t.doesNotThrow(() => fc.assert(fc.property(fc.oneof(pattern, topic), topic, (subscription, topic) => {
    assert.equal(covers(subscription, topic), coversNaively(subscription.split(':'), topic.split(':')))
  }), { numRuns: 5 * RUNS }))
  t.ok(covers('user:1:**', 'user:1') && covers('user:1:**', 'user:1:a:b') && covers('**', 'a:b'))
  t.notOk(covers('user:1:**', 'user:10') || covers('user:*', 'user') || covers('user:*', 'user:1:a') || covers('user', 'user:1') || covers('*', 'a:b'))
})

t.test('hostile topics and patterns cost what they are long', async t => {
  // Each of these would not end within this test's time if there were any going back.
  const a32 = new Array(32).fill('a').join(':')
  t.ok(covers(new Array(31).fill('*').join(':') + ':**', a32))
  t.notOk(covers(new Array(31).fill('*').join(':') + ':b', a32))
  for (const long of ['a:'.repeat(5_000_000), '*'.repeat(10_000_000), ' '.repeat(10_000_000), 'e\u0301'.repeat(5_000_000)]) {
    t.throws(() => assertSubscription(long), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
  }
  const index = new PatternIndex<number>()
  let random = 1
  const bit = () => (random = (random * 48271) % 2147483647) % 2 === 0
  for (let i = 0; i < 2000; i++) index.set(Array.from({ length: 31 }, () => bit() ? '*' : 'a').join(':') + (i % 2 === 0 ? ':b' : ':a'), i)
  const found = index.match(a32).length
  t.ok(found > 900 && found <= 1000, 'half of them end otherwise')
  for (let i = 0; i < 30_000; i++) index.match(`t:${i}`)
  t.equal(index.match(a32).length, found, 'however many topics have been asked for')
})
