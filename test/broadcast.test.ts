import { AsyncLocalStorage } from 'node:async_hooks'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Type } from '@sinclair/typebox'
import t from 'tap'
import { createDataEvent, createNotificationEvent, defineEvents, EventPriority, memoryBroker, SSEManager, type Broker, type BroadcastOptions, type EventInput, type Log, type SSEOptions } from '../lib/index.js'
import { block, serve, settleUnlogged } from './helpers/app.js'
import { SSEClient } from './helpers/sse.js'
import { turns, until } from './helpers/wait.js'

// What a broadcast is, who gets it and what it looks like on the wire; seen by clients on real connections.

/** Names of the events a client has had, in order. */
const seen = (client: SSEClient) => client.applicationEvents.filter(({ event }) => event !== 'settled' && event !== 'filler').map(({ event }) => event)

t.test('the wire', async t => {
  const service = await serve(t)
  const { app, join } = service
  const { client } = await join()
  const head = client.blocks.map(({ text }) => text)
  const epoch = client.lastEventId.split('.')[0]!
  t.strictSame(head, [': stream', 'retry: 3000', `id: ${epoch}.0`], 'a comment, the reconnection time and the place come at once')

  const actions = [{ label: 'Open', url: '/report/1' }]
  const delivery = await app.sse.broadcastData('messages', { text: 'hi' })
  t.strictSame(delivery, { id: `${epoch}.1`, delivered: 1 })
  t.strictSame(await app.sse.broadcastNotification({ title: 'T', message: 'M' }), { id: `${epoch}.2`, delivered: 1 })
  await app.sse.broadcastNotification({ title: 'T', message: 'M', level: 'warning', actions })
  await app.sse.broadcastEvent({ event: 'chat_message', data: { from: 'ada', lines: 'a\nb' }, retry: 5000 })
  await app.sse.broadcastEvent({ event: 'text', data: 'one\r\ntwo\rthree\n four' })
  await app.sse.broadcastEvent({ event: 'message', data: [1, null] })
  await app.sse.broadcastEvent({ data: '' })
  await app.sse.broadcastEvent({ event: 'tick', data: 7 }, { ephemeral: true })
  await app.sse.broadcastEvent(createDataEvent('numbers', 0))
  await app.sse.broadcastEvent(createNotificationEvent({ title: 'a', message: 'b', level: 'error' }))
  await settleUnlogged(service, client)

  const blocks = client.blocks.slice(head.length, -1)
  t.equal(blocks[0]!.text, `id: ${epoch}.1\nevent: data\ndata: {"resource":"messages","data":{"text":"hi"}}`)
  t.strictSame(JSON.parse(blocks[1]!.data!), { title: 'T', message: 'M', level: 'info' })
  t.strictSame(JSON.parse(blocks[2]!.data!), { title: 'T', message: 'M', level: 'warning', actions })
  t.equal(blocks[3]!.text, `id: ${epoch}.4\nevent: chat_message\nretry: 5000\ndata: {"from":"ada","lines":"a\\nb"}`)
  t.equal(blocks[4]!.text, `id: ${epoch}.5\nevent: text\ndata: one\ndata: two\ndata: three\ndata:  four`)
  t.equal(blocks[5]!.text, `id: ${epoch}.6\ndata: [1,null]`, 'the default event has no name')
  t.equal(blocks[6]!.text, `id: ${epoch}.7\ndata: `)
  t.equal(blocks[7]!.text, 'event: tick\ndata: 7', 'an ephemeral event has no id')
  t.equal(blocks[8]!.text, `id: ${epoch}.8\nevent: data\ndata: {"resource":"numbers","data":0}`)
  t.strictSame(JSON.parse(blocks[9]!.data!), { title: 'a', message: 'b', level: 'error' })
  t.equal(blocks.length, 10)
})

t.test('what is larger than an outbox is written, not dropped, while the client reads', async t => {
  const service = await serve(t, { flush: { intervalMs: 200 } })
  const ada = await service.join('ada')
  const data = 'x'.repeat(700_000)
  t.ok(ada.connection.sendEvent({ event: 'a', data }) && ada.connection.sendEvent({ event: 'b', data }))
  const [one, two] = await Promise.all([1, 2].map(i => service.app.sse.broadcastEvent({ event: `e${i}`, data }, { ephemeral: true })))
  const arrived = { a: true, b: true, e1: one!.delivered === 1, e2: two!.delivered === 1 }
  await settleUnlogged(service, ada.client)
  for (const [event, sent] of Object.entries(arrived)) t.equal(ada.client.named(event).length, sent ? 1 : 0, event)
  const stats = ada.connection.stats()
  t.equal(stats.droppedEvents, 4 - Object.values(arrived).filter(sent => sent).length)
  t.equal(stats.sentEvents, seen(ada.client).length + 1)
})

t.test('a source is not slowed by an interval, and of what a key replaces nothing counts as sent', async t => {
  const service = await serve(t, { flush: { intervalMs: 10_000 } }, {}, app => {
    app.get('/source', (request, reply) => reply.sse((function * () { for (let i = 0; i < 500; i++) yield 'x'.repeat(1_000) })()))
  })
  const client = await service.open('/source')
  await client.waitFor('sse:close', 1, 5_000)
  t.equal(client.named('message').length, 500)

  const { join, app } = await serve(t)
  const ada = await join('ada')
  await Promise.all([1, 2, 3].map(data => app.sse.broadcastEvent({ event: 'x', data, key: 'k' })))
  await ada.client.waitFor('x')
  t.strictSame([ada.client.named('x').length, ada.connection.stats().sentEvents], [1, 1])
})

