import { interleave } from '../rounds.mjs'

const TOKENS_PER_SECOND = 50

/** Every connection reads a source of its own, as the answer of a model: tokens come one by one, at a fixed rate. */
export async function sources (bench) {
  const streams = bench.sizes.sources
  if (!bench.fits(streams, 'sources')) return
  const paramsOf = seconds => ({ streams, hz: streams * TOKENS_PER_SECOND, seconds, size: bench.eventBytes })
  await interleave(bench, {
    rounds: bench.rounds,
    open: async session => {
      await session.connect(streams, { path: 'sourcePath', distinct: true })
      await session.measure('sources', paramsOf(1))
    },
    operations: [{
      scenario: `sources-${streams}`,
      measure: session => session.measure('sources', paramsOf(Math.max(1, bench.seconds * 2)))
    }]
  })
}
