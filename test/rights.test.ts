import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import fc from 'fast-check'
import type { FastifyReply, FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { EventPriority, memoryBroker, requestSerializer, SSEManager, type BroadcastOptions, type SSEOptions, type TopicQuestion } from '../lib/index.js'
import { DisconnectedUsers } from '../lib/access/disconnected-users.js'
import { redacting, redactUrl } from '../lib/fastify/request-serializer.js'
import { block, serve, type Joined, type Service, settle, texts } from './helpers/app.js'
import { RawSocket } from './helpers/raw.js'
import { TimingWheel } from '../lib/connections/timing-wheel.js'
import { WallClock } from '../lib/connections/wall-clock.js'
import { Tickets } from '../lib/access/tickets.js'
import { SSEClient } from './helpers/sse.js'
import { turns, until } from './helpers/wait.js'

// Who may hear what, now: at delivery, at replay, after a right was given or taken.

const publish = ({ app }: Service, data: string, options: BroadcastOptions = {}) => app.sse.broadcastEvent({ event: 'x', data }, options)

/** A service whose log lines of level error and above are kept. */
async function logged (t: Test, options: SSEOptions): Promise<{ service: Service, errors: any[] }> {
  const errors: any[] = []
  const stream = { write (line: string) { const entry = JSON.parse(line); if (entry.level >= 50) errors.push(entry) } }
  return { service: await serve(t, options, { logger: { level: 'info', stream } }), errors }
}

t.test('an event that only a pattern covers is asked about by its own topic, at delivery and at replay', async t => {
  const questions: TopicQuestion[] = []
  const may: Record<string, unknown> = { 'room:1': true, 'room:2': false, 'room:yes': 'yes', 'room:one': 1, 'room:nothing': undefined }
  const { service, errors } = await logged(t, {
    authHandler: ({ query }) => ({ userId: query['user'] as string, claims: 'c' }),
    authorizeTopic: question => {
      questions.push(question)
      if (question.topic === 'room:throws') throw new Error('secret')
      if (question.topic === 'room:promise') return Promise.resolve(true) as unknown as boolean
      if (question.topic === 'room:rejects') return Promise.reject(new Error('not awaited by anybody')) as unknown as boolean
      return (question.topic in may ? may[question.topic] : true) as boolean
    }
  })
  const ada = await service.join('ada', ['room:*', 'news', 'room:2:**'])
  const start = ada.client.lastEventId
  const topics = ['room:1', 'room:2', 'room:yes', 'room:one', 'room:nothing', 'room:throws', 'room:promise', 'room:rejects', 'news', 'room:2:x']
  for (const topic of topics) await publish(service, topic, { subscriptionIds: [topic] })
  await publish(service, 'several', { subscriptionIds: ['room:2', 'room:1'] })
  await publish(service, 'held beside refused', { subscriptionIds: ['room:2', 'news'] })
  await publish(service, 'refused for ada', { subscriptionIds: ['room:2'], userIds: ['ada'] })
  await publish(service, 'everyone')
  await publish(service, 'ada', { userIds: ['ada'] })
  await publish(service, 'not hers', { subscriptionIds: ['elsewhere'] })
  await settle(service, ada.client)
  const expected = ['room:1', 'news', 'room:2:x', 'several', 'held beside refused', 'everyone', 'ada']
  t.strictSame(texts(ada.client), expected)
  t.match(questions[0], { userId: 'ada', claims: 'c', topic: 'room:1', connection: ada.connection })
  t.notOk(questions.some(({ topic }) => topic === 'news' || topic === 'elsewhere'), 'a topic that is held, or not covered, is not asked about')
  const atOnce = 'Option "authorizeTopic" must answer true or false at once, not by a promise'
  t.strictSame(errors.map(({ err, topic }) => [err.message, topic]), [['secret', 'room:throws'], [atOnce, 'room:promise'], [atOnce, 'room:rejects']], 'a throw is a no, and so is a promise; they are logged')
  t.strictSame(['room:1', 'room:2', 'news', 'elsewhere'].map(topic => ada.connection.hasSubscription(topic)), [true, false, true, false])

  const again = await service.join('ada', ['room:*', 'news', 'room:2:**'], { cursor: start })
  await settle(service, again.client)
  t.strictSame(texts(again.client), expected, 'the replay asks again')
  may['room:1'] = false
  may['room:2'] = true
  const less = await service.join('ada', ['room:*', 'news', 'room:2:**'], { cursor: start })
  await settle(service, less.client)
  t.strictSame(texts(less.client), ['room:2', 'news', 'room:2:x', 'several', 'held beside refused', 'refused for ada', 'everyone', 'ada'], 'by the rights of today')
  const exact = await service.join('ada', ['room:1'], { cursor: start })
  await settle(service, exact.client)
  t.strictSame(texts(exact.client), ['room:1', 'several', 'everyone', 'ada'], 'a topic that is held was authorized with it')
})

t.test('a subscription is taken away while connected', async t => {
  const { app, join, open } = await serve(t, {}, {}, app => {
    app.get('/own', (_request: FastifyRequest, reply: FastifyReply) => reply.sse(async function * () {
      yield 'begun'
      await new Promise(() => {})
    }))
  })
  const service = { app, join, open } as Service
  const [one, two] = [await join('ada', ['a', 'b', 'a:**']), await join('ada', ['a'])]
  const grace = await join('grace', ['a', 'a:**'])
  const own = await open('/own?user=ada')
  await until(() => own.named('message').length === 1)

  t.equal(await app.sse.revokeSubscription('ada', 'a', 'left-room'), 2, 'from each of her streams')
  t.equal(await app.sse.revokeSubscription('ada', 'a'), 0, 'once')
  t.equal(await app.sse.revokeSubscription('nobody', 'a'), 0)
  for (const topic of ['a', 'b', 'a:1']) await publish(service, topic, { subscriptionIds: [topic] })
  await settle(service, one.client, two.client, grace.client)
  t.strictSame(texts(one.client), ['a', 'b', 'a:1'], 'her pattern covers it still')
  t.strictSame(texts(two.client), [])
  t.strictSame(texts(grace.client), ['a', 'a:1'])
  t.equal(await app.sse.revokeSubscription('ada', 'a:**'), 1)
  for (const topic of ['a', 'b', 'a:1']) await publish(service, topic, { subscriptionIds: [topic] })
  await settle(service, one.client, two.client, grace.client)
  t.strictSame(texts(one.client), ['a', 'b', 'a:1', 'b'], 'the rest stays')
  t.strictSame(one.client.json('sse:unsubscribed'), [{ subscriptionId: 'a', reason: 'left-room' }, { subscriptionId: 'a:**', reason: 'revoked' }])
  t.strictSame(two.client.json('sse:unsubscribed'), [{ subscriptionId: 'a', reason: 'left-room' }])
  t.strictSame(grace.client.named('sse:unsubscribed'), [], 'others hear nothing of it')
  t.ok([one, two, grace].every(({ connection }) => connection.isConnected))
  t.strictSame([...one.connection.subscriptions], ['b'])
  for (const bad of ['', 'a::b', 'x'.repeat(600)]) await t.rejects(app.sse.revokeSubscription('ada', bad), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
  await t.rejects(app.sse.revokeSubscription('ada', 'b', 'Not a word'), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
  await t.rejects(app.sse.reauthorize('ada', ''), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
  t.equal(await app.sse.reauthorize('ada'), 0, 'without authorizeSubscription there is nothing to ask')

  await one.connection.addSubscription('a')
  await publish(service, 'back', { subscriptionIds: ['a'] })
  await settle(service, one.client)
  t.equal(texts(one.client).at(-1), 'back', 'it can be given again')
})

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
  const numbers = (client: SSEClient, topic: string, kind: string) => texts(client).filter(text => text!.startsWith(`${topic}${kind}`) && text!.split(' ').length === (kind === '' ? 2 : 3)).map(text => Number(text!.split(' ').at(-1)))

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
          joined.client.resume()
          // Lanes are read apart from each other: the last event of the lowest may come before what is yet to be read of another.
          await until(() => !joined.connection.stats().lagging)
          await settle(service, joined.client)
          const gone = ['room:1', ...(held.length === 1 && name !== 'reauthorize' ? ['room:2'] : [])]
          for (const topic of ['room:1', 'room:2']) {
            for (const kind of ['', ' urgent']) {
              t.strictSame(numbers(joined.client, topic, kind), gone.includes(topic) ? [] : Array.from({ length: 50 }, (_, i) => i + 1), `${topic}${kind}`)
            }
            const ephemeral = numbers(joined.client, topic, ' ephemeral')
            if (gone.includes(topic)) t.strictSame(ephemeral, [])
            else if (outboxBytes > 2048) t.equal(ephemeral.length, 50, 'those of others are kept')
          }
          t.equal(joined.client.named('sse:unsubscribed').length, name.endsWith('removeSubscription') || (held.length === 1 && name === 'reauthorize') ? 0 : 1)
          t.strictSame(joined.client.named('sse:gap'), [])
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
      const { client, connection } = joined
      await both(service, 1)
      if (name === 'removeSubscription') {
        await connection.removeSubscription('room:1')
      } else {
        rooms.delete('room:1')
        await service.app.sse.revokeSubscription('ada', 'room:1')
      }
      await settle(service, client)
      t.strictSame(texts(client), ['room:2 1', 'room:2 ephemeral 1', 'room:2 urgent 1'])
      t.strictSame(client.blocks.at(-1)!.id, client.lastEventId)
      const returned = await service.join('ada', ['room:2'], { cursor: client.lastEventId })
      await settle(service, returned.client)
      t.strictSame(texts(returned.client), [], 'its place is past them')
    })
  }

  await t.test('a pattern that is replaced by a narrower one: what the new one covers stays', async t => {
    const service = await serve(t)
    const joined = await service.join('ada', ['room:**'])
    await block(joined)
    for (let n = 1; n <= 20; n++) await both(service, n)
    await joined.connection.addSubscription('room:2')
    await joined.connection.removeSubscription('room:**')
    joined.client.resume()
    await settle(service, joined.client)
    t.strictSame(['', ' ephemeral', ' urgent'].map(kind => numbers(joined.client, 'room:1', kind).length), [0, 0, 0])
    t.strictSame(['', ' ephemeral', ' urgent'].map(kind => numbers(joined.client, 'room:2', kind).length), [20, 20, 20])
  })

  await t.test('removeSubscription lets an event go on that is being written: the stream is not cut', async t => {
    const service = await serve(t, { outboxBytes: 32 << 20, maxEventBytes: 16 << 20 })
    const joined = await service.join('ada', ['room:1'])
    const { client, connection } = joined
    await block(joined)
    await publish(service, 'x'.repeat(12 << 20), { subscriptionIds: ['room:1'] })
    await publish(service, 'waits', { subscriptionIds: ['room:1'] })
    const { sentEvents } = connection.stats()
    client.resume()
    await until(() => connection.stats().sentEvents > sentEvents)
    client.pause()
    t.ok(connection.stats().queuedBytes > 100_000, 'most of it is here still')
    t.equal(await connection.removeSubscription('room:1'), true)
    client.resume()
    await settle(service, client)
    t.strictSame(texts(client).map(text => text!.length), [12 << 20])
    t.ok(connection.isConnected)
  })

  await t.test('a large event that has waited and is written in pieces: it is not completed', async t => {
    rooms.add('room:1')
    const service = await serve(t, { ...options, outboxBytes: 32 << 20, maxEventBytes: 16 << 20 })
    for (const revoked of [true, false]) {
      const joined = await service.join('ada', ['room:1', 'room:2'])
      const { client, connection } = joined
      await block(joined)
      await publish(service, 'x'.repeat(12 << 20), { subscriptionIds: [revoked ? 'room:1' : 'room:2'] })
      const { sentEvents } = connection.stats()
      client.resume()
      await until(() => connection.stats().sentEvents > sentEvents)
      client.pause()
      t.ok(connection.stats().queuedBytes > 100_000, 'most of it is here still')
      await service.app.sse.revokeSubscription('ada', 'room:1')
      client.resume()
      if (revoked) await client.waitForEnd()
      else await settle(service, client)
      t.equal(texts(client).length, revoked ? 0 : 1)
      t.equal(connection.closeReason, revoked ? 'revoked' : null)
    }
  })

  await t.test('while it is written in pieces: the stream is cut, and comes back to what it may see', async t => {
    rooms.add('room:1')
    const service = await serve(t, { ...options, outboxBytes: 8 << 20 })
    const large = 'x'.repeat(1000)
    for (const revoked of ['all', 'the first', 'none']) {
      const { client, connection } = await service.join('ada', ['room:1', 'room:2'])
      client.pause()
      // In one turn more than the kernel takes.
      for (let n = 0; n < 6000; n++) await publish(service, `${n} ${large}`, { subscriptionIds: [revoked === 'all' || (revoked === 'the first' && n === 0) ? 'room:1' : 'room:2'] })
      await turns(1)
      await until(() => connection.stats().queuedBytes > 100_000)
      await service.app.sse.revokeSubscription('ada', 'room:1')
      if (revoked !== 'none') {
        await until(() => !connection.isConnected && connection.closeReason === 'revoked', 30_000, `the end of a stream of which ${revoked} was revoked`)
        client.resume()
        await client.waitForEnd()
        t.ok(texts(client).length < 6000)
        const back = await service.join('ada', ['room:2'], { cursor: client.lastEventId })
        await publish(service, 'here', { subscriptionIds: ['room:2'] })
        await settle(service, back.client)
        t.equal(texts(back.client).at(-1), 'here')
        t.equal(texts(back.client).filter(text => text === 'here' || (revoked === 'the first' && !text!.startsWith('0 '))).length, texts(back.client).length)
      } else {
        client.resume()
        await settle(service, client)
        t.equal(texts(client).length, 6000, 'what is not concerned goes on')
        t.equal(client.named('sse:unsubscribed').length, 1)
      }
    }
  })
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
  await settle(service, one.client, two.client, grace.client)
  t.strictSame([one, two, grace].map(({ client }) => client.json('sse:unsubscribed')), [[{ subscriptionId: 'b', reason: 'plan-ended' }], [{ subscriptionId: 'b', reason: 'plan-ended' }], []])
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
  const { client, connection } = await service.join('7', ['room:1'])
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
    })) await t.rejects(call(), { code: 'SSE_ERR_INVALID_TARGET', message: /must be a string that is not empty, not / }, name)
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
  await client.waitForEnd()
})

