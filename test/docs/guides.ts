import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import { hostname } from 'node:os'
import { join } from 'node:path'
import Fastify, { type FastifyReply, type FastifyRequest } from 'fastify'
import type { Test } from 'tap'
import { EventSource } from 'undici'
import ssePlugin, { createPublisher, memoryBroker, type SSEManager } from '../../lib/index.js'
import type { Broker, Sink } from '../../lib/log/broker.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { testLog, type TestStream } from '../../lib/testing/index.js'
import { isApplicationEvent, listen, payloads, serve } from '../helpers/app.js'
import { createCertificate } from '../helpers/certificate.js'
import { connectH2, H2Stream } from '../helpers/h2.js'
import { pageAt, sampleOf } from '../helpers/pages.js'
import { blocksOf } from '../helpers/raw.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { at, bare, eventSourceOf, run, visit, type Drivers } from '../helpers/samples.js'
import type { ClientOptions } from '../helpers/sse.js'
import { until } from '../helpers/wait.js'

/** Of the samples in README and in the guides. */
/** Runs a sample and then, as the signal would, what it has put on SIGTERM. */
async function terminate (signal: 'SIGTERM', before: readonly unknown[]): Promise<void> {
  for (const listener of process.rawListeners(signal)) if (!before.includes(listener)) await listener.call(process, signal)
}

async function * slowly (tokens: readonly string[], signal: AbortSignal) {
  for (const token of tokens) {
    await once(signal, 'abort', { signal: AbortSignal.timeout(20) }).catch(() => {})
    yield token
  }
}

const validateToken = async (token: string) => token === 'good' ? 'user123' : null
const bearer = (token: string): ClientOptions => ({ headers: { authorization: `Bearer ${token}` } })
const resources = (stream: TestStream) => payloads(stream, 'data').map(({ resource }) => resource)

/** A worker produces an answer, which a web node streams. */
async function answerFromWorker (t: Test): Promise<void> {
  if (withoutRedis !== false) return t.comment(withoutRedis)
  const redis = await RedisServer.start()
  t.teardown(() => redis.stop())
  const app = bare(t)
  await app.register(ssePlugin, { requireAuthentication: true, authHandler: ({ query }) => query['user'] as string ?? null, broker: redisStreamsBroker({ client: redis.url }) })
  const before = process.rawListeners('SIGTERM')
  const model = { stream: (prompt: string, { signal }: { signal: AbortSignal }) => slowly([prompt, '!'], signal) }
  await run(t, { app }, [], undefined, 'worker-answers')
  const { work } = await run(t, { model }, ['work'], text => text.replace('export async', 'async').replaceAll('process.env.REDIS_URL', JSON.stringify(redis.url)), 'queue-worker')
  const url = await listen(app)
  t.equal((await visit(t, `${url}/answers/7?user=ada`)).status, 204)
  await Promise.all([1, 2].map(() => work({ id: '7', userId: 'ada', prompt: 'Hi' })))
  const stream = await visit(t, `${url}/answers/7?user=ada`)
  await stream.ended
  t.same(stream.events.map(({ data }) => data).slice(0, 3), ['Hi', '!', '{"status":"done","events":2}'])
  t.equal((await visit(t, `${url}/answers/7?user=eve`)).status, 204)
  await terminate('SIGTERM', before)
  await t.rejects(work({ id: '8', userId: 'ada', prompt: 'Hi' }), { code: 'SSE_ERR_CLOSED' })
}