t.test('sends to one connection have the same shapes, no id, and are not replayed', async t => {
  const service = await serve(t)
  const { client, connection } = await service.join('ada')
  const other = await service.join('ada')
  t.equal(connection.sendData('welcome', { at: 1 }), true)
  t.equal(connection.sendNotification({ title: 'T', message: 'M' }), true)
  t.equal(connection.sendEvent({ event: 'own', data: 'text', retry: 1000 }), true)
  await settleUnlogged(service, client, other.client)
  t.strictSame(client.applicationEvents.slice(0, 3).map(({ text }) => text.replace(/\{.*"title".*/, 'notification')), [
    'event: data\ndata: {"resource":"welcome","data":{"at":1}}',
    'event: notification\ndata: notification',
    'event: own\nretry: 1000\ndata: text'
  ])
  t.strictSame(client.json('notification'), [{ title: 'T', message: 'M', level: 'info' }])
  t.strictSame(seen(other.client), [])
  t.equal(connection.stats().sentEvents, 4)
  const again = await service.join('ada', [], { cursor: client.lastEventId })
  await settleUnlogged(service, again.client)
  t.strictSame(seen(again.client), [])
  t.throws(() => connection.sendEvent({ event: 'own', data: 1, id: '5' } as EventInput), { code: 'SSE_ERR_INVALID_ID' })
  t.throws(() => connection.sendNotification({ title: 'T' } as never), { code: 'SSE_ERR_INVALID_PAYLOAD' })
  client.close()
  await until(() => !connection.isConnected)
  t.equal(connection.sendData('late', 1), false)
  t.equal(connection.sendEvent({ event: '', data: 1 }), false, 'it never throws once the stream has ended')
})

t.test('who gets it', async t => {
  const service = await serve(t, {}, {}, app => {
    app.get('/own', (request, reply) => reply.sse(async function * ({ signal }) {
      yield { event: 'begin', data: 1 }
      await new Promise(resolve => signal.addEventListener('abort', resolve))
    }))
  })
  const { app, join } = service
  const ada = await join('ada', ['chat:general', 'user:ada:**'])
  const phone = await join('ada', ['user:ada:**'])
  const grace = await join('grace', ['chat:*', 'chat:**'])
  const alan = await join('alan', ['**'])
  const nobody = await join(null, ['chat:general'])
  const own = await service.open('/own?user=ada')
  const all = { ada, phone, grace, alan, nobody }
  const cases: [name: string, ways: BroadcastOptions, expected: (keyof typeof all)[]][] = [
    ['everyone', {}, ['ada', 'phone', 'grace', 'alan', 'nobody']],
    ['a user on two devices', { userIds: ['ada'] }, ['ada', 'phone']],
    ['users, one named twice, one unknown', { userIds: ['ada', 'ada', 'grace', 'zoe'] }, ['ada', 'phone', 'grace']],
    ['a topic', { subscriptionIds: ['chat:general'] }, ['ada', 'grace', 'alan', 'nobody']],
    ['a topic only patterns cover', { subscriptionIds: ['chat:random'] }, ['grace', 'alan']],
    ['a topic below', { subscriptionIds: ['chat:general:files'] }, ['grace', 'alan']],
    ['** covers zero segments', { subscriptionIds: ['user:ada'] }, ['ada', 'phone', 'alan']],
    ['** covers two segments', { subscriptionIds: ['user:ada:mail:7'] }, ['ada', 'phone', 'alan']],
    ['a prefix of a segment is another topic', { subscriptionIds: ['user:adam'] }, ['alan']],
    ['a parent is another topic', { subscriptionIds: ['user'] }, ['alan']],
    ['several topics, once each', { subscriptionIds: ['chat:general', 'chat:random', 'user:ada', 'chat:general'] }, ['ada', 'phone', 'grace', 'alan', 'nobody']],
    ['users ∩ topics', { userIds: ['ada', 'grace'], subscriptionIds: ['chat:general'] }, ['ada', 'grace']],
    ['users ∩ topics nobody of them holds', { userIds: ['grace'], subscriptionIds: ['user:ada'] }, []],
    ['clients', { clientIds: [phone.connection.clientId, phone.connection.clientId, 'gone'] }, ['phone']],
    ['clients ∩ users', { clientIds: [phone.connection.clientId, grace.connection.clientId], userIds: ['grace'] }, ['grace']],
    ['clients ∩ topics', { clientIds: [phone.connection.clientId, grace.connection.clientId], subscriptionIds: ['chat:general'] }, ['grace']],
    ['all but the sender', { exceptClientIds: [ada.connection.clientId, 'gone'] }, ['phone', 'grace', 'alan', 'nobody']],
    ['a user but one device', { userIds: ['ada'], exceptClientIds: [ada.connection.clientId] }, ['phone']],
    ['a topic but one client', { subscriptionIds: ['chat:general'], exceptClientIds: [alan.connection.clientId] }, ['ada', 'grace', 'nobody']],
    ['a client left out and named', { clientIds: [ada.connection.clientId], exceptClientIds: [ada.connection.clientId] }, []],
    ['a filter', { filter: connection => connection.hasSubscription('chat:general') }, ['ada', 'grace', 'alan', 'nobody']],
    ['a filter ∩ users', { filter: connection => connection.hasSubscription('chat:general'), userIds: ['ada'] }, ['ada']],
    ['a filter that lets nobody pass', { filter: () => false }, []],
    ['a filter of truthy values', { filter: (() => 1) as never }, []],
    ['an async filter', { filter: (async () => true) as never }, []],
    ['no users', { userIds: [] }, []],
    ['no topics', { subscriptionIds: [] }, []],
    ['no clients', { clientIds: [] }, []],
    ['no users but topics', { userIds: [], subscriptionIds: ['chat:general'] }, []],
    ['nobody left out', { exceptClientIds: [] }, ['ada', 'phone', 'grace', 'alan', 'nobody']],
    ['an unknown user', { userIds: ['null', 'constructor', '__proto__'] }, []],
    ['local', { local: true, userIds: ['ada'] }, ['ada', 'phone']],
    ['ephemeral', { ephemeral: true, subscriptionIds: ['chat:random'] }, ['grace', 'alan']]
  ]
  const expected = new Map(Object.keys(all).map(name => [name, [] as string[]]))
  for (const [index, [name, ways, receivers]] of cases.entries()) {
    const delivery = await app.sse.broadcastEvent({ event: `case-${index}`, data: name }, ways)
    t.equal(delivery.delivered, receivers.length, name)
    t.equal(delivery.id === null, ways.local === true || ways.ephemeral === true, `${name}: id`)
    for (const receiver of receivers) expected.get(receiver)!.push(`case-${index}`)
  }
  await settleUnlogged(service, ...Object.values(all).map(({ client }) => client))
  for (const [name, { client }] of Object.entries(all)) t.strictSame(seen(client), expected.get(name), name)
  t.strictSame(own.events.map(({ event }) => event), ['begin'], 'a stream of its own gets no broadcasts')

  await t.test('the short forms', async t => {
    const event = { event: 'short', data: 1 }
    t.match(await app.sse.broadcastToUsers(event, ['ada']), { delivered: 2 })
    t.match(await app.sse.broadcastToUsers(event, ['ada'], { subscriptionIds: ['chat:general'] }), { delivered: 1 })
    t.match(await app.sse.broadcastToSubscriptions(event, ['chat:random']), { delivered: 2 })
    t.match(await app.sse.broadcastToSubscriptions(event, ['chat:random'], { userIds: ['grace'], ephemeral: true }), { id: null, delivered: 1 })
    t.match(await app.sse.broadcastData('r', 1, { userIds: ['grace'] }), { delivered: 1 })
    t.match(await app.sse.broadcastNotification({ title: 'a', message: 'b' }, { clientIds: [nobody.connection.clientId] }), { delivered: 1 })
    await settleUnlogged(service, grace.client, nobody.client)
    t.strictSame(seen(grace.client).slice(-3), ['short', 'short', 'data'])
    t.strictSame(seen(nobody.client).at(-1), 'notification')
  })
})

t.test('a filter that throws leaves out that connection only, and is logged', async t => {
  const lines: string[] = []
  const service = await serve(t, {}, { logger: { level: 'error', stream: { write: line => { lines.push(line) } } } })
  const ada = await service.join('ada')
  const grace = await service.join('grace')
  const delivery = await service.app.sse.broadcastEvent({ event: 'x', data: 1 }, {
    filter: ({ userId }) => {
      if (userId === 'ada') throw new Error('no such room')
      return true
    }
  })
  t.equal(delivery.delivered, 1)
  await settleUnlogged(service, ada.client, grace.client)
  t.strictSame([seen(ada.client), seen(grace.client)], [[], ['x']])
  t.equal(lines.length, 1)
  t.match(JSON.parse(lines[0]!), { err: { message: 'no such room' }, clientId: ada.connection.clientId })
})

t.test('a filter that throws what has no text, or answers with a promise, stops nobody', async t => {
  const service = await serve(t)
  const ada = await service.join('ada')
  const filters = [() => { throw Object.create(null) }, async () => true, async () => { throw new Error('late') }, () => ({}) as boolean]
  for (const filter of filters) t.equal((await service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { filter: filter as () => boolean })).delivered, 0)
  t.equal((await service.app.sse.broadcastEvent({ event: 'y', data: 1 })).delivered, 1)
  await settleUnlogged(service, ada.client)
  t.strictSame(seen(ada.client), ['y'])

  // Without a logger the application is told by a warning, whatever was thrown.
  const warned = once(process, 'warning')
  const alone = new SSEManager()
  t.teardown(() => alone.close())
  const server = createServer((request, response) => { alone.createConnection({ request, response }) })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  t.teardown(() => { server.close() })
  const client = await SSEClient.open(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  t.teardown(() => client.close())
  await alone.broadcastEvent({ event: 'x', data: 1 }, { filter: filters[0] as () => boolean })
  t.match((await warned)[0], { message: /filter threw/ })
  await alone.broadcastEvent({ event: 'y', data: 1 })
  await client.waitFor('y')
})

/** What the application may throw so that a logger that reads it, or marks it as pino does, throws too. */
const UNLOGGABLE: Record<string, () => unknown> = {
  'a frozen error': () => Object.freeze(new Error('frozen')),
  'an error with a getter that throws': () => Object.defineProperty(new Error('getter'), 'code', { enumerable: true, get () { throw new Error('no code') } }),
  'an error that is a revoked proxy': () => {
    const { proxy, revoke } = Proxy.revocable(new Error('proxy'), {})
    revoke()
    return proxy
  },
  'an error without a readable message': () => Object.defineProperty(new Error(), 'message', { get () { throw new Error('no message') } }),
  'a frozen object': () => Object.freeze({ reason: 'object' }),
  null: () => null,
  'a symbol': () => Symbol('thrown')
}

t.test('what cannot be logged costs nobody an event: not the others, not the log its order', async t => {
  const lines: any[] = []
  let thrown: () => unknown = () => null
  const deny = (): never => { throw thrown() }
  const service = await serve(t, {
    authorizeTopic: ({ userId }) => userId !== 'mallory' || deny()
  }, { logger: { level: 'error', stream: { write: line => { lines.push(JSON.parse(line)) } } } })
  const ada = await service.join('ada', ['room:1'])
  const start = ada.client.lastEventId
  const mallory = await service.join('mallory', ['room:*'])
  let published = 0
  for (const [name, make] of Object.entries(UNLOGGABLE)) {
    thrown = make
    const mine = lines.length
    const filter = ({ userId }: { userId: string | null }) => userId !== 'mallory' || deny()
    for (const options of [{ subscriptionIds: ['room:1'] }, { filter }, { filter, local: true }]) {
      t.match(await service.app.sse.broadcastEvent({ event: 'x', data: ++published }, options), { delivered: 1 }, name)
    }
    t.strictSame(lines.slice(mine).map(({ clientId }) => clientId), new Array(3).fill(mallory.connection.clientId), `${name}: each is logged`)
  }
  t.ok(lines.some(({ err }) => err?.message === 'frozen' && err.type === 'Error' && err.stack.includes('broadcast.test')), 'with what can be read of it')
  await settleUnlogged(service, ada.client, mallory.client)
  t.strictSame(ada.client.json('x'), Array.from({ length: published }, (_, i) => i + 1))
  t.strictSame(mallory.client.json('x'), [])
  t.equal(ada.client.lastEventId.split('.')[1], (published * 2 / 3).toString(36))
  const back = await service.join('mallory', ['room:*'], { cursor: start })
  await settleUnlogged(service, back.client)
  t.strictSame([back.client.json('x'), back.client.named('sse:gap').length], [[], 0], 'nor does a replay stop there')
})

t.test('a logger that throws, rejects or lacks methods stops nothing, and is reported once', async t => {
  const rejections: unknown[] = []
  const reports: Error[] = []
  const onRejection = (error: unknown) => { rejections.push(error) }
  const onWarning = (warning: Error & { code?: string }) => { if (warning.code === 'SSE_LOGGER_FAILED') reports.push(warning) }
  process.on('unhandledRejection', onRejection).on('warning', onWarning)
  t.teardown(() => process.off('unhandledRejection', onRejection).off('warning', onWarning))
  const fail = (): never => { throw new Error('disk full') }
  const reject = async (): Promise<never> => fail()
  const loggers: unknown[] = [{ error: fail, warn: fail, info: fail, debug: fail }, { error: reject, warn: reject, info: reject, debug: reject }, {}, null, { get error () { return fail() } }]
  for (const logger of loggers) {
    const manager = new SSEManager({}, logger as Log)
    t.teardown(() => manager.close())
    const server = createServer((request, response) => { manager.createConnection({ request, response }) })
    await once(server.listen(0, '127.0.0.1'), 'listening')
    t.teardown(() => { server.close() })
    const client = await SSEClient.open(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
    t.teardown(() => client.close())
    t.match(await manager.broadcastEvent({ event: 'x', data: 1 }, { filter: () => { throw new Error('filter') } }), { delivered: 0 })
    t.match(await manager.broadcastEvent({ event: 'y', data: 1 }), { delivered: 1 })
    await client.waitFor('y')
  }
  await turns(3)
  t.strictSame(rejections, [])
  t.match(reports.map(({ message }) => message), [/^The application's logger failed: disk full\. Not logged: /])
  t.equal(reports.length, 1)
})

t.test('a log that is open serves one manager', async t => {
  const broker = memoryBroker()
  const first = new SSEManager({ broker })
  t.teardown(() => first.close())
  await first.open()
  const second = new SSEManager({ broker })
  await t.rejects(second.open(), { code: 'SSE_ERR_INVALID_OPTION' })
  await t.rejects(second.broadcastEvent({ data: 1 }), { code: 'SSE_ERR_INVALID_OPTION' })
  t.match(await first.broadcastEvent({ data: 1 }), { delivered: 0 })
})

t.test('a filter cannot cross nodes', async t => {
  const memory = memoryBroker()
  const broker: Broker = {
    shared: true,
    get epoch () { return memory.epoch },
    get position () { return memory.position },
    open: (sink, history) => memory.open(sink, history),
    publish: message => memory.publish(message),
    read: request => memory.read(request),
    claim: (key, ttlMs) => memory.claim(key, ttlMs),
    close: () => memory.close()
  }
  const service = await serve(t, { broker })
  const { client } = await service.join('ada')
  const filter = () => true
  await t.rejects(service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { filter }), { code: 'SSE_ERR_FILTER_NOT_SHARED' })
  await t.rejects(service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { filter, ephemeral: true }), { code: 'SSE_ERR_FILTER_NOT_SHARED' })
  t.strictSame(await service.app.sse.broadcastEvent({ event: 'y', data: 1 }, { filter, local: true }), { id: null, delivered: 1 })
  await settleUnlogged(service, client)
  t.strictSame(seen(client), ['y'])
  t.equal(memory.position, 0)
})

t.test('subscriptions of a live connection', async t => {
  const service = await serve(t, { maxSubscriptionsPerConnection: 3 })
  const { app, join } = service
  const ada = await join('ada', ['a'])
  const { clientId } = ada.connection
  const grace = await join('grace')
  const publish = async (topic: string) => (await app.sse.broadcastEvent({ event: topic, data: 1 }, { subscriptionIds: [topic] })).delivered

  t.equal(await publish('b'), 0)
  await app.sse.addSubscription(clientId, 'b')
  await app.sse.addSubscription(clientId, 'b')
  await ada.connection.addSubscription('room:*')
  t.strictSame([...ada.connection.subscriptions], ['a', 'b', 'room:*'])
  t.ok(ada.connection.hasSubscription('room:7'))
  t.notOk(ada.connection.hasSubscription('room:7:files'))
  t.equal(await publish('b'), 1)
  t.equal(await publish('room:7'), 1)
  // What still waits when its subscription is removed is not sent.
  await settleUnlogged(service, ada.client)
  await t.rejects(app.sse.addSubscription(clientId, 'd'), { code: 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS' })

  t.strictSame(app.sse.getConnectionsBySubscription('room:*'), [ada.connection])
  t.strictSame(app.sse.getConnectionsBySubscription('room:7'), [], 'exactly this topic or pattern')
  t.equal(await app.sse.removeSubscription(clientId, 'b'), true)
  t.equal(await app.sse.removeSubscription(clientId, 'b'), false)
  t.equal(await ada.connection.removeSubscription('room:*'), true)
  t.equal(await publish('b'), 0)
  t.equal(await publish('room:7'), 0)
  t.equal(await publish('a'), 1)
  t.equal(app.sse.stats().subscriptions, 1)

  for (const bad of ['', 'a::b', 'a:**:b', 'a*', '***', 'a b', 'a\nb', ':a', 'x'.repeat(513), 7, undefined]) {
    await t.rejects(app.sse.addSubscription(clientId, bad as string), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' }, `subscription ${String(bad).slice(0, 20)}`)
  }
  for (const call of [app.sse.addSubscription('gone', 'a'), app.sse.removeSubscription('gone', 'a')] as Promise<unknown>[]) await t.rejects(() => call, { code: 'SSE_ERR_UNKNOWN_CONNECTION', statusCode: 404 })
  await settleUnlogged(service, ada.client, grace.client)
  t.strictSame(seen(ada.client), ['b', 'room:7', 'a'])
  t.strictSame(seen(grace.client), [])

  // Events from before a subscription are not given to it, even when the client comes back.
  await grace.connection.addSubscription('a')
  t.equal(await publish('a'), 2)
  grace.client.close()
  await until(() => app.sse.connectionCount === 1)
  t.equal(await publish('a'), 1)
  await t.rejects(grace.connection.addSubscription('z'), { code: 'SSE_ERR_UNKNOWN_CONNECTION' })
})

t.test('lookups, counts and stats', async t => {
  const { app, join, open } = await serve(t, { authHandler: ({ query }) => query['user'] === undefined ? null : { userId: query['user'] as string, claims: { role: 'admin' } } })
  const { sse } = app
  const before = Date.now()
  const ada = await join('ada', ['a', 'b', 'a'], { headers: { 'user-agent': 'tests/1' }, clientInfo: { device: 'desk', ip: 'forged', connectedAt: 0 } })
  const phone = await join('ada', ['a'])
  const nobody = await join()
  t.equal(sse.connectionCount, 3)
  t.match(ada.connection, { userId: 'ada', isAuthenticated: true, isConnected: true, lastEventId: null, closeReason: null, claims: { role: 'admin' } })
  t.match(nobody.connection, { userId: null, isAuthenticated: false, isConnected: true, claims: undefined })
  t.match(ada.connection.clientInfo, { ip: '127.0.0.1', userAgent: 'tests/1', device: 'desk' }, 'the application adds, it does not replace')
  const { connectedAt } = ada.connection.clientInfo
  t.ok(connectedAt >= before && connectedAt <= Date.now())
  t.equal(nobody.connection.clientInfo.userAgent, '')
  t.equal(new Set([ada, phone, nobody].map(({ connection }) => connection.clientId)).size, 3)

  t.equal(sse.getConnection(ada.connection.clientId), ada.connection)
  t.equal(sse.getConnection('gone'), undefined)
  t.strictSame(sse.getConnectionsByUser('ada').map(({ clientId }) => clientId), [ada.connection.clientId, phone.connection.clientId])
  t.strictSame(sse.getConnectionsByUser('zoe'), [])
  t.equal(sse.getConnectionsBySubscription('a').length, 2)
  t.equal(sse.getConnectionsBySubscription('b').length, 1)
  t.equal([...sse.connections()].length, 3)
  const list = sse.getConnectionsByUser('ada')
  list.length = 0
  t.equal(sse.getConnectionsByUser('ada').length, 2, 'a list given out is a copy')

  await sse.broadcastEvent({ event: 'x', data: 1 })
  await sse.broadcastEvent({ event: 'x', data: 2 }, { userIds: ['ada'], ephemeral: true })
  await sse.broadcastEvent({ event: 'x', data: 3 }, { userIds: ['zoe'], local: true })
  await ada.client.waitFor('x', 2)
  t.strictSame(sse.stats(), { connections: 3, users: 1, subscriptions: 2, messages: 3, delivered: 5, dropped: 0, lagging: 0, queuedBytes: 0, closed: {} })
  t.strictSame(ada.connection.stats(), { sentEvents: 2, droppedEvents: 0, queuedBytes: 0, lagging: false })

  t.equal(await sse.closeConnection(ada.connection.clientId, 'kicked'), true)
  t.equal(await sse.closeConnection('gone'), false)
  await ada.client.waitForEnd()
  t.strictSame(ada.client.json('sse:close'), [{ reason: 'kicked', reconnect: false }])
  await until(() => sse.connectionCount === 2)
  t.equal(await sse.disconnectUser('ada'), 1)
  t.equal(await sse.disconnectUser('zoe'), 0)
  await phone.client.waitForEnd()
  t.strictSame(phone.client.json('sse:close'), [{ reason: 'disconnected', reconnect: false }])
  nobody.client.close()
  await until(() => sse.connectionCount === 0)
  t.strictSame(sse.stats(), { connections: 0, users: 0, subscriptions: 0, messages: 3, delivered: 5, dropped: 0, lagging: 0, queuedBytes: 0, closed: { kicked: 1, disconnected: 1, client: 1 } })
  t.strictSame([sse.getConnection(ada.connection.clientId), sse.getConnectionsByUser('ada'), sse.getConnectionsBySubscription('a')], [undefined, [], []])
  t.equal(ada.connection.closeReason, 'kicked')
  t.equal(nobody.connection.closeReason, 'client')
  for (const reason of ['', 'Kicked', 'a b', 'a\nb', 'x'.repeat(65)]) {
    await t.rejects(sse.closeConnection('gone', reason), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
    await t.rejects(sse.disconnectUser('gone', reason), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
  }
  t.equal((await open('/sse?user=')).status, 500, 'an empty user id is nobody\'s')
})

t.test('ephemeral and local events are not logged, so not replayed', async t => {
  const service = await serve(t)
  const { app, join } = service
  const { client } = await join('ada')
  const start = client.lastEventId
  t.strictSame(await app.sse.broadcastEvent({ event: 'a', data: 1 }, { ephemeral: true }), { id: null, delivered: 1 })
  t.strictSame(await app.sse.broadcastEvent({ event: 'b', data: 1 }, { local: true }), { id: null, delivered: 1 })
  t.strictSame(await app.sse.broadcastEvent({ event: 'c', data: 1 }, { local: true, ephemeral: true }), { id: null, delivered: 1 })
  await settleUnlogged(service, client)
  t.strictSame(seen(client), ['a', 'b', 'c'])
  t.equal(client.lastEventId, start, 'the place has not moved')
  const { id } = await app.sse.broadcastEvent({ event: 'd', data: 1 })
  await client.waitFor('d')
  t.equal(client.lastEventId, id)
  const again = await join('ada', [], { cursor: start })
  await again.client.waitFor('d')
  await settleUnlogged(service, again.client)
  t.strictSame(seen(again.client), ['d'])
})

t.test('priority', async t => {
  const service = await serve(t)
  const { app, join } = service
  const ada = await join('ada')
  await Promise.all([
    app.sse.broadcastEvent({ event: 'low', data: 1, priority: EventPriority.LOW }),
    app.sse.broadcastEvent({ event: 'critical', data: 1, priority: EventPriority.CRITICAL }),
    app.sse.broadcastEvent({ event: 'normal', data: 1 })
  ])
  await settleUnlogged(service, ada.client)
  t.strictSame(seen(ada.client), ['low', 'critical', 'normal'], 'nothing waited, so nothing overtakes')

  await block(ada)
  await app.sse.broadcastEvent({ event: 'low', data: 2, priority: EventPriority.LOW })
  await app.sse.broadcastEvent({ event: 'plain', data: 2 })
  await app.sse.broadcastNotification({ title: 'first', message: 'high by default' })
  await app.sse.broadcastNotification({ title: 'second', message: 'told otherwise' }, { priority: EventPriority.CRITICAL })
  await app.sse.broadcastNotification({ title: 'third', message: 'told otherwise' }, { priority: EventPriority.LOW })
  await app.sse.broadcastEvent({ event: 'high', data: 2, priority: EventPriority.LOW }, { priority: EventPriority.HIGH })
  ada.connection.sendNotification({ title: 'fourth', message: 'high too' })
  ada.client.resume()
  await settleUnlogged(service, ada.client)
  t.strictSame(seen(ada.client).slice(3), ['notification', 'notification', 'high', 'notification', 'plain', 'low', 'notification'])
  t.strictSame(ada.client.json('notification').map(({ title }) => title), ['second', 'first', 'fourth', 'third'])
})

t.test('a key replaces what is older and undelivered', async t => {
  const service = await serve(t)
  const { app, join } = service
  const ada = await join('ada', ['price:eth', 'price:btc'])
  const brisk = await join('ada', ['price:eth', 'price:btc'])
  const start = brisk.client.lastEventId
  const price = (data: number, topic = 'price:btc', key = 'price') => app.sse.broadcastEvent({ event: topic, data, key }, { subscriptionIds: [topic] })
  const of = (client: SSEClient, event: string) => client.named(event).map(({ data }) => Number(data))

  await t.test('under a blocked socket', async t => {
    await block(ada)
    for (let i = 1; i <= 20; i++) {
      await price(i)
      if (i % 5 === 0) {
        await price(-i, 'price:eth')
        await app.sse.broadcastEvent({ event: 'plain', data: i })
      }
      // Each is on its way to the brisk client before the next comes.
      await turns()
    }
    await app.sse.broadcastEvent({ event: 'price:btc', data: 99, key: 'another' }, { subscriptionIds: ['price:btc'] })
    await settleUnlogged(service, brisk.client)
    ada.client.resume()
    await settleUnlogged(service, ada.client)
    t.strictSame(of(ada.client, 'price:btc'), [20, 99], 'the newest, and another key')
    t.strictSame(of(ada.client, 'price:eth'), [-20], 'the same key for another target is another key')
    t.strictSame(of(ada.client, 'plain'), [5, 10, 15, 20], 'without a key nothing is replaced')
    t.equal(of(brisk.client, 'price:btc').length, 21, 'a client that keeps up gets all')
    t.equal(ada.client.lastEventId.includes('~'), false)
  })

  await t.test('within one turn', async t => {
    const from = of(brisk.client, 'price:btc').length
    await Promise.all([price(101), price(102), price(103, 'price:btc', 'b'), price(104)])
    await settleUnlogged(service, brisk.client)
    t.strictSame(of(brisk.client, 'price:btc').slice(from), [103, 104])
  })

  await t.test('while catching up', async t => {
    const again = await join('ada', ['price:eth', 'price:btc'], { cursor: start })
    await settleUnlogged(service, again.client)
    t.equal(of(again.client, 'price:btc').at(-1), 104)
    t.equal(of(again.client, 'plain').length, 4)
    const prices = of(again.client, 'price:btc').filter(value => value !== 99 && value !== 103)
    t.strictSame(prices, [...prices].sort((a, b) => a - b), 'never an older one after a newer')
  })

  await t.test('an event for others does not take its place', async t => {
    await block(ada)
    const from = of(ada.client, 'price:btc').length
    await app.sse.broadcastEvent({ event: 'price:btc', data: 201, key: 'k' })
    await app.sse.broadcastEvent({ event: 'price:btc', data: 202, key: 'k' }, { exceptClientIds: [brisk.connection.clientId] })
    await app.sse.broadcastEvent({ event: 'price:btc', data: 203, key: 'k' }, { filter: ({ clientId }) => clientId !== brisk.connection.clientId })
    await app.sse.broadcastEvent({ event: 'price:btc', data: 204, key: 'k' }, { filter: () => true })
    ada.client.resume()
    await settleUnlogged(service, ada.client)
    t.strictSame(of(ada.client, 'price:btc').slice(from), [201, 202, 203, 204], 'other targets, so nothing is replaced; with a filter nothing ever is')
  })
})

const catalogue = defineEvents({
  events: { chat: Type.Object({ text: Type.String({ maxLength: 10 }), tags: Type.Array(Type.Integer()) }, { additionalProperties: false }) },
  resources: { orders: Type.Object({ id: Type.Integer() }) }
})

t.test('what cannot be sent is refused, and nothing is sent or logged', async t => {
  const cyclic: Record<string, unknown> = {}
  cyclic.self = cyclic
  const ok: EventInput = { event: 'x', data: 1 }
  type Case = [code: string, event: unknown, options?: unknown, message?: RegExp]
  const plain: Case[] = [
    ['SSE_ERR_INVALID_EVENT_NAME', { event: '', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'a\nb', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'a\rb', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'a\0b', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'open', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'error', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'sse:close', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: '\ud800', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'x'.repeat(257), data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 7, data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: null, data: 1 }],
    ['SSE_ERR_INVALID_ID', { ...ok, id: '5' }],
    ['SSE_ERR_INVALID_ID', { ...ok, id: undefined }],
    ['SSE_ERR_INVALID_KEY', { ...ok, key: '' }],
    ['SSE_ERR_INVALID_KEY', { ...ok, key: 'x'.repeat(257) }],
    ['SSE_ERR_INVALID_KEY', { ...ok, key: 7 }],
    ['SSE_ERR_INVALID_KEY', ok, { key: '' }],
    ['SSE_ERR_INVALID_EVENT', null],
    ['SSE_ERR_INVALID_EVENT', 'x'],
    ['SSE_ERR_INVALID_EVENT', { evnt: 'x', data: 1 }],
    ['SSE_ERR_INVALID_EVENT', { ...ok, userIds: ['ada'] }, {}, /unknown property "userIds".*second argument/],
    ['SSE_ERR_INVALID_PRIORITY', { ...ok, priority: 4 }],
    ['SSE_ERR_INVALID_PRIORITY', { ...ok, priority: -1 }],
    ['SSE_ERR_INVALID_PRIORITY', { ...ok, priority: 1.5 }],
    ['SSE_ERR_INVALID_PRIORITY', { ...ok, priority: 'HIGH' }],
    ['SSE_ERR_INVALID_PRIORITY', { ...ok, priority: null }],
    ['SSE_ERR_INVALID_PRIORITY', ok, { priority: 9 }],
    ['SSE_ERR_INVALID_RETRY', { ...ok, retry: 0 }],
    ['SSE_ERR_INVALID_RETRY', { ...ok, retry: 99 }],
    ['SSE_ERR_INVALID_RETRY', { ...ok, retry: 3_600_001 }],
    ['SSE_ERR_INVALID_RETRY', { ...ok, retry: 1000.5 }],
    ['SSE_ERR_INVALID_RETRY', { ...ok, retry: '1000' }],
    ['SSE_ERR_INVALID_RETRY', ok, { retry: NaN }],
    ['SSE_ERR_INVALID_DATA', { event: 'x' }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: undefined }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: () => {} }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: Symbol('s') }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: Promise.resolve(1) }],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: 'r', data: Promise.resolve(1) } }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: 1n }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: cyclic }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: { toJSON () { throw new Error('no') } } }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: 'a\ud800' }],
    ['SSE_ERR_EVENT_TOO_LARGE', { event: 'x', data: 'x'.repeat(1000) }],
    ['SSE_ERR_EVENT_TOO_LARGE', { event: 'x', data: 'é'.repeat(501) }, {}, /1003 bytes, maxEventBytes is 1000/],
    ['SSE_ERR_EVENT_TOO_LARGE', { event: 'x', data: { text: 'x'.repeat(990) } }],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: { title: 'a' } }, {}, /"notification" is invalid at \/message: /],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: { title: 'a', message: 'b', level: 'fatal' } }, {}, /\/level: Expected one of "info", "success", "warning", "error"$/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: { title: 'a', message: 'b', extra: 1 } }, {}, /\/extra/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: { title: 'a', message: 'b', actions: ['x'] } }, {}, /\/actions\/0/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: 'text' }],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { data: 1 } }, {}, /\/resource/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: '', data: 1 } }, {}, /\/resource/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: 'a' } }, {}, /\/data/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: 'a', data: undefined } }, {}, /\/data/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: 'a', data: () => {} } }, {}, /\/data/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: null }],
    ...(['userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds'] as const).flatMap((list): Case[] => [
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: undefined }, new RegExp(list)],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: null }],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: 'ada' }],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: [7] }],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: [''] }],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: ['ada', undefined] }],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: new Set(['ada']) }]
    ]),
    ['SSE_ERR_INVALID_TARGET', ok, { userId: ['ada'] }, /unknown property "userId"/],
    ['SSE_ERR_INVALID_TARGET', ok, { users: ['ada'] }],
    ['SSE_ERR_INVALID_TARGET', ok, { subscriptions: ['a'] }],
    ['SSE_ERR_INVALID_TARGET', ok, { filter: undefined }],
    ['SSE_ERR_INVALID_TARGET', ok, { filter: true }],
    ['SSE_ERR_INVALID_TARGET', ok, { ephemeral: 1 }],
    ['SSE_ERR_INVALID_TARGET', ok, { local: 'yes' }],
    ['SSE_ERR_INVALID_TARGET', ok, null],
    ['SSE_ERR_INVALID_TARGET', ok, 'ada'],
    // All of these have nothing of their own that names anybody.
    ['SSE_ERR_INVALID_TARGET', ok, Promise.resolve({ userIds: ['ada'] })],
    ['SSE_ERR_INVALID_TARGET', ok, []],
    ['SSE_ERR_INVALID_TARGET', ok, new Map([['userIds', ['ada']]])],
    ['SSE_ERR_INVALID_TARGET', ok, Object.create({ userIds: ['ada'] })],
    ['SSE_ERR_INVALID_TARGET', ok, new (class { get userIds () { return ['ada'] } })()],
    ['SSE_ERR_INVALID_TOPIC', ok, { subscriptionIds: ['a:*'] }, /wildcards/],
    ['SSE_ERR_INVALID_TOPIC', ok, { subscriptionIds: ['a', 'b::c'] }],
    ['SSE_ERR_INVALID_TOPIC', ok, { subscriptionIds: ['a b'] }]
  ]
  const typed: Case[] = [
    ['SSE_ERR_UNKNOWN_EVENT', { event: 'caht', data: { text: 'a', tags: [] } }, {}, /"caht"/],
    ['SSE_ERR_UNKNOWN_EVENT', { data: 'no name' }, {}, /"message"/],
    ['SSE_ERR_UNKNOWN_EVENT', { event: 'constructor', data: {} }],
    ['SSE_ERR_UNKNOWN_RESOURCE', { event: 'data', data: { resource: 'order', data: { id: 1 } } }, {}, /"order"/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: 'orders', data: { id: 1.5 } } }, {}, /"orders" is invalid at \/id: /],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'chat', data: { text: 'a', tags: [1, 'two'] } }, {}, /"chat" is invalid at \/tags\/1: /],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'chat', data: { text: 'far too long', tags: [] } }, {}, /\/text/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'chat', data: { text: 'a', tags: [], more: 1 } }, {}, /\/more/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'chat', data: null }],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: { title: 1, message: 'b' } }, {}, /\/title/]
  ]
  for (const [name, cases, options, good] of [
    ['without a catalogue', plain, { maxEventBytes: 1000 }, { event: 'x', data: 'x'.repeat(999) }],
    ['with a catalogue', typed, { events: catalogue }, { event: 'chat', data: { text: 'a', tags: [1] } }]
  ] as [string, Case[], SSEOptions, EventInput][]) {
    await t.test(name, async t => {
      const { app, join } = await serve(t, options)
      const { client, connection } = await join('ada', ['a'])
      const start = client.lastEventId
      for (const [code, event, options = {}, message] of cases) {
        await t.rejects(app.sse.broadcastEvent(event as EventInput, options as object), { code, ...(message !== undefined && { message }) }, code)
        if (code !== 'SSE_ERR_INVALID_TARGET' && Object.keys(options as object).length === 0) t.throws(() => connection.sendEvent(event as EventInput), { code }, `${code} for one connection`)
      }
      const { id, delivered } = await app.sse.broadcastEvent(good)
      t.equal(delivered, 1)
      await client.waitFor(good.event!)
      t.equal(client.events.length, 1, 'nothing was sent')
      t.equal(id, start.replace(/\.0$/, '.1'), 'nothing was logged')
      t.equal(client.lastEventId, id)
      t.match(app.sse.stats(), { messages: 1, delivered: 1 })
    })
  }

  await t.test('lists left out of the short forms', async t => {
    const { app, join } = await serve(t)
    const { client } = await join('ada', ['a'])
    await t.rejects(app.sse.broadcastToUsers(ok, undefined as never), { code: 'SSE_ERR_INVALID_TARGET' })
    await t.rejects(app.sse.broadcastToSubscriptions(ok, undefined as never), { code: 'SSE_ERR_INVALID_TARGET' })
    await t.rejects(app.sse.broadcastToUsers(ok, ['ada'], { subscriptionIds: undefined } as never), { code: 'SSE_ERR_INVALID_TARGET' })
    await t.rejects(app.sse.broadcastData('a', undefined), { code: 'SSE_ERR_INVALID_PAYLOAD' })
    await t.rejects(app.sse.broadcastEvent(undefined as never), { code: /^SSE_ERR_/ })
    t.strictSame(await app.sse.broadcastToUsers(ok, []), { id: client.lastEventId.replace(/\.0$/, '.1'), delivered: 0 }, 'nobody is nobody')
    await settleUnlogged({ app }, client)
    t.strictSame(seen(client), [])
  })
})

