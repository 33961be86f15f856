import { getDefaultHighWaterMark } from 'node:stream'
import t from 'tap'
import { EventPriority, type Subscriber } from '../../lib/index.js'
import { block, FILLER_BYTES, isApplicationEvent, payloads, serve, settle, texts } from '../helpers/app.js'
import { SSEClient, type Block } from '../helpers/sse.js'
import { turns, until } from '../helpers/wait.js'
import { backlog, PRIORITIES, random, Reader, Sequence } from './reading.js'
import { blocksOf } from '../helpers/raw.js'

/** What identifies an event of a Sequence. */
const nameOf = ({ data }: Pick<Block, 'data'>) => {
  const { priority, n } = JSON.parse(data!) as { priority: number, n: number }
  return `${priority}:${n}`
}

for (const outboxBytes of [1 << 20, 4096, 1024]) {
  t.test(`priorities with an exact cursor, outboxBytes ${outboxBytes}`, async t => {
    const service = await serve(t, { outboxBytes })
    const { join, app } = service
    const sequence = new Sequence(service, random(outboxBytes))
    const slow = await join('ada')
    const start = slow.stream.lastEventId
    const blocks = await backlog(service, slow, async () => {
      for (let i = 0; i < 60; i++) {
        await sequence.publish(undefined, 100)
        if (i % 4 === 0) await app.sse.broadcastEvent({ event: 'other', data: i, priority: PRIORITIES[(i / 4) % 4]! }, { userIds: ['grace'] })
        if (i % 10 === 0) await turns(1)
      }
    })
    const events = blocks.filter(({ event }) => event === 'n')
    const reader = new Reader()
    for (const event of events) reader.take(event)
    t.strictSame(reader.faults, [], 'order is kept within a priority')
    t.strictSame(reader.seen, sequence.published)
    const priorities = events.map(({ data }) => (JSON.parse(data!) as { priority: number }).priority)
    if (outboxBytes === 1 << 20) t.strictSame(priorities, [...priorities].sort((a, b) => b - a), 'higher first')
    const position = (values: number[], of: number) => values.reduce((sum, value, i) => value === of ? sum + i : sum, 0) / sequence.published[of]!
    t.ok(position(priorities, 3) < position(priorities, 0), 'higher first, on the whole, however small the outbox')
    t.ok(blocks.some(({ id }) => id?.includes('~')), 'a cursor that names what was read ahead')
    t.ok(blocks.every(({ id }) => id === null || /^[A-Za-z0-9._~-]{1,128}$/.test(id)))
    t.equal(slow.stream.lastEventId.includes('~'), false, 'level again at the end')

    const all = [...new Set(events.map(nameOf))].sort()
    await t.test('cut after any frame, the rest comes, and nothing twice', async t => {
      let place = start
      const had: string[] = []
      for (let k = 0; k <= blocks.length; k++) {
        const block = k === 0 ? null : blocks[k - 1]!
        if (block?.id != null) place = block.id
        if (block?.event === 'n') had.push(nameOf(block))
        const { stream } = await join('ada', [], { cursor: place })
        await settle(service, stream)
        t.strictSame([...had, ...stream.named('n').map(nameOf)].sort(), all, `cut after frame ${k}`)
        t.equal(stream.named('sse:gap').length, 0)
        await stream.close()
      }
    })

    await t.test('one frame for each connection', async t => {
      let place = start
      const had: string[] = []
      for (let round = 0; round < 200 && had.length < all.length; round++) {
        const client = new SSEClient(`${service.url}/sse?user=ada`, { headers: { 'last-event-id': place } })
        t.teardown(() => client.close())
        client.onBlock = block => {
          if (block.id !== null) place = block.id
          if (block.event !== 'n') return true
          had.push(nameOf(block))
          return false
        }
        await until(() => client.closed, undefined, 'one frame')
      }
      t.strictSame([...had].sort(), all, 'all, and nothing twice')
      t.equal(had.length, all.length)
      const order = had.map(name => Number(name[0]))
      t.strictSame(order, [...order].sort((a, b) => b - a), 'higher first, over all connections')
      const { stream } = await join('ada', [], { cursor: place })
      await settle(service, stream)
      t.strictSame(stream.named('n'), [])
    })
  })
}

