import t, { type Test } from 'tap'
import { EventPriority, type OutgoingMessage } from '../../lib/index.js'
import { Appender } from '../../lib/log/redis/appender.js'
import type { Connection } from '../../lib/log/redis/client.js'
import type { Appended, Batch, RedisStore } from '../../lib/log/redis/store.js'
import { turns } from '../helpers/wait.js'

const HISTORY = { maxEvents: 10, maxAgeMs: 60_000, maxBytes: 1_000 }
const unavailable = (message: RegExp, cause?: Error) => ({ code: 'SSE_ERR_BROKER_UNAVAILABLE', message, ...(cause !== undefined && { cause }) })

interface Sent extends Batch {
  readonly texts: string[]
  readonly over: Connection
  resolve (place: Appended): void
  reject (error: Error): void
}

/** An appender on a store that answers when the test says so. */
function appending (t: Test, { publishTimeoutMs = 60_000, maxPendingBytes = 1e9, waitWhenDown = false } = {}) {
  const sent: Sent[] = []
  const store = {
    writerId: 'writer',
    greet: async () => {},
    append: (over: Connection, batch: Batch) => new Promise((resolve, reject) => {
      sent.push({ ...batch, texts: batch.items.map(({ message: { data } }) => data), over, resolve, reject })
    })
  }
  const appender = new Appender(store as unknown as RedisStore, HISTORY, { publishTimeoutMs, maxPendingBytes, waitWhenDown })
  t.teardown(async () => {
    appender.lost(new Error('over'))
    await appender.close()
  })
  const failures: Error[] = []
  return {
    appender,
    sent,
    /** Errors of connections, as their link learns of them. */
    failures,
    async connect () {
      const connection: Connection = { send: async () => null, destroy: () => {} }
      appender.serve(connection, () => {}).catch(error => { failures.push(error) })
      await turns(1)
      return connection
    },
    publish (data: string, more: Partial<OutgoingMessage> = {}) {
      const publishing = appender.publish({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, ...more })
      publishing.catch(() => {})
      return publishing
    },
    /** The reader of this node has read the messages of a batch. */
    see ({ items }: Sent, first: number) {
      for (const [i, { nonce }] of items.entries()) appender.seen(nonce, first + i, 1)
    }
  }
}

t.test('messages of a turn share a batch of 128 or a megabyte at most, and the next is sent when it is answered', async t => {
  const { appender, sent, connect, publish, see } = appending(t)
  await connect()
  const texts = Array.from({ length: 130 }, (_, i) => String(i))
  const small = texts.map(text => publish(text))
  await turns(1)
  const large = [400, 400, 400, 2_000, 1].map(kilobytes => publish('x'.repeat(kilobytes * 1_000)))
  await turns(2)
  t.equal(sent.length, 1, 'one at a time')
  let first = 1
  for (let i = 0; i < 5; i++) {
    sent[i]!.resolve({ epoch: 1, first })
    await turns(1)
    see(sent[i]!, first)
    first += sent[i]!.items.length
    await turns(1)
  }
  t.strictSame(sent.map(({ number, texts }) => [number, texts.length]), [[1, 128], [2, 4], [3, 1], [4, 1], [5, 1]])
  t.strictSame(sent[0]!.texts.concat(sent[1]!.texts.slice(0, 2)), texts, 'in order')
  t.equal(sent[3]!.texts[0]!.length, 2_000_000, 'one that is larger goes alone')
  t.strictSame((await Promise.all([...small, ...large])).map(({ seq }) => seq), Array.from({ length: 135 }, (_, i) => i + 1))
  appender.seen('unknown', 1, 1)
  await appender.close()
})

t.test('a batch whose reply was lost is sent again as it was; what waits behind it is rejected, or waits', async t => {
  for (const waitWhenDown of [false, true]) {
    const { appender, sent, failures, connect, publish, see } = appending(t, { waitWhenDown })
    if (!waitWhenDown) t.throws(() => publish('before'), unavailable(/has not been reached yet|cannot be reached; nothing was published/))
    const first = await connect()
    const one = publish('1')
    await turns(1)
    const behind = publish('2')
    const lost = new Error('the socket has closed')
    if (waitWhenDown) {
      // The link learns of it first, and has made another connection when the append fails.
      appender.lost(lost)
      await connect()
      sent[0]!.reject(lost)
    } else {
      sent[0]!.reject(lost)
      await turns(1)
      t.strictSame(failures, [lost])
      t.throws(() => publish('at once'), unavailable(/nothing was published/))
      appender.lost(lost)
      await t.rejects(behind, unavailable(/cannot be reached; nothing was published/, lost))
      t.throws(() => publish('3'), unavailable(/cannot be reached; nothing was published/, lost))
      await connect()
    }
    await turns(1)
    t.equal(sent.length, 2)
    t.strictSame([sent[1]!.number, sent[1]!.texts], [1, ['1']], 'the same number')
    t.not(sent[1]!.over, first)
    sent[1]!.resolve({ epoch: 1, first: 1 })
    await turns(1)
    see(sent[1]!, 1)
    t.strictSame(await one, { seq: 1, delivered: 1 })
    if (waitWhenDown) {
      t.strictSame([sent[2]!.number, sent[2]!.texts], [2, ['2']])
      sent[2]!.resolve({ epoch: 1, first: 2 })
      see(sent[2]!, 2)
      t.strictSame(await behind, { seq: 2, delivered: 1 })
    } else {
      t.equal(sent.length, 2)
    }
    t.equal(failures.length, waitWhenDown ? 0 : 1, 'the new connection goes on')
    await appender.close()
  }
})