t.test('with a catalogue what fits arrives, and built-in events too', async t => {
  const service = await serve(t, { events: catalogue })
  const { client } = await service.join()
  await service.app.sse.broadcastEvent({ event: 'chat', data: { text: 'a', tags: [1, 2] } })
  await service.app.sse.broadcastData('orders', { id: 7, more: true })
  await service.app.sse.broadcastNotification({ title: 'a', message: 'b' })
  await client.waitFor('notification')
  t.strictSame(client.applicationEvents.map(({ event }) => event), ['chat', 'data', 'notification'])
})

t.test('an event published from inside a filter or a signal listener comes after, for everyone', async t => {
  const service = await serve(t)
  const { app, join } = service
  const clients: SSEClient[] = []
  for (let i = 0; i < 5; i++) clients.push((await join(`user-${i}`)).client)
  const inner: Promise<unknown>[] = []
  const outer = await app.sse.broadcastEvent({ event: 'outer', data: 1 }, {
    filter: ({ userId }) => {
      if (userId === 'user-2') {
        inner.push(app.sse.broadcastEvent({ event: 'inner', data: 1 }, { filter: () => true }))
        inner.push(app.sse.broadcastEvent({ event: 'local', data: 1 }, { local: true, userIds: ['user-4'] }))
      }
      return true
    }
  })
  t.equal(outer.delivered, 5)
  t.match(await Promise.all(inner), [{ delivered: 5 }, { id: null, delivered: 1 }])
  await settleUnlogged(service, ...clients)
  for (const [i, client] of clients.entries()) t.strictSame(seen(client), i === 4 ? ['outer', 'inner', 'local'] : ['outer', 'inner'], `client ${i}`)

  const leaving = await join('leaving')
  leaving.connection.signal.addEventListener('abort', () => {
    t.equal(leaving.connection.signal.reason.closeReason, 'client')
    inner.push(app.sse.broadcastEvent({ event: 'left', data: 'leaving' }))
  })
  leaving.client.reset()
  for (let i = 0; inner.length < 3; i++) {
    await app.sse.broadcastEvent({ event: 'going-on', data: i })
    await turns(1)
    if (i > 10_000) throw new Error('The stream has not ended')
  }
  t.match(await inner[2], { delivered: 5 })
  await settleUnlogged(service, ...clients)
  const sequence = (client: SSEClient) => client.applicationEvents.filter(({ id }) => id !== null).map(({ event, id }) => `${id} ${event}`)
  for (const client of clients) t.strictSame(sequence(client), sequence(clients[0]!))
  const ids = sequence(clients[0]!).map(line => parseInt(line.split(' ')[0]!.split('.')[1]!, 36))
  t.strictSame(ids, ids.map((_, i) => i + 1), 'in the order of the log')
  t.equal(clients[0]!.named('left').length, 1)
})

