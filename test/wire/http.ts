import { once } from 'node:events'
import { createServer as createHttp, ServerResponse, type IncomingMessage } from 'node:http'
import { createServer as createHttp2, type Http2ServerRequest, type Http2ServerResponse, type ServerHttp2Session } from 'node:http2'
import type { AddressInfo, Socket } from 'node:net'
import t, { type Test } from 'tap'
import { closeSession, closeTransport, destroyTransport, isGone, isPlainChunked, isWhole, phraseOf, sendHead, socketAhead, whenClosed, whenSocketClosed } from '../../lib/wire/http.js'
import { connectH2, H2Stream } from '../helpers/h2.js'
import { RawSocket, requestText } from '../helpers/raw.js'
import { listenForTrouble } from '../helpers/trouble.js'
import { turns, until } from '../helpers/wait.js'

/** A server of HTTP/1, and the responses to the requests that it has received, by path. */
async function http1 (t: Test) {
  const responses: Record<string, ServerResponse<IncomingMessage>> = {}
  const server = createHttp((request, response) => { responses[request.url!] = response }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  // Sockets are closed by what is tested, or not at all.
  server.keepAliveTimeout = 0
  t.teardown(() => { server.close() })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const open = (...requests: Parameters<typeof requestText>[0][]) => {
    const socket = new RawSocket(url)
    t.teardown(() => socket.close())
    socket.socket.write(requests.map(requestText).join(''))
    return socket
  }
  return { responses, open }
}

/** The same of HTTP/2. */
async function http2 (t: Test) {
  const responses: Record<string, Http2ServerResponse<Http2ServerRequest>> = {}
  const sessions: ServerHttp2Session[] = []
  const sockets: Socket[] = []
  const server = createHttp2((request, response) => { responses[request.url] = response }).listen(0, '127.0.0.1')
  server.on('session', session => { sessions.push(session) }).on('connection', socket => { sockets.push(socket) })
  await once(server, 'listening')
  t.teardown(() => {
    for (const session of sessions) session.destroy()
    server.close()
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const connect = () => {
    const session = connectH2(url)
    t.teardown(() => session.destroy())
    return session
  }
  return { url, responses, sessions, sockets, connect }
}

t.test('a response is gone once it has ended, or its client has disconnected, before it says so', async t => {
  const { responses, open } = await http1(t)
  for (const [how, end] of Object.entries({
    ended: (response: ServerResponse) => { response.end('x') },
    destroyed: (response: ServerResponse) => { response.destroy() },
    disconnected: (response: ServerResponse) => { response.req.socket.destroy() }
  })) {
    // The second of each socket waits for the first.
    for (const [first, second] of [['/a', '/b'], ['/b', '/a']] as const) {
      delete responses['/a']
      delete responses['/b']
      open({ path: '/a' }, { path: '/b' })
      await until(() => '/a' in responses && '/b' in responses)
      t.strictSame([isGone(responses['/a']!), isGone(responses['/b']!)], [false, false])
      t.strictSame([socketAhead(responses['/a']!), socketAhead(responses['/b']!)], [null, responses['/a']!.socket])
      end(responses[first]!)
      t.equal(isGone(responses[first]!), true, `${first} ${how}`)
      t.equal(isGone(responses[second]!), how === 'disconnected' || (how === 'destroyed' && first === '/a'), `${second} when ${first} is ${how}`)
      responses['/a']!.destroy()
    }
  }

  const two = await http2(t)
  const session = two.connect()
  for (const [how, end] of Object.entries({
    ended: (response: Http2ServerResponse) => { response.end('x') },
    destroyed: (response: Http2ServerResponse) => { response.stream.destroy() },
    'destroyed with its session': (response: Http2ServerResponse) => { response.stream.session!.destroy() }
  })) {
    const paths = [`/${how[0]}1`, `/${how[0]}2${how}`.replaceAll(' ', '-')] as const
    const streams = paths.map(path => new H2Stream(session, path))
    await until(() => paths.every(path => path in two.responses))
    const [response, other] = paths.map(path => two.responses[path]!)
    t.strictSame([isGone(response!), isGone(other!), socketAhead(response!)], [false, false, null])
    end(response!)
    t.strictSame([isGone(response!), isGone(other!)], [true, how.includes('session')], `HTTP/2, ${how}`)
    for (const { stream } of streams) stream.destroy()
  }
})

t.test('a request is whole when its body has arrived; one of HTTP/2 without a body at once', async t => {
  const { responses, open } = await http1(t)
  const socket = open({ path: '/get' })
  const post = open()
  post.socket.write('POST /post HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{')
  await until(() => '/get' in responses && '/post' in responses)
  for (const { req } of Object.values(responses)) req.resume()
  await until(() => isWhole(responses['/get']!.req))
  t.equal(isWhole(responses['/post']!.req), false)
  post.socket.write('}')
  await until(() => isWhole(responses['/post']!.req))
  socket.close()

  const two = await http2(t)
  const session = two.connect()
  session.request({ ':path': '/get' }).on('error', () => {})
  const body = session.request({ ':path': '/post', ':method': 'POST' }).on('error', () => {})
  body.write('{')
  await until(() => '/get' in two.responses && '/post' in two.responses)
  t.strictSame(['/get', '/post'].map(path => isWhole(two.responses[path]!.req)), [true, false])
  two.responses['/post']!.req.resume()
  body.end('}')
  await until(() => isWhole(two.responses['/post']!.req))
  two.responses['/get']!.stream.close()
  await once(two.responses['/get']!, 'close')
  t.equal(isWhole(two.responses['/get']!.req), true, 'and stays so after its end')
})

t.test('the head is sent once, at once, and chunked where the client knows chunks', async t => {
  const { responses, open } = await http1(t)
  for (const version of ['1.0', '1.1'] as const) {
    for (const headers of [null, { 'x-given': 'yes' }]) {
      delete responses['/']
      const socket = open({ version })
      await until(() => '/' in responses)
      const response = responses['/']!
      t.equal(isPlainChunked(response), false, 'no head yet')
      response.setHeader('x-set', 'yes')
      sendHead(response, headers)
      sendHead(response, { 'x-late': 'no' })
      await socket.waitFor('\r\n\r\n')
      const { status, headers: received } = socket.answers[0]!
      t.strictSame([status, received['x-set'], received['x-given'], received['x-late']], [200, 'yes', headers === null ? undefined : 'yes', undefined])
      t.equal(received['transfer-encoding'], version === '1.1' ? 'chunked' : undefined)
      t.equal(isPlainChunked(response), version === '1.1')
      response.write = response.write.bind(response)
      t.equal(isPlainChunked(response), false, 'something has wrapped it')
      socket.close()
    }
  }
  const pipeline = open({ path: '/first' }, { path: '/second' })
  await until(() => '/second' in responses)
  sendHead(responses['/second']!, null)
  t.equal(isPlainChunked(responses['/second']!), false, 'it has no socket yet')
  pipeline.close()
  t.strictSame([200, 503, 799].map(phraseOf), ['OK', 'Service Unavailable', 'Error'])
})

t.test('the end of a response is told when it comes, also to one that waits for its socket', async t => {
  const warnings = listenForTrouble(t)
  const { responses, open } = await http1(t)
  const paths = Array.from({ length: 20 }, (_, i) => `/${i}`)
  const closed: string[] = []
  const pipeline = () => open(...paths.map(path => ({ path })))
  const all = async () => {
    await until(() => paths.every(path => path in responses))
    for (const path of paths) whenClosed(responses[path]!, () => { if (closed.at(-1) !== path) closed.push(path) })
  }
  const socket = pipeline()
  await all()
  for (const path of paths.slice(0, 3)) responses[path]!.end('x')
  await socket.waitForAnswers(3)
  await until(() => closed.length >= 3)
  t.strictSame(closed.splice(0), paths.slice(0, 3), 'the socket is still open')
  socket.socket.resetAndDestroy()
  await until(() => closed.length >= 17)
  t.strictSame([...new Set(closed.splice(0))].sort(), paths.slice(3).sort())

  for (const path of paths) delete responses[path]
  const other = pipeline()
  await until(() => paths.every(path => path in responses))
  let called = 0
  const stops = paths.map(path => whenSocketClosed(responses[path]!.req.socket, () => { called++ }))
  for (const stop of stops.slice(0, 12)) stop()
  other.close()
  await until(() => called > 0)
  await turns()
  t.equal(called, 8, 'those that were cancelled are not called')
  t.strictSame(warnings, [], 'of too many listeners')
})

t.test('the socket of a response closes with it, and does not wait for its client', async t => {
  const { responses, open } = await http1(t)
  const socket = open({})
  await until(() => '/' in responses)
  const response = responses['/']!
  closeTransport(response, 0)
  await turns()
  t.equal(response.req.socket.destroyed, false, 'not before the end')
  // The client never sends its FIN: RawSocket closes only when both sides have.
  socket.socket.allowHalfOpen = true
  response.end('last')
  await until(() => response.req.socket.destroyed)
  await socket.waitFor('last')
})

t.test('a session closes after its streams; the socket of a client that does not answer is destroyed, once nothing else uses it', async t => {
  const { url, responses, sessions, sockets, connect } = await http2(t)
  const session = connect()
  const stream = new H2Stream(session, '/work')
  await until(() => '/work' in responses)
  const drainMs = 20
  closeSession(sessions[0]!, drainMs)
  closeSession(sessions[0]!, drainMs)
  await new Promise(resolve => setTimeout(resolve, drainMs + 200))
  responses['/work']!.end('done')
  await stream.waitForClose()
  t.strictSame([stream.ended, stream.text], [true, 'done'], 'work of others goes on after that time')
  await until(() => session.closed)
  t.doesNotThrow(() => closeSession(sessions[0]!, drainMs), 'it has no socket any more')

  // This client reads nothing, so it does not answer the end of its session.
  const frozen = new RawSocket(url)
  t.teardown(() => frozen.close())
  frozen.socket.write(Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0])]))
  await until(() => sessions.length === 2)
  frozen.socket.pause()
  closeSession(sessions[1]!, drainMs)
  await until(() => sockets[1]!.destroyed, 10_000)
  t.equal(frozen.closed, false)
})

t.test('a stream of HTTP/2 is destroyed alone, or with its session; of HTTP/1 also if its wrapper throws', async t => {
  const { responses, connect } = await http2(t)
  const session = connect()
  const streams = ['/a', '/b', '/c'].map(path => new H2Stream(session, path))
  await until(() => '/c' in responses && '/b' in responses && '/a' in responses)
  destroyTransport(responses['/a']!, false)
  await streams[0]!.waitForClose()
  await turns()
  t.strictSame([streams[1]!.closed, streams[2]!.closed, session.closed], [false, false, false])
  destroyTransport(responses['/b']!, true)
  for (const stream of streams) await stream.waitForClose()
  await until(() => session.closed)

  const one = await http1(t)
  for (const throws of [false, true]) {
    delete one.responses['/']
    const socket = one.open({})
    await until(() => '/' in one.responses)
    const response = one.responses['/']!
    if (throws) response.destroy = () => { throw new Error('of a wrapper') }
    destroyTransport(response, false)
    await socket.waitForClose()
    t.equal(response.req.socket.destroyed, true)
  }
})
