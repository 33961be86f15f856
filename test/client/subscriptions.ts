import t from 'tap'
import type { SnapshotQuestion } from '../../lib/index.js'
import { serve } from '../helpers/app.js'
import { until } from '../helpers/wait.js'
import { connect, script, status, stream, testClock, timed } from './clients.js'

t.test('setSubscriptions(): what is added begins with its state, the rest continues', async t => {
  const reasons: unknown[] = []
  const { app, url } = await serve(t, {
    path: '/own',
    clientSubscriptions: true,
    authorizeSubscription: () => true,
    snapshot: {
      load: ({ subscriptions, reason }: SnapshotQuestion) => {
        reasons.push([reason, [...subscriptions].sort()])
        return { event: 'state', data: [...subscriptions].sort() }
      }
    }
  })
  const { client, become } = connect(t, `${url}/own`, { subscriptions: ['a'] })
  const seen: unknown[] = []
  client.on('state', data => { seen.push(data) })
  client.on('x', data => { seen.push(data) })
  const holds = (...topics: string[]) => until(() => app.sse.connectionCount === 1 && String([...app.sse.connections()].flatMap(connection => [...connection.subscriptions]).sort()) === String(topics))
  const publish = async (topic: string, data: unknown) => { await app.sse.broadcastEvent({ event: 'x', data }, { subscriptionIds: [topic] }) }
  await become('open')
  await publish('a', 1)
  await until(() => seen.length === 2)

  client.setSubscriptions(['b', 'a'])
  await publish('a', 2)
  await until(() => seen.length === 4)
  await publish('b', 3)
  await until(() => seen.length === 5)
  client.setSubscriptions(['a', 'b'])
  t.equal(client.state.name, 'open', 'nothing has changed')
  client.setSubscriptions(['b'])
  await holds('b')
  await publish('a', 4)
  await publish('b', 5)
  await until(() => seen.length === 6)
  t.same(seen.filter(data => typeof data === 'number'), [1, 2, 3, 5])
  t.same(reasons, [['connect', ['a']], ['added', ['b']]])
})

t.test('added topics are named until their state has arrived, and none is without a cursor', async t => {
  const server = await script(t, stream(': stream\n\nid: 1\n\n'), stream(': stream\n\n'), stream(': stream\n\nid: 2\n\n'), stream(': stream\n\n'), stream(': stream\n\nid: \n\n'), stream(': stream\n\n'))
  const { client, become } = connect(t, `${server.url}?lastEventId=0&x=1`, { subscriptions: ['a'] })
  const asked = async (count: number) => {
    await server.received(count)
    await become('open')
    return server.requests[count - 1]!.url
  }
  t.equal(await asked(1), '/sse?lastEventId=0&x=1&subscription=a')
  client.setSubscriptions(['a', 'b'])
  t.equal(await asked(2), '/sse?x=1&subscription=a&subscription=b&fresh=b')
  client.setSubscriptions(['b', 'c'])
  t.equal(await asked(3), '/sse?x=1&subscription=b&subscription=c&fresh=b&fresh=c')
  await until(() => client.lastEventId === '2')
  client.reconnect()
  t.equal(await asked(4), '/sse?x=1&subscription=b&subscription=c')
  client.setSubscriptions(['b', 'd'])
  await asked(5)
  await until(() => client.lastEventId === '')
  client.setSubscriptions(['e'])
  t.equal(await asked(6), '/sse?lastEventId=0&x=1&subscription=e')
  client.close()
  client.setSubscriptions(['f'])
  t.equal(client.state.name, 'closed')
})

t.test('setSubscriptions() after a refusal connects again, after close() it does not, and in a wait it applies to the next attempt', async t => {
  const clock = testClock()
  const server = await script(t, status(403, { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' }), stream(': stream\n\nid: 1\n\n'), status(503), stream(': stream\n\n'))
  const { client, become } = connect(t, server.url, { subscriptions: ['secret'], ...timed(clock) })
  t.match(await become('closed'), { status: 403 })
  client.setSubscriptions(['secret'])
  t.equal(client.state.name, 'closed', 'nothing has changed')
  client.setSubscriptions(['public'])
  t.equal(client.state.name, 'connecting')
  await become('open')

  client.reconnect()
  const { retryInMs } = await become('waiting')
  client.setSubscriptions(['a', 'public'])
  t.equal(client.state.name, 'waiting')
  await clock.advance(retryInMs!)
  await become('open')
  t.same(server.requests.map(({ url }) => url), ['/sse?subscription=secret', '/sse?subscription=public', '/sse?subscription=public', '/sse?subscription=a&subscription=public&fresh=a'])

  client.close()
  client.setSubscriptions(['public'])
  t.equal(client.state.name, 'closed')
})
