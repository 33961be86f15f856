import { interleave } from '../rounds.mjs'

/** Every connection has a topic of its own; each event is for one of them. */
export async function topics (bench) {
  const count = bench.sizes.topics
  if (!bench.fits(count, 'topics')) return
  const paramsOf = seconds => ({ topics: count, perTurn: 100, window: 2000, seconds, size: bench.eventBytes })
  await interleave(bench, {
    rounds: Math.min(bench.rounds, 4),
    open: async session => {
      await session.connect(count, { path: 'topicPath', distinct: true })
      await session.measure('topics', paramsOf(0.5))
    },
    operations: [{
      scenario: `topics-${count}`,
      measure: session => session.measure('topics', paramsOf(bench.seconds))
    }]
  })
}