t.test('a client that is slow now and then gets everything, and is live again', async t => {
  const service = await serve(t, { outboxBytes: 4096, stallTimeoutMs: 0 })
  const slow = await service.join('ada')
  const brisk = await service.join('grace')
  const next = random(3)
  const sequence = new Sequence(service, next)
  let lagged = 0
  for (let round = 0; round < 5; round++) {
    await block(slow)
    for (let i = 0; i < 300 || !slow.connection.stats().lagging; i++) {
      // The kernel may have found more room.
      if (i > 0 && i % 300 === 0) await block(slow)
      await sequence.publish(undefined, next(300))
      if (i % 20 === 0) await turns(1)
    }
    if (slow.connection.stats().lagging) lagged++
    // A socket that is not full yet takes one filler more, and an outbox without anything else a larger one than it has room for.
    const { queuedBytes } = slow.connection.stats()
    t.ok(queuedBytes <= getDefaultHighWaterMark(false) + 2 * (FILLER_BYTES + 100), `${queuedBytes} bytes wait`)
    slow.stream.thaw()
    // Sometimes it has caught up before it is slow again, sometimes not.
    if (round % 2 === 0) await settle(service, slow.stream)
  }
  await settle(service, slow.stream, brisk.stream)
  for (const [name, { stream }] of Object.entries({ slow, brisk })) {
    const reader = new Reader()
    for (const event of stream.events) reader.take(event)
    t.strictSame(reader.faults.slice(0, 5), [], `${name}: no hole, no repetition, no change of order`)
    t.strictSame(reader.seen, sequence.published, name)
    t.equal(reader.gaps, 0, name)
  }
  t.equal(lagged, 5, 'the outbox has overflowed')
  await until(() => !slow.connection.stats().lagging)
  t.match(service.app.sse.stats(), { lagging: 0, queuedBytes: 0 })
  const id = await sequence.publish()
  await until(() => slow.stream.lastEventId === id, undefined, 'live')
  t.notOk(id.includes('~'))
})

t.test('a slow client that falls out of the log: one gap, then live', async t => {
  for (const priorities of [[EventPriority.NORMAL], PRIORITIES]) {
    const service = await serve(t, { outboxBytes: 4096, history: { maxEvents: 50 } })
    const slow = await service.join('ada')
    await block(slow)
    const sequence = new Sequence(service, random(5))
    for (let i = 0; i < 600; i++) await sequence.publish(priorities[i % priorities.length]!, 50)
    slow.stream.thaw()
    await slow.stream.until(() => slow.stream.named('sse:gap').length >= 1)
    const newest = [...sequence.published]
    await settle(service, slow.stream)
    for (let i = 0; i < 20; i++) await sequence.publish(priorities[i % priorities.length]!)
    await settle(service, slow.stream)
    t.strictSame(payloads(slow.stream, 'sse:gap').map(({ reason }) => reason), ['trimmed'], 'one gap')
    const seen = slow.stream.named('n').map(({ data }) => JSON.parse(data!) as { priority: EventPriority, n: number })
    for (const priority of priorities) {
      const numbers = seen.filter(event => event.priority === priority).map(({ n }) => n)
      t.strictSame(numbers, [...new Set(numbers)].sort((a, b) => a - b), 'in order, nothing twice')
      const breaks = numbers.filter((n, i) => n !== (i === 0 ? 1 : numbers[i - 1]! + 1)).length
      t.ok(breaks <= 1, 'one hole at most, where the gap is')
      const live = Array.from({ length: sequence.published[priority]! - newest[priority]! }, (_, i) => newest[priority]! + i + 1)
      t.strictSame(numbers.slice(-live.length), live, 'then live')
    }
    t.equal(slow.stream.lastEventId.includes('~'), false)
    const again = await service.join('ada', [], { cursor: slow.stream.lastEventId })
    await settle(service, again.stream)
    t.strictSame([again.stream.named('sse:gap').length, again.stream.named('n').length], [0, 0])
  }
})

