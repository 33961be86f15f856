import t from 'tap'
import { createDataEvent, createNotificationEvent, EventPriority, type EventInput } from '../../lib/index.js'
import { block, isApplicationEvent, payloads, serve, settleUnlogged } from '../helpers/app.js'
import { turns, until } from '../helpers/wait.js'
import { blocksOf } from '../helpers/raw.js'
import type { TestStream } from '../../lib/testing/index.js'

// What a broadcast is, who gets it and what it looks like on the wire; seen by clients on real connections.

/** Names of the events a client has had, in order. */
const seen = (stream: TestStream) => stream.events.filter(isApplicationEvent).filter(({ event }) => event !== 'settled' && event !== 'filler').map(({ event }) => event)

t.test('the wire', async t => {
  const service = await serve(t)
  const { app, join } = service
  const { stream } = await join()
  const head = blocksOf(stream.text).map(({ text }) => text)
  const epoch = stream.lastEventId.split('.')[0]!
  t.strictSame(head, [': stream keep-alive=15000', 'retry: 3000', `id: ${epoch}.0`], 'a comment, the reconnection time and the place come at once')

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
  await settleUnlogged(service, stream)

  const blocks = blocksOf(stream.text).slice(head.length, -1)
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
  await settleUnlogged(service, ada.stream)
  for (const [event, sent] of Object.entries(arrived)) t.equal(ada.stream.named(event).length, sent ? 1 : 0, event)
  const stats = ada.connection.stats()
  t.equal(stats.droppedEvents, 4 - Object.values(arrived).filter(sent => sent).length)
  t.equal(stats.sentEvents, seen(ada.stream).length + 1)
})

t.test('a source is not slowed by an interval, and of what a key replaces nothing counts as sent', async t => {
  const service = await serve(t, { flush: { intervalMs: 10_000 } }, {}, app => {
    app.get('/source', (request, reply) => reply.sse((function * () { for (let i = 0; i < 500; i++) yield 'x'.repeat(1_000) })()))
  })
  const stream = await service.open('/source')
  await stream.next('sse:close')
  t.equal(stream.named('message').length, 500)

  const { join, app } = await serve(t)
  const ada = await join('ada')
  await Promise.all([1, 2, 3].map(data => app.sse.broadcastEvent({ event: 'x', data, key: 'k' })))
  await ada.stream.next('x')
  t.strictSame([ada.stream.named('x').length, ada.connection.stats().sentEvents], [1, 1])
})

