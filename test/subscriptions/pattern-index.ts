import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { covers } from '../../lib/events/topic.js'
import { PatternIndex } from '../../lib/subscriptions/pattern-index.js'
import { pattern, topic } from '../events/arbitraries.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 300)
fc.configureGlobal({ includeErrorInReport: true })

t.test('the index of patterns finds those that cover a topic, through any history of changes', async t => {
  const step = fc.record({ pattern, remove: fc.boolean(), topic })
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(step, { maxLength: 60, size: 'max' }), steps => {
    const index = new PatternIndex<string>()
    const model = new Set<string>()
    for (const { pattern, remove, topic } of steps) {
      if (remove) {
        index.delete(pattern)
        model.delete(pattern)
      } else {
        index.set(pattern, pattern)
        model.add(pattern)
      }
      assert.equal(index.size, model.size)
      // Twice: the second answer comes from the cache.
      for (let i = 0; i < 2; i++) assert.deepEqual([...index.match(topic)].sort(), [...model].filter(pattern => covers(pattern, topic)).sort())
    }
    for (const pattern of model) index.delete(pattern)
    assert.equal(index.size, 0)
  }), { numRuns: RUNS }))
})

t.test('a change is not overlooked, however many follow before the topic is asked for again', async t => {
  for (let others = 0; others <= 100; others++) {
    for (const remove of [false, true]) {
      const index = new PatternIndex<string>()
      index.set('orders:*', 'orders:*')
      if (remove) index.set('*:1', '*:1')
      index.match('orders:1')
      if (remove) index.delete('*:1')
      else index.set('*:1', '*:1')
      for (let i = 0; i < others; i++) index.set(`other-${i}:*`, `other-${i}:*`)
      const found = [...index.match('orders:1')].sort()
      if (found.length !== (remove ? 1 : 2)) t.fail(`${remove ? 'removed' : 'set'}, and ${others} others: ${found}`)
    }
  }
})
