import t, { type Test } from 'tap'
import { testClock, type TestStream } from '../../lib/testing/index.js'
import type { EventPriority, SnapshotOptions, SnapshotQuestion, SSEConnection, SSEOptions } from '../../lib/index.js'
import { block, payloads, serve, settle, texts } from '../helpers/app.js'
import { collect } from '../helpers/heap.js'
import { counted, gated } from '../helpers/loads.js'
import { turns, until } from '../helpers/wait.js'

// The memory of snapshots: who keeps it, who gives it up, and that it is given back.

interface Client {
  stream: TestStream
  connection: SSEConnection
}

/** A server and clients with connections in memory, which take exactly what they read. */
async function inMemory (t: Test, options: SSEOptions) {
  const clock = testClock()
  let snapshot: SnapshotOptions
  const connections: SSEConnection[] = []
  const service = await serve(t, { stallTimeoutMs: 0, ...clock.options, ...options }, {}, app => {
    app.get('/state', { sse: true }, async (request, reply) => { connections.push(await reply.sse({ snapshot })) })
  })
  const { sse } = service.app
  return {
    sse,
    /** Opens a stream whose state is `answer`. */
    async open (answer: unknown): Promise<Client> {
      snapshot = counted(() => answer).snapshot
      const stream = await service.open('/state', { socket: false })
      return { stream, connection: connections.at(-1)! }
    },
    /** Opens a stream that stops to read before its state arrives. `unreadMs`: the time that passes then. */
    async openFrozen (answer: unknown, { atLeast = 100_000, unreadMs = 3_000 } = {}): Promise<Client> {
      const { snapshot: waiting, release } = gated(() => answer)
      snapshot = waiting
      const stream = await service.open('/state', { socket: false })
      const connection = connections.at(-1)!
      stream.freeze()
      await release()
      await until(() => !connection.stats().lagging && connection.stats().queuedBytes > atLeast)
      await clock.advance(unreadMs)
      return { stream, connection }
    }
  }
}

const large = (bytes: number) => ({ event: 'state', data: 'x'.repeat(bytes) })
const rows = (count: number, bytes: number) => Array.from({ length: count }, () => ({ event: 'state', data: 'x'.repeat(bytes) }))
const hasAll = async ({ stream }: Pick<Client, 'stream'>, count: number): Promise<boolean> => {
  await stream.until(() => stream.named('state').length === count || !stream.isOpen)
  return stream.isOpen
}

for (const [name, state, count] of [['one large event', large(900_000), 1], ['many events', rows(90, 10_000), 90]] as const) {
  t.test(`clients that do not read keep no state of ${name} that others need`, async t => {
    const { sse, open, openFrozen } = await inMemory(t, { maxQueuedBytes: 4_000_000 })
    const frozen: Client[] = []
    for (let n = 0; n < 6; n++) frozen.push(await openFrozen(state))
    for (let n = 0; n < 3; n++) {
      const client = await open(state)
      t.ok(await hasAll(client, count), 'a client that reads has its state')
      await client.stream.close()
    }
    const reasons = frozen.map(({ connection }) => connection.closeReason)
    t.ok(reasons.includes('snapshot-error') && reasons.includes(null), `no more than needed gave way: ${reasons.join()}`)
    t.strictSame(reasons, [...reasons].sort((one, other) => Number(one === null) - Number(other === null)), 'those that have not read for the longest time')
    for (const { stream } of frozen) await stream.close()
    await until(() => sse.connectionCount === 0)
    t.equal(sse.stats().queuedBytes, 0)
  })
}

t.test('a client that was written its whole state keeps its stream, although it does not read', async t => {
  const { open, openFrozen } = await inMemory(t, { maxQueuedBytes: 1_000_000 })
  const written: Client[] = []
  for (let n = 0; n < 5; n++) written.push(await openFrozen(rows(2, 10_000), { atLeast: 15_000 }))
  const halfway = await openFrozen(rows(60, 10_000))
  t.ok(await hasAll(await open(rows(70, 10_000)), 70))
  t.equal(halfway.connection.closeReason, 'snapshot-error')
  t.strictSame(written.map(({ connection }) => connection.closeReason), [null, null, null, null, null])
})

