import Fastify, { type FastifyBaseLogger, type FastifyReply, type FastifyRequest } from 'fastify'
import { once } from 'node:events'
import { Readable } from 'node:stream'
import { ReadableStream } from 'node:stream/web'
import t from 'tap'
import { fetch } from 'undici'
import type { Source } from '../../lib/index.js'
import ssePlugin, { SSEError, type SSEConnection } from '../../lib/index.js'
import { listen } from '../helpers/app.js'
import { blocksOf, dataOf } from '../helpers/raw.js'
import { raw, start, startSource } from '../helpers/reply.js'
import { start as startLogged } from '../helpers/server.js'
import { turns, until } from '../helpers/wait.js'

const never = new Promise<never>(() => {})

t.test('the head and a first comment come at once, in chunks that are exact to the byte', async t => {
  let connection: SSEConnection | undefined
  const { app, url } = await start(t, app => {
    app.get('/', async (request, reply) => { connection = await reply.sse() })
  })
  const socket = raw(t, url, {})
  await socket.waitFor('\n\n\r\n')

  const [answer] = socket.answers
  t.equal(answer!.status, 200)
  t.match(answer!.headers, {
    'content-type': 'text/event-stream',
    'cache-control': 'private, no-cache, no-store, no-transform',
    'x-accel-buffering': 'no',
    connection: 'keep-alive',
    'transfer-encoding': 'chunked'
  })
  t.notOk('content-length' in answer!.headers)
  t.notOk('content-encoding' in answer!.headers)
  t.equal(answer!.chunks.length, 1)
  t.match(answer!.body, /^: stream keep-alive=15000\n\nretry: 3000\n\nid: [A-Za-z0-9_-]+\.0\n\n$/)
  t.equal(connection!.isConnected, true)

  const before = socket.length
  connection!.sendEvent({ event: 'größe', data: 'zwölf\r\nBoxkämpfer 🥊' })
  await socket.waitFor('🥊')
  const expected = 'event: größe\ndata: zwölf\ndata: Boxkämpfer 🥊\n\n'
  t.equal(socket.bytes.subarray(before).toString(), `${Buffer.byteLength(expected).toString(16)}\r\n${expected}\r\n`)

  const { id } = await app.sse.broadcastEvent({ data: { n: 1 } })
  t.equal(connection!.sendEvent({ data: 'two' }), true)
  const last = socket.length
  connection!.close('done')
  await socket.waitFor('0\r\n\r\n')
  const farewell = `id: ${id}\n\nevent: sse:close\ndata: {"reason":"done","reconnect":false}\n\n`
  const end = `${Buffer.byteLength(farewell).toString(16)}\r\n${farewell}\r\n0\r\n\r\n`
  t.ok(socket.text.endsWith(end), socket.bytes.subarray(last).toString())
  t.equal(socket.answers[0]!.complete, true)
  t.strictSame(dataOf(socket.answers[0]!.body), ['zwölf\nBoxkämpfer 🥊', '{"n":1}', 'two'])
  t.equal(app.sse.connectionCount, 0)
})

t.test('events of one turn leave in one chunk, in order', async t => {
  let connection: SSEConnection | undefined
  const { app, url } = await start(t, app => {
    app.get('/', async (request, reply) => { connection = await reply.sse() })
  })
  const socket = raw(t, url, {})
  await socket.waitFor('\n\n\r\n')
  for (let i = 0; i < 50; i++) connection!.sendEvent({ data: String(i) })
  await Promise.all(Array.from({ length: 50 }, (_, i) => app.sse.broadcastEvent({ data: 50 + i })))
  await socket.waitFor('data: 99\n')
  connection!.close()
  const [answer] = await socket.waitForAnswers(1)
  t.strictSame(dataOf(answer!.body).map(Number), Array.from({ length: 100 }, (_, i) => i))
  t.equal(answer!.chunks.length, 3, 'the head, all events, the farewell')
})

