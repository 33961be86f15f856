import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server } from 'node:http'
import { connect, type Socket } from 'node:net'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { kTestUser } from '../../lib/access/authentication.js'
import { connectTo, isArriving, type Link } from '../../lib/testing/link.js'
import { expectedAt, ServerSide } from '../../lib/testing/server-side.js'
import { turns, until } from '../helpers/wait.js'

// The connections of a test to its server: where they lead, and whose requests they carry.

const userOf = (request: IncomingMessage) => (request as unknown as Record<symbol, unknown>)[kTestUser]

/** A server that keeps its requests, and answers none. */
function build (t: Test): { server: Server, requests: IncomingMessage[] } {
  const requests: IncomingMessage[] = []
  const server = createServer(request => { requests.push(request) })
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return { server, requests }
}

async function open (t: Test, ...args: Parameters<typeof connectTo>): Promise<Link> {
  const link = await connectTo(...args)
  t.teardown(() => link.socket.destroy())
  return link
}

const REQUEST = 'GET / HTTP/1.1\r\nhost: x\r\n\r\n'

t.test('where a connection leads, by the address of the server', async t => {
  for (const [host, expected] of [['127.0.0.1', '127.0.0.1'], ['0.0.0.0', '127.0.0.1'], ['127.0.0.9', '127.0.0.9'], ['::', '127.0.0.1'], ['::1', '[::1]']] as const) {
    const { server, requests } = build(t)
    await once(server.listen(0, host), 'listening')
    const { port } = server.address() as { port: number }
    const link = await open(t, server, { user: 'ada' })
    t.equal(link.host, `${expected}:${port}`)
    link.socket.write(REQUEST)
    await until(() => requests.length === 1)
    t.strictSame(userOf(requests[0]!), { userId: 'ada' }, `the user arrives at ${host}`)
    const byURL = await open(t, `http://${link.host}`, {})
    t.strictSame([byURL.host, byURL.serverSide], [link.host, null])
    byURL.socket.write(REQUEST)
    await until(() => requests.length === 2)
    t.equal(userOf(requests[1]!), undefined)
  }
  for (const [url, port] of [['http://127.0.0.77', 80], ['https://127.0.0.77', 443]] as const) {
    await t.rejects(connectTo(url, {}), { code: 'ECONNREFUSED', address: '127.0.0.77', port })
  }
})

t.test('in memory or by TCP', async t => {
  for (const [listens, socket, byTCP] of [[false, undefined, false], [false, false, false], [false, true, true], [true, undefined, true], [true, false, false], [true, true, true]] as const) {
    const { server, requests } = build(t)
    if (listens) await once(server.listen(0, '127.0.0.1'), 'listening')
    const link = await open(t, server, { socket })
    t.equal(link.host !== 'localhost', byTCP, `listens: ${listens}, socket: ${socket}`)
    t.equal(server.listening, listens || byTCP)
    link.socket.write(REQUEST)
    await until(() => requests.length === 1)
  }
  const app = Fastify()
  t.teardown(() => app.close())
  const log: string[] = []
  app.addHook('onReady', async () => {
    await turns()
    log.push('ready')
  })
  await open(t, app, {})
  t.strictSame(log, ['ready'])
})

t.test('neither a connection nor the server that it has started keeps the process alive', async t => {
  const handles = () => process.getActiveResourcesInfo().filter(kind => kind.startsWith('TCP')).length
  await until(() => handles() === 0)
  const { server, requests } = build(t)
  const link = await open(t, server, { socket: true })
  link.socket.write(REQUEST)
  await until(() => requests.length === 1)
  t.equal(handles(), 0)
})

t.test('a server that resets the connection is no uncaught error', async t => {
  for (const socket of [true, false]) {
    const { server, requests } = build(t)
    const link = await open(t, server, { socket })
    if (!socket) link.socket.on('error', () => {})
    link.socket.write(REQUEST)
    await until(() => requests.length === 1)
    requests[0]!.socket.resetAndDestroy()
    await until(() => link.socket.destroyed)
  }
})

t.test('a user belongs to the first request of its connection only', async t => {
  for (const socket of [true, false]) {
    const { server, requests } = build(t)
    const link = await open(t, server, { socket, user: { userId: 'ada', claims: { role: 'x' } } })
    server.on('request', (_request, response) => response.end())
    for (const count of [1, 2]) {
      link.socket.write(REQUEST)
      await until(() => requests.length === count)
    }
    t.strictSame(requests.map(userOf), [{ userId: 'ada', claims: { role: 'x' } }, undefined])
  }
})

