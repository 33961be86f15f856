import t from 'tap'
import { EventPriority } from '../../lib/index.js'
import { testClock } from '../../lib/testing/index.js'
import { block, payloads, serve, type Service } from '../helpers/app.js'
import { until } from '../helpers/wait.js'
import type { TestStream } from '../../lib/testing/index.js'

t.test('subscriptions of a connection and bytes of an event, at the bound and beyond', async t => {
  const service = await serve(t, { maxSubscriptionsPerConnection: 3, maxEventBytes: 100 })
  const { app, join } = service
  await t.rejects(join('ada', ['a', 'b', 'c', 'd']), { message: /SSE_ERR_TOO_MANY_SUBSCRIPTIONS/ })
  const { stream, connection } = await join('ada', ['a', 'b', 'b'])
  await connection.addSubscription('c')
  await connection.addSubscription('c')
  await t.rejects(connection.addSubscription('d'), { code: 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS' })
  // Many at once: none slips through between question and answer.
  await connection.removeSubscription('c')
  const results = await Promise.allSettled(['d', 'e', 'f', 'g'].map(topic => connection.addSubscription(topic)))
  t.equal(results.filter(({ status }) => status === 'fulfilled').length, 1)
  t.equal(connection.subscriptions.size, 3)
  await app.sse.broadcastEvent({ data: 'ü'.repeat(50) })
  await t.rejects(app.sse.broadcastEvent({ data: 'ü'.repeat(50) + 'x' }), { code: 'SSE_ERR_EVENT_TOO_LARGE', statusCode: 413 })
  t.throws(() => connection.sendEvent({ data: 'x'.repeat(101) }), { code: 'SSE_ERR_EVENT_TOO_LARGE' })
  t.ok(connection.sendEvent({ data: 'x'.repeat(100) }))
  await stream.collect(2, 'message')
  // All nodes read and keep whom an event is for as well: 32 bytes and the id itself.
  for (const list of ['userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds']) {
    await app.sse.broadcastEvent({ data: 'x'.repeat(33) }, { [list]: ['y'.repeat(2), 'z'] })
    await t.rejects(app.sse.broadcastEvent({ data: 'x'.repeat(34) }, { [list]: ['y'.repeat(2), 'z'] }), { code: 'SSE_ERR_EVENT_TOO_LARGE', message: /101 bytes/ }, list)
  }
  // As it is written: a name, a key, and six letters more for each line after the first.
  for (const [size, event] of [[100, { event: 'abcdé', key: 'kkkk', data: 'x'.repeat(90) }], [100, { data: '\n'.repeat(14) + 'xx' }], [98, { data: '\r\n'.repeat(14) }], [98, { data: '\r'.repeat(14) }], [100, { data: ['\n', 'x'.repeat(91)] }]] as const) {
    await app.sse.broadcastEvent(event)
    const longer = (more: number) => ({ ...event, data: typeof event.data === 'string' ? event.data + 'x'.repeat(more) : [event.data[0] + 'x'.repeat(more), event.data[1]] })
    await app.sse.broadcastEvent(longer(100 - size))
    await t.rejects(app.sse.broadcastEvent(longer(101 - size)), { code: 'SSE_ERR_EVENT_TOO_LARGE', message: /101 bytes/ })
    t.throws(() => connection.sendEvent(longer(101 - size)), { code: 'SSE_ERR_EVENT_TOO_LARGE' })
  }
  const many = Array.from({ length: 1_000_000 }, (_, i) => `user-${i}`)
  await t.rejects(app.sse.broadcastToUsers({ data: 'x' }, many), { code: 'SSE_ERR_EVENT_TOO_LARGE' })
})

t.test('events and bytes of a replay, at the bound and beyond', async t => {
  const publish = async ({ app }: Service, n: number, priority: EventPriority = EventPriority.NORMAL) => { await app.sse.broadcastEvent({ event: 'x', data: `${n}`.padStart(50, '0'), priority }) }
  const numbers = (stream: TestStream) => stream.named('x').map(({ data }) => Number(data))
  const back = async (service: Service, cursor: string) => {
    const { stream, connection } = await service.join(null, [], { cursor })
    await until(() => connection.isConnected && !connection.stats().lagging)
    await service.app.sse.broadcastEvent({ event: 'end', data: '' })
    await stream.until(() => stream.named('end').length >= 1)
    const gaps = payloads(stream, 'sse:gap').map(({ reason }) => reason)
    const seen = numbers(stream)
    await stream.close()
    return { seen, gaps }
  }
  await t.test('maxReplayEvents', async t => {
    const service = await serve(t, { maxReplayEvents: 10 })
    const { stream } = await service.join()
    const start = stream.lastEventId
    for (let n = 1; n <= 10; n++) await publish(service, n)
    t.strictSame(await back(service, start), { seen: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], gaps: [] })
    t.strictSame(await back(service, start), { seen: [], gaps: ['limit'] }, 'the last event of the run before was one more')
  })
  await t.test('maxReplayBytes', async t => {
    // What the log sends for the first hundred of `publish`; a log's own name has eight letters.
    const bytes = Array.from({ length: 100 }, (_, i) => `id: xxxxxxxx.${(i + 1).toString(36)}\nevent: x\ndata: ${'0'.repeat(50)}\n\n`.length).reduce((sum, length) => sum + length, 0)
    for (const [maxReplayBytes, expected] of [[bytes, { seen: Array.from({ length: 100 }, (_, i) => i + 1), gaps: [] }], [bytes - 1, { gaps: ['limit'] }]] as const) {
      const service = await serve(t, { maxReplayBytes })
      const { stream } = await service.join()
      const start = stream.lastEventId
      for (let n = 1; n <= 100; n++) await publish(service, n)
      const result = await back(service, start)
      t.match(result, expected, `${maxReplayBytes} bytes`)
      if (maxReplayBytes < bytes) t.ok(result.seen.length < 100, 'one gap instead of the rest, then live')
    }

    const service = await serve(t, { maxReplayBytes: 1_000 })
    const slow = await service.join()
    await block(slow)
    for (let n = 0; n < 300; n++) await publish(service, n)
    slow.stream.thaw()
    await until(() => numbers(slow.stream).length === 300)
    t.strictSame(slow.stream.named('sse:gap'), [], 'a slow client that never left is not limited by it')

    const returned = await serve(t, { maxReplayBytes: 8_000, outboxBytes: 1_024 })
    const { stream: first } = await returned.join()
    const start = first.lastEventId
    for (let n = 0; n < 80; n++) await publish(returned, n)
    const late = await returned.join(null, [], { cursor: start })
    await until(() => numbers(late.stream).length === 80 && !late.connection.stats().lagging)
    await block(late)
    for (let n = 80; n < 300; n++) await publish(returned, n)
    t.ok(late.connection.stats().lagging)
    late.stream.thaw()
    await until(() => numbers(late.stream).length === 300 || late.stream.named('sse:gap').length > 0)
    t.strictSame(late.stream.named('sse:gap'), [], 'nor is a client that returned, was level with the log, and is slow later')
  })
})

t.test('concurrent replays: others wait their turn, and each gets all', async t => {
  const service = await serve(t, { maxConcurrentReplays: 2, history: { maxEvents: 5_000 } })
  const { app, join } = service
  const { stream } = await join()
  for (let n = 0; n < 1_000; n++) await app.sse.broadcastEvent({ event: 'x', data: String(n) })
  const returning = await Promise.all(Array.from({ length: 60 }, () => join(null, [], { cursor: stream.lastEventId })))
  await app.sse.broadcastEvent({ event: 'live', data: '' })
  for (const { stream } of returning) {
    await until(() => stream.named('x').length === 1_000 && stream.named('live').length === 1)
    t.strictSame(stream.named('x').map(({ data }) => Number(data)), Array.from({ length: 1_000 }, (_, n) => n))
    t.equal(stream.named('sse:gap').length, 0)
  }
})

t.test('the age of a connection is spread by a fifth, and each comes back to where it was', async t => {
  const clock = testClock()
  const { app, join } = await serve(t, { maxConnectionAgeMs: 600_000, retryMs: 1_000, ...clock.options })
  const started = clock.now
  const ages: number[] = []
  const joined = await Promise.all(Array.from({ length: 60 }, () => join()))
  for (const { connection: { signal } } of joined) signal.addEventListener('abort', () => { ages.push(clock.now - started) })
  await clock.advance(600_000)
  const retries: number[] = []
  await Promise.all(joined.map(async ({ stream }) => {
    await stream.ended
    t.strictSame(payloads(stream, 'sse:close'), [{ reason: 'max-age', reconnect: true }])
    retries.push(stream.retryMs!)
  }))
  t.equal(ages.length, 60, 'none after its age')
  t.ok(Math.min(...ages) >= 480_000, 'none before four fifths')
  t.ok(Math.max(...ages) - Math.min(...ages) > 6_000, 'not together')
  t.ok(new Set(retries).size > 30 && Math.min(...retries) >= 1_000 && Math.max(...retries) <= 2_000, 'and they do not come back together')
  t.equal(app.sse.connectionCount, 0)
})
