import t from 'tap'
import { EventPriority } from '../../lib/index.js'
import { block, serve, settle } from '../helpers/app.js'
import { SSEClient } from '../helpers/sse.js'
import { turns } from '../helpers/wait.js'

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
    const client = new SSEClient(`${service.url}/sse?user=ada`, { headers: { 'last-event-id': slow.client.blocks.find(({ id }) => id !== null)!.id! } })
    t.teardown(() => client.close())
    await client.ready()
    client.pause()
    return client
  }))
  await settle(service)
  for (const client of herd) client.resume()
  await settle(service, ...herd)
  for (const client of herd) t.equal(client.named('x').length, 3_000)
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
  for (const { client } of slow) client.resume()
  await settle(service, ...slow.map(({ client }) => client))
  for (const [i, { client }] of slow.entries()) {
    t.equal(client.named('own').length, taken[i] ? 1 : 0, 'what was taken has come')
    t.equal(client.named('shared').length, 5)
  }
  t.match(service.app.sse.stats(), { queuedBytes: 0, lagging: 0 })
})

t.test('what has been sent takes nothing of the budget', async t => {
  const service = await serve(t, { maxQueuedBytes: 1 << 20 })
  const { client } = await service.join('fast')
  for (let i = 0; i < 150; i++) {
    await service.app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(10_000) })
    await turns(1)
  }
  await client.waitFor('x', 150)
  const slow = await service.join('slow')
  await block(slow)
  for (let i = 0; i < 20; i++) t.ok(slow.connection.sendEvent({ event: 'small', data: i }), 'there is room')
  slow.client.resume()
  await slow.client.waitFor('small', 20)
})