export const DRIVERS: Drivers = {
  async 'quick-start' (t) {
    const { app } = await run(t, {}, ['app'])
    t.teardown(() => app.close())
    const stream = await visit(t, `${at(app.server)}/sse`)
    const response = await fetch(`${at(app.server)}/news`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"headline":"It works"}' })
    t.same(await response.json(), { delivered: 1 })
    await stream.until(() => stream.named('data').length >= 2)
    const shown = /prints the stream as it is:\n\n```\n(.*?)```/s.exec(pageAt('README.md').text)![1]!
    const plain = (text: string) => text.trim().replace(/[\w-]{8}\.(\d)/g, 'epoch.$1').replace(/"at":\d+/, '"at":0')
    t.equal(plain(blocksOf(stream.text).map(({ text }) => text).join('\n\n')), plain(shown), 'the stream is the one that README shows')
  },

  async setup (t) {
    const { app } = await run(t, { validateToken }, ['app'])
    t.teardown(() => app.close())
    const url = await listen(app)
    for (const options of [{}, bearer('bad')]) t.equal((await visit(t, `${url}/sse`, options)).status, 401)
    for (const subscription of ['user:user1234', 'user:*', '**']) t.equal((await visit(t, `${url}/sse?subscription=${subscription}`, bearer('good'))).status, 403, subscription)
    const stream = await visit(t, `${url}/sse?subscription=updates:dashboard`, bearer('good'))
    t.ok((await visit(t, `${url}/sse?subscription=user:user123:**`, bearer('good'))).isStream)
    t.equal((await app.sse.broadcastData('x', 1, { subscriptionIds: ['updates:dashboard'] })).delivered, 1)
    await stream.until(() => stream.named('data').length >= 1)
    const [connection] = app.sse.getConnectionsBySubscription('updates:dashboard')
    t.match(connection, { userId: 'user123', clientInfo: { host: '127.0.0.1', ip: '127.0.0.1', connectedAt: Number } })
  },

  async snapshot (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    const asked: unknown[] = []
    await run(t, { app, loadOrders: async (topics: unknown) => asked.push(topics) && [{ id: '1', version: 3 }] })
    const stream = await visit(t, `${await listen(app)}/orders`)
    await app.sse.broadcastEvent({ event: 'order', data: { id: '1', version: 4 } }, { subscriptionIds: ['orders:acme:1'] })
    await stream.next('order')
    t.same(stream.events.map(({ event, json }) => [event, json]), [['orders', [{ id: '1', version: 3 }]], ['order', { id: '1', version: 4 }]])
    t.same(asked, [['orders:acme:**']])
  },

  async 'snapshot-of-path' (t) {
    const app = bare(t)
    await run(t, { app, loadOrders: async () => [{ id: '1', version: 3 }] })
    const stream = await visit(t, `${await listen(app)}/orders`)
    t.same((await stream.next('orders')).json, [{ id: '1', version: 3 }])
  },

  async 'snapshot-key' (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    let loads = 0
    let answer = (): void => {}
    await run(t, { app, loadPrices: () => new Promise(resolve => { answer = () => resolve({ gold: ++loads }) }) })
    const url = await listen(app)
    const streams = await Promise.all([1, 2].map(() => visit(t, `${url}/prices`)))
    answer()
    for (const stream of streams) t.same((await stream.next('prices')).json, { gold: 1 })
  },

  async 'snapshot-page' (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    app.get('/orders', { sse: true }, (request, reply) => reply.sse({ snapshot: { load: () => t.fail('the page has its state') as never } }))
    await run(t, { app, loadOrders: async () => [] })
    const url = await listen(app)
    const page = await (await fetch(url)).text()
    await app.sse.broadcastEvent({ event: 'order', data: 1 })
    const stream = await visit(t, url + /EventSource\('(.*?)'\)/.exec(page)![1]!)
    t.equal((await stream.next('order')).json, 1)
  },

  async answers (t) {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(ssePlugin, { requireAuthentication: true, authHandler: ({ query }) => query['user'] as string ?? null })
    const prompts: string[] = []
    let begin = (): void => {}
    const begun = new Promise<void>(resolve => { begin = resolve })
    const model = {
      async * stream (prompt: string, { signal }: { signal: AbortSignal }) {
        prompts.push(prompt)
        await begun
        yield * slowly(['Hel', 'lo', '!'], signal)
      }
    }
    await run(t, { app, model })
    const url = await listen(app)
    const ask = (answer: string) => visit(t, `${url}/answers/${answer}?user=ada`, { method: 'POST', body: JSON.stringify({ prompt: 'Hi' }), headers: { 'content-type': 'application/json' } })
    const streams = [await ask('7'), await visit(t, `${url}/answers/7?user=ada`), await ask('7')]
    begin()
    for (const stream of streams) {
      await stream.ended
      t.same(stream.events.map(({ data }) => data).slice(0, 4), ['Hel', 'lo', '!', '{"status":"done","events":3}'])
    }
    t.same(prompts, ['Hi'], 'asked once')
    t.equal((await visit(t, `${url}/answers/7?user=eve`)).status, 204)
    t.same(await (await fetch(`${url}/answers/7?user=ada`, { method: 'DELETE' })).json(), { stopped: false })
  },

  async 'answer-page' (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    await app.sse.startRun('7', ({ signal }) => slowly(['Hel', 'lo'], signal), { ownerId: null })
    app.get('/answers/:answer', async (request, reply) => reply.sse(await app.sse.getRun((request.params as { answer: string }).answer, { ownerId: null })))
    const { Source } = eventSourceOf(t, await listen(app))
    const { show } = await run(t, { EventSource: Source }, ['show'])
    const shown: string[] = []
    await new Promise<void>(resolve => show('7', (token: string) => shown.push(token), (status: string) => {
      shown.push(status)
      resolve()
    }))
    t.same(shown, ['Hel', 'lo', 'done'])
  },

  async 'ready-endpoint' (t) {
    const app = bare(t)
    await run(t, { app })
    const url = await listen(app)
    for (const subscription of ['other', 'updates:*']) t.equal((await visit(t, `${url}/sse?subscription=${subscription}`)).status, 403, subscription)
    const stream = await visit(t, `${url}/sse?subscription=updates:dashboard&subscription=updates:billing`)
    t.equal((await app.sse.broadcastData('x', 1, { subscriptionIds: ['updates:billing'] })).delivered, 1)
    await stream.until(() => stream.named('data').length >= 1)
  },

  async broadcasting (t) {
    const { app, join } = await serve(t)
    const { stream: user } = await join('user123')
    const { stream: reader } = await join(null, ['chat:*'])
    await run(t, { app })
    await Promise.all([user.until(() => user.named('notification').length >= 1), reader.until(() => reader.named('notification').length >= 1)])
    t.same(resources(user), ['notifications', 'messages'])
    t.same(resources(reader), ['notifications', 'chat'])
    t.match(payloads(user, 'notification'), [{ title: 'System Update', message: String, level: 'warning', actions: [{ label: 'Details', url: '/status' }] }])
  },

  async 'custom-events' (t) {
    const { app, join } = await serve(t)
    const { stream: reader } = await join(null, ['chat:general'])
    const { stream: user } = await join('user456', ['chat:random'])
    await run(t, { app })
    await Promise.all([reader.until(() => reader.named('chat_message').length >= 2), user.until(() => user.named('chat_message').length >= 1)])
    t.same(payloads(reader, 'chat_message').map(({ message }) => message), ['Hello everyone!', 'Hello again!'])
    t.match(payloads(user, 'chat_message'), [{ room: 'general', user: 'user123', message: 'Psst', timestamp: Number }])
  },

  async 'except-sender' (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    app.get('/sse', { sse: true }, async (request, reply) => {
      const connection = await reply.sse({ subscriptions: ['chat:general'] })
      connection.sendData('welcome', { clientId: connection.clientId })
    })
    await run(t, { app })
    const url = await listen(app)
    const [sender, other] = await Promise.all([visit(t, `${url}/sse`), visit(t, `${url}/sse`)])
    await sender.until(() => sender.named('data').length >= 1)
    const [{ data: { clientId } }] = payloads(sender, 'data')
    const response = await fetch(`${url}/chat`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ clientId, text: 'Hello' }) })
    t.match(await response.json(), { delivered: 1 })
    await app.sse.broadcastEvent({ event: 'end', data: '' })
    for (const stream of [sender, other]) await stream.until(() => stream.named('end').length >= 1)
    t.same(payloads(sender, 'chat_message'), [])
    t.same(payloads(other, 'chat_message'), [{ text: 'Hello' }])
  },

  async filtering (t) {
    const { app, join } = await serve(t)
    const { stream: old } = await join('ada')
    const { stream: nobody } = await join()
    const { now } = Date
    t.teardown(() => { Date.now = now })
    Date.now = () => now() + 61_000
    const { stream: young } = await join('grace')
    await run(t, { app })
    await app.sse.broadcastEvent({ event: 'end', data: '' })
    for (const stream of [old, nobody, young]) await stream.until(() => stream.named('end').length >= 1)
    t.same([old, nobody, young].map(stream => stream.named('survey').length), [1, 0, 0])
  },

  async client (t) {
    const app = bare(t)
    await app.register(ssePlugin, { retryMs: 100, authorizeSubscription: ({ subscriptionId }) => subscriptionId !== 'secret' })
    let opened = 0
    app.get<{ Querystring: { subscription?: string } }>('/sse', { sse: true }, async (request, reply) => {
      const { subscription } = request.query
      await reply.sse({ subscriptions: subscription === undefined ? [] : [subscription], ...(opened++ === 0 && { lastEventId: 'nonsense' }) })
    })
    const url = await listen(app)
    const called: Record<string, unknown[][]> = { handleText: [], handleResourceData: [], showNotification: [], reloadState: [], showRefusal: [] }
    const handlers = Object.fromEntries(Object.keys(called).map(name => [name, (...values: unknown[]) => { called[name]!.push(values) }]))
    const { source, connectSSE, printed } = await run(t, { EventSource, ...handlers }, ['source', 'connectSSE'], text => text.replaceAll(/(['`])\/sse/g, `$1${url}/sse`))
    t.teardown(() => source.close())
    await until(() => called.reloadState!.length === 1)
    await app.sse.broadcastEvent({ data: 'plain' })
    await app.sse.broadcastData('prices', [1], { subscriptionIds: ['updates:dashboard'] })
    await app.sse.broadcastNotification({ title: 'a', message: 'b', level: 'success' })
    await until(() => called.showNotification!.length === 1)

    // The server cuts it off: it comes back by itself, with its place.
    app.sse.getConnectionsBySubscription('updates:dashboard')[0]!.close('max-age')
    await until(() => opened === 2 && app.sse.connectionCount === 1)
    await app.sse.broadcastEvent({ data: 'again' })
    await until(() => called.handleText!.length === 2)
    t.same(called, {
      handleText: [['plain'], ['again']],
      handleResourceData: [['prices', [1]]],
      showNotification: [['a', 'b', 'success', undefined]],
      reloadState: [[]],
      showRefusal: []
    })

    app.sse.getConnectionsBySubscription('updates:dashboard')[0]!.close('kicked')
    await until(() => source.readyState === EventSource.CLOSED)
    t.same(printed.at(-1), ['SSE connection ends:', 'kicked'])
    t.teardown(() => refused.close())
    const refused = connectSSE('secret')
    await until(() => called.showRefusal!.length === 1)
    t.equal(opened, 3, 'it did not come back')
  },

  async connections (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    // The sample adds a route and looks for a connection, so that one comes by another way.
    const server = createServer((request, response) => { app.sse.createConnection({ request, response, user: { userId: 'user123' }, subscriptions: ['chat:general'] }) })
    await once(server.listen(0, '127.0.0.1'), 'listening')
    t.teardown(() => server.close())
    const cut = await visit(t, at(server))
    const { printed } = await run(t, { app })
    await cut.ended
    t.same(payloads(cut, 'sse:close'), [{ reason: 'kicked', reconnect: false }])
    t.match(printed, [[Number, { connections: Number, delivered: 0 }]])

    const url = await listen(app)
    const stream = await visit(t, `${url}/live`)
    await stream.until(() => stream.named('rooms').length >= 1)
    t.same(resources(stream), ['welcome'])
    t.match(payloads(stream, 'notification'), [{ title: 'Hello', message: 'You are connected', level: 'success' }])
    t.same(payloads(stream, 'rooms'), [['chat:general']])
    await stream.close()
    await until(() => app.sse.connectionCount === 0)
  },

  async patterns (t) {
    const { app, join } = await serve(t)
    const { stream, connection } = await join('user123')
    await run(t, { app, clientId: connection.clientId })
    t.same([...connection.subscriptions], ['user:user123', 'user:user123:messages', 'user:user123:notifications', 'user:user123:**'])
    await app.sse.broadcastEvent({ event: 'end', data: '' }, { subscriptionIds: ['user:user123:deep:down'] })
    await stream.until(() => stream.named('end').length >= 1)
    t.same(payloads(stream, 'data'), [{ resource: 'messages', data: { id: 'msg123', content: 'New message' } }], 'once')
  },

  async 'client-patterns' (t) {
    const app = bare(t)
    await run(t, { app, findSession: async (id: string | undefined) => id === 'abc' ? { userId: 'user123', expiresAt: Date.now() + 60_000, role: '' } : null })
    const url = await listen(app)
    const ask = (query: string) => visit(t, `${url}/sse?${query}`, { headers: { cookie: 'session=abc' } })
    t.equal((await visit(t, `${url}/sse?subscription=news:*`)).status, 401)
    for (const query of ['subscription=user:user124:**', 'subscription=**', 'subscription=user:*']) t.equal((await ask(query)).status, 403, query)
    const broken = ['subscription[]=news:a', 'subscriptions=news:a', 'subscription=news:', 'subscription=news:%EF%BC%A1', 'subscription=news:a%D0%B0', 'subscription=news:%253A']
    for (const query of broken) t.equal((await ask(query)).status, 400, query)
    const stream = await ask('subscription=news:*&subscription=user:user123:**')
    await app.sse.broadcastData('one', 1, { subscriptionIds: ['news:today'] })
    await app.sse.broadcastData('other', 2, { subscriptionIds: ['user:user124:messages'] })
    await app.sse.broadcastData('two', 3, { subscriptionIds: ['user:user123:messages'] })
    await stream.until(() => stream.named('data').length >= 2)
    t.same(resources(stream), ['one', 'two'])
  },

  async catalogue (t) {
    const { app } = await run(t, {}, ['app'])
    t.teardown(() => app.close())
    const sample = sampleOf('catalogue').text
    const error = await (app.sse as SSEManager).broadcastData('messages', { text: 1 }).catch(error => error)
    t.ok(sample.includes(`${error.code}, ${error.message}`), `the page has: ${error.message}`)
    await t.rejects(app.sse.broadcastEvent({ event: 'chat_massage', data: {} }), { code: 'SSE_ERR_UNKNOWN_EVENT' })
    t.equal(app.sse.stats().messages, 2, 'only the right ones were published')
  },

  async 'catalogue-snapshot' (t) {
    const { app, orders } = await run(t, {}, ['app', 'orders'])
    t.teardown(() => app.close())
    const url = await listen(app)
    orders.set('7', { id: '7', state: 'packed', version: 1 })
    t.same((await (await visit(t, `${url}/orders`)).next('orders')).json, [{ id: '7', state: 'packed', version: 1 }])
    const incomplete = await visit(t, `${url}/incomplete`)
    await incomplete.ended
    t.same(payloads(incomplete, 'sse:close'), [{ reason: 'snapshot-error', reconnect: true }])
  },

  async 'catalogue-strict' (t) {
    const app = bare(t)
    await run(t, { app })
    const price = (data: unknown) => app.sse.broadcastEvent({ event: 'price', data })
    t.match(await price({ symbol: 'ABC', price: 42 }), { id: String, delivered: 0 })
    for (const data of [{ symbol: 'ABC', price: 42, cost: 40 }, { symbol: 'ABC', price: -1 }, { symbol: 'ABC' }]) await t.rejects(price(data), { code: 'SSE_ERR_INVALID_PAYLOAD' })
  },

  async priorities (t) {
    const { app, join } = await serve(t)
    const { stream } = await join()
    await run(t, { app })
    await stream.until(() => stream.named('alarm').length >= 1)
    t.same(stream.events.filter(isApplicationEvent).map(({ event }) => event), ['data', 'alarm'], 'published order while the client keeps up')
  },

  async conflation (t) {
    const { app, join } = await serve(t)
    const { stream } = await join(null, ['trains:*', 'chat:*'])
    const { printed } = await run(t, { app })
    await stream.until(() => stream.named('data').length >= 2)
    t.same(stream.named('data').map(({ id }) => id !== null), [true, false])
    t.same(printed, [[{ connections: 1, lagging: 0, queuedBytes: printed[0][0].queuedBytes, dropped: 0 }]])
  },

  async tokens (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    let stopped = 0
    const model = {
      async * stream (prompt: string, { signal }: { signal: AbortSignal }) {
        try {
          yield * prompt.split(' ')
          // One that goes on for ever, for a client that leaves.
          if (prompt === 'for ever') await new Promise((resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
        } finally {
          stopped++
        }
      }
    }
    await run(t, { app, model })
    const url = await listen(app)
    const post = (prompt: string): ClientOptions => ({ method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ prompt }) })
    const stream = await visit(t, `${url}/tokens`, post('a b c'))
    await stream.ended
    t.same(payloads(stream, 'token'), [{ token: 'a' }, { token: 'b' }, { token: 'c' }])
    t.same(stream.events.filter(isApplicationEvent).at(-1)!.event, 'done')
    t.same(payloads(stream, 'sse:close'), [{ reason: 'source-end', reconnect: false }])
    const leaving = await visit(t, `${url}/tokens`, post('for ever'))
    await leaving.until(() => leaving.named('token').length >= 2)
    t.equal(stopped, 1)
    await leaving.close()
    await until(() => stopped === 2)
  },

  async progress (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    const path = join(t.testdir({ 'rows.csv': 'a,1\nb,2\nc,3\n' }), 'rows.csv')
    await run(t, { app }, [], text => text.replace(/(['"])rows\.csv\1/g, JSON.stringify(path)))
    const url = await listen(app)
    const stream = await visit(t, `${url}/export`)
    await stream.ended
    t.same(payloads(stream, 'row'), [['a', '1'], ['b', '2'], ['c', '3']])
    t.same(stream.named('row').map(({ id }) => id), ['0', '1', '2'])
    const returning = await visit(t, `${url}/export`, { headers: { 'last-event-id': '1' } })
    await returning.ended
    t.same(payloads(returning, 'row'), [['c', '3']])
    const raw = await visit(t, `${url}/raw`)
    await raw.ended
    t.equal(raw.named('message').map(({ data }) => data).join(''), 'a,1\nb,2\nc,3\n')
  },

  async cookie (t) {
    const app = bare(t)
    const session = { userId: 'user123', expiresAt: Date.now() + 60_000, role: 'guest' }
    await run(t, {
      app,
      findSession: async (id: string | undefined) => id === 'abc' ? session : id === 'root' ? { ...session, role: 'admin' } : null,
      redeemTicket: async (ticket: unknown) => ticket === 'once' ? session : null
    })
    app.get<{ Querystring: { topic?: string } }>('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: [request.query.topic ?? 'public'] }) })
    const url = await listen(app)
    const status = async (query: string, headers: Record<string, string>) => (await visit(t, `${url}/sse${query}`, { headers })).status
    t.equal(await status('', {}), 401)
    t.equal(await status('', { cookie: 'session=wrong' }), 401)
    t.equal(await status('', { cookie: 'session=abc' }), 200)
    t.equal(await status('?ticket=once', {}), 200)
    t.equal(await status('?topic=private', { cookie: 'session=abc' }), 403)
    t.equal(await status('?topic=private', { cookie: 'session=root' }), 200)
    t.equal(await status('', { cookie: 'session=abc', origin: 'https://app.example' }), 200)
    t.equal(await status('', { cookie: 'session=abc', origin: 'https://other.example' }), 403)
    t.match(app.sse.getConnectionsByUser('user123')[0], { claims: { role: 'guest' } })
  },

  async 'changing-rights' (t) {
    const app = bare(t)
    const rooms = new Set(['room:7', 'room:8'])
    const { leaveRoom } = await run(t, { app, roomsOf: () => rooms, findSession: async (id: string | undefined) => id === undefined ? null : { userId: 'user123', expiresAt: Date.now() + 60_000, role: '' } }, ['leaveRoom'])
    app.get<{ Querystring: { topic: string } }>('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: [request.query.topic] }) })
    const url = await listen(app)
    const connect = (topic: string) => visit(t, `${url}/sse?topic=${topic}`, { headers: { cookie: 'session=abc' } })
    const [all, seven, refused] = [await connect('room:*'), await connect('room:7'), await connect('room:9')]
    t.equal(refused.status, 403)
    const say = (topic: string) => app.sse.broadcastData(topic, 1, { subscriptionIds: [topic] })
    t.same([(await say('room:7')).delivered, (await say('room:9')).delivered], [2, 0])
    await Promise.all([all.until(() => all.named('data').length >= 1), seven.until(() => seven.named('data').length >= 1)])
    await leaveRoom('user123', 'room:7')
    await seven.until(() => seven.named('sse:unsubscribed').length >= 1)
    t.same([(await say('room:7')).delivered, (await say('room:8')).delivered], [0, 1])
    await until(() => resources(all).length === 2)
    t.same(resources(all), ['room:7', 'room:8'])
    await app.sse.disconnectUser('user123')
    await all.until(() => all.named('sse:close').length >= 1)
  },

  async banned (t) {
    const app = bare(t)
    const { ban } = await run(t, { app, findSession: async (id: string | undefined) => id === undefined ? null : { userId: id } }, ['ban'])
    const url = await listen(app)
    const connect = (user?: string) => visit(t, `${url}/auction`, { headers: user === undefined ? {} : { cookie: `session=${user}` } })
    const [mallory, ada] = [await connect('mallory'), await connect('ada')]
    await ban('mallory')
    await mallory.until(() => mallory.named('sse:close').length === 1)
    t.strictSame([await connect('mallory'), await connect('ada'), await connect()].map(({ status, body }) => [status, (body as { code?: string } | null)?.code]), [[403, 'BANNED'], [200, undefined], [200, undefined]])
    t.ok(ada.isStream && !ada.named('sse:close').length)
  },

  async tickets (t) {
    const app = bare(t)
    await run(t, { app, validateToken }, [], text => text.replace('process.env.TICKET_SECRET', "'thirty-two characters of a random generator'"))
    const url = await listen(app)
    const issued = await fetch(`${url}/sse-ticket`, { method: 'POST', headers: { authorization: 'Bearer good' } })
    const { ticket } = await issued.json() as { ticket: string }
    t.ok((await visit(t, `${url}/sse?ticket=${ticket}`)).isStream)
    t.equal((await visit(t, `${url}/sse?ticket=${ticket}`)).body.code, 'SSE_ERR_INVALID_TICKET')
    t.match(app.sse.getConnectionsByUser('user123'), [{ subscriptions: new Set(['user:user123:**']) }])
    t.equal((await fetch(`${url}/sse-ticket`, { method: 'POST' })).status, 401)
  },

  async 'ticket-client' (t) {
    const app = bare(t)
    await app.register(ssePlugin, { path: '/sse', requireAuthentication: true, ticketSecret: 'thirty-two characters of a random generator', authHandler: ({ token }) => token === null ? null : validateToken(token), retryMs: 100 })
    app.post('/sse-ticket', { sse: true }, async request => ({ ticket: app.sse.issueTicket({ userId: request.sseUser!.userId }) }))
    const url = await listen(app)
    const { Source, sources } = eventSourceOf(t, url)
    const { fetch } = globalThis
    const seen: unknown[] = []
    const { connectWithTicket } = await run(t, { EventSource: Source, fetch: (path: string, init: RequestInit) => fetch(url + path, init), handleData: ({ data }: { data: unknown }) => seen.push(data) }, ['connectWithTicket'])
    await connectWithTicket('good')
    await until(() => app.sse.connectionCount === 1)
    await app.sse.broadcastData('n', 1)
    await until(() => seen.length === 1)
    const [connection] = app.sse.getConnectionsByUser('user123')
    connection!.close('max-age')
    await until(() => app.sse.connectionCount === 0)
    await app.sse.broadcastData('n', 2)
    await until(() => seen.length === 2)
    t.same(seen, [1, 2], 'with another ticket, from where it was')
    t.equal(sources.length, 2)
  },

  async limits (t) {
    const { app } = await run(t, {}, ['app'])
    t.teardown(() => app.close())
    const url = await listen(app)
    const answers: number[] = []
    for (let n = 0; n < 12; n++) answers.push((await visit(t, `${url}/sse`, { headers: { accept: 'text/event-stream' } })).named('sse:error').length)
    t.equal(answers.filter(refusals => refusals === 0).length, 12, 'ten of a user, and nobody is no user')
    for (let n = 12; n < 30; n++) await visit(t, `${url}/sse`)
    const limited = await visit(t, `${url}/sse`, { headers: { accept: 'text/event-stream' } })
    t.strictSame(payloads(limited, 'sse:error'), [{ message: 'Too Many Requests', retryable: true }])
  },

  async 'fastify-auth' (t) {
    const app = bare(t)
    await run(t, {
      app,
      findApiKey: async (key: unknown) => key === 'key' ? 'user123' : null,
      verifySession: async (request: FastifyRequest) => {
        if (request.headers.cookie !== 'session=abc') throw new Error('No session')
        request.sseUser = { userId: 'user456' }
      }
    })
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    const url = await listen(app)
    t.equal((await visit(t, `${url}/sse`)).status, 401)
    t.ok((await visit(t, `${url}/sse`, { headers: { 'x-api-key': 'key' } })).isStream)
    t.ok((await visit(t, `${url}/sse`, { headers: { cookie: 'session=abc' } })).isStream)
    t.equal(app.sse.getConnectionsByUser('user123').length, 1)
    t.equal(app.sse.getConnectionsByUser('user456').length, 1)
  },

  async jwt (t) {
    const { app } = await run(t, {}, ['app'], text => text.replace('process.env.JWT_SECRET', "'a secret for this test'"))
    t.teardown(() => app.close())
    app.get('/sse', { sse: true }, async (request: FastifyRequest, reply: any) => { await reply.sse() })
    const url = await listen(app)
    const token = app.jwt.sign({ sub: 'user123', exp: Math.floor(Date.now() / 1000) + 60 })
    const expired = app.jwt.sign({ sub: 'user123', exp: Math.floor(Date.now() / 1000) - 60 })
    t.equal((await visit(t, `${url}/sse`)).status, 401)
    t.equal((await visit(t, `${url}/sse`, bearer(expired))).status, 401)
    t.ok((await visit(t, `${url}/sse`, bearer(token))).isStream)
    t.ok((await visit(t, `${url}/sse`, { headers: { cookie: `token=${token}` } })).isStream)
    t.equal(app.sse.getConnectionsByUser('user123').length, 2)
  },

  async 'node-http' (t) {
    const before = process.rawListeners('SIGTERM')
    const { server, sse } = await run(t, { validateToken }, ['server', 'sse'])
    await listening(server)
    const stream = await visit(t, at(server), bearer('good'))
    await stream.until(() => stream.named('data').length >= 1)
    t.same(resources(stream), ['welcome'])
    t.equal(sse.getConnectionsByUser('user123').length, 1)
    t.equal((await visit(t, at(server), { headers: { accept: 'application/json' } })).status, 406)
    await terminate('SIGTERM', before)
    await stream.ended
    t.same(payloads(stream, 'sse:close'), [{ reason: 'shutdown', reconnect: true }])
    t.equal(server.listening, false)
    t.same(process.rawListeners('SIGTERM'), before)
  },

  async express (t) {
    const { server, sse } = await run(t, {}, ['server', 'sse'])
    await listening(server)
    t.teardown(async () => {
      await sse.close()
      await new Promise(resolve => server.close(resolve))
    })
    const stream = await visit(t, `${at(server)}/sse`)
    t.equal((await sse.broadcastData('messages', 'Hello', { subscriptionIds: ['user:user123:messages'] })).delivered, 1)
    await stream.until(() => stream.named('data').length >= 1)
    t.equal((await visit(t, `${at(server)}/sse`, { headers: { accept: 'text/html', connection: 'close' } })).status, 406)
  },

  async testing (t) {
    const app = bare(t)
    await app.register(ssePlugin, { requireAuthentication: true, authHandler: () => null })
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    const { printed } = await run(t, { app })
    t.same(printed, [[{ resource: 'news', data: { headline: 'It works' } }]])
    t.equal(app.sse.connectionCount, 0)
  },

  async 'many-nodes' (t) {
    if (withoutRedis !== false) return t.comment(withoutRedis)
    const redis = await RedisServer.start()
    const { app: one } = await run(t, {}, ['app'], text => text.replace('6379', String(redis.port)))
    const app = bare(t)
    t.teardown(() => redis.stop())
    await app.register(ssePlugin, { broker: redisStreamsBroker({ client: redis.url }) })
    t.teardown(() => one.close())
    one.get('/sse', { sse: true }, async (_request: unknown, reply: FastifyReply) => { await reply.sse() })
    const stream = await visit(t, `${await listen(one)}/sse`)
    await app.sse.broadcastData('news', 1)
    await stream.until(() => stream.named('data').length >= 1)
    await until(() => app.sse.clusterStats().nodes.length === 2)
    t.same(app.sse.clusterStats().nodes.map(({ name }) => name), [null, hostname()])
  },

  async 'redis-clients' (t) {
    if (withoutRedis !== false) return t.comment(withoutRedis)
    const redis = await RedisServer.start()
    const app = bare(t)
    t.teardown(() => redis.stop())
    const { brokers } = await run(t, { app }, ['brokers'], text => text.replaceAll('process.env.REDIS_URL', JSON.stringify(redis.url)))
    for (const broker of brokers as Broker[]) {
      const node = bare(t)
      await node.register(ssePlugin, { broker })
      t.match(await node.sse.broadcastEvent({ data: 1 }), { id: /\.[12]$/, delivered: 0 })
    }
  },

  async 'publish-from-a-script' (t) {
    if (withoutRedis !== false) return t.comment(withoutRedis)
    const redis = await RedisServer.start()
    t.teardown(() => redis.stop())
    const app = bare(t)
    await app.register(ssePlugin, { authHandler: () => 'user123', broker: redisStreamsBroker({ client: redis.url }) })
    app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
    const stream = await visit(t, `${await listen(app)}/sse`)
    await run(t, {}, [], text => text.replaceAll('process.env.REDIS_URL', JSON.stringify(redis.url)))
    t.same((await stream.next('data')).json, { resource: 'invoices', data: { id: '7', state: 'paid' } })
  },

  async 'publish-again' (t) {
    const log = testLog()
    const app = bare(t)
    await app.register(ssePlugin, { authHandler: () => 'user123', broker: log.broker() })
    app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
    const stream = await visit(t, `${await listen(app)}/sse`)
    const publisher = createPublisher({ broker: log.broker() })
    t.teardown(() => publisher.close())
    let waits = 0
    const again = async () => {
      // Redis is back after two attempts.
      if (++waits === 2) log.restore()
    }
    const { publishInvoice } = await run(t, { again }, [], text => text.replace('await sleep(', 'await again('))
    await publisher.open()
    log.fail()
    const { signal } = new AbortController()
    t.match(await publishInvoice(publisher, { id: '7', version: 1 }, signal), { id: String })
    t.equal(waits, 2)
    t.same((await stream.next('data')).json, { resource: 'invoices', data: { id: '7', version: 1 } })
    await publisher.close()
    await t.rejects(publishInvoice(publisher, { id: '7', version: 2 }, signal), { code: 'SSE_ERR_CLOSED' })
  },

  async 'log-state' (t) {
    const log = testLog()
    const app = bare(t)
    await app.register(ssePlugin, { path: '/sse', broker: log.broker() })
    await run(t, { app }, [], text => text.replace('1_000', '20'))
    const stream = await visit(t, `${await listen(app)}/sse`)
    log.fail()
    t.same((await stream.next('log-state')).json, { status: 'degraded' })
    log.restore()
    t.same((await stream.next('log-state')).json, { status: 'up' })
  },

  async 'queue-worker' (t) {
    await answerFromWorker(t)
  },

  async 'worker-answers' (t) {
    await answerFromWorker(t)
  },

  async contract (t) {
    const promises: (() => Promise<void>)[] = []
    await run(t, { test: (_name: string, promise: () => Promise<void>) => promises.push(promise) }, [], text => text.replace(/^import .* from 'node:test';?$/m, ''))
    t.ok(promises.length > 8)
    for (const promise of promises) await t.resolves(promise())
  },

  async 'presence-events' (t) {
    const app = bare(t)
    app.addHook('onRequest', async request => { request.sseUser = { userId: (request.query as { user: string }).user } })
    await run(t, { app })
    const url = await listen(app)
    const ada = await visit(t, `${url}/rooms/1?user=ada`)
    await ada.until(() => ada.named('sse:join').length >= 1)
    const grace = await visit(t, `${url}/rooms/1?user=grace`)
    await ada.until(() => ada.named('sse:join').length >= 2)
    await grace.until(() => grace.named('data').length >= 1)
    t.same(payloads(ada, 'sse:join').map(({ userId }) => userId), ['ada', 'grace'])
    t.same(payloads(grace, 'data').map(({ data }) => data.map(({ userId }: { userId: string }) => userId)), [['ada', 'grace']])
    for (const stream of [ada, grace]) await stream.close()
    await until(() => app.sse.connectionCount === 0)
    await app.close()

    // The log cannot be reached: presence() rejects after the stream was opened.
    await t.test('presence-events', async t => {
      const log = testLog()
      const lines: Record<string, unknown>[] = []
      const app = Fastify({ logger: { level: 'warn', stream: { write (line: string) { lines.push(JSON.parse(line)) } } } })
      t.teardown(() => app.close())
      app.addHook('onRequest', async request => { request.sseUser = { userId: (request.query as { user: string }).user } })
      await run(t, { app, broker: log.broker() }, [], text => text.replace('presenceEvents', 'broker, presenceEvents').replace('300_000', '100').replace('5_000', '20'))
      const url = await listen(app)
      log.fail()
      const ada = await visit(t, `${url}/rooms/1?user=ada`)
      await until(() => lines.filter(({ msg }) => msg === 'The list of users was not sent').length >= 2)
      t.match(lines.find(({ msg }) => msg === 'The list of users was not sent'), { err: { code: 'SSE_ERR_BROKER_UNAVAILABLE' } })
      t.equal(ada.isOpen, true)
      t.equal(ada.named('data').length, 0)
      log.restore()
      await ada.until(() => ada.named('data').length >= 2)
      t.match(payloads(ada, 'data')[0], { resource: 'present', data: [{ userId: 'ada', connections: 1 }] }, 'the list is sent later')
      await ada.close()
    })
  },

  async 'different-data' (t) {
    const app = bare(t)
    const findSession = async (id: string | undefined) => id === undefined ? null : { userId: id, role: id === 'root' ? 'admin' : 'guest' }
    const { publish } = await run(t, { app, findSession }, ['publish'])
    const url = await listen(app)
    const [ada, root] = await Promise.all(['ada', 'root'].map(user => visit(t, `${url}/orders/7/live`, { headers: { cookie: `session=${user}` } }))) as [TestStream, TestStream]
    await publish({ id: '7', state: 'shipped', margin: 3 })
    for (const stream of [ada, root]) await stream.until(() => stream.named('data').length >= 1)
    t.same(payloads(ada, 'data'), [{ resource: 'order', data: { id: '7', state: 'shipped' } }])
    t.same(payloads(root, 'data'), [{ resource: 'order', data: { id: '7', state: 'shipped', margin: 3 } }])
    const [connection] = app.sse.getConnectionsByUser('ada')
    await t.rejects(connection!.addSubscription('orders-admin:7'), { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' })
    await t.rejects(connection!.addSubscription('orders-admin:*'), { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' })
  },

  async 'all-nodes' (t) {
    const { app, join } = await serve(t)
    const { stream: kicked, connection: { clientId } } = await join('user123')
    const others = [await join('user456', ['chat:general']), await join('user456', ['chat:general']), await join(null, ['chat:general']), await join('user123')]
    const { printed } = await run(t, { app, clientId })
    t.match(printed, [[[{ userId: 'user456', connections: 2 }], 3, 1, true], [null, Number, 'up']])
    t.equal(printed.length, 2)
    await kicked.ended
    t.same(payloads(kicked, 'sse:close'), [{ reason: 'kicked', reconnect: false }])
    await others[3]!.stream.ended
    t.equal(others[3]!.connection.closeReason, 'disconnected')
  },

  async 'list-connections' (t) {
    const { app, join } = await serve(t)
    for (const topic of ['orders:7', 'orders:*', 'orders:8']) await join(topic, [topic])
    const { printed } = await run(t, { app })
    t.match(printed.slice(0, 2).sort(), [['orders:*', '127.0.0.1', String, false], ['orders:7', '127.0.0.1', String, false]])
    t.same(printed.slice(2), [[2, null]])
  },

  async health (t) {
    const app = bare(t)
    // A log that can be told to be out of reach; what it does then is the concern of its own tests.
    const broker = memoryBroker()
    let tell: Sink['state'] = () => {}
    const open = broker.open.bind(broker)
    broker.open = (sink, history) => {
      tell = (state, error) => sink.state(state, error)
      return open(sink, history)
    }
    await app.register(ssePlugin, { broker })
    await run(t, { app })
    const ask = async () => {
      const response = await fetch(`${url}/health`)
      return [response.status, await response.json()]
    }
    const url = await listen(app)
    const opened = app.sse.health()
    t.match(opened, { status: 'up', since: Number })
    t.same(await ask(), [200, opened])
    tell('down', Object.assign(new Error('no route to redis-1'), { code: 'EHOSTUNREACH' }))
    const { since, ...lost } = app.sse.health()
    t.same(lost, { status: 'degraded', reason: 'no route to redis-1' })
    t.ok(since >= opened.since)
    t.same(await ask(), [503, { status: 'degraded', since }])
    tell('down', new Error('connection refused'))
    t.same(app.sse.health(), { status: 'degraded', reason: 'connection refused', since }, 'another reason, the same outage')
    tell('up')
    t.match(await ask(), [200, { status: 'up' }])
    await app.close()
    t.match(app.sse.health(), { status: 'degraded', reason: 'The event log is closed' })
  },

  async http2 (t) {
    const directory = t.testdir({})
    createCertificate(directory)
    const { app } = await run(t, {}, ['app'], text => text.replace(/(['"])(key|cert)\.pem\1/g, (_, quote, file) => JSON.stringify(join(directory, `${file}.pem`))))
    t.teardown(() => app.close())
    const session = connectH2(at(app.server).replace('http:', 'https:'))
    t.teardown(() => session.close())
    const streams = Array.from({ length: 12 }, () => new H2Stream(session, '/sse'))
    await Promise.all(streams.map(stream => stream.waitFor(': stream')))
    t.equal(app.sse.connectionCount, 12, 'twelve streams on one connection')
    t.equal((await app.sse.broadcastData('x', 1)).delivered, 12)
    await Promise.all(streams.map(stream => stream.waitFor('"resource":"x"')))
  },

  async shutdown (t) {
    const { app, join } = await serve(t)
    const before = process.rawListeners('SIGTERM')
    const { stream } = await join()
    await run(t, { app })
    await terminate('SIGTERM', before)
    await stream.ended
    t.same(payloads(stream, 'sse:close'), [{ reason: 'shutdown', reconnect: true }])
    t.equal(app.server.listening, false)
    for (const listener of process.rawListeners('SIGTERM')) if (!before.includes(listener)) process.removeListener('SIGTERM', listener as () => void)
  }
}

async function listening (server: Server): Promise<void> {
  if (!server.listening) await once(server, 'listening')
}
