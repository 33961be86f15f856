import t from 'tap'
import { EventPriority } from '../../lib/events/event-rules.js'
import { bytesOf } from '../../lib/events/message.js'
import { appending, unavailable } from '../helpers/appender.js'
import { collect } from '../helpers/heap.js'
import { fakeTimers } from '../helpers/timers.js'
import { turns } from '../helpers/wait.js'

// Time-outs, bounds and the end of pending publishes.

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
  const message = { event: 'e', data: 'x', priority: EventPriority.NORMAL, target: {}, ephemeral: false }
  const bytes = 3 * (512 + bytesOf(message))
  for (const [maxPendingBytes, count] of [[bytes - 1, 2], [bytes, 3], [bytes + 1, 3]] as const) {
    const { connect, publish } = appending(t, { maxPendingBytes })
    await connect()
    for (let i = 0; i < count; i++) publish('x')
    t.throws(() => publish('x'), unavailable(/maxPendingBytes/))
  }
})

t.test('what has timed out leaves the queue and is forgotten; what is behind it keeps its place and its time', async t => {
  const time = fakeTimers(t)
  const { appender, sent, connect, publish } = appending(t, { publishTimeoutMs: 1_000, waitWhenDown: true })
  const lost = new Error('the socket has closed')
  appender.lost(lost)
  const first = ['1', '2'].map(text => {
    const message = { event: 'e', data: text, priority: EventPriority.NORMAL, target: {}, ephemeral: false }
    return { rejects: t.rejects(appender.publish(message), unavailable(/cannot be reached; nothing was published/, lost)), kept: new WeakRef(message) }
  })
  await time.advance(1)
  const close = publish('a millisecond later')
  await time.advance(399)
  const then = [publish('3'), publish('4')]
  t.equal(time.count, 1)
  await time.advance(600)
  for (const { rejects } of first) await rejects
  t.equal(await Promise.race([close, turns(2).then(() => 'pending')]), 'pending')
  await time.advance(2)
  await t.rejects(close, unavailable(/nothing was published/))
  await turns(2)
  collect()
  t.strictSame(first.map(({ kept }) => kept.deref()), [undefined, undefined])
  await connect()
  await turns(1)
  t.strictSame(sent.map(({ texts }) => texts), [['3', '4']])
  t.equal(sent[0]!.remainingMs(), 398)
  const last = publish('5')
  await time.advance(397)
  t.equal(await Promise.race([...then, turns(2).then(() => 'pending')]), 'pending')
  await time.advance(2)
  for (const publishing of then) {
    const error = await publishing.catch((error: Error) => error) as Error
    t.match(error, unavailable(/whether the event was published is not known/))
    t.equal(error.cause, undefined, 'there is a connection')
  }
  await time.advance(602)
  await t.rejects(last, unavailable(/nothing was published/))
  t.equal(time.count, 0)
})

t.test('closing waits for answers while there is a connection, and leaves no timer', async t => {
  const timers = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length
  const before = timers()
  const { appender, sent, connect, publish, see } = appending(t, { waitWhenDown: true })
  await connect()
  const pending = [publish('1'), publish('2')]
  let closed = false
  const closing = appender.close().then(() => { closed = true })
  await turns(3)
  t.equal(closed, false)
  sent[0]!.resolve({ epoch: 1, first: 1 })
  appender.seen(sent[0]!.items[0]!.nonce, 1, 1)
  await turns(3)
  t.equal(closed, false, 'one is left')
  see(sent[0]!, 1)
  await closing
  t.strictSame(await Promise.all(pending), [{ seq: 1, delivered: 1 }, { seq: 2, delivered: 1 }])
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