t.test('refusals before the head are JSON answers, and leave no source behind', async t => {
  let returned = 0
  let opened = 0
  const source = () => ({ [Symbol.asyncIterator]: () => ({ next: () => never, return: async () => { returned++; return { done: true, value: undefined } } }) }) as AsyncIterable<string>
  let destroyed = 0
  const { app, url } = await start(t, app => {
    app.get('/source', (request, reply) => reply.sse(source()))
    app.get('/readable', (request, reply) => reply.sse(new Readable({ read () {}, destroy (error, done) { destroyed++; done(error) } })))
    app.get('/web', (request, reply) => reply.sse(new ReadableStream({ cancel () { destroyed++ } }) as Source))
    app.get('/generator', (request, reply) => reply.sse(async function * () { opened++; yield 'a' }))
    app.get('/managed', async (request, reply) => {
      await reply.sse({ subscriptions: [(request.query as { topic: string }).topic] })
      opened++
    })
    app.get('/retry', async (request, reply) => { await reply.sse({ retryMs: 1 }) })
    app.get('/optional', { sse: { requireAuthentication: false } }, async (request, reply) => { (await reply.sse()).close() })
  }, {
    requireAuthentication: true,
    authHandler: ({ token }) => {
      if (token === 'broken') throw new Error('no database at db.internal')
      return token
    },
    authorizeSubscription: ({ subscriptionId }) => subscriptionId === 'news',
    allowedOrigins: ['https://app.example'],
    maxConnectionsPerUser: 1
  })
  const get = async (path: string, headers: Record<string, string> = {}): Promise<[number, string, string]> => {
    const response = await fetch(url + path, { headers })
    const { code, message } = await response.json() as { code: string, message: string }
    t.match(response.headers.get('content-type'), /^application\/json/)
    t.notMatch(message, /database/)
    return [response.status, code, message]
  }
  const ada = { authorization: 'Bearer ada' }

  t.match(await get('/managed?topic=news'), [401, 'SSE_ERR_UNAUTHENTICATED'])
  t.match(await get('/source'), [401, 'SSE_ERR_UNAUTHENTICATED'])
  t.equal(returned, 1)
  t.match(await get('/readable'), [401, 'SSE_ERR_UNAUTHENTICATED'])
  t.match(await get('/web'), [401, 'SSE_ERR_UNAUTHENTICATED'])
  await until(() => destroyed === 2)
  t.match(await get('/generator'), [401, 'SSE_ERR_UNAUTHENTICATED'])
  t.match(await get('/managed?topic=news', { authorization: 'Bearer broken' }), [500, 'SSE_ERR_AUTHENTICATION_FAILED'])
  t.match(await get('/managed?topic=secret', ada), [403, 'SSE_ERR_SUBSCRIPTION_FORBIDDEN'])
  t.match(await get('/managed?topic=a:**:b', ada), [400, 'SSE_ERR_INVALID_SUBSCRIPTION'])
  t.match(await get('/retry', ada), [400, 'SSE_ERR_INVALID_RETRY'])
  t.match(await get('/managed?topic=news', { ...ada, origin: 'https://evil.example' }), [403, 'SSE_ERR_ORIGIN_FORBIDDEN'])
  t.match(await get('/managed?topic=news', { ...ada, 'sec-fetch-site': 'cross-site' }), [403, 'SSE_ERR_ORIGIN_FORBIDDEN'])
  t.match(await get('/managed?topic=news', { ...ada, accept: 'application/json' }), [406, 'SSE_ERR_NOT_ACCEPTABLE'])
  t.equal(opened, 0)
  t.equal(app.sse.connectionCount, 0)

  const open = raw(t, url, { path: '/managed?topic=news', headers: ada })
  await open.waitFor('id: ')
  t.match(await get('/managed?topic=news', ada), [429, 'SSE_ERR_TOO_MANY_USER_CONNECTIONS'])
  const optional = raw(t, url, { path: '/optional' })
  t.equal((await optional.waitForAnswers(1))[0]!.status, 200)
})

t.test('what is neither a source nor options opens no stream', async t => {
  const attempts: [unknown[], string, RegExp][] = [
    [[Promise.resolve(['a'])], 'SSE_ERR_INVALID_SOURCE', /await it/],
    [['text'], 'SSE_ERR_INVALID_SOURCE', /got a string$/],
    [[['a'], null], 'SSE_ERR_INVALID_SOURCE', /got null$/],
    [[{ subscription: 'a' }], 'SSE_ERR_INVALID_OPTION', /"subscription" of reply.sse\(\) is not an option/],
    [[['a'], { subscriptions: ['a'] }], 'SSE_ERR_INVALID_OPTION', /"subscriptions" of reply.sse\(source\) is not an option: it has clientInfo,/],
    [[{ subscriptions: 'chat' }], 'SSE_ERR_INVALID_SUBSCRIPTION', /must be an array/],
    [[{ subscriptions: [7] }], 'SSE_ERR_INVALID_SUBSCRIPTION', /must be a string/]
  ]
  const { app, url } = await start(t, app => {
    for (const [i, [given]] of attempts.entries()) app.get(`/${i}`, async (request, reply) => { await (reply.sse as (...given: unknown[]) => Promise<unknown>)(...given) })
    app.get('/started', async (request, reply) => await reply.sse(await app.sse.startRun('a', () => [], { ownerId: null }) as never))
  })
  t.match(await (await fetch(`${url}/started`)).json(), { code: 'SSE_ERR_INVALID_SOURCE', message: /is the result of startRun\(\): pass its property "run"$/ })
  for (const [i, [, code, message]] of attempts.entries()) t.match(await (await fetch(`${url}/${i}`)).json(), { code, message })
  t.match(app.sse.stats(), { connections: 0, closed: {} })
})

