import t from 'tap'
import { SSEManager, type SSEOptions } from '../lib/index.js'
import { kClock, systemClock, type Clock, type Timer } from '../lib/util/clock.js'
import type { TestStream } from '../lib/testing/index.js'
import { payloads, serve } from './helpers/app.js'
import { until } from './helpers/wait.js'

// The calls of a manager on one node. Those on many nodes: test/cluster/.

t.test('every call refuses what is no id, no subscription and no reason, before it does anything', async t => {
  const { app: { sse }, join } = await serve(t)
  const { stream, connection: { clientId } } = await join('ada', ['news'])
  const calls: Record<string, ('clientId' | 'userId' | 'subscription' | 'reason')[]> = {
    getConnection: ['clientId'],
    getConnectionsByUser: ['userId'],
    getConnectionsBySubscription: ['subscription'],
    addSubscription: ['clientId', 'subscription'],
    removeSubscription: ['clientId', 'subscription'],
    revokeSubscription: ['userId', 'subscription', 'reason'],
    reauthorize: ['userId', 'reason'],
    closeConnection: ['clientId', 'reason'],
    disconnectUser: ['userId', 'reason'],
    presence: ['subscription']
  }
  const good = { clientId, userId: 'ada', subscription: 'news', reason: 'gone' }
  const wrong: Record<keyof typeof good, [values: unknown[], code: string]> = {
    clientId: [['', 7, null, undefined, ['a']], 'SSE_ERR_INVALID_TARGET'],
    userId: [['', 7, null, undefined, ['a']], 'SSE_ERR_INVALID_TARGET'],
    subscription: [['', 'a::b', 'a b', null, undefined], 'SSE_ERR_INVALID_SUBSCRIPTION'],
    reason: [['', 'Gone', 'a b', 'x'.repeat(65), null, 7], 'SSE_ERR_INVALID_CLOSE_REASON']
  }
  for (const [name, parameters] of Object.entries(calls)) {
    for (const [i, parameter] of parameters.entries()) {
      const [values, code] = wrong[parameter]
      for (const value of values) {
        const given = parameters.map((parameter, at) => at === i ? value : good[parameter])
        await t.rejects(async () => await (sse as unknown as Record<string, (...given: unknown[]) => unknown>)[name]!(...given), { code }, `${name}(${given.map(String).join()})`)
      }
    }
  }
  t.strictSame([sse.connectionCount, sse.getConnection(clientId)!.subscriptions.has('news'), stream.events.length], [1, true, 0], 'nothing has happened')
})

