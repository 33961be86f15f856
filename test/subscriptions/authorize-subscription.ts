import { type FastifyRequest } from 'fastify'
import t from 'tap'
import ssePlugin, { type SubscriptionQuestion } from '../../lib/index.js'
import { refusal, start } from '../helpers/server.js'
import { until } from '../helpers/wait.js'

t.test('authorizeSubscription', async t => {
  const questions: SubscriptionQuestion[] = []
  const answers: Record<string, () => unknown> = {
    one: () => 1,
    text: () => 'true',
    object: () => ({}),
    nothing: () => undefined,
    no: () => false,
    later: async () => 1,
    'later-no': async () => false,
    throws: () => { throw new Error('secret') },
    rejects: async () => { throw new Error('secret') },
    forbids: () => { throw Object.assign(new Error('secret'), { statusCode: 403 }) },
    'later-yes': async () => true
  }
  const server = await start(t, async app => {
    await app.register(ssePlugin, {
      authHandler: () => ({ userId: 'ada', claims: 7 }),
      authorizeSubscription: question => {
        questions.push(question)
        return (answers[question.subscriptionId]?.() ?? (question.subscriptionId in answers ? undefined : true)) as boolean
      }
    })
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: (request.query as { s: string }).s.split(',') }) })
  })
  const stream = await server.open('/sse?s=a,b:*,a,later-yes')
  t.ok(stream.isStream)
  t.strictSame(questions.map(({ subscriptionId }) => subscriptionId), ['a', 'b:*', 'later-yes'], 'each once, patterns too')
  for (const { request, userId, claims } of questions) {
    t.match({ userId, claims }, { userId: 'ada', claims: 7 })
    t.equal((request as FastifyRequest).sseUser?.userId, 'ada', 'the request is the application\'s')
  }
  const [connection] = server.app.sse.getConnectionsByUser('ada')
  for (const name of Object.keys(answers)) {
    if (name === 'later-yes') continue
    const broken = ['throws', 'rejects', 'forbids'].includes(name)
    const refused = await server.open(`/sse?s=a,${name}`)
    if (name === 'forbids') t.ok([403, 500].includes(refused.status), 'forbids')
    else refusal(t, refused, broken ? 500 : 403, broken ? 'SSE_ERR_AUTHENTICATION_FAILED' : 'SSE_ERR_SUBSCRIPTION_FORBIDDEN')
    t.notMatch(refused.body, 'secret')
    await t.rejects(connection!.addSubscription(name), { code: /^SSE_ERR_(AUTHENTICATION_FAILED|SUBSCRIPTION_FORBIDDEN)$/ }, name)
    t.notOk(connection!.subscriptions.has(name))
  }
  t.equal(server.app.sse.connectionCount, 1)
  t.match(server.errors().map(({ err }) => err.stack), server.errors().map(() => /secret/))
  t.ok(server.errors().length >= 2, 'what breaks is logged')
  await server.open('/sse?s=a,throws', { headers: { accept: 'text/event-stream' } })
  t.match(server.errors().at(-1), { err: { message: 'Authentication could not be completed: authorizeSubscription failed for subscription "throws"' } })

  questions.length = 0
  await server.app.sse.addSubscription(connection!.clientId, 'c')
  await connection!.addSubscription('d:**')
  t.strictSame(questions, [{ request: null, userId: 'ada', claims: 7, subscriptionId: 'c' }, { request: null, userId: 'ada', claims: 7, subscriptionId: 'd:**' }])
  t.strictSame([...connection!.subscriptions], ['a', 'b:*', 'later-yes', 'c', 'd:**'])

  await t.test('a stream that ends, or fills, while the application is asked', async t => {
    let answer: (yes: boolean) => void = () => {}
    answers['slow'] = () => new Promise(resolve => { answer = resolve })
    const adding = connection!.addSubscription('slow')
    await stream.close()
    await until(() => server.app.sse.connectionCount === 0)
    answer(true)
    await t.rejects(adding, { code: 'SSE_ERR_UNKNOWN_CONNECTION' })
    t.strictSame(server.app.sse.getConnectionsBySubscription('slow'), [])
  })

  await t.test('what is no subscription is not asked about', async t => {
    questions.length = 0
    refusal(t, await server.open('/sse?s=a,b::c'), 400, 'SSE_ERR_INVALID_SUBSCRIPTION')
    t.strictSame(questions, [])
  })
})
