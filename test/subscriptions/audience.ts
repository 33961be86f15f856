import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { memoryBroker, SSEManager, type BroadcastOptions, type Broker } from '../../lib/index.js'
import { isApplicationEvent, openURL, serve, settleUnlogged } from '../helpers/app.js'
import { turns, until } from '../helpers/wait.js'
import type { TestStream } from '../../lib/testing/index.js'

// What a broadcast is, who gets it and what it looks like on the wire; seen by clients on real connections.

/** Names of the events a client has had, in order. */
const seen = (stream: TestStream) => stream.events.filter(isApplicationEvent).filter(({ event }) => event !== 'settled' && event !== 'filler').map(({ event }) => event)

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
  await settleUnlogged(service, ...Object.values(all).map(({ stream }) => stream))
  for (const [name, { stream }] of Object.entries(all)) t.strictSame(seen(stream), expected.get(name), name)
  t.strictSame(own.events.map(({ event }) => event), ['begin'], 'a stream of its own gets no broadcasts')

  await t.test('the short forms', async t => {
    const event = { event: 'short', data: 1 }
    t.match(await app.sse.broadcastToUsers(event, ['ada']), { delivered: 2 })
    t.match(await app.sse.broadcastToUsers(event, ['ada'], { subscriptionIds: ['chat:general'] }), { delivered: 1 })
    t.match(await app.sse.broadcastToSubscriptions(event, ['chat:random']), { delivered: 2 })
    t.match(await app.sse.broadcastToSubscriptions(event, ['chat:random'], { userIds: ['grace'], ephemeral: true }), { id: null, delivered: 1 })
    t.match(await app.sse.broadcastData('r', 1, { userIds: ['grace'] }), { delivered: 1 })
    t.match(await app.sse.broadcastNotification({ title: 'a', message: 'b' }, { clientIds: [nobody.connection.clientId] }), { delivered: 1 })
    await settleUnlogged(service, grace.stream, nobody.stream)
    t.strictSame(seen(grace.stream).slice(-3), ['short', 'short', 'data'])
    t.strictSame(seen(nobody.stream).at(-1), 'notification')
  })
})

t.test('a filter that throws, or is async, leaves out that connection only, and is logged', async t => {
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
  await service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { userIds: ['ada'], filter: (async () => true) as never })
  await settleUnlogged(service, ada.stream, grace.stream)
  t.strictSame([seen(ada.stream), seen(grace.stream)], [[], ['x']])
  t.equal(lines.length, 2)
  t.match(JSON.parse(lines[0]!), { msg: 'A broadcast filter threw; the connection does not receive the event', err: { message: 'no such room' }, clientId: ada.connection.clientId })
  t.match(JSON.parse(lines[1]!), { msg: 'A broadcast filter returned a promise; the connection does not receive the event', err: { message: 'Target filter must return true or false, not a promise' } })
})

