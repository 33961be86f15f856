import type { IncomingMessage, ServerResponse } from 'node:http'
import { Type, type Static } from '@sinclair/typebox'
import fastify, { type FastifyRequest, type RouteShorthandOptions } from 'fastify'
import { describe, expect, test } from 'tstyche'
import ssePlugin, {
  createDataEvent, createPublisher, createNotificationEvent, defineEvents, EventPriority, memoryBroker, SSEConnection, SSEError, SSEManager,
  type AuthData, type Broker, type BroadcastOptions, type Catalogue, type ClientInfo, type CloseReason, type ConnectionPage, type Delivery, type Diagnostics, type EventInput, type EventName, type GapReason, type HttpRequest, type Notification, type PublisherOptions, type PublishOptions,
  type ReplySSE, type ResourceName, type ResourcePayload, type SharedSnapshotQuestion, type SnapshotOptions, type Run, type Source, type SSEOptions, type SSEPublisher, type SSEUser
} from '../lib/index.js'
import { registerMetrics, type MetricsRegistry } from '../lib/metrics/index.js'
import type { ResolvedOptions } from '../lib/options.js'

// Without a registered catalogue; types/registered has one.

const app = fastify()
const request = {} as FastifyRequest
const reply = {} as { sse: ReplySSE }
const connection = {} as SSEConnection

describe('metrics', () => {
  test('registries of each client', () => {
    expect<MetricsRegistry>().type.toBeAssignableFrom<import('prom-client').Registry>()
    expect<MetricsRegistry>().type.toBeAssignableFrom<import('@prometheus-io/client').Registry>()
    expect<MetricsRegistry>().type.toBeAssignableFrom<import('@platformatic/prom-client').Registry>()
    expect<MetricsRegistry>().type.not.toBeAssignableFrom<typeof import('prom-client')>()
    expect(registerMetrics(app.sse, {} as MetricsRegistry, { labels: { manager: 'chat' } })).type.toBe<() => void>()
    expect(registerMetrics).type.not.toBeCallableWith(app, {} as MetricsRegistry)
  })

  test('payloads of the channels', () => {
    expect<Diagnostics['gap']['reason']>().type.toBe<GapReason>()
    expect<Diagnostics['publish']['nodeId']>().type.toBe<string | null>()
    expect<keyof Diagnostics>().type.toBe<'open' | 'close' | 'refuse' | 'resume' | 'gap' | 'replay' | 'lag' | 'drop' | 'publish' | 'deliver' | 'run' | 'health'>()
  })
})

describe('snapshots', () => {
  const event = { event: 'orders', data: [] }

  test('without a key, load has the connection', () => {
    reply.sse({
      subscriptions: ['orders:**'],
      snapshot: {
        load: async ({ connection, subscriptions, reason, signal }) => {
          expect(connection).type.toBe<SSEConnection>()
          expect(subscriptions).type.toBe<readonly string[]>()
          expect(reason).type.toBe<'connect' | 'gap' | 'added'>()
          expect(signal).type.toBe<AbortSignal>()
          return event
        },
        timeoutMs: 10_000,
        maxConcurrent: 16,
        key: undefined
      }
    })
    expect<SnapshotOptions>().type.toBeAssignableFrom<{ load: () => null }>()
    expect<SnapshotOptions>().type.toBeAssignableFrom<{ load: () => EventInput[] }>()
    expect<SnapshotOptions>().type.toBeAssignableFrom<{ load: () => AsyncGenerator<EventInput> }>()
    expect<SnapshotOptions>().type.not.toBeAssignableFrom<{ load: () => string }>()
    expect<SnapshotOptions>().type.not.toBeAssignableFrom<{ load: () => undefined }>()
    expect<SnapshotOptions>().type.not.toBeAssignableFrom<{ key: string }>()
  })

  test('with a key, it has nothing of a client', () => {
    reply.sse({
      snapshot: {
        key: 'orders:acme',
        load: question => {
          expect(question).type.toBe<SharedSnapshotQuestion>()
          expect<keyof typeof question>().type.toBe<'key' | 'signal'>()
          return null
        }
      }
    })
  })

  test('on connections', () => {
    expect(connection.resumed).type.toBe<boolean | null>()
    connection.onGap(gap => {
      expect(gap.reason).type.toBe<GapReason>()
      expect(gap.snapshot).type.toBe<boolean>()
    })
    expect(app.sse.position()).type.toBe<string>()
    expect(reply.sse).type.not.toBeCallableWith([event], { snapshot: { load: () => event } })
  })
})

