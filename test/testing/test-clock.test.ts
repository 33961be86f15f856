import { AsyncLocalStorage } from 'node:async_hooks'
import { createServer } from 'node:http'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import ssePlugin, { SSEManager, type SSEOptions } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { openStream, testClock, testLog, type OpenStreamOptions, type TestStream } from '../../lib/testing/index.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

// Everything that takes time, at the intervals of production, without waiting.

/** An application with one route that opens a stream; everything but the clock is as in production. */
async function build (t: Test, options: SSEOptions): Promise<FastifyInstance> {
  const app: FastifyInstance = Fastify()
  t.teardown(() => app.close())
  await app.register(ssePlugin, options)
  app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse({ subscriptions: ['news:**', 'room:1'] }) })
  return app
}

const keepAlives = ({ comments }: TestStream) => comments.filter(text => text === 'keep-alive').length

const TRANSPORTS: Record<string, OpenStreamOptions> = { 'in memory': { socket: false }, 'by TCP': { socket: true } }

for (const [name, transport] of Object.entries(TRANSPORTS)) {
  t.test(name, async t => {
    t.test('keep-alives', async t => {
      const clock = testClock()
      const app = await build(t, clock.options)
      const stream = await openStream(app, '/sse', { ...transport, test: t })
      await clock.advance(14_999)
      t.equal(keepAlives(stream), 0)
      await clock.advance(1)
      t.equal(keepAlives(stream), 1)
      await clock.advance(150_000)
      t.equal(keepAlives(stream), 11)
      await app.sse.broadcastData('x', 1)
      await stream.next()
      await clock.advance(14_750)
      t.equal(keepAlives(stream), 11, 'an event is a sign of life')
    })

    t.test('the time without a byte taken after which a client is stalled', async t => {
      const clock = testClock()
      const app = await build(t, { ...clock.options, keepAliveIntervalMs: 3_600_000, outboxBytes: 1 << 20 })
      const [frozen, reading] = [await openStream(app, '/sse', { ...transport, test: t }), await openStream(app, '/sse', { ...transport, test: t })]
      frozen.freeze()
      const [connection] = [...app.sse.connections()]
      for (let i = 0; i < 20; i++) await app.sse.broadcastData('x', 'x'.repeat(50_000))
      await clock.advance(29_750)
      t.ok(connection!.isConnected)
      await clock.advance(500)
      t.equal(connection!.closeReason, 'stalled')
      t.match(await frozen.ended, { by: 'network' })
      t.equal((await reading.collect(20)).length, 20)
      await clock.advance(300_000)
      t.ok(reading.isOpen, 'a client that reads is never stalled')
    })

    t.test('age, and the end of the rights', async t => {
      const clock = testClock()
      const app = await build(t, { ...clock.options, maxConnectionAgeMs: 1_000_000 })
      const aged = await openStream(app, '/sse', { ...transport, test: t })
      const limited = await openStream(app, '/sse', { ...transport, test: t, user: { userId: 'ada', expiresAt: clock.now + 600_000 } })
      await clock.advance(599_750)
      t.ok(limited.isOpen)
      await clock.advance(250)
      t.match(await limited.ended, { by: 'server', reason: 'auth-expired', reconnect: true })
      await clock.advance(199_999)
      t.ok(aged.isOpen, 'a fifth of the age is spread')
      await clock.advance(200_001)
      t.match(await aged.ended, { by: 'server', reason: 'max-age', reconnect: true })
    })

    t.test('a client that hangs has drainMs; if the test does not move the clock, real time does', async t => {
      for (const [drainMs, moves] of [[60_000, true], [200, false]] as const) {
        const clock = testClock()
        const app = await build(t, { ...clock.options, drainMs })
        const stream = await openStream(app, '/sse', { ...transport, test: t })
        stream.freeze()
        await app.sse.broadcastData('x', 'x'.repeat(200_000))
        let drained = false
        const drain = app.sse.drain().then(() => { drained = true })
        if (moves) {
          await clock.advance(59_999)
          t.notOk(drained)
          await clock.advance(1_000)
        }
        await drain
        t.ok(clock.now >= app.sse.health().since + drainMs)
        t.equal(app.sse.connectionCount, 0)
      }
    })
  })
}