t.test('a filter that throws what has no text, or answers with a promise, stops nobody', async t => {
  const service = await serve(t)
  const ada = await service.join('ada')
  const filters = [() => { throw Object.create(null) }, async () => true, async () => { throw new Error('late') }, () => ({}) as boolean]
  for (const filter of filters) t.equal((await service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { filter: filter as () => boolean })).delivered, 0)
  t.equal((await service.app.sse.broadcastEvent({ event: 'y', data: 1 })).delivered, 1)
  await settleUnlogged(service, ada.stream)
  t.strictSame(seen(ada.stream), ['y'])

  // Without a logger the application is told by a warning, whatever was thrown.
  const warned = once(process, 'warning')
  const alone = new SSEManager()
  t.teardown(() => alone.close())
  const server = createServer((request, response) => { alone.createConnection({ request, response }) })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  t.teardown(() => { server.close() })
  const stream = await openURL(t, `http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  await alone.broadcastEvent({ event: 'x', data: 1 }, { filter: filters[0] as () => boolean })
  t.match((await warned)[0], { message: /filter threw/ })
  await alone.broadcastEvent({ event: 'y', data: 1 })
  await stream.next('y')
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
  const { stream } = await service.join('ada')
  const filter = () => true
  await t.rejects(service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { filter }), { code: 'SSE_ERR_FILTER_NOT_SHARED' })
  await t.rejects(service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { filter, ephemeral: true }), { code: 'SSE_ERR_FILTER_NOT_SHARED' })
  t.strictSame(await service.app.sse.broadcastEvent({ event: 'y', data: 1 }, { filter, local: true }), { id: null, delivered: 1 })
  await settleUnlogged(service, stream)
  t.strictSame(seen(stream), ['y'])
  t.equal(memory.position, 0)
})

t.test('an event published from inside a filter or a signal listener comes after, for everyone', async t => {
  const service = await serve(t)
  const { app, join } = service
  const clients: TestStream[] = []
  for (let i = 0; i < 5; i++) clients.push((await join(`user-${i}`)).stream)
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
  for (const [i, stream] of clients.entries()) t.strictSame(seen(stream), i === 4 ? ['outer', 'inner', 'local'] : ['outer', 'inner'], `client ${i}`)

  const leaving = await join('leaving')
  leaving.connection.signal.addEventListener('abort', () => {
    t.equal(leaving.connection.signal.reason.closeReason, 'client')
    inner.push(app.sse.broadcastEvent({ event: 'left', data: 'leaving' }))
  })
  await leaving.stream.cut()
  for (let i = 0; inner.length < 3; i++) {
    await app.sse.broadcastEvent({ event: 'going-on', data: i })
    await turns(1)
    if (i > 10_000) throw new Error('The stream has not ended')
  }
  t.match(await inner[2], { delivered: 5 })
  await settleUnlogged(service, ...clients)
  const sequence = (stream: TestStream) => stream.events.filter(isApplicationEvent).filter(({ id }) => id !== null).map(({ event, id }) => `${id} ${event}`)
  for (const stream of clients) t.strictSame(sequence(stream), sequence(clients[0]!))
  const ids = sequence(clients[0]!).map(line => parseInt(line.split(' ')[0]!.split('.')[1]!, 36))
  t.strictSame(ids, ids.map((_, i) => i + 1), 'in the order of the log')
  t.equal(clients[0]!.named('left').length, 1)
})

t.test('what filters publish, three deep, comes in the order of the log', async t => {
  const service = await serve(t)
  const { stream } = await service.join()
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
  await settleUnlogged(service, stream)
  t.strictSame(seen(stream), ['a', 'b', 'c', 'd', 'e', 'f'])
  t.strictSame(stream.events.filter(isApplicationEvent).filter(({ id }) => id !== null).map(({ id }) => id!.split('.')[1]), ['1', '2', '3', '4', '5', '6'])
})

t.test('a filter that closes another connection leaves it its exact place', async t => {
  const service = await serve(t)
  const { app, join } = service
  for (const closes of ['first', 'second', 'third']) {
    const [first, , third] = [await join('first'), await join('second'), await join('third')]
    const { connection, stream } = closes === 'first' ? first : closes === 'third' ? third : { connection: app.sse.getConnectionsByUser('second')[0]!, stream: null }
    await app.sse.broadcastEvent({ event: 'x', data: closes }, {
      filter: ({ userId }) => {
        if (userId === 'second') connection.close()
        return true
      }
    })
    await until(() => app.sse.connectionCount === 2)
    if (stream !== null) {
      const again = await join(closes, [], { cursor: stream.lastEventId })
      await settleUnlogged(service, again.stream)
      t.strictSame([...seen(stream), ...seen(again.stream)], ['x'], `${closes}: once, before or after the return`)
    }
    for (const connection of app.sse.connections()) connection.close()
    await until(() => app.sse.connectionCount === 0)
  }
})
