import t from 'tap'
import { EventPriority } from '../../lib/index.js'
import { block, isApplicationEvent, type Service } from '../helpers/app.js'
import { nodes } from '../helpers/cluster.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

t.test('nodes', { skip: withoutRedis }, async t => {
  t.test('broadcasts of every kind reach the connections of both nodes that they are for, in one order', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const ada = [await a.join('ada', ['chat:1']), await b.join('ada', ['chat:2'])]
    const grace = [await a.join('grace', ['chat:*']), await b.join('grace', ['chat:1'])]
    const nobody = await b.join(null, ['chat:1'])
    const all = [...ada, ...grace, nobody]
    const { sse } = a.app
    const say = (data: string, options = {}) => sse.broadcastEvent({ event: 'said', data }, options)

    t.match(await say('everyone'), { id: String, delivered: 2 })
    await b.app.sse.broadcastEvent({ event: 'said', data: 'everyone, from b' })
    await say('ada', { userIds: ['ada'] })
    await say('chat:1', { subscriptionIds: ['chat:1'] })
    await say('grace in chat:2', { userIds: ['grace'], subscriptionIds: ['chat:2'] })
    await say('nobody else', { clientIds: [nobody.connection.clientId] })
    await say('all but two', { exceptClientIds: [ada[0]!.connection.clientId, grace[1]!.connection.clientId] })
    t.strictSame(await say('passing', { ephemeral: true }), { id: null, delivered: 2 })
    await say('only here', { local: true, filter: ({ userId }: { userId: string | null }) => userId === 'ada' })
    await t.rejects(say('a filter', { filter: () => true }), { code: 'SSE_ERR_FILTER_NOT_SHARED' })
    await sse.broadcastData('end', 1, { priority: EventPriority.CRITICAL })

    for (const { stream } of all) await stream.until(() => stream.named('data').length >= 1)
    const heard = all.map(({ stream }) => stream.named('said').map(({ data }) => data))
    const both = ['everyone', 'everyone, from b']
    t.strictSame(heard, [
      [...both, 'ada', 'chat:1', 'passing', 'only here'],
      [...both, 'ada', 'all but two', 'passing'],
      [...both, 'chat:1', 'grace in chat:2', 'all but two', 'passing'],
      [...both, 'chat:1', 'passing'],
      [...both, 'chat:1', 'nobody else', 'all but two', 'passing']
    ])
    const idOf = (said: string) => new Set(all.flatMap(({ stream }) => stream.named('said').filter(({ data }) => data === said).map(({ id }) => id)))
    t.equal(idOf('everyone').size, 1, 'one id on both nodes')
    t.same(idOf('passing'), new Set([null]))
  })

  t.test('what one node logged is resumed on the other', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const { stream } = await a.join('ada', ['chat:1'])
    await b.app.sse.broadcastEvent({ event: 'said', data: 'one' }, { subscriptionIds: ['chat:1'] })
    await stream.next('said')
    await stream.close()
    for (const data of ['two', 'three']) await a.app.sse.broadcastEvent({ event: 'said', data }, { subscriptionIds: ['chat:1'] })
    const back = await b.join('ada', ['chat:1'], { cursor: stream.lastEventId })
    await back.stream.until(() => back.stream.named('said').length >= 2)
    await a.app.sse.broadcastEvent({ event: 'said', data: 'four' }, { subscriptionIds: ['chat:1'] })
    await back.stream.until(() => back.stream.named('said').length >= 3)
    t.strictSame(back.stream.events.filter(isApplicationEvent).map(({ data }) => data), ['two', 'three', 'four'])
    t.strictSame(back.stream.named('sse:gap'), [])
  })

  t.test('a priority is felt on the other node as well', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const slow = await b.join()
    await block(slow)
    for (const [data, priority] of [['low', 0], ['normal', 1], ['high', 2], ['critical', 3]] as const) await a.app.sse.broadcastEvent({ event: 'said', data, priority })
    await until(() => b.app.sse.stats().messages >= 4)
    slow.stream.thaw()
    await slow.stream.collect(4, 'said')
    t.strictSame(slow.stream.named('said').map(({ data }) => data), ['critical', 'high', 'normal', 'low'])
  })
})

t.test('while Redis is away', { skip: withoutRedis }, async t => {
  const redis = await RedisServer.start()
  t.teardown(() => redis.stop())
  const [a, b] = await nodes(t, 2, { redis }) as [Service, Service]
  const { sse } = a.app
  const here = await a.join('ada')
  const there = await b.join('ada')
  const opened = sse.health()
  t.match(opened, { status: 'up', since: Number })

  await redis.kill()
  await until(() => sse.health().status === 'degraded')
  t.match(sse.health(), { reason: String, since: Number })
  t.ok(sse.health().since >= opened.since)
  await t.rejects(sse.closeConnection(there.connection.clientId), { code: 'SSE_ERR_BROKER_UNAVAILABLE', statusCode: 503 })
  await t.rejects(sse.addSubscription(there.connection.clientId, 'chat:1'), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
  await sse.addSubscription(here.connection.clientId, 'chat:1')
  await t.rejects(sse.disconnectUser('ada'), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
  await here.stream.ended
  t.equal(there.connection.isConnected, true)
  t.equal((await b.app.sse.broadcastEvent({ event: 'said', data: 'local' }, { local: true })).delivered, 1)
  await there.stream.next('said')
  // Longer than a node may be silent: nobody can be heard, so nobody is missed.
  const silentUntil = Date.now() + 1_000
  await until(() => Date.now() > silentUntil)
  t.equal(sse.clusterStats().nodes.length, 2)
  t.equal(sse.clusterStats().nodes[0]!.status, 'degraded')

  await redis.run()
  await until(() => [a, b].every(({ app }) => app.sse.health().status === 'up'))
  t.equal(await sse.closeConnection(there.connection.clientId, 'kicked'), true)
  await there.stream.next('sse:close')
  await until(() => sse.clusterStats().nodes.every(({ status }) => status === 'up'))
})
