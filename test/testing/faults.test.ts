import { writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import ssePlugin, { type SSEOptions } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { forceGap, openStream, restart, slowRedis, startNode, testLog, type OpenStreamOptions } from '../../lib/testing/index.js'
import { buildNode } from '../helpers/node.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'

// Misfortune on command: restarts, gaps, nodes that die or hang, logs that fail.

/** Makes applications that are closed with the test. */
function builder (t: Test, options: () => SSEOptions = () => ({})) {
  return async (): Promise<FastifyInstance> => {
    const app: FastifyInstance = Fastify()
    t.teardown(() => app.close())
    await app.register(ssePlugin, { drainMs: 200, ...options() })
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    return app
  }
}

t.test('restart()', async t => {
  for (const transport of [{ socket: false }, { socket: true }] satisfies OpenStreamOptions[]) {
    await t.test(`the log in memory is lost: a gap; by TCP the port stays (${JSON.stringify(transport)})`, async t => {
      const build = builder(t)
      const first = await build()
      const stream = await openStream(first, '/sse', { ...transport, test: t })
      await first.sse.broadcastEvent({ event: 'n', data: 1 })
      await stream.next('n')
      const address = first.server.address()
      const second = await restart(first, build)
      t.strictSame(await stream.ended, { by: 'server', reason: 'shutdown', reconnect: true })
      t.same(second.server.address(), address)
      const returned = await stream.reconnect({ app: second })
      t.equal((await returned.next()).event, 'sse:gap')
    })
  }

  t.test('a log that outlives the application is kept; a crash sends no farewell', async t => {
    const log = testLog()
    const build = builder(t, () => ({ broker: log.broker() }))
    const first = await build()
    const stream = await openStream(first, '/sse', { socket: true, test: t })
    await first.sse.broadcastEvent({ event: 'n', data: 1 })
    await stream.next('n')
    const second = await restart(first, build, { crash: true })
    t.match(await stream.ended, { by: 'network', reason: null })
    await second.sse.broadcastEvent({ event: 'n', data: 2 })
    const returned = await stream.reconnect({ app: second })
    t.equal((await returned.next()).json, 2)
  })

  t.test('on a Unix socket', async t => {
    const build = builder(t)
    const first = await build()
    // Short: the path of a socket has 107 bytes at most.
    const path = `/tmp/sse-restart-${process.pid}`
    await first.listen({ path })
    const second = await restart(first, build)
    t.equal(second.server.address(), path)
  })
})

t.test('forceGap(): a cursor from before is a gap, and connected clients notice nothing', async t => {
  const histories: SSEOptions[] = [{}, { history: { maxEvents: 10 } }, { history: { maxEvents: 1_000_000, maxBytes: 100_000 }, maxEventBytes: 50_000 }]
  for (const options of histories) {
    await t.test(JSON.stringify(options), async t => {
      const app = await builder(t, () => options)()
      const stream = await openStream(app, '/sse', { test: t })
      const idle = await openStream(app, '/sse', { test: t })
      await app.sse.broadcastEvent({ event: 'n', data: 1 })
      await stream.next('n')
      const { lastEventId } = stream
      await stream.close()
      await forceGap(app)
      const returned = await openStream(app, '/sse', { test: t, lastEventId })
      t.match((await returned.next()).json, { reason: 'trimmed' })
      await app.sse.broadcastEvent({ event: 'n', data: 2 })
      t.same((await idle.collect(2)).map(({ event, json }) => [event, json]), [['n', 1], ['n', 2]])
    })
  }
  const named = Fastify()
  t.teardown(() => named.close())
  await named.register(ssePlugin, { decorators: { instance: 'events' }, history: { maxEvents: 5 } })
  await t.rejects(forceGap(named), { code: 'SSE_ERR_TEST_MISUSE', message: 'pass the manager itself' })
  await forceGap((named as unknown as { events: FastifyInstance['sse'] }).events)
})

t.test('testLog(): two nodes on one log, without Redis', async t => {
  const log = testLog()
  const brokers = [log.broker(), log.broker()]
  let made = 0
  const build = builder(t, () => ({ broker: brokers[made++]!, keepAliveIntervalMs: 50 }))
  const [one, other] = [await build(), await build()]
  const stream = await openStream(one, '/sse', { test: t, user: 'ada' })

  await t.test('events and commands cross nodes', async t => {
    await other.sse.broadcastEvent({ event: 'n', data: 1 })
    t.equal((await stream.next('n')).json, 1)
    const second = await openStream(other, '/sse', { test: t, user: 'ada' })
    t.equal(await one.sse.disconnectUser('ada'), 2)
    t.match(await second.ended, { reason: 'disconnected' })
  })

  await t.test('a node that lags receives it all later', async t => {
    const slow = await openStream(other, '/sse', { test: t, timeoutMs: 1_000 })
    brokers[1]!.lag()
    await one.sse.broadcastEvent({ event: 'n', data: 2 })
    await t.rejects(slow.next('n'), { code: 'SSE_ERR_TEST_TIMEOUT' })
    brokers[1]!.catchUp()
    t.equal((await slow.next('n')).json, 2)
  })

  await t.test('an outage', async t => {
    const here = await openStream(one, '/sse', { test: t })
    log.fail()
    await t.rejects(one.sse.broadcastEvent({ data: 1 }), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
    t.equal(other.sse.health().status, 'degraded')
    await t.rejects(log.broker().open({ deliver: () => 0, gap () {}, state () {} }, { maxEvents: 1, maxAgeMs: 1, maxBytes: 1 }).then(() => one.sse.broadcastEvent({ data: 1 })), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
    log.restore()
    log.restore()
    t.equal(other.sse.health().status, 'up')
    await other.sse.broadcastEvent({ event: 'n', data: 3 })
    t.equal((await here.next('n')).json, 3)
  })

  await t.test('trim() and wipe()', async t => {
    const gapAfter = async (misfortune: () => void) => {
      const before = await openStream(one, '/sse', { test: t })
      await one.sse.broadcastEvent({ event: 'n', data: 4 })
      await before.next('n')
      await before.close()
      await one.sse.broadcastEvent({ event: 'n', data: 5 })
      misfortune()
      return (await (await before.reconnect({ app: other })).next()).json.reason
    }
    t.equal(await gapAfter(() => log.trim()), 'trimmed')
    const connected = await openStream(one, '/sse', { test: t })
    t.equal(await gapAfter(() => log.wipe()), 'epoch')
    t.match((await connected.next('sse:gap')).json, { reason: 'epoch' })
  })

  await t.test('a node hears of a wipe() during its outage when it reaches the store again', async t => {
    const here = await openStream(one, '/sse', { test: t })
    const away = await openStream(other, '/sse', { test: t })
    brokers[1]!.fail()
    log.wipe()
    t.match((await here.next()).json, { reason: 'epoch' })
    await one.sse.broadcastEvent({ event: 'n', data: 6 })
    await here.next('n')
    t.strictSame(away.events, [])
    t.equal(other.sse.health().status, 'degraded')
    brokers[1]!.restore()
    await one.sse.broadcastEvent({ event: 'n', data: 7 })
    const [gap, event] = await away.collect(2)
    t.match([gap!.json, event!.json], [{ reason: 'epoch' }, 7])
    t.equal(other.sse.health().status, 'up')
    brokers[1]!.fail()
    brokers[1]!.restore()
    await one.sse.broadcastEvent({ event: 'n', data: 8 })
    t.equal((await away.next()).json, 8, 'once')
  })
})

/** A script of one node, as an application would write it. */
const SCRIPT = `
  import Fastify from 'fastify'
  import ssePlugin from '../../lib/index.js'
  import { redisStreamsBroker } from '../../lib/redis.js'
  const app = Fastify()
  console.log('starts')
  if (process.argv[2] === 'fails') process.exit(3)
  await app.register(ssePlugin, { ...(process.env.REDIS && { broker: redisStreamsBroker({ client: process.env.REDIS }) }), drainMs: 100 })
  app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
  app.post('/publish', async request => app.sse.broadcastEvent({ event: 'n', data: request.body }))
  process.once('SIGTERM', async () => { await app.close(); process.exit(0) })
  await app.listen({ port: Number(process.env.PORT), host: '127.0.0.1' })
  if (process.argv[2] !== 'silent') process.send('ready')
`

t.test('startNode()', async t => {
  const script = join(dirname(buildNode(t)), 'script.js')
  writeFileSync(script, SCRIPT)
  // The script is JavaScript: it needs no loader of this process.
  const plain = { execArgv: [] }

  await t.test('a node that dies, hangs, ends and comes back at its port', async t => {
    const node = await startNode(script, { test: t, ...plain })
    t.ok(node.pid! > 0)
    const stream = await openStream(node.url, '/sse', { test: t })
    node.freeze()
    let answered = false
    const opening = openStream(node.url, '/sse', { test: t }).then(stream => { answered = true; return stream })
    await new Promise(resolve => setTimeout(resolve, 200))
    t.notOk(answered, 'it hangs')
    node.thaw()
    await opening
    await node.kill()
    t.match(await stream.ended, { by: 'network' })
    t.equal(node.pid, null)
    t.throws(() => node.freeze(), { code: 'SSE_ERR_TEST_NODE' })
    await node.start()
    await node.start()
    const returned = await openStream(node.url, '/sse', { test: t })
    t.equal(await node.stop(), 0)
    t.match(await returned.ended, { by: 'server', reason: 'shutdown' })
    t.equal(node.output, 'starts\nstarts\n')
  })

  await t.test('one that does not start says what it has written', async t => {
    await t.rejects(startNode(pathToFileURL(script), { test: t, ...plain, args: ['fails'] }), { code: 'SSE_ERR_TEST_NODE', message: /ended with code 3 before it called process\.send\(\); it has written: starts/ })
    await t.rejects(startNode(script, { test: t, ...plain, args: ['silent'], timeoutMs: 3_000 }), { code: 'SSE_ERR_TEST_NODE', message: 'process.send() within 3000 ms' })
  })

  await t.test('two nodes on Redis: a client of one that dies resumes at the other', { skip: withoutRedis }, async t => {
    const redis = await RedisServer.start()
    t.teardown(() => redis.stop())
    const env = { REDIS: redis.url }
    const [one, other] = await Promise.all([startNode(script, { test: t, ...plain, env }), startNode(script, { test: t, ...plain, env })])
    const publish = async (data: string) => await fetch(`${other.url}/publish`, { method: 'POST', body: data, headers: { 'content-type': 'text/plain' } })
    const stream = await openStream(one.url, '/sse', { test: t })
    await publish('1')
    await stream.next('n')
    await one.kill()
    await publish('2')
    const returned = await stream.reconnect({ app: other.url })
    t.equal((await returned.next()).data, '2')
  })
})

t.test('slowRedis()', async t => {
  t.test('in front of Redis: an application sees the outage, and its end', { skip: withoutRedis }, async t => {
    const redis = await RedisServer.start()
    t.teardown(() => redis.stop())
    const proxy = await slowRedis({ port: redis.port, test: t })
    const app = await builder(t, () => ({ broker: redisStreamsBroker({ client: proxy.url, publishTimeoutMs: 500 }) }))()
    const stream = await openStream(app, '/sse', { test: t, timeoutMs: 20_000 })
    proxy.cut()
    await t.rejects(app.sse.broadcastEvent({ data: 1 }), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
    proxy.heal()
    while (app.sse.health().status !== 'up') await new Promise(resolve => setTimeout(resolve, 20))
    await app.sse.broadcastEvent({ event: 'n', data: 2 })
    t.equal((await stream.next('n')).json, 2)
  })
})
