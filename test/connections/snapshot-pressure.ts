import t from 'tap'
import { setTimeout as sleep } from 'node:timers/promises'
import type { SnapshotOptions } from '../../lib/index.js'
import { testClock, testLog } from '../../lib/testing/index.js'
import { block, payloads, serve, settle, texts } from '../helpers/app.js'
import { counted, gated } from '../helpers/loads.js'
import { turns, until } from '../helpers/wait.js'

// Snapshots when many clients ask at once, when clients do not read, and when the log moves on meanwhile.

const rows = (count: number, text: string) => Array.from({ length: count }, (_, n) => ({ event: 'row', data: `${n}${text}` }))

for (const text of ['é', '語', '🚀']) {
  t.test(`no event is sent before the end of a state of ${text}`, async t => {
    const service = await serve(t)
    const many = counted(() => rows(400, text.repeat(5_000)))
    const { stream, connection } = await service.join('ada', ['a'], { snapshot: many.snapshot })
    stream.freeze()
    await until(() => connection.stats().queuedBytes > 100_000)
    connection.sendEvent({ event: 'own', data: 1 })
    await service.app.sse.broadcastEvent({ event: 'live', data: 1 }, { subscriptionIds: ['a'] })
    stream.thaw()
    await settle(service, stream)
    t.strictSame(stream.events.filter(({ event }) => event !== 'row').map(({ event }) => event), ['own', 'live', 'settled'])
    t.ok(stream.events.slice(0, 400).every(({ event }) => event === 'row'), 'the state comes first, and all of it')
  })
}

t.test('the position of a state is that of the log when its load starts', async t => {
  const service = await serve(t, { history: { maxEvents: 20 } })
  const publish = (data: number) => service.app.sse.broadcastEvent({ event: 'x', data }, { subscriptionIds: ['a'] })
  let calls = 0
  const snapshot: SnapshotOptions = {
    maxConcurrent: 1,
    async load () {
      // The state of the client before is sent meanwhile.
      await turns(10)
      for (let n = 0; n < 15; n++) await publish(++calls)
      return { event: 'state', data: calls }
    }
  }
  const joined = await Promise.all(Array.from({ length: 10 }, (_, i) => service.join(`user-${i}`, ['a'], { snapshot })))
  for (const { stream } of joined) await stream.until(() => stream.named('state').length > 0 || !stream.isOpen)
  await settle(service, ...joined.map(({ stream }) => stream))
  for (const { stream } of joined) {
    t.equal(stream.named('sse:close').length, 0, 'the history need not last for the loads of others')
    const [state] = payloads(stream, 'state')
    t.strictSame(payloads(stream, 'x').filter(n => n > state), Array.from({ length: calls - state }, (_, n) => state + n + 1))
  }

  await t.test('of a shared load, for who comes with a cursor', async t => {
    const service = await serve(t)
    const { sse } = service.app
    const shared = gated(() => ({ event: 'state', data: 'all' }))
    const snapshot = { ...shared.snapshot, key: 'all' } as unknown as SnapshotOptions
    const chat = (data: number) => sse.broadcastEvent({ event: 'chat', data }, { subscriptionIds: ['b'] })
    const at = sse.position()
    await chat(1)
    await service.join('ada', ['a', 'b'], { snapshot })
    await until(() => shared.questions.length === 1)
    const returning = await service.join('bob', ['a', 'b'], { snapshot, cursor: `${at}!0` })
    await chat(2)
    await shared.release()
    await settle(service, returning.stream)
    t.strictSame(payloads(returning.stream, 'chat'), [1, 2], 'it receives all that others said meanwhile')
    t.equal(returning.stream.named('state').length, 1)
    t.equal(shared.questions.length, 1, 'one load for both')
  })

  await t.test('of a shared load that waits: events are sent up to its start, and the state follows', async t => {
    const service = await serve(t)
    const { sse } = service.app
    const busy = gated()
    await service.join('eve', [], { snapshot: { ...busy.snapshot, maxConcurrent: 1 } })
    await until(() => busy.questions.length === 1)
    const { stream, connection } = await service.join('ada', ['a'], { cursor: sse.position(), snapshot: { ...counted(() => ({ event: 'state', data: 1 })).snapshot, key: 'all', maxConcurrent: 1 } as unknown as SnapshotOptions })
    await connection.addSubscription('b')
    const say = (data: number, priority: 0 | 3) => sse.broadcastEvent({ event: 'x', data, priority }, { subscriptionIds: ['a'] })
    for (let n = 1; n <= 20; n++) await say(n, n % 2 === 0 ? 0 : 3)
    await turns(10)
    t.equal(stream.named('x').length, 20, 'nothing waits for a load that waits')
    await busy.release()
    await stream.next('state')
    await say(21, 0)
    await settle(service, stream)
    const order = stream.events.filter(({ event }) => event !== 'settled').map(({ event, data }) => event === 'x' ? Number(data) : event)
    t.strictSame([...order].sort(), [...Array.from({ length: 21 }, (_, n) => n + 1), 'state'].sort(), 'each once')
    t.strictSame(order.slice(-2), ['state', 21])
    t.ok(stream.named('x').slice(0, 20).every(({ id }) => id!.endsWith('!0')), 'cursors say that a state is missing')
  })
})