t.test('what filters publish, three deep, comes in the order of the log', async t => {
  const service = await serve(t)
  const { client } = await service.join()
  const inner: Promise<unknown>[] = []
  const publish = (event: string, then: readonly (() => void)[] = []): void => {
    inner.push(service.app.sse.broadcastEvent({ event, data: 1 }, {
      filter: () => {
        for (const next of then) next()
        return true
      }
    }))
  }
  publish('a', [() => publish('b', [() => publish('d', [() => publish('f')]), () => publish('e')]), () => publish('c')])
  await until(() => inner.length === 6)
  await Promise.all(inner)
  await settleUnlogged(service, client)
  t.strictSame(seen(client), ['a', 'b', 'c', 'd', 'e', 'f'])
  t.strictSame(client.applicationEvents.filter(({ id }) => id !== null).map(({ id }) => id!.split('.')[1]), ['1', '2', '3', '4', '5', '6'])
})

// --- In whose context the application's code is called ---

t.test('a filter runs in its publisher\'s AsyncLocalStorage context, live and at replay', async t => {
  const context = new AsyncLocalStorage<string>()
  const service = await serve(t, {}, {}, app => {
    app.addHook('onRequest', (request, _reply, done) => context.run((request.query as { user: string }).user, done))
  })
  const { app, join } = service
  const acme = await join('acme')
  const evil = await join('evil')
  const start = acme.client.lastEventId
  const filter = ({ userId }: { userId: string | null }) => userId === context.getStore()
  for (const tenant of ['acme', 'evil']) {
    await context.run(tenant, async () => {
      for (const options of [{}, { ephemeral: true }, { local: true }]) await app.sse.broadcastEvent({ event: tenant, data: 1 }, { filter, ...options })
      // From inside a delivery of another's.
      const nested: Promise<unknown>[] = []
      await context.run('other', () => app.sse.broadcastEvent({ event: 'other', data: 1 }, {
        filter: () => {
          if (nested.length === 0) nested.push(context.run(tenant, () => app.sse.broadcastEvent({ event: tenant, data: 2 }, { filter })))
          return context.getStore() !== 'other'
        }
      }))
      await Promise.all(nested)
    })
  }
  await settleUnlogged(service, acme.client, evil.client)
  t.strictSame([seen(acme.client), seen(evil.client)], [new Array(4).fill('acme'), new Array(4).fill('evil')])
  for (const user of ['evil', 'acme']) {
    const back = await join(user, [], { cursor: start })
    await settleUnlogged(service, back.client)
    t.strictSame(seen(back.client), [user, user], 'the logged ones, to their tenant')
  }
})

