import t, { type Test } from 'tap'
import type { Connection } from '../../lib/log/redis/client.js'
import { MAX_COUNT, ReadSize } from '../../lib/log/redis/read-size.js'
import { fakeTimers } from '../helpers/timers.js'

t.test('a portion follows the size of entries and the speed of replies', async t => {
  const portion = new ReadSize()
  const read = (bytes: number, share: number, entries = portion.count) => {
    portion.came(portion.count, entries, entries * bytes, share)
    return portion.count
  }
  t.equal(portion.count, 64)
  t.equal(read(100, 0), 128)
  for (let i = 0; i < 5; i++) read(100, 0)
  t.equal(portion.count, MAX_COUNT)
  t.equal(read(100_000, 0), 10, 'a megabyte')
  t.equal(read(100, 0), 13, 'the next ones may be as large again: three quarters of the mean stay')
  for (let i = 0; i < 50; i++) read(100, 0)
  t.equal(portion.count, MAX_COUNT)
  for (const share of [0.25, 0.4, 0.5]) t.equal(read(100, share), MAX_COUNT, 'quick enough')
  t.equal(read(100, 0.51), MAX_COUNT / 2, 'too close to the end of its time')
  t.equal(read(100, 0.9, 3), MAX_COUNT / 2, 'it has waited for its first entry')
  t.equal(read(0, 0, 0), MAX_COUNT / 2)
  t.equal(read(100, 0.25), MAX_COUNT / 2)
  for (let count = 250; count > 1; count >>= 1) {
    t.equal(portion.count, count)
    portion.late(count)
  }
  t.strictSame([portion.count, portion.patience], [1, 1])
  for (let i = 0; i < 6; i++) portion.late(1)
  t.strictSame([portion.count, portion.patience], [1, 64])
  portion.late(1)
  t.strictSame([portion.count, portion.patience], [1, 64], 'bounded')
  for (let i = 0; i < 3; i++) read(100, 0)
  t.strictSame([portion.count, portion.patience], [8, 8])
  for (let i = 0; i < 4; i++) read(100, 0)
  t.strictSame([portion.count, portion.patience], [128, 1], 'no less than the time of one reply')
  read(100, 0.9, 128)
  t.equal(portion.count, 64)
  portion.came(8, 8, 800, 0)
  t.equal(portion.count, 64, 'a quick reply to a smaller read takes nothing away')
  for (let i = 0; i < 9; i++) read(100, 1)
  t.equal(portion.count, 1)
  portion.came(1, 1, 50_000_000, 0)
  t.equal(portion.count, 1, 'one is always read')
})

/** A connection whose replies take this long, and what was asked. */
function slow (t: Test) {
  const time = fakeTimers(t)
  const timeouts: number[] = []
  const next = { ms: 0, reply: null as unknown }
  const connection: Connection = {
    send: async (_command, timeoutMs) => {
      timeouts.push(timeoutMs)
      time.now += next.ms
      if (next.reply instanceof Error) throw next.reply
      return next.reply
    },
    destroy: () => {}
  }
  const portion = new ReadSize()
  return {
    portion,
    timeouts,
    read: (command: string, ms: number, reply: unknown, blockMs = 0) => {
      Object.assign(next, { ms, reply })
      return portion.read(connection, [command], blockMs, 1_000)
    }
  }
}
const entries = (count: number, text = 'x') => Array.from({ length: count }, (_, i) => [`1-${i}`, ['t', text]])

t.test('the entries of all kinds of replies count', async t => {
  for (const [command, wrap] of [['XREAD', (list: unknown[]) => [['{sse}:log', list]]], ['XREVRANGE', (list: unknown[]) => list]] as const) {
    const { portion, read } = slow(t)
    const reply = wrap(entries(64))
    t.equal(await read(command, 0, reply), reply)
    t.equal(portion.count, 128, command)
    await read(command, 501, wrap(entries(128)))
    t.equal(portion.count, 64)
    await read(command, 0, wrap(entries(63)))
    t.equal(portion.count, 64, 'of a reply that is not full nothing is known')
    await read(command, 0, wrap(entries(1, 'é'.repeat(104_856))))
    t.equal(portion.count, 10, 'a tenth of a megabyte, with its name')
    await read(command, 0, wrap(entries(1, 'x'.repeat(104_858))))
    t.equal(portion.count, 9)
  }
  const { portion, read } = slow(t)
  t.equal(await read('XREAD', 5_000, null, 5_000), null)
  await read('XREAD', 0, [['{sse}:log', entries(3)], ['{sse}:ephemeral', entries(64)]])
  t.equal(portion.count, 128, 'each stream for itself')
})

t.test('a time-out halves the next read, and gives more time to a read of one; an earlier failure says nothing', async t => {
  const { portion, timeouts, read } = slow(t)
  const away = new Error('away')
  await t.rejects(read('XREAD', 2_989, away, 2_000), away)
  t.equal(portion.count, 64)
  // Timers can fire a little early.
  await t.rejects(read('XREAD', 2_991, away, 2_000), away)
  t.equal(portion.count, 32)
  for (let i = 0; i < 5; i++) await t.rejects(read('XRANGE', 1_000, away), away)
  t.strictSame([portion.count, portion.patience], [1, 1])
  await t.rejects(read('XRANGE', 1_000, away), away)
  await t.rejects(read('XRANGE', 1_900, away), away)
  t.equal(portion.patience, 2, 'it had two seconds')
  await t.rejects(read('XREAD', 4_000, away, 2_000), away)
  t.equal(portion.patience, 4)
  await read('XRANGE', 999, entries(1))
  t.strictSame([portion.count, portion.patience], [2, 2])
  t.strictSame(timeouts, [3_000, 3_000, ...new Array(6).fill(1_000), 2_000, 4_000, 4_000])
})
