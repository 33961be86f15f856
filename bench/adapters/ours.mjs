// This package, as an application would use it: a user, a subscription, an id on every event, the log.
import Fastify from 'fastify'
import { pathToFileURL } from 'node:url'
import { resolve } from 'node:path'

/** Where the package has been built: `dist/esm`, or BENCH_BUILD. */
export const build = process.env.BENCH_BUILD === undefined
  ? new URL('../../dist/esm/', import.meta.url)
  : pathToFileURL(resolve(process.env.BENCH_BUILD) + '/')

const { BENCH_HISTORY_BYTES: historyBytes } = process.env

export default () => startOurs(historyBytes === undefined ? {} : { history: { maxBytes: Number(historyBytes) } })

export async function startOurs (options = {}) {
  const { default: ssePlugin } = await import(new URL('lib/index.js', build))
  const app = Fastify()
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
  await app.listen({ port: 0, host: '127.0.0.1' })
  return {
    port: app.server.address().port,
    path: '/events?user={i}',
    topicPath: '/topics/{i}',
    count: () => app.sse.connectionCount,
    publish: data => app.sse.broadcastEvent({ data }),
    publishTo: (topic, data) => app.sse.broadcastEvent({ data }, { subscriptionIds: [`topic:${topic}`] })
  }
}