describe('registration', () => {
  test('options', () => {
    expect(app.register).type.toBeCallableWith(ssePlugin)
    expect(app.register).type.toBeCallableWith(ssePlugin, { keepAliveIntervalMs: 1000, history: { maxEvents: 1 }, decorators: { instance: 'live' } })
    expect(app.register).type.not.toBeCallableWith(ssePlugin, { keepAliveInterval: 1000 })
    expect(app.register).type.not.toBeCallableWith(ssePlugin, { keepAlive: 'yes' })
    expect(app.register).type.toBeCallableWith(ssePlugin, { keepAlive: 'event' })
    expect<SSEOptions>().type.not.toBeAssignableFrom<{ history: { events: number } }>()
    expect<SSEOptions>().type.toBeAssignableFrom<{ flush: { intervalMs: number } }>()
    expect<SSEOptions>().type.toBeAssignableFrom<{ flush: 'immediate' }>()
    expect<SSEOptions>().type.not.toBeAssignableFrom<{ flush: 'later' }>()
    expect<SSEOptions>().type.toBeAssignableFrom<{ clientSubscriptions: 'patterns' }>()
    // The clock is given by tests only, under a symbol.
    expect<keyof SSEOptions>().type.toBe<Exclude<keyof ResolvedOptions, 'clock'>>()
    expect<{ broker: Broker }>().type.toBeAssignableTo<SSEOptions>()
    expect(memoryBroker()).type.toBe<Broker>()
  })

  test('the authentication handler', () => {
    const options: SSEOptions = {
      authHandler: (authData, request) => {
        expect(authData).type.toBe<AuthData>()
        expect(authData.token).type.toBe<string | null>()
        expect(authData.cookies['session']).type.toBe<string | undefined>()
        expect(request.headers.origin).type.toBe<string | undefined>()
        expect(request).type.toBe<FastifyRequest>()
        expect(request.ip).type.toBe<string>()
        return null
      },
      authorizeSubscription: ({ userId, subscriptionId }) => {
        expect(userId).type.toBe<string | null>()
        expect(subscriptionId).type.toBe<string>()
        return true
      }
    }
    expect(options).type.toBe<SSEOptions>()
    expect<{ authHandler: () => Promise<string> }>().type.toBeAssignableTo<SSEOptions>()
    expect<{ authHandler: () => { userId: string, claims: { role: string } } }>().type.toBeAssignableTo<SSEOptions>()
    expect<{ authHandler: () => number }>().type.not.toBeAssignableTo<SSEOptions>()
    expect<{ authHandler: () => { id: string } }>().type.not.toBeAssignableTo<SSEOptions>()
    expect<{ authorizeSubscription: () => string }>().type.not.toBeAssignableTo<SSEOptions>()
  })

  test('decorations', () => {
    expect(app.sse).type.toBe<SSEManager>()
    expect(request.sseUser).type.toBe<SSEUser | null>()
    app.get('/a', { sse: true }, (request, reply) => {
      expect(reply.sse).type.toBe<ReplySSE>()
      return reply.sse(['a'])
    })
    app.route({ method: 'GET', url: '/b', sse: { requireAuthentication: false }, handler: async () => {} })
    expect<RouteShorthandOptions>().type.toBeAssignableFrom<{ sse: { requireAuthentication: true } }>()
    expect<RouteShorthandOptions>().type.not.toBeAssignableFrom<{ sse: 'yes' }>()
    expect<RouteShorthandOptions>().type.not.toBeAssignableFrom<{ sse: { requireAuthentication: 'yes' } }>()
  })
})

describe('reply.sse()', () => {
  test('a managed stream', () => {
    expect(reply.sse()).type.toBe<Promise<SSEConnection>>()
    expect(reply.sse({ subscriptions: ['a'], clientInfo: { tab: 1 }, retryMs: 1000, lastEventId: null })).type.toBe<Promise<SSEConnection>>()
    expect(reply.sse).type.not.toBeCallableWith({ subscription: 'a' })
  })

  test('a stream of its own', () => {
    expect(reply.sse(['a', { data: 1, id: '7' }, new Uint8Array()])).type.toBe<Promise<void>>()
    expect(reply.sse((async function * () { yield 'a' })())).type.toBe<Promise<void>>()
    expect(reply.sse(new ReadableStream<string>())).type.toBe<Promise<void>>()
    expect(reply.sse(async function * ({ signal, lastEventId }) {
      expect(signal).type.toBe<AbortSignal>()
      expect(lastEventId).type.toBe<string | null>()
      yield { event: 'row', data: {} }
    }, { retryMs: 1000 })).type.toBe<Promise<void>>()
    expect(reply.sse).type.not.toBeCallableWith([1, 2])
    expect(reply.sse).type.not.toBeCallableWith([{ event: 'without data' }])
    expect<Source>().type.toBeAssignableFrom<NodeJS.ReadableStream>()
  })
})

