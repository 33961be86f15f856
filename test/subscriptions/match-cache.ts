import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { covers } from '../../lib/events/topic.js'
import { MatchCache } from '../../lib/subscriptions/match-cache.js'
import { PatternIndex } from '../../lib/subscriptions/pattern-index.js'
import { pattern, topic } from '../events/arbitraries.js'
import { collect } from '../helpers/heap.js'

const MAX_BYTES = 4 * 1024 * 1024
/** What a topic of at most 40 characters takes, by the count of the cache. */
const bytesOf = (topic: string, found: readonly unknown[]) => 160 + topic.length + 8 * found.length

t.test('a match is kept until a pattern that covers its topic changes, and counted as long as it is kept', async t => {
  const step = fc.oneof(
    { weight: 3, arbitrary: fc.record({ do: fc.constant('set' as const), topic, count: fc.nat(3) }) },
    { weight: 3, arbitrary: fc.record({ do: fc.constant('get' as const), topic, count: fc.constant(0) }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('change' as const), topic: pattern, count: fc.constant(0) }) })
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(step, { maxLength: 80, size: 'max' }), steps => {
    const cache = new MatchCache<number>()
    const model = new Map<string, number[]>()
    const valid = new Map<string, number[]>()
    let sinceAll = 0
    for (const { do: what, topic, count } of steps) {
      if (topic.length > 40) continue
      if (what === 'set') {
        const found = Array.from({ length: count }, (_, i) => i)
        cache.set(topic, found)
        model.set(topic, found)
        valid.set(topic, found)
      } else if (what === 'get') {
        // With few changes, what is valid is also found.
        const found = cache.get(topic)
        if (sinceAll <= 32 || found !== undefined) assert.deepEqual(found, valid.get(topic))
      } else {
        cache.change(topic)
        sinceAll++
        for (const known of valid.keys()) if (covers(topic, known)) valid.delete(known)
      }
      assert.equal(cache.size, model.size)
      assert.equal(cache.bytes, [...model].reduce((sum, [topic, found]) => sum + bytesOf(topic, found), 0))
    }
  }), { numRuns: 300 }))
})

t.test('a topic that is asked for in time stays valid, whatever else changes', t => {
  const cache = new MatchCache<string>()
  const found = ['a:*']
  cache.set('a:1', found)
  for (let round = 0; round < 10; round++) {
    for (let i = 0; i < 32; i++) cache.change(`b:${i}:*`)
    t.strictSame(cache.get('a:1'), found, 'after 32 changes')
  }
  for (let i = 0; i < 33; i++) cache.change(`b:${i}:*`)
  t.equal(cache.get('a:1'), undefined, 'after 33')
  cache.set('a:1', found)
  found.push('later')
  t.strictSame(cache.get('a:1'), ['a:*'], 'a copy')
  for (let i = 0; i < 31; i++) cache.change(`b:${i}:*`)
  cache.change('*:1')
  t.equal(cache.get('a:1'), undefined)
  t.end()
})

t.test('the cache is emptied when it is full: 10,000 topics, or 4 MB', t => {
  const cache = new MatchCache<number>()
  const name = (i: number) => String(i).padStart(8, 'x')
  for (let i = 1; i <= 10_000; i++) cache.set(name(i), [])
  t.strictSame([cache.size, cache.bytes], [10_000, 10_000 * 168])
  t.strictSame(cache.get(name(1)), [])
  cache.set(name(10_001), [1])
  t.strictSame([cache.size, cache.bytes, cache.get(name(1)), cache.get(name(10_001))], [1, 176, undefined, [1]])

  // The largest that fits alone: 168 bytes for the topic, and 8 for each pattern.
  const most = (MAX_BYTES - 168) / 8
  const patterns = new Array<number>(most).fill(7)
  cache.set(name(0), patterns)
  t.strictSame([cache.size, cache.bytes], [1, MAX_BYTES])
  cache.set(name(0), [])
  t.strictSame([cache.size, cache.bytes], [1, 168], 'in place of the larger one')
  cache.set(name(1), patterns.slice(0, most - 21))
  t.strictSame([cache.size, cache.bytes], [2, MAX_BYTES])
  cache.set(name(2), [])
  t.strictSame([cache.size, cache.bytes], [1, 168])
  cache.set(name(3), [...patterns, 8])
  t.strictSame([cache.size, cache.bytes, cache.get(name(3))], [1, 168, undefined], 'what does not fit pushes out nothing')
  cache.set(name(2), [...patterns, 8])
  t.strictSame([cache.size, cache.bytes, cache.get(name(2))], [0, 0, undefined], 'nor is an older match kept')
  t.end()
})

t.test('patterns that come and go leave nothing in the tree', t => {
  const index = new PatternIndex<string>()
  index.set('*:kept', 'kept')
  const round = (from: number) => {
    const patterns = Array.from({ length: 20_000 }, (_, i) => [`a${from + i}:*:b${i}:c`, `a${from + i}:*:**`, `*:x${from + i}`]).flat()
    for (const pattern of patterns) index.set(pattern, 'x')
    for (const pattern of patterns) index.delete(pattern)
    t.equal(index.size, 1)
  }
  round(0)
  const before = collect()
  round(20_000)
  const taken = collect() - before
  t.ok(taken < 1 << 20, `${taken} bytes for 60,000 patterns that nobody holds any more`)
  t.strictSame(index.match('a:kept'), ['kept'])
  t.end()
})
