import t from 'tap'
import { BUCKETS, Histogram } from '../../lib/metrics/histogram.js'

t.test('a histogram counts each duration once, up to the bound it does not exceed', async t => {
  const histogram = new Histogram()
  for (const ms of [0, 0.5, 0.51, 10, 10_000, 60_000]) histogram.observe(ms)
  const { upTo, count, sum } = histogram.read()
  const at = (seconds: number) => upTo[BUCKETS.indexOf(seconds)]
  t.strictSame([at(0.0005), at(0.001), at(0.005), at(0.01), at(5), at(10), count], [2, 3, 3, 4, 4, 5, 6])
  t.ok(Math.abs(sum - 70.01101) < 1e-9)
})

t.test('each bound belongs to its bucket', async t => {
  for (const [n, bound] of BUCKETS.entries()) {
    for (const [seconds, bucket] of [[bound, n], [bound * 1.0001, n + 1], [bound * 0.9999, n]] as const) {
      const histogram = new Histogram()
      histogram.observe(seconds * 1000)
      t.strictSame(histogram.read(), { upTo: BUCKETS.map((_, n) => n < bucket ? 0 : 1), count: 1, sum: seconds * 1000 / 1000 })
    }
  }
  t.strictSame(new Histogram().read(), { upTo: BUCKETS.map(() => 0), count: 0, sum: 0 })
})
