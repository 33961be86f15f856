// This package as `ours`, with the log that nodes share, in the Redis of BENCH_REDIS.
import { build } from '../build.mjs'
import { startOurs } from './ours.mjs'

export default async function start () {
  const { redisStreamsBroker } = await import(new URL('lib/redis.js', build))
  return await startOurs({ broker: redisStreamsBroker({ client: process.env.BENCH_REDIS }) })
}
