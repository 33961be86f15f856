import t from 'tap'
import { EventPriority, type BroadcastOptions, type SSEOptions } from '../../lib/index.js'
import { openStream, testClock } from '../../lib/testing/index.js'
import { block, payloads, serve, settle, texts, type Joined, type Service } from '../helpers/app.js'
import { logged } from '../helpers/logged.js'
import { turns, until } from '../helpers/wait.js'
import { blocksOf } from '../helpers/raw.js'
import type { TestStream } from '../../lib/testing/index.js'

// Who may hear what, now: at delivery, at replay, after a right was given or taken.

const publish = ({ app }: Service, data: string, options: BroadcastOptions = {}) => app.sse.broadcastEvent({ event: 'x', data }, options)

t.test('what waits for a client is looked at again when rights are taken away', async t => {
  const rooms = new Set(['room:1', 'room:2'])
  const options: SSEOptions = {
    authorizeSubscription: ({ subscriptionId }) => subscriptionId === 'room:*' || rooms.has(subscriptionId),
    authorizeTopic: ({ topic }) => rooms.has(topic)
  }
  const both = async (service: Service, n: number) => {
    for (const topic of ['room:1', 'room:2']) {
      await publish(service, `${topic} ${n}`, { subscriptionIds: [topic] })
      await publish(service, `${topic} ephemeral ${n}`, { subscriptionIds: [topic], ephemeral: true })
      await publish(service, `${topic} urgent ${n}`, { subscriptionIds: [topic], priority: EventPriority.HIGH })
    }
  }
  const numbers = (stream: TestStream, topic: string, kind: string) => texts(stream).filter(text => text!.startsWith(`${topic}${kind}`) && text!.split(' ').length === (kind === '' ? 2 : 3)).map(text => Number(text!.split(' ').at(-1)))

  for (const held of [['room:1', 'room:2'], ['room:*']]) {
    for (const outboxBytes of [1 << 20, 2048]) {
      const subscription = held.length === 1 ? 'room:*' : 'room:1'
      const ways: Record<string, (service: Service, joined: Joined) => Promise<unknown>> = {
        reauthorize: service => service.app.sse.reauthorize('ada'),
        revokeSubscription: service => service.app.sse.revokeSubscription('ada', subscription),
        removeSubscription: (service, { connection }) => service.app.sse.removeSubscription(connection.clientId, subscription),
        'connection.removeSubscription': (_service, { connection }) => connection.removeSubscription(subscription)
      }
      for (const [name, revoke] of Object.entries(ways)) {
        await t.test(`${name}, ${held}, ${outboxBytes === 2048 ? 'read again from the log' : 'in the outbox'}`, async t => {
          rooms.add('room:1')
          const service = await serve(t, { ...options, outboxBytes })
          const joined = await service.join('ada', held)
          await block(joined)
          for (let n = 1; n <= 40; n++) await both(service, n)
          t.equal(joined.connection.stats().lagging, outboxBytes === 2048)
          if (name.startsWith('re') && !name.startsWith('rem')) rooms.delete('room:1')
          await revoke(service, joined)
          for (let n = 41; n <= 50; n++) await both(service, n)
          joined.stream.thaw()
          // Lanes are read apart from each other: the last event of the lowest may come before what is yet to be read of another.
          await until(() => !joined.connection.stats().lagging)
          await settle(service, joined.stream)
          const gone = ['room:1', ...(held.length === 1 && name !== 'reauthorize' ? ['room:2'] : [])]
          for (const topic of ['room:1', 'room:2']) {
            for (const kind of ['', ' urgent']) {
              t.strictSame(numbers(joined.stream, topic, kind), gone.includes(topic) ? [] : Array.from({ length: 50 }, (_, i) => i + 1), `${topic}${kind}`)
            }
            const ephemeral = numbers(joined.stream, topic, ' ephemeral')
            if (gone.includes(topic)) t.strictSame(ephemeral, [])
            else if (outboxBytes > 2048) t.equal(ephemeral.length, 50, 'those of others are kept')
          }
          t.equal(joined.stream.named('sse:unsubscribed').length, name.endsWith('removeSubscription') || (held.length === 1 && name === 'reauthorize') ? 0 : 1)
          t.strictSame(joined.stream.named('sse:gap'), [])
          t.equal(joined.connection.stats().queuedBytes, 0)
        })
      }
    }
  }

  for (const name of ['revokeSubscription', 'removeSubscription']) {
    await t.test(`${name} within one turn of the event loop`, async t => {
      rooms.add('room:1')
      const service = await serve(t, options)
      const joined = await service.join('ada', ['room:1', 'room:2'])
      const { stream, connection } = joined
      await both(service, 1)
      if (name === 'removeSubscription') {
        await connection.removeSubscription('room:1')
      } else {
        rooms.delete('room:1')
        await service.app.sse.revokeSubscription('ada', 'room:1')
      }
      await settle(service, stream)
      t.strictSame(texts(stream), ['room:2 1', 'room:2 ephemeral 1', 'room:2 urgent 1'])
      t.strictSame(blocksOf(stream.text).at(-1)!.id, stream.lastEventId)
      const returned = await service.join('ada', ['room:2'], { cursor: stream.lastEventId })
      await settle(service, returned.stream)
      t.strictSame(texts(returned.stream), [], 'its place is past them')
    })
  }

  await t.test('a pattern that is replaced by a narrower one: what the new one covers stays', async t => {
    const service = await serve(t)
    const joined = await service.join('ada', ['room:**'])
    await block(joined)
    for (let n = 1; n <= 20; n++) await both(service, n)
    await joined.connection.addSubscription('room:2')
    await joined.connection.removeSubscription('room:**')
    joined.stream.thaw()
    await settle(service, joined.stream)
    t.strictSame(['', ' ephemeral', ' urgent'].map(kind => numbers(joined.stream, 'room:1', kind).length), [0, 0, 0])
    t.strictSame(['', ' ephemeral', ' urgent'].map(kind => numbers(joined.stream, 'room:2', kind).length), [20, 20, 20])
  })

  await t.test('removeSubscription lets an event go on that is being written: the stream is not cut', async t => {
    const service = await serve(t, { outboxBytes: 32 << 20, maxEventBytes: 16 << 20 })
    const joined = await service.join('ada', ['room:1'])
    const { stream, connection } = joined
    await block(joined)
    await publish(service, 'x'.repeat(12 << 20), { subscriptionIds: ['room:1'] })
    await publish(service, 'waits', { subscriptionIds: ['room:1'] })
    const { sentEvents } = connection.stats()
    stream.thaw()
    await until(() => connection.stats().sentEvents > sentEvents)
    stream.freeze()
    t.ok(connection.stats().queuedBytes > 100_000, 'most of it is here still')
    t.equal(await connection.removeSubscription('room:1'), true)
    stream.thaw()
    await settle(service, stream)
    t.strictSame(texts(stream).map(text => text!.length), [12 << 20])
    t.ok(connection.isConnected)
  })

  await t.test('a large event that has waited and is written in pieces: it is not completed', async t => {
    rooms.add('room:1')
    const service = await serve(t, { ...options, outboxBytes: 32 << 20, maxEventBytes: 16 << 20 })
    for (const revoked of [true, false]) {
      const joined = await service.join('ada', ['room:1', 'room:2'])
      const { stream, connection } = joined
      await block(joined)
      await publish(service, 'x'.repeat(12 << 20), { subscriptionIds: [revoked ? 'room:1' : 'room:2'] })
      const { sentEvents } = connection.stats()
      stream.thaw()
      await until(() => connection.stats().sentEvents > sentEvents)
      stream.freeze()
      t.ok(connection.stats().queuedBytes > 100_000, 'most of it is here still')
      await service.app.sse.revokeSubscription('ada', 'room:1')
      stream.thaw()
      if (revoked) await stream.ended
      else await settle(service, stream)
      t.equal(texts(stream).length, revoked ? 0 : 1)
      t.equal(connection.closeReason, revoked ? 'revoked' : null)
    }
  })

  await t.test('while it is written in pieces: the stream is cut, and comes back to what it may see', async t => {
    rooms.add('room:1')
    const service = await serve(t, { ...options, outboxBytes: 8 << 20 })
    const large = 'x'.repeat(1000)
    for (const revoked of ['all', 'the first', 'none']) {
      const { stream, connection } = await service.join('ada', ['room:1', 'room:2'])
      stream.freeze()
      // In one turn more than the kernel takes.
      for (let n = 0; n < 6000; n++) await publish(service, `${n} ${large}`, { subscriptionIds: [revoked === 'all' || (revoked === 'the first' && n === 0) ? 'room:1' : 'room:2'] })
      await turns(1)
      await until(() => connection.stats().queuedBytes > 100_000)
      await service.app.sse.revokeSubscription('ada', 'room:1')
      if (revoked !== 'none') {
        await until(() => !connection.isConnected && connection.closeReason === 'revoked', 30_000, `the end of a stream of which ${revoked} was revoked`)
        stream.thaw()
        await stream.ended
        t.ok(texts(stream).length < 6000)
        const back = await service.join('ada', ['room:2'], { cursor: stream.lastEventId })
        await publish(service, 'here', { subscriptionIds: ['room:2'] })
        await settle(service, back.stream)
        t.equal(texts(back.stream).at(-1), 'here')
        t.equal(texts(back.stream).filter(text => text === 'here' || (revoked === 'the first' && !text!.startsWith('0 '))).length, texts(back.stream).length)
      } else {
        stream.thaw()
        await settle(service, stream)
        t.equal(texts(stream).length, 6000, 'what is not concerned goes on')
        t.equal(stream.named('sse:unsubscribed').length, 1)
      }
    }
  })
})

