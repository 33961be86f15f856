import type { RedisStreamsOptions } from '../types/options.js'
import type { Broker } from './log/broker.js'
import { RedisStreamsBroker } from './log/redis/broker.js'
import { connector } from './log/redis/client.js'
import { resolveRedisOptions } from './log/redis/options.js'

export type { IoredisClient, NodeRedisClient } from './log/redis/client.js'
export type { RedisStreamsOptions } from '../types/options.js'

/**
 * The log of many nodes, in Redis 6.2 or later, or Valkey. Each node holds two connections of its own, one that publishes and
 * one that waits for new entries, and a third while it fetches entries that are older than it remembers.
 * @throws SSE_ERR_INVALID_OPTION
 */
export function redisStreamsBroker (options: RedisStreamsOptions): Broker {
  const resolved = resolveRedisOptions(options)
  return new RedisStreamsBroker(resolved, connector(resolved.client, resolved.database, resolved.replyTimeoutMs))
}