describe('events', () => {
  test('any name and any payload pass', () => {
    expect<ResourceName>().type.toBe<string>()
    expect<EventName>().type.toBe<string>()
    expect<ResourcePayload<'anything'>>().type.toBe<unknown>()
    expect(app.sse.broadcastData('anything', { at: 1 }, { userIds: ['1'], subscriptionIds: ['a'], priority: EventPriority.LOW, key: 'k', ephemeral: true })).type.toBe<Promise<Delivery>>()
    expect(app.sse.broadcastEvent({ event: 'anything', data: 1, retry: 1000 }, { filter: c => c.hasSubscription('a'), local: true })).type.toBe<Promise<Delivery>>()
    expect<EventInput>().type.toBeAssignableFrom<{ data: string }>()
    expect<EventInput>().type.not.toBeAssignableFrom<{ event: string }>()
    expect<EventInput>().type.not.toBeAssignableFrom<{ data: string, priority: 7 }>()
  })

  test('notifications have their shape', () => {
    const { broadcastNotification } = app.sse
    expect(broadcastNotification).type.toBeCallableWith({ title: 'a', message: 'b' })
    expect(broadcastNotification).type.toBeCallableWith({ title: 'a', message: 'b', level: 'warning', actions: [{ label: 'Open', url: '/' }] })
    expect(broadcastNotification).type.not.toBeCallableWith({ title: 'a' })
    expect(broadcastNotification).type.not.toBeCallableWith({ title: 'a', message: 'b', level: 'fatal' })
    expect(createNotificationEvent({ title: 'a', message: 'b' })).type.toBe<EventInput>()
    expect(createDataEvent('a', 1)).type.toBe<EventInput>()
    expect<Notification['level']>().type.toBe<'info' | 'success' | 'warning' | 'error'>()
  })

  test('targets', () => {
    expect<BroadcastOptions>().type.toBeAssignableFrom<{ userIds: string[], exceptClientIds: readonly string[] }>()
    expect<BroadcastOptions>().type.not.toBeAssignableFrom<{ userIds: string }>()
    expect<BroadcastOptions>().type.not.toBeAssignableFrom<{ userIds: number[] }>()
    expect(app.sse.broadcastToUsers).type.not.toBeCallableWith({ data: 1 }, '1')
    expect(app.sse.broadcastEvent).type.not.toBeCallableWith({ data: 1 }, { filter: async () => true })
  })

  test('a catalogue keeps its schemas', () => {
    const Schema = Type.Object({ text: Type.String() })
    const events = defineEvents({ events: { chat: Schema }, resources: { row: Type.Number() } })
    expect(events).type.toBe<Catalogue<{ readonly chat: typeof Schema }, { readonly row: ReturnType<typeof Type.Number> }>>()
    expect<Static<typeof events.events.chat>>().type.toBe<{ text: string }>()
    expect<{ events: typeof events }>().type.toBeAssignableTo<SSEOptions>()
    expect(defineEvents).type.not.toBeCallableWith({ events: { chat: 'text' } })
  })
})

test('connections', () => {
  expect(app.sse.getConnection('id')).type.toBe<SSEConnection | undefined>()
  expect(connection.sendData('a', 1)).type.toBe<boolean>()
  expect(connection.sendNotification({ title: 'a', message: 'b' })).type.toBe<boolean>()
  expect(connection.subscriptions).type.toBe<ReadonlySet<string>>()
  expect(connection.clientInfo).type.toBe<ClientInfo>()
  expect(connection.clientInfo.connectedAt).type.toBe<number>()
  expect(connection.clientInfo['tab']).type.toBe<unknown>()
  expect(connection.signal).type.toBe<AbortSignal>()
  expect(app.sse.disconnectUser('1', 'kicked')).type.toBe<Promise<number>>()
  expect<CloseReason>().type.toBeAssignableTo<string>()
})

