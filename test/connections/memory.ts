import t from 'tap'
import { EventPriority } from '../../lib/index.js'
import { block, serve, settle } from '../helpers/app.js'
import { turns, until } from '../helpers/wait.js'
import { blocksOf } from '../helpers/raw.js'

t.test('a lagging client that reads nothing holds its place, and next to nothing else', async t => {
  const service = await serve(t, {})
  const slow = await service.join('ada')
  await block(slow)
  const { queuedBytes } = slow.connection.stats()
  for (let i = 0; i < 3_000; i++) {
    await service.app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(1_000) })
    if (i % 100 === 0) await turns(1)
  }
  t.ok(slow.connection.stats().lagging)
  await turns(50)
  const held = slow.connection.stats().queuedBytes - queuedBytes
  t.ok(held < 50_000, `${held} bytes wait besides`)
  const herd = await Promise.all(Array.from({ length: 8 }, async () => {
    const { stream } = await service.join('ada', [], { cursor: blocksOf(slow.stream.text).find(({ id }) => id !== null)!.id! })
    stream.freeze()
    return stream
  }))
  await settle(service)
  for (const stream of herd) stream.thaw()
  await settle(service, ...herd)
  for (const stream of herd) t.equal(stream.named('x').length, 3_000)
})

t.test('the budget holds for all slow clients together, whatever waits where', async t => {
  const service = await serve(t, { maxQueuedBytes: 1 << 20, maxEventBytes: 4 << 20, outboxBytes: 8 << 20 })
  const slow = await Promise.all(Array.from({ length: 5 }, (_, i) => service.join(`user-${i}`)))
  for (const joined of slow) await block(joined)
  const data = 'x'.repeat(700_000)
  const taken = slow.map(({ connection }) => connection.sendEvent({ event: 'own', data: data + connection.clientId, priority: EventPriority.HIGH }))
  t.ok(taken.includes(false), 'what does not fit is refused')
  t.ok(service.app.sse.stats().queuedBytes < (1 << 20) + 5 * 200_000, `${service.app.sse.stats().queuedBytes} bytes`)
  // One that many wait for is there once.
  for (let i = 0; i < 5; i++) await service.app.sse.broadcastEvent({ event: 'shared', data: 'y'.repeat(10_000) })
  for (const { stream } of slow) stream.thaw()
  await settle(service, ...slow.map(({ stream }) => stream))
  for (const [i, { stream }] of slow.entries()) {
    t.equal(stream.named('own').length, taken[i] ? 1 : 0, 'what was taken has come')
    t.equal(stream.named('shared').length, 5)
  }
  t.match(service.app.sse.stats(), { queuedBytes: 0, lagging: 0 })
})

t.test('what has been sent takes nothing of the budget', async t => {
  // A large one is written in pieces.
  for (const [count, bytes] of [[150, 10_000], [20, 100_000]] as const) {
    const service = await serve(t, { maxQueuedBytes: 1 << 20 })
    const { stream } = await service.join('fast')
    for (let i = 0; i < count; i++) {
      await service.app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(bytes) })
      await turns(1)
    }
    await stream.collect(count, 'x')
    const slow = await service.join('slow')
    await block(slow)
    for (let i = 0; i < 20; i++) t.ok(slow.connection.sendEvent({ event: 'small', data: i }), `after ${count} of ${bytes} bytes there is room`)
    slow.stream.thaw()
    await slow.stream.collect(20, 'small')
  }
})

t.test('an event that several wait for takes room once', async t => {
  const { app, join } = await serve(t, { maxQueuedBytes: 1 << 20 })
  const slow = [await join('ada'), await join('grace'), await join('eve')]
  for (const joined of slow) await block(joined)
  t.match(await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(300_000) }, { ephemeral: true }), { delivered: 3 })
  for (const { stream } of slow) stream.thaw()
  for (const { stream } of slow) await stream.collect(1, 'x')
})

t.test('who has written a large event gives its memory back once, while others still write it', async t => {
  const { app, join } = await serve(t, { maxQueuedBytes: 1_300_000, stallTimeoutMs: 0 })
  const [fast, slow] = [await join('ada'), await join('grace')]
  slow.stream.freeze()
  await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(500_000) })
  await fast.stream.next('x')
  await fast.stream.close()
  await until(() => app.sse.connectionCount === 1)
  const full = { event: 'y', data: 'y'.repeat(400_000) }
  t.equal(slow.connection.sendEvent(full), false, 'the event and its bytes wait for the other client')
  slow.stream.thaw()
  await slow.stream.next('x')
  await until(() => slow.connection.stats().queuedBytes === 0)
  t.equal(slow.connection.sendEvent(full), true)
  await slow.stream.next('y')
})

t.test('who leaves in the middle of a large event takes nothing of the budget along', async t => {
  const { app, join } = await serve(t, { maxQueuedBytes: 1 << 20 })
  for (let i = 0; i < 10; i++) {
    const { stream, connection } = await join('ada')
    stream.freeze()
    await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(300_000) })
    await turns(1)
    t.ok(connection.stats().queuedBytes > 0, 'it waits')
    await stream.close()
    await until(() => app.sse.connectionCount === 0)
  }
  const slow = await join('slow')
  await block(slow)
  for (let i = 0; i < 20; i++) t.ok(slow.connection.sendEvent({ event: 'small', data: i }), 'there is room')
})
