// What many write themselves: PUBLISH, and each node writes what its subscription brings to all its responses. No ids, no log.
import { createServer } from 'node:http'
import { Redis } from 'ioredis'

const CHANNEL = 'events'

export default async function start () {
  const publisher = new Redis(process.env.BENCH_REDIS)
  const subscriber = new Redis(process.env.BENCH_REDIS)
  const responses = new Set()
  await subscriber.subscribe(CHANNEL)
  subscriber.on('message', (channel, text) => {
    const frame = `data: ${text}\n\n`
    for (const response of responses) response.write(frame)
  })
  const server = createServer((request, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' })
    response.flushHeaders()
    responses.add(response)
    response.on('close', () => responses.delete(response))
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  return {
    port: server.address().port,
    path: '/events',
    count: () => responses.size,
    publish: data => publisher.publish(CHANNEL, JSON.stringify(data))
  }
}
