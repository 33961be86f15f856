import fc from 'fast-check'
import { Redis } from 'ioredis'
import assert from 'node:assert/strict'
import t from 'tap'
import { Membership } from '../../lib/cluster/membership.js'
import type { MessageOf, Saying } from '../../lib/cluster/node-message.js'
import { withAnnounced } from '../../lib/cluster/commands.js'
import { PresenceList } from '../../lib/cluster/presence.js'
import { EventPriority } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { testClock } from '../../lib/testing/index.js'
import { systemClock, type Clock } from '../../lib/util/clock.js'
import { openURL, payloads, serve, type Joined, type Service } from '../helpers/app.js'
import { node, nodes, prefixes, REPORT, server, startClusterNode, TestLog } from '../helpers/cluster.js'
import { collect } from '../helpers/heap.js'
import { recorder } from '../helpers/logged.js'
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

t.test('a list of exactly as many as a message takes is whole in one', async t => {
  const said: Saying[] = []
  const list = new PresenceList(systemClock, { topics: ['room:*'], lingerMs: 50 }, 'here', { say: saying => said.push(saying), announce: () => {} })
  for (let i = 0; i < 500; i++) list.held({ userId: `user-${i}` }, 'room:1')
  list.tellAll()
  const lists = said.filter(({ kind }) => kind === 'present') as MessageOf<'present'>[]
  t.strictSame(lists.map(({ first, more, entries }) => [first, more, entries.length]), [[true, false, 500]])
  list.held({ userId: 'one more' }, 'room:1')
  said.length = 0
  list.tellAll()
  t.strictSame((said.filter(({ kind }) => kind === 'present') as MessageOf<'present'>[]).map(({ first, more, entries }) => [first, more, entries.length]), [[true, true, 500], [false, false, 1]])
  list.close()
})

t.test('who comes back in time does not leave later either', async t => {
  const time = testClock()
  const told: string[] = []
  const list = new PresenceList(time.clock, { topics: ['room:*'], lingerMs: 1_000 }, 'here', { say: () => {}, announce: (what, _topic, userId) => told.push(`${what} ${userId}`) })
  const change = (userId: string, present: boolean) => list.changed({ kind: 'presence', from: 'there', changes: [['room:1', userId, present]] })
  for (const present of [true, false]) for (const userId of ['ada', 'grace']) change(userId, present)
  await time.advance(500)
  change('ada', true)
  await time.advance(2_000)
  t.strictSame(told, ['join ada', 'join grace', 'leave grace'])
  list.close()
})

t.test('of users whom others hold, those are named whose nodes have not answered, and those who may come back', async t => {
  const time = testClock()
  const told: string[] = []
  const list = new PresenceList(time.clock, { topics: ['room:*'], lingerMs: 1_000 }, 'here', { say: () => {}, announce: (what, _topic, userId) => told.push(`${what} ${userId}`) })
  const change = (from: string, present: boolean, ...users: string[]) => list.changed({ kind: 'presence', from, changes: users.map(userId => ['room:1', userId, present]) })
  const absent = (nodeIds: string[]) => [...list.announced('room:1', nodeIds).keys()]
  change('x', true, 'ada', 'both', 'gone')
  change('y', true, 'both', 'grace')
  change('x', false, 'gone')
  t.strictSame(absent([]), ['gone'])
  t.strictSame(absent(['x']), ['ada', 'gone'])
  t.strictSame(absent(['x', 'y']), ['ada', 'both', 'gone', 'grace'])
  t.strictSame(list.announced('room:2'), new Map())
  t.strictSame(list.announced('room:1'), new Map([['ada', 1], ['both', 2], ['gone', 0], ['grace', 1]]))
  // Users who had left before this node started: told of by each other node, and known already.
  told.length = 0
  for (let i = 0; i < 2; i++) list.lingering({ from: 'y', kind: 'leaving', entries: [['room:2', 'late', 700], ['room:1', 'early', 900], ['room:1', 'ada', 5], ['room:2', 'soon', 300]] })
  t.strictSame(absent([]), ['gone', 'early'])
  change('y', true, 'early')
  await time.advance(2_000)
  t.strictSame(told, ['leave soon', 'leave late', 'leave gone'], 'who has come back was never announced, and has not left')
  t.strictSame(absent([]), [])
  list.close()
})

t.test('a node that names not all its users does not make the others absent', async t => {
  const named = { connections: 1_100, anonymous: 0, users: [{ userId: 'ada', connections: 2 }], complete: false }
  t.strictSame(withAnnounced(named, new Map([['ada', 1], ['gone', 0]])), { ...named, users: [{ userId: 'ada', connections: 2 }, { userId: 'gone', connections: 0 }] })
  const { users, complete } = withAnnounced({ ...named, complete: true }, new Map(Array.from({ length: 1_001 }, (_, i) => [`u${i}`, 1])))
  t.strictSame([users.length, complete], [1_001, false], 'bounded')
})

