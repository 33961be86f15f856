import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import type { EventPriority } from '../../lib/events/event-rules.js'
import type { Entry } from '../../lib/log/redis/entry.js'
import { HistoryCache } from '../../lib/log/redis/history-cache.js'

const HISTORY = { maxEvents: 1_000, maxAgeMs: 60_000, maxBytes: 1e9 }
const NONE = { nonce: '', epoch: 1, other: 0, command: 0, commandTime: 0 }

/** An entry of the log, with a priority that depends on its number; `foreign` for one that this package did not write. */
function entry (number: number, foreign = false, time = Date.now()): Entry {
  const message = foreign ? null : { event: 'e', data: String(number), priority: (number % 2) as EventPriority, target: {}, ephemeral: false, seq: number }
  return { ...NONE, message, number, time: foreign ? 0 : time }
}

t.test('a cache returns of the log what follows the last hole, within the bounds of the history, whatever Redis answers at once', async t => {
  const kind = fc.oneof({ weight: 20, arbitrary: fc.constant('ours') }, { weight: 1, arbitrary: fc.constantFrom('foreign', 'gone') })
  const step = fc.oneof(fc.record({ append: fc.integer({ min: 1, max: 5 }) }), fc.record({ reads: fc.array(fc.record({ back: fc.nat(50), limit: fc.integer({ min: 1, max: 60 }), priority: fc.constantFrom<EventPriority>(0, 1) }), { minLength: 1, maxLength: 4 }) }))
  let fetched = 0
  await t.resolves(fc.assert(fc.asyncProperty(fc.array(kind, { maxLength: 40, size: 'max' }), fc.constantFrom(5, 20, 1_000), fc.integer({ min: 1, max: 12 }), fc.array(step, { minLength: 1, maxLength: 8 }), async (kinds, maxEvents, count, steps) => {
    const position = kinds.length
    const stored = kinds.flatMap((kind, i) => kind === 'gone' ? [] : [entry(i + 1, kind === 'foreign')])
    let running = 0
    const cache = new HistoryCache({ ...HISTORY, maxEvents }, position, async (from, to) => {
      assert.equal(++running, 1, 'one at a time')
      assert.deepEqual([from, to >= 1, to <= position], [1, true, true])
      fetched++
      await null
      running--
      return stored.filter(({ number }) => number <= to).reverse().slice(0, count)
    })
    let last = position
    const hole = kinds.findLastIndex(kind => kind !== 'ours') + 1
    for (const step of steps) {
      if ('append' in step) {
        for (let i = 0; i < step.append; i++) cache.append(entry(++last).message!, Date.now())
      } else {
        const requests = step.reads.map(({ back, ...request }) => ({ ...request, after: Math.max(0, last - back) }))
        const before = fetched
        const pages = await Promise.all(requests.map(request => cache.read(request)))
        for (const [i, { after, limit, priority }] of requests.entries()) {
          const oldest = Math.max(hole, last - maxEvents)
          const expected = Array.from({ length: last - after }, (_, n) => after + n + 1).filter(number => number % 2 === priority).slice(0, limit)
          if (after < oldest) assert.deepEqual(pages[i], { messages: [], next: last, gap: 'trimmed' })
          else assert.deepEqual([pages[i]!.gap, pages[i]!.messages.map(({ seq }) => seq)], [undefined, expected])
        }
        await Promise.all(requests.map(request => cache.read(request)))
        const again = fetched
        await Promise.all(requests.map(request => cache.read(request)))
        assert.ok(fetched === again && again - before <= position + 1, 'what is known is not asked for again')
      }
      assert.equal(cache.position, last)
      assert.ok(cache.size.events <= Math.min(last, maxEvents))
    }
  }), { numRuns: 300 }))
  t.ok(fetched > 300)
})

t.test('a read that fails rejects those who wait for it, and the next read asks again', async t => {
  const asked: number[] = []
  const answers: (readonly Entry[] | Error)[] = [new Error('away'), [entry(3)], [entry(2)], [entry(1)]]
  const cache = new HistoryCache(HISTORY, 3, async (_from, to) => {
    asked.push(to)
    const answer = answers.shift()!
    if (answer instanceof Error) throw answer
    return answer
  })
  const read = (after: number) => cache.read({ after, priority: 1, limit: 9 })
  t.equal((await read(4)).gap, 'unknown')
  t.strictSame(asked, [])
  const results = await Promise.allSettled([read(0), read(1)])
  t.strictSame(results.map(({ status }) => status), ['rejected', 'rejected'])
  t.strictSame(asked, [3])
  t.strictSame((await read(1)).messages.map(({ seq }) => seq), [3])
  t.strictSame(asked, [3, 3, 2])
  t.strictSame((await read(0)).messages.map(({ seq }) => seq), [1, 3])
  t.strictSame(asked, [3, 3, 2, 1])
  t.strictSame([cache.size.events, cache.position], [3, 3])
})

t.test('of a log that is empty in Redis nothing is asked twice, and what is too old is no history', async t => {
  let asked = 0
  const answer: Entry[] = []
  const cache = new HistoryCache({ ...HISTORY, maxAgeMs: 1_000 }, 5, async () => {
    asked++
    return answer
  })
  const gap = async () => (await cache.read({ after: 3, priority: 1, limit: 9 })).gap
  t.strictSame([await gap(), await gap(), asked], ['trimmed', 'trimmed', 1])
  const old = new HistoryCache({ ...HISTORY, maxAgeMs: 1_000 }, 5, async () => {
    asked++
    return [entry(5, false, Date.now() - 1_100), entry(4, false, Date.now() - 1_200)]
  })
  t.equal((await old.read({ after: 3, priority: 1, limit: 9 })).gap, 'trimmed')
  t.equal((await old.read({ after: 3, priority: 1, limit: 9 })).gap, 'trimmed')
  t.strictSame([asked, old.size], [2, { events: 0, bytes: 0 }])
  old.append(entry(6).message!, Date.now() - 1_100)
  t.strictSame([old.position, old.size.events], [6, 0], 'nor what was logged long ago')
  const empty = new HistoryCache(HISTORY, 0, async () => { throw new Error('is not asked') })
  t.strictSame(await empty.read({ after: 0, priority: 1, limit: 9 }), { messages: [], next: 0 })
})
