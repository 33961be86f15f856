import type { FastifyReply, FastifyRequest } from 'fastify'
import t from 'tap'
import { type BroadcastOptions, type TopicQuestion } from '../../lib/index.js'
import { block, payloads, serve, settle, texts, type Service } from '../helpers/app.js'
import { logged } from '../helpers/logged.js'
import { until } from '../helpers/wait.js'

// Who may hear what, now: at delivery, at replay, after a right was given or taken.

const publish = ({ app }: Service, data: string, options: BroadcastOptions = {}) => app.sse.broadcastEvent({ event: 'x', data }, options)

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
  const start = ada.stream.lastEventId
  const topics = ['room:1', 'room:2', 'room:yes', 'room:one', 'room:nothing', 'room:throws', 'room:promise', 'room:rejects', 'news', 'room:2:x']
  for (const topic of topics) await publish(service, topic, { subscriptionIds: [topic] })
  await publish(service, 'several', { subscriptionIds: ['room:2', 'room:1'] })
  await publish(service, 'held beside refused', { subscriptionIds: ['room:2', 'news'] })
  await publish(service, 'refused for ada', { subscriptionIds: ['room:2'], userIds: ['ada'] })
  await publish(service, 'everyone')
  await publish(service, 'ada', { userIds: ['ada'] })
  await publish(service, 'not hers', { subscriptionIds: ['elsewhere'] })
  await settle(service, ada.stream)
  const expected = ['room:1', 'news', 'room:2:x', 'several', 'held beside refused', 'everyone', 'ada']
  t.strictSame(texts(ada.stream), expected)
  t.match(questions[0], { userId: 'ada', claims: 'c', topic: 'room:1', connection: ada.connection })
  t.notOk(questions.some(({ topic }) => topic === 'news' || topic === 'elsewhere'), 'a topic that is held, or not covered, is not asked about')
  const promised = 'authorizeTopic returned a promise'
  const atOnce = 'Option "authorizeTopic" must return true or false, not a promise'
  t.strictSame(errors.map(({ err, topic, msg }) => [err.message, topic, msg.split(';')[0]]), [['secret', 'room:throws', 'authorizeTopic threw'], [atOnce, 'room:promise', promised], [atOnce, 'room:rejects', promised]], 'a throw is a no, and so is a promise; they are logged')
  t.strictSame(['room:1', 'room:2', 'news', 'elsewhere'].map(topic => ada.connection.hasSubscription(topic)), [true, false, true, false])

  const again = await service.join('ada', ['room:*', 'news', 'room:2:**'], { cursor: start })
  await settle(service, again.stream)
  t.strictSame(texts(again.stream), expected, 'the replay asks again')
  may['room:1'] = false
  may['room:2'] = true
  const less = await service.join('ada', ['room:*', 'news', 'room:2:**'], { cursor: start })
  await settle(service, less.stream)
  t.strictSame(texts(less.stream), ['room:2', 'news', 'room:2:x', 'several', 'held beside refused', 'refused for ada', 'everyone', 'ada'], 'by the rights of today')
  const exact = await service.join('ada', ['room:1'], { cursor: start })
  await settle(service, exact.stream)
  t.strictSame(texts(exact.stream), ['room:1', 'several', 'everyone', 'ada'], 'a topic that is held was authorized with it')
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
  await settle(service, one.stream, two.stream, grace.stream)
  t.strictSame(texts(one.stream), ['a', 'b', 'a:1'], 'her pattern covers it still')
  t.strictSame(texts(two.stream), [])
  t.strictSame(texts(grace.stream), ['a', 'a:1'])
  t.equal(await app.sse.revokeSubscription('ada', 'a:**'), 1)
  for (const topic of ['a', 'b', 'a:1']) await publish(service, topic, { subscriptionIds: [topic] })
  await settle(service, one.stream, two.stream, grace.stream)
  t.strictSame(texts(one.stream), ['a', 'b', 'a:1', 'b'], 'the rest stays')
  t.strictSame(payloads(one.stream, 'sse:unsubscribed'), [{ subscriptionId: 'a', reason: 'left-room' }, { subscriptionId: 'a:**', reason: 'revoked' }])
  t.strictSame(payloads(two.stream, 'sse:unsubscribed'), [{ subscriptionId: 'a', reason: 'left-room' }])
  t.strictSame(grace.stream.named('sse:unsubscribed'), [], 'others hear nothing of it')
  t.ok([one, two, grace].every(({ connection }) => connection.isConnected))
  t.strictSame([...one.connection.subscriptions], ['b'])
  for (const bad of ['', 'a::b', 'x'.repeat(600)]) await t.rejects(app.sse.revokeSubscription('ada', bad), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
  await t.rejects(app.sse.revokeSubscription('ada', 'b', 'Not a word'), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
  await t.rejects(app.sse.reauthorize('ada', ''), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
  t.equal(await app.sse.reauthorize('ada'), 0, 'without authorizeSubscription there is nothing to ask')

  await one.connection.addSubscription('a')
  await publish(service, 'back', { subscriptionIds: ['a'] })
  await settle(service, one.stream)
  t.equal(texts(one.stream).at(-1), 'back', 'it can be given again')
})

t.test('a stream that authorizeTopic closes during its replay leaves nothing in the budget', async t => {
  const { app, join } = await serve(t, {
    maxQueuedBytes: 300_000,
    authorizeTopic: ({ userId, connection }) => {
      if (userId === 'leaver') app.sse.getConnection(connection.clientId)?.close()
      return true
    }
  })
  let cursor = (await join('ada')).stream.lastEventId
  for (let round = 0; round < 40; round++) {
    const ids: string[] = []
    for (let i = 0; i < 4; i++) ids.push((await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(5_000) }, { subscriptionIds: ['room:1'] })).id!)
    const { stream } = await join('leaver', ['room:*'], { cursor })
    await stream.until(() => !stream.isOpen)
    cursor = ids.at(-1)!
  }
  const slow = await join('slow')
  await block(slow)
  for (let i = 0; i < 5; i++) t.ok(slow.connection.sendEvent({ event: 'small', data: 'x'.repeat(10_000) }), 'there is room')
})