t.test('a load that starts when its client no longer reads waits until it does', async t => {
  const service = await serve(t)
  const busy = gated()
  await service.join('eve', [], { snapshot: { ...busy.snapshot, maxConcurrent: 1 } })
  await until(() => busy.questions.length === 1)
  const { snapshot, asked } = counted()
  const waiting = await service.join('ada', ['a'], { cursor: service.app.sse.position(), snapshot: { ...snapshot, maxConcurrent: 1 } })
  await waiting.connection.addSubscription('b')
  await block(waiting)
  await busy.release()
  const other = await service.join('bob', [], { snapshot: { ...counted().snapshot, maxConcurrent: 1 } })
  await other.stream.next('state')
  t.strictSame(asked(), [])
  waiting.stream.thaw()
  await waiting.stream.next('state')
  t.strictSame(asked(), ['added b'])
})

t.test('a client that reads slowly keeps its state, and one that does not read loses it', async t => {
  const { open, openFrozen } = await inMemory(t, { maxQueuedBytes: 4_000_000 })
  const slow = await openFrozen(rows(100, 10_000))
  const frozen = await openFrozen(rows(100, 10_000))
  slow.stream.thaw()
  await slow.stream.until(() => slow.stream.receivedBytes > 100_000)
  slow.stream.freeze()
  t.ok(slow.stream.receivedBytes < 1_000_000)
  const other = await open(rows(250, 10_000))
  t.ok(await hasAll(other, 250))
  t.equal(frozen.connection.closeReason, 'snapshot-error')
  t.equal(slow.connection.closeReason, null)
  slow.stream.thaw()
  t.ok(await hasAll(slow, 100))
})

t.test('a client in the middle of its state keeps it while it reads, although it often cannot be written to', async t => {
  const { sse, open, openFrozen } = await inMemory(t, { maxQueuedBytes: 4_000_000 })
  const reading = await openFrozen(rows(300, 10_000), { unreadMs: 0 })
  const other = await open(rows(150, 10_000))
  t.notOk(await hasAll(other, 150))
  t.match(other.stream.named('sse:close')[0]!.json, { reason: 'snapshot-error' }, 'it reconnects later')
  reading.stream.thaw()
  t.ok(await hasAll(reading, 300))
  t.ok(await hasAll(await open(rows(150, 10_000)), 150))
  for (const stream of [reading.stream, other.stream]) await stream.close()
  await until(() => sse.stats().queuedBytes === 0)
})

t.test('no stream ends in vain: of a state that is sent in part, only the rest can give way', async t => {
  const { open, openFrozen } = await inMemory(t, { maxQueuedBytes: 4_000_000, maxEventBytes: 4_000_000 })
  const almost = await openFrozen(rows(290, 10_000))
  almost.stream.thaw()
  await almost.stream.until(() => almost.stream.receivedBytes > 2_500_000)
  almost.stream.freeze()
  t.ok(almost.stream.receivedBytes < 2_900_000)
  const reading = await openFrozen(rows(100, 10_000))
  reading.stream.thaw()
  await reading.stream.until(() => reading.stream.receivedBytes > 50_000)
  reading.stream.freeze()
  t.notOk(await hasAll(await open(large(3_300_000)), 1))
  t.strictSame([almost, reading].map(({ connection }) => connection.closeReason), [null, null])
  almost.stream.thaw()
  t.ok(await hasAll(almost, 290))
})