t.test('a batch that Redis refuses is rejected, and never sent again', async t => {
  const { appender, sent, failures, connect, publish } = appending(t)
  await connect()
  const [one, two] = [publish('1'), publish('2')]
  await turns(1)
  const refusal = new Error('OOM command not allowed, with the data of a user')
  sent[0]!.reject(refusal)
  for (const publishing of [one, two]) await t.rejects(publishing, unavailable(/^The event log cannot be written, Redis answers OOM; nothing was published$/, refusal))
  t.strictSame(failures, [refusal])
  appender.lost(refusal)
  await connect()
  publish('3')
  await turns(1)
  t.strictSame(sent.map(({ number, texts }) => [number, texts]), [[1, ['1', '2']], [2, ['3']]])
})

t.test('a message that this node will not read any more is answered by what became of it', async t => {
  const { appender, sent, connect, publish } = appending(t)
  await connect()
  const batch = async (place: Appended, ...ephemeral: boolean[]) => {
    const publishing = ephemeral.map(ephemeral => publish('', { ephemeral }))
    await turns(1)
    sent.at(-1)!.resolve(place)
    await turns(1)
    return publishing
  }
  const lost = unavailable(/was lost together with the event/)
  appender.skipped(1, 19)
  const [a, b, c] = await batch({ epoch: 1, first: 20 }, false, true, false)
  appender.skipped(1, 20)
  t.strictSame(await a, { seq: 20, delivered: 0 }, 'it is in the log')
  t.equal(await Promise.race([b, c, turns(2).then(() => 'pending')]), 'pending')
  appender.skipped(2, 0)
  await t.rejects(b!, lost)
  await t.rejects(c!, lost)
  // The reader was first.
  appender.skipped(3, 5)
  const [d, e] = await batch({ epoch: 3, first: 5 }, false, false)
  t.strictSame(await d, { seq: 5, delivered: 0 })
  appender.seen(sent.at(-1)!.items[1]!.nonce, 6, 4)
  t.strictSame(await e, { seq: 6, delivered: 4 })
  const [f] = await batch({ epoch: 2, first: 9 }, false)
  await t.rejects(f!, lost)
  const [g] = await batch({ epoch: 4, first: 1 }, true)
  appender.seen(sent.at(-1)!.items[0]!.nonce, null, 2)
  t.strictSame(await g, { seq: null, delivered: 2 }, 'of an epoch that it has not reached')
})

t.test('a publish times out by itself, and it is said what is known of it', async t => {
  const TIMEOUT_MS = 500
  const { appender, sent, connect, publish } = appending(t, { publishTimeoutMs: TIMEOUT_MS })
  await connect()
  appender.skipped(1, 0)
  const logged = [publish('logged'), publish('not logged', { ephemeral: true })]
  await turns(1)
  sent[0]!.resolve({ epoch: 1, first: 7 })
  const elsewhere = publish('of an epoch that this node has not reached')
  await turns(1)
  sent[1]!.resolve({ epoch: 2, first: 1 })
  await turns(1)
  const underWay = publish('under way')
  await turns(1)
  const queued = publish('queued')
  const waitedUntil = performance.now() + TIMEOUT_MS / 2
  while (performance.now() < waitedUntil) await turns(1)
  const publishedAt = performance.now()
  const later = publish('later').catch(error => ({ error, at: performance.now() })) as Promise<{ error: Error, at: number }>
  t.strictSame(await Promise.all(logged), [{ seq: 7, delivered: 0 }, { seq: null, delivered: 0 }], 'it is in the log, only the reader is late')
  const unknown = unavailable(/did not answer in time; whether the event was published is not known/)
  await t.rejects(elsewhere, unknown)
  await t.rejects(underWay, unknown)
  await t.rejects(queued, unavailable(/nothing was published/))
  const { error, at } = await later
  t.match(error, unavailable(/nothing was published/))
  t.ok(at - publishedAt >= TIMEOUT_MS - 10, `each has its own time, not ${at - publishedAt} ms`)
  // Once all have timed out, the next one does too.
  await t.rejects(publish('afterwards'), unavailable(/nothing was published/))
  sent[2]!.resolve({ epoch: 1, first: 8 })
  const next = publish('next')
  next.catch(() => {})
  await turns(2)
  t.strictSame(sent[3]!.texts, ['next'], 'what has timed out is not sent')
})

