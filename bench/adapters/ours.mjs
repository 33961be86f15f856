// This package, as an application would use it: a user, a subscription, an id on every event, the log.
import Fastify from 'fastify'
import { build } from '../build.mjs'
import { tokensOf } from '../tokens.mjs'

const { BENCH_HISTORY_BYTES: maxBytes, BENCH_HISTORY_EVENTS: maxEvents } = process.env

export default () => startOurs({ history: { ...(maxBytes && { maxBytes: Number(maxBytes) }), ...(maxEvents && { maxEvents: Number(maxEvents) }) } })

export async function startOurs (options = {}, serverOptions = {}) {
  const { default: ssePlugin } = await import(new URL('lib/index.js', build))
  const app = Fastify(serverOptions)
  await app.register(ssePlugin, {
    authHandler: ({ query }) => query.user ?? null,
    // On, but later than any scenario lasts: the peers' are off.
    keepAliveIntervalMs: 3_600_000,
    ...options
  })
  app.get('/events', { sse: true }, async (request, reply) => {
    await reply.sse({ subscriptions: [`user:${request.sseUser.userId}:**`] })
  })
  app.get('/topics/:topic', { sse: true }, async (request, reply) => {
    await reply.sse({ subscriptions: [`topic:${request.params.topic}`] })
  })
  app.get('/runs/:i', { sse: true }, async (request, reply) => reply.sse(await app.sse.getRun(`run:${request.params.i}`, { ownerId: null })))
  app.get('/sources/:i', { sse: true }, (request, reply) => reply.sse(tokensOf(request.params.i)))
  await app.listen({ port: 0, host: '127.0.0.1' })
  return {
    port: app.server.address().port,
    path: '/events?user={i}',
    topicPath: '/topics/{i}',
    subscriptionPath: '/topics/{subscription}?user={i}',
    sourcePath: '/sources/{i}',
    runPath: '/runs/{i}',
    count: () => app.sse.connectionCount,
    startRun: async (i, source, options) => (await app.sse.startRun(`run:${i}`, source, { ownerId: null, ...options })).run,
    publish: data => app.sse.broadcastEvent({ data }),
    publishTo: (topic, data) => app.sse.broadcastEvent({ data }, { subscriptionIds: [`topic:${topic}`] })
  }
}
