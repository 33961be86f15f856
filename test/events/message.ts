import fc from 'fast-check'
import assert from 'node:assert/strict'
import { runInNewContext } from 'node:vm'
import t from 'tap'
import { createDataEvent, createNotificationEvent, EventPriority, type BroadcastOptions, type EventInput } from '../../lib/index.js'
import { assertEventSize } from '../../lib/events/event-rules.js'
import { bytesOf, composeMessage, conflationKey, type OutgoingMessage } from '../../lib/events/message.js'
import { assertId, bytesOfIds, bytesOfTarget, createTarget, type Target } from '../../lib/events/target.js'
import { bytesOfText } from '../../lib/util/text.js'
import { encodeEvent } from '../../lib/wire/event-stream.js'
import { text } from '../wire/arbitraries.js'
import { collectAll } from '../helpers/heap.js'

fc.configureGlobal({ includeErrorInReport: true })

const LISTS = ['userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds'] as const
const compose = (input: EventInput, options: BroadcastOptions = {}, maxEventBytes = 1_000) => composeMessage(input, options, { maxEventBytes })

t.test('a message has what the event says, and what the options of the broadcast say instead', async t => {
  const plain = { event: 'message', data: '1', priority: 1, retry: undefined, key: undefined, target: {}, ephemeral: false, seq: 0 }
  const input: EventInput = { event: 'x', data: [1], priority: EventPriority.LOW, retry: 100, key: 'a' }
  const rows: [input: EventInput, options: BroadcastOptions, message: object][] = [
    [{ data: 1 }, {}, plain],
    [{ data: 'text' }, {}, { ...plain, data: 'text' }],
    [input, {}, { ...plain, event: 'x', data: '[1]', priority: 0, retry: 100, key: 'a' }],
    [input, { priority: EventPriority.CRITICAL, retry: 200, key: 'b' }, { ...plain, event: 'x', data: '[1]', priority: 3, retry: 200, key: 'b' }],
    [input, { priority: undefined, retry: undefined, key: undefined }, { ...plain, event: 'x', data: '[1]', priority: 0, retry: 100, key: 'a' }],
    [{ data: 1 }, { ephemeral: true }, { ...plain, ephemeral: true }],
    [{ data: 1 }, { local: true }, { ...plain, ephemeral: true }],
    [{ data: 1 }, { local: true, ephemeral: false }, { ...plain, ephemeral: true }],
    [{ data: 1 }, { local: false, ephemeral: false }, plain],
    [{ data: 1, key: 'k'.repeat(256) }, {}, { ...plain, key: 'k'.repeat(256) }],
    [createDataEvent('r', null), {}, { ...plain, event: 'data', data: '{"resource":"r","data":null}' }],
    [createNotificationEvent({ title: 'T', message: 'M' }), {}, { ...plain, event: 'notification', data: '{"title":"T","message":"M","level":"info"}', priority: 2 }],
    [createNotificationEvent({ title: 'T', message: 'M', level: 'error' }), {}, { ...plain, event: 'notification', data: '{"title":"T","message":"M","level":"error"}', priority: 2 }],
    [{ event: 'notification', data: { title: 'T', message: 'M' } }, {}, { ...plain, event: 'notification', data: '{"title":"T","message":"M","level":"info"}' }],
    [{ event: 'notification', data: { title: 'T', message: 'M', level: undefined } }, {}, { ...plain, event: 'notification', data: '{"title":"T","message":"M","level":"info"}' }],
    [{ event: 'notification', data: { title: 'T', message: 'M', level: 'warning' } }, {}, { ...plain, event: 'notification', data: '{"title":"T","message":"M","level":"warning"}' }]
  ]
  for (const [input, options, message] of rows) t.strictSame(compose(input, options), message)
  t.same(Object.keys(compose({ data: 1 })), Object.keys(compose(input, { ephemeral: true })), 'always of one shape')
})

t.test('a target has copies of its lists; options of another realm, and without a prototype, are options', async t => {
  for (const list of LISTS) {
    const ids = ['a', 'b']
    const target = createTarget({ [list]: ids })
    ids.push('c')
    t.strictSame(target, { [list]: ['a', 'b'] })
    t.strictSame(createTarget({ [list]: [] }), { [list]: [] }, 'nobody is not everybody')
  }
  t.strictSame(createTarget(runInNewContext('({ userIds: ["ada"] })') as BroadcastOptions), { userIds: ['ada'] })
  t.strictSame(createTarget(Object.assign(Object.create(null), { clientIds: ['a'] }) as BroadcastOptions), { clientIds: ['a'] })
  t.throws(() => createTarget(runInNewContext('new (class { userIds = ["ada"] })()') as BroadcastOptions), { code: 'SSE_ERR_INVALID_TARGET' })
  const filter = () => true
  t.match(createTarget({ filter, ephemeral: undefined, local: undefined } as unknown as BroadcastOptions), { filter })
  t.throws(() => createTarget({ usreIds: [] } as BroadcastOptions), { message: 'Target has an unknown property "usreIds": it has userIds, subscriptionIds, clientIds, exceptClientIds, filter, priority, retry, key, ephemeral, local; did you mean "userIds"?' })
  for (const [id, fault] of [['', '""'], [7, '7: use String(id)'], [null, 'null'], [undefined, 'undefined']]) {
    for (const name of ['clientId', 'userId'] as const) t.throws(() => assertId(id, name), { code: 'SSE_ERR_INVALID_TARGET', message: `Target ${name} must be a string that is not empty, got ${fault}` })
  }
  t.doesNotThrow(() => assertId('0', 'userId'))
})