t.test('the user is set before other listeners receive the request', async t => {
  const server = createServer()
  const seen: unknown[] = []
  server.on('request', request => seen.push(userOf(request)))
  const link = await open(t, server, { user: 'ada' })
  link.socket.write(REQUEST)
  await until(() => seen.length === 1)
  t.strictSame(seen, [{ userId: 'ada' }])
})

/** A request from another socket. */
function requestFrom (remotePort: number | undefined, remoteAddress: string | undefined = '127.0.0.1'): IncomingMessage {
  return { socket: { remotePort, remoteAddress, once () {} } } as unknown as IncomingMessage
}

t.test('a connection that has ended leaves no user behind for its port', async t => {
  for (const socket of [true, false]) {
    const { server, requests } = build(t)
    const sockets: Socket[] = []
    server.on('connection', (socket: Socket) => sockets.push(socket))
    const link = await open(t, server, { socket, user: 'ada' })
    await until(() => sockets.length === 1)
    const { remotePort } = sockets[0]!
    link.socket.destroy()
    await once(link.socket, 'close')
    server.emit('request', requestFrom(remotePort))
    t.equal(userOf(requests[0]!), undefined)
  }
})

t.test('a user is given to requests from this machine only', async t => {
  const { server, requests } = build(t)
  for (const [address, isLocal] of [
    ['127.0.0.1', true], ['127.8.9.1', true], ['::1', true], ['::ffff:127.0.0.1', true],
    ['10.0.0.1', false], ['::2', false], ['::ffff:10.127.0.1', false], ['10.0.127.0', false], ['fe80::127.0.0.1', false]
  ] as const) {
    const forget = expectedAt(server).from(7, new ServerSide('ada'))
    server.emit('request', requestFrom(8, address))
    t.equal(userOf(requests.pop()!), undefined, 'another port')
    server.emit('request', requestFrom(7, address))
    t.equal(userOf(requests.pop()!) !== undefined, isLocal, address)
    forget()
  }
  server.emit('request', requestFrom(7))
  t.equal(userOf(requests.pop()!), undefined, 'forgotten')
  t.equal(expectedAt(server), expectedAt(server))
  server.emit('request', { socket: {} })
  t.equal(userOf(requests.pop()!), undefined)
})

t.test('cork() keeps what the server writes, uncork() sends it', async t => {
  const { server, requests } = build(t)
  const link = await open(t, server, { socket: true })
  const side = link.serverSide!
  side.cork()
  side.uncork()
  t.equal(side.bytesWritten, 0, 'before the request there is nothing to keep')
  await side.closed()
  const texts: string[] = []
  ;(link.socket as Socket).setEncoding('latin1').on('data', text => texts.push(String(text)))
  link.socket.write(REQUEST)
  await until(() => requests.length === 1)
  const { socket } = requests[0]!
  side.cork()
  side.cork()
  socket.write('one')
  socket.cork()
  socket.write('two')
  // As `end()` does, and HTTP after each turn.
  for (let n = 0; n < 4; n++) socket.uncork()
  await turns(10)
  t.strictSame(texts, [])
  side.uncork()
  await until(() => texts.join('') === 'onetwo')
  t.ok(side.bytesWritten >= 6)
  socket.cork()
  socket.write('three')
  socket.uncork()
  await until(() => texts.join('') === 'onetwothree')
  let closed = false
  side.closed().then(() => { closed = true })
  await turns(10)
  t.notOk(closed)
  const order: string[] = []
  socket.once('close', () => process.nextTick(() => process.nextTick(() => order.push('the application'))))
  side.closed().then(() => order.push('closed()'))
  link.socket.destroy()
  await until(() => order.length === 2)
  t.strictSame(order, ['the application', 'closed()'])
})

t.test('bytes are in transit until a client has received them, or does not read', async t => {
  for (const socket of [true, false]) {
    const { server, requests } = build(t)
    const link = await open(t, server, { socket })
    link.socket.on('error', () => {}).resume()
    link.socket.write(REQUEST)
    await until(() => requests.length === 1 && !isArriving())
    requests[0]!.socket.write('x'.repeat(100))
    t.ok(isArriving(), `by TCP: ${socket}`)
    await until(() => !isArriving())
    if (socket) {
      link.socket.pause()
      requests[0]!.socket.write('x')
      t.notOk(isArriving(), 'a paused client')
      link.socket.resume()
      await until(() => !isArriving())
      // A closed connection has received all that it will.
      requests[0]!.socket.write('x'.repeat(1_000_000))
    }
    link.socket.destroy()
    await once(link.socket, 'close')
    t.notOk(isArriving())
  }
  const { server } = build(t)
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const other = connect((server.address() as { port: number }).port, '127.0.0.1')
  await once(other, 'connect')
  other.destroy()
})