t.test('authorizeTopic runs in no context, and authorizeSubscription in that of the request, or in none', async t => {
  const context = new AsyncLocalStorage<string>()
  const topics: unknown[] = []
  const subscriptions: unknown[] = []
  const service = await serve(t, {
    authorizeTopic: () => {
      topics.push(context.getStore())
      return true
    },
    authorizeSubscription: ({ subscriptionId }) => {
      subscriptions.push([subscriptionId, context.getStore()])
      return true
    }
  }, {}, app => {
    app.addHook('onRequest', (_request, _reply, done) => context.run('request', done))
  })
  const joined = await service.join('ada', ['room:*'])
  const { client, connection } = joined
  const start = client.lastEventId
  const asked = (what: string): void => {
    t.ok(topics.length > 0 && topics.every(store => store === undefined), `${what}: ${topics}`)
    topics.length = 0
  }
  await context.run('application', async () => {
    await service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds: ['room:1'], filter: () => context.getStore() === 'application' })
    asked('a delivery')
    connection.hasSubscription('room:1')
    asked('hasSubscription')
    await block(joined)
    await service.app.sse.broadcastEvent({ event: 'x', data: 2 }, { subscriptionIds: ['room:1'] })
    asked('a delivery')
    await service.app.sse.reauthorize('ada')
    asked('what waits')
    await connection.addSubscription('a')
    await service.app.sse.addSubscription(connection.clientId, 'b')
  })
  client.resume()
  await settleUnlogged(service, client)
  t.strictSame(client.json('x'), [1, 2])
  const back = await service.join('ada', ['room:*'], { cursor: start })
  await settleUnlogged(service, back.client)
  t.strictSame(back.client.json('x'), [1, 2])
  asked('a replay')
  t.strictSame(subscriptions, [['room:*', 'request'], ['room:*', undefined], ['a', undefined], ['b', undefined], ['room:*', 'request']])
})