t.test('a user who is disconnected while on the way in stays outside', async t => {
  const gates: (() => void)[] = []
  const wait = () => new Promise<void>(resolve => { gates.push(resolve) })
  const service = await serve(t, {
    requireAuthentication: true,
    authorizeSubscription: async ({ subscriptionId }) => {
      if (subscriptionId === 'slow') await wait()
      return true
    }
  }, {}, app => {
    app.get('/handler', { sse: true }, async (_request, reply) => {
      await wait()
      await reply.sse()
    })
    app.get('/bare', { preHandler: wait }, async (_request, reply) => { await reply.sse({ subscriptions: ['slow'] }) })
    app.post('/body', { sse: true }, async (_request, reply) => { await reply.sse() })
    app.get('/other', { sse: true }, async () => {
      await wait()
      return { fine: true }
    })
  })
  const { app, open, join, url } = service
  const pass = async () => { (await until(() => gates.shift()))() }
  for (const [path, waits, status] of [['/handler', 1, 401], ['/bare', 2, 401], ['/other', 1, 200]] as const) {
    const asked = open(`${path}?user=ada`)
    const bystander = open(`${path}?user=grace`)
    for (let i = 1; i < waits; i++) {
      await until(() => gates.length === 2)
      await pass()
      await pass()
    }
    await until(() => gates.length === 2)
    t.equal(await app.sse.disconnectUser('ada'), 0)
    await pass()
    await pass()
    const [ada, grace] = await Promise.all([asked, bystander])
    t.equal(ada.status, status, path)
    t.equal(grace.status, 200, 'others get in')
    ada.close()
    grace.close()
  }
  // A client can make the way in as long as it likes.
  const { socket } = new RawSocket(url, { method: 'POST', path: '/body?user=ada', headers: { 'content-type': 'application/json', 'content-length': '2' } })
  let answer = ''
  socket.on('data', bytes => { answer += bytes })
  await until(() => new Promise<boolean>(resolve => { app.server.getConnections((_error, count) => resolve(count > 0)) }))
  await turns(20)
  await app.sse.disconnectUser('ada')
  socket.write('{}')
  await until(() => answer !== '')
  t.match(answer, /^HTTP\/1\.1 401 /)
  socket.destroy()
  await until(() => app.sse.connectionCount === 0)
  const { connection } = await join('ada')
  t.ok(connection.isConnected, 'who is recognised afterwards gets in')
  t.equal(await app.sse.disconnectUser('ada'), 1)
})