t.test('after a time in which this node heard nobody, the others have all their time again', async t => {
  const time = testClock()
  const gone: string[] = []
  const membership = new Membership(time.clock, 1_000, { beat: async () => {}, gone: nodeId => { gone.push(nodeId) } }, recorder().log)
  membership.heard({ ...REPORT, nodeId: 'there', status: 'up', everyMs: 100_000 })
  membership.start()
  await time.advance(340_000)
  membership.listen(false)
  await time.advance(60_000)
  membership.listen(true)
  await time.advance(300_000)
  t.strictSame(gone, [])
  await time.advance(60_000)
  membership.stop()
  t.strictSame(gone, ['there'], 'three and a half of its intervals')
})

t.test('heartbeats are spread over a time, and who is there is known after three and a half of them', async t => {
  const due: { ms: number, run: () => unknown, held: boolean, cancelled: boolean }[] = []
  const clock: Clock = {
    ...systemClock,
    wall: () => 7,
    after: (ms, run) => {
      const timer = { ms, run, held: true, cancelled: false, unref: () => { timer.held = false } }
      due.push(timer)
      return timer
    },
    cancel: timer => { Object.assign(timer!, { cancelled: true }) }
  }
  const gone: string[] = []
  const told = Promise.resolve()
  const membership = new Membership(clock, 1_000, { beat: () => told, gone: nodeId => { gone.push(nodeId) } }, recorder().log)
  const beat = () => due.at(-1)!.run()
  membership.start()
  membership.heard({ ...REPORT, nodeId: 'fast', status: 'up', everyMs: 10 })
  t.match([...membership.all()], [{ heardAt: 7, report: { nodeId: 'fast' } }])
  membership.closed('never seen')
  membership.listen(false)
  for (let i = 0; i < 10; i++) beat()
  t.equal(membership.established, false, 'it could hear nobody')
  membership.listen(true)
  let heardMs = 0
  const silences: boolean[] = []
  for (let i = 0; i < 10; i++) {
    heardMs += due.at(-1)!.ms
    t.equal(beat(), told, 'the clock of a test waits for what is sent')
    t.equal(membership.established, (heardMs > 3_500))
    silences.push(gone.includes('fast') === (heardMs > 3_500))
  }
  t.ok(silences.every(Boolean), 'a node that beats faster is given the beats of this one')
  t.strictSame(gone, ['fast'])
  for (let i = 0; i < 300; i++) beat()
  const times = due.map(({ ms }) => ms)
  t.ok(times.every(ms => Number.isInteger(ms) && ms >= 800 && ms <= 1_200))
  t.ok(Math.min(...times) < 900 && Math.max(...times) > 1_100, 'a fifth to both sides')
  t.ok(due.every(({ held }) => !held), 'none keeps the process alive')
  membership.stop()
  t.strictSame(due.map(({ cancelled }) => cancelled), due.map((_, i) => i === due.length - 1))
})