t.test('after a gap of the node, clients do not join a load that began before it', async t => {
  for (const key of [undefined, 'all']) {
    const log = testLog()
    const broker = log.broker()
    const { app: other } = await serve(t, { broker: log.broker() })
    const service = await serve(t, { broker })
    const slow = gated(() => ({ event: 'state', data: 1 }))
    const snapshot = { ...slow.snapshot, ...(key !== undefined && { key }) } as unknown as SnapshotOptions
    const joined = await Promise.all(Array.from({ length: 3 }, (_, i) => service.join(`user-${i}`, ['a'], { snapshot })))
    const loads = key === undefined ? 3 : 1
    await until(() => slow.questions.length === loads)
    broker.fail()
    await other.sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds: ['a'] })
    log.trim()
    broker.restore()
    await until(() => slow.questions.length === 2 * loads)
    for (let n = 0; n < 2 * loads; n++) await slow.release()
    for (const { stream } of joined) await stream.next('state')
    t.equal(slow.questions.length, 2 * loads, `key ${key}`)
  }
})

t.test('a load with a low limit waits for its turn, not until the others are gone', async t => {
  const service = await serve(t)
  const busy = gated()
  const other: SnapshotOptions = { ...busy.snapshot, maxConcurrent: 16 }
  for (let n = 0; n < 5; n++) await service.join('ada', [], { snapshot: other })
  await until(() => busy.questions.length === 5)
  const low = counted()
  const waiting = await service.join('bob', [], { snapshot: { ...low.snapshot, maxConcurrent: 4 } })
  const late = await service.join('eve', [], { snapshot: other })
  await turns(10)
  t.equal(busy.questions.length, 5, 'later ones wait behind it')
  for (let n = 0; n < 2; n++) await busy.release()
  await waiting.stream.next('state')
  t.strictSame(low.asked(), ['connect'])
  for (let n = 0; n < 4; n++) await busy.release()
  await late.stream.next('state')
})

t.test('a load that waits for its turn does not hold up the others when its client disconnects', async t => {
  const service = await serve(t)
  const busy = gated()
  await service.join('ada', [], { snapshot: { ...busy.snapshot, maxConcurrent: 16 } })
  await until(() => busy.questions.length === 1)
  const low = await service.join('bob', [], { snapshot: { ...counted().snapshot, maxConcurrent: 1 } })
  const { stream } = await service.join('eve', [], { snapshot: { ...counted().snapshot, maxConcurrent: 16 } })
  await low.stream.close()
  await stream.next('state')
  t.equal(busy.questions.length, 1)
})

