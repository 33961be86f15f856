import { once } from 'node:events'
import { createServer } from 'node:http'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { Server } from 'socket.io'
import { io, type Socket } from 'socket.io-client'
import type { Test } from 'tap'
import { EventSource } from 'undici'
import ssePlugin from '../../lib/index.js'
import type { TestStream } from '../../lib/testing/index.js'
import { isApplicationEvent, listen, payloads } from '../helpers/app.js'
import { at, bare, eventSourceOf, run, visit, type Drivers } from '../helpers/samples.js'
import { until } from '../helpers/wait.js'

// Of the samples in docs/migration: what is checked of the application before the move is checked of the one after it.

type Received = [event: string, data: unknown][]

const validateToken = async (token: string | undefined) => token === 'good' ? 'user123' : null
/** As an EventSource asks. */
const AS_BROWSER = { headers: { accept: 'text/event-stream' } }

async function post (url: string, body: unknown): Promise<unknown> {
  const response = await fetch(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })
  return await response.json()
}

/** What the application has sent, without what this package adds. */
function receivedBy (...streams: TestStream[]): Received {
  return streams.flatMap(({ events }) => events.filter(isApplicationEvent).map(({ event, json }): Received[number] => [event, json]))
}

/** A client follows an order, is away for a moment and returns; another request streams an export. */
async function followOrder (t: Test, app: FastifyInstance): Promise<void> {
  const url = at(app.server)
  const stream = await visit(t, `${url}/orders/7`, AS_BROWSER)
  await post(`${url}/orders/7`, { status: 'packed' })
  await post(`${url}/orders/8`, { status: 'packed' })
  await post(`${url}/orders/7`, { status: 'sent' })
  await stream.until(() => stream.named('status').length >= 2)
  t.same(receivedBy(stream), [['welcome', { order: '7' }], ['status', { status: 'packed' }], ['status', { status: 'sent' }]])
  await stream.close()
  await post(`${url}/orders/7`, { status: 'delivered' })
  const again = await stream.reconnect()
  await again.until(() => again.named('status').length >= 1 && again.named('welcome').length >= 1)
  t.same(payloads(again, 'status'), [{ status: 'delivered' }], 'what was missed, once')
  const file = await visit(t, `${url}/export`, AS_BROWSER)
  await file.ended
  t.same(receivedBy(file), [12, 30, 7].map(total => ['row', { total }]))
}

/** Two clients in two rooms. */
async function chat (t: Test, app: FastifyInstance): Promise<void> {
  const url = at(app.server)
  const kitchen = await visit(t, `${url}/rooms/kitchen`)
  const hall = await visit(t, `${url}/rooms/hall`)
  t.same(await post(`${url}/rooms/kitchen`, { text: 'Tea?' }), { delivered: 1 })
  t.same(await post(`${url}/rooms/cellar`, { text: 'Nobody here' }), { delivered: 0 })
  t.same(await post(`${url}/news`, { headline: 'It works' }), { delivered: 2 })
  for (const stream of [kitchen, hall]) await stream.until(() => stream.named('news').length >= 1)
  t.same(receivedBy(kitchen), [['welcome', { room: 'kitchen' }], ['chat', { text: 'Tea?' }], ['news', { headline: 'It works' }]])
  t.same(receivedBy(hall), [['welcome', { room: 'hall' }], ['news', { headline: 'It works' }]])
}

/** Two clients read what is posted until the server closes. */
async function readBoard (t: Test, app: FastifyInstance): Promise<void> {
  const url = at(app.server)
  const one = await visit(t, `${url}/events`)
  const two = await visit(t, `${url}/events`)
  t.same(await post(`${url}/messages`, { text: 'Two\nlines' }), { delivered: 2 })
  for (const stream of [one, two]) await stream.until(() => stream.named('posted').length >= 1)
  t.same(receivedBy(one), [['welcome', { online: 1 }], ['posted', { text: 'Two\nlines' }]])
  t.same(receivedBy(two), [['welcome', { online: 2 }], ['posted', { text: 'Two\nlines' }]])
  await app.close()
  for (const stream of [one, two]) t.equal((await stream.ended).by, 'server')
}

/** A client of either kind, in room 7 as user123. */
interface Client {
  received (): Received
  /** Resolves once the server has noticed. */
  leave (): Promise<void>
  comeBack (): Promise<void>
}