t.test('a filter is not asked about a client that has left while a page is read for it', async t => {
  const service = await serve(t)
  const { app } = service
  const { stream: first, connection: other } = await service.join('ada')
  const cursor = first.lastEventId
  let asked = 0
  const afterItsEnd: number[] = []
  const filter = ({ clientId }: Subscriber): boolean => {
    if (clientId === other.clientId) return false
    asked++
    const back = app.sse.getConnection(clientId)
    if (back === undefined) afterItsEnd.push(asked)
    // As long as a page may take in one turn.
    const end = performance.now() + 10
    while (performance.now() < end);
    if (asked === 2) setImmediate(() => { back?.close() })
    return false
  }
  for (let i = 0; i < 100; i++) await app.sse.broadcastEvent({ event: 'x', data: 'x' }, { filter })
  const { stream } = await service.join('grace', [], { cursor })
  await stream.ended
  await turns(20)
  t.ok(asked >= 2 && asked < 100, `asked ${asked} times`)
  t.strictSame(afterItsEnd, [])
})

t.test('ephemeral events are dropped lowest first, and counted', async t => {
  const service = await serve(t, { outboxBytes: 16_384, drainMs: 100 })
  const { app } = service
  const slow = await service.join('ada')
  await block(slow)
  const filler = slow.connection.stats()
  t.equal(filler.droppedEvents, 0)
  const data = 'x'.repeat(1000)
  const outcome: Record<string, number> = {}
  const send = async (event: string, priority: EventPriority, count: number) => {
    for (let i = 0; i < count; i++) {
      const { delivered } = await app.sse.broadcastEvent({ event, data, priority }, { ephemeral: true })
      outcome[event] = (outcome[event] ?? 0) + delivered
    }
    await turns(1)
  }
  await send('low', EventPriority.LOW, 10)
  await send('normal', EventPriority.NORMAL, 10)
  await send('high', EventPriority.HIGH, 10)
  await send('critical', EventPriority.CRITICAL, 10)
  await send('late-low', EventPriority.LOW, 5)
  const logged = await app.sse.broadcastEvent({ event: 'logged', data, priority: EventPriority.LOW })
  t.equal(logged.delivered, 1, 'a logged event is never dropped')
  t.equal(outcome['critical'], 10)
  t.equal(outcome['late-low'], 0, 'nothing makes room for what is lowest')
  t.equal(slow.connection.sendEvent({ event: 'direct', data, priority: EventPriority.LOW }), false, 'and a send says so')
  const { droppedEvents } = slow.connection.stats()
  t.ok(droppedEvents > 0)
  t.equal(app.sse.stats().dropped, droppedEvents)
  slow.stream.thaw()
  await settle(service, slow.stream)
  const got = (event: string) => slow.stream.named(event).length
  t.equal(got('critical'), 10, 'the highest have all come')
  t.ok(got('high') < 10 || got('normal') === 0, 'a lower one only where all higher ones are')
  t.ok(got('low') <= got('normal') && got('normal') <= got('high') && got('high') <= got('critical'), `${got('low')} ≤ ${got('normal')} ≤ ${got('high')}`)
  t.equal(got('logged'), 1)
  t.equal(got('late-low'), 0)
  const sent = 10 + 10 + 10 + 10 + 5 + 1
  const arrived = got('low') + got('normal') + got('high') + got('critical') + got('late-low') + got('direct')
  t.ok(droppedEvents >= sent - arrived, `${droppedEvents} dropped, ${sent - arrived} of ours missing; the rest is filler`)
  t.equal(slow.stream.named('sse:gap').length, 0, 'what is not logged leaves no gap')
  t.equal(slow.connection.stats().droppedEvents, droppedEvents)

  await t.test('the count survives the connection', async t => {
    await block(slow)
    await send('critical', EventPriority.CRITICAL, 40)
    const { dropped } = app.sse.stats()
    t.ok(dropped > droppedEvents)
    slow.connection.close()
    t.equal(app.sse.stats().dropped, dropped, 'while it closes')
    await slow.stream.close()
    await until(() => app.sse.connectionCount === 0)
    t.equal(app.sse.stats().dropped, dropped, 'and when it has')
  })
})