t.test('what is written later is written in no context', async t => {
  const context = new AsyncLocalStorage<string>()
  const manager = new SSEManager({ keepAliveIntervalMs: 20 })
  t.teardown(() => manager.close())
  const writes: [what: string, store: unknown][] = []
  const server = createServer((request, response) => {
    const { write } = response
    response.write = function (this: unknown, ...args: [string | Buffer]) {
      writes.push([String(args[0]), context.getStore()])
      return Reflect.apply(write, response, args)
    } as typeof write
    // The first request opens the log, and so begins all that goes on by itself.
    context.run('request', () => manager.createConnection({ request, response }))
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  t.teardown(() => { server.close() })
  const client = await SSEClient.open(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  t.teardown(() => client.close())
  const [connection] = manager.connections()
  context.run('application', () => connection!.sendEvent({ event: 'x', data: 1 }))
  await client.waitFor('x')
  await context.run('application', () => manager.broadcastEvent({ event: 'y', data: 1 }))
  await client.waitFor('y')
  await until(() => client.blocks.some(({ comment }) => comment === 'keep-alive'))
  t.match(writes.shift(), [/stream/, 'request'])
  for (const what of ['event: x', 'event: y', 'keep-alive']) t.ok(writes.some(([text]) => text.includes(what)), what)
  t.strictSame(writes.filter(([, store]) => store !== undefined), [])
})

t.test('a filter that closes another connection leaves it its exact place', async t => {
  const service = await serve(t)
  const { app, join } = service
  for (const closes of ['first', 'second', 'third']) {
    const [first, , third] = [await join('first'), await join('second'), await join('third')]
    const { connection, client } = closes === 'first' ? first : closes === 'third' ? third : { connection: app.sse.getConnectionsByUser('second')[0]!, client: null }
    await app.sse.broadcastEvent({ event: 'x', data: closes }, {
      filter: ({ userId }) => {
        if (userId === 'second') connection.close()
        return true
      }
    })
    await until(() => app.sse.connectionCount === 2)
    if (client !== null) {
      const again = await join(closes, [], { cursor: client.lastEventId })
      await settleUnlogged(service, again.client)
      t.strictSame([...seen(client), ...seen(again.client)], ['x'], `${closes}: once, before or after the return`)
    }
    for (const connection of app.sse.connections()) connection.close()
    await until(() => app.sse.connectionCount === 0)
  }
})

t.test('what the application does to its objects afterwards changes nothing', async t => {
  const service = await serve(t)
  const { app, join } = service
  const ada = await join('ada', ['a'])
  const grace = await join('grace', ['b'])
  const start = ada.client.lastEventId
  const data = { text: 'before', nested: [1] }
  const event = { event: 'x', data, priority: EventPriority.NORMAL as EventPriority }
  const options = { userIds: ['ada'], subscriptionIds: ['a'], clientIds: [ada.connection.clientId, grace.connection.clientId], exceptClientIds: ['nobody'] }
  const tamper = () => {
    data.text = 'after'
    data.nested.push(2)
    event.event = 'y'
    options.userIds.push('grace')
    options.subscriptionIds.push('b')
    options.exceptClientIds.push(ada.connection.clientId)
  }
  const delivery = app.sse.broadcastEvent(event, options)
  tamper()
  t.match(await delivery, { delivered: 1 })
  const users = ['ada']
  const short = app.sse.broadcastToUsers({ event: 'short', data }, users)
  users.push('grace')
  users.shift()
  t.match(await short, { delivered: 1 })
  tamper()
  await settleUnlogged(service, ada.client, grace.client)
  t.strictSame(ada.client.json('x'), [{ text: 'before', nested: [1] }])
  t.strictSame(seen(grace.client), [])

  const again = { ada: await join('ada', ['a'], { cursor: start }), grace: await join('grace', ['a', 'b'], { cursor: start }) }
  await settleUnlogged(service, again.ada.client, again.grace.client)
  t.strictSame(seen(again.ada.client), ['short'], 'an event for a connection that is gone is for nobody')
  t.strictSame(again.ada.client.json('short'), [{ text: 'after', nested: [1, 2] }])
  t.strictSame(seen(again.grace.client), [])
})

t.test('a closed manager refuses', async t => {
  const { app } = await serve(t)
  await app.close()
  await t.rejects(app.sse.broadcastEvent({ event: 'x', data: 1 }), { code: 'SSE_ERR_CLOSED', statusCode: 503 })
  await t.rejects(app.sse.broadcastEvent({ event: 'x', data: 1 }, { local: true }), { code: 'SSE_ERR_CLOSED' })
  t.equal(app.sse.connectionCount, 0)
})