t.test('a node that says something and never reports is gone in the end, one that reports is not', async t => {
  const time = testClock()
  const gone: string[] = []
  let beats = 0
  const membership = new Membership(time.clock, 1_000, {
    beat: async () => {
      beats++
      membership.heard({ ...REPORT, nodeId: 'reports', status: 'up' })
    },
    gone: nodeId => { gone.push(`${nodeId} after ${beats}`) }
  }, recorder().log)
  for (const nodeId of ['silent', 'reports', 'says bye']) membership.noticed(nodeId)
  membership.closed('says bye')
  t.strictSame(gone, ['says bye after 0'])
  membership.start()
  await time.advance(600_000)
  membership.stop()
  t.equal(gone.length, 2)
  t.match(gone[1], /^silent after (?:1[7-9]\d|2[0-5]\d)$/, 'three and a half of the longest intervals')
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

t.test('what changes in a turn is said once at its end, and only what is watched', async t => {
  const said: Saying[] = []
  const list = new PresenceList(systemClock, { topics: ['room:*'], lingerMs: 50 }, 'here', { say: saying => said.push(saying), announce: () => {} })
  const [ada, grace, nobody] = ['ada', 'grace', null].map(userId => ({ userId })) as [{ userId: string }, { userId: string }, { userId: null }]
  const end = async () => {
    await new Promise(resolve => setImmediate(resolve))
    return said.splice(0)
  }
  list.held(ada, 'room:1')
  list.held(ada, 'room:1')
  list.held(grace, 'room:1')
  for (const other of ['room:*', 'room:1:a', 'other', '**']) list.held(ada, other)
  list.held(nobody, 'room:1')
  t.strictSame(said, [], 'not before the end of the turn')
  t.strictSame(await end(), [{ kind: 'presence', changes: [['room:1', 'ada', true], ['room:1', 'grace', true]] }])
  t.equal(list.size, 2)
  list.held(ada, 'room:1')
  t.strictSame(await end(), [], 'nothing has changed')
  list.left(ada, 'room:1')
  list.left(ada, 'room:1')
  list.left(nobody, 'room:1')
  for (const other of ['room:*', 'room:1:a', 'other', '**']) list.left(ada, other)
  t.strictSame(await end(), [], 'she has another stream')
  list.left(ada, 'room:1')
  list.held(grace, 'room:2')
  t.strictSame(await end(), [{ kind: 'presence', changes: [['room:1', 'ada', false], ['room:2', 'grace', true]] }])
  list.held(ada, 'room:2')
  list.tellAll()
  const entries = [['room:1', 'grace'], ['room:2', 'grace'], ['room:2', 'ada']]
  t.strictSame(said.splice(0), [{ kind: 'presence', changes: [['room:2', 'ada', true]] }, { kind: 'present', first: true, more: false, entries }], 'what has changed comes before the list')
  t.strictSame(await end(), [])
  list.close()
})

t.test('all nodes agree on who is present, whoever comes, leaves, dies or starts', async t => {
  const LINGER_MS = 1_000
  const TOPICS = ['room:1', 'room:2']
  const user = fc.constantFrom('ada', 'alan', 'grace')
  const step = fc.oneof(
    { weight: 4, arbitrary: fc.record({ do: fc.constant('hold' as const), node: fc.nat(2), user, topic: fc.constantFrom(...TOPICS) }) },
    { weight: 4, arbitrary: fc.record({ do: fc.constant('leave' as const), node: fc.nat(2), pick: fc.nat(20) }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('wait' as const), ms: fc.constantFrom(1, 400, 600, 2_000) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('restart' as const), node: fc.nat(2) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('greet' as const), node: fc.nat(2) }) })
  await t.resolves(fc.assert(fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 30, size: 'max' }), async steps => {
    const time = testClock()
    let started = 0
    interface Node { id: string, list: PresenceList, connections: [userId: string, topic: string][], announced: Set<string>, established: boolean }
    const nodes: Node[] = []
    /** When the last node of a user was gone, by topic and user. */
    const leftAt = new Map<string, number>()
    const hear = (from: string, saying: Saying) => {
      for (const { list, established } of nodes) {
        if (saying.kind === 'presence') list.changed({ ...saying, from })
        else if (saying.kind === 'present') list.listed({ ...saying, from }, established)
        else if (saying.kind === 'leaving' && !established) list.lingering({ ...saying, from })
      }
    }
    const start = (at: number) => {
      const id = `node-${started++}`
      const announced = new Set<string>()
      const announce = (what: 'join' | 'leave', topic: string, userId: string) => {
        const key = `${topic} ${userId}`
        assert.equal(announced.has(key), what === 'leave', `${what} ${key} on ${id}`)
        if (what === 'join') announced.add(key)
        else announced.delete(key)
      }
      const node: Node = nodes[at] = { id, list: new PresenceList(time.clock, { topics: ['room:*'], lingerMs: LINGER_MS }, id, { say: saying => hear(id, saying), announce }), connections: [], announced, established: false }
      for (const { list } of nodes) list.tellAll()
      // Those who are there when a node starts, or may return to it, are announced to nobody there.
      for (const topic of TOPICS) for (const userId of node.list.announced(topic).keys()) announced.add(`${topic} ${userId}`)
      node.established = true
    }
    for (let at = 0; at < 3; at++) start(at)
    const holders = (topic: string, userId: string) => nodes.filter(({ connections }) => connections.some(([user, held]) => user === userId && held === topic)).length
    for (const step of steps) {
      const before = new Map(TOPICS.flatMap(topic => ['ada', 'alan', 'grace'].map(userId => [`${topic} ${userId}`, holders(topic, userId)])))
      if (step.do === 'wait') {
        await time.advance(step.ms)
      } else {
        const node = nodes[step.node]!
        if (step.do === 'hold') {
          node.connections.push([step.user, step.topic])
          node.list.held({ userId: step.user }, step.topic)
        } else if (step.do === 'leave' && node.connections.length > 0) {
          const [[userId, topic]] = node.connections.splice(step.pick % node.connections.length, 1) as [[string, string]]
          node.list.left({ userId }, topic)
        } else if (step.do === 'greet') {
          for (const { list } of nodes) list.tellAll()
        } else if (step.do === 'restart') {
          node.list.close()
          node.connections = []
          for (const { id, list } of nodes) if (id !== node.id) list.gone(node.id)
          start(step.node)
        }
        node.list.flush()
      }
      const now = time.clock.monotonic()
      for (const topic of TOPICS) {
        const expected = new Map<string, number>()
        for (const userId of ['ada', 'alan', 'grace']) {
          const key = `${topic} ${userId}`
          const count = holders(topic, userId)
          if (count === 0 && before.get(key)! > 0) leftAt.set(key, now)
          if (count > 0) leftAt.delete(key)
          if (count > 0 || (leftAt.has(key) && now < leftAt.get(key)! + LINGER_MS)) expected.set(userId, count)
        }
        for (const { id, list, announced } of nodes) {
          const present = list.announced(topic)
          assert.deepEqual(new Map([...present].sort()), expected, `${topic} on ${id}`)
          assert.deepEqual([...announced].filter(key => key.startsWith(topic)).sort(), [...expected.keys()].map(userId => `${topic} ${userId}`).sort(), `announced on ${id}`)
        }
      }
      for (const { list } of nodes) for (const other of nodes) assert.equal(list.misses(other.id, other.list.size), false)
    }
    for (const { list } of nodes) list.close()
  }), { numRuns: 60 }))
})

