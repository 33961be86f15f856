import t from 'tap'
import { Tally } from '../../lib/diagnostics/tally.js'

t.test('labels are limited, except those that are known', async t => {
  const tally = new Tally()
  for (let i = 0; i < 100; i++) tally.add(`reason-${i}`)
  tally.add('client', true)
  tally.add('reason-3')
  const counts = tally.read()
  t.equal(Object.keys(counts).length, 66)
  t.strictSame([counts['reason-3'], counts['reason-63'], counts['reason-64'], counts['other'], counts['client']], [2, 1, undefined, 36, 1])
  counts['client'] = 7
  t.equal(tally.read()['client'], 1, 'what is read is a copy')
  tally.add('__proto__')
  t.equal(tally.read()['other'], 37)
})

t.test('known labels take the places of others, and are never refused one', async t => {
  const tally = new Tally()
  for (let i = 0; i < 60; i++) tally.add(`known-${i}`, true)
  for (let i = 0; i < 10; i++) tally.add(`reason-${i}`)
  for (let i = 60; i < 70; i++) tally.add(`known-${i}`, true)
  const counts = tally.read()
  t.equal(Object.keys(counts).filter(label => label.startsWith('known')).length, 70)
  t.strictSame(Object.keys(counts).filter(label => label.startsWith('reason')), ['reason-0', 'reason-1', 'reason-2', 'reason-3'])
  t.equal(counts['other'], 6)
})