t.test('a slow client that reads while its rights are asked about is sent nothing until they are known', async t => {
  for (const allowed of [true, false]) {
    let answer: ((allowed: boolean) => void) | null = null
    let isAsked = false
    const service = await serve(t, { authorizeSubscription: () => !isAsked || new Promise<boolean>(resolve => { answer = resolve }) })
    const slow = await service.join('ada', ['room'])
    const { stream, connection } = slow
    await block(slow)
    await publish(service, 'for the room', { subscriptionIds: ['room'] })
    isAsked = true
    const asked = service.app.sse.reauthorize('ada')
    await until(() => answer)
    const { queuedBytes } = connection.stats()
    stream.thaw()
    await until(() => connection.stats().queuedBytes < queuedBytes)
    await turns(20)
    t.strictSame(texts(stream), [])
    answer!(allowed)
    t.equal(await asked, allowed ? 0 : 1)
    await settle(service, stream)
    t.strictSame(texts(stream), allowed ? ['for the room'] : [])
  }
})

t.test('an event in the turn in which rights are known follows a large event that is written in pieces', async t => {
  let answer: ((allowed: boolean) => void) | null = null
  let isAsked = false
  const service = await serve(t, { outboxBytes: 32 << 20, maxEventBytes: 16 << 20, authorizeSubscription: () => !isAsked || new Promise<boolean>(resolve => { answer = resolve }) })
  const { stream, connection } = await service.join('ada', ['room'])
  const waiting = () => connection.stats().queuedBytes
  stream.freeze()
  await publish(service, 'x'.repeat(12 << 20), { subscriptionIds: ['room'] })
  let before = 0
  await until(() => before === (before = waiting()) && before > 0, undefined, 'the socket is full')
  isAsked = true
  const asked = service.app.sse.reauthorize('ada')
  await until(() => answer)
  stream.thaw()
  await until(() => waiting() < before)
  await turns(20)
  answer!(true)
  await asked
  connection.sendEvent({ event: 'x', data: 'after' })
  await settle(service, stream)
  t.strictSame(texts(stream).map(text => text.length), [12 << 20, 5])
})