t.test('a history that is shorter than the wait of a load is no gap for its client', async t => {
  const service = await serve(t, { history: { maxEvents: 20 } })
  const busy = gated()
  await service.join('eve', [], { snapshot: { ...busy.snapshot, maxConcurrent: 1 } })
  await until(() => busy.questions.length === 1)
  const { snapshot, asked } = counted()
  const { stream, connection } = await service.join('ada', ['a'], { cursor: service.app.sse.position(), snapshot: { ...snapshot, maxConcurrent: 1 } })
  await connection.addSubscription('b')
  for (let n = 0; n < 50; n++) await service.app.sse.broadcastEvent({ event: 'x', data: n }, { subscriptionIds: ['c'] })
  await busy.release()
  await settle(service, stream)
  t.strictSame(stream.named('sse:gap'), [])
  t.strictSame(asked(), ['added b'])
})

t.test('events that wait for a load which begins anew are sent before its state', async t => {
  const service = await serve(t)
  const { questions, snapshot, release } = gated()
  const { stream, connection } = await service.join('ada', ['a', 'b'], { cursor: service.app.sse.position(), snapshot })
  const say = (data: number) => service.app.sse.broadcastEvent({ event: 'x', data, priority: data % 2 === 0 ? 0 : 3 }, { subscriptionIds: ['a'] })
  await connection.addSubscription('c')
  await until(() => questions.length === 1)
  for (let n = 1; n <= 4; n++) await say(n)
  await connection.removeSubscription('b')
  await release()
  await until(() => questions.length === 2)
  for (let n = 5; n <= 8; n++) await say(n)
  await release()
  await settle(service, stream)
  const order = stream.events.filter(({ event }) => event !== 'settled').map(({ event, data }) => event === 'x' ? Number(data) : event)
  t.strictSame(order.slice(0, 4).sort(), [1, 2, 3, 4], 'the new load began after them')
  t.equal(order[4], 'state')
  t.strictSame(order.slice(5).sort(), [5, 6, 7, 8])
})

t.test('a client that does not read while the log has gaps keeps its stream', async t => {
  const log = testLog()
  const service = await serve(t, { broker: log.broker() })
  const { snapshot, asked } = counted()
  const joined = await service.join('ada', ['a'], { snapshot })
  await joined.stream.next('state')
  await block(joined)
  for (let n = 0; n < 4; n++) log.wipe()
  joined.stream.thaw()
  await joined.stream.until(() => joined.stream.named('state').length === 2 || !joined.stream.isOpen)
  t.strictSame(asked(), ['connect a', 'gap a'])
  t.equal(joined.stream.named('sse:gap').length, 1)
})

t.test('clients whose shared state is outdated share the next one, too', async t => {
  const log = testLog()
  const service = await serve(t, { broker: log.broker(), maxConcurrentReplays: 1 })
  const { sse } = service.app
  const shared = gated(() => ({ event: 'state', data: 1 }))
  const snapshot = { ...shared.snapshot, key: 'all' } as unknown as SnapshotOptions
  const joined = await Promise.all(Array.from({ length: 20 }, (_, i) => service.join(`user-${i}`, ['a'], { snapshot })))
  await until(() => shared.questions.length === 1)
  await sse.broadcastEvent({ event: 'x', data: 1 })
  log.trim()
  await shared.release()
  // One client after the other finds out, while the log moves on.
  for (let n = 0; n < 100; n++) {
    await sse.broadcastEvent({ event: 'x', data: 1 })
    await turns(1)
  }
  await until(() => shared.questions.length > 1)
  for (let n = 1; n < shared.questions.length; n++) await shared.release()
  for (const { stream } of joined) await stream.next('state')
  t.equal(shared.questions.length, 2)
})

