import { Type } from '@sinclair/typebox'
import { expect, test } from 'tstyche'
import { defineEvents, type ReplySSE, type SharedSnapshotQuestion, type SSEManager } from '../../lib/index.js'
import type { HttpRequest, HttpResponse } from '../../lib/wire/http.js'

// With `strict` alone, as most applications have it, and a registered catalogue.

export const events = defineEvents({ events: { inbox: Type.Object({ unread: Type.Number() }) } })

declare module '../../lib/index.js' {
  interface Register { catalogue: typeof events }
}

const { sse } = {} as { sse: ReplySSE }
const manager = {} as SSEManager
const on = {} as { request: HttpRequest, response: HttpResponse }

test('a snapshot where it is used', () => {
  sse({
    snapshot: {
      load: async ({ subscriptions, reason }) => {
        expect(subscriptions).type.toBe<readonly string[]>()
        expect(reason).type.toBe<'connect' | 'gap' | 'added'>()
        return { event: 'inbox', data: { unread: subscriptions.length } }
      }
    }
  })
  sse({ snapshot: { load: async () => ({ event: 'inbox', data: { unread: 1 } }) } })
  sse({ snapshot: { load: () => [{ event: 'inbox', data: { unread: 1 } }] } })
  sse({
    snapshot: {
      key: 'all',
      load: async question => {
        expect(question).type.toBe<SharedSnapshotQuestion>()
        return { event: 'inbox', data: { unread: 1 } }
      }
    }
  })
  manager.createConnection({ ...on, snapshot: { load: async ({ connection }) => ({ event: 'inbox', data: { unread: connection.held.size } }) } })
  expect(sse).type.not.toBeCallableWith({ snapshot: { load: async () => ({ event: 'unknown', data: 1 }) } })
  expect(sse).type.not.toBeCallableWith({ snapshot: { load: async () => ({ event: 'inbox', data: { unread: '1' } }) } })
  expect(sse).type.not.toBeCallableWith({ subscription: ['news'] })
})

test('sources have events of their own', () => {
  expect(sse).type.toBeCallableWith(async function * () { yield { event: 'token', data: 'a' } })
  sse(async function * ({ signal }) {
    expect(signal).type.toBe<AbortSignal>()
    yield 'a'
  })
  expect(sse([{ event: 'token', data: 'a' }])).type.toBe<Promise<void>>()
})