t.test('reauthorize asks again about everything a user holds', async t => {
  const allowed = new Set(['a', 'b', 'c:**'])
  const asked: string[] = []
  let broken = false
  const { service, errors } = await logged(t, {
    authHandler: ({ query }) => ({ userId: query['user'] as string, claims: 7 }),
    authorizeSubscription: async ({ request, userId, claims, subscriptionId }) => {
      asked.push(`${userId} ${claims} ${subscriptionId} ${request === null}`)
      if (broken && subscriptionId === 'c:**') throw new Error('no database')
      return allowed.has(subscriptionId)
    }
  })
  const { app, join } = service
  const [one, two] = [await join('ada', ['a', 'b', 'c:**']), await join('ada', ['b'])]
  const grace = await join('grace', ['a', 'b'])
  asked.length = 0
  t.equal(await app.sse.reauthorize('ada'), 0)
  t.strictSame(asked.sort(), ['ada 7 a true', 'ada 7 b true', 'ada 7 b true', 'ada 7 c:** true'])
  allowed.delete('b')
  t.equal(await app.sse.reauthorize('ada', 'plan-ended'), 2)
  await settle(service, one.stream, two.stream, grace.stream)
  t.strictSame([one, two, grace].map(({ stream }) => payloads(stream, 'sse:unsubscribed')), [[{ subscriptionId: 'b', reason: 'plan-ended' }], [{ subscriptionId: 'b', reason: 'plan-ended' }], []])
  t.strictSame([one, two, grace].map(({ connection }) => [...connection.subscriptions]), [['a', 'c:**'], [], ['a', 'b']])
  t.strictSame(errors, [])
  broken = true
  t.equal(await app.sse.reauthorize('ada'), 1, 'what cannot be shown is no right')
  t.strictSame([...one.connection.subscriptions], ['a'])
  t.match(errors, [{ err: { code: 'SSE_ERR_AUTHENTICATION_FAILED' }, subscriptionId: 'c:**' }])
  t.equal(await app.sse.reauthorize('nobody'), 0)
})

