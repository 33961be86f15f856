import { Redis } from 'ioredis'
import t from 'tap'
import { EventPriority } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { openURL, payloads, serve, type Joined, type Service } from '../helpers/app.js'
import { node, nodes, prefixes, server, startClusterNode, TestLog } from '../helpers/cluster.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

t.test('who is there', { skip: withoutRedis }, async t => {
  t.test('the nodes that live, and what each has to do', async t => {
    const before = Date.now()
    const [a, b] = await nodes(t, 2) as [Service, Service]
    await a.join('ada', ['chat:1', 'chat:2'])
    await a.join('ada')
    await a.join()
    await b.join('ada', ['chat:1'])
    await b.join('grace')
    await until(() => a.app.sse.clusterStats().connections === 5)
    const { nodes: list, ...sums } = a.app.sse.clusterStats()
    t.strictSame(sums, { connections: 5, users: 3, subscriptions: 3 })
    t.match(list, [
      { nodeId: a.app.sse.nodeId, name: 'a', connections: 3, users: 1, subscriptions: 2, status: 'up' },
      { nodeId: b.app.sse.nodeId, name: 'b', connections: 2, users: 2, subscriptions: 1, status: 'up' }
    ])
    for (const { startedAt, heardAt } of list) t.ok(startedAt >= before && heardAt >= startedAt && heardAt <= Date.now())
  })

  t.test('a node that comes or ends says so', async t => {
    const [a, b] = await nodes(t, 2, { cluster: { heartbeatIntervalMs: 60_000 } }) as [Service, Service]
    t.same([a, b].map(({ app }) => app.sse.clusterStats().nodes.length), [2, 2])
    await b.app.close()
    await until(() => a.app.sse.clusterStats().nodes.length === 1)
  })

  t.test('a node that dies is missing by itself, and one that was frozen is back', { timeout: 240_000 }, async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const names = () => a.app.sse.clusterStats().nodes.map(({ name }) => name).sort()
    const keyPrefix = `cluster-${process.pid}-${prefixes.last}`
    const dying = await startClusterNode(t, keyPrefix, 'dying')
    await until(() => names().length === 3)
    const stream = await openURL(t, `${dying.url}/sse?user=ada`)
    await stream.next('welcome')
    dying.freeze()
    await until(() => names().length === 2)
    // Not waited for: it is taken for dead. It learns it all the same.
    t.equal(await b.app.sse.disconnectUser('ada'), 0)
    dying.thaw()
    await until(() => names().length === 3)
    await stream.ended
    t.same(payloads(stream, 'sse:close'), [{ reason: 'disconnected', reconnect: false }])
    await openURL(t, `${dying.url}/sse?user=ada`)
    await until(() => b.app.sse.clusterStats().connections === 1)
    await dying.kill()
    await until(() => names().length === 2)
    t.same(names(), ['a', 'b'])
    t.match(a.app.sse.clusterStats(), { connections: 0, users: 0 })
  })

  t.test('who holds a subscription, on all nodes', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    await a.join('ada', ['room:1'])
    await b.join('ada', ['room:1', 'room:2'])
    await b.join('ada', ['room:1'])
    await b.join('grace', ['room:1'])
    await a.join(null, ['room:1'])
    await a.join('alan', ['room:*'])
    for (const { app: { sse } } of [a, b]) {
      const { users, ...counts } = await sse.presence('room:1')
      t.strictSame(counts, { connections: 5, anonymous: 1, complete: true })
      t.strictSame(users.sort((one, other) => one.userId < other.userId ? -1 : 1), [{ userId: 'ada', connections: 3 }, { userId: 'grace', connections: 1 }])
      t.match(await sse.presence('room:*'), { connections: 1, users: [{ userId: 'alan', connections: 1 }] }, 'exactly this subscription')
      t.strictSame(await sse.presence('room:3'), { connections: 0, anonymous: 0, users: [], complete: true })
    }
    await t.rejects(a.app.sse.presence('room:'), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
  })

  t.test('what nodes say to each other reaches no client, and what is not understood is left alone', async t => {
    const [a, b] = await nodes(t, 2) as [Service, Service]
    const { stream } = await a.join('ada', ['**'])
    const stranger = redisStreamsBroker({ client: new Redis(server!.url, { lazyConnect: true }), keyPrefix: `cluster-${process.pid}-${prefixes.last}` })
    const answers: string[] = []
    await stranger.open({ deliver: ({ data }) => data.includes('"to":"stranger"') ? answers.push(data) : 0, gap: () => {}, state: () => {} }, { maxEvents: 10, maxAgeMs: 1_000, maxBytes: 1_000 })
    t.teardown(() => stranger.close())
    const say = (data: string) => stranger.publish({ event: 'sse:node', data, priority: EventPriority.NORMAL, target: {}, ephemeral: true })
    const command = (id: number, operation: unknown, args: unknown) => say(JSON.stringify({ kind: 'command', from: 'stranger', id, operation, args }))
    for (const text of ['', 'nonsense', 'null', '[]', '{}', '{"kind":"bye"}', '{"kind":"beat","from":"x","report":{}}', '{"kind":"answer","from":"x","to":"y","id":-1}', '{"kind":"later","from":"x"}']) await say(text)
    await say(JSON.stringify({ kind: 'answer', from: 'x', to: a.app.sse.nodeId, id: 1, value: 'surprise' }))
    await command(1, 'constructor', [])
    await command(2, 'closeConnection', [stream.status, null])
    await command(3, 'disconnectUser', ['ada'])
    await command(4, 'closeConnection', ['nobody', 'Not A Reason'])
    await until(() => answers.length === 8)
    t.same(answers.map(answer => JSON.parse(answer)).map(({ id, value, error }) => `${id} ${error?.code ?? value}`).sort(), [1, 1, 2, 2, 3, 3].map(id => `${id} SSE_ERR_COMMAND_FAILED`).concat('4 null', '4 null'), 'what a node has not done is not answered as done')
    await b.app.sse.broadcastEvent({ event: 'end', data: '' })
    await stream.next('end')
    t.same(stream.events.map(({ event }) => event), ['end'])
    t.equal(a.app.sse.clusterStats().nodes.length, 2)
    await t.rejects(a.app.sse.broadcastEvent({ event: 'sse:node', data: '{}' }), { code: 'SSE_ERR_INVALID_EVENT_NAME' })
  })
})

