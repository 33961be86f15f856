import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { connector } from '../../lib/log/redis/client.js'
import { RedisRunStore } from '../../lib/log/redis/run-store.js'
import { ServerClock } from '../../lib/log/redis/server-clock.js'
import { PAGE_BYTES, runKey, type RunEvents, type RunLease } from '../../lib/log/run-store.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

// What the contract of run stores leaves open: what this one keeps in Redis and in the process, and its clock.

const text = (data: string) => `data: ${data}\n\n`

t.test('runs in Redis', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  let prefixes = 0

  /** A node with these runs, and the news that it has had. */
  const join = (t: Test, keyPrefix: string, clock = new ServerClock(), replyTimeoutMs = 10_000) => {
    const client = new Redis(server.url, { lazyConnect: true })
    const store = new RedisRunStore({ keyPrefix, replyTimeoutMs }, clock, connector(client, undefined, 10_000))
    t.teardown(() => store.close())
    const news: [key: string, events: RunEvents | undefined][] = []
    const ends: string[] = []
    store.watch({ news: (key, events) => { news.push([key, events]) }, ended: key => { ends.push(key) } })
    return { store, news, ends }
  }
  const nodes = (t: Test) => {
    const keyPrefix = `store-${++prefixes}`
    return { keyPrefix, one: join(t, keyPrefix), other: join(t, keyPrefix) }
  }
  const key = (id = 'a') => runKey(id, null)
  const begin = async ({ store }: ReturnType<typeof join>, id = 'a', more: object = {}): Promise<RunLease> => {
    const claim = { key: key(id), token: 't', leaseMs: 60_000, ttlMs: 60_000, joinFinished: false, settings: '', ...more }
    return { ...claim, generation: (await store.claim(claim)).state.generation }
  }
  const names = async (pattern: string) => (await server.ask('KEYS', pattern)).split('\r\n').filter(line => line.includes(':'))

  t.test('a node whose clock is wrong starts runs all the same, unless the time has passed', async t => {
    const clock = new ServerClock()
    clock.observe(Date.now() - 3_600_000)
    const { store } = join(t, `store-${++prefixes}`, clock)
    const claims = () => server.calls('evalsha')
    const before = await claims()
    const { state, started } = await store.claim({ key: key(), token: 't', leaseMs: 60_000, ttlMs: 60_000, joinFinished: false, settings: 'one\ntwo\n' })
    t.equal(started, true)
    t.equal(state.settings, 'one\ntwo\n')
    t.ok(Math.abs(clock.now - Date.now()) < 60_000, 'the clock is known now')
    t.ok(await claims() - before >= 2)
    t.match({ ...await store.get(key()) }, { ...state })
    class Slow extends ServerClock {
      override get now () { return Date.now() - 3_600_000 }
    }
    const late = join(t, `store-${++prefixes}`, new Slow())
    await t.rejects(begin(late), { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: /too late/ })
    t.equal(await late.store.get(key()), null)
  })

  t.test('a claim that is repeated after its run has ended does not start it again', async t => {
    const { one, other } = nodes(t)
    const lease = await begin(one)
    await one.store.finish(key(), { status: 'done' }, { lease, after: 0 })
    const claim = { ...lease, joinFinished: false, settings: '' }
    t.match(await one.store.claim(claim), { started: true, state: { generation: lease.generation, status: 'done' } })
    t.match(await other.store.claim({ ...claim, token: 'u', joinFinished: true }), { started: false, state: { generation: lease.generation } })
  })

  t.test('a generation is greater than the one before, also after the clock of Redis was set back', async t => {
    const { keyPrefix, one } = nodes(t)
    await begin(one)
    const [name] = await names(`${keyPrefix}:run:*`)
    const future = 2 ** 52
    await server.ask('HSET', name!, 'generation', String(future))
    await one.store.finish(key(), { status: 'done' })
    const { generation } = await begin(one, 'a', { token: 'u' })
    t.equal(generation, future + 1)
  })

  t.test('the node of a producer learns of an end elsewhere, also when its own readers have left', async t => {
    const { one, other } = nodes(t)
    const lease = await begin(one)
    await one.store.read(key(), lease.generation, 0, true)
    await one.store.leave(key())
    await other.store.finish(key(), { status: 'stopped' })
    await until(() => one.ends.includes(key().text))
  })

  t.test('readers on the node of the producer are told of its end at once', async t => {
    const { one } = nodes(t)
    const lease = await begin(one)
    await one.store.read(key(), lease.generation, 0, true)
    await one.store.finish(key(), { status: 'done' }, { lease, after: 0 })
    t.same(one.ends, [key().text])
  })

  t.test('a run that a node neither reads nor produces any more is none of its business', async t => {
    const { one, other } = nodes(t)
    const lease = await begin(one)
    const marker = await begin(one, 'marker')
    await one.store.read(key(), lease.generation, 0, true)
    await one.store.finish(key(), { status: 'done' }, { lease, after: 0 })
    await one.store.leave(key())
    one.ends.length = 0
    // Both tell the node of the producer, one after the other.
    t.equal((await other.store.finish(key(), { status: 'stopped' }))!.status, 'done')
    await new Promise(resolve => setImmediate(resolve))
    await other.store.finish(marker.key, { status: 'stopped' })
    await until(() => one.ends.includes(marker.key.text))
    t.same(one.ends, [marker.key.text])
  })

  t.test('an earlier producer that ends does not take the news of the next one', async t => {
    const { one, other } = nodes(t)
    const lease = await begin(one)
    await other.store.finish(key(), { status: 'stopped' })
    await until(() => one.ends.length === 1)
    await begin(one, 'a', { token: 'u' })
    t.equal(await one.store.finish(key(), { status: 'done' }, { lease, after: 0 }), null)
    await other.store.finish(key(), { status: 'stopped' })
    await until(() => one.ends.length === 2)
  })

  t.test('a renewal is no news, and an event larger than a command is appended', async t => {
    const { one, other } = nodes(t)
    const lease = await begin(one)
    await other.store.read(key(), lease.generation, 0, true)
    await one.store.append(lease, 0, [])
    await one.store.append(lease, 0, [text('1'), text('2')])
    await until(() => other.news.length > 0)
    t.same(other.news, [[key().text, { generation: lease.generation, after: 0, texts: [text('1'), text('2')] }]])
    const large = text('x'.repeat(300_000))
    t.equal((await one.store.append(lease, 2, [large]))!.events, 3)
    await until(() => other.news.length === 2)
    t.same(other.news[1], [key().text, undefined], 'nodes read more than a page themselves')
    t.same((await other.store.read(key(), lease.generation, 2, false)).texts, [large])
  })

  t.test('a page ends when it has its size', async t => {
    const { one } = nodes(t)
    const lease = await begin(one)
    const texts = Array.from({ length: 10 }, (_, n) => text(String(n).repeat(PAGE_BYTES / 4 - 8)))
    await one.store.append(lease, 0, texts)
    const page = async (after: number) => (await one.store.read(key(), lease.generation, after, false)).texts
    t.same(await page(0), texts.slice(0, 4), 'four of a quarter')
    t.same(await page(4), texts.slice(4, 8))
    t.same(await page(8), texts.slice(8))
    await one.store.append(lease, 10, [text('x'), ...texts])
    t.same(await page(10), [text('x'), ...texts.slice(0, 4)], 'and what is begun is whole')
  })

  t.test('a run is in the list of its owner for as long as it can be kept, and is not written there each time', async t => {
    const { keyPrefix, one } = nodes(t)
    const lease = await begin(one)
    const [list] = await names(`${keyPrefix}:runs:*`)
    const until = async () => Number(/^\$\d+\r\n(\S+)/.exec(await server.ask('ZSCORE', list!, 'a'))![1])
    const first = await until()
    const scripts = await server.calls('evalsha')
    for (let n = 0; n < 10; n++) await one.store.append(lease, n, [text('x')])
    t.equal(await server.calls('evalsha') - scripts, 10, 'an append each')
    t.equal(await until(), first)
    // As after a long time: the lease would end after the entry of the list.
    await one.store.append({ ...lease, leaseMs: 600_000 }, 10, [])
    t.ok(await until() >= first + 2 * 600_000 - 120_000)
    t.same((await one.store.list(null)).map(({ runId }) => runId), ['a'])
  })

  t.test('a node is written down as a reader once in a while, and others stay when it leaves', async t => {
    const { one, other } = nodes(t)
    const lease = await begin(one)
    for (const { store } of [one, other]) await store.read(key(), lease.generation, 0, true)
    const writes = await server.calls('hset')
    for (let n = 0; n < 20; n++) await other.store.read(key(), lease.generation, 0, true)
    t.ok(await server.calls('hset') - writes < 10, 'not at each read')
    await other.store.leave(key())
    t.equal((await one.store.get(key()))!.isRead, true)
    await one.store.leave(key())
    t.equal((await one.store.get(key()))!.isRead, false)
    await one.store.finish(key(), { status: 'done' })
    await one.store.read(key(), lease.generation, 0, true)
    t.equal((await one.store.get(key()))!.isRead, false, 'a run that has ended has nothing to tell')
    await one.store.leave(key('unknown'))
  })

  t.test('calls that wait when the store is closed are rejected as closed, and so are later ones', async t => {
    const { one: { store } } = nodes(t)
    const lease = await begin({ store } as ReturnType<typeof join>)
    server.signal('SIGSTOP')
    const calls = [store.get(key()), store.append(lease, 0, [text('x')]), store.list(null), store.leave(key()), store.finish(key(), { status: 'done' })]
    const settled = Promise.allSettled(calls)
    await new Promise(resolve => setImmediate(resolve))
    await store.close()
    const outcomes = await settled
    server.signal('SIGCONT')
    t.same(outcomes.map(outcome => (outcome as PromiseRejectedResult).reason.code), calls.map(() => 'SSE_ERR_CLOSED'))
    await t.rejects(store.leave(key()), { code: 'SSE_ERR_CLOSED' })
    t.throws(() => store.append(lease, 0, []), { code: 'SSE_ERR_CLOSED' })
  })
})