t.test('rights that are taken away while a client is let in, or a subscription added, are asked for again', async t => {
  for (const way of ['revokeSubscription', 'reauthorize'] as const) {
    await t.test(way, async t => {
      let allowed = true
      const gates: (() => void)[] = []
      const service = await serve(t, {
        authorizeSubscription: async ({ subscriptionId }) => {
          const answer = subscriptionId !== 'secret' || allowed
          if (subscriptionId === 'slow') await new Promise<void>(resolve => { gates.push(resolve) })
          return answer
        }
      })
      const { app, join } = service
      const change = () => way === 'reauthorize' ? app.sse.reauthorize('ada') : app.sse.revokeSubscription('ada', 'secret')
      const joining = join('ada', ['secret', 'slow'])
      const refused = t.rejects(joining, { message: /SSE_ERR_SUBSCRIPTION_FORBIDDEN/ })
      await until(() => gates.length === 1)
      allowed = false
      t.equal(await change(), 0, 'nothing is open yet')
      await app.sse.reauthorize('grace')
      gates.shift()!()
      ;(await until(() => gates.shift()))()
      await refused
      t.strictSame(app.sse.getConnectionsBySubscription('secret'), [])
      t.equal(app.sse.connectionCount, 0)

      allowed = true
      const { connection } = await join('ada', ['news'])
      const adding = connection.addSubscription('slow')
      await until(() => gates.length === 1)
      await change()
      gates.shift()!()
      ;(await until(() => gates.shift()))()
      await adding
      t.strictSame([...connection.subscriptions], ['news', 'slow'], 'asked twice, and still allowed')
      await connection.removeSubscription('slow')
      const others = join('grace', ['slow'])
      await until(() => gates.length === 1)
      await change()
      gates.shift()!()
      await others
      t.equal(gates.length, 0, 'others are not asked again')
    })
  }
})