t.test('a batch has the time of its oldest message', async t => {
  const { sent, connect, publish } = appending(t, { publishTimeoutMs: 60_000 })
  await connect()
  publish('first')
  await turns(1)
  publish('second')
  const after = performance.now()
  while (performance.now() < after + 50) await turns(1)
  publish('third')
  sent[0]!.resolve({ epoch: 1, first: 1 })
  await turns(2)
  t.strictSame(sent[1]!.texts, ['second', 'third'])
  const now = performance.now()
  t.ok(sent[1]!.remainingMs() <= after + 60_000 - now)
})

t.test('publishes without an answer are bounded by their bytes, but one is always taken', async t => {
  const { sent, connect, publish, see } = appending(t, { maxPendingBytes: 4_000 })
  await connect()
  const large = publish('x'.repeat(10_000))
  t.throws(() => publish('x'), unavailable(/maxPendingBytes; nothing was published/))
  await turns(1)
  see(sent[0]!, 1)
  await large
  // 512 bytes each beside the text and the name.
  for (let i = 0; i < 4; i++) publish('x'.repeat(400))
  t.throws(() => publish('x'.repeat(400)), unavailable(/maxPendingBytes/))
})

t.test('closing waits for answers while there is a connection, and leaves no timer', async t => {
  const timers = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length
  const before = timers()
  const { appender, sent, connect, publish, see } = appending(t, { waitWhenDown: true })
  await connect()
  const pending = publish('1')
  let closed = false
  const closing = appender.close().then(() => { closed = true })
  await turns(3)
  t.equal(closed, false)
  sent[0]!.resolve({ epoch: 1, first: 1 })
  see(sent[0]!, 1)
  await closing
  t.strictSame(await pending, { seq: 1, delivered: 1 })
  t.equal(timers(), before)

  const down = appending(t, { waitWhenDown: true })
  const waiting = down.publish('1')
  await down.appender.close()
  await t.rejects(waiting, { code: 'SSE_ERR_CLOSED' })
  t.equal(timers(), before)
})

t.test('a batch that arrived too late is formed anew of what is still in time, in front of what came later', async t => {
  const { appender, sent, connect, publish, see } = appending(t, { publishTimeoutMs: 500, waitWhenDown: true, maxPendingBytes: 4_000 })
  await connect()
  const one = publish('1')
  await turns(1)
  const two = publish('2')
  sent[0]!.resolve(null)
  await turns(2)
  t.strictSame(sent.map(({ number, texts }) => [number, texts]), [[1, ['1']], [2, ['1', '2']]])
  sent[1]!.resolve(null)
  appender.lost(new Error('the socket has closed'))
  for (const publishing of [one, two]) await t.rejects(publishing, unavailable(/nothing was published/), 'it is known that it was not')
  await connect()
  const three = publish('3')
  await turns(2)
  t.strictSame(sent.slice(2).map(({ texts }) => texts), [['3']])
  await t.rejects(three, unavailable(/is not known/))
  sent[2]!.resolve(null)
  await turns(2)
  t.equal(sent.length, 3, 'nothing is left of it to be sent')

  // The reply of a batch that has timed out settles nothing twice.
  const four = publish('4'.repeat(2_000))
  await turns(2)
  await t.rejects(four, unavailable(/is not known/))
  appender.skipped(1, 9)
  sent[3]!.resolve({ epoch: 1, first: 9 })
  await turns(2)
  publish('x'.repeat(1_000))
  t.throws(() => publish('x'.repeat(3_000)), unavailable(/maxPendingBytes/))
  see(sent[3]!, 9)
})

t.test('a reply that arrived while the event loop was blocked is in time', async t => {
  const { sent, connect, publish, see } = appending(t, { publishTimeoutMs: 50 })
  await connect()
  const publishing = publish('1')
  await turns(1)
  setImmediate(() => see(sent[0]!, 1))
  const blockedUntil = performance.now() + 100
  while (performance.now() < blockedUntil);
  t.strictSame(await publishing, { seq: 1, delivered: 1 })
})
