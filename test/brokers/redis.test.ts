import { createClient } from '@redis/client'
import { Redis } from 'ioredis'
import t from 'tap'
import { redisStreamsBroker } from '../../lib/brokers/redis-streams.js'
import { brokerContract } from '../../lib/testing/contract.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'

const server = withoutRedis !== false ? null : await RedisServer.start()

t.test('contract', { skip: withoutRedis }, async t => {
  const ioredis = new Redis(server!.url, { lazyConnect: true })
  const nodeRedis = createClient({ url: server!.url })
  await t.test('ioredis', async t => brokerContract(t.test.bind(t), 'ioredis', keyPrefix => redisStreamsBroker({ client: ioredis, keyPrefix }), { shared: true }))
  await t.test('node-redis', async t => brokerContract(t.test.bind(t), 'node-redis', keyPrefix => redisStreamsBroker({ client: nodeRedis, keyPrefix }), { shared: true }))
})

t.teardown(async () => { await server?.stop() })