test('several catalogues', () => {
  const orders = defineEvents({ events: { paid: Type.Object({ id: Type.Number() }) }, resources: { list: Type.Array(Type.String()) } })
  const chat = defineEvents({ events: { message: Type.String() } })
  const shop = new SSEManager<typeof orders>({ events: orders })
  const rooms = new SSEManager<typeof chat>({ events: chat })
  expect(shop.broadcastEvent).type.toBeCallableWith({ event: 'paid', data: { id: 1 } })
  expect(shop.broadcastEvent).type.not.toBeCallableWith({ event: 'paid', data: { id: '1' } })
  expect(shop.broadcastEvent).type.not.toBeCallableWith({ data: 'text' })
  expect(shop.broadcastData).type.toBeCallableWith('list', ['a'])
  expect(shop.broadcastData).type.not.toBeCallableWith('lists', ['a'])
  expect(rooms.broadcastToUsers).type.toBeCallableWith({ data: 'text' }, ['ada'])
  expect(rooms.broadcastToUsers).type.not.toBeCallableWith({ event: 'paid', data: { id: 1 } }, ['ada'])
  expect(rooms.broadcastData).type.not.toBeCallableWith('list', ['a'])
  expect(createPublisher<typeof orders>({ broker: {} as Broker }).broadcastEvent).type.not.toBeCallableWith({ event: 'other', data: 1 })
})

test('connections of several catalogues', async () => {
  const orders = defineEvents({ events: { paid: Type.Object({ id: Type.Number() }) }, resources: { list: Type.Array(Type.String()) } })
  const shop = new SSEManager<typeof orders>({ events: orders })
  const replySSE = {} as ReplySSE<typeof orders>
  const opened = await replySSE({ subscriptions: ['a'] })
  expect(opened).type.toBe<SSEConnection<typeof orders>>()
  expect(shop.getConnection('id')).type.toBe<SSEConnection<typeof orders> | undefined>()
  expect(shop.createConnection({ request: {} as IncomingMessage, response: {} as ServerResponse })).type.toBe<Promise<SSEConnection<typeof orders>>>()
  for (const connection of [opened, ...shop.connections(), ...shop.getConnectionsByUser('ada'), ...shop.getConnectionsBySubscription('a')]) {
    expect(connection.sendEvent).type.toBeCallableWith({ event: 'paid', data: { id: 1 } })
    expect(connection.sendEvent).type.not.toBeCallableWith({ event: 'paid', data: { id: '1' } })
    expect(connection.sendEvent).type.not.toBeCallableWith({ event: 'other', data: 1 })
    expect(connection.sendData).type.toBeCallableWith('list', ['a'])
    expect(connection.sendData).type.not.toBeCallableWith('lists', ['a'])
    expect(connection.sendNotification).type.toBeCallableWith({ title: 'a', message: 'b' })
  }
  expect<SSEConnection<any>>().type.toBeAssignableFrom<SSEConnection<typeof orders>>()
})

test('undefined is accepted where it cannot widen access', () => {
  expect<SSEOptions>().type.toBeAssignableFrom<{ retryMs: undefined, ticketSecret: undefined, snapshot: undefined, history: { maxEvents: undefined } }>()
  expect<SSEOptions>().type.not.toBeAssignableFrom<{ authHandler: undefined }>()
  expect<SSEOptions>().type.not.toBeAssignableFrom<{ requireAuthentication: undefined }>()
  expect<SSEOptions>().type.not.toBeAssignableFrom<{ authorizeTopic: undefined }>()
  expect(reply.sse).type.toBeCallableWith({ subscriptions: undefined, clientInfo: undefined, retryMs: undefined, lastEventId: undefined, snapshot: undefined })
  expect(app.sse.broadcastEvent).type.toBeCallableWith({ data: 1, priority: undefined, key: undefined, retry: undefined })
  expect<BroadcastOptions>().type.not.toBeAssignableFrom<{ userIds: undefined }>()
  expect<BroadcastOptions>().type.not.toBeAssignableFrom<{ subscriptionIds: undefined }>()
  expect<SSEUser>().type.not.toBeAssignableFrom<{ userId: string, expiresAt: undefined }>()
})