t.test('a user who may return to a node that starts leaves there no later than anywhere, and a list that ends amiss begins anew', async t => {
  const time = testClock()
  const told: string[] = []
  const list = new PresenceList(time.clock, { topics: ['room:*'], lingerMs: 1_000 }, 'here', { say: () => {}, announce: (what, _topic, userId) => told.push(`${what} ${userId}`) })
  list.lingering({ from: 'x', kind: 'leaving', entries: [['room:1', 'ada', 5_000]] })
  await time.advance(1_000)
  t.strictSame(told.splice(0), ['leave ada'], 'another node may wait longer')

  const part = (first: boolean, more: boolean, ...users: string[]) => list.listed({ from: 'x', kind: 'present', first, more, entries: users.map(userId => ['room:1', userId]) }, false)
  part(true, false, 'ada', 'alan', 'grace')
  t.strictSame([told.length, list.misses('x', 3)], [0, false])
  // The end of this list is lost.
  part(true, true, 'ada')
  part(true, true, 'ada', 'alan')
  part(false, false, 'new')
  await time.advance(1_000)
  t.strictSame(told.splice(0), ['join new', 'leave grace'])
  list.changed({ from: 'x', kind: 'presence', changes: [['room:1', 'grace', true]] })
  part(false, false, 'late')
  await time.advance(1_000)
  t.strictSame(told.splice(0), ['join grace', 'join late'], 'a part without its beginning takes nobody away')
  t.equal(list.misses('x', 5), false)
  list.changed({ from: 'x', kind: 'presence', changes: [['room:1', 'grace', false]] })
  part(true, true, 'ada')
  list.gone('x')
  t.equal(list.misses('x', 4), true)
  await time.advance(1_000)
  t.strictSame(told.splice(0).sort(), ['leave ada', 'leave alan', 'leave grace', 'leave late', 'leave new'])
  // Unknown again: its users are announced only if this node is established.
  part(true, false, 'ada')
  t.strictSame(told, [])
  list.gone('x')
  list.close()
  await time.advance(5_000)
  t.strictSame(told, [], 'nothing is announced after the end')
})

t.test('users of this node are announced by its own list, too; one who returns while the event loop is blocked has not left', async t => {
  const timers = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length
  const before = timers()
  const told: string[] = []
  const list = new PresenceList(systemClock, { topics: ['room:*'], lingerMs: 20 }, 'here', { say: () => {}, announce: (what, topic, userId) => told.push(`${what} ${topic} ${userId}`) })
  const change = (present: boolean, ...changes: string[]) => list.changed({ kind: 'presence', from: 'here', changes: changes.map(topic => [topic, 'ada', present]) })
  list.listed({ from: 'here', kind: 'present', first: true, more: false, entries: [['room:1', 'ada']] }, false)
  t.strictSame(told, ['join room:1 ada'])
  change(false, 'room:1')
  t.equal(timers(), before, 'no timer keeps the process alive')
  setImmediate(() => change(true, 'room:1'))
  const blockedUntil = performance.now() + 100
  while (performance.now() < blockedUntil);
  const waitedUntil = performance.now() + 100
  await until(() => performance.now() > waitedUntil)
  t.strictSame(told, ['join room:1 ada'])

  const heap = collect()
  for (let round = 0; round < 20; round++) {
    const topics = Array.from({ length: 1_000 }, (_, i) => `room:${round}-${i}`)
    change(true, ...topics)
    change(false, ...topics)
    told.length = 0
    await until(() => told.length === 1_000)
    told.length = 0
  }
  const taken = collect() - heap
  t.ok(taken < 2 << 20, `${taken} bytes for 20,000 topics that nobody is in any more`)
  list.close()
})