t.test('ids that are not strings, as a database has them, are refused: what they should take away would stay', async t => {
  const service = await serve(t)
  const { app: { sse } } = service
  const { stream, connection } = await service.join('7', ['room:1'])
  for (const id of [7, undefined, null, '', {}, ['7'], 7n, Object('7')] as string[]) {
    for (const [name, call] of Object.entries<() => Promise<unknown>>({
      disconnectUser: () => sse.disconnectUser(id),
      revokeSubscription: () => sse.revokeSubscription(id, 'room:1'),
      reauthorize: () => sse.reauthorize(id),
      closeConnection: () => sse.closeConnection(id),
      addSubscription: () => sse.addSubscription(id, 'room:2'),
      removeSubscription: () => sse.removeSubscription(id, 'room:1'),
      getConnection: async () => sse.getConnection(id),
      getConnectionsByUser: async () => sse.getConnectionsByUser(id)
    })) await t.rejects(call(), { code: 'SSE_ERR_INVALID_TARGET', message: /must be a string that is not empty, got / }, name)
  }
  for (const subscription of [7, undefined, null, '', 'a::b', 'room:1*'] as string[]) {
    for (const [name, call] of Object.entries<() => Promise<unknown>>({
      revokeSubscription: () => sse.revokeSubscription('7', subscription),
      removeSubscription: () => sse.removeSubscription(connection.clientId, subscription),
      'connection.removeSubscription': () => connection.removeSubscription(subscription),
      presence: () => sse.presence(subscription),
      getConnectionsBySubscription: async () => sse.getConnectionsBySubscription(subscription)
    })) await t.rejects(call(), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' }, name)
  }
  t.match([connection.isConnected, connection.subscriptions.has('room:1')], [true, true])
  t.equal(await sse.disconnectUser('7'), 1)
  await stream.ended
})

t.test('a stream ends if the application does not answer reauthorize', async t => {
  let asks = false
  let answer: (allowed: boolean) => void = () => {}
  const clock = testClock()
  const service = await serve(t, { ...clock.options, authorizeSubscription: () => !asks || new Promise<boolean>(resolve => { answer = resolve }) })
  const ada = await service.join('ada', ['a'])
  asks = true
  const changing = service.app.sse.reauthorize('ada')
  await publish(service, 'in a', { subscriptionIds: ['a'] })
  await clock.advance(29_500)
  t.equal(ada.connection.closeReason, null)
  await clock.advance(1_000)
  await ada.stream.ended
  t.equal(ada.connection.closeReason, 'rights-unknown')
  t.strictSame(texts(ada.stream), [], 'nothing that may not be for it any more')
  t.match(ada.stream.named('sse:close')[0]?.data, '"reconnect":true')
  answer(true)
  t.equal(await changing, 0)
})

t.test('a client that is stalled while reauthorize asks is cut as one', async t => {
  const clock = testClock()
  let asks = false
  const service = await serve(t, { ...clock.options, stallTimeoutMs: 10_000, authorizeSubscription: () => !asks || new Promise<boolean>(() => {}) })
  const ada = await service.join('ada', ['a'])
  await block(ada)
  await clock.advance(9_000)
  asks = true
  service.app.sse.reauthorize('ada').catch(() => {})
  await clock.advance(3_000)
  t.equal(ada.connection.closeReason, 'stalled')
})

t.test('what is published while reauthorize asks waits for the answer', async t => {
  const gates: ((answer: boolean) => void)[] = []
  let asks = false
  const service = await serve(t, { stallTimeoutMs: 60_000, authorizeSubscription: () => !asks || new Promise<boolean>(resolve => { gates.push(resolve) }) })
  const { app, join } = service
  const [ada, grace] = [await join('ada', ['a', 'b']), await join('grace', ['a', 'b'])]
  const slow = await join('ada', ['a', 'b'])
  await block(slow)
  asks = true
  const changing = app.sse.reauthorize('ada')
  const twice = app.sse.reauthorize('ada')
  await publish(service, 'in a', { subscriptionIds: ['a'] })
  await publish(service, 'in b', { subscriptionIds: ['b'] })
  ada.connection.sendEvent({ event: 'x', data: 'direct' })
  await until(() => grace.stream.named('x').length === 2)
  t.strictSame(texts(ada.stream), [], 'nothing before it is known')
  t.equal(gates.length, 8)
  // Of the two connections, twice: a and b each.
  for (const [i, answer] of gates.entries()) answer(i % 2 === 1)
  t.strictSame([await changing, await twice].sort(), [0, 2])
  slow.stream.thaw()
  await settle(service, ada.stream, slow.stream)
  t.strictSame([ada, slow].map(({ stream }) => texts(stream)), [['in b', 'direct'], ['in b']])
  t.strictSame([ada, slow].map(({ connection }) => [...connection.subscriptions]), [['b'], ['b']])
  await publish(service, 'later', { subscriptionIds: ['b'] })
  await ada.stream.collect(3, 'x')
})

t.test('a stream that opens while reauthorize asks waits for the answer for as long as any other', async t => {
  let asks = false
  let answer: (allowed: boolean) => void = () => {}
  let open: (() => void) | null = null
  const clock = testClock()
  const { app } = await serve(t, { ...clock.options, authHandler: () => 'ada', authorizeSubscription: () => !asks || new Promise<boolean>(resolve => { answer = resolve }) }, {}, app => {
    app.get('/late', { sse: true, onSend: (_request, _reply, payload, done) => { open = () => done(null, payload) } }, async (_request, reply) => { await reply.sse({ subscriptions: ['a'] }) })
  })
  // The node has run for longer than `stallTimeoutMs`.
  await clock.advance(60_000)
  const opening = openStream(app, '/late', { test: t })
  await until(() => open)
  asks = true
  const changing = app.sse.reauthorize('ada')
  open!()
  const stream = await opening
  await clock.advance(29_500)
  answer(true)
  t.equal(await changing, 0)
  await app.sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds: ['a'] })
  t.equal((await stream.next('x')).data, '1')
})

t.test('a client that reads nothing is stalled, however often its rights are asked about', async t => {
  const clock = testClock()
  const service = await serve(t, { ...clock.options, authorizeSubscription: () => true })
  const ada = await service.join('ada', ['a'])
  await block(ada)
  for (let second = 1; second <= 30; second++) {
    t.ok(ada.connection.isConnected)
    await service.app.sse.reauthorize('ada')
    await clock.advance(1_000)
  }
  await clock.advance(500)
  t.equal(ada.connection.closeReason, 'stalled')
})
