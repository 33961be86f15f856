import { FLOORS, OURS, SHARED } from '../options.mjs'
import { installed, RedisServer } from '../redis-server.mjs'
import { interleave } from '../rounds.mjs'
import { Session } from '../session.mjs'

const [, WRITE] = FLOORS
const [SHARED_OURS] = SHARED
const TOKENS_PER_SECOND = 50
const TOKENS_OF_A_RUN = 200

/**
 * As `sources`, but with a run for each connection: beside `response.write()`, on one node, and with Redis produced on one node and read on another. Then the memory
 * of runs that have ended.
 */
export async function runs (bench) {
  const streams = bench.sizes.runs
  if (!bench.fits(streams, 'runs')) return
  if (!installed) bench.note('runs: without Redis, because redis-server is not installed')
  const redis = installed ? await RedisServer.start() : null
  const paramsOf = seconds => ({ streams, hz: streams * TOKENS_PER_SECOND, seconds, size: bench.eventBytes })
  try {
    await interleave(bench, {
      rounds: bench.rounds,
      implementations: [WRITE, OURS, ...(redis === null ? [] : [SHARED_OURS])],
      create: implementation => new Session(implementation, implementation === SHARED_OURS ? { servers: 2, redis } : {}),
      open: async session => {
        const isFloor = session.implementation === WRITE
        if (!isFloor) await session.server('startRuns', { runs: streams })
        await session.connect(streams, { path: isFloor ? 'sourcePath' : 'runPath', nodes: 'last', distinct: true })
        await session.measure('sources', paramsOf(1))
      },
      operations: [{
        scenario: `runs-${streams}`,
        measure: session => session.measure('sources', paramsOf(Math.max(1, bench.seconds * 2)))
      }]
    })
  } finally {
    await redis?.stop()
  }
  await interleave(bench, {
    rounds: 1,
    tries: 1,
    implementations: [OURS],
    open: async () => {},
    operations: [{
      scenario: `kept-${streams}`,
      measure: async session => ({ foreign: 0, ...await session.server('keepRuns', { runs: streams, tokens: TOKENS_OF_A_RUN, size: bench.eventBytes }, 60_000) })
    }]
  })
}
