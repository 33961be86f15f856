import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { BrokerUnavailable } from '../../lib/errors.js'
import { createPublisher, SSEManager } from '../../lib/index.js'
import { testLog } from '../../lib/testing/index.js'
import { block, openURL, serve, settle } from '../helpers/app.js'
import { Reports } from '../helpers/diagnostics.js'
import { turns, until } from '../helpers/wait.js'

// Each channel is reached by what it reports, on real connections.

const SECRETS = ['ada-lovelace', 'orders:secret', 'payload-of-the-event', '127.0.0.1']

t.test('a stream from its first byte to its end', async t => {
  const service = await serve(t)
  const { app, join, open } = service
  const { nodeId } = app.sse
  const reports = new Reports(t, () => nodeId)
  const ada = await join('ada-lovelace', ['orders:secret'])
  const { clientId } = ada.connection
  await app.sse.broadcastEvent({ event: 'x', data: 'payload-of-the-event' }, { subscriptionIds: ['orders:secret'] })
  await app.sse.broadcastEvent({ event: 'y', data: 'payload-of-the-event', priority: 2 }, { userIds: ['ada-lovelace'], ephemeral: true })
  await ada.stream.until(() => ada.stream.named('y').length > 0)
  t.match(reports.of('open'), [{ nodeId, clientId, managed: true, durationMs: Number }])
  t.strictSame(reports.of('resume'), [{ nodeId, clientId, result: 'fresh' }])
  t.match(reports.of('publish'), [
    { nodeId, event: 'x', ephemeral: false, priority: 1, delivered: 1, durationMs: Number, code: null },
    { nodeId, event: 'y', ephemeral: true, priority: 2, delivered: 1, durationMs: Number, code: null }
  ])
  t.ok(reports.of('publish').every(({ durationMs }) => durationMs > 0))
  t.ok(reports.of('deliver').length >= 1 && reports.of('deliver').every(({ connections, durationMs }) => connections === 1 && durationMs > 0))

  await app.sse.closeConnection(clientId, 'kicked')
  await until(() => reports.of('close').length > 0)
  t.match(reports.of('close'), [{ nodeId, clientId, managed: true, reason: 'kicked', durationMs: Number, sentEvents: 2, droppedEvents: 0 }])

  t.equal((await open('/sse', { headers: { origin: 'https://evil.example' } })).status, 403)
  t.equal((await open('/sse', { headers: { accept: 'image/png' } })).status, 406)
  t.strictSame(reports.of('refuse'), [{ nodeId, code: 'SSE_ERR_ORIGIN_FORBIDDEN' }, { nodeId, code: 'SSE_ERR_NOT_ACCEPTABLE' }], 'each once, although several functions pass the error on')
  t.strictSame(app.sse.stats().refused, { SSE_ERR_ORIGIN_FORBIDDEN: 1, SSE_ERR_NOT_ACCEPTABLE: 1 })
  const written = JSON.stringify(reports.all)
  t.same(SECRETS.filter(secret => written.includes(secret)), [], 'no user, topic, address or data')
})

t.test('how clients begin: anew, where they were, or with a gap', async t => {
  const service = await serve(t, { history: { maxEvents: 5 } })
  const { app, join } = service
  const reports = new Reports(t, () => app.sse.nodeId)
  const first = await join()
  await settle(service, first.stream)
  const cursor = first.stream.lastEventId!
  const nothing = await join(null, [], { cursor })
  for (let i = 0; i < 3; i++) await app.sse.broadcastEvent({ event: 'x', data: i })
  const missed = await join(null, [], { cursor })
  await missed.stream.collect(3, 'x')
  await until(() => reports.of('replay').length === 1)
  for (let i = 0; i < 9; i++) await app.sse.broadcastEvent({ event: 'x', data: i })
  const late = await join(null, [], { cursor })
  const wrong = await join(null, [], { cursor: 'not a cursor' })
  for (const { stream } of [late, wrong]) await stream.until(() => stream.named('sse:gap').length > 0)
  t.strictSame(reports.of('resume').map(({ clientId, result }) => [clientId, result]), ([[first, 'fresh'], [nothing, 'resumed'], [missed, 'resumed'], [late, 'gap'], [wrong, 'gap']] as const).map(([{ connection }, result]) => [connection.clientId, result]))
  t.strictSame(reports.of('gap').map(({ clientId, reason }) => [clientId, reason]), [[late.connection.clientId, 'trimmed'], [wrong.connection.clientId, 'malformed']])
  t.match(reports.of('replay'), [{ clientId: missed.connection.clientId, events: 3, durationMs: Number, result: 'complete' }])
  t.ok(reports.of('replay')[0]!.bytes > 20)
  t.match(app.sse.stats(), { opened: 5, replayed: 3, resumes: { fresh: 1, resumed: 2, gap: 2 }, gaps: { trimmed: 1, malformed: 1, epoch: 0 } })
})

