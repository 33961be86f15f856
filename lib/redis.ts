import type { RedisStreamsOptions } from '../types/options.js'
import type { Broker } from './log/broker.js'
import { RedisStreamsBroker } from './log/redis/broker.js'
import { connector } from './log/redis/client.js'
import { resolveRedisOptions } from './log/redis/options.js'

export type { IoredisClient, NodeRedisClient } from './log/redis/client.js'
export type { RedisStreamsOptions } from '../types/options.js'

/**
 * Creates a broker for many nodes, with the event log in Redis 6.2 or later, or in Valkey. Each node opens three connections: to publish,
 * to wait for new events, and for messages between nodes. Up to three others are open while the node reads events that are older than
 * those in its memory, and while it uses runs. A publisher, see `createPublisher()`, opens the first one only, and two others for runs.
 * @throws SSE_ERR_INVALID_OPTION
 * @example
 * ```ts
 * await app.register(ssePlugin, { broker: redisStreamsBroker({ client: 'redis://127.0.0.1:6379' }) })
 * ```
 */
export function redisStreamsBroker (options: RedisStreamsOptions): Broker {
  const resolved = resolveRedisOptions(options)
  return new RedisStreamsBroker(resolved, connector(resolved.client, resolved.database, resolved.replyTimeoutMs))
}