t.test('the age of the history', async t => {
  const brokers: Record<string, SSEOptions> = { memoryBroker: {}, testLog: { broker: testLog().broker() } }
  for (const [name, options] of Object.entries(brokers)) {
    const clock = testClock()
    const app = await build(t, { ...options, ...clock.options })
    const stream = await openStream(app, '/sse', { test: t })
    await app.sse.broadcastData('x', 1)
    await stream.next()
    await app.sse.broadcastData('x', 2)
    await stream.close()
    await clock.advance(300_000)
    const returned = await stream.reconnect()
    t.match((await returned.next()).json, { data: 2 }, name)
    await clock.advance(1)
    t.match((await (await returned.reconnect({ lastEventId: stream.lastEventId })).next()).json, { reason: 'trimmed' }, name)
  }
})

t.test('tickets', async t => {
  const clock = testClock()
  const app = await build(t, { ...clock.options, requireAuthentication: true, ticketSecret: 'thirty-two characters of a random generator' })
  const ticket = () => app.sse.issueTicket({ userId: 'ada' })
  const [young, old] = [ticket(), ticket()]
  await clock.advance(29_999)
  await openStream(app, `/sse?ticket=${young}`, { test: t })
  await clock.advance(1)
  await t.rejects(openStream(app, `/sse?ticket=${old}`), { code: 'SSE_ERR_TEST_REFUSED' })
  await openStream(app, `/sse?ticket=${ticket()}`, { test: t })
})

t.test('who leaves, and who comes back in time', async t => {
  const clock = testClock()
  const app = await build(t, { ...clock.options, presenceEvents: { topics: ['room:*'] } })
  const watcher = await openStream(app, '/sse', { test: t, user: 'watcher' })
  await watcher.next('sse:join')
  const ada = await openStream(app, '/sse', { test: t, user: 'ada' })
  await watcher.next('sse:join')
  await ada.close()
  await clock.advance(14_999)
  const { users } = await app.sse.presence('room:1')
  t.strictSame(users, [{ userId: 'watcher', connections: 1 }, { userId: 'ada', connections: 0 }], 'of whom nobody is told that she is back')
  const again = await ada.reconnect()
  await clock.advance(20_000)
  t.same(watcher.events.map(({ event }) => event), ['sse:join', 'sse:join'])
  await again.close()
  await clock.advance(14_999)
  t.equal(watcher.events.length, 2)
  await clock.advance(1)
  t.match((await watcher.next()), { event: 'sse:leave', json: { userId: 'ada' } })
})

t.test('nodes that live, and nodes that are gone', async t => {
  const clock = testClock()
  const log = testLog()
  const brokers = [log.broker(), log.broker(), log.broker()]
  const apps = []
  for (const broker of brokers) apps.push(await build(t, { ...clock.options, broker, presenceEvents: { topics: ['room:*'], lingerMs: 60_000 } }))
  const [one, two] = apps
  const count = () => one!.sse.clusterStats().nodes.length
  await until(() => count() === 3)
  const watcher = await openStream(one!, '/sse', { test: t, user: 'watcher' })
  await openStream(two!, '/sse', { test: t, user: 'ada' })
  await watcher.collect(2)
  await clock.advance(60_000)
  t.equal(count(), 3, 'all are heard of')
  t.match(one!.sse.clusterStats().nodes.map(({ heardAt }) => clock.now - heardAt <= 2_400), [true, true, true])
  brokers[1]!.fail()
  // Seven seconds of silence are counted in intervals of 1.6 to 2.4 seconds. One may have passed already, and one have begun before the last report.
  await clock.advance(2_000)
  t.equal(count(), 3)
  await clock.advance(8_000)
  t.equal(count(), 2, 'one that is silent for three and a half intervals is gone')
  t.equal(watcher.events.length, 2, 'and its users may come back elsewhere')
  await clock.advance(60_000)
  t.match(await watcher.next(), { event: 'sse:leave', json: { userId: 'ada' } })
  brokers[1]!.restore()
  await watcher.next('sse:join')
  t.equal(count(), 3)
})

