import t, { type Test } from 'tap'
import { Type } from '@sinclair/typebox'
import { defineEvents, type SharedSnapshotQuestion, type SnapshotOptions } from '../../lib/index.js'
import { testClock } from '../../lib/testing/index.js'
import { block, payloads, serve, settle, type Service } from '../helpers/app.js'
import { counted, gated } from '../helpers/loads.js'
import { blocksOf } from '../helpers/raw.js'
import { turns, until } from '../helpers/wait.js'

/** Waits for the end of a stream whose load has failed, and returns what it was sent. */
async function failed (t: Test, { stream }: { stream: Awaited<ReturnType<Service['open']>> }) {
  await stream.until(() => !stream.isOpen)
  t.strictSame(payloads(stream, 'sse:close'), [{ reason: 'snapshot-error', reconnect: true }])
  return { id: blocksOf(stream.text).at(-1)!.id, retryMs: stream.retryMs! }
}

const fails: SnapshotOptions = { load: () => { throw new Error('no database') } }

t.test('a load that fails ends the stream, and the client waits longer each time', async t => {
  const service = await serve(t, { retryMs: 1_000 })
  let cursor: string | undefined
  const waits: number[] = []
  for (let n = 1; n <= 8; n++) {
    const { id, retryMs } = await failed(t, await service.join('ada', ['a'], { snapshot: fails, ...(cursor !== undefined && { cursor }) }))
    t.equal(id, `!${n}`, 'the client has no cursor, and the number of failures')
    cursor = id!
    waits.push(retryMs)
  }
  for (const [n, retryMs] of waits.entries()) {
    const least = Math.min(1_000 * 2 ** n, 30_000)
    t.ok(retryMs >= least && retryMs <= 2 * least, `after ${n + 1} failures: ${retryMs}`)
  }
  t.ok(new Set(waits.slice(-3)).size > 1, 'spread')
  const { snapshot } = counted()
  const { stream, connection } = await service.join('ada', ['a'], { snapshot, cursor: cursor! })
  await stream.next('state')
  t.equal(connection.lastEventId, null)
  t.notMatch(stream.lastEventId, '!')

  await t.test('a client with a cursor keeps it', async t => {
    await service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds: ['b'] })
    const at = stream.lastEventId
    for (const [sent, kept] of [['zzzzzzzz.1', 'zzzzzzzz.1'], ['garbage', '-'], ['zzzzzzzz.1!4', 'zzzzzzzz.1']] as const) {
      const { id } = await failed(t, await service.join('ada', ['a'], { snapshot: fails, cursor: sent }))
      t.equal(id, `${kept}!${sent.endsWith('!4') ? 5 : 1}`)
    }
    const { id } = await failed(t, await service.join('ada', ['a', 'b'], { snapshot: fails, cursor: `${at}!0` }))
    t.match(id, /^[\w-]+\.\w+!1$/, 'it resumes, and its state is loaded again')
    const back = await service.join('ada', ['a', 'b'], { snapshot, cursor: id! })
    await settle(service, back.stream)
    t.ok(back.stream.named('state').length === 1)
  })

  await t.test('in the middle of a stream', async t => {
    let works = true
    const { stream, connection } = await service.join('ada', ['a'], { cursor: '!4', snapshot: { load: () => { if (works) return { event: 'state', data: 1 }; throw new Error('no database') } } })
    await stream.next('state')
    works = false
    await connection.addSubscription('b')
    const { id, retryMs } = await failed(t, { stream })
    t.match(id, /^[\w-]+\.\w+!1$/, 'failures before the state was sent do not count')
    t.ok(retryMs <= 2_000, `${retryMs}`)
  })
})

t.test('whatever a load returns that is no state', async t => {
  const events = defineEvents({ events: { state: Type.Object({ n: Type.Number() }) } })
  const service = await serve(t, { events })
  const good = { event: 'state', data: { n: 1 } }
  const answers: unknown[] = [undefined, 'text', 7, { event: 'other', data: 1 }, { event: 'state', data: {} }, { event: 'state' }, [good, { event: 'sse:gap', data: 1 }], [good, null], { ...good, id: '1' }]
  for (const answer of answers) {
    const { snapshot } = counted(() => answer)
    const joined = await service.join('ada', [], { snapshot })
    await failed(t, joined)
    t.strictSame(joined.stream.named('state'), [], 'nothing of it is sent')
  }
  const { stream } = await service.join('ada', [], { snapshot: counted(() => [good]).snapshot })
  t.strictSame((await stream.next('state')).json, { n: 1 })
})

