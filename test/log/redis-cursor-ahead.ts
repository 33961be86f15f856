import t, { type Test } from 'tap'
import type { GapReason, LogPosition } from '../../lib/log/broker.js'
import { CursorAhead } from '../../lib/log/redis/cursor-ahead.js'
import { fakeTimers } from '../helpers/timers.js'
import { turns, until } from '../helpers/wait.js'

type Outcome = GapReason | null | Error | 'waits'

/** A node at position 5 of epoch `a`, and a Redis that answers when the test says so. */
function aheadOf (t: Test) {
  const time = fakeTimers(t)
  const node = { epoch: 'a', position: 5 }
  const asks: { resolve (log: LogPosition): void, reject (error: Error): void }[] = []
  const ahead = new CursorAhead(() => node, () => new Promise((resolve, reject) => { asks.push({ resolve, reject }) }))
  t.teardown(() => ahead.close(new Error('over')))
  return {
    time,
    node,
    asks,
    ahead,
    /** Reads from a cursor, and returns what has become of the read up to now. */
    read (epoch: string, seq: number): () => Outcome {
      let outcome: Outcome = 'waits'
      ahead.gapBefore(epoch, seq).then(gap => { outcome = gap }, error => { outcome = error })
      return () => outcome
    },
    async answer (epoch: string, position: number) {
      await until(() => asks.length > 0)
      asks.shift()!.resolve({ epoch, position })
      await turns(1)
    }
  }
}

const CASES: [cursor: [epoch: string, seq: number], log: [epoch: string, position: number], outcome: Outcome, arrivalEnds?: number][] = [
  [['a', 6], ['a', 5], 'unknown'],
  [['a', 7], ['a', 6], 'unknown'],
  [['a', 6], ['a', 6], 'waits', 6],
  [['a', 7], ['a', 9], 'waits', 7],
  [['b', 1], ['a', 5], 'epoch'],
  [['b', 9], ['a', 9], 'epoch'],
  [['a', 6], ['b', 9], 'waits'],
  [['b', 1], ['b', 1], 'waits'],
  [['b', 2], ['b', 1], 'waits'],
  [['c', 1], ['b', 1], 'waits']
]

for (const [[epoch, seq], [logEpoch, position], outcome, arrivalEnds] of CASES) {
  t.test(`a cursor ${epoch}.${seq} on a node at a.5, while the log ends at ${logEpoch}.${position}: ${outcome}`, async t => {
    const { ahead, node, read, answer } = aheadOf(t)
    t.equal(ahead.has(epoch, seq), false)
    const result = read(epoch, seq)
    await answer(logEpoch, position)
    t.equal(result(), outcome)
    if (outcome !== 'waits') return
    for (node.position = 5; node.position <= 20; node.position++) {
      ahead.arrived(node.position)
      await turns(1)
      t.equal(result(), arrivalEnds !== undefined && node.position >= arrivalEnds ? null : 'waits', `at ${node.position}`)
    }
    ahead.moved()
    await turns(1)
    t.equal(result(), null, 'another position of the log')
  })
}

t.test('a node has a cursor of its epoch that it has reached', async t => {
  const { ahead } = aheadOf(t)
  t.strictSame([['a', 4], ['a', 5], ['a', 6], ['b', 5]].map(([epoch, seq]) => ahead.has(epoch as string, seq as number)), [true, true, false, false])
})

t.test('what the node reads while Redis is asked makes the answer void', async t => {
  const { ahead, node, time, read, answer } = aheadOf(t)
  const reached = read('a', 6)
  await turns(1)
  node.position = 6
  await answer('a', 5)
  t.equal(reached(), null)
  await time.advance(50)
  const moved = read('a', 9)
  await turns(1)
  ahead.moved()
  await answer('a', 6)
  t.equal(moved(), null)
})