t.test('an array of topics is no source', async t => {
  const { app, open, lines } = await startLogged(t, async app => {
    await app.register(ssePlugin)
    app.get('/topics', (_request, reply) => reply.sse(['news:**', 'orders']))
    app.get('/texts', (_request, reply) => reply.sse(['good morning', 'orders']))
  })
  await (await open('/texts')).ended
  const refused = await open('/topics')
  t.equal(refused.status, 500)
  t.match(JSON.parse(refused.text), { code: 'SSE_ERR_INVALID_SOURCE', message: /write reply\.sse\(\{ subscriptions: \["news:\*\*", …\] \}\)/ })
  t.same(lines.filter(({ level }) => level === 40), [])
  t.equal(app.sse.connectionCount, 0)
})

t.test('a handler that forgets the promise of reply.sse() does not end the process', async t => {
  const lines: string[] = []
  const rejections: unknown[] = []
  const onRejection = (error: unknown) => { rejections.push(error) }
  process.on('unhandledRejection', onRejection)
  t.teardown(() => process.off('unhandledRejection', onRejection))
  const app = Fastify({ logger: { level: 'warn', stream: { write: line => { lines.push(line) } } } })
  t.teardown(() => app.close())
  await app.register(ssePlugin)
  app.get('/', (request, reply) => { reply.sse() })
  // Fastify answers for a handler that is over.
  const over = async (request: FastifyRequest, reply: FastifyReply) => { reply.sse() }
  const later = async (request: FastifyRequest, reply: FastifyReply) => { setTimeout(() => { reply.sse() }, 10) }
  app.get('/over', over)
  app.get('/guarded', { sse: true }, over)
  app.post('/posted', { sse: true }, over)
  app.get('/later', later)
  app.get('/guarded-later', { sse: true }, later)
  app.get('/wrong-later', async (request: FastifyRequest, reply: FastifyReply) => { setTimeout(() => { reply.sse('text' as never) }, 10) })
  app.get('/second', async (request, reply) => {
    reply.send('first')
    await reply.sse()
  })
  const url = await listen(app)
  const open = raw(t, url, {})
  await open.waitFor('id: ')
  const refused = raw(t, url, { headers: { accept: 'text/html' } })
  const logged = () => lines.splice(0).map(line => JSON.parse(line))
  await until(() => lines.length === 1)
  t.match(logged(), [{ err: { code: 'SSE_ERR_NOT_ACCEPTABLE' }, msg: 'reply.sse() failed and the request has no answer: await or return its promise in the handler' }])
  for (const path of ['/over', '/guarded', '/posted', '/later', '/guarded-later', '/wrong-later']) {
    t.strictSame(await (await fetch(url + path, { method: path === '/posted' ? 'POST' : 'GET' })).text(), '')
    await until(() => lines.length === 1)
    t.match(logged(), [{ level: 40, route: path, err: { code: path === '/wrong-later' ? 'SSE_ERR_INVALID_SOURCE' : /^SSE_ERR_(?:HEAD_ALREADY_SENT|CLIENT_GONE)$/ }, msg: 'reply.sse() failed after the request was answered: call it once, before anything is sent, and await or return its promise' }], path)
  }
  t.equal(await (await fetch(`${url}/second`)).text(), 'first')
  await until(() => lines.length === 2)
  t.match(logged().map(({ level }) => level).sort(), [40, 50], 'whoever answers twice is told by Fastify as well')
  t.equal(app.sse.connectionCount, 1)
  t.strictSame(rejections, [])
  refused.close()
})