t.test('what the calls find and change, on the connections that are meant', async t => {
  const allowed = new Set(['a', 'b', 'c:*'])
  const { app: { sse }, join } = await serve(t, { authorizeSubscription: ({ subscriptionId }) => allowed.has(subscriptionId) })
  const [first, second, other] = [await join('ada', ['a', 'c:*']), await join('ada', ['b']), await join('grace', ['a'])]
  const ids = (connections: Iterable<{ clientId: string }>) => [...connections].map(({ clientId }) => [first, second, other].findIndex(({ connection }) => connection.clientId === clientId)).sort()
  t.strictSame([ids(sse.connections()), sse.connectionCount], [[0, 1, 2], 3])
  t.equal(sse.getConnection(second.connection.clientId), second.connection)
  t.equal(sse.getConnection('nobody'), undefined)
  t.strictSame([sse.getConnectionsByUser('ada'), sse.getConnectionsByUser('nobody'), sse.getConnectionsBySubscription('a'), sse.getConnectionsBySubscription('c:*'), sse.getConnectionsBySubscription('c:d')].map(ids), [[0, 1], [], [0, 2], [0], []])

  const { clientId } = second.connection
  await sse.addSubscription(clientId, 'a')
  await sse.addSubscription(clientId, 'a')
  t.strictSame([...second.connection.subscriptions], ['b', 'a'])
  await t.rejects(sse.addSubscription(clientId, 'd'), { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' })
  for (const call of [sse.addSubscription('nobody', 'a'), sse.removeSubscription('nobody', 'a')] as Promise<unknown>[]) await t.rejects(call, { code: 'SSE_ERR_UNKNOWN_CONNECTION', message: 'No connection with client id "nobody"' })
  t.strictSame([await sse.removeSubscription(clientId, 'b'), await sse.removeSubscription(clientId, 'b')], [true, false])

  t.equal(await sse.revokeSubscription('ada', 'a'), 2)
  t.equal(await sse.revokeSubscription('ada', 'a'), 0)
  await sse.addSubscription(clientId, 'a')
  await sse.addSubscription(clientId, 'b')
  allowed.delete('a')
  t.strictSame([await sse.reauthorize('ada'), await sse.reauthorize('ada'), await sse.reauthorize('nobody')], [1, 0, 0])
  allowed.delete('b')
  t.equal(await sse.reauthorize('ada', 'demoted'), 1)
  t.strictSame([...second.connection.subscriptions], [])
  await second.stream.collect(3, 'sse:unsubscribed')
  t.strictSame(payloads(second.stream, 'sse:unsubscribed').map(({ reason }) => reason), ['revoked', 'revoked', 'demoted'])
  t.equal(other.connection.subscriptions.has('a'), true, 'of another user')

  const ends: [end: () => Promise<unknown>, result: unknown, then: unknown, reason: string, stream: TestStream][] = [
    [() => sse.closeConnection(clientId), true, false, 'closed', second.stream],
    [() => sse.disconnectUser('ada'), 1, 0, 'disconnected', first.stream],
    [() => sse.disconnectUser('grace', 'banned'), 1, 0, 'banned', other.stream]
  ]
  for (const [end, result, then, reason, stream] of ends) {
    const count = sse.connectionCount
    t.equal(await end(), result)
    await until(() => sse.connectionCount === count - 1)
    t.equal(await end(), then)
    await stream.ended
    t.strictSame(payloads(stream, 'sse:close').map(({ reason }) => reason), [reason])
  }
  t.equal(sse.connectionCount, 0)
})

t.test('before it is open, after it is drained and after it is closed', async t => {
  const sse = new SSEManager()
  t.throws(() => sse.position(), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
  await sse.open()
  t.match(sse.position(), /^[\w-]+\.0$/)
  t.match(sse.health(), { status: 'up' })
  t.match(sse.nodeId, /^[\w-]{22}$/)
  t.match(sse.clusterStats(), { nodes: [{ nodeId: sse.nodeId }] })
  await sse.drain()
  t.match(await sse.broadcastEvent({ data: 1 }), { id: /\.1$/ }, 'publishing remains possible')
  await t.rejects(sse.startRun('a', () => [], { ownerId: null }), { code: 'SSE_ERR_CLOSED' }, 'no run begins any more')
  const closing = sse.close()
  t.equal(sse.close(), closing)
  await closing
  for (const call of [() => sse.broadcastEvent({ data: 1 }), () => sse.open(), async () => sse.position()] as (() => Promise<unknown>)[]) await t.rejects(call, { code: 'SSE_ERR_CLOSED' })

  const unopened = new SSEManager()
  const closed = unopened.close()
  for (const call of [() => unopened.broadcastEvent({ data: 1 }), () => unopened.open()] as (() => Promise<unknown>)[]) await t.rejects(call, { code: 'SSE_ERR_CLOSED' }, 'nothing opens the log of a node that closes')
  await closed
})

t.test('a manager that is closed has no timer left', async t => {
  const live = new Set<Timer>()
  const counting: Clock = {
    ...systemClock,
    after (ms, run) {
      const timer = systemClock.after(ms, () => {
        live.delete(timer)
        return run()
      })
      live.add(timer)
      return timer
    },
    every (ms, run) {
      const timer = systemClock.every(ms, run)
      live.add(timer)
      return timer
    },
    cancel (timer) {
      systemClock.cancel(timer)
      if (timer) live.delete(timer)
    }
  }
  const options: SSEOptions & { readonly [kClock]: Clock } = { [kClock]: counting, presenceEvents: { topics: ['news'] }, maxConnectionAgeMs: 60_000, flush: { intervalMs: 10_000 } }
  for (const isOpened of [true, false]) {
    const { app, join } = await serve(t, options)
    if (isOpened) {
      const { connection } = await join('ada', ['news'])
      await app.sse.broadcastEvent({ data: 1 })
      connection.sendEvent({ data: 2 })
      const { run } = await app.sse.startRun('a', () => ['x'], { ownerId: null })
      await run.finished
      t.ok(live.size > 0)
    }
    await app.close()
    t.equal(live.size, 0)
  }
})