t.test('a replay that ends with the stream, or with a gap', async t => {
  const large = 'x'.repeat(64 * 1024)
  const service = await serve(t, { history: { maxEvents: 300, maxBytes: 64 << 20 }, stallTimeoutMs: 0 })
  const { app, join } = service
  const reports = new Reports(t, () => app.sse.nodeId)
  const first = await join()
  await settle(service, first.stream)
  const cursor = first.stream.lastEventId!
  await first.stream.close()
  // More than the buffers of a socket.
  for (let i = 0; i < 250; i++) await app.sse.broadcastEvent({ event: 'x', data: large })
  const slow = async () => {
    const { replayed } = app.sse.stats()
    const client = await join(null, [], { cursor })
    client.stream.freeze()
    await until(() => app.sse.stats().replayed > replayed && client.connection.stats().queuedBytes > 0)
    return client
  }
  const closed = await slow()
  await app.sse.closeConnection(closed.connection.clientId)
  t.match(reports.of('replay'), [{ clientId: closed.connection.clientId, result: 'closed' }])
  await closed.stream.close()
  const trimmed = await slow()
  for (let i = 0; i < 299; i++) await app.sse.broadcastEvent({ event: 'y', data: i })
  trimmed.stream.thaw()
  await trimmed.stream.until(() => trimmed.stream.named('sse:gap').length > 0)
  const [, replay] = reports.of('replay')
  t.match(replay, { clientId: trimmed.connection.clientId, result: 'gap' })
  t.ok(replay!.events > 0 && replay!.events < 250 && replay!.bytes >= replay!.events * large.length)
  t.match(reports.of('resume').at(-1), { result: 'gap' })
})

t.test('a replay whose last page is still unsent when the stream ends is not complete', async t => {
  // More than the buffers of a socket.
  const bytes = 32 << 20
  const { app, join } = await serve(t, { maxEventBytes: 2 * bytes, history: { maxBytes: 4 * bytes }, maxQueuedBytes: 4 * bytes, stallTimeoutMs: 0 })
  const reports = new Reports(t, () => app.sse.nodeId)
  const cursor = app.sse.position()
  await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(bytes) })
  const slow = await join(null, [], { cursor })
  slow.stream.freeze()
  await until(() => app.sse.stats().replayed === 1 && slow.connection.stats().queuedBytes > 0)
  t.equal(slow.connection.stats().lagging, false, 'the log was read to its end')
  await app.sse.closeConnection(slow.connection.clientId)
  t.match(reports.of('replay'), [{ clientId: slow.connection.clientId, events: 1, result: 'closed' }])
})

t.test('the bytes of a replay that a gap has ended do not count for the next one', async t => {
  const log = testLog()
  const { app, join } = await serve(t, { broker: log.broker(), outboxBytes: 4_096, stallTimeoutMs: 0 })
  const reports = new Reports(t, () => app.sse.nodeId, ['replay'])
  const cursor = app.sse.position()
  for (let i = 0; i < 100; i++) await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(64 * 1024) })
  const { stream, connection } = await join(null, [], { cursor })
  stream.freeze()
  await until(() => app.sse.stats().replayed > 0 && connection.stats().queuedBytes > 0)
  log.wipe()
  for (let i = 0; i < 20; i++) await app.sse.broadcastEvent({ event: 'y', data: 'y'.repeat(1_000) })
  t.equal(connection.stats().lagging, true)
  stream.thaw()
  await stream.collect(20, 'y')
  await until(() => reports.of('replay').length === 2)
  t.match(reports.of('replay'), [{ result: 'gap' }, { result: 'complete' }])
  const [first, second] = reports.of('replay')
  t.ok(first!.bytes > 64 * 1024)
  t.ok(second!.bytes < second!.events * 1_100, `${second!.bytes} bytes of ${second!.events} events`)
})

t.test('a slow client whose queue is full', async t => {
  const { app, join } = await serve(t, { outboxBytes: 4_096, stallTimeoutMs: 0 })
  const reports = new Reports(t, () => app.sse.nodeId)
  const ada = await join('ada')
  await block(ada)
  for (let i = 0; i < 20; i++) await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(1_000) })
  t.strictSame(reports.of('lag'), [{ nodeId: app.sse.nodeId, clientId: ada.connection.clientId }])
  ada.stream.thaw()
  await ada.stream.collect(20, 'x')
  await until(() => reports.of('replay').length > 0)
  t.match(reports.of('replay'), [{ result: 'complete' }])
})