t.test('an answer of the application that was on its way when the user was disconnected is none', async t => {
  const answers: (() => void)[] = []
  const { app, open } = await serve(t, { authHandler: ({ query }) => new Promise<string>(resolve => { answers.push(() => resolve(query['user'] as string)) }) })
  const asked = open('/sse?user=ada')
  await until(() => answers.length === 1)
  await app.sse.disconnectUser('ada')
  answers[0]!()
  t.equal((await asked).status, 401)
})

t.test('so is what the application knew before the log was open', async t => {
  const broker = memoryBroker()
  const openLog = broker.open.bind(broker)
  let opening: () => void = () => {}
  broker.open = async (...given) => {
    await new Promise<void>(resolve => { opening = resolve })
    await openLog(...given)
  }
  const manager = new SSEManager({ broker })
  const codes: string[] = []
  const server = createServer((request, response) => {
    manager.createConnection({ request, response, user: { userId: 'ada' } }).catch(error => {
      codes.push(error.code)
      manager.refuse({ request, response }, error)
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    await manager.close()
    server.close()
  })
  const asked = SSEClient.open(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  await once(server, 'request')
  t.equal(await manager.disconnectUser('ada'), 0)
  opening()
  const client = await asked
  t.teardown(() => client.close())
  t.equal(client.status, 401)
  t.strictSame(codes, ['SSE_ERR_UNAUTHENTICATED'])
})

t.test('who was disconnected is remembered for ten thousand users; beyond that whoever came before is taken for one of them', t => {
  const disconnections = new DisconnectedUsers()
  const start = disconnections.moment
  disconnections.add('ada')
  const later = disconnections.moment
  t.strictSame([disconnections.hit('ada', start), disconnections.hit('ada', later), disconnections.hit('grace', start)], [true, false, false])
  for (let i = 0; i < 9_999; i++) disconnections.add(`user ${i}`)
  t.strictSame([disconnections.hit('ada', start), disconnections.hit('ada', later), disconnections.hit('grace', start)], [true, false, false])
  disconnections.add('one more')
  t.strictSame([disconnections.hit('ada', start), disconnections.hit('ada', later), disconnections.hit('grace', start)], [true, false, true])
  t.notOk(disconnections.hit('grace', disconnections.moment))
  const before = disconnections.moment
  disconnections.miss()
  t.strictSame(['ada', 'new'].map(user => [disconnections.hit(user, before), disconnections.isUnsure(user, before)]), [[true, true], [true, true]], 'some may have been missed')
  disconnections.add('new')
  t.strictSame([disconnections.hit('new', before), disconnections.isUnsure('new', before)], [true, false])
  t.notOk(disconnections.hit('ada', disconnections.moment))
  t.end()
})

t.test('a stream ends within a second of its rights, at the intervals of production', async t => {
  let expiresAt = 0
  const service = await serve(t, { authHandler: ({ query }) => ({ userId: query['user'] as string, expiresAt }) })
  for (const after of [300, 700, 1100]) {
    expiresAt = Date.now() + after
    const { client } = await service.join('ada', ['a'])
    await client.waitForEnd(after + 1_000)
    t.strictSame(client.json('sse:close'), [{ reason: 'auth-expired', reconnect: true }])
    t.ok(Date.now() >= expiresAt - 1, 'not before')
  }
})

t.test('a stream ends with its rights when the wall clock runs ahead of timers, as after a suspend', async t => {
  const { now } = Date
  t.teardown(() => { Date.now = now })
  let ahead = 0
  Date.now = () => now() + ahead
  const ends: Record<string, { expiresAt?: number }> = { minute: { expiresAt: now() + 60_000 }, day: { expiresAt: now() + 86_400_000 }, never: {} }
  const service = await serve(t, { authHandler: ({ query }) => ({ userId: query['user'] as string, ...ends[query['user'] as string] }) })
  const [minute, day, never] = [await service.join('minute', ['a']), await service.join('day', ['a']), await service.join('never', ['a'])]
  ahead = -3_600_000
  await turns(3)
  // The clock may have been looked at in between, or not.
  ahead = 3_600_000
  await minute.client.waitForEnd()
  t.strictSame(minute.client.json('sse:close'), [{ reason: 'auth-expired', reconnect: true }])
  t.match(await publish(service, 'later', { subscriptionIds: ['a'] }), { delivered: 2 })
  await settle(service, day.client, never.client)
  t.ok(day.connection.isConnected && never.connection.isConnected)
  ahead += 86_400_000
  await day.client.waitForEnd()
  t.equal(day.connection.closeReason, 'auth-expired')
  t.ok(never.connection.isConnected)
})

t.test('a small difference of the clocks adds up', async t => {
  const { now } = Date
  t.teardown(() => { Date.now = now })
  let wall = 1_000_000
  Date.now = () => wall
  const steps: number[] = []
  const clock = new WallClock(new TimingWheel(10, () => 0), 0, () => { steps.push(wall) })
  for (const by of [0, 60, 60, -500, 60, 60, 60]) {
    wall += by
    clock.onTime(0)
  }
  t.strictSame(steps, [1_000_120, 999_740], 'and one that was set back is ahead as soon as it gains')
  t.end()
})

t.test('rights that end on the way in open no stream', async t => {
  let expiresAt = 0
  let asked = 0
  const service = await serve(t, {
    authHandler: () => ({ userId: 'ada', expiresAt }),
    authorizeSubscription: async () => {
      asked++
      await until(() => Date.now() > expiresAt)
      return true
    }
  }, {}, app => {
    app.get('/slow', { sse: { requireAuthentication: true } }, async (_request, reply) => {
      await until(() => Date.now() > expiresAt)
      await reply.sse()
    })
  })
  expiresAt = Date.now() + 200
  const open = await service.open('/sse?join=none')
  await open.waitForEnd()
  t.equal(open.status, 200, 'nothing was asked for')
  expiresAt = Date.now() + 200
  await t.rejects(service.join('ada', ['a']), { message: /^401 / }, 'while authorizeSubscription was asked')
  t.equal(asked, 1)
  expiresAt = Date.now() + 200
  t.match(await service.open('/slow'), { status: 401 }, 'while the handler was at work: not an anonymous stream')
  t.equal(service.app.sse.connectionCount, 0)
})

// --- Everything at random, against a naive model ---

const USERS = ['ada', 'grace', 'linus'] as const
const TOPICS = ['a', 'a:x', 'a:y', 'a:x:1', 'b', 'b:x'] as const
const SUBSCRIPTIONS = [...TOPICS, 'a:*', 'a:**', '*', '**', '*:x', 'b:**'] as const

type Command =
  | { do: 'connect', user: number, subscriptions: number[], cursor: number }
  | { do: 'cut', client: number }
  | { do: 'publish', topics: number[] | null, users: number[] | null, ephemeral: boolean, priority: 0 | 1 | 2 | 3 }
  | { do: 'grant' | 'withdraw', user: number, topic: number }
  | { do: 'revoke', user: number, subscription: number }
  | { do: 'subscribe', client: number, subscription: number }
  | { do: 'tick' }

const index = (length: number) => fc.nat({ max: length - 1 })
const some = (length: number) => fc.uniqueArray(index(length), { minLength: 1, maxLength: 3 })
const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ do: fc.constant('connect' as const), user: index(USERS.length), subscriptions: fc.uniqueArray(index(SUBSCRIPTIONS.length), { maxLength: 4 }), cursor: fc.nat({ max: 8 }) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('cut' as const), client: fc.nat({ max: 8 }) }) },
  { weight: 8, arbitrary: fc.record({ do: fc.constant('publish' as const), topics: fc.option(some(TOPICS.length)), users: fc.option(some(USERS.length), { freq: 2 }), ephemeral: fc.boolean(), priority: fc.constantFrom(0, 1, 2, 3) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constantFrom('grant' as const, 'withdraw' as const), user: index(USERS.length), topic: index(TOPICS.length) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('revoke' as const), user: index(USERS.length), subscription: index(SUBSCRIPTIONS.length) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('subscribe' as const), client: fc.nat({ max: 8 }), subscription: index(SUBSCRIPTIONS.length) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('tick' as const) }) }
)