t.test('sends to one connection have the same shapes, no id, and are not replayed', async t => {
  const service = await serve(t)
  const { stream, connection } = await service.join('ada')
  const other = await service.join('ada')
  t.equal(connection.sendData('welcome', { at: 1 }), true)
  t.equal(connection.sendNotification({ title: 'T', message: 'M' }), true)
  t.equal(connection.sendEvent({ event: 'own', data: 'text', retry: 1000 }), true)
  await settleUnlogged(service, stream, other.stream)
  t.strictSame(blocksOf(stream.text).filter(({ data, event }) => data !== null && !event.startsWith('sse:')).slice(0, 3).map(({ text }) => text.replace(/\{.*"title".*/, 'notification')), [
    'event: data\ndata: {"resource":"welcome","data":{"at":1}}',
    'event: notification\ndata: notification',
    'event: own\nretry: 1000\ndata: text'
  ])
  t.strictSame(payloads(stream, 'notification'), [{ title: 'T', message: 'M', level: 'info' }])
  t.strictSame(seen(other.stream), [])
  t.equal(connection.stats().sentEvents, 4)
  const again = await service.join('ada', [], { cursor: stream.lastEventId })
  await settleUnlogged(service, again.stream)
  t.strictSame(seen(again.stream), [])
  t.throws(() => connection.sendEvent({ event: 'own', data: 1, id: '5' } as EventInput), { code: 'SSE_ERR_INVALID_ID' })
  t.throws(() => connection.sendNotification({ title: 'T' } as never), { code: 'SSE_ERR_INVALID_PAYLOAD' })
  await stream.close()
  await until(() => !connection.isConnected)
  t.equal(connection.sendData('late', 1), false)
  t.equal(connection.sendEvent({ event: '', data: 1 }), false, 'it never throws once the stream has ended')
})

t.test('ephemeral and local events are not logged, so not replayed', async t => {
  const service = await serve(t)
  const { app, join } = service
  const { stream } = await join('ada')
  const start = stream.lastEventId
  t.strictSame(await app.sse.broadcastEvent({ event: 'a', data: 1 }, { ephemeral: true }), { id: null, delivered: 1 })
  t.strictSame(await app.sse.broadcastEvent({ event: 'b', data: 1 }, { local: true }), { id: null, delivered: 1 })
  t.strictSame(await app.sse.broadcastEvent({ event: 'c', data: 1 }, { local: true, ephemeral: true }), { id: null, delivered: 1 })
  await settleUnlogged(service, stream)
  t.strictSame(seen(stream), ['a', 'b', 'c'])
  t.equal(stream.lastEventId, start, 'the place has not moved')
  const { id } = await app.sse.broadcastEvent({ event: 'd', data: 1 })
  await stream.next('d')
  t.equal(stream.lastEventId, id)
  const again = await join('ada', [], { cursor: start })
  await again.stream.next('d')
  await settleUnlogged(service, again.stream)
  t.strictSame(seen(again.stream), ['d'])
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
  await settleUnlogged(service, ada.stream)
  t.strictSame(seen(ada.stream), ['low', 'critical', 'normal'], 'nothing waited, so nothing overtakes')

  await block(ada)
  await app.sse.broadcastEvent({ event: 'low', data: 2, priority: EventPriority.LOW })
  await app.sse.broadcastEvent({ event: 'plain', data: 2 })
  await app.sse.broadcastNotification({ title: 'first', message: 'high by default' })
  await app.sse.broadcastNotification({ title: 'second', message: 'told otherwise' }, { priority: EventPriority.CRITICAL })
  await app.sse.broadcastNotification({ title: 'third', message: 'told otherwise' }, { priority: EventPriority.LOW })
  await app.sse.broadcastEvent({ event: 'high', data: 2, priority: EventPriority.LOW }, { priority: EventPriority.HIGH })
  ada.connection.sendNotification({ title: 'fourth', message: 'high too' })
  ada.stream.thaw()
  await settleUnlogged(service, ada.stream)
  t.strictSame(seen(ada.stream).slice(3), ['notification', 'notification', 'high', 'notification', 'plain', 'low', 'notification'])
  t.strictSame(payloads(ada.stream, 'notification').map(({ title }) => title), ['second', 'first', 'fourth', 'third'])
})

t.test('a key replaces what is older and undelivered', async t => {
  const service = await serve(t)
  const { app, join } = service
  const ada = await join('ada', ['price:eth', 'price:btc'])
  const brisk = await join('ada', ['price:eth', 'price:btc'])
  const start = brisk.stream.lastEventId
  const price = (data: number, topic = 'price:btc', key = 'price') => app.sse.broadcastEvent({ event: topic, data, key }, { subscriptionIds: [topic] })
  const of = (stream: TestStream, event: string) => stream.named(event).map(({ data }) => Number(data))

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
    await settleUnlogged(service, brisk.stream)
    ada.stream.thaw()
    await settleUnlogged(service, ada.stream)
    t.strictSame(of(ada.stream, 'price:btc'), [20, 99], 'the newest, and another key')
    t.strictSame(of(ada.stream, 'price:eth'), [-20], 'the same key for another target is another key')
    t.strictSame(of(ada.stream, 'plain'), [5, 10, 15, 20], 'without a key nothing is replaced')
    t.equal(of(brisk.stream, 'price:btc').length, 21, 'a client that keeps up gets all')
    t.equal(ada.stream.lastEventId.includes('~'), false)
  })

  await t.test('within one turn', async t => {
    const from = of(brisk.stream, 'price:btc').length
    await Promise.all([price(101), price(102), price(103, 'price:btc', 'b'), price(104)])
    await settleUnlogged(service, brisk.stream)
    t.strictSame(of(brisk.stream, 'price:btc').slice(from), [103, 104])
  })

  await t.test('while catching up', async t => {
    const again = await join('ada', ['price:eth', 'price:btc'], { cursor: start })
    await settleUnlogged(service, again.stream)
    t.equal(of(again.stream, 'price:btc').at(-1), 104)
    t.equal(of(again.stream, 'plain').length, 4)
    const prices = of(again.stream, 'price:btc').filter(value => value !== 99 && value !== 103)
    t.strictSame(prices, [...prices].sort((a, b) => a - b), 'never an older one after a newer')
  })

  await t.test('an event for others does not take its place', async t => {
    await block(ada)
    const from = of(ada.stream, 'price:btc').length
    await app.sse.broadcastEvent({ event: 'price:btc', data: 201, key: 'k' })
    await app.sse.broadcastEvent({ event: 'price:btc', data: 202, key: 'k' }, { exceptClientIds: [brisk.connection.clientId] })
    await app.sse.broadcastEvent({ event: 'price:btc', data: 203, key: 'k' }, { filter: ({ clientId }) => clientId !== brisk.connection.clientId })
    await app.sse.broadcastEvent({ event: 'price:btc', data: 204, key: 'k' }, { filter: () => true })
    ada.stream.thaw()
    await settleUnlogged(service, ada.stream)
    t.strictSame(of(ada.stream, 'price:btc').slice(from), [201, 202, 203, 204], 'other targets, so nothing is replaced; with a filter nothing ever is')
  })
})

t.test('what the application does to its objects afterwards changes nothing', async t => {
  const service = await serve(t)
  const { app, join } = service
  const ada = await join('ada', ['a'])
  const grace = await join('grace', ['b'])
  const start = ada.stream.lastEventId
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
  await settleUnlogged(service, ada.stream, grace.stream)
  t.strictSame(payloads(ada.stream, 'x'), [{ text: 'before', nested: [1] }])
  t.strictSame(seen(grace.stream), [])

  const again = { ada: await join('ada', ['a'], { cursor: start }), grace: await join('grace', ['a', 'b'], { cursor: start }) }
  await settleUnlogged(service, again.ada.stream, again.grace.stream)
  t.strictSame(seen(again.ada.stream), ['short'], 'an event for a connection that is gone is for nobody')
  t.strictSame(payloads(again.ada.stream, 'short'), [{ text: 'after', nested: [1, 2] }])
  t.strictSame(seen(again.grace.stream), [])
})

t.test('a closed manager refuses', async t => {
  const { app } = await serve(t)
  await app.close()
  await t.rejects(app.sse.broadcastEvent({ event: 'x', data: 1 }), { code: 'SSE_ERR_CLOSED', statusCode: 503 })
  await t.rejects(app.sse.broadcastEvent({ event: 'x', data: 1 }, { local: true }), { code: 'SSE_ERR_CLOSED' })
  t.equal(app.sse.connectionCount, 0)
})
