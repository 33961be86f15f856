import t from 'tap'
import { BackOff } from '../../lib/client/back-off.js'

t.test('the time before an attempt doubles, is spread, and has a limit', async t => {
  const backOff = new BackOff(20_000)
  backOff.retryMs = 3_000
  const within = (ms: number, least: number) => t.ok(ms >= least && ms <= least * 1.5, `${ms} is from ${least} to ${least * 1.5}`)
  for (const least of [3_000, 6_000, 12_000, 20_000, 20_000]) within(backOff.next(0), least)
  within(backOff.next(59_999), 20_000)
  within(backOff.next(60_000), 3_000)
  within(backOff.next(0), 6_000)
  within(backOff.next(0, 40_000), 40_000)
  within(backOff.next(0, 9e9), 3_600_000)
  backOff.reset()
  backOff.retryMs = 100_000
  within(backOff.next(0), 100_000)
  within(backOff.next(0), 100_000)
  backOff.retryMs = 0
  backOff.reset()
  within(backOff.next(0), 100)
  within(new BackOff(500).next(0), 500)
  within(new BackOff(9e9).next(0), 3_000)
  const slow = new BackOff(20_000)
  slow.retryMs = 9e9
  within(slow.next(0), 3_600_000)
  const times = new Set(Array.from({ length: 50 }, () => new BackOff(20_000).next(0)))
  t.ok(times.size > 10, `${times.size} different times`)
})