t.test('a newer message replaces an older one only of the same key, kind and target', async t => {
  const long = (name: string) => Array.from({ length: 40 }, (_, i) => `${name}-${i}`)
  const targets: Target[] = [{}, ...LISTS.flatMap(list => [{ [list]: [] }, { [list]: ['a'] }, { [list]: ['a', 'b'] }, { [list]: long('a') }, { [list]: long('b') }])]
  const messages = targets.flatMap(target => ['k', 'l'].flatMap(key => [true, false].map((ephemeral): OutgoingMessage => ({ event: 'x', data: '', priority: 1, key, target, ephemeral }))))
  const keys = messages.map(conflationKey)
  t.equal(new Set(keys).size, messages.length)
  t.ok(keys.every(key => key !== null && key.length <= 128), 'also of a long target')
  t.strictSame(messages.map(message => conflationKey({ ...message, event: 'y', data: 'other', priority: 3, target: { ...message.target } })), keys, 'whatever else is in it')
  t.strictSame([{ key: undefined }, { target: { filter: () => true } }].map(change => conflationKey({ ...messages[0]!, ...change })), [null, null])
})

t.test('the memory of a message is that of its texts, of its target, of its key and of what it is replaced by', async t => {
  const ids = fc.option(fc.array(fc.string({ minLength: 1, unit: 'binary', maxLength: 60 }), { maxLength: 4 }), { nil: undefined })
  const target = fc.record({ userIds: ids, subscriptionIds: ids, clientIds: ids, exceptClientIds: ids, filter: fc.constantFrom(undefined, () => true) }) as fc.Arbitrary<Target>
  const short = fc.string({ unit: 'binary', maxLength: 100 })
  t.doesNotThrow(() => fc.assert(fc.property(target, short, short, fc.option(short, { nil: undefined }), (target, event, data, key) => {
    const message: OutgoingMessage = { event, data, priority: 1, key, target, ephemeral: false }
    const list = LISTS.flatMap(list => target[list] ?? [])
    const sum = (texts: readonly string[]) => texts.reduce((sum, text) => sum + bytesOfText(text), 0)
    assert.equal(bytesOfIds(target), sum(list) + 32 * list.length)
    assert.equal(bytesOfTarget(target), bytesOfIds(target) + (target.filter === undefined ? 0 : 16_384))
    assert.equal(bytesOf(message), sum([event, data, ...(key === undefined ? [] : [key])]) + bytesOfTarget(target) + (conflationKey(message)?.length ?? 0))
  }), { numRuns: 300 }))
})

t.test('the size of an event is exact to the byte: what is encoded, and what is beside it', async t => {
  const fits = (name: string, data: string, besides: number, maxBytes: number) => {
    try {
      assertEventSize(name, data, besides, maxBytes)
      return true
    } catch (error) {
      assert.equal((error as { code: string }).code, 'SSE_ERR_EVENT_TOO_LARGE')
      return false
    }
  }
  const name = fc.constantFrom('message', 'x', 'größe', 'x'.repeat(256))
  const lines = fc.array(fc.constantFrom('\r', '\n', '\r\n', 'a', 'é', '☕', '😀'), { maxLength: 20 }).map(parts => parts.join(''))
  t.doesNotThrow(() => fc.assert(fc.property(name, fc.oneof(lines, fc.constantFrom('\r', '\n').map(end => end.repeat(20)), text.filter(text => text.isWellFormed())), fc.nat(100), (name, data, besides) => {
    const encoded = Buffer.byteLength(encodeEvent(name, data))
    // Field names and line ends that every event has are not counted.
    const bytes = encoded - Buffer.byteLength(`data: ${'\n\n'}`) - (name === 'message' ? 0 : Buffer.byteLength('event: \n')) + besides
    assert.deepEqual([bytes - 1, bytes, bytes + 1].map(maxBytes => fits(name, data, besides, maxBytes)), [false, true, true])
  }), { numRuns: 1_000 }))

  // The key and the ids of the target are beside it.
  const input: EventInput = { event: 'é', data: 'a\nb', key: 'é', }
  const options: BroadcastOptions = { userIds: ['ada'], exceptClientIds: ['x'] }
  const bytes = 2 + 3 + 6 + 2 + (32 + 3) + (32 + 1)
  t.doesNotThrow(() => compose(input, options, bytes))
  t.throws(() => compose(input, options, bytes - 1), { code: 'SSE_ERR_EVENT_TOO_LARGE', message: `The event has ${bytes} bytes with its key and target; maxEventBytes is ${bytes - 1}` })
  t.doesNotThrow(() => compose({ data: 'x'.repeat(bytes) }, {}, bytes), 'a message without a name has none')
})

t.test('a message keeps nothing of the texts that its own were cut from', async t => {
  const cut = (i: number, what: string) => `${i} ${what} ${'x'.repeat(200_000)}`.slice(0, 64)
  for (const [what, make] of Object.entries({
    event: (i: number) => compose({ event: cut(i, 'event'), data: 1 }),
    data: (i: number) => compose({ data: cut(i, 'data') }),
    key: (i: number) => compose({ data: 1, key: cut(i, 'key') }),
    userIds: (i: number) => compose({ data: 1 }, { userIds: [cut(i, 'user')] })
  })) {
    const kept = [make(0)]
    const before = await collectAll()
    for (let i = 1; i <= 20; i++) kept.push(make(i))
    const grown = await collectAll() - before
    t.ok(grown < 400_000, `${grown} bytes for 20 messages with their ${what}, where all would be 4 MB`)
    t.equal(kept.length, 21)
  }
})