t.test('a client has one call at a time, whatever changes meanwhile', async t => {
  const service = await serve(t)
  const slow = gated()
  const topics = Array.from({ length: 10 }, (_, n) => `t${n}`)
  const { stream, connection } = await service.join('ada', topics, { snapshot: slow.snapshot })
  await until(() => slow.questions.length === 1)
  for (const topic of topics.slice(1)) await connection.removeSubscription(topic)
  t.ok(slow.questions[0]!.signal.aborted)
  await turns(10)
  t.equal(slow.questions.length, 1)
  await slow.release()
  await until(() => slow.questions.length === 2)
  t.match(slow.questions[1], { reason: 'connect', subscriptions: ['t0'] })
  await slow.release()
  await settle(service, stream)
  t.strictSame(payloads(stream, 'state'), [['t0']], 'one state, without what was removed')
  t.equal(slow.questions.length, 2)

  await t.test('the call that is waited for ends by its time', async t => {
    const clock = testClock()
    const service = await serve(t, clock.options)
    const hangs = gated()
    const { stream, connection } = await service.join('ada', ['a', 'b'], { snapshot: { ...hangs.snapshot, timeoutMs: 2_000 } })
    await until(() => hangs.questions.length === 1)
    await connection.removeSubscription('b')
    await clock.advance(2_000)
    await until(() => hangs.questions.length === 2)
    t.ok(stream.isOpen)
    for (let n = 0; n < 2; n++) await hangs.release()
    t.strictSame((await stream.next('state')).json, ['a'])
  })
})

t.test('a load that is late', async t => {
  const clock = testClock()
  const service = await serve(t, clock.options)
  const slow = gated()
  const first = await service.join('ada', [], { snapshot: { ...slow.snapshot, timeoutMs: 2_000, maxConcurrent: 1 } })
  await until(() => slow.questions.length === 1)
  const second = await service.join('bob', [], { snapshot: { ...slow.snapshot, timeoutMs: 3_000, maxConcurrent: 1 } })
  await clock.advance(1_999)
  t.ok(first.stream.isOpen)
  await clock.advance(1)
  await failed(t, first)
  t.match(slow.questions[0]!.signal.reason, { code: 'SSE_ERR_SNAPSHOT_ABORTED', message: /within 2000 ms/ })
  await until(() => slow.questions.length === 2, undefined, 'the next one starts')
  const third = await service.join('eve', [], { snapshot: { ...slow.snapshot, timeoutMs: 1_000, maxConcurrent: 1 } })
  await clock.advance(1_000)
  await failed(t, third)
  t.equal(slow.questions.length, 2, 'one that has waited too long was never called')
  t.ok(second.stream.isOpen, 'its own time begins with its call')
  await slow.release()
  await slow.release()
  await second.stream.next('state')
})

t.test('at most maxConcurrent loads run on a node', async t => {
  const service = await serve(t)
  let running = 0
  let most = 0
  let calls = 0
  const snapshot: SnapshotOptions = {
    maxConcurrent: 3,
    load: async () => {
      calls++
      most = Math.max(most, ++running)
      await turns(5)
      running--
      return { event: 'state', data: calls }
    }
  }
  const joined = await Promise.all(Array.from({ length: 40 }, (_, i) => service.join(`user-${i}`, [], { snapshot })))
  await Promise.all(joined.map(({ stream }) => stream.next('state')))
  t.equal(calls, 40)
  t.equal(most, 3)

  await t.test('one that was abandoned counts until it has ended', async t => {
    const slow = gated()
    const first = await service.join('ada', [], { snapshot: { ...slow.snapshot, maxConcurrent: 1 } })
    await until(() => slow.questions.length === 1)
    await first.stream.cut()
    await until(() => slow.questions[0]!.signal.aborted)
    await service.join('bob', [], { snapshot: { ...slow.snapshot, maxConcurrent: 1 } })
    await turns(10)
    t.equal(slow.questions.length, 1)
    await slow.release()
    await until(() => slow.questions.length === 2)
    await slow.release()
  })
})