/** A logger that fails from the moment it is told to. */
function createBreakingLogger (state: { broken: boolean }): FastifyBaseLogger {
  const write = (): void => { if (state.broken) throw new Error('disk full') }
  const logger: FastifyBaseLogger = { level: 'info', silent () {}, trace () {}, debug: write, info: write, warn: write, error: write, fatal: write, child: () => logger }
  return logger
}

t.test('a logger that throws: failed sources, forgotten promises, strategies and responses that throw have the same end', async t => {
  const rejections: unknown[] = []
  const onRejection = (error: unknown) => { rejections.push(error) }
  process.on('unhandledRejection', onRejection)
  t.teardown(() => process.off('unhandledRejection', onRejection))
  const state = { broken: false }
  const app = Fastify({ loggerInstance: createBreakingLogger(state), disableRequestLogging: true })
  t.teardown(() => app.close())
  await app.register(ssePlugin, { authStrategies: [async () => { throw Object.freeze(new Error('no')) }], drainMs: 100 })
  app.get('/source', (_request, reply) => reply.sse(async function * () {
    yield 'a'
    throw Object.freeze(new Error('frozen'))
  }))
  app.get('/forgotten', (request, reply) => { reply.sse() })
  app.get('/over', async (request, reply) => { reply.sse() })
  app.get('/sse', async (request, reply) => { await reply.sse() })
  app.get('/wrapped', async (request, reply) => {
    const { raw } = reply
    const { write } = raw
    raw.write = ((chunk: string | Buffer, ...rest: []) => {
      if (String(chunk).includes('event: poison')) throw Object.freeze(new Error('poison'))
      return Reflect.apply(write, raw, [chunk, ...rest])
    }) as typeof write
    await reply.sse()
  })
  const url = await listen(app)

  state.broken = true
  const source = raw(t, url, { path: '/source' })
  const [answer] = await source.waitForAnswers(1)
  t.strictSame(blocksOf(answer!.body).slice(-2).map(({ event }) => event), ['sse:error', 'sse:close'])
  raw(t, url, { path: '/forgotten', headers: { accept: 'text/html' } })
  t.equal(await (await fetch(`${url}/over`)).text(), '')
  const neighbours = [raw(t, url, { path: '/sse' }), raw(t, url, { path: '/wrapped' }), raw(t, url, { path: '/sse' })]
  for (const neighbour of neighbours) await neighbour.waitFor('id: ')
  await app.sse.broadcastEvent({ event: 'poison', data: 1 })
  await neighbours[0]!.waitFor('event: poison')
  await neighbours[2]!.waitFor('event: poison')
  await neighbours[1]!.waitForClose()
  await turns(3)
  t.strictSame(rejections, [])
})

t.test('what a client accepts', async t => {
  const { url } = await startSource(t, () => ['a'])
  const accepts: [string | null, number][] = [
    [null, 200], ['text/event-stream', 200], ['*/*', 200], ['text/*;q=0.1', 200], ['TEXT/EVENT-STREAM', 200],
    ['text/html, text/event-stream;q=0.5', 200], ['text/html,*/*;q=0.8', 200],
    ['application/json', 406], ['text/html', 406], ['text/event-stream;q=0', 406], ['*/*, text/event-stream;q=0', 406], ['*/*;q=0', 406]
  ]
  for (const [accept, status] of accepts) {
    const socket = raw(t, url, { headers: accept === null ? {} : { accept } })
    t.equal((await socket.waitForAnswers(1))[0]!.status, status, String(accept))
    socket.close()
  }
})