t.test('an ephemeral event displaces what is less urgent, and nothing of its own priority', async t => {
  const service = await serve(t, { outboxBytes: 8192 })
  const slow = await service.join('ada')
  await block(slow)
  const priority = EventPriority.HIGH
  await service.app.sse.broadcastEvent({ event: 'logged', data: 1, priority })
  const taken = Array.from({ length: 20 }, (_, n) => slow.connection.sendEvent({ event: 'direct', data: { n, padding: 'x'.repeat(500) }, priority }))
  const count = taken.indexOf(false)
  t.ok(count > 0 && !taken.includes(true, count), 'the newest are refused')
  slow.stream.thaw()
  await settle(service, slow.stream)
  t.equal(slow.stream.named('logged').length, 1)
  t.strictSame(payloads(slow.stream, 'direct').map(({ n }) => n), Array.from({ length: count }, (_, n) => n), 'those that were taken have come')
})

t.test('what was published in the turn in which a connection has to wait keeps its order', async t => {
  let answer = (_allowed: boolean): void => {}
  let isAsked = false
  const service = await serve(t, { authorizeSubscription: () => !isAsked || new Promise<boolean>(resolve => { answer = resolve }) })
  const { stream } = await service.join('ada', ['room'])
  isAsked = true
  const published = ['logged 1', 'ephemeral 1', 'logged 2', 'ephemeral 2', 'logged 3']
  for (const data of published) service.app.sse.broadcastEvent({ event: 'x', data }, { ephemeral: data.startsWith('ephemeral') })
  const asked = service.app.sse.reauthorize('ada')
  await turns(2)
  t.strictSame(texts(stream), [], 'its rights are not known')
  answer(true)
  await asked
  await settle(service, stream)
  t.strictSame(texts(stream), published)
})

t.test('what waits is counted in bytes, however many a letter takes', async t => {
  const service = await serve(t)
  const { stream, connection } = await service.join('ada')
  stream.freeze()
  const data = '漢'.repeat(5_000)
  // The kernel takes the first megabytes.
  for (let i = 0; i < 5_000 && connection.stats().queuedBytes === 0; i++) {
    connection.sendEvent({ event: 'x', data })
    await turns(3)
  }
  t.ok(connection.stats().queuedBytes >= 3 * data.length, `${connection.stats().queuedBytes} bytes`)
})

t.test('what is more urgent has left for the log: nothing less urgent goes before it', async t => {
  const service = await serve(t, { outboxBytes: 8192 })
  const { app } = service
  const slow = await service.join('ada')
  const publish = async (event: string, priority: EventPriority, count: number, options = {}) => {
    for (let i = 0; i < count; i++) await app.sse.broadcastEvent({ event, data: 'x'.repeat(500), priority }, options)
  }
  await block(slow)
  await publish('high', EventPriority.HIGH, 20)
  t.ok(slow.connection.stats().lagging)
  await publish('low', EventPriority.LOW, 5, { ephemeral: true })
  await publish('low', EventPriority.LOW, 15)
  await publish('high', EventPriority.HIGH, 3)
  slow.stream.thaw()
  await slow.stream.collect(15, 'low')
  const order = slow.stream.events.filter(isApplicationEvent).map(({ event }) => event).filter(event => event !== 'filler')
  t.strictSame(order.slice(0, 23), new Array(23).fill('high'))
  await settle(service, slow.stream)
})

t.test('an ephemeral event stays behind what was logged before it', async t => {
  const service = await serve(t, { outboxBytes: 2048 })
  const { app } = service
  const slow = await service.join('ada')
  await block(slow)
  for (let i = 0; i < 8; i++) await app.sse.broadcastEvent({ event: 'x', data: String(i).padEnd(500) })
  t.ok(slow.connection.stats().lagging)
  await app.sse.broadcastEvent({ event: 'x', data: 'ephemeral' }, { ephemeral: true })
  await app.sse.broadcastEvent({ event: 'x', data: 'last' })
  slow.stream.thaw()
  await slow.stream.collect(10, 'x')
  t.strictSame(texts(slow.stream).map(text => text!.trim()), ['0', '1', '2', '3', '4', '5', '6', '7', 'ephemeral', 'last'])

  const again = await service.join('ada', [], { cursor: blocksOf(slow.stream.text).find(({ id }) => id !== null)!.id! })
  again.connection.sendEvent({ event: 'x', data: 'welcome' })
  await again.stream.collect(10, 'x')
  t.equal(texts(again.stream).at(-1), 'welcome', 'also what a handler sends to a client that has come back')
})
