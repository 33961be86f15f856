import { OURS, SHARED } from '../options.mjs'
import { installed, RedisServer } from '../redis-server.mjs'
import { interleave } from '../rounds.mjs'
import { Session } from '../session.mjs'

const NODES = 2
const DELIVERIES_PER_SECOND = 20_000
const WINDOW = 64

/**
 * Two nodes that share a Redis, clients on both, events published on one: with this package's log, and by plain PUBLISH and
 * SUBSCRIBE; beside them one node with its log in memory. All nodes run on one core.
 */
export async function redis (bench) {
  const connections = bench.sizes.redis
  if (!bench.fits(connections, 'redis')) return
  if (!installed) return bench.note('redis: left out: redis-server is not installed')
  const server = await RedisServer.start()
  const paramsOf = {
    rate: seconds => ({ receivers: connections, hz: DELIVERIES_PER_SECOND / connections, seconds, size: bench.eventBytes }),
    fanout: (seconds, perTurn) => ({ connections, perTurn, window: WINDOW, seconds, size: bench.eventBytes, pipelined: true })
  }
  try {
    await interleave(bench, {
      rounds: bench.rounds,
      implementations: [OURS, ...SHARED],
      create: implementation => implementation === OURS ? new Session(OURS) : new Session(implementation, { servers: NODES, redis: server }),
      open: async session => {
        await session.connect(connections)
        await session.measure('rate', paramsOf.rate(0.5))
        await session.measure('fanout', paramsOf.fanout(0.3, 10))
      },
      operations: [
        { scenario: `redis-${connections}-latency`, measure: session => session.measure('rate', paramsOf.rate(Math.max(1, bench.seconds * 2))) },
        { scenario: `redis-${connections}-1`, measure: session => session.measure('fanout', paramsOf.fanout(bench.seconds, 1)) },
        { scenario: `redis-${connections}-10`, measure: session => session.measure('fanout', paramsOf.fanout(bench.seconds, 10)) }
      ]
    })
  } finally {
    await server.stop()
  }
}