t.test('HEAD gets the head, and ends', async t => {
  let destroyed = 0
  const ended: (boolean | string | null)[] = []
  const { app, url } = await start(t, app => {
    app.get('/managed', async (request, reply) => {
      const connection = await reply.sse({ subscriptions: ['news'] })
      ended.push(connection.isConnected, connection.sendEvent({ data: 1 }))
      if (!connection.signal.aborted) await once(connection.signal, 'abort')
      ended.push(String(connection.signal.reason.closeReason))
    })
    app.get('/readable', (request, reply) => reply.sse(new Readable({ read () {}, destroy (error, done) { destroyed++; done(error) } })))
    app.route({ method: 'HEAD', url: '/own', handler: async (request, reply) => { await reply.sse() } })
  })
  for (const path of ['/managed', '/readable', '/own']) {
    const socket = raw(t, url, { method: 'HEAD', path, headers: { connection: 'close' } })
    await socket.waitFor('\r\n\r\n')
    t.match(socket.text, /^HTTP\/1\.1 200 OK\r\n/, path)
    t.match(socket.text.toLowerCase(), 'content-type: text/event-stream\r\n', path)
    t.match(socket.text.toLowerCase(), 'cache-control: private, no-cache, no-store, no-transform\r\n', path)
    await socket.waitForClose()
    t.ok(socket.text.endsWith('\r\n\r\n') && socket.text.indexOf('\r\n\r\n') === socket.length - 4, `${path}: no body`)
  }
  await until(() => destroyed === 1 && ended.length === 3)
  t.strictSame(ended, [false, false, 'head'])
  t.equal(app.sse.connectionCount, 0)
  t.strictSame(app.sse.stats().closed, { head: 3 })

  // The socket of a HEAD request is free for the next.
  const socket = raw(t, url, { method: 'HEAD', path: '/managed' })
  await socket.waitFor('\r\n\r\n')
  socket.send({ path: '/nothing' })
  await socket.waitFor('Route GET:/nothing not found')
})

t.test('POST streams as well, and the body of the request is read first', async t => {
  const { url } = await startSource(t, request => [`you said ${(request.body as { text: string }).text}`])
  const socket = raw(t, url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"text":"hello"}' })
  const [answer] = await socket.waitForAnswers(1)
  t.strictSame(dataOf(answer!.body), ['you said hello'])

  // On an HTTP/1 POST the request's own events fire at once; the stream stays.
  let connection: SSEConnection | undefined
  let over = false
  const managed = await start(t, app => {
    app.post('/', async (request, reply) => {
      request.raw.once('close', () => { over = true })
      connection = await reply.sse()
    })
  })
  const post = raw(t, managed.url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' })
  await post.waitFor('id: ')
  await until(() => over)
  t.equal(connection!.isConnected, true)
  connection!.sendEvent({ data: 'still here' })
  await post.waitFor('still here')
  post.close()
  await until(() => managed.app.sse.connectionCount === 0)
})

t.test('a response can only be begun once', async t => {
  const codes: string[] = []
  const attempt = async (promise: Promise<unknown>) => {
    try {
      await promise
      codes.push('opened')
    } catch (error) {
      codes.push((error as SSEError).code)
    }
  }
  const { app, url } = await start(t, app => {
    app.get('/twice', async (request, reply) => {
      await attempt(reply.sse())
      await attempt(reply.sse())
      await attempt(reply.sse(['a']))
      const [connection] = app.sse.connections()
      connection!.close()
    })
    app.get('/together', async (request, reply) => {
      await Promise.all([attempt(reply.sse()), attempt(reply.sse()), attempt(reply.sse(['a']))])
      t.equal(app.sse.connectionCount, 1)
      for (const connection of app.sse.connections()) connection.close()
    })
    app.get('/after-head', async (request, reply) => {
      reply.raw.writeHead(200, { 'content-type': 'text/plain' })
      await attempt(reply.sse())
      reply.hijack()
      reply.raw.end('mine')
    })
    app.get('/hijacked', async (request, reply) => {
      reply.hijack()
      await attempt(reply.sse())
      reply.raw.end('mine')
    })
    app.get('/sent', async (request, reply) => {
      reply.send('mine')
      await attempt(reply.sse())
    })
  })
  const expected: Record<string, string[]> = {
    '/twice': ['opened', 'SSE_ERR_HEAD_ALREADY_SENT', 'SSE_ERR_HEAD_ALREADY_SENT'],
    '/together': ['SSE_ERR_HEAD_ALREADY_SENT', 'SSE_ERR_HEAD_ALREADY_SENT', 'opened'],
    '/after-head': ['SSE_ERR_HEAD_ALREADY_SENT'],
    '/hijacked': ['SSE_ERR_HEAD_ALREADY_SENT'],
    '/sent': ['SSE_ERR_HEAD_ALREADY_SENT']
  }
  for (const [path, wanted] of Object.entries(expected)) {
    codes.length = 0
    const socket = raw(t, url, { path, headers: { connection: 'close' } })
    const [answer] = await socket.waitForAnswers(1)
    await until(() => codes.length === wanted.length)
    t.strictSame([...codes].sort(), [...wanted].sort(), path)
    t.equal(answer!.status, 200, path)
    if (!['/twice', '/together'].includes(path)) t.equal(answer!.body, 'mine', path)
    await until(() => app.sse.connectionCount === 0)
  }
})