/** Events for the room, for the user, volatile ones, and what the client missed. */
async function converse (t: Test, app: FastifyInstance, { received, leave, comeBack }: Client): Promise<void> {
  const url = at(app.server)
  const has = async (count: number) => await until(() => received().length >= count)
  await has(1)
  await post(`${url}/rooms/7/messages`, { text: 'Hello' })
  await post(`${url}/rooms/8/messages`, { text: 'Next door' })
  await post(`${url}/users/user123/messages`, { text: 'Psst' })
  await post(`${url}/users/user456/messages`, { text: 'For somebody else' })
  await has(3)
  await post(`${url}/rooms/7/typing`, { user: 'ada' })
  await has(4)
  await leave()
  await post(`${url}/rooms/7/messages`, { text: 'Missed' })
  await post(`${url}/rooms/7/typing`, { user: 'grace' })
  await comeBack()
  await has(5)
  await post(`${url}/rooms/7/messages`, { text: 'Last' })
  await has(6)
  t.same(received(), [
    ['welcome', { userId: 'user123' }],
    ['chat', { text: 'Hello' }],
    ['private', { text: 'Psst' }],
    ['typing', { user: 'ada' }],
    ['chat', { text: 'Missed' }],
    ['chat', { text: 'Last' }]
  ])
}

/** What a page does with its events. */
function createPage () {
  const shown: unknown[] = []
  const loads: unknown[] = []
  let refusals = 0
  return {
    shown,
    loads,
    refusals: () => refusals,
    globals: { showMessage: (data: unknown) => shown.push(data), loadMessages: (room: unknown) => loads.push(room), showRefusal: () => { refusals++ } }
  }
}