t.test('logged events of slow clients make room for states, and are read from the log later', async t => {
  const service = await serve(t, { maxQueuedBytes: 4_000_000, stallTimeoutMs: 0 })
  const { sse } = service.app
  const slow = await Promise.all(Array.from({ length: 5 }, (_, n) => service.join(`user-${n}`, [`t${n}`])))
  for (const joined of slow) await block(joined)
  const text = 'x'.repeat(10_000)
  const publish = async (n: number, count: number) => { for (let i = 0; i < count; i++) await sse.broadcastEvent({ event: 'x', data: { i, text }, priority: (i % 4) as EventPriority }, { subscriptionIds: [`t${n}`] }) }
  for (const n of slow.keys()) await publish(n, 50)
  const queued = sse.stats().queuedBytes
  t.ok(queued > 2_500_000, `${queued} bytes wait`)
  const { stream } = await service.join('bob', [], { snapshot: counted(() => rows(250, 10_000)).snapshot })
  t.ok(await hasAll({ stream }, 250))
  t.ok(sse.stats().queuedBytes < queued - 1_000_000)
  for (const { stream } of slow) stream.thaw()
  await settle(service, ...slow.map(({ stream }) => stream))
  for (const { stream } of slow) {
    t.strictSame(payloads(stream, 'x').map(({ i }) => i).sort((a, b) => a - b), Array.from({ length: 50 }, (_, i) => i), 'each event once')
    t.strictSame(stream.named('sse:gap'), [])
  }
})

t.test('nothing of a load is kept for a stream that has its state', async t => {
  const service = await serve(t)
  const signals: WeakRef<AbortSignal>[] = []
  const { stream, connection } = await service.join('ada', ['a'], {
    snapshot: {
      load ({ signal }: SnapshotQuestion) {
        signals.push(new WeakRef(signal))
        return { event: 'state', data: 1 }
      }
    }
  })
  await stream.next('state')
  await connection.addSubscription('b')
  await stream.until(() => stream.named('state').length === 2)
  await until(() => {
    collect()
    return signals.every(signal => signal.deref() === undefined)
  })
  t.equal(signals.length, 2)
  t.ok(stream.isOpen)
})

t.test('what is sent to a client waits behind its state, however large that is', async t => {
  const service = await serve(t, { outboxBytes: 10_000 })
  const { questions, snapshot, release } = gated(() => rows(40, 10_000))
  const { stream, connection } = await service.join('ada', ['a'], { snapshot })
  await connection.addSubscription('b')
  await until(() => questions.length === 1)
  await connection.addSubscription('c')
  stream.freeze()
  await release()
  await until(() => connection.stats().queuedBytes > 100_000)
  t.equal(connection.sendEvent({ event: 'own', data: 1 }), true)
  stream.thaw()
  await until(() => questions.length === 2)
  await release()
  await settle(service, stream)
  t.strictSame(texts(stream, 'own'), ['1'])
})

t.test('a stream that an abort listener changes leaves no load behind', async t => {
  const service = await serve(t)
  const signals: AbortSignal[] = []
  const snapshot: SnapshotOptions = {
    async load ({ connection, signal }) {
      signals.push(signal)
      signal.addEventListener('abort', () => { connection.removeSubscription('b').catch(() => {}) })
      await turns(3)
      throw new Error('no database')
    }
  }
  const { stream } = await service.join('ada', ['a', 'b'], { snapshot })
  await stream.until(() => !stream.isOpen)
  await until(() => service.app.sse.connectionCount === 0)
  await turns(10)
  t.equal(signals.length, 1)
  t.equal(service.app.sse.stats().queuedBytes, 0)
})

t.test('a stream that is blocked asks for nothing while it closes', async t => {
  const service = await serve(t)
  const { snapshot, asked } = counted()
  const joined = await service.join('ada', ['a'], { snapshot })
  await joined.stream.next('state')
  await block(joined)
  await joined.connection.addSubscription('b')
  joined.connection.close()
  joined.stream.thaw()
  await joined.stream.until(() => !joined.stream.isOpen)
  t.strictSame(asked(), ['connect a'])
  t.match(joined.stream.lastEventId, /!0$/, 'its cursor says that a state is missing')
})
