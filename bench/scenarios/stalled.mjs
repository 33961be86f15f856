import { interleave } from '../rounds.mjs'
import { Session } from '../session.mjs'

const BYTES_PER_SECOND = 320_000
const HZ = 20
const CONTROL_SECONDS = 10
// Full before anybody stalls: what the log takes is not what stalled readers take.
const HISTORY_BYTES = 3_000_000

/** A few clients read nothing any more while everybody gets 320 KB/s: what they cost the server, and the others. */
export async function stalled (bench) {
  const { connections, stalled: count } = bench.sizes.stalled
  if (!bench.fits(connections, 'stalled')) return
  const size = BYTES_PER_SECOND / HZ
  const run = (session, receivers, seconds) => session.measure('rate', { receivers, hz: HZ, seconds, size }, (seconds + 40) * 1000)
  await interleave(bench, {
    rounds: 1,
    // Who has stalled does not read again.
    tries: 1,
    create: implementation => new Session(implementation, { env: { BENCH_HISTORY_BYTES: HISTORY_BYTES } }),
    open: session => session.connect(connections),
    operations: [{
      scenario: `stalled-${count}-of-${connections}`,
      measure: async session => {
        const controlSeconds = Math.min(CONTROL_SECONDS, bench.stallSeconds)
        await run(session, connections, controlSeconds / 2)
        const control = await run(session, connections, controlSeconds)
        const before = await session.server('collect')
        await session.load('stall', { count })
        const sample = await run(session, connections - count, bench.stallSeconds)
        const after = await session.server('collect')
        return {
          ...sample,
          controlP99: control.p99,
          controlP50: control.p50,
          rssGrowth: after.rss - before.rss,
          peakGrowth: sample.peakRss - before.rss,
          published: sample.published * size,
          stalledCount: count,
          disconnected: connections - after.connections
        }
      }
    }]
  })
}
