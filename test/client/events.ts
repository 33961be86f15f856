import t from 'tap'
import { serve } from '../helpers/app.js'
import { until } from '../helpers/wait.js'
import { connect, ended, script, status, stream } from './clients.js'

const OPEN = ': stream\n\n'

t.test('events() yields the events of a name, or all, with control events in their order', async t => {
  const server = await script(t, stream(`${OPEN}event: a\ndata: 1\n\nevent: b\ndata: 2\n\nevent: sse:gap\ndata: {"reason":"trimmed","lastEventId":""}\n\nevent: sse:ping\ndata: {}\n\nid: 7\nevent: a\ndata: {"x":3}\n\nevent: last\ndata:\n\n`))
  const { client } = connect(t, server.url)
  const [named, all]: [unknown[], unknown[]] = [[], []]
  const last = (async () => { for await (const { data, id } of client.events('a')) if (named.push([data, id]) === 2) break })()
  for await (const { event, text } of client.events()) {
    if (event === 'last') break
    all.push([event, text])
  }
  await last
  t.same(named, [[1, null], [{ x: 3 }, '7']])
  t.same(all, [['a', '1'], ['b', '2'], ['sse:gap', '{"reason":"trimmed","lastEventId":""}'], ['a', '{"x":3}']])
})

t.test('a loop that is too slow receives what was buffered, and then an error; others are not affected', async t => {
  const { app, url } = await serve(t)
  const { client, become } = connect(t, `${url}/sse?user=ada`)
  await become('open')
  const slow = client.events('x', { maxBuffered: 2 })
  const other = client.events('x', { maxBuffered: 3 })
  const left = client.events('x', { maxBuffered: 1 })
  await left.return!()
  for (const data of [1, 2, 3]) await app.sse.broadcastEvent({ event: 'x', data })
  await until(() => client.lastEventId.endsWith('.3'))
  t.equal((await slow.next()).value!.data, 1)
  t.equal((await slow.next()).value!.data, 2)
  await t.rejects(slow.next(), { code: 'SSE_ERR_CLIENT_OVERFLOW', message: 'maxBuffered is 2' })
  t.same(await slow.next(), { value: undefined, done: true })
  t.equal((await other.next()).value!.data, 1)
  t.same(await left.next(), { value: undefined, done: true })
})

t.test('a loop ends with the client: normally, or with the reason', async t => {
  const closed = connect(t, (await script(t, stream(OPEN))).url)
  const next = closed.client.events().next()
  closed.client.close()
  t.same(await next, { value: undefined, done: true })
  t.same(await closed.client.events().next(), { value: undefined, done: true }, 'also one that begins later')

  const refused = connect(t, (await script(t, status(401, { code: 'SSE_ERR_UNAUTHENTICATED' }))).url)
  await t.rejects(refused.client.events().next(), { code: 'SSE_ERR_CLIENT_REFUSED', status: 401, serverCode: 'SSE_ERR_UNAUTHENTICATED', reason: 'refused' })
  await t.rejects(refused.client.events().next(), { code: 'SSE_ERR_CLIENT_REFUSED' })

  const kicked = connect(t, (await script(t, ended(`${OPEN}event: sse:close\ndata: {"reason":"kicked","reconnect":false}\n\n`))).url)
  await t.rejects(kicked.client.events().next(), { code: 'SSE_ERR_CLIENT_CLOSED', reason: 'kicked' })
})

t.test('listeners of control events', async t => {
  const { app, url } = await serve(t, { presenceEvents: { topics: ['room:*'], lingerMs: 10 }, clientSubscriptions: true, path: '/own', authorizeSubscription: () => true })
  const { client, become } = connect(t, `${url}/own?user=ada`, { subscriptions: ['room:1', 'news'] })
  const seen: unknown[] = []
  client.onJoin(change => { seen.push(['join', change]) })
  client.onLeave(change => { seen.push(['leave', change]) })
  client.onUnsubscribed(change => { seen.push(change) })
  await become('open')
  const other = connect(t, `${url}/own?user=bob`, { subscriptions: ['room:1'] })
  await until(() => seen.some(change => JSON.stringify(change).includes('bob')))
  other.client.close()
  await until(() => seen.some(change => JSON.stringify(change).includes('leave')))
  await app.sse.revokeSubscription('ada', 'news')
  await until(() => seen.some(change => JSON.stringify(change).includes('news')))
  t.same(seen.slice(-3), [['join', { subscriptionId: 'room:1', userId: 'bob' }], ['leave', { subscriptionId: 'room:1', userId: 'bob' }], { subscriptionId: 'news', reason: 'revoked' }])
})

t.test('an exception of a listener is reported, and stops nothing', async t => {
  const server = await script(t, stream(`${OPEN}data: 1\n\ndata: 2\n\n`))
  const { client } = connect(t, server.url)
  const reported: unknown[] = []
  const listeners = process.listeners('uncaughtException')
  process.removeAllListeners('uncaughtException')
  process.on('uncaughtException', error => { reported.push(error.message) })
  t.teardown(() => {
    process.removeAllListeners('uncaughtException')
    for (const listener of listeners) process.on('uncaughtException', listener)
  })
  const seen: unknown[] = []
  client.on('message', data => { throw new Error(`Listener ${data}`) })
  client.on('message', data => { seen.push(data) })
  await until(() => reported.length === 2)
  t.same(seen, [1, 2])
  t.same(reported, ['Listener 1', 'Listener 2'])
})
