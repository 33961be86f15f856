import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import ssePlugin, { SSEManager, type SSEOptions } from '../../lib/index.js'
import { openStream, type OpenStreamOptions, type ReceivedEvent, type TestContext } from '../../lib/testing/index.js'
import { createCertificate } from '../helpers/certificate.js'
import { holdTimers } from '../helpers/held-timers.js'

/** An application with one route that opens a stream. */
async function build (t: Test, options: SSEOptions = {}, server = {}): Promise<FastifyInstance> {
  const app: FastifyInstance = Fastify(server)
  t.teardown(() => app.close())
  await app.register(ssePlugin, { drainMs: 200, ...options })
  app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: ['news:**'] }) })
  app.post('/echo', { sse: true }, async (request, reply) => await reply.sse([{ event: 'echo', data: request.body as object }]))
  return app
}

const names = (events: readonly ReceivedEvent[]) => events.map(({ event }) => event)

/** In memory and by TCP the verbs are the same. */
const TRANSPORTS: Record<string, OpenStreamOptions> = { 'in memory': { socket: false }, 'by TCP': { socket: true } }

for (const [name, transport] of Object.entries(TRANSPORTS)) {
  t.test(name, async t => {
    t.test('a stream resolves when the server has the connection: no broadcast is missed', async t => {
      const app = await build(t)
      for (let n = 1; n <= 20; n++) {
        await openStream(app, '/sse', { ...transport, test: t })
        t.equal(app.sse.connectionCount, n)
        t.equal((await app.sse.broadcastData('n', n)).delivered, n)
      }
      t.equal(app.server.listening, transport.socket)
    })

    t.test('events, comments and the cursor', async t => {
      const app = await build(t)
      const stream = await openStream(app, '/sse', { ...transport, test: t })
      t.equal(stream.status, 200)
      t.equal(stream.headers['content-type'], 'text/event-stream')
      t.strictSame(stream.comments, ['stream keep-alive=15000'])
      const { id } = await app.sse.broadcastData('orders', { é: 1 })
      t.strictSame(await stream.next(), { event: 'data', data: '{"resource":"orders","data":{"é":1}}', json: { resource: 'orders', data: { é: 1 } }, id })
      t.equal(stream.lastEventId, id)
      t.equal(stream.retryMs, 3_000)
      await app.sse.broadcastEvent({ data: 'a\nb' }, { ephemeral: true })
      t.strictSame(await stream.next('message'), { event: 'message', data: 'a\nb', json: undefined, id: null })
      t.equal(stream.lastEventId, id)
      t.ok(stream.isOpen)
      t.equal(stream.events.length, 2)
    })

    t.test('next() and collect() return each event once; other names stay unread', async t => {
      const app = await build(t)
      const stream = await openStream(app, '/sse', { ...transport, test: t })
      const waiting = stream.next('c')
      for (const event of ['a', 'b', 'a', 'c', 'd', 'e', 'f']) await app.sse.broadcastEvent({ event, data: 1 })
      t.equal((await stream.next('b')).event, 'b')
      t.equal((await waiting).event, 'c')
      t.strictSame(names(await stream.collect(2)), ['a', 'a'])
      t.strictSame(names(await stream.collect(({ event }) => event === 'e')), ['d', 'e'])
      t.equal((await stream.next()).event, 'f')
      t.strictSame(names(stream.events), ['a', 'b', 'a', 'c', 'd', 'e', 'f'])
    })

    t.test('the next events of a name, and all of a name', async t => {
      const app = await build(t)
      const stream = await openStream(app, '/sse', { ...transport, test: t })
      const waiting = stream.collect(2, 'a')
      for (const [data, event] of ['a', 'b', 'a', 'a', 'b'].entries()) await app.sse.broadcastEvent({ event, data })
      t.strictSame((await waiting).map(({ json }) => json), [0, 2])
      t.strictSame(names(await stream.collect(3)), ['b', 'a', 'b'])
      t.strictSame(stream.named('a').map(({ json }) => json), [0, 2, 3], 'read or not')
      await t.rejects((await openStream(app, '/sse', { ...transport, test: t, timeoutMs: 50 })).collect(2, 'a'), { code: 'SSE_ERR_TEST_TIMEOUT', message: '2 events "a"' })
    })

    t.test('until(): comments and the cursor are waited for as well; text is the body', async t => {
      const app = await build(t, { keepAliveIntervalMs: 20 })
      const stream = await openStream(app, '/sse', { ...transport, test: t })
      const { lastEventId } = stream
      await app.sse.broadcastEvent({ event: 'x', data: 1 }, { userIds: ['another'] })
      await stream.until(() => stream.lastEventId !== lastEventId)
      await stream.until(() => stream.comments.includes('keep-alive'))
      t.strictSame(stream.events, [])
      t.match(stream.text, /^: stream keep-alive=\d+\n\nretry: \d+\n\nid: [\w-]+\.0\n\n/)
      t.match(stream.text, '\n\n: keep-alive\n')
      t.equal(stream.text.length, stream.receivedBytes)
      await stream.close()
      await t.rejects(stream.until(() => stream.events.length > 0), { code: 'SSE_ERR_TEST_STREAM_ENDED', message: 'stream.events.length > 0' })
    })

    t.test('a wait that fails says what was received instead', async t => {
      const app = await build(t)
      const stream = await openStream(app, '/sse', { ...transport, test: t, timeoutMs: 1_000 })
      await app.sse.broadcastEvent({ event: 'x', data: { y: 1 } })
      await Promise.all([
        t.rejects(stream.next('orders'), { code: 'SSE_ERR_TEST_TIMEOUT', message: /Not received within 1000 ms: event "orders"\. GET \/sse: status 200, open; 1 events, the last 1: x \{"y":1\}; 1 unread; 1 comments; last event id "[\w-]+\.1"$/ }),
        t.rejects(stream.collect(2), { code: 'SSE_ERR_TEST_TIMEOUT', message: '2 events' }),
        t.rejects(stream.collect(() => false), { code: 'SSE_ERR_TEST_TIMEOUT', message: '() => false is true' }),
        t.rejects(stream.collect(() => { throw new RangeError('predicate') }), { message: 'predicate' }),
        t.rejects(stream.ended, { code: 'SSE_ERR_TEST_TIMEOUT', message: 'the end of the stream' })
      ])
      const pending = stream.next('y')
      app.sse.getConnection([...app.sse.connections()][0]!.clientId)!.close('kicked')
      await t.rejects(pending, { code: 'SSE_ERR_TEST_STREAM_ENDED', message: /ended before it received event "y"\. .* ended by server \(kicked\); 2 events/ })
      t.equal((await stream.next()).event, 'x', 'what was received can still be read')
    })

    t.test('how a stream ends', async t => {
      const app = await build(t)
      const streams = await Promise.all([1, 2, 3, 4].map(() => openStream(app, '/sse', { ...transport, test: t })))
      const [closed, destroyed, left, shut] = streams as [typeof streams[0], typeof streams[0], typeof streams[0], typeof streams[0]]
      const connections = [...app.sse.connections()]
      connections[0]!.close('max-age')
      t.strictSame(await closed.ended, { by: 'server', reason: 'max-age', reconnect: true })
      t.notOk(closed.isOpen)
      await left.close()
      await left.close()
      t.strictSame(await left.ended, { by: 'test', reason: null, reconnect: null })
      t.equal(app.sse.connectionCount, 2, 'the server has noticed')
      await destroyed.cut()
      t.strictSame(await destroyed.ended, { by: 'test', reason: null, reconnect: null })
      t.equal(app.sse.connectionCount, 1)
      await t.rejects(destroyed.cut(), { code: 'SSE_ERR_TEST_MISUSE', message: 'cut() needs an open stream' })
      await app.close()
      t.strictSame(await shut.ended, { by: 'server', reason: 'shutdown', reconnect: true })
    })

    t.test('a connection that breaks is not an end', async t => {
      const app = await build(t)
      app.get('/cut', async (request, reply) => {
        await reply.sse()
        setImmediate(() => reply.raw.destroy())
      })
      const stream = await openStream(app, '/cut', { ...transport, test: t })
      t.match(await stream.ended, { by: 'network' })
    })

    t.test('reconnect() sends the cursor, close() and asyncDispose disconnect', async t => {
      const app = await build(t)
      const first = await openStream(app, '/sse', { ...transport, test: t })
      for (const n of [1, 2]) await app.sse.broadcastEvent({ event: 'n', data: n })
      await first.collect(2)
      await first.close()
      for (const n of [3, 4]) await app.sse.broadcastEvent({ event: 'n', data: n })
      const second = await first.reconnect()
      t.strictSame((await second.collect(2)).map(({ json }) => json), [3, 4])
      const third = await second.reconnect({ lastEventId: null })
      await app.sse.broadcastEvent({ event: 'n', data: 5 })
      t.equal((await third.next()).json, 5)
      await third[Symbol.asyncDispose]()
      t.equal(app.sse.connectionCount, 0)
    })

    t.test('close() twice at once waits for the server, and no longer', async t => {
      const app = await build(t)
      const stream = await openStream(app, '/sse', { ...transport, test: t })
      // The time after which a server that does not answer is given up never comes.
      holdTimers(t)
      await Promise.all([stream.close(), stream.close()])
      t.equal(app.sse.connectionCount, 0)
    })

    t.test('user: the application is not asked, but its rights apply', async t => {
      const app = await build(t, {
        requireAuthentication: true,
        authHandler: ({ token }) => token,
        maxConnectionsPerUser: 2,
        authorizeSubscription: ({ userId }) => userId !== 'mallory'
      })
      await t.rejects(openStream(app, '/sse', transport), { code: 'SSE_ERR_TEST_REFUSED', statusCode: 401, body: { code: 'SSE_ERR_UNAUTHENTICATED' }, message: 'GET /sse was refused: status 401 SSE_ERR_UNAUTHENTICATED Authentication required' })
      const ada = await openStream(app, '/sse', { ...transport, test: t, user: 'ada' })
      await openStream(app, '/sse', { ...transport, test: t, user: { userId: 'bob', claims: { role: 'x' } } })
      await openStream(app, '/sse', { ...transport, test: t, headers: { Authorization: 'Bearer ada' } })
      t.equal(app.sse.getConnectionsByUser('ada').length, 2)
      t.strictSame(app.sse.getConnectionsByUser('bob')[0]!.claims, { role: 'x' })
      await app.sse.broadcastToUsers({ event: 'x', data: 1 }, ['ada'])
      await ada.next('x')
      await t.rejects(openStream(app, '/sse', { ...transport, user: 'mallory' }), { code: 'SSE_ERR_TEST_REFUSED', statusCode: 403, body: { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' } })
      await t.rejects(openStream(app, '/sse', { ...transport, user: 'ada' }), { statusCode: 200, body: { code: 'SSE_ERR_TOO_MANY_USER_CONNECTIONS', retryable: true }, message: /by a stream that ends, SSE_ERR_TOO_MANY_USER_CONNECTIONS Too many/ })
      await t.rejects(openStream(app, '/sse', { ...transport, user: 'ada', headers: { accept: '*/*' } }), { code: 'SSE_ERR_TEST_REFUSED', statusCode: 429 })
    })

    t.test('the user of one request is not that of another, whatever that sends', async t => {
      const app = await build(t, { requireAuthentication: true, authHandler: () => null })
      await openStream(app, '/sse', { socket: true, test: t, user: 'ada' })
      const { port } = app.server.address() as { port: number }
      const headers = { user: 'ada', 'x-user': 'ada', 'fastify-sse-manager.test-user': 'ada' }
      for (const [name, value] of Object.entries(headers)) {
        t.equal((await fetch(`http://127.0.0.1:${port}/sse?user=ada`, { headers: { [name]: value } })).status, 401)
      }
      t.equal((await app.inject({ url: '/sse', headers: { user: 'ada' } })).statusCode, 401)
    })

    t.test('answers that are not streams', async t => {
      const app = await build(t)
      app.get('/json', async () => ({ a: 1 }))
      app.get('/nothing', async (request, reply) => reply.code(204).send())
      app.get('/never', async (request, reply) => { reply.hijack() })
      const json = await openStream(app, '/json', { ...transport, test: t, allowRefusal: true })
      t.match(json, { status: 200, body: { a: 1 }, isOpen: false, isStream: false })
      await t.rejects(openStream(app, '/json', transport), { statusCode: 200, message: /content type "application\/json.*not an event stream/ })
      await t.rejects(openStream(app, '/nothing', transport), { code: 'SSE_ERR_TEST_REFUSED', statusCode: 204 })
      await t.rejects(openStream(app, '/never', { ...transport, timeoutMs: 50 }), { code: 'SSE_ERR_TEST_TIMEOUT', message: 'an answer to GET /never' })
      t.equal((await openStream(app, '/sse', { ...transport, method: 'HEAD' })).status, 200)
      const refused = await openStream(app, '/missing', { ...transport, allowRefusal: true })
      t.match(refused, { status: 404, body: { error: 'Not Found' } })
    })

    t.test('methods and bodies', async t => {
      const app = await build(t)
      const stream = await openStream(app, '/echo', { ...transport, test: t, body: { a: 'é' } })
      t.strictSame((await stream.next('echo')).json, { a: 'é' })
      t.match(await stream.ended, { by: 'server', reason: 'source-end' })
      const text = await openStream(app, '/echo', { ...transport, test: t, method: 'POST', body: '[1]', headers: { 'Content-Type': 'application/json' } })
      t.equal((await text.next('echo')).data, '[1]')
    })

    t.test('freeze(): the server waits with the next write, and reads on after thaw()', async t => {
      const app = await build(t, { outboxBytes: 10_000 })
      const stream = await openStream(app, '/sse', { ...transport, test: t })
      stream.freeze()
      stream.freeze()
      const [connection] = [...app.sse.connections()]
      for (let n = 0; n < 200; n++) await app.sse.broadcastEvent({ event: 'n', data: 'x'.repeat(1_000) })
      await new Promise(resolve => setTimeout(resolve, 20))
      const { queuedBytes, lagging } = connection!.stats()
      t.ok(queuedBytes > 0 && lagging, `${queuedBytes} bytes wait, and 200,000 were sent`)
      t.strictSame(stream.events, [])
      stream.thaw()
      stream.thaw()
      t.equal((await stream.collect(200)).length, 200)
    })

    t.test('a frozen client is stalled, and can be closed', async t => {
      const app = await build(t, { stallTimeoutMs: 100, keepAliveIntervalMs: 20 })
      const stream = await openStream(app, '/sse', { ...transport, test: t })
      stream.freeze()
      const [connection] = [...app.sse.connections()]
      await app.sse.broadcastEvent({ data: 'x'.repeat(200_000) })
      await once(connection!.signal, 'abort')
      t.equal(connection!.closeReason, 'stalled')
      const other = await openStream(app, '/sse', { ...transport, test: t })
      other.freeze()
      await app.sse.broadcastEvent({ data: 'x' })
      await other.close()
      t.equal(app.sse.connectionCount, 0)
    })

    t.test('a frozen client does not receive the end either, before it is thawed or the server gives it up', async t => {
      const app = await build(t, { drainMs: 300 })
      const [hung, back] = [await openStream(app, '/sse', { ...transport, test: t }), await openStream(app, '/sse', { ...transport, test: t })]
      for (const stream of [hung, back]) stream.freeze()
      await app.sse.broadcastEvent({ event: 'n', data: 'x'.repeat(200_000) })
      const closing = app.close()
      await new Promise(resolve => setTimeout(resolve, 50))
      t.equal(app.sse.connectionCount, 2)
      back.thaw()
      t.match(await back.ended, { by: 'server', reason: 'shutdown' })
      t.equal(back.named('n').length, 1)
      await closing
      hung.thaw()
      t.match(await hung.ended, { by: 'network' })
    })

    t.test('halfClose() is the end for the server', async t => {
      const app = await build(t)
      const stream = await openStream(app, '/sse', { ...transport, test: t })
      stream.halfClose()
      await stream.ended
      t.equal(app.sse.connectionCount, 0)
    })

    t.test('readRate: what is received in a time is bounded', async t => {
      const app = await build(t)
      const stream = await openStream(app, '/sse', { ...transport, test: t, readRate: 50_000 })
      const startedAt = performance.now()
      for (let n = 0; n < 10; n++) await app.sse.broadcastEvent({ event: 'n', data: 'x'.repeat(1_000) })
      await stream.collect(10)
      const tookMs = performance.now() - startedAt
      t.ok(tookMs > 100, `10 KB at 50 KB/s took ${tookMs} ms`)
      t.ok(stream.receivedBytes > 10_000 && stream.receivedBytes < 11_000)
    })

    t.test('readRate: text arrives in order after freeze and thaw', async t => {
      const app = await build(t)
      const stream = await openStream(app, '/sse', { ...transport, test: t, readRate: 2_000_000 })
      const numbers = Array.from({ length: 300 }, (_, n) => String(n))
      for (const n of numbers) await app.sse.broadcastEvent({ event: 'n', data: n.padEnd(1_000) })
      for (const count of [10, 20, 30]) {
        await stream.collect(count)
        stream.freeze()
        stream.thaw()
      }
      await stream.collect(numbers.length - 60)
      t.same(stream.events.map(({ data }) => data.trim()), numbers)
    })
  })
}

t.test('a stream ends with the test of any runner, also when the server refuses it', async t => {
  const app = await build(t)
  for (const name of ['after', 'teardown', 'onTestFinished']) {
    const ends: (() => unknown)[] = []
    const test = { [name]: (run: () => unknown) => { ends.push(run) } } as unknown as TestContext
    const stream = await openStream(app, '/sse', { test })
    await t.rejects(openStream(app, '/missing', { test }), { code: 'SSE_ERR_TEST_REFUSED' })
    for (const end of ends) await end()
    t.match(await stream.ended, { by: 'test' }, name)
    t.equal(app.sse.connectionCount, 0, name)
  }
})

t.test('an application that listens gets sockets, and one on a Unix socket streams in memory', async t => {
  const app = await build(t)
  await app.listen({ port: 0 })
  const stream = await openStream(app, '/sse', { test: t })
  const [connection] = [...app.sse.connections()]
  t.match(connection!.clientInfo.ip, /127\.0\.0\.1|::1/)
  await stream.close()
  const unix = await build(t)
  // Not in the test's own directory: such a path has 107 bytes at most.
  const directory = mkdtempSync(join(tmpdir(), 'sse-'))
  t.teardown(() => rmSync(directory, { recursive: true }))
  await unix.listen({ path: join(directory, 's') })
  t.match(await openStream(unix, '/sse', { test: t, user: 'ada' }), { status: 200 })
})

/** A server without Fastify. */
function bare (t: Test): { manager: SSEManager, server: Server } {
  const manager = new SSEManager()
  const server = createServer((request, response) => { manager.createConnection({ request, response }).catch(error => manager.refuse({ request, response }, error)) })
  t.teardown(async () => {
    await manager.close()
    server.close()
  })
  return { manager, server }
}

for (const [name, transport] of Object.entries(TRANSPORTS)) {
  t.test(`a server without Fastify, ${name}`, async t => {
    const { manager, server } = bare(t)
    const stream = await openStream(server, '/any', { ...transport, test: t, user: 'ada' })
    t.equal(server.listening, transport.socket)
    await manager.broadcastToUsers({ event: 'x', data: 1 }, ['ada'])
    await stream.next('x')
    const returned = await stream.reconnect()
    t.equal(manager.connectionCount, 1)
    await returned.close()
    t.equal(manager.connectionCount, 0)
  })
}

t.test('a URL: a server without Fastify, or of another process', async t => {
  const { manager, server } = bare(t)
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const { port } = server.address() as { port: number }
  const stream = await openStream(`http://127.0.0.1:${port}`, '/any', { test: t })
  await manager.broadcastData('x', 1)
  await stream.next('data')
  await t.rejects(openStream(`http://127.0.0.1:${port}`, '/any', { user: 'ada' }), { code: 'SSE_ERR_TEST_MISUSE', message: '"headers"' })
  const app = await build(t)
  const misuse = (message: string) => ({ code: 'SSE_ERR_TEST_MISUSE', message })
  for (const [target, got] of [[Promise.resolve(app), 'a promise: await it first'], [undefined, 'undefined'], [null, 'null'], [8080, '8080'], [new URL('http://127.0.0.1'), 'an object'], [{}, 'an object']] as const) {
    await t.rejects(openStream(target as never, '/sse'), misuse(`openStream() needs the Fastify instance, a server or a base URL as text, got ${got}`), got)
  }
  for (const [user, got] of [[7, '7: use String(id)'], [{ userId: 7 }, '7: use String(id)'], ['', '""'], [null, 'null'], [{ id: 'ada' }, 'an object'], [Promise.resolve('ada'), 'a promise: await it first']] as const) {
    await t.rejects(openStream(app, '/sse', { user } as never), misuse(`Option "user" must be a user id or { userId }, got ${got}`), got)
  }
  await t.rejects(openStream(`http://127.0.0.1:${port}`, '/any', { usr: 'ada' } as never), { code: 'SSE_ERR_TEST_MISUSE', message: /no option "usr": .*did you mean "user"/ })
  await t.rejects(openStream('http://127.0.0.1:1', '/any'), { code: 'ECONNREFUSED' })
})

t.test('TLS, also with HTTP/2 beside HTTP/1.1; HTTP/2 alone is named', async t => {
  const directory = t.testdir({})
  createCertificate(directory)
  const [key, cert] = ['key.pem', 'cert.pem'].map(file => readFileSync(join(directory, file)))
  for (const server of [{ https: { key, cert } }, { http2: true, https: { key, cert, allowHTTP1: true } }]) {
    const app = await build(t, {}, server)
    const stream = await openStream(app, '/sse', { test: t, user: 'ada' })
    await app.sse.broadcastToUsers({ event: 'x', data: 1 }, ['ada'])
    await stream.next('x')
    await stream.cut()
    t.equal(app.sse.connectionCount, 0)
    const address = app.server.address() as { port: number }
    t.equal((await openStream(`https://127.0.0.1:${address.port}`, '/sse', { test: t })).status, 200)
    await app.close()
  }
  await t.rejects(openStream(await build(t, {}, { http2: true }), '/sse'), { code: 'SSE_ERR_TEST_MISUSE', message: 'HTTP/2' })
})
