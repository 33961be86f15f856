import { interleave } from '../rounds.mjs'

const BURSTS = [1, 10]
const WARM_UP_SECONDS = 0.3
// Events on their way to each connection; fewer to many connections, so that the load is never seconds behind.
const WINDOW = 64
const WINDOW_DELIVERIES = 160_000

/** Closed loop: events published in the server, one or a burst of ten in each turn of its event loop. */
export async function fanout (bench) {
  for (const connections of bench.sizes.fanout) {
    if (!bench.fits(connections, 'fanout')) continue
    const paramsOf = (perTurn, seconds) => ({
      connections,
      perTurn,
      seconds,
      size: bench.eventBytes,
      window: Math.max(2 * perTurn, Math.min(WINDOW, Math.round(WINDOW_DELIVERIES / connections)))
    })
    const seconds = bench.seconds * (connections >= 10_000 ? 1.5 : 1)
    const rounds = connections >= 10_000 ? Math.min(bench.rounds, 4) : bench.rounds
    await interleave(bench, {
      rounds,
      open: async session => {
        await session.connect(connections)
        for (const perTurn of BURSTS) await session.measure('fanout', paramsOf(perTurn, WARM_UP_SECONDS))
      },
      operations: BURSTS.map(perTurn => ({
        scenario: `fanout-${connections}-${perTurn}`,
        measure: session => session.measure('fanout', paramsOf(perTurn, seconds))
      }))
    })
  }
}
