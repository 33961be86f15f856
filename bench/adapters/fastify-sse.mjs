// @fastify/sse has no broadcast: a set of replies, and `send()` on each. Its promises are not awaited, which is faster.
import Fastify from 'fastify'
import fastifySSE from '@fastify/sse'
import { tokensOf } from '../tokens.mjs'

const ignore = () => {}

export default async function start () {
  const app = Fastify()
  await app.register(fastifySSE, { heartbeatInterval: 0 })
  const all = new Set()
  const topics = new Map()
  const open = (reply, room) => {
    reply.sse.keepAlive()
    reply.sse.sendHeaders()
    reply.raw.flushHeaders()
    room.add(reply)
    reply.sse.onClose(() => room.delete(reply))
  }
  app.get('/events', { sse: true }, async (request, reply) => open(reply, all))
  app.get('/topics/:topic', { sse: true }, async (request, reply) => {
    const { topic } = request.params
    if (!topics.has(topic)) topics.set(topic, new Set())
    open(reply, topics.get(topic))
  })
  app.get('/sources/:i', { sse: { serializer: text => text } }, async (request, reply) => {
    reply.sse.sendHeaders()
    reply.raw.flushHeaders()
    await reply.sse.send(tokensOf(request.params.i, data => ({ data })))
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const send = (room, data) => { for (const reply of room) reply.sse.send({ data }).catch(ignore) }
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