t.test('reads are resumed by the entry that they wait for, in any order', async t => {
  for (const seqs of [[6, 8, 7], [8, 7, 6]]) {
    const { ahead, node, read, answer } = aheadOf(t)
    const results = [...seqs.map(seq => read('a', seq)), read('b', 1)]
    await answer('a', 9)
    const waiting = () => seqs.filter((_, i) => results[i]!() === 'waits').sort()
    t.strictSame(waiting(), [6, 7, 8])
    t.equal(results[3]!(), 'epoch')
    for (const rest of [[7, 8], [8], []]) {
      ahead.arrived(++node.position)
      await turns(1)
      t.strictSame(waiting(), rest)
    }
    ahead.close(new Error('over'))
  }
})

t.test('reads of one turn share a question, and a question follows another after 50 ms', async t => {
  const { asks, time, read, answer } = aheadOf(t)
  const first = [read('a', 6), read('a', 7), read('c', 1)]
  await turns(1)
  t.equal(asks.length, 1)
  // Redis has been asked already: its answer may be older than this cursor.
  const second = [read('a', 6), read('a', 8)]
  await turns(2)
  t.equal(asks.length, 1)
  await answer('a', 5)
  t.strictSame(first.map(result => result()), ['unknown', 'unknown', 'epoch'])
  t.strictSame(second.map(result => result()), ['waits', 'waits'])
  await answer('a', 6)
  t.strictSame(second.map(result => result()), ['waits', 'unknown'])
  for (const [ms, immediate] of [[50, true], [49, false]] as const) {
    await time.advance(ms)
    read('a', 20)
    for (let i = 0; i < 10; i++) await null
    t.equal(asks.length, immediate ? 1 : 0, `after ${ms} ms`)
    await answer('a', 6)
  }
})

t.test('a question that fails rejects those who share it, and the next one is asked anew', async t => {
  const { asks, time, read, answer } = aheadOf(t)
  const failure = new Error('away')
  const failed = [read('a', 6), read('a', 7)]
  await turns(1)
  asks.shift()!.reject(failure)
  await turns(1)
  t.strictSame(failed.map(result => result()), [failure, failure])
  await time.advance(50)
  const next = read('a', 6)
  await answer('a', 5)
  t.equal(next(), 'unknown')
})

t.test('a node that does not catch up within five seconds rejects the reads, each at its time', async t => {
  const { time, read, answer } = aheadOf(t)
  const late = (result: Outcome) => t.match(result, { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: /has not caught up within 5000 ms/ })
  const first = read('a', 6)
  await answer('a', 9)
  await time.advance(2_000)
  const second = read('a', 7)
  await answer('a', 9)
  await time.advance(2_999)
  t.equal(first(), 'waits')
  await time.advance(1)
  late(first())
  await time.advance(1_999)
  t.equal(second(), 'waits')
  await time.advance(2)
  late(second())
  t.equal(time.count, 0)
  const third = read('a', 6)
  await answer('a', 9)
  await time.advance(4_999)
  t.equal(third(), 'waits')
  await time.advance(1)
  late(third())
  t.equal(time.count, 0)
})

t.test('closing rejects what waits for the node or for Redis, and leaves no timer', async t => {
  const { ahead, asks, time, read, answer } = aheadOf(t)
  const closed = new Error('closed')
  const waiting = [read('a', 6), read('a', 7)]
  await answer('a', 9)
  const asking = read('a', 8)
  await turns(1)
  ahead.close(closed)
  await until(() => asking() !== 'waits')
  const after = read('a', 9)
  await until(() => after() !== 'waits')
  t.strictSame([...waiting, asking, after].map(result => result()), [closed, closed, closed, closed])
  t.strictSame([asks.length, time.count], [0, 0])

  const unused = aheadOf(t)
  unused.ahead.close(closed)
  const late = unused.read('a', 9)
  await turns(1)
  t.strictSame([late(), unused.asks.length], [closed, 0])
})

t.test('no time-out is kept for reads that have ended', async t => {
  const { ahead, node, time, read, answer } = aheadOf(t)
  for (const seq of [6, 7]) {
    read('a', seq)
    await answer('a', 9)
    await time.advance(2_000)
  }
  ahead.arrived(node.position = 7)
  await time.advance(1_000)
  t.equal(time.count, 0)
})
