import { H2 } from '../options.mjs'
import { interleave } from '../rounds.mjs'

const STREAMS_PER_SESSION = 10
const WINDOW = 64

/** Fan-out over HTTP/2 without TLS, ten streams in each session; beside a bare loop of `stream.write()`. */
export async function h2 (bench) {
  const connections = bench.sizes.h2
  if (!bench.fits(connections / STREAMS_PER_SESSION, 'h2')) return
  const paramsOf = (perTurn, seconds) => ({ connections, perTurn, window: WINDOW, seconds, size: bench.eventBytes })
  await interleave(bench, {
    rounds: bench.rounds,
    implementations: H2,
    open: async session => {
      await session.connect(connections, { streamsPerSession: STREAMS_PER_SESSION })
      for (const perTurn of [1, 10]) await session.measure('fanout', paramsOf(perTurn, 0.3))
    },
    operations: [1, 10].map(perTurn => ({
      scenario: `h2-${connections}-${perTurn}`,
      measure: session => session.measure('fanout', paramsOf(perTurn, bench.seconds))
    }))
  })
}
