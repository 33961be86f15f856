import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { block, FILLER_BYTES, payloads, serve } from '../helpers/app.js'
import { logged } from '../helpers/logged.js'
import { turns, until } from '../helpers/wait.js'
import { testClock, type TestStream } from '../../lib/testing/index.js'

// The end of a connection, whoever ends it and however: told to the client, and nothing left behind.

const closes = (stream: TestStream): unknown[] => payloads(stream, 'sse:close')

/** Nothing runs for so long, as in a process that was stopped, or one that computes. */
function standStill (ms: number): void {
  const until = performance.now() + ms
  while (performance.now() < until);
}

t.test('after the event loop stood still, clients that read are neither stalled nor cut', async t => {
  await t.test('stallTimeoutMs', async t => {
    const { join } = await serve(t, { stallTimeoutMs: 300 })
    const joined = await join('ada')
    await block(joined)
    joined.stream.thaw()
    standStill(1000)
    joined.connection.sendEvent({ event: 'after', data: 1 })
    await joined.stream.next('after')
    t.equal(joined.connection.closeReason, null)
  })

  await t.test('drainMs', async t => {
    const { app, join } = await serve(t, { drainMs: 300 })
    const joined = await join('ada')
    await block(joined)
    const closing = app.close()
    await until(() => joined.connection.closeReason !== null)
    joined.stream.thaw()
    standStill(1000)
    await closing
    await joined.stream.ended
    t.strictSame(closes(joined.stream), [{ reason: 'shutdown', reconnect: true }])
    t.equal((await joined.stream.ended).by === 'server', true)
  })

  await t.test('a client that does not read is stalled all the same', async t => {
    const { join } = await serve(t, { stallTimeoutMs: 300 })
    const joined = await join('ada')
    await block(joined)
    standStill(1000)
    await until(() => joined.connection.closeReason !== null)
    t.equal(joined.connection.closeReason, 'stalled')
  })
})

t.test('a slow client that makes progress is not stalled, and misses nothing', async t => {
  const stallTimeoutMs = 1000
  const { app, join } = await serve(t, { stallTimeoutMs, outboxBytes: 65_536 })
  const slow = await join('ada', ['news'])
  slow.stream.freeze()
  const { sentEvents: before } = slow.connection.stats()
  let published = 0
  // More than the kernel takes, so that the socket is full, and less than the history holds. However fast the client reads, there is always more for it.
  const fill = async () => {
    while (published - (slow.connection.stats().sentEvents - before) < 1000) {
      for (let i = 0; i < 20; i++) await app.sse.broadcastToSubscriptions({ data: `${published++} ${'x'.repeat(16_000)}` }, ['news'])
      await turns(1)
    }
  }
  await fill()
  await until(() => slow.connection.stats().lagging)
  // For three times as long as a client may take nothing: each time it reads until its socket has taken something.
  const began = performance.now()
  let reads = 0
  while (performance.now() - began < 3 * stallTimeoutMs && slow.connection.isConnected) {
    await fill()
    const { sentEvents } = slow.connection.stats()
    slow.stream.thaw()
    await until(() => slow.connection.stats().sentEvents > sentEvents || !slow.connection.isConnected)
    slow.stream.freeze()
    reads++
    await sleep(stallTimeoutMs / 5)
  }
  t.equal(slow.connection.closeReason, null, 'still open')
  t.ok(reads > 1, `${reads} reads`)
  slow.stream.thaw()
  await slow.stream.collect(published, 'message')
  t.strictSame(slow.stream.named('message').map(({ data }) => parseInt(data!)), Array.from({ length: published }, (_, i) => i))
  t.equal(slow.stream.named('sse:gap').length, 0)
})

t.test('a client that does not read is cut drainMs after its stream was closed, however rarely the stream is looked at', async t => {
  const { app, join } = await serve(t, { drainMs: 200, stallTimeoutMs: 0, keepAliveIntervalMs: 600_000 })
  const slow = await join('ada')
  await block(slow)
  slow.connection.close('kicked')
  await until(() => app.sse.connectionCount === 0)
  t.equal(slow.connection.signal.reason.closeReason, 'kicked')
})

t.test('clients that are cut because they read nothing are one line in the log, with the first of them and their number', async t => {
  const time = testClock()
  const { service: { app, join }, lines } = await logged(t, { stallTimeoutMs: 30_000, ...time.options })
  const stalled = () => lines.filter(({ msg }) => msg === 'Clients were disconnected that had read nothing for stallTimeoutMs')
  const stall = async (userIds: readonly (string | null)[]) => {
    const joined = await Promise.all(userIds.map(userId => join(userId)))
    for (const one of joined) await block(one)
    await time.advance(31_000)
    t.strictSame(joined.map(({ connection }) => connection.closeReason), userIds.map(() => 'stalled'))
    return joined
  }
  const together = await stall(['ada', 'ada', 'ada', null])
  t.strictSame(stalled(), [], 'more can follow')
  await time.advance(5_000)
  t.equal(stalled().length, 1)
  t.match(stalled()[0], { level: 40, userId: 'ada', queuedBytes: Number, lagging: false, count: 4 })
  t.ok(stalled()[0].queuedBytes >= FILLER_BYTES)
  t.ok(together.some(({ connection }) => connection.clientId === stalled()[0].clientId))

  const [next] = await stall([null])
  await app.close()
  t.match(stalled().slice(1), [{ clientId: next!.connection.clientId, userId: null, count: 1 }], 'nothing is left unsaid when the node closes')
})

t.test('streams that are closed because authorizeSubscription does not answer are one line in the log', async t => {
  const time = testClock()
  let asks = false
  const { service: { app, join }, lines } = await logged(t, { stallTimeoutMs: 30_000, authorizeSubscription: async () => asks ? await new Promise(() => {}) : true, ...time.options })
  const joined = [await join('ada', ['news']), await join('ada', ['news'])]
  asks = true
  app.sse.reauthorize('ada').catch(() => {})
  await time.advance(36_000)
  t.strictSame(joined.map(({ connection }) => connection.closeReason), ['rights-unknown', 'rights-unknown'])
  await time.advance(5_000)
  t.match(lines.filter(({ msg }) => /authorizeSubscription/.test(msg)), [{ level: 40, clientId: String, userId: 'ada', count: 2 }])
})