t.test('clients with the same key share a load, and miss nothing', async t => {
  const service = await serve(t)
  const { sse } = service.app
  const questions: SharedSnapshotQuestion[] = []
  const gate: (() => void)[] = []
  let version = 0
  const change = async () => { await sse.broadcastEvent({ event: 'change', data: ++version }, { subscriptionIds: ['a'] }) }
  const snapshot: SnapshotOptions = {
    key: 'state of a',
    async load (question) {
      questions.push(question)
      const loaded = version
      await new Promise<void>(resolve => { gate.push(resolve) })
      return { event: 'state', data: loaded }
    }
  }
  const first = await service.join('ada', ['a'], { snapshot })
  await until(() => questions.length === 1)
  const at = sse.position()
  t.strictSame(Object.keys(questions[0]!).sort(), ['key', 'signal'], 'nothing of a client')
  await change()
  const others = await Promise.all(Array.from({ length: 5 }, (_, i) => service.join(`user-${i}`, ['a'], { snapshot })))
  await change()
  const gone = await service.join('eve', ['a'], { snapshot })
  await gone.stream.cut()
  await until(() => sse.connectionCount === 6)
  t.equal(questions[0]!.signal.aborted, false, 'others wait for it')
  gate.shift()!()
  await change()
  for (const { stream } of [first, ...others]) {
    await stream.until(() => stream.named('change').length === 3)
    t.equal(stream.named('state')[0]!.id, at, 'the position is that of the load, also for those who joined it')
    t.strictSame(stream.events.map(({ event, json }) => [event, json]), [['state', 0], ['change', 1], ['change', 2], ['change', 3]])
  }
  t.equal(questions.length, 1)

  await t.test('who was sent more than the position of a load does not join it', async t => {
    await service.join('bob', ['a'], { snapshot })
    await until(() => questions.length === 2)
    await change()
    await first.stream.until(() => first.stream.named('change').length === 4)
    await first.connection.addSubscription('b')
    await until(() => questions.length === 3)
    gate.splice(0).forEach(open => open())
    await first.stream.until(() => first.stream.named('state').length === 2)
    await settle(service, first.stream)
    t.strictSame(payloads(first.stream, 'change'), [1, 2, 3, 4], 'no event twice')
  })

  await t.test('one that fails ends all who wait for it', async t => {
    const failing: SnapshotOptions = { key: 'failing', load: async () => { await turns(20); throw new Error('no database') } }
    const joined = await Promise.all(Array.from({ length: 3 }, (_, i) => service.join(`user-${i}`, ['a'], { snapshot: failing })))
    for (const stream of joined) await failed(t, stream)
  })
})

t.test('a log that is trimmed while a state is loaded', async t => {
  const service = await serve(t, { history: { maxEvents: 10 } })
  const publish = async () => { for (let i = 0; i < 30; i++) await service.app.sse.broadcastEvent({ event: 'x', data: i }, { subscriptionIds: ['a'] }) }
  let calls = 0
  let busy = Infinity
  const snapshot: SnapshotOptions = {
    async load () {
      if (calls++ < busy) await publish()
      return { event: 'state', data: service.app.sse.position() }
    }
  }
  const always = await service.join('ada', ['a'], { snapshot })
  await failed(t, always)
  t.equal(calls, 2, 'it is loaded once more, and not in a loop')
  t.strictSame(always.stream.named('state'), [])

  calls = 0
  busy = 1
  const once = await service.join('ada', ['a'], { snapshot })
  await once.stream.next('state')
  t.equal(calls, 2)
  t.strictSame(once.stream.named('sse:gap'), [], 'a client without a state has missed nothing')
  t.equal(once.stream.lastEventId, service.app.sse.position())

  calls = 0
  busy = 2
  await once.connection.addSubscription('b')
  await once.stream.until(() => once.stream.named('state').length === 2 || !once.stream.isOpen)
  t.match(payloads(once.stream, 'sse:gap'), [{ reason: 'trimmed', snapshot: true }], 'for the other subscriptions it is a gap')
})

t.test('a state larger than the memory of all queues', async t => {
  const service = await serve(t, { maxQueuedBytes: 100_000, maxEventBytes: 50_000 })
  const endless = counted(function * () { for (;;) yield { event: 'state', data: 'x'.repeat(10_000) } } as never)
  await failed(t, await service.join('ada', [], { snapshot: endless.snapshot }))
  t.equal(service.app.sse.stats().queuedBytes, 0)
  const { stream } = await service.join('ada', [], { snapshot: counted(() => ({ event: 'state', data: 'x'.repeat(40_000) })).snapshot })
  await stream.next('state')
  for (let i = 0; i < 8; i++) await service.app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(10_000) })
  await settle(service, stream)
  t.equal(stream.named('x').length, 8, 'nothing of it stays in the budget')
})