export const DRIVERS: Drivers = {
  async 'migrate-fastify-sse-before' (t) {
    const { app } = await run(t, {}, ['app'])
    t.teardown(() => app.close())
    await followOrder(t, app)
  },

  async 'migrate-fastify-sse-after' (t) {
    const { app } = await run(t, {}, ['app'])
    t.teardown(() => app.close())
    await followOrder(t, app)

    // Both in one application. By a name that the compiler does not follow: the two packages declare `reply.sse` differently.
    const both = bare(t)
    await both.register(ssePlugin, { decorators: { instance: 'live', reply: 'live' } })
    await both.register((await import('@fastify/sse' as string)).default)
    both.get('/theirs', { sse: true }, async (request: FastifyRequest, reply: any) => {
      reply.sse.keepAlive()
      await reply.sse.send({ event: 'from', data: 'theirs' })
    })
    both.get('/ours', { live: true } as object, async (request: FastifyRequest, reply: any) => {
      const connection = await reply.live()
      connection.sendEvent({ event: 'from', data: 'ours' })
    })
    const url = await listen(both)
    const theirs = await visit(t, `${url}/theirs`, AS_BROWSER)
    const ours = await visit(t, `${url}/ours`, AS_BROWSER)
    for (const stream of [theirs, ours]) await stream.until(() => stream.named('from').length >= 1)
    t.same([theirs, ours].map(stream => stream.named('from').map(({ data }) => data)), [['"theirs"'], ['ours']], 'strings are JSON there, and not here')
    t.equal((both as unknown as { live: { connectionCount: number } }).live.connectionCount, 1)
  },

  async 'migrate-better-sse-before' (t) {
    const { app } = await run(t, {}, ['app'])
    t.teardown(() => app.close())
    await chat(t, app)
  },

  async 'migrate-better-sse-after' (t) {
    const { app } = await run(t, {}, ['app'])
    t.teardown(() => app.close())
    await chat(t, app)
  },

  async 'migrate-hand-written-before' (t) {
    const { app } = await run(t, {}, ['app'])
    t.teardown(() => app.close())
    await readBoard(t, app)
  },

  async 'migrate-hand-written-after' (t) {
    const { app } = await run(t, {}, ['app'])
    t.teardown(() => app.close())
    await readBoard(t, app)
  },

  async 'migrate-socket-io-before' (t) {
    const { app, io: server } = await run(t, { validateToken }, ['app', 'io'])
    t.teardown(() => app.close())
    const received: Received = []
    // A volatile event is dropped while the client changes from long polling to a WebSocket.
    const options = { transports: ['websocket'], reconnection: false, forceNew: true }
    const socket = io(at(app.server), { ...options, auth: { token: 'good', room: '7' } })
    t.teardown(() => socket.disconnect())
    socket.onAny((event, data) => { received.push([event, data]) })
    await converse(t, app, {
      received: () => received,
      async leave () {
        socket.io.engine.close()
        await until(() => server.sockets.sockets.size === 0)
      },
      async comeBack () {
        socket.connect()
        await until(() => socket.connected)
      }
    })
    t.equal(socket.recovered, true)
    const refused = io(at(app.server), { ...options, auth: { token: 'bad', room: '7' } })
    t.teardown(() => refused.disconnect())
    await new Promise<void>(resolve => refused.once('connect_error', error => {
      t.equal(error.message, 'unauthorized')
      resolve()
    }))
  },

  async 'migrate-socket-io-after' (t) {
    const { app } = await run(t, { validateToken }, ['app'])
    t.teardown(() => app.close())
    const url = `${at(app.server)}/events?room=7`
    const streams = [await visit(t, url, { headers: { cookie: 'token=good' } })]
    await converse(t, app, {
      received: () => receivedBy(...streams),
      async leave () {
        await streams[0]!.close()
        await until(() => app.sse.connectionCount === 0)
      },
      async comeBack () {
        streams.push(await streams[0]!.reconnect())
      }
    })
    t.equal((await visit(t, url, { headers: { cookie: 'token=bad' } })).status, 401)
  },

  async 'migrate-socket-io-client-before' (t) {
    const http = createServer()
    const server = new Server(http, { connectionStateRecovery: {} })
    t.teardown(() => server.close())
    server.use((socket, next) => next(socket.handshake.auth['token'] === 'good' ? undefined : new Error('unauthorized')))
    server.on('connection', socket => { socket.join(`room:${socket.handshake.auth['room']}`) })
    http.listen(0, '127.0.0.1')
    await once(http, 'listening')
    const { shown, loads, refusals, globals } = createPage()
    const { connect } = await run(t, globals, ['connect'])
    const socket: Socket = connect(at(http), 'good', '7')
    t.teardown(() => socket.disconnect())
    await until(() => loads.length === 1)
    server.to('room:7').emit('chat', { text: 'Hello' })
    await until(() => shown.length === 1)
    socket.io.engine.close()
    await until(() => server.sockets.sockets.size === 0)
    server.to('room:7').emit('chat', { text: 'Missed' })
    await until(() => shown.length === 2)
    t.same(shown, [{ text: 'Hello' }, { text: 'Missed' }])
    t.same(loads, ['7'], 'not loaded again')
    const refused: Socket = connect(at(http), 'bad', '7')
    t.teardown(() => refused.disconnect())
    await until(() => refusals() === 1)
  },

  async 'migrate-socket-io-client-after' (t) {
    const app = bare(t)
    await app.register(ssePlugin, { retryMs: 100 })
    app.get<{ Querystring: { room: string } }>('/events', { sse: true }, async (request, reply) => {
      const { room } = request.query
      if (room === 'closed') return reply.code(403).send()
      const connection = await reply.sse({ subscriptions: [`room:${room}`] })
      if (connection.lastEventId === null) connection.sendEvent({ event: 'welcome', data: {} })
    })
    const url = await listen(app)
    const { Source, sources } = eventSourceOf(t, url)
    const { shown, loads, refusals, globals } = createPage()
    const { connect } = await run(t, { ...globals, EventSource: Source }, ['connect'])
    connect('7')
    await until(() => loads.length === 1)
    const say = async (text: string) => await app.sse.broadcastEvent({ event: 'chat', data: { text } }, { subscriptionIds: ['room:7'] })
    await say('Hello')
    await until(() => shown.length === 1)
    const [connection] = app.sse.connections()
    connection!.close('max-age')
    await until(() => app.sse.connectionCount === 0)
    await say('Missed')
    await until(() => shown.length === 2)
    t.same(shown, [{ text: 'Hello' }, { text: 'Missed' }])
    t.same(loads, ['7'], 'not loaded again')
    const [again] = app.sse.connections()
    again!.close('kicked')
    await until(() => sources[0]!.readyState === EventSource.CLOSED)
    t.equal(refusals(), 0)
    connect('closed')
    await until(() => refusals() === 1)
  }
}
