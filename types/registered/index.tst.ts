import { Type } from '@sinclair/typebox'
import { expect, test } from 'tstyche'
import type { SSEClient } from '../../lib/client/index.js'
import { createDataEvent, defineEvents, EventPriority, type EventInput, type EventName, type ResourceName, type ResourcePayload, type SSEConnection, type SSEManager, type SSEOptions, type SSEPublisher, type SSEUser, type TicketGrant } from '../../lib/index.js'

// With a registered catalogue. The registration holds for a whole program, so these tests have one of their own.

export const events = defineEvents({
  events: { chat_message: Type.Object({ room: Type.String(), text: Type.String() }), message: Type.Number() },
  resources: { messages: Type.Object({ text: Type.String() }), rooms: Type.Array(Type.String()) }
})

declare module '../../lib/index.js' {
  interface Register {
    catalogue: typeof events
    claims: { role: 'admin' | 'guest' }
  }
}

const sse = {} as SSEManager
const connection = {} as SSEConnection
const publisher = {} as SSEPublisher

test('names come from the catalogue', () => {
  expect<EventName>().type.toBe<'chat_message' | 'message' | 'data' | 'notification'>()
  expect<ResourceName>().type.toBe<'messages' | 'rooms'>()
  expect<ResourcePayload<'messages'>>().type.toBe<{ text: string }>()
  expect<ResourcePayload<'rooms'>>().type.toBe<string[]>()
})

test('resources', () => {
  expect(sse.broadcastData).type.toBeCallableWith('messages', { text: 'a' })
  expect(sse.broadcastData).type.toBeCallableWith('rooms', ['a'])
  expect(sse.broadcastData).type.not.toBeCallableWith('rooms', { text: 'a' })
  expect(sse.broadcastData).type.not.toBeCallableWith('messages', { text: 1 })
  expect(sse.broadcastData).type.not.toBeCallableWith('messages', {})
  expect(sse.broadcastData).type.not.toBeCallableWith('unknown', {})
  expect(publisher.broadcastData).type.toBeCallableWith('rooms', ['a'], { userIds: ['ada'] })
  expect(publisher.broadcastData).type.not.toBeCallableWith('unknown', {})
  expect(sse.broadcastData).type.not.toBeCallableWith('messages', { text: 'a', more: 1 })
  expect(connection.sendData).type.toBeCallableWith('rooms', ['a'])
  expect(connection.sendData).type.not.toBeCallableWith('messages', { text: 1 })
  expect(connection.sendData).type.not.toBeCallableWith('unknown', {})
  expect(createDataEvent).type.toBeCallableWith('rooms', ['a'])
  expect(createDataEvent).type.not.toBeCallableWith('messages', { text: 1 })
  expect(createDataEvent).type.not.toBeCallableWith('unknown', {})
})

test('events', () => {
  for (const send of [sse.broadcastEvent, connection.sendEvent]) {
    expect(send).type.toBeCallableWith({ event: 'chat_message', data: { room: 'a', text: 'b' }, priority: EventPriority.HIGH, key: 'k' })
    expect(send).type.not.toBeCallableWith({ event: 'chat_message', data: { room: 'a' } })
    expect(send).type.not.toBeCallableWith({ event: 'chat_massage', data: { room: 'a', text: 'b' } })
    expect(send).type.not.toBeCallableWith({ event: 'chat_message' })
    // The nameless event is `message`.
    expect(send).type.toBeCallableWith({ data: 1 })
    expect(send).type.toBeCallableWith({ event: 'message', data: 1 })
    expect(send).type.not.toBeCallableWith({ data: 'text' })
  }
  expect(sse.broadcastToUsers).type.toBeCallableWith({ data: 1 }, ['1'])
  expect(sse.broadcastToUsers).type.not.toBeCallableWith({ event: 'unknown', data: 1 }, ['1'])
  expect(sse.broadcastToSubscriptions).type.not.toBeCallableWith({ event: 'unknown', data: 1 }, ['a'])
})

test('the built-in events', () => {
  expect<EventInput>().type.toBeAssignableFrom<{ event: 'data', data: { resource: 'rooms', data: string[] } }>()
  expect<EventInput>().type.not.toBeAssignableFrom<{ event: 'data', data: { resource: 'messages', data: string[] } }>()
  expect<EventInput>().type.not.toBeAssignableFrom<{ event: 'data', data: { resource: 'unknown', data: string[] } }>()
  expect<EventInput>().type.toBeAssignableFrom<{ event: 'notification', data: { title: string, message: string, level: 'error' } }>()
  expect<EventInput>().type.not.toBeAssignableFrom<{ event: 'notification', data: { title: string } }>()
  expect(sse.broadcastNotification).type.toBeCallableWith({ title: 'a', message: 'b' })
})

test('claims', () => {
  type Claims = { role: 'admin' | 'guest' }
  expect<NonNullable<SSEUser['claims']>>().type.toBe<Claims>()
  expect<NonNullable<TicketGrant['claims']>>().type.toBe<Claims>()
  expect(connection.claims).type.toBe<Claims | undefined>()
  expect<SSEOptions>().type.toBeAssignableFrom<{ authHandler: () => { userId: string, claims: Claims } }>()
  expect<SSEOptions>().type.toBeAssignableFrom<{ authHandler: () => string }>()
  expect<SSEOptions>().type.not.toBeAssignableFrom<{ authHandler: () => { userId: string, claims: { role: string } } }>()
  expect<SSEOptions>().type.toBeAssignableFrom<{ authorizeTopic: (question: { claims: Claims | undefined }) => boolean }>()
})

test('the client', () => {
  const client = {} as SSEClient
  client.on('chat_message', data => { expect(data).type.toBe<{ room: string, text: string }>() })
  client.onData('rooms', data => { expect(data).type.toBe<string[]>() })
  expect(client.on).type.not.toBeCallableWith('unknown', () => {})
  expect(client.onData).type.not.toBeCallableWith('unknown', () => {})
})