interface ModelEvent { name: string, topics: string[] | null, users: string[] | null }
/** What one client is and should have been sent, by the model; and what it was. */
interface Peer {
  joined: Joined
  user: string
  held: Set<string>
  /** Published in this turn, not written yet. */
  waiting: ModelEvent[]
  expected: string[]
  /** How many events were logged when it last was level with the log. */
  position: number
  told: number
}

/** Written apart from lib/: a pattern as a regular expression. */
const covers = (pattern: string, topic: string) => new RegExp(`^${pattern.split(':').map(part => part === '*' ? ':[^:]+' : part === '**' ? '(:[^:]+)*' : `:${part}`).join('')}$`).test(`:${topic}`)

/** Interprets commands against the service and the naive model, and returns what differs. */
async function simulate (service: Service, rights: Map<string, Set<string>>, commands: readonly Command[]): Promise<string[]> {
  const { app, join } = service
  const log: ModelEvent[] = []
  const peers: Peer[] = []
  let count = 0
  const faults: string[] = []
  const may = ({ user, held }: Peer, { topics, users }: ModelEvent) => (users === null || users.includes(user)) &&
    (topics === null || topics.some(topic => held.has(topic) || ([...held].some(pattern => covers(pattern, topic)) && rights.get(user)!.has(topic))))
  const live = () => peers.filter(({ joined: { client } }) => !client.closed)
  const tick = async () => {
    await settle(service, ...live().map(({ joined }) => joined.client))
    for (const peer of live()) {
      peer.expected.push(...peer.waiting.splice(0).map(({ name }) => name))
      peer.position = log.length
      const seen = texts(peer.joined.client).map(String)
      if (seen.toSorted().join() !== peer.expected.toSorted().join()) faults.push(`${peer.user} holding ${[...peer.held]} has ${seen}, should have ${peer.expected}`)
      if (peer.joined.client.named('sse:unsubscribed').length !== peer.told) faults.push(`${peer.user} was told ${peer.joined.client.named('sse:unsubscribed').length} times, not ${peer.told}`)
    }
  }
  const take = (peer: Peer, subscription: string) => {
    if (!peer.held.delete(subscription)) return
    peer.told++
    peer.waiting = peer.waiting.filter(event => may(peer, event))
  }
  for (const command of commands) {
    switch (command.do) {
      case 'connect': {
        await tick()
        const user = USERS[command.user]!
        const wanted = command.subscriptions.map(i => SUBSCRIPTIONS[i]!)
        const allowed = wanted.every(subscription => subscription.includes('*') || rights.get(user)!.has(subscription))
        // Its own cursor or that of somebody else.
        const from = peers.length === 0 ? undefined : peers[command.cursor % peers.length]
        const cursor = command.cursor === 8 ? undefined : from?.joined.client.lastEventId
        const joined = await join(user, wanted, cursor === undefined ? {} : { cursor }).catch((error: Error) => error)
        if (joined instanceof Error) {
          if (allowed || !joined.message.includes('SSE_ERR_SUBSCRIPTION_FORBIDDEN')) faults.push(`${user} ${wanted}: ${joined.message}`)
          break
        }
        if (!allowed) faults.push(`${user} got in with ${wanted}`)
        const peer: Peer = { joined, user, held: new Set(wanted), waiting: [], expected: [], position: 0, told: 0 }
        if (cursor !== undefined) peer.waiting = log.slice(from!.position).filter(event => may(peer, event))
        peers.push(peer)
        await tick()
        break
      }
      case 'cut': {
        await tick()
        const open = live()
        const client = open.length === 0 ? undefined : open[command.client % open.length]!.joined.client
        client?.close()
        if (client !== undefined) await until(() => client.closed && app.sse.connectionCount === live().length)
        break
      }
      case 'publish': {
        const event: ModelEvent = { name: String(++count), topics: command.topics?.map(i => TOPICS[i]!) ?? null, users: command.users?.map(i => USERS[i]!) ?? null }
        if (!command.ephemeral) log.push(event)
        await publish(service, event.name, { ephemeral: command.ephemeral, priority: command.priority, ...(event.topics && { subscriptionIds: event.topics }), ...(event.users && { userIds: event.users }) })
        for (const peer of live()) if (may(peer, event)) peer.waiting.push(event)
        break
      }
      case 'grant':
        rights.get(USERS[command.user]!)!.add(TOPICS[command.topic]!)
        break
      case 'withdraw': {
        const user = USERS[command.user]!
        rights.get(user)!.delete(TOPICS[command.topic]!)
        await app.sse.reauthorize(user)
        for (const peer of live()) {
          if (peer.user !== user) continue
          peer.waiting = peer.waiting.filter(event => may(peer, event))
          for (const subscription of [...peer.held]) if (!subscription.includes('*') && !rights.get(user)!.has(subscription)) take(peer, subscription)
        }
        break
      }
      case 'revoke': {
        const user = USERS[command.user]!
        const subscription = SUBSCRIPTIONS[command.subscription]!
        await app.sse.revokeSubscription(user, subscription)
        for (const peer of live()) if (peer.user === user) take(peer, subscription)
        break
      }
      case 'subscribe': {
        const open = live()
        if (open.length === 0) break
        const peer = open[command.client % open.length]!
        const subscription = SUBSCRIPTIONS[command.subscription]!
        const added = await peer.joined.connection.addSubscription(subscription).then(() => true, () => false)
        if (added !== (subscription.includes('*') || rights.get(peer.user)!.has(subscription))) faults.push(`${peer.user} ${subscription}: ${added}`)
        if (added) peer.held.add(subscription)
        break
      }
      case 'tick':
        await tick()
    }
  }
  await tick()
  for (const { joined } of peers) joined.client.close()
  await until(() => app.sse.connectionCount === 0)
  return faults
}