t.test('Redis: the nodes keep their own time', { skip: withoutRedis }, async t => {
  const redis = await RedisServer.start()
  t.teardown(() => redis.stop())
  const clock = testClock()
  const options = () => ({ ...clock.options, broker: redisStreamsBroker({ client: redis.url }) })
  const [one, two] = [await build(t, options()), await build(t, options())]
  const count = () => one.sse.clusterStats().nodes.length
  await until(() => count() === 2 && two.sse.clusterStats().nodes.length === 2)
  const stream = await openStream(two, '/sse', { test: t })
  await clock.advance(60_000)
  t.equal(count(), 2, 'each heartbeat arrives')
  t.equal(keepAlives(stream), 4)
  await one.sse.broadcastData('x', 1)
  t.match(await stream.next(), { json: { data: 1 } })
  await two.close()
  await until(() => count() === 1)
})

t.test('the clock', async t => {
  t.test('each timer fires at its time, in order, with what the one before has begun done', async t => {
    const { clock, advance, now } = await (async () => {
      const clock = testClock()
      return { clock: clock.clock, advance: (ms: number) => clock.advance(ms), now: () => clock.now }
    })()
    const startedAt = now()
    t.ok(Math.abs(startedAt - Date.now()) < 60_000)
    const fired: unknown[] = []
    const note = (what: string) => fired.push([what, clock.monotonic(), now() - startedAt])
    clock.after(30, async () => {
      note('begins')
      await new Promise(resolve => setTimeout(resolve, 20))
      note('is done')
    })
    const ticks = clock.every(10, () => note('tick'))
    clock.after(10, () => {
      note('first')
      clock.after(0.5, () => note('soon'))
    })
    clock.cancel(clock.after(5, () => note('never')))
    clock.cancel(null)
    await Promise.all([advance(25), advance(10)])
    clock.cancel(ticks)
    await advance(1_000)
    t.strictSame(fired, [['tick', 10, 10], ['first', 10, 10], ['soon', 11, 11], ['tick', 20, 20], ['begins', 30, 30], ['is done', 30, 30], ['tick', 30, 30]])
    t.equal(clock.monotonic(), 1_035)
  })

  t.test('an error of a timer rejects advance(), and the clock goes on', async t => {
    const time = testClock()
    time.clock.after(1, () => { throw Object.assign(new Error('of a timer')) })
    await t.rejects(time.advance(5), { message: 'of a timer' })
    await time.advance(5)
    for (const ms of [-1, 0.5, NaN, Infinity, '1' as never]) await t.rejects(time.advance(ms), { code: 'SSE_ERR_TEST_MISUSE' })
  })

  t.test('a timer runs in the context in which it was set', async t => {
    const storage = new AsyncLocalStorage<string>()
    const time = testClock()
    const seen: unknown[] = []
    storage.run('setter', () => time.clock.after(1, () => seen.push(storage.getStore())))
    await storage.run('test', () => time.advance(1))
    t.strictSame(seen, ['setter'])
  })

  t.test('without Fastify', async t => {
    const clock = testClock()
    const manager = new SSEManager({ ...clock.options })
    t.teardown(() => manager.close())
    const server = createServer((request, response) => { manager.createConnection({ request, response }) })
    await new Promise<void>(resolve => { server.listen(0, '127.0.0.1', resolve) })
    t.teardown(() => server.close())
    const { port } = server.address() as { port: number }
    const stream = await openStream(`http://127.0.0.1:${port}`, '/', { test: t })
    await clock.advance(15_000)
    await until(() => keepAlives(stream) === 1)
  })
})