t.test('who comes and who leaves', { skip: withoutRedis }, async t => {
  const presenceEvents = { topics: ['room:*'], lingerMs: 50 }
  const told = ({ stream }: Joined) => stream.events.filter(({ event }) => /^sse:(?:join|leave)$/.test(event)).map(({ event, data }) => `${event.slice(4)} ${JSON.parse(data!).userId}`)
  const hears = (joined: Joined, ...events: string[]) => until(() => told(joined).length >= events.length, undefined, `${events} told, not ${told(joined)}`).then(() => t.same(told(joined), events))

  t.test('the first and the last stream of a user count, wherever they are', async t => {
    const [a, b] = await nodes(t, 2, { presenceEvents }) as [Service, Service]
    const watchers = [await a.join('watcher', ['**']), await b.join('watcher', ['room:1'])]
    for (const watcher of watchers) await hears(watcher, 'join watcher')
    const ada = [await a.join('ada', ['room:1']), await b.join('ada', ['room:1'])]
    await a.join(null, ['room:1'])
    await b.join('grace', ['other:1'])
    await b.app.sse.addSubscription(ada[0]!.connection.clientId, 'room:2')
    await hears(watchers[0]!, 'join watcher', 'join ada', 'join ada')
    t.same(payloads(watchers[0]!.stream, 'sse:join').map(({ subscriptionId }) => subscriptionId), ['room:1', 'room:1', 'room:2'])
    await ada[0]!.stream.close()
    await hears(watchers[0]!, 'join watcher', 'join ada', 'join ada', 'leave ada')
    t.same(payloads(watchers[0]!.stream, 'sse:leave'), [{ subscriptionId: 'room:2', userId: 'ada' }], 'there is another stream in room:1')
    await ada[1]!.stream.close()
    await hears(watchers[0]!, 'join watcher', 'join ada', 'join ada', 'leave ada', 'leave ada')
    await hears(watchers[1]!, 'join watcher', 'join ada', 'leave ada')
  })

  t.test('who comes back in time has not left, also on another node', async t => {
    const [a, b] = await nodes(t, 2, { presenceEvents: { ...presenceEvents, lingerMs: 60_000 } }) as [Service, Service]
    const watcher = await b.join('watcher', ['room:1'])
    await hears(watcher, 'join watcher')
    const ada = await a.join('ada', ['room:1'])
    await hears(watcher, 'join watcher', 'join ada')
    await ada.stream.close()
    await until(() => a.app.sse.connectionCount === 0)
    // She is not announced when she is back: who asks in between is told of her.
    await Promise.all([a, b].map(({ app }) => until(async () => (await app.sse.presence('room:1')).connections === 1)))
    for (const { app: { sse } } of [a, b]) {
      const { users, ...counts } = await sse.presence('room:1')
      t.strictSame(counts, { connections: 1, anonymous: 0, complete: true })
      t.strictSame(users.sort((one, other) => other.connections - one.connections), [{ userId: 'watcher', connections: 1 }, { userId: 'ada', connections: 0 }])
    }
    // A node that starts meanwhile has to know of her, too: a page that took its list there is not told that she returns either.
    const late = await node(t, 'late', { presenceEvents: { ...presenceEvents, lingerMs: 60_000 } })
    const page = await late.join('page', ['room:1'])
    const names = async () => (await late.app.sse.presence('room:1')).users.map(({ userId }) => userId).sort()
    t.strictSame(await names(), ['ada', 'page', 'watcher'])
    await b.join('ada', ['room:1'])
    await a.join('grace', ['room:1'])
    await hears(watcher, 'join watcher', 'join ada', 'join page', 'join grace')
    await hears(page, 'join page', 'join grace')
    t.strictSame(await names(), ['ada', 'grace', 'page', 'watcher'])
  })

  t.test('users of a node that dies leave, and are back with it; a node that comes knows who is there', { timeout: 240_000 }, async t => {
    const [a] = await nodes(t, 1, { presenceEvents }) as [Service]
    const keyPrefix = `cluster-${process.pid}-${prefixes.last}`
    const dying = await startClusterNode(t, keyPrefix, 'dying')
    const stream = await openURL(t, `${dying.url}/sse?user=ada`)
    await stream.next('sse:join')
    await until(() => a.app.sse.clusterStats().connections === 1)
    const late = await node(t, 'late', { keyPrefix, presenceEvents })
    await until(() => late.app.sse.clusterStats().nodes.length === 3)
    const watcher = await late.join('watcher', ['room:1'])
    await hears(watcher, 'join watcher')
    dying.freeze()
    // Of a node that does not answer, those who are announced are known all the same.
    t.match(await late.app.sse.presence('room:1'), { connections: 1, complete: Boolean, users: [{ userId: 'watcher', connections: 1 }, { userId: 'ada', connections: Number }] })
    await hears(watcher, 'join watcher', 'leave ada')
    t.match(await late.app.sse.presence('room:1'), { users: [{ userId: 'watcher' }] })
    t.equal((await late.app.sse.presence('room:1')).users.length, 1)
    // One that came meanwhile does not know that node; to both its users have come.
    const later = await node(t, 'later', { keyPrefix, presenceEvents })
    // Without the node that dies, of which it can have read an earlier report.
    const living = [a, late, later].map(({ app }) => app.sse.nodeId).sort()
    await until(() => String(later.app.sse.clusterStats().nodes.map(({ nodeId }) => nodeId).sort()) === String(living))
    // With such a report it has her, too, until she may no longer come back unnoticed.
    await until(async () => (await later.app.sse.presence('room:1')).users.every(({ userId }) => userId !== 'ada'))
    const other = await later.join('other', ['room:1'])
    await hears(watcher, 'join watcher', 'leave ada', 'join other')
    const listenedUntil = Date.now() + 1_500
    await until(() => Date.now() > listenedUntil)
    dying.thaw()
    await hears(watcher, 'join watcher', 'leave ada', 'join other', 'join ada')
    await hears(other, 'join other', 'join ada')
    await dying.kill()
    await hears(other, 'join other', 'join ada', 'leave ada')
    await hears(watcher, 'join watcher', 'leave ada', 'join other', 'join ada', 'leave ada')
  })

  t.test('what happened while Redis was away is told when it is back', async t => {
    const redis = await RedisServer.start()
    t.teardown(() => redis.stop())
    const [a, b] = await nodes(t, 2, { redis, presenceEvents }) as [Service, Service]
    const watcher = await b.join('watcher', ['room:1'])
    const ada = await a.join('ada', ['room:1'])
    await hears(watcher, 'join watcher', 'join ada')
    await redis.kill()
    await until(() => [a, b].every(({ app }) => app.sse.health().status === 'degraded'))
    await ada.stream.close()
    await a.join('grace', ['room:1'])
    await redis.run()
    await hears(watcher, 'join watcher', 'join ada', 'join grace', 'leave ada')
  })

  t.test('what is lost between nodes is found by the next heartbeat, and many come at once', async t => {
    const [a] = await nodes(t, 1, { presenceEvents }) as [Service]
    const watcher = await a.join('watcher', ['room:*', 'room:1'])
    await hears(watcher, 'join watcher')
    const stranger = redisStreamsBroker({ client: new Redis(server!.url, { lazyConnect: true }), keyPrefix: `cluster-${process.pid}-${prefixes.last}` })
    let greetings = 0
    const say = (message: object) => stranger.publish({ event: 'sse:node', data: JSON.stringify({ from: 'x', ...message }), priority: EventPriority.NORMAL, target: {}, ephemeral: true })
    await stranger.open({ deliver: ({ data }) => data.includes('"hello"') && !data.includes('"from":"x"') ? ++greetings : 0, gap: () => {}, state: () => {} }, { maxEvents: 10, maxAgeMs: 1_000, maxBytes: 1_000 })
    t.teardown(() => stranger.close())
    const users = Array.from({ length: 1_200 }, (_, i) => `user-${i}`)
    const report = { nodeId: 'x', name: 'x', startedAt: 0, connections: 0, users: 0, subscriptions: 0, status: 'up', everyMs: 60_000, present: users.length + 1 }
    await say({ kind: 'present', first: true, more: false, entries: [] })
    await say({ kind: 'presence', changes: users.map(userId => ['room:1', userId, true]) })
    await hears(watcher, 'join watcher', ...users.map(userId => `join ${userId}`))
    // It says that it has one more than it told: it is asked to tell all, which it does in parts.
    await until(async () => {
      await say({ kind: 'beat', report })
      return greetings > 0
    })
    await say({ kind: 'present', first: true, more: true, entries: users.slice(0, 600).map(userId => ['room:1', userId]) })
    await say({ kind: 'present', first: false, more: false, entries: [...users.slice(600, 1_199), 'one-more'].map(userId => ['room:1', userId]) })
    await hears(watcher, 'join watcher', ...users.map(userId => `join ${userId}`), 'join one-more', 'leave user-1199')
  })
})