t.test('while a state is loaded, a connection holds no logged events', async t => {
  const service = await serve(t, { outboxBytes: 10_000 })
  const { snapshot, release } = gated()
  const { stream, connection } = await service.join('ada', [], { snapshot })
  for (let i = 0; i < 500; i++) await service.app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(1_000) })
  t.equal(connection.stats().queuedBytes, 0)
  for (let i = 0; i < 50; i++) connection.sendEvent({ event: 'own', data: 'x'.repeat(1_000) })
  const { queuedBytes, droppedEvents } = connection.stats()
  t.ok(queuedBytes <= 10_000, `${queuedBytes} bytes`)
  t.ok(droppedEvents > 0, 'direct sends are bounded by the outbox')
  await release()
  await settle(service, stream)
  t.equal(stream.events[0]!.event, 'state')
  t.equal(stream.named('x').length, 500)
  t.equal(stream.named('own').length, 50 - connection.stats().droppedEvents)
  t.ok(stream.named('own').length > 0)
})

t.test('rights that change', async t => {
  const allowed = new Set(['a', 'b'])
  const service = await serve(t, { authorizeSubscription: ({ subscriptionId }) => allowed.has(subscriptionId) })
  const { sse } = service.app

  await t.test('while a state is loaded: it is loaded again', async t => {
    const { snapshot, questions, release } = gated()
    const { stream } = await service.join('ada', ['a', 'b'], { snapshot })
    await until(() => questions.length === 1)
    allowed.delete('b')
    await sse.revokeSubscription('ada', 'b')
    await until(() => questions.length === 2)
    t.equal(questions[0]!.signal.aborted, true)
    await release()
    await release()
    t.strictSame((await stream.next('state')).json, ['a'])
    await settle(service, stream)
    t.equal(stream.named('state').length, 1)
    allowed.add('b')
  })

  await t.test('while a shared state is loaded: the client reconnects', async t => {
    const { stream } = await service.join('ada', ['a', 'b'], { snapshot: { key: 'k', load: () => new Promise<never>(() => {}) } })
    await sse.revokeSubscription('ada', 'b')
    await stream.until(() => !stream.isOpen)
    await until(() => sse.stats().closed['revoked'] === 1)
  })

  await t.test('while a loaded state waits for a slow client: it is loaded again', async t => {
    const joined = await service.join('ada', ['a'], { snapshot: counted(({ subscriptions }) => ({ event: 'state', data: subscriptions[0] === 'b' ? 'secret' : '' })).snapshot })
    await joined.stream.next('state')
    await block(joined)
    await joined.connection.addSubscription('b')
    await turns(10)
    await sse.revokeSubscription('ada', 'b')
    joined.stream.thaw()
    await joined.stream.until(() => joined.stream.named('sse:unsubscribed').length > 0)
    t.notMatch(joined.stream.text, 'secret')
    allowed.add('b')
  })

  await t.test('while a large state is written: the client reconnects', async t => {
    const large = counted(({ subscriptions }) => Array.from({ length: 8_000 }, (_, n) => ({ event: 'state', data: [subscriptions, n, 'x'.repeat(1_000)] })))
    const { stream, connection } = await service.join('ada', ['a'], { snapshot: large.snapshot })
    stream.freeze()
    await until(() => connection.stats().queuedBytes > 1_000_000)
    allowed.delete('a')
    await sse.revokeSubscription('ada', 'a')
    t.equal(connection.closeReason, 'revoked')
    stream.thaw()
    await stream.until(() => !stream.isOpen)
    t.notMatch(stream.lastEventId, /./, 'it has no cursor, and begins anew')
  })
})

t.test('options are checked before anything is sent', async t => {
  const service = await serve(t)
  const wrong: [snapshot: unknown, message: RegExp][] = [
    [{}, /"snapshot.load" is missing/],
    [() => null, /"snapshot" must be an object/],
    [{ load: 1 }, /"snapshot.load" must be a function/],
    [{ load () {}, timeoutMs: 0 }, /"snapshot.timeoutMs"/],
    [{ load () {}, maxConcurrent: 0.5 }, /"snapshot.maxConcurrent"/],
    [{ load () {}, key: '' }, /"snapshot.key"/],
    [{ load () {}, keys: 'a' }, /"snapshot.keys" is not an option.*did you mean "key"/]
  ]
  for (const [snapshot, message] of wrong) {
    t.match(await service.join('ada', [], { snapshot: snapshot as never }).catch(error => error.body), { code: 'SSE_ERR_INVALID_OPTION', message })
  }
  await t.rejects(serve(t, { snapshot: counted().snapshot }), { code: 'SSE_ERR_INVALID_OPTION', message: /needs path/ })
  await t.rejects(serve(t, { path: '/ready', snapshot: { load: 1 } as never }), { code: 'SSE_ERR_INVALID_OPTION', message: /"snapshot.load"/ })
  const { stream } = await service.join('ada', [], { snapshot: { ...counted().snapshot, key: undefined } })
  t.ok(await stream.next('state'), 'an undefined key is none')
})