t.test('clients that do not read', async t => {
  await t.test('are not asked for while they do not', async t => {
    const service = await serve(t)
    const { snapshot, asked } = counted()
    const joined = await service.join('ada', ['a'], { snapshot })
    await joined.stream.next('state')
    await block(joined)
    await joined.connection.addSubscription('b')
    await turns(10)
    t.strictSame(asked(), ['connect a'])
    joined.stream.thaw()
    await joined.stream.until(() => joined.stream.named('state').length === 2)
    t.strictSame(asked(), ['connect a', 'added b'])
  })

  await t.test('lose their snapshot when its memory is needed, the oldest first', async t => {
    const clock = testClock()
    const service = await serve(t, { maxQueuedBytes: 4 * 2 ** 20, stallTimeoutMs: 0, ...clock.options })
    const { snapshot } = counted(() => rows(80, 'x'.repeat(10_000)))
    const frozen = []
    for (let n = 0; n < 12; n++) {
      const joined = await service.join('ada', [], { snapshot })
      joined.stream.freeze()
      frozen.push(joined)
      await until(() => service.app.sse.stats().queuedBytes > 0 && !joined.connection.stats().lagging)
      await clock.advance(3_000)
    }
    for (let n = 0; n < 5; n++) {
      const { stream } = await service.join('bob', [], { snapshot })
      await stream.until(() => stream.named('row').length === 80 || !stream.isOpen)
      t.ok(stream.isOpen, 'a client that reads has its state')
      await stream.close()
    }
    const ended = frozen.map(({ connection }) => connection.closeReason)
    t.ok(ended.includes('snapshot-error'), 'some had to give way')
    t.strictSame(ended, [...ended].sort((a, b) => Number(a === null) - Number(b === null)), 'the oldest')
    for (const { stream } of frozen) {
      stream.thaw()
      await stream.close()
    }
    await until(() => service.app.sse.stats().queuedBytes === 0)
  })

  await t.test('a loaded state that waits for them is loaded again', async t => {
    for (const key of [undefined, 'all']) {
      const service = await serve(t, { maxQueuedBytes: 4 * 2 ** 20, outboxBytes: 2 ** 21, stallTimeoutMs: 0 })
      const large = counted(() => rows(100, 'x'.repeat(10_000)))
      const slow = await service.join('ada', ['a'], { cursor: service.app.sse.position(), snapshot: { ...large.snapshot, ...(key !== undefined && { key }) } as unknown as SnapshotOptions })
      slow.stream.freeze()
      // It is written after the load was asked for.
      slow.connection.sendEvent({ event: 'filler', data: 'x'.repeat(900_000) })
      await slow.connection.addSubscription('b')
      await until(() => large.questions.length === 1 && slow.connection.stats().queuedBytes > 800_000)
      await turns(10)
      const others = counted(() => rows(200, 'y'.repeat(10_000)))
      const { stream } = await service.join('bob', [], { snapshot: others.snapshot })
      await stream.until(() => stream.named('row').length === 200 || !stream.isOpen)
      t.ok(stream.isOpen, `key ${key}: who reads has the state`)
      slow.stream.thaw()
      await slow.stream.until(() => slow.stream.named('row').length === 100 || !slow.stream.isOpen)
      t.ok(slow.stream.isOpen, 'and who did not read has it later')
      t.equal(large.questions.length, 2)
    }
  })
})

t.test('each client keeps its number of failures until it has a state', async t => {
  const service = await serve(t)
  const { snapshot, questions } = gated()
  const at = service.app.sse.position()
  const { stream } = await service.join('ada', ['a'], { snapshot, cursor: `${at}!5` })
  await until(() => questions.length === 1)
  t.equal(stream.lastEventId, `${at}!5`, 'one that is cut now does not begin to count anew')
})

t.test('a listener of gaps that rejects is logged', async t => {
  const lines: string[] = []
  const service = await serve(t, {}, { logger: { level: 'error', stream: { write: (line: string) => { lines.push(line) } } } })
  const { connection, stream } = await service.join('ada', ['a'], { cursor: 'zzzzzzzz.1' })
  connection.onGap(async () => {
    await sleep(1)
    throw new Error('no database')
  })
  await until(() => lines.length > 0)
  t.match(JSON.parse(lines[0]!), { msg: /onGap/, err: { message: 'no database' } })
  await settle(service, stream)
  t.equal(texts(stream, 'settled').length, 1)
  t.equal(connection.resumed, false)
})