t.test('users of a node that is heard late are announced: clients that are here have asked who is present without it', async t => {
  const log = new TestLog()
  const { join } = await serve(t, { broker: log, presenceEvents: { topics: ['room:*'], lingerMs: 50 }, cluster: { heartbeatIntervalMs: 60_000 } })
  const list = (from: string) => log.hear({ from, kind: 'present', first: true, more: false, entries: [['room:1', `user of ${from}`]] })
  await list('x')
  const { stream } = await join('watcher', ['room:1'])
  await stream.until(() => stream.named('sse:join').length >= 1)
  const settledAt = performance.now() + 1_000
  await until(() => performance.now() > settledAt)
  await list('y')
  await stream.until(() => stream.named('sse:join').length >= 2)
  t.strictSame(payloads(stream, 'sse:join').map(({ userId }) => userId), ['watcher', 'user of y'], 'users of x were there before this node')
})

t.test('a change of presence that could not be sent is sent with the next heartbeat, also if nobody misses it', async t => {
  const log = new TestLog()
  const { join } = await serve(t, { broker: log, presenceEvents: { topics: ['room:*'], lingerMs: 50 }, cluster: { heartbeatIntervalMs: 100 } })
  const watcher = await join('watcher', ['room:1'])
  await watcher.stream.until(() => watcher.stream.named('sse:join').length >= 1)
  const ada = await join('ada', ['room:1'])
  await watcher.stream.until(() => watcher.stream.named('sse:join').length >= 2)
  // One user comes and another leaves: the node holds as many entries as before.
  log.refuse = '"presence"'
  await ada.stream.close()
  await join('grace', ['room:1'])
  await watcher.stream.next('sse:leave')
  t.ok(log.refused > 0)
  t.same(payloads(watcher.stream, 'sse:leave').map(({ userId }) => userId), ['ada'])
  t.same(payloads(watcher.stream, 'sse:join').map(({ userId }) => userId), ['watcher', 'ada', 'grace'])
})

t.test('after a gap a node says all it has, and asks the others for what they have', async t => {
  const log = new TestLog()
  const { join } = await serve(t, { broker: log, presenceEvents: { topics: ['room:*'], lingerMs: 50 } })
  await join('ada', ['room:1'])
  await until(() => log.sayings('presence').length === 1)
  const before = log.sayings('hello').length
  log.sink!.gap('epoch')
  await until(() => log.sayings('hello').length === before + 1)
  await until(() => log.sayings('present').at(-1).entries.length === 1)
  t.match(log.sayings('present').at(-1), { first: true, more: false, entries: [['room:1', 'ada']] })
})
