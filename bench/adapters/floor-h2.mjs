// Bare node:http2 without TLS, and `stream.write()` in a loop.
import { createServer } from 'node:http2'

export default async function start () {
  const streams = new Set()
  const server = createServer()
  server.on('stream', stream => {
    stream.respond({ ':status': 200, 'content-type': 'text/event-stream', 'cache-control': 'no-cache' })
    streams.add(stream)
    stream.on('error', () => {})
    stream.on('close', () => streams.delete(stream))
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  return {
    port: server.address().port,
    path: '/events',
    count: () => streams.size,
    publish (data) {
      const bytes = Buffer.from(`data: ${JSON.stringify(data)}\n\n`)
      for (const stream of streams) stream.write(bytes)
    }
  }
}
