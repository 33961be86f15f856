import { Type, type Static } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import { bytes, durationMs, resolve } from '../../util/schema.js'
import type { IoredisClient, NodeRedisClient } from './client.js'

/** Every option of `redisStreamsBroker`. */
export const RedisStreamsOptionsSchema = Type.Object({
  client: Type.Unsafe<IoredisClient | NodeRedisClient | string>(Type.Unknown({ description: 'Client of `ioredis` (also `fastify.redis`) or node-redis for one server, or, with `ioredis` installed, a URL. It is copied, not used.' })),
  keyPrefix: Type.String({ minLength: 1, maxLength: 128, pattern: '^[^{}\\s]+$', default: 'sse', description: 'What the keys begin with, in braces: one log for each prefix.' }),
  database: Type.Optional(Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1, description: 'Database to use. Absent: the client\'s.' })),
  replyTimeoutMs: durationMs('Time that Redis has for an answer, or to take a connection, in milliseconds; then the connection is given up. It begins anew while bytes of an answer arrive.', 2_000, 100, 60_000),
  publishTimeoutMs: durationMs('Time after which a publish that is not confirmed is rejected, in milliseconds.', 2_000, 100, 60_000),
  waitWhenDown: Type.Boolean({ default: false, description: 'Whether a publish waits up to `publishTimeoutMs` for a lost connection to come back, instead of being rejected at once.' }),
  maxPendingBytes: bytes('Bytes of publishes that are not confirmed yet; beyond that they are rejected.', 16 * 1024 * 1024),
  startTimeoutMs: durationMs('Time that boot waits for Redis, in milliseconds.', 4_000, 100, 60_000),
  startDegraded: Type.Boolean({ default: false, description: 'Whether the application starts all the same when Redis is not reached in that time.' })
}, { additionalProperties: false })

export type ResolvedRedisOptions = Static<typeof RedisStreamsOptionsSchema>

const compiled = TypeCompiler.Compile(RedisStreamsOptionsSchema)

/** Fills in defaults. Throws SSE_ERR_INVALID_OPTION, which names the option. */
export function resolveRedisOptions (given: unknown): ResolvedRedisOptions {
  return resolve(RedisStreamsOptionsSchema, compiled, given, { prefix: 'broker.' })
}
