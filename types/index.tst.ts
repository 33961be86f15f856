import { Type, type Static } from '@sinclair/typebox'
import fastify, { type FastifyRequest, type RouteShorthandOptions } from 'fastify'
import { describe, expect, test } from 'tstyche'
import ssePlugin, {
  createDataEvent, createNotificationEvent, defineEvents, EventPriority, memoryBroker, SSEConnection, SSEError, SSEManager,
  type AuthData, type Broker, type BroadcastOptions, type Catalogue, type ClientInfo, type CloseReason, type Delivery, type EventInput, type EventName, type Notification,
  type ReplySSE, type ResourceName, type ResourcePayload, type Source, type SSEOptions, type SSEUser
} from '../lib/index.js'
import type { ResolvedOptions } from '../lib/options.js'

// Without a registered catalogue; types/registered has one.

const app = fastify()
const request = {} as FastifyRequest
const reply = {} as { sse: ReplySSE }
const connection = {} as SSEConnection

describe('registration', () => {
  test('options', () => {
    expect(app.register).type.toBeCallableWith(ssePlugin)
    expect(app.register).type.toBeCallableWith(ssePlugin, { keepAliveIntervalMs: 1000, history: { maxEvents: 1 }, decorators: { instance: 'live' } })
    expect(app.register).type.not.toBeCallableWith(ssePlugin, { keepAliveInterval: 1000 })
    expect(app.register).type.not.toBeCallableWith(ssePlugin, { keepAlive: 'yes' })
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

test('without Fastify', () => {
  const manager = new SSEManager({ keepAlive: false })
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
