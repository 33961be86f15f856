import { interleave } from '../rounds.mjs'

const DELIVERIES_PER_SECOND = 20_000

/** A load far from the limit: how late is an event? */
export async function latency (bench) {
  const connections = bench.sizes.latency
  if (!bench.fits(connections, 'latency')) return
  const paramsOf = seconds => ({ receivers: connections, hz: DELIVERIES_PER_SECOND / connections, seconds, size: bench.eventBytes })
  await interleave(bench, {
    rounds: Math.min(bench.rounds, 4),
    open: async session => {
      await session.connect(connections)
      await session.measure('rate', paramsOf(0.5))
    },
    operations: [{
      scenario: `latency-${connections}`,
      measure: session => session.measure('rate', paramsOf(Math.max(1, bench.seconds * 2)))
    }]
  })
}
