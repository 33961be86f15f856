// better-sse on a bare node:http server, where it is fastest: a channel for all, and one for each topic.
import { createServer } from 'node:http'
import { createChannel, createSession } from 'better-sse'
import { tokensOf } from '../tokens.mjs'

export default async function start () {
  const all = createChannel()
  const topics = new Map()
  const server = createServer(async (request, response) => {
    const [, kind, topic] = request.url.split('/')
    if (kind === 'sources') {
      const session = await createSession(request, response, { keepAlive: null, serializer: text => text })
      return await session.iterate(tokensOf(topic))
    }
    const session = await createSession(request, response, { keepAlive: null })
    let channel = all
    if (kind === 'topics') {
      channel = topics.get(topic) ?? createChannel()
      topics.set(topic, channel)
    }
    channel.register(session)
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  return {
    port: server.address().port,
    path: '/events',
    topicPath: '/topics/{i}',
    sourcePath: '/sources/{i}',
    count: () => all.sessionCount,
    publish (data) { all.broadcast(data, 'message') },
    publishTo (topic, data) { topics.get(String(topic))?.broadcast(data, 'message') }
  }
}