test('without Fastify', () => {
  const manager = new SSEManager({
    keepAlive: false,
    authHandler: (authData, request) => {
      expect(request).type.toBe<HttpRequest>()
      return null
    }
  })
  expect(manager.createConnection).type.toBeCallableWith({} as { request: import('node:http').IncomingMessage, response: import('node:http').ServerResponse })
  expect(manager.createConnection).type.toBeCallableWith({} as { request: import('node:http2').Http2ServerRequest, response: import('node:http2').Http2ServerResponse, user: { userId: '1' } })
  expect(manager.createConnection).type.toBeCallableWith({} as { request: import('express').Request, response: import('express').Response, user: null })
  expect(manager.createConnection).type.not.toBeCallableWith({})
})

test('errors and constants', () => {
  expect(new SSEError()).type.toBeAssignableTo<Error>()
  expect<SSEError['code']>().type.toBe<string>()
  expect<SSEError['statusCode']>().type.toBe<number>()
  expect<EventPriority>().type.toBe<0 | 1 | 2 | 3>()
  expect(EventPriority.CRITICAL).type.toBe<3>()
})

describe('publishers', () => {
  const broker = {} as Broker
  const publisher = createPublisher({ broker })
  const event = { event: 'paid', data: 1 }

  test('options', () => {
    expect(createPublisher).type.toBeCallableWith({ broker, events: defineEvents({}), history: { maxEvents: 1 }, maxEventBytes: 1, runs: { drainMs: 1 } })
    expect(createPublisher).type.toBeCallableWith({ broker }, { error: () => {}, warn: () => {}, info: () => {}, debug: () => {} })
    expect(createPublisher).type.not.toBeCallableWith()
    expect(createPublisher).type.not.toBeCallableWith({})
    expect(createPublisher).type.not.toBeCallableWith({ broker, path: '/sse' })
    expect(createPublisher).type.not.toBeCallableWith({ broker, cluster: {} })
    expect<PublisherOptions>().type.not.toBeAssignableFrom<{ broker: undefined }>()
  })

  test('calls', () => {
    expect(publisher).type.toBe<SSEPublisher>()
    expect(publisher.broadcastEvent(event, { userIds: ['ada'], ephemeral: true, local: false, key: 'k', priority: EventPriority.HIGH, retry: 100 })).type.toBe<Promise<Delivery>>()
    expect(publisher.position()).type.toBe<Promise<string>>()
    expect(publisher.getRun('a', { ownerId: null })).type.toBe<Promise<Run | null>>()
    expect(publisher[Symbol.asyncDispose]()).type.toBe<Promise<void>>()
    expect<keyof SSEPublisher>().type.not.toBeAssignableFrom<'createConnection'>()
    expect<keyof SSEPublisher>().type.not.toBeAssignableFrom<'stats'>()
  })

  test('what only a node can do', () => {
    const filter = () => true
    expect(publisher.broadcastEvent).type.not.toBeCallableWith(event, { local: true })
    expect(publisher.broadcastEvent).type.not.toBeCallableWith(event, { filter })
    expect(publisher.broadcastData).type.not.toBeCallableWith('orders', 1, { local: true })
    expect(publisher.broadcastNotification).type.not.toBeCallableWith({ title: 'T', message: 'M' }, { filter })
    expect(publisher.broadcastToUsers).type.not.toBeCallableWith(event, ['ada'], { local: true })
    expect(publisher.broadcastToSubscriptions).type.not.toBeCallableWith(event, ['a'], { filter })
    expect(publisher.broadcastToUsers).type.not.toBeCallableWith(event, ['ada'], { userIds: [] })
    expect(publisher.broadcastToUsers).type.toBeCallableWith(event, ['ada'], { ephemeral: true })
    expect<PublishOptions>().type.not.toBeAssignableFrom<BroadcastOptions>()
    expect<BroadcastOptions>().type.toBeAssignableFrom<PublishOptions>()
  })
})

describe('lists of connections', () => {
  test('filters are those of a connection, and none is undefined', () => {
    expect(app.sse.listConnections).type.toBeCallableWith({ userId: null, subscription: 'orders:*', lagging: true, limit: 10, after: null })
    expect(app.sse.listConnections).type.toBeCallableWith()
    expect(app.sse.listConnections).type.not.toBeCallableWith({ user: 'ada' })
    expect(app.sse.listConnections).type.not.toBeCallableWith({ userId: undefined })
    expect(app.sse.listConnections()).type.toBe<Promise<ConnectionPage>>()
  })
})