t.test('random users, topics, grants, revocations and other people\'s cursors: nobody gets an event that is not for them, and each all that is', async t => {
  const rights = new Map<string, Set<string>>()
  const service = await serve(t, {
    authorizeSubscription: ({ userId, subscriptionId }) => subscriptionId.includes('*') || rights.get(userId!)!.has(subscriptionId),
    authorizeTopic: ({ userId, topic }) => rights.get(userId!)!.has(topic)
  })
  let events = 0
  let deliveries = 0
  await fc.assert(fc.asyncProperty(fc.array(command, { minLength: 20, maxLength: 60 }), async commands => {
    for (const user of USERS) rights.set(user, new Set<string>([TOPICS[USERS.indexOf(user)]!, 'a:x']))
    const before = service.app.sse.stats()
    const faults = await simulate(service, rights, commands)
    events += commands.filter(command => command.do === 'publish').length
    deliveries += service.app.sse.stats().delivered - before.delivered
    if (faults.length > 0) throw new Error(faults[0])
  }), { seed: 20_051, numRuns: Number(process.env['RIGHTS_RUNS'] ?? 60), endOnFailure: true })
  t.ok(events > 500 && deliveries > 500, `${events} events, ${deliveries} deliveries`)
})

// --- What a client may choose ---

t.test('subscriptions chosen by a client', async t => {
  const asked: string[] = []
  const service = await serve(t, {
    path: '/events',
    clientSubscriptions: 'patterns',
    authorizeSubscription: ({ subscriptionId }) => {
      asked.push(subscriptionId)
      // As careless as an application may be.
      return subscriptionId.startsWith('room:')
    }
  })
  const { app, open } = service
  const encode = encodeURIComponent
  const cases: [what: string, query: string, status: number][] = [
    ['one', 'subscription=room:1', 200],
    ['a list', 'subscription=room:1&subscription=room:2&subscription=room:1', 200],
    ['a comma is part of a name', 'subscription=room:1,room:2', 200],
    ['encoded once, as it should be', `subscription=${encode('room:größe')}`, 200],
    ['another script', `subscription=${encode('room:чат')}`, 200],
    ['a pattern', 'subscription=room:**', 200],
    ['unknown', 'subscription=vault:1', 403],
    ['one of them unknown', 'subscription=room:1&subscription=vault:1', 403],
    ['all', 'subscription=**', 403],
    ['empty', 'subscription=', 400],
    ['empty segments', 'subscription=room::1', 400],
    ['empty at the end', 'subscription=room:', 400],
    ['over-long', `subscription=room:${'x'.repeat(508)}`, 400],
    ['a 4 KB pattern', `subscription=room:${'*:'.repeat(2046)}*`, 400],
    ['a 4 KB pattern with its end', `subscription=room:${'a:'.repeat(2046)}**`, 400],
    ['too many segments', `subscription=room${':a'.repeat(32)}`, 400],
    ['a wildcard in a word', 'subscription=room:a*', 400],
    ['** in the middle', 'subscription=room:**:a', 400],
    ['encoded twice', `subscription=${encode(encode('room:a/b'))}`, 400],
    ['an encoded colon, twice', 'subscription=room:1%253A2', 400],
    ['NUL', 'subscription=room:%00', 400],
    ['CR LF', 'subscription=room:%0d%0aid:1', 400],
    ['bytes that are no text', 'subscription=room:%ff', 400],
    ['a lone surrogate', 'subscription=room:%ed%a0%80', 400],
    ['a space', 'subscription=room:a+b', 400],
    ['no-break space', 'subscription=room:%c2%a0', 400],
    ['zero width', `subscription=${encode('room:a\u200bb')}`, 400],
    ['written from right to left', `subscription=${encode('room:\u202eb')}`, 400],
    ['a filler that shows nothing', `subscription=${encode('room:\u3164')}`, 400],
    ['a variation selector', `subscription=${encode('room:a\ufe0f')}`, 400],
    ['not composed', `subscription=${encode('room:u\u0308')}`, 400],
    ['a wide letter', `subscription=${encode('room:\uff41')}`, 400],
    ['a wide colon', `subscription=${encode('room:a\uff1ab')}`, 400],
    ['a mathematical letter', `subscription=${encode('room:\u{1d41a}')}`, 400],
    ['a Cyrillic а among Latin letters', `subscription=${encode('room:p\u0430yments')}`, 400],
    ['a Greek ο among Latin letters', `subscription=${encode('room:r\u03bfot')}`, 400]
  ]
  for (const [what, query, status] of cases) {
    asked.length = 0
    const client = await open(`/events?${query}`)
    t.equal(client.status, status, what)
    if (status === 400) {
      t.equal(client.answer.code, 'SSE_ERR_INVALID_SUBSCRIPTION', what)
      t.strictSame(asked, [], `${what}: nobody is asked`)
    }
    client.close()
  }
  await until(() => app.sse.connectionCount === 0)
  const many = await open(`/events?${Array.from({ length: 129 }, (_, i) => `subscription=room:${i}`).join('&')}`)
  t.match([many.status, many.answer.code], [400, 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS'])
  t.match((await open('/events?subscription[]=room:1&subscriptions=room:2')).answer, { statusCode: 400, code: 'SSE_ERR_INVALID_SUBSCRIPTION' }, 'other names choose nothing')

  await t.test('matching is linear: the worst that fits is answered at once', async t => {
    const worst = `room:${'*:'.repeat(30)}b`
    t.equal((await open(`/events?subscription=${worst}`)).status, 200)
    t.equal((await open(`/events?subscription=room:${'*:'.repeat(30)}*`)).status, 200)
    const before = process.cpuUsage()
    for (let n = 0; n < 200; n++) await publish(service, '', { subscriptionIds: [`room:${'a:'.repeat(30)}${n}`] })
    const { user } = process.cpuUsage(before)
    // Backtracking over 31 segments would take hours.
    t.ok(user < 5_000_000, `${user} µs`)
  })
})

t.test('cross-site: by default the pages of this origin, and what is no page', async t => {
  const rows: [what: string, headers: Record<string, string>, own: boolean, listed: boolean][] = [
    ['no browser', {}, true, true],
    ['a page of this origin', { 'sec-fetch-site': 'same-origin' }, true, true],
    ['the same, POST', { 'sec-fetch-site': 'same-origin', origin: 'http://HOST' }, true, true],
    ['the address bar', { 'sec-fetch-site': 'none' }, true, true],
    ['a page of another site', { 'sec-fetch-site': 'cross-site', origin: 'https://evil.example' }, false, false],
    ['the same, without CORS', { 'sec-fetch-site': 'cross-site' }, false, false],
    ['a page of another subdomain', { 'sec-fetch-site': 'same-site', origin: 'https://blog.example' }, false, false],
    ['the same, without CORS', { 'sec-fetch-site': 'same-site' }, false, false],
    ['a listed page', { 'sec-fetch-site': 'cross-site', origin: 'https://app.example' }, false, true],
    ['a word that does not exist yet', { 'sec-fetch-site': 'same-planet' }, false, false],
    ['older browser, own page', { origin: 'http://HOST' }, true, true],
    ['older browser, own page, TLS ends at a proxy', { origin: 'https://app.example', host: 'app.example' }, true, true],
    ['the same with the port written out', { origin: 'https://own.example', host: 'own.example:443' }, true, true],
    ['the same in capitals', { origin: 'https://own.example', host: 'OWN.example' }, true, true],
    ['another port is another origin', { origin: 'https://own.example:8443', host: 'own.example' }, false, false],
    ['older browser, another page', { origin: 'https://evil.example' }, false, false],
    ['a name that ends alike', { origin: 'https://own.example.evil.example', host: 'own.example' }, false, false],
    ['a sandboxed frame', { origin: 'null' }, false, false],
    ['no origin at all', { origin: 'HOST' }, false, false],
    ['a stranger\'s word for the host', { origin: 'https://evil.example', 'x-forwarded-host': 'evil.example' }, false, false],
    ['with two words for one', { 'sec-fetch-site': 'same-origin, cross-site' }, false, false]
  ]
  for (const [name, allowedOrigins] of [['default', undefined], ['listed', ['https://app.example']], ['all', '*']] as const) {
    await t.test(name, async t => {
      let asked = 0
      const service = await serve(t, {
        ...(allowedOrigins !== undefined && { allowedOrigins }) as SSEOptions,
        maxConnections: 1,
        authHandler: () => {
          asked++
          return null
        }
      })
      const { app, url, open } = service
      for (const [what, headers, own, listed] of rows) {
        asked = 0
        const filled = Object.fromEntries(Object.entries(headers).map(([key, value]) => [key, value.replace('HOST', new URL(url).host)]))
        const client = await open('/sse', { headers: filled })
        const allowed = name === 'all' || (name === 'listed' ? listed : own)
        t.strictSame([client.status, asked], allowed ? [200, 1] : [403, 0], what)
        if (!allowed) t.equal(client.answer.code, 'SSE_ERR_ORIGIN_FORBIDDEN')
        client.close()
        await until(() => app.sse.connectionCount === 0)
      }
    })
  }

  await t.test('behind a proxy that says what was asked, when it is trusted', async t => {
    const headers = { origin: 'https://own.example', 'x-forwarded-host': 'own.example', 'x-forwarded-proto': 'https' }
    for (const [trustProxy, status] of [[true, 200], [false, 403]] as const) {
      const { open } = await serve(t, {}, { trustProxy })
      t.equal((await open('/sse', { headers })).status, status)
    }
  })
})

// --- Tickets, and what the log holds ---

const SECRET = 'thirty-two characters of a random generator'

t.test('tickets', async t => {
  const asked: string[] = []
  const options: SSEOptions = {
    path: '/events',
    clientSubscriptions: true,
    requireAuthentication: true,
    ticketSecret: SECRET,
    maxSubscriptionsPerConnection: 3,
    authorizeSubscription: ({ userId, subscriptionId }) => {
      asked.push(`${userId} ${subscriptionId}`)
      return subscriptionId === 'news'
    }
  }
  const service = await serve(t, options)
  const { app, open } = service
  const visit = (ticket: string, query = '', headers: Record<string, string> = {}) => open(`/events?ticket=${ticket}${query}`, { headers })
  const refused = (client: SSEClient, message: string) => t.strictSame([client.status, client.answer.code], [401, 'SSE_ERR_INVALID_TICKET'], message)

  await t.test('names the user, the claims and the end of the rights, and grants its subscriptions', async t => {
    const expiresAt = Date.now() + 1_500
    const ticket = app.sse.issueTicket({ userId: 'ada', claims: { role: 'admin' }, expiresAt, subscriptions: ['vault:**', 'news'] })
    const client = await visit(ticket, '&subscription=news')
    const [connection] = app.sse.getConnectionsByUser('ada')
    t.match(connection, { userId: 'ada', claims: { role: 'admin' }, subscriptions: new Set(['vault:**', 'news']) })
    t.strictSame(asked, [], 'what the ticket grants is not asked about')
    await publish(service, 'secret', { subscriptionIds: ['vault:1'] })
    await client.waitFor('x')
    refused(await visit(ticket), 'used')
    await client.waitForEnd(2_500)
    t.strictSame(client.json('sse:close'), [{ reason: 'auth-expired', reconnect: true }])
    const more = await visit(app.sse.issueTicket({ userId: 'ada', subscriptions: ['vault:**'] }), '&subscription=other')
    t.strictSame([more.status, asked], [403, ['ada other']], 'the rest is')
    t.equal((await visit(app.sse.issueTicket({ userId: 'ada', subscriptions: ['a', 'b', 'c'] }), '&subscription=news')).status, 400, 'all count')
    const held = await visit(app.sse.issueTicket({ userId: 'grace', expiresAt: null, subscriptions: ['vault:**'] }))
    t.equal(await app.sse.reauthorize('grace'), 1, 'reauthorize asks about them too')
    held.close()
  })

  await t.test('a stream of its own source holds nothing that could be taken away, whatever the ticket grants', async t => {
    let end: () => void = () => {}
    const { app, open } = await serve(t, { ticketSecret: SECRET, authorizeSubscription: () => false }, {}, app => {
      app.get('/source', { sse: true }, (_request: FastifyRequest, reply: FastifyReply) => reply.sse((async function * () {
        yield 'first'
        await new Promise<void>(resolve => { end = resolve })
      })()))
    })
    const client = await open(`/source?ticket=${app.sse.issueTicket({ userId: 'ada', subscriptions: ['room:1'] })}`)
    await client.waitFor('message')
    t.equal(await app.sse.revokeSubscription('ada', 'room:1'), 0)
    t.equal(await app.sse.reauthorize('ada'), 0)
    end()
    await client.waitForEnd()
    t.strictSame(client.events.map(({ event }) => event), ['message', 'sse:close'])
  })

  await t.test('one of many that show it at once gets in', async t => {
    const ticket = app.sse.issueTicket({ userId: 'ada' })
    const clients = await Promise.all(Array.from({ length: 30 }, () => visit(ticket)))
    t.equal(clients.filter(({ isStream }) => isStream).length, 1)
    t.equal(clients.filter(({ status }) => status === 401).length, 29)
  })

  await t.test('it speaks for nobody else: not for a cookie beside it, not from another site', async t => {
    const client = await open(`/sse?user=grace&ticket=${app.sse.issueTicket({ userId: 'ada' })}`)
    t.ok(client.isStream)
    t.equal(app.sse.getConnectionsByUser('grace').length, 0)
    refused(await open('/sse?user=grace&ticket=nonsense'), 'a broken ticket is not overlooked')
    const ticket = app.sse.issueTicket({ userId: 'ada' })
    t.equal((await visit(ticket, '', { 'sec-fetch-site': 'cross-site' })).status, 403)
    t.ok((await visit(ticket)).isStream, 'and is not used up by that')
  })

  await t.test('forged, cut, of another key, too old', async t => {
    const ticket = app.sse.issueTicket({ userId: 'ada' })
    const [text, signature] = ticket.split('.') as [string, string]
    const content = JSON.parse(Buffer.from(text, 'base64url').toString())
    const forged = Buffer.from(JSON.stringify({ ...content, user: 'root' })).toString('base64url')
    const other = await serve(t, { ...options, ticketSecret: `${SECRET}!` })
    for (const [what, bad] of [
      ['another user', `${forged}.${signature}`], ['no signature', text], ['an empty one', `${text}.`], ['a cut one', ticket.slice(0, -1)], ['a longer one', `${ticket}A`], ['another key', other.app.sse.issueTicket({ userId: 'ada' })],
      ['nothing', ''], ['too long', 'x'.repeat(5000)], ['another alphabet', encodeURIComponent(`${text}.${Buffer.from(signature, 'base64url').toString('base64')}`)], ['NUL', '%00'], ['a flipped letter', `${text}.${signature[0] === 'A' ? 'B' : 'A'}${signature.slice(1)}`]
    ] as const) refused(await visit(bad), what)
    t.ok((await visit(ticket)).isStream, 'the true one is still good')

    const { now } = Date
    t.teardown(() => { Date.now = now })
    const old = app.sse.issueTicket({ userId: 'ada', ttlMs: 5_000 })
    const young = app.sse.issueTicket({ userId: 'ada' })
    Date.now = () => now() + 6_000
    refused(await visit(old), 'too old')
    t.ok((await visit(young)).isStream)
    refused(await open(`/sse?user=grace&ticket=${app.sse.issueTicket({ userId: 'ada', expiresAt: now() })}`), 'rights that have ended: nor is it anybody else\'s')
  })

  await t.test('a used ticket is remembered for a minute longer than it is good: the clocks of nodes may differ', async t => {
    const claims: number[] = []
    const tickets = new Tickets({ ticketSecret: SECRET, ticketTtlMs: 30_000, maxSubscriptionsPerConnection: 1 }, {
      epoch: 'one',
      claim: async (_key, ttlMs) => {
        claims.push(ttlMs)
        return true
      }
    })
    await tickets.redeem(tickets.issue({ userId: 'ada' }))
    await tickets.redeem(tickets.issue({ userId: 'ada', ttlMs: 600_000 }))
    t.ok(claims[0]! > 89_000 && claims[0]! <= 90_000, `${claims[0]} ms`)
    t.ok(claims[1]! > 659_000 && claims[1]! <= 660_000, `${claims[1]} ms`)
  })

  await t.test('it opens a stream, and nothing else: it makes no new ticket', async t => {
    const { app, open } = await serve(t, options, {}, app => {
      app.post('/tickets', { sse: true }, async request => ({ ticket: app.sse.issueTicket({ userId: request.sseUser!.userId }) }))
    })
    const ticket = app.sse.issueTicket({ userId: 'ada' })
    t.equal((await open(`/tickets?ticket=${ticket}`, { method: 'POST' })).status, 401)
    t.equal((await open(`/sse?ticket=${ticket}`, { method: 'HEAD', headers: { connection: 'close' } })).status, 401)
    t.ok((await open(`/sse?ticket=${ticket}`)).isStream, 'nor is it used up by that')
  })

  await t.test('of another log: a node that does not share it, or a restart that has forgotten who came', async t => {
    const other = await serve(t, options)
    const ticket = app.sse.issueTicket({ userId: 'ada' })
    refused(await other.open(`/events?ticket=${ticket}`), 'the key alone is not enough')
    t.ok((await visit(ticket)).isStream)
  })

  await t.test('of several keys the first signs, and all are good', async t => {
    // One log, so that only the keys differ.
    const epoch = 'shared'
    const withKeys = (...ticketSecret: string[]) => serve(t, { ...options, ticketSecret, broker: Object.defineProperty(memoryBroker(), 'epoch', { value: epoch }) })
    const [old, both] = [await withKeys(SECRET), await withKeys(`${SECRET} 2`, SECRET)]
    for (const from of [old, both]) t.ok((await both.open(`/events?ticket=${from.app.sse.issueTicket({ userId: 'ada' })}`)).isStream)
    refused(await old.open(`/events?ticket=${both.app.sse.issueTicket({ userId: 'ada' })}`), 'the new key is not known here yet')
  })

  await t.test('what cannot go into one is refused; without a key there are none', async t => {
    for (const grant of [{ userId: '' }, { userId: 7 }, { userId: 'a', ttlMs: 10 }, { userId: 'a', ttlMs: 700_000 }, { userId: 'a', expiresAt: NaN }, { userId: 'a', expiresAt: undefined }, { userId: undefined }, { userId: 'a', expires: 1 }, { userId: 'a', subscription: ['b'] }, { userId: 'a', subscriptions: 'b' }, { userId: 'a', subscriptions: ['1', '2', '3', '4'] }, { userId: 'a', claims: 'x'.repeat(4000) }, { userId: 'a', claims: 1n }]) {
      t.throws(() => app.sse.issueTicket(grant as never), { code: 'SSE_ERR_TICKET_NOT_ISSUED' })
    }
    t.throws(() => app.sse.issueTicket({ userId: 'a', subscriptions: ['b::c'] }), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
    const none = await serve(t, {}, {}, app => {
      app.post('/post', { sse: true }, async () => ({}))
      app.get('/plain', async (request, reply) => {
        reply.hijack()
        await app.sse.createConnection({ request: request.raw, response: reply.raw }).catch(error => app.sse.refuse({ request: request.raw, response: reply.raw }, error))
      })
    })
    t.throws(() => none.app.sse.issueTicket({ userId: 'ada' }), { code: 'SSE_ERR_TICKET_NOT_ISSUED' })
    t.ok((await none.open('/sse')).isStream)
    for (const path of ['/sse?ticket=theirs', `/sse?ticket=${app.sse.issueTicket({ userId: 'ada' })}`, '/sse?ticket=', '/sse?a&ticket']) refused(await none.open(path), 'what is recognised by nothing does not get what anonymous clients get')
    refused(await none.open('/post?ticket=theirs', { method: 'POST' }), 'by whatever method')
    refused(await none.open('/plain?ticket=theirs'), 'nor without Fastify')
    t.ok((await none.open('/plain')).isStream)
    t.ok((await none.open('/sse?ticket=theirs&user=ada')).isStream, 'the application recognises it: the name is the application\'s then')
  })
})

t.test('tickets and tokens do not reach the log, whatever happens', async t => {
  for (const [what, serializers] of [
    ['the logger as it is', undefined],
    ['with a serializer of the application', { req: (request: FastifyRequest) => ({ seen: request.url, query: request.query, list: [`and ${request.url}`] }) }]
  ] as const) {
    await t.test(what, async t => {
      const lines: string[] = []
      const logger = { level: 'trace', stream: { write: (line: string) => { lines.push(line) } }, ...(serializers !== undefined && { serializers }) }
      let fail = false
      const { app, open } = await serve(t, {
        ticketSecret: SECRET,
        maxConnectionsPerUser: 3,
        authHandler: () => {
          if (fail) throw new Error('no database')
          return 'ada'
        }
      }, { logger }, app => {
        app.get('/broken', { sse: true }, async () => { throw new Error('broken') })
        app.get('/source', { sse: true }, (_request: FastifyRequest, reply: FastifyReply) => reply.sse(async function * () {
          yield 'a'
          throw new Error('broken')
        }))
        app.get('/logs', { sse: true }, async (request: FastifyRequest, reply: FastifyReply) => {
          request.log.warn({ req: request }, 'seen')
          await reply.sse()
        })
      })
      const secrets: string[] = []
      const query = (): string => {
        const ticket = app.sse.issueTicket({ userId: 'ada' })
        secrets.push(ticket.split('.')[1]!, ticket.split('.')[0]!)
        secrets.push('hunter2', 'swordfish', 'xyzzy')
        return `?a=public&ticket=${ticket}&token=hunter2&%74oken=swordfish&Access_Token=xyzzy`
      }
      for (const path of ['/sse', '/broken', '/source', '/logs']) {
        const before = lines.length
        for (const headers of [{}, { accept: 'text/event-stream' }, { accept: 'text/html' }, { 'sec-fetch-site': 'cross-site' }] as Record<string, string>[]) (await open(path + query(), { headers })).close()
        await open(`${path}?ticket=nonsense&token=hunter2`)
        fail = true
        await open(`${path}?token=hunter2`)
        fail = false
        await until(() => lines.length > before + 6)
      }
      const full = await Promise.all(Array.from({ length: 5 }, () => open(`/sse${query()}`)))
      t.ok(full.some(({ status }) => status === 429))
      for (const secret of new Set([...secrets, 'nonsense'])) t.notOk(lines.some(line => line.includes(secret)), `${lines.find(line => line.includes(secret))}`)
      const seen = lines.filter(line => line.includes('public'))
      t.ok(seen.length > 10 && seen.every(line => line.includes('ticket=[redacted]') && line.includes('token=[redacted]')), 'but the request is there')
    })
  }
  await t.test('nor what Fastify says of a route that does not exist, when the application answers that', async t => {
    const lines: string[] = []
    const { open } = await serve(t, { ticketSecret: SECRET }, { logger: { level: 'trace', serializers: { req: requestSerializer }, stream: { write: line => { lines.push(line) } } } }, app => {
      app.setNotFoundHandler((_request, reply) => reply.code(404).send({ error: 'Not Found' }))
    })
    for (const [path, method] of [['/nowhere', 'GET'], ['/sse', 'DELETE']] as const) {
      const client = await open(`${path}?ticket=hunter2`, { method })
      t.equal(client.status, 404)
      t.notMatch(client.body, 'hunter2')
    }
    t.ok(lines.some(line => line.includes('/nowhere?ticket=[redacted]')))
    t.strictSame(lines.filter(line => line.includes('hunter2')), [])
  })
  await t.test('what a serializer may return', async t => {
    const when = new Date()
    t.strictSame(redacting(() => ({ when, where: new URL('http://x/a?ticket=1'), nothing: null, deep: [{ ticket: '1' }] }))({} as FastifyRequest),
      { when: when.toJSON(), where: 'http://x/a?ticket=[redacted]', nothing: null, deep: [{ ticket: '[redacted]' }] })
  })
  t.strictSame(['/a', '/a?b=1', '/a?ticket', '/a?ticket=', '/a?x=1&ticket=a=b&y=2', '/a?to%6ben=1', '/a?%zz=1&token=2', '/a?token=1?token=2'].map(redactUrl),
    ['/a', '/a?b=1', '/a?ticket', '/a?ticket=[redacted]', '/a?x=1&ticket=[redacted]&y=2', '/a?to%6ben=[redacted]', '/a?%zz=1&token=[redacted]', '/a?token=[redacted]'])
})

t.test('a stream ends if the application does not answer reauthorize', async t => {
  let asks = false
  let answer: (allowed: boolean) => void = () => {}
  const service = await serve(t, { stallTimeoutMs: 200, authorizeSubscription: () => !asks || new Promise<boolean>(resolve => { answer = resolve }) })
  const ada = await service.join('ada', ['a'])
  asks = true
  const changing = service.app.sse.reauthorize('ada')
  await publish(service, 'in a', { subscriptionIds: ['a'] })
  await ada.client.waitForEnd()
  t.equal(ada.connection.closeReason, 'rights-unknown')
  t.strictSame(texts(ada.client), [], 'nothing that may not be for it any more')
  t.match(ada.client.named('sse:close')[0]?.data, '"reconnect":true')
  answer(true)
  t.equal(await changing, 0)
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
  await until(() => grace.client.named('x').length === 2)
  t.strictSame(texts(ada.client), [], 'nothing before it is known')
  t.equal(gates.length, 8)
  // Of the two connections, twice: a and b each.
  for (const [i, answer] of gates.entries()) answer(i % 2 === 1)
  t.strictSame([await changing, await twice].sort(), [0, 2])
  slow.client.resume()
  await settle(service, ada.client, slow.client)
  t.strictSame([ada, slow].map(({ client }) => texts(client)), [['in b', 'direct'], ['in b']])
  t.strictSame([ada, slow].map(({ connection }) => [...connection.subscriptions]), [['b'], ['b']])
  await publish(service, 'later', { subscriptionIds: ['b'] })
  await ada.client.waitFor('x', 3)
})
