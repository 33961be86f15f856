import { createClient } from '@redis/client'
import { Redis } from 'ioredis'
import t from 'tap'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { runStoreContract } from '../../lib/testing/index.js'
import { systemClock } from '../../lib/util/clock.js'
import { runKey, type RunLease, type RunStore } from '../../lib/log/run-store.js'
import { pageAt } from '../helpers/pages.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

// The contract of run stores, in memory and in Redis.

async function start (store: RunStore, count: number): Promise<RunLease[]> {
  const leases: RunLease[] = []
  for (let n = 0; n < count; n++) {
    const lease = { key: runKey(`run ${n}`, null), token: 't', leaseMs: 60_000, ttlMs: 60_000 }
    const { state: { generation } } = await store.claim({ ...lease, joinFinished: false, settings: '' })
    leases.push({ ...lease, generation })
  }
  return leases
}

t.test('in memory', async t => {
  runStoreContract((name, run) => { t.test(name, run) }, 'memory', () => new MemoryRunStore(systemClock, 1 << 30))
})

t.test('in Redis', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const { url } = server
  for (const [name, client] of Object.entries({ ioredis: new Redis(url, { lazyConnect: true }), 'node-redis': createClient({ url }) })) {
    await t.test(name, async t => {
      runStoreContract((name, run) => { t.test(name, run) }, name, keyPrefix => redisStreamsBroker({ client, keyPrefix, replyTimeoutMs: 10_000 }).runs!, { shared: true })
    })

    await t.test(`a key of another type fails the calls for its run only, with ${name}`, async t => {
      const keyPrefix = `type-${name}`
      const store = redisStreamsBroker({ client, keyPrefix, replyTimeoutMs: 10_000 }).runs!
      t.teardown(() => store.close())
      store.watch({ news () {}, ended () {} })
      const [first] = await start(store, 1)
      const [key] = (await server.ask('KEYS', `${keyPrefix}:run:*`)).split('\r\n').filter(line => line.startsWith(keyPrefix))
      const leases = await start(store, 100)
      await server.ask('SET', key!, 'of another application')
      // So long that Redis answers in several parts.
      const appended = await Promise.allSettled(leases.map(lease => store.append(lease, 0, [`data: ${'x'.repeat(8_000)}\n\n`])))
      const read = await Promise.allSettled(leases.map(({ key, generation }) => store.read(key, generation, 0, false)))
      const expected = leases.map(lease => lease.key.text === first!.key.text ? 'rejected' : 'fulfilled')
      for (const answers of [appended, read]) t.same(answers.map(({ status }) => status), expected)
    })
  }

  t.test('the rights that the documentation names are enough', async t => {
    const [, rights] = /^ACL SETUSER sse (.*)$/m.exec(pageAt('docs/operations/redis.md').text)!
    t.match(await server.ask('ACL', 'SETUSER', 'sse', ...rights!.split(' ')), /^\+OK/)
    const authorised = url.replace('://', '://sse:password@')
    runStoreContract((name, run) => { t.test(name, run) }, 'rights', name => redisStreamsBroker({ client: authorised, keyPrefix: `sse:${name}`, replyTimeoutMs: 10_000 }).runs!)
  })

  t.test('appends of one turn share a command', async t => {
    const store = redisStreamsBroker({ client: url, keyPrefix: 'together', replyTimeoutMs: 10_000 }).runs!
    t.teardown(() => store.close())
    store.watch({ news () {}, ended () {} })
    const leases = await start(store, 300)
    const calls = async () => Number(/cmdstat_evalsha:calls=(\d+)/.exec(await server.ask('INFO', 'commandstats'))![1])
    const before = await calls()
    const texts = (n: number) => Array.from({ length: n % 4 }, (_, i) => `data: ${n} ${i}\n\n`)
    const states = await Promise.all(leases.map((lease, n) => store.append(lease, 0, texts(n))))
    t.same(states.map(state => state!.events), leases.map((lease, n) => n % 4))
    t.ok(await calls() - before < 10)
    for (const n of [0, 1, 2, 3, 299]) t.same((await store.read(leases[n]!.key, leases[n]!.generation, 0, false)).texts, texts(n))
  })

  t.test('each run is one key with a hash tag of its own, and nothing is left of it', async t => {
    const keys = async () => (await server.ask('KEYS', 'own:*')).split('\r\n').filter(line => line.startsWith('own:'))
    const store = redisStreamsBroker({ client: url, keyPrefix: 'own', replyTimeoutMs: 10_000 }).runs!
    t.teardown(() => store.close())
    store.watch({ news () {}, ended () {} })
    const key = runKey('a{b}\r\n*', 'ada@example')
    const { state: { generation } } = await store.claim({ key, token: 't', leaseMs: 60_000, ttlMs: 300, joinFinished: false, settings: '' })
    const lease = { key, generation, token: 't', leaseMs: 60_000, ttlMs: 300 }
    await store.append(lease, 0, Array.from({ length: 5_000 }, (_, n) => `data: ${n}\n\n`))
    const found = (await keys()).sort()
    t.equal(found.length, 2, found.join(' '))
    t.match(found[0]!, /^own:run:\{[\w-]{32}\}$/)
    t.match(found[1]!, /^own:runs:\{[\w-]{32}\}$/, 'the list of the owner')
    for (const key of found) t.match(await server.ask('PTTL', key), /^:\d{4,6}\r/, 'it expires by itself')
    await store.finish(key, { status: 'done' }, { lease, after: 5_000 })
    await until(async () => (await keys()).length === 0)
  })
})
