import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { MultiMap } from '../../lib/subscriptions/multimap.js'

t.test('a map of sets, through any history of changes', async t => {
  const members = Array.from({ length: 3 }, (_, id) => ({ id }))
  const step = fc.record({ key: fc.constantFrom('a', 'b'), member: fc.constantFrom(...members), remove: fc.boolean() })
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(step, { maxLength: 40, size: 'max' }), steps => {
    const map = new MultiMap<{ id: number }>()
    const model = new Map<string, Set<{ id: number }>>()
    for (const { key, member, remove } of steps) {
      const set = model.get(key) ?? new Set()
      if (remove) set.delete(member)
      else set.add(member)
      if (set.size === 0) model.delete(key)
      else model.set(key, set)
      assert.equal(remove ? map.delete(key, member) : map.add(key, member), set.size)
      assert.equal(map.size, model.size)
      assert.deepEqual(new Map(map.counts()), new Map(Array.from(model, ([key, { size }]) => [key, size])))
      for (const key of ['a', 'b', 'c']) {
        const expected = [...model.get(key) ?? []]
        assert.equal(map.count(key), expected.length)
        assert.deepEqual(new Set(map.list(key)), new Set(expected))
        assert.equal(map.list(key).length, expected.length)
        const found = map.get(key)
        assert.deepEqual(found instanceof Set ? [...found].length : found === undefined ? 0 : 1, expected.length)
      }
    }
  }), { numRuns: 300 }))
})
