import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import { createServer as createHttp2, type Http2ServerResponse } from 'node:http2'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { IdleSockets } from '../../lib/fastify/idle-sockets.js'
import { connectH2, H2Stream } from '../helpers/h2.js'
import { collect } from '../helpers/heap.js'
import { RawSocket } from '../helpers/raw.js'
import { until } from '../helpers/wait.js'

// The parts of closing a server, by themselves. All together: test/faults/shutdown.test.ts.

/** A server that answers `/work` when the test says so, and what it has received. */
async function listen (t: Test, http2 = false) {
  const work: (ServerResponse | Http2ServerResponse)[] = []
  const refs: WeakRef<object>[] = []
  const answer = (request: { url?: string | undefined }, response: ServerResponse | Http2ServerResponse) => {
    refs.push(new WeakRef(response))
    if (request.url === '/work') work.push(response)
    else response.end('answered')
  }
  const server = http2 ? createHttp2(answer) : createServer(answer)
  t.teardown(() => { server.close() })
  server.on('connection', (socket: object) => { refs.push(new WeakRef(socket)) }).on('session', (session: object) => { refs.push(new WeakRef(session)) })
  const idle = new IdleSockets(server as never)
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  let connections = 0
  server.on('connection', () => { connections++ })
  /** Opens a connection, and waits until the server has read what it sends. */
  const open = async (text: string) => {
    const socket = new RawSocket(url)
    t.teardown(() => socket.close())
    const count = connections
    socket.socket.write(text)
    await until(() => connections > count)
    return socket
  }
  return { server, url, idle, work, refs, open }
}

const GET = (path: string) => `GET ${path} HTTP/1.1\r\nhost: x\r\n\r\n`
const HALF = 'GET / HTTP/1.1\r\nho'
const BODY = 'POST /work HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{'

t.test('closing destroys silent connections at once, incomplete requests after the time, and the others after their answer', async t => {
  const { server, idle, work, open } = await listen(t)
  const read: (() => number)[] = []
  server.on('connection', socket => { read.push(() => socket.bytesRead) })
  const bare = await open('')
  const half = await open(HALF)
  const body = await open(BODY)
  const working = await open(GET('/work'))
  const pipelined = await open(GET('/work') + GET('/work'))
  const answered = await open(GET('/'))
  await answered.waitForAnswers(1)
  answered.socket.write(HALF)
  await until(() => work.length === 4 && read[1]!() > 0 && read[5]!() > GET('/').length)
  let isClosed = false
  const drainMs = 400
  const startedAt = performance.now()
  idle.close(drainMs)
  server.close(() => { isClosed = true })
  await bare.waitForClose()
  t.strictSame([half, body, answered, working, pipelined].map(({ closed }) => closed), [false, false, false, false, false])
  for (const socket of [half, body, answered]) await socket.waitForClose()
  t.ok(performance.now() - startedAt >= drainMs)
  t.strictSame([working.closed, pipelined.closed, isClosed], [false, false, false])
  // The response to the incomplete request is one of the four.
  for (const response of work) response.end('done')
  t.strictSame((await working.waitForAnswers(1)).map(({ body }) => body), ['done'])
  t.equal((await pipelined.waitForAnswers(2)).length, 2)
  for (const socket of [working, pipelined]) await socket.waitForClose()
  await until(() => isClosed)
})

t.test('a request that follows an answer is cut as well, however late; a session closes after its streams', async t => {
  const { idle, server, work, open } = await listen(t)
  const socket = await open(GET('/work') + HALF)
  await until(() => work.length === 1)
  idle.close(0)
  server.close()
  await new Promise(resolve => setTimeout(resolve, 150))
  t.equal(socket.closed, false)
  work[0]!.end('done')
  await socket.waitForAnswers(1)
  await socket.waitForClose()

  const two = await listen(t, true)
  const session = connectH2(two.url)
  const [stream, post] = [new H2Stream(session, '/work'), session.request({ ':path': '/work', ':method': 'POST' })]
  post.on('error', () => {}).write('{')
  const unfinished = connectH2(two.url)
  unfinished.request({ ':path': '/work', ':method': 'POST' }).on('error', () => {}).write('{')
  const silent = await two.open('')
  const half = await two.open('PRI * HTT')
  t.teardown(() => { for (const open of [session, unfinished]) open.destroy() })
  await until(() => two.work.length === 3)
  two.idle.close(100)
  two.server.close()
  await silent.waitForClose()
  await half.waitForClose()
  await until(() => unfinished.closed)
  t.strictSame([stream.closed, session.destroyed], [false, false])
  for (const response of two.work) if (!response.destroyed) response.end('done')
  await stream.waitForClose()
  t.equal(stream.text, 'done')
  await until(() => session.closed)
})

t.test('a server that does not listen has nothing to close', async t => {
  const server = createServer()
  const idle = new IdleSockets(server)
  const listeners = server.listenerCount('close')
  idle.close(0)
  t.equal(server.listenerCount('close'), listeners)
})

t.test('nothing keeps a socket, a session or a response that has ended; nor a server that has closed', async t => {
  const gone = async (refs: WeakRef<object>[]) => await until(() => {
    collect()
    return refs.every(ref => ref.deref() === undefined)
  })
  const { work, refs, open } = await listen(t)
  const keepsWork = async () => {
    const socket = await open(GET('/work'))
    await until(() => work.length === 1)
    socket.socket.resetAndDestroy()
    await once(work.pop()!, 'close')
    const next = await open(GET('/') + GET('/'))
    await next.waitForAnswers(2)
    next.close()
  }
  await keepsWork()
  await gone(refs.splice(0, 2))
  // Sockets that were silent when they closed are let go once 512 have come.
  for (let i = 0; i < 600; i += 50) for (const socket of await Promise.all(Array.from({ length: 50 }, () => open('')))) socket.socket.destroy()
  await gone(refs.splice(0, 300))

  const two = await listen(t, true)
  const session = connectH2(two.url)
  const stream = new H2Stream(session, '/')
  await stream.waitForClose()
  session.destroy()
  const bare = await two.open('')
  bare.close()
  await gone(two.refs)

  const closed = await (async () => {
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const idle = new IdleSockets(server)
    idle.close(3_600_000)
    server.close()
    await once(server, 'close')
    return [new WeakRef<object>(server), new WeakRef<object>(idle)]
  })()
  await gone(closed)
})
