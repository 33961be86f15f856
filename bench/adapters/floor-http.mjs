import { createServer } from 'node:http'
import { tokensOf } from '../tokens.mjs'

const HEAD = { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache', Connection: 'keep-alive' }
const kPlace = Symbol('place')

/** A bare `node:http` server that keeps one writable of each response in dense arrays, one for all and one for each topic. */
export async function startFloor (writableOf, encode) {
  const all = new Room()
  const topics = new Map()
  const server = createServer((request, response) => {
    response.writeHead(200, HEAD)
    response.flushHeaders()
    const [, kind, topic] = request.url.split('/')
    if (kind === 'sources') return pump(topic, writableOf(response), encode)
    let room = all
    if (kind === 'topics') {
      room = topics.get(topic) ?? new Room()
      topics.set(topic, room)
    }
    room.add(writableOf(response), response)
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  const text = data => `data: ${JSON.stringify(data)}\n\n`
  return {
    port: server.address().port,
    path: '/events',
    topicPath: '/topics/{i}',
    sourcePath: '/sources/{i}',
    count: () => all.members.length,
    publish (data) { all.write(encode(text(data))) },
    publishTo (topic, data) { topics.get(String(topic))?.write(encode(text(data))) }
  }
}

async function pump (i, writable, encode) {
  for await (const text of tokensOf(i)) writable.write(encode(`data: ${text}\n\n`), 'latin1')
}

class Room {
  members = []

  add (writable, response) {
    writable[kPlace] = this.members.length
    this.members.push(writable)
    response.on('close', () => this.#remove(writable))
  }

  write (bytes) {
    const { members } = this
    for (let i = 0; i < members.length; i++) members[i].write(bytes)
  }

  #remove (writable) {
    const last = this.members.pop()
    if (last === writable) return
    this.members[writable[kPlace]] = last
    last[kPlace] = writable[kPlace]
  }
}
