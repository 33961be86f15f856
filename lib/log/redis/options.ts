import { Type, type Static } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import { bytes, durationMs, resolve } from '../../util/option-schema.js'
import type { IoredisClient, NodeRedisClient } from './client.js'

/** The schema of the options of `redisStreamsBroker`. The documentation, the validation and the public type come from it. */
export const RedisStreamsOptionsSchema = Type.Object({
  client: Type.Unsafe<IoredisClient | NodeRedisClient | string>(Type.Unknown({ description: 'Client of `ioredis` (also `fastify.redis`) or node-redis for a single server. With `ioredis` installed, also a URL: `redis://`, `rediss://` or `unix://`. The client is duplicated and not used itself.' })),
  keyPrefix: Type.String({ minLength: 1, maxLength: 128, pattern: '^[^{}\\s]+$', rule: 'must not have braces or white space', default: 'sse', description: 'Prefix of all keys, written in braces: 1 to 128 characters without braces and white space. Each prefix is a separate log.' }),
  database: Type.Optional(Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1, description: 'Number of the Redis database. Absent: the database of the client.' })),
  replyTimeoutMs: durationMs('Time limit for a reply and for a new connection, in milliseconds. When it is exceeded, the connection is closed and a new one is made. The time starts again while bytes of a reply arrive.', 2_000, 100, 60_000),
  publishTimeoutMs: durationMs('Time limit for the confirmation of a publish, in milliseconds. When it is exceeded, the publish is rejected with `SSE_ERR_BROKER_UNAVAILABLE`.', 2_000, 100, 60_000),
  waitWhenDown: Type.Boolean({ default: false, description: 'Whether a publish waits up to `publishTimeoutMs` for a new connection while Redis is unreachable. With `false`, it is rejected at once.' }),
  maxPendingBytes: bytes('Maximum size of all publishes that are not confirmed yet, in bytes. When it is exceeded, further publishes are rejected with `SSE_ERR_BROKER_UNAVAILABLE`.', 16 * 1024 * 1024),
  startTimeoutMs: durationMs('Time for which the start of the application waits for Redis, in milliseconds.', 4_000, 100, 60_000),
  startDegraded: Type.Boolean({ default: false, description: 'Whether the application starts without Redis if Redis is not reached within `startTimeoutMs`. With `false`, the start fails.' })
}, { additionalProperties: false })

/** The options of `redisStreamsBroker` with their defaults. */
export type ResolvedRedisOptions = Static<typeof RedisStreamsOptionsSchema>

const compiled = TypeCompiler.Compile(RedisStreamsOptionsSchema)

/**
 * Validates the options of `redisStreamsBroker` and returns them with their defaults.
 * @throws SSE_ERR_INVALID_OPTION
 */
export function resolveRedisOptions (given: unknown): ResolvedRedisOptions {
  return resolve(RedisStreamsOptionsSchema, compiled, given, { prefix: 'broker.' })
}
