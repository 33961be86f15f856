import { interleave } from '../rounds.mjs'

/** How long a broadcast to many stops the event loop: one event after the other, each when the one before has arrived. */
export async function stall (bench) {
  const connections = bench.sizes.stall
  if (!bench.fits(connections, 'stall')) return
  const paramsOf = seconds => ({ connections, perTurn: 1, window: 1, seconds, size: bench.eventBytes, watch: true })
  await interleave(bench, {
    rounds: Math.min(bench.rounds, 2),
    open: async session => {
      await session.connect(connections)
      await session.measure('fanout', paramsOf(0.3))
    },
    operations: [{
      scenario: `stall-${connections}`,
      measure: session => session.measure('fanout', paramsOf(2 * bench.seconds))
    }]
  })
}