t.test('ephemeral events that are dropped, by the bound that was reached', async t => {
  for (const [reason, options] of [['outbox', { outboxBytes: 4_096 }], ['memory', { maxQueuedBytes: 110_000 }]] as const) {
    await t.test(reason, async t => {
      const { app, join } = await serve(t, { ...options, stallTimeoutMs: 0 })
      const reports = new Reports(t, () => app.sse.nodeId, ['drop'])
      const ada = await join('ada')
      await block(ada)
      for (let i = 0; i < 50; i++) await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(1_000) }, { ephemeral: true })
      const { dropped, droppedBy } = app.sse.stats()
      t.ok(dropped > 10)
      t.equal(dropped, ada.connection.stats().droppedEvents)
      t.strictSame(droppedBy, { outbox: 0, memory: 0, [reason]: dropped })
      t.strictSame(reports.of('drop'), new Array(dropped).fill({ nodeId: app.sse.nodeId, clientId: ada.connection.clientId, reason }))
    })
  }
})

t.test('a log that cannot be reached, and publishers', async t => {
  const log = testLog()
  const broker = log.broker()
  const { app } = await serve(t, { broker })
  const reports = new Reports(t, () => app.sse.nodeId)
  broker.fail()
  await t.rejects(app.sse.broadcastEvent({ event: 'x', data: 1 }), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
  await t.rejects(app.sse.broadcastEvent({ event: 'sse:x', data: 1 }), { code: 'SSE_ERR_INVALID_EVENT_NAME' })
  broker.restore()
  t.match(reports.of('publish'), [{ event: 'x', delivered: 0, code: 'SSE_ERR_BROKER_UNAVAILABLE' }], 'an invalid event is not one of the log')
  log.wipe()
  t.strictSame(reports.of('health').map(({ status }) => status), ['degraded', 'up'], 'a gap is no change')
  t.equal(app.sse.stats().published, 0)

  const publisher = createPublisher({ broker: log.broker() })
  t.teardown(() => publisher.close())
  const own = new Reports(t, () => null, ['publish'])
  await publisher.broadcastEvent({ event: 'z', data: 1 })
  t.match(own.of('publish'), [{ nodeId: null, event: 'z', delivered: 0, code: null }])
})

t.test('runs', async t => {
  const { app } = await serve(t)
  const reports = new Reports(t, () => app.sse.nodeId)
  const done = await app.sse.startRun('answer:secret', async function * () { yield 'a'; yield 'b' }, { ownerId: 'ada-lovelace' })
  await done.run.finished
  const failed = await app.sse.startRun('another', async function * () { yield 'a'; throw new Error('secret') }, { ownerId: null })
  await failed.run.finished
  const nodeId = app.sse.nodeId
  t.strictSame(reports.of('run'), [
    { nodeId, status: 'running', events: 0 },
    { nodeId, status: 'done', events: 2 },
    { nodeId, status: 'running', events: 0 },
    { nodeId, status: 'failed', reason: 'error', events: 1 }
  ])
  t.strictSame(app.sse.stats().runs, { running: 0, done: 1, failed: 1, stopped: 0, lost: 0 })
})

t.test('two managers in one process are told apart', async t => {
  const [one, other] = [await serve(t), await serve(t)]
  const reports = new Reports(t, () => other.app.sse.nodeId)
  await one.join('ada')
  const { connection } = await other.join('ada')
  t.strictSame(reports.of('open').map(({ clientId }) => clientId), [connection.clientId])
  t.strictSame([one.app.sse.stats().opened, other.app.sse.stats().opened], [1, 1])
})

t.test('requests that are refused together with one error count one by one', async t => {
  const log = testLog()
  const broker = log.broker()
  const manager = new SSEManager({ broker })
  let arrived = 0
  const server = createServer((request, response) => {
    arrived++
    manager.createConnection({ request, response }).catch(() => response.writeHead(503).end())
  })
  t.teardown(async () => {
    server.close()
    await manager.close()
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const requests: (() => void)[] = []
  // All requests wait for the log to open.
  broker.open = () => new Promise((_resolve, reject) => { requests.push(() => reject(new BrokerUnavailable('is down'))) })
  const answers = Array.from({ length: 5 }, () => openURL(t, url))
  await until(() => arrived === 5)
  await turns(3)
  requests[0]!()
  t.same((await Promise.all(answers)).map(({ status }) => status), [503, 503, 503, 503, 503])
  t.strictSame(manager.stats().refused, { SSE_ERR_BROKER_UNAVAILABLE: 5 })
})

t.test('topics that a client may not choose are refusals; a HEAD request has no gap', async t => {
  const { app, open } = await serve(t, { path: '/events' })
  t.equal((await open('/events?subscription=a')).status, 403)
  t.equal((await open('/events?subscriptions=a')).status, 400)
  t.strictSame(app.sse.stats().refused, { SSE_ERR_SUBSCRIPTION_FORBIDDEN: 1, SSE_ERR_INVALID_SUBSCRIPTION: 1 })
  const head = await app.inject({ method: 'HEAD', url: '/events', headers: { 'last-event-id': 'not a cursor' } })
  t.equal(head.statusCode, 200)
  t.match(app.sse.stats(), { closed: { head: 1 }, gaps: { malformed: 0 }, resumes: { gap: 0 } })
})
