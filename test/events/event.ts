import { Type } from '@sinclair/typebox'
import t from 'tap'
import { createNotificationEvent, defineEvents, type EventInput, type SSEOptions } from '../../lib/index.js'
import { isApplicationEvent, serve, settleUnlogged } from '../helpers/app.js'
import type { TestStream } from '../../lib/testing/index.js'

// What a broadcast is, who gets it and what it looks like on the wire; seen by clients on real connections.

/** Names of the events a client has had, in order. */
const seen = (stream: TestStream) => stream.events.filter(isApplicationEvent).filter(({ event }) => event !== 'settled' && event !== 'filler').map(({ event }) => event)

const catalogue = defineEvents({
  events: { chat: Type.Object({ text: Type.String({ maxLength: 10 }), tags: Type.Array(Type.Integer()) }, { additionalProperties: false }) },
  resources: { orders: Type.Object({ id: Type.Integer() }) }
})

t.test('what cannot be sent is refused, and nothing is sent or logged', async t => {
  const cyclic: Record<string, unknown> = {}
  cyclic.self = cyclic
  const ok: EventInput = { event: 'x', data: 1 }
  type Case = [code: string, event: unknown, options?: unknown, message?: RegExp]
  const plain: Case[] = [
    ['SSE_ERR_INVALID_EVENT_NAME', { event: '', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'a\nb', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'a\rb', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'a\0b', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'open', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'error', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'sse:close', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: '\ud800', data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 'x'.repeat(257), data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: 7, data: 1 }],
    ['SSE_ERR_INVALID_EVENT_NAME', { event: null, data: 1 }],
    ['SSE_ERR_INVALID_ID', { ...ok, id: '5' }, {}, /is assigned by the log/],
    ['SSE_ERR_INVALID_ID', { ...ok, id: undefined }],
    ['SSE_ERR_INVALID_KEY', { ...ok, key: '' }],
    ['SSE_ERR_INVALID_KEY', { ...ok, key: 'x'.repeat(257) }],
    ['SSE_ERR_INVALID_KEY', { ...ok, key: 7 }],
    ['SSE_ERR_INVALID_KEY', ok, { key: '' }],
    ['SSE_ERR_INVALID_EVENT', null],
    ['SSE_ERR_INVALID_EVENT', 'x', {}, /must be an object .*, got a string$/],
    ['SSE_ERR_INVALID_EVENT', [1], {}, /must be an object .*, got an array$/],
    ['SSE_ERR_INVALID_EVENT', { evnt: 'x', data: 1 }],
    ['SSE_ERR_INVALID_EVENT', { orders: [] }, {}, /has no data, but "orders": write { event: "orders", data: … }, also around a list that snapshot.load returns$/],
    ['SSE_ERR_INVALID_EVENT', { id: 1, item: 'tea' }, {}, /has no data, but "id"/],
    ['SSE_ERR_INVALID_EVENT', { ...ok, userIds: ['ada'] }, {}, /unknown property "userIds": it has event, data, priority, retry, key; receivers belong in the options of the broadcast$/],
    ['SSE_ERR_INVALID_PRIORITY', { ...ok, priority: 4 }],
    ['SSE_ERR_INVALID_PRIORITY', { ...ok, priority: -1 }],
    ['SSE_ERR_INVALID_PRIORITY', { ...ok, priority: 1.5 }],
    ['SSE_ERR_INVALID_PRIORITY', { ...ok, priority: 'HIGH' }],
    ['SSE_ERR_INVALID_PRIORITY', { ...ok, priority: null }],
    ['SSE_ERR_INVALID_PRIORITY', ok, { priority: 9 }],
    ['SSE_ERR_INVALID_RETRY', { ...ok, retry: 0 }],
    ['SSE_ERR_INVALID_RETRY', { ...ok, retry: 99 }],
    ['SSE_ERR_INVALID_RETRY', { ...ok, retry: 3_600_001 }],
    ['SSE_ERR_INVALID_RETRY', { ...ok, retry: 1000.5 }],
    ['SSE_ERR_INVALID_RETRY', { ...ok, retry: '1000' }],
    ['SSE_ERR_INVALID_RETRY', ok, { retry: NaN }],
    ['SSE_ERR_INVALID_DATA', { event: 'x' }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: undefined }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: () => {} }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: Symbol('s') }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: Promise.resolve(1) }],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: 'r', data: Promise.resolve(1) } }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: 1n }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: cyclic }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: { toJSON () { throw new Error('no') } } }],
    ['SSE_ERR_INVALID_DATA', { event: 'x', data: 'a\ud800' }],
    ['SSE_ERR_EVENT_TOO_LARGE', { event: 'x', data: 'x'.repeat(1000) }],
    ['SSE_ERR_EVENT_TOO_LARGE', { event: 'x', data: 'é'.repeat(501) }, {}, /has 1003 bytes with its key and target; maxEventBytes is 1000/],
    ['SSE_ERR_EVENT_TOO_LARGE', { event: 'x', data: { text: 'x'.repeat(990) } }],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: { title: 'a' } }, {}, /"notification" is invalid at \/message: /],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: { title: 'a', message: 'b', level: 'fatal' } }, {}, /\/level: Expected one of "info", "success", "warning", "error"$/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: { title: 'a', message: 'b', extra: 1 } }, {}, /\/extra/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: { title: 'a', message: 'b', actions: ['x'] } }, {}, /\/actions\/0/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: 'text' }, {}, /is invalid at \/: Expected { title, message, level, actions }, got a string$/],
    ['SSE_ERR_INVALID_PAYLOAD', createNotificationEvent('text' as never), {}, /got a string$/],
    ['SSE_ERR_INVALID_PAYLOAD', createNotificationEvent(Promise.resolve() as never), {}, /is a promise: await it first$/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { data: 1 } }, {}, /\/resource/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: '', data: 1 } }, {}, /\/resource/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: 'a' } }, {}, /\/data/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: 'a', data: undefined } }, {}, /\/data/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: 'a', data: () => {} } }, {}, /\/data/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: null }],
    ...(['userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds'] as const).flatMap((list): Case[] => [
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: undefined }, new RegExp(`${list} must be an array of strings, got undefined$`)],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: null }],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: 'ada' }],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: ['ada', 7] }, new RegExp(`${list}\\[1\\] must be a string that is not empty, got 7: use String\\(id\\)$`)],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: [''] }],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: ['ada', undefined] }],
      ['SSE_ERR_INVALID_TARGET', ok, { [list]: new Set(['ada']) }]
    ]),
    ['SSE_ERR_INVALID_TARGET', ok, { userId: ['ada'] }, /unknown property "userId": it has .*; did you mean "userIds"\?$/],
    ['SSE_ERR_INVALID_TARGET', ok, { users: ['ada'] }],
    ['SSE_ERR_INVALID_TARGET', ok, { subscriptions: ['a'] }],
    ['SSE_ERR_INVALID_TARGET', ok, { filter: undefined }],
    ['SSE_ERR_INVALID_TARGET', ok, { filter: true }],
    ['SSE_ERR_INVALID_TARGET', ok, { ephemeral: 1 }],
    ['SSE_ERR_INVALID_TARGET', ok, { local: 'yes' }],
    ['SSE_ERR_INVALID_TARGET', ok, null],
    ['SSE_ERR_INVALID_TARGET', ok, 'ada'],
    // All of these have nothing of their own that names anybody.
    ['SSE_ERR_INVALID_TARGET', ok, Promise.resolve({ userIds: ['ada'] })],
    ['SSE_ERR_INVALID_TARGET', ok, []],
    ['SSE_ERR_INVALID_TARGET', ok, new Map([['userIds', ['ada']]])],
    ['SSE_ERR_INVALID_TARGET', ok, Object.create({ userIds: ['ada'] })],
    ['SSE_ERR_INVALID_TARGET', ok, new (class { get userIds () { return ['ada'] } })()],
    ['SSE_ERR_INVALID_TOPIC', ok, { subscriptionIds: ['a:*'] }, /wildcards/],
    ['SSE_ERR_INVALID_TOPIC', ok, { subscriptionIds: ['a', 'b::c'] }],
    ['SSE_ERR_INVALID_TOPIC', ok, { subscriptionIds: ['a b'] }]
  ]
  const typed: Case[] = [
    ['SSE_ERR_UNKNOWN_EVENT', { event: 'caht', data: { text: 'a', tags: [] } }, {}, /"caht" is not in the catalogue; did you mean "chat"\?$/],
    ['SSE_ERR_UNKNOWN_EVENT', { data: 'no name' }, {}, /"message"/],
    ['SSE_ERR_UNKNOWN_EVENT', { event: 'constructor', data: {} }],
    ['SSE_ERR_UNKNOWN_RESOURCE', { event: 'data', data: { resource: 'x'.repeat(1_000_000), data: 1 } }, {}, /^Resource "x{80}…" is not/],
    ['SSE_ERR_UNKNOWN_RESOURCE', { event: 'data', data: { resource: 'order', data: { id: 1 } } }, {}, /"order" is not in the catalogue; did you mean "orders"\?$/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'data', data: { resource: 'orders', data: { id: 1.5 } } }, {}, /"orders" is invalid at \/id: /],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'chat', data: { text: 'a', tags: [1, 'two'] } }, {}, /"chat" is invalid at \/tags\/1: /],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'chat', data: { text: 'far too long', tags: [] } }, {}, /\/text/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'chat', data: { text: 'a', tags: [], more: 1 } }, {}, /\/more/],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'chat', data: null }],
    ['SSE_ERR_INVALID_PAYLOAD', { event: 'notification', data: { title: 1, message: 'b' } }, {}, /\/title/]
  ]
  for (const [name, cases, options, good] of [
    ['without a catalogue', plain, { maxEventBytes: 1000 }, { event: 'x', data: 'x'.repeat(999) }],
    ['with a catalogue', typed, { events: catalogue }, { event: 'chat', data: { text: 'a', tags: [1] } }]
  ] as [string, Case[], SSEOptions, EventInput][]) {
    await t.test(name, async t => {
      const { app, join } = await serve(t, options)
      const { stream, connection } = await join('ada', ['a'])
      const start = stream.lastEventId
      for (const [code, event, options = {}, message] of cases) {
        await t.rejects(app.sse.broadcastEvent(event as EventInput, options as object), { code, ...(message !== undefined && { message }) }, code)
        if (code !== 'SSE_ERR_INVALID_TARGET' && Object.keys(options as object).length === 0) t.throws(() => connection.sendEvent(event as EventInput), { code }, `${code} for one connection`)
      }
      const { id, delivered } = await app.sse.broadcastEvent(good)
      t.equal(delivered, 1)
      await stream.next(good.event!)
      t.equal(stream.events.length, 1, 'nothing was sent')
      t.equal(id, start.replace(/\.0$/, '.1'), 'nothing was logged')
      t.equal(stream.lastEventId, id)
      t.match(app.sse.stats(), { messages: 1, delivered: 1 })
    })
  }

  await t.test('lists left out of the short forms', async t => {
    const { app, join } = await serve(t)
    const { stream } = await join('ada', ['a'])
    await t.rejects(app.sse.broadcastToUsers(ok, undefined as never), { code: 'SSE_ERR_INVALID_TARGET' })
    await t.rejects(app.sse.broadcastToSubscriptions(ok, undefined as never), { code: 'SSE_ERR_INVALID_TARGET' })
    await t.rejects(app.sse.broadcastToUsers(ok, ['ada'], { subscriptionIds: undefined } as never), { code: 'SSE_ERR_INVALID_TARGET' })
    await t.rejects(app.sse.broadcastData('a', undefined), { code: 'SSE_ERR_INVALID_PAYLOAD' })
    await t.rejects(app.sse.broadcastEvent(undefined as never), { code: /^SSE_ERR_/ })
    t.strictSame(await app.sse.broadcastToUsers(ok, []), { id: stream.lastEventId.replace(/\.0$/, '.1'), delivered: 0 }, 'nobody is nobody')
    await settleUnlogged({ app }, stream)
    t.strictSame(seen(stream), [])
  })
})

t.test('with a catalogue what fits arrives, and built-in events too', async t => {
  const service = await serve(t, { events: catalogue })
  const { stream } = await service.join()
  await service.app.sse.broadcastEvent({ event: 'chat', data: { text: 'a', tags: [1, 2] } })
  await service.app.sse.broadcastData('orders', { id: 7, more: true })
  await service.app.sse.broadcastNotification({ title: 'a', message: 'b' })
  await stream.next('notification')
  t.strictSame(stream.events.filter(isApplicationEvent).map(({ event }) => event), ['chat', 'data', 'notification'])
})
