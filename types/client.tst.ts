import { Type } from '@sinclair/typebox'
import { expect, test } from 'tstyche'
import { createClient, readEvents, readRun, type AnyEvent, type ClientEvent, type ClientGap, type ClientState, type ControlEvents, type RunEnding, type SSEClient } from '../lib/client/index.js'
import { defineEvents, type GapReason, type Notification } from '../lib/index.js'

export const events = defineEvents({
  events: { chat_message: Type.Object({ room: Type.String(), text: Type.String() }), message: Type.Number() },
  resources: { orders: Type.Array(Type.String()), profile: Type.Object({ name: Type.String() }) }
})

const client = {} as SSEClient<typeof events>
const untyped = {} as SSEClient

test('events of the catalogue', () => {
  expect(createClient<typeof events>('/sse')).type.toBe<SSEClient<typeof events>>()
  client.on('chat_message', (data, event) => {
    expect(data).type.toBe<{ room: string, text: string }>()
    expect(event).type.toBe<ClientEvent<'chat_message', { room: string, text: string }>>()
    expect(data).type.not.toHaveProperty('texts')
  })
  client.on('message', data => { expect(data).type.toBe<number>() })
  expect(client.on).type.not.toBeCallableWith('chat_massage', () => {})
  expect(client.on).type.not.toBeCallableWith('orders', () => {})
  expect(client.on('message', () => {})).type.toBe<() => void>()
})

test('resources and notifications', () => {
  client.onData('orders', (data, event) => {
    expect(data).type.toBe<string[]>()
    expect(event.data.resource).type.toBe<'orders'>()
    expect(event.data.data).type.toBe<string[]>()
  })
  expect(client.onData).type.not.toBeCallableWith('order', () => {})
  expect(client.onData).type.not.toBeCallableWith('chat_message', () => {})
  client.onNotification(notification => { expect(notification).type.toBe<Notification>() })
})

test('loops', async () => {
  for await (const { data } of client.events('chat_message', { maxBuffered: 10 })) expect(data.room).type.toBe<string>()
  expect(client.events).type.not.toBeCallableWith('chat_massage')
  expect(client.events).type.not.toBeCallableWith('chat_message', { max: 1 })
  for await (const event of client.events()) {
    expect(event).type.toBe<AnyEvent<typeof events>>()
    if (event.event === 'chat_message') expect(event.data.text).type.toBe<string>()
    if (event.event === 'sse:gap') expect(event.data).type.toBe<ClientGap>()
    if (event.event === 'data' && event.data.resource === 'profile') expect(event.data.data.name).type.toBe<string>()
  }
})

test('control events are typed', () => {
  client.onGap(gap => { expect(gap.reason).type.toBe<GapReason>() })
  client.onUnsubscribed(({ subscriptionId, reason }) => { expect([subscriptionId, reason]).type.toBe<string[]>() })
  client.onJoin(({ userId }) => { expect(userId).type.toBe<string>() })
  expect<keyof ControlEvents>().type.toBe<'sse:gap' | 'sse:unsubscribed' | 'sse:join' | 'sse:leave'>()
  // Not strings to know: they are no names of `on`.
  expect(client.on).type.not.toBeCallableWith('sse:gap', () => {})
})

test('states', () => {
  const state = client.state
  expect(state).type.toBe<ClientState>()
  expect(state.name).type.toBe<'connecting' | 'open' | 'waiting' | 'closed'>()
  if (state.name === 'waiting') expect(state.retryInMs).type.toBe<number | null>()
  if (state.name === 'closed') expect(state.status).type.toBe<number | undefined>()
  if (state.name === 'open') expect<keyof typeof state>().type.toBe<'name'>()
})

test('without a catalogue any name passes', () => {
  untyped.on('anything', data => { expect(data).type.toBe<any>() })
  untyped.onData('anything', data => { expect(data).type.toBe<any>() })
})

test('options', () => {
  expect(createClient).type.toBeCallableWith('/sse', { subscriptions: ['a'], headers: { authorization: 'Bearer a' }, persist: 'session' })
  expect(createClient).type.toBeCallableWith(new URL('http://localhost'), { headers: async () => null, ticket: ({ signal }: { signal: AbortSignal }) => signal.aborted ? null : 'a', fetch })
  expect(createClient).type.toBeCallableWith('/sse', { lastEventId: undefined, subscriptions: undefined, ticket: undefined, headers: undefined })
  expect(client.setSubscriptions).type.toBeCallableWith(['a'])
  expect(createClient).type.not.toBeCallableWith('/sse', { subscription: ['a'] })
  expect(createClient).type.not.toBeCallableWith('/sse', { persist: 'local' })
  expect(createClient).type.not.toBeCallableWith('/sse', { headers: () => 'Bearer a' })
  expect(readRun).type.toBeCallableWith('/answers/1', { method: 'POST', body: { prompt: 'a' }, signal: new AbortController().signal, onGap: () => {} })
  expect(readRun).type.not.toBeCallableWith('/answers/1', { subscriptions: ['a'] })
  expect(readEvents).type.toBeCallableWith(fetch('/import'))
})

test('runs', async () => {
  const run = readRun('/answers/1')
  for await (const { text } of run) expect(text).type.toBe<string>()
  const result = await run.next()
  if (result.done === true) expect(result.value).type.toBe<RunEnding | undefined>()
})
