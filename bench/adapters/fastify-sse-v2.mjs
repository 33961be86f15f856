// fastify-sse-v2 has no broadcast: a set of replies, the JSON made once for all.
import Fastify from 'fastify'
import { FastifySSEPlugin } from 'fastify-sse-v2'
import { tokensOf } from '../tokens.mjs'

export default async function start () {
  const app = Fastify()
  await app.register(FastifySSEPlugin)
  const all = new Set()
  const topics = new Map()
  const open = (reply, room) => {
    reply.sse({ comment: 'open' })
    room.add(reply)
    reply.raw.on('close', () => room.delete(reply))
  }
  app.get('/events', (request, reply) => open(reply, all))
  app.get('/topics/:topic', (request, reply) => {
    const { topic } = request.params
    if (!topics.has(topic)) topics.set(topic, new Set())
    open(reply, topics.get(topic))
  })
  app.get('/sources/:i', (request, reply) => { reply.sse(tokensOf(request.params.i, data => ({ data }))) })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const send = (room, data) => {
    const message = { data: JSON.stringify(data) }
    for (const reply of room) reply.sse(message)
  }
  return {
    port: app.server.address().port,
    path: '/events',
    topicPath: '/topics/{i}',
    sourcePath: '/sources/{i}',
    count: () => all.size,
    publish (data) { send(all, data) },
    publishTo (topic, data) { send(topics.get(String(topic)) ?? [], data) }
  }
}
