import assert from 'node:assert/strict'
import { createParser } from 'eventsource-parser'
import fc from 'fast-check'
import t from 'tap'
import type { Message } from '../lib/events/message.js'
import { Chunk } from '../lib/wire/chunk.js'
import { formatLanes, parseCursor } from '../lib/log/cursor.js'
import { SSEError } from '../lib/errors.js'
import { assertEventName, assertPriority, assertRetry, EventPriority, serialize } from '../lib/events/event.js'
import { encodeControl, encodeComment, encodeRetry, encodeIdBlock, encodeId, encodeEvent } from '../lib/wire/encoding.js'
import { Frame } from '../lib/delivery/frame.js'
import { Batch } from '../lib/delivery/batch.js'
import { gapFrame } from '../lib/connections/control-frames.js'
import { cut, decodeChunked, EventStreamParser } from './helpers/parser.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 400)
fc.configureGlobal({ includeErrorInReport: true })

// --- What the world may throw at an encoder ---

const nasty = fc.constantFrom(
  '\r', '\n', '\r\n', '\n\r', '\r\r\n', '\n\n', '\0', '\uFEFF', '\u2028', '\u2029', '\u0085', '\v', '\f', ' ', '\t', ':', '%s', '%',
  'data: x', 'data', 'id: 1', 'id:', 'event: forged', 'retry: 1', ': comment', '😀', '👩‍👩‍👧', 'é', '\u0301', '\ud83d', '\ude00', '\uffff', 'x', '0', '{"a":1}')
const text = fc.array(fc.oneof(nasty, fc.string({ unit: 'binary', maxLength: 8 })), { maxLength: 12, size: 'max' }).map(parts => parts.join(''))

const thrower = (value: unknown) => () => { throw value }
const cyclic: Record<string, unknown> = {}
cyclic['self'] = cyclic
const unserialisable = fc.constantFrom<unknown>(
  undefined, 10n, { deep: [1n] }, Symbol('s'), () => 1, cyclic, [cyclic],
  { toJSON: thrower(new Error('no')) }, { toJSON: thrower('a string') }, { toJSON: thrower(Object.create(null)) }, { toJSON: thrower(undefined) },
  { toJSON: () => undefined }, { get x () { throw new TypeError('getter') } },
  new Proxy({}, { ownKeys () { throw new Error('proxy') } }))
const serialisable = fc.oneof(fc.jsonValue(), text.map(value => ({ value, [value]: [value] })), fc.constantFrom<unknown>(
  null, NaN, -0, Infinity, true, new Date(0), new Map([[1, 2]]), [undefined], { a: undefined }, { toJSON: () => 'a\r\nb' }, Object.create(null), Object('boxed\nb'), Buffer.from('bytes')))
const data = fc.oneof({ weight: 5, arbitrary: text }, { weight: 3, arbitrary: serialisable }, { weight: 1, arbitrary: unserialisable }, { weight: 1, arbitrary: fc.anything() })
const name = fc.oneof(
  { weight: 4, arbitrary: text },
  { weight: 2, arbitrary: fc.constantFrom('message', 'data', 'notification', ' lead', 'trail ', 'a:b', '%s', 'x'.repeat(256)) },
  { weight: 2, arbitrary: fc.constantFrom<unknown>('', 'open', 'error', 'sse:', 'sse:gap', 'x'.repeat(257), 'a\nb', 'a\rb', 'a\0b', '\ud800', undefined, null, 1, {}, ['a'], Symbol('s'), Object.create(null)) })
const id = fc.oneof(
  { weight: 2, arbitrary: fc.constant(undefined) },
  { weight: 3, arbitrary: fc.constantFrom('', '0', ' 1', '1 ', ':', 'e.1', 'x'.repeat(1024), '~'.repeat(100)) },
  { weight: 2, arbitrary: fc.constantFrom<unknown>('x'.repeat(1025), 'é', '1\n', '1\r', '\0', '1\n\ndata: x', 5, null, {}) },
  { weight: 1, arbitrary: text })
const retry = fc.oneof(
  { weight: 3, arbitrary: fc.constant(undefined) },
  { weight: 2, arbitrary: fc.integer({ min: 100, max: 3_600_000 }) },
  { weight: 1, arbitrary: fc.constantFrom<unknown>(0, -1, 99, 3_600_001, 1.5, NaN, Infinity, '1000', '1\ndata: x', null, 100n, Symbol('s'), Object.create(null), {}) })
const places = fc.array(fc.nat(4096), { maxLength: 6 })

// --- What must be refused, said another way than lib/ says it ---

const has = (value: string, characters: string) => [...characters].some(character => value.includes(character))
const wellFormed = (value: string) => Buffer.from(value, 'utf8').toString('utf8') === value
const validName = (value: unknown) => typeof value === 'string' && value.length >= 1 && value.length <= 256 && !has(value, '\r\n\0') && wellFormed(value) &&
  value !== 'open' && value !== 'error' && value.slice(0, 4) !== 'sse:'
const validId = (value: unknown) => typeof value === 'string' && value.length <= 1024 && [...value].every(character => character >= ' ' && character <= '~')
const validRetry = (value: unknown) => typeof value === 'number' && value >= 100 && value <= 3_600_000 && value % 1 === 0
function textOf (value: unknown): string | undefined {
  if (typeof value === 'string') return wellFormed(value) ? value : undefined
  try {
    return JSON.stringify(value)
  } catch {
    return undefined
  }
}

/** Line ends are the one thing the format cannot keep. */
const normalised = (value: string) => value.replaceAll('\r\n', '\n').replaceAll('\r', '\n')

interface Input { name: unknown, data: unknown, id: unknown, retry: unknown }
interface Read { type: string, data: string, id: string | undefined, retry: number | undefined }

/** The way every event of an application takes to the wire. */
function encode (input: Input): Frame {
  assertEventName(input.name)
  if (input.retry !== undefined) assertRetry(input.retry)
  const body = serialize(input.data)
  return new Frame(input.id === undefined ? '' : encodeId(input.id as string), encodeEvent(input.name, body, input.retry as number | undefined), EventPriority.NORMAL)
}

function expected (input: Input): Read | null {
  const body = textOf(input.data)
  if (!validName(input.name) || body === undefined) return null
  if (input.id !== undefined && !validId(input.id)) return null
  if (input.retry !== undefined && !validRetry(input.retry)) return null
  return { type: input.name as string, data: normalised(body), id: input.id as string | undefined, retry: input.retry as number | undefined }
}

function checkRead (chunks: readonly Uint8Array[], wanted: readonly Read[]): void {
  const parser = new EventStreamParser()
  for (const chunk of chunks) parser.push(chunk)
  let sticky = ''
  assert.deepEqual(parser.events, wanted.map(event => ({ type: event.type, data: event.data, lastEventId: (sticky = event.id ?? sticky) })))
  assert.deepEqual(parser.retries, wanted.flatMap(event => event.retry ?? []))
  assert.deepEqual(parser.comments, [])
  assert.equal(parser.lastEventId, sticky)
  assert.ok(parser.atRest)

  const events: unknown[] = []
  const retries: number[] = []
  const errors: unknown[] = []
  const comments: string[] = []
  const other = createParser({
    onEvent: event => events.push({ type: event.event ?? 'message', data: event.data, id: event.id }),
    onRetry: value => retries.push(value),
    onError: error => errors.push(error),
    onComment: comment => comments.push(comment)
  })
  const decoder = new TextDecoder()
  for (const chunk of chunks) other.feed(decoder.decode(chunk, { stream: true }))
  assert.deepEqual(events, wanted.map(event => ({ type: event.type, data: event.data, id: event.id })))
  assert.deepEqual(retries, wanted.flatMap(event => event.retry ?? []))
  assert.deepEqual(errors, [])
  assert.deepEqual(comments, [])
}

function refused (action: () => unknown): boolean {
  try {
    action()
    return false
  } catch (error) {
    assert.ok(error instanceof SSEError, `not an error of ours: ${String(error)}`)
    assert.match(error.code, /^SSE_ERR_[A-Z_]+$/)
    return true
  }
}

t.test('the parser of these tests', async t => {
  const stream = '\uFEFF: first\nevent: a\ndata: 1\ndata:2\ndata:  3\n\nid: 7\n\ndata\n\nid: 8\nretry: 500\nretry: 5x\nid: 9\0\nunknown: x\ndata: é😀\n\nevent: lost\n\ndata: z\nid\n\ndata: cut'
  const wanted = [
    { type: 'a', data: '1\n2\n 3', lastEventId: '' },
    { type: 'message', data: '', lastEventId: '7' },
    { type: 'message', data: 'é😀', lastEventId: '8' },
    { type: 'message', data: 'z', lastEventId: '' }
  ]
  for (const end of ['\n', '\r', '\r\n']) {
    const bytes = Buffer.from(stream.replaceAll('\n', end))
    const whole = new EventStreamParser().push(bytes)
    t.strictSame(whole.events, wanted, `line ends ${JSON.stringify(end)}`)
    t.strictSame([whole.comments, whole.retries, whole.lastEventId, whole.atRest], [[' first'], [500], '', false])
    const single = new EventStreamParser()
    for (let i = 0; i < bytes.length; i++) single.push(bytes.subarray(i, i + 1))
    t.strictSame(single.events, wanted, 'byte by byte')
    t.doesNotThrow(() => fc.assert(fc.property(places, at => {
      const parser = new EventStreamParser()
      for (const piece of cut(bytes, at)) parser.push(piece)
      assert.deepEqual(parser.events, wanted)
    }), { numRuns: 50 }))
  }
  t.strictSame(new EventStreamParser().push(Buffer.from('\uFEFF\uFEFFdata: 1\n\ndata: \uFEFF2\n\n')).events.map(event => event.data), ['\uFEFF2'], 'one byte order mark only, and only at the start')
})

t.test('a frame is refused with a code, or read back as exactly that one event', async t => {
  let accepted = 0
  let rejected = 0
  t.doesNotThrow(() => fc.assert(fc.property(fc.record({ name, data, id, retry }), places, (input, at) => {
    const wanted = expected(input)
    let frame: Frame | null = null
    assert.equal(refused(() => { frame = encode(input) }), wanted === null)
    if (wanted === null) {
      rejected++
      return
    }
    const { head, text, textBytes } = frame! as Frame
    const wire = Buffer.from(head + text)
    assert.equal(textBytes, wire.length)
    checkRead(cut(wire, at), [wanted])
    accepted++
  }), { numRuns: 5 * RUNS }))
  t.ok(accepted > RUNS / 5 && rejected > RUNS / 5, `both happen: ${accepted} accepted, ${rejected} refused`)
})

t.test('one part at a time: every refusal is that part\'s own', async t => {
  const codes = new Map<string, number>()
  const plain = { name: 'x', data: 'x', id: undefined, retry: undefined }
  for (const [part, arbitrary] of Object.entries({ name, data, id, retry })) {
    t.doesNotThrow(() => fc.assert(fc.property(arbitrary as fc.Arbitrary<unknown>, places, (value, at) => {
      const input = { ...plain, [part]: value }
      const wanted = expected(input)
      try {
        const frame = encode(input)
        assert.ok(wanted !== null, 'refused')
        checkRead(cut(Buffer.from(frame.head + frame.text), at), [wanted])
      } catch (error) {
        if (wanted !== null) throw error
        assert.ok(error instanceof SSEError)
        codes.set(`${part} ${error.code}`, error.statusCode)
      }
    }), { numRuns: RUNS }))
  }
  t.strictSame(Object.fromEntries([...codes].sort()), {
    'data SSE_ERR_INVALID_DATA': 400,
    'id SSE_ERR_INVALID_ID': 400,
    'name SSE_ERR_INVALID_EVENT_NAME': 400,
    'retry SSE_ERR_INVALID_RETRY': 400
  })
})

t.test('frames in a row are read back as that row, through chunks, cut anywhere', async t => {
  const good = fc.record({
    name: fc.oneof(fc.constant('message'), text).filter(validName),
    data: fc.oneof(text, serialisable).filter(value => textOf(value) !== undefined),
    id: id.filter(value => value === undefined || validId(value)),
    retry: retry.filter(value => value === undefined || validRetry(value))
  })
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(good, { minLength: 1, maxLength: 6, size: 'max' }), fc.array(fc.nat(5), { maxLength: 3 }), places, (inputs, breaks, at) => {
    const wanted = inputs.map(input => expected(input)!)
    let batch = new Batch()
    const chunks: Chunk[] = []
    for (const [i, input] of inputs.entries()) {
      batch = batch.with(encode(input))
      if (!breaks.includes(i) && i < inputs.length - 1) continue
      chunks.push(batch.chunk)
      assert.equal(batch.chunk.plain.length, batch.textBytes)
      batch = new Batch()
    }
    const plain = Buffer.concat(chunks.map(chunk => chunk.plain))
    const { body, ended } = decodeChunked(Buffer.concat(chunks.map(chunk => chunk.framed)))
    assert.ok(!ended, 'no chunk may end the body')
    assert.ok(body.equals(plain))
    checkRead(cut(plain, at), wanted)
  }), { numRuns: RUNS }))
})

t.test('a chunk carries its bytes, framed and plain', async t => {
  t.doesNotThrow(() => fc.assert(fc.property(fc.string({ unit: 'binary', minLength: 1 }), fc.nat(70_000), (unit, length) => {
    const value = unit.repeat(Math.max(1, Math.floor(length / unit.length)))
    const chunk = new Chunk(value)
    assert.ok(chunk.plain.equals(Buffer.from(value)))
    assert.ok(decodeChunked(chunk.framed).body.equals(chunk.plain))
    assert.equal(chunk.framed.length, chunk.plain.length + chunk.plain.length.toString(16).length + 4)
  }), { numRuns: 100 }))
})

t.test('a batch is made once for all who were given the same frames', async t => {
  const frame = (data: string, key: string | null = null) => new Frame('', encodeEvent('x', data), EventPriority.NORMAL, 0, key)
  const [a, b, c] = [frame('a'), frame('b'), frame('c')]
  const root = new Batch()
  const first = root.with(a).with(b)
  t.equal(root.with(a).with(b), first)
  t.equal(root.with(a).with(b).chunk, first.chunk)
  const other = root.with(b)
  t.not(other, first)
  t.strictSame(first.frames, [a, b], 'another branch changes nothing')
  t.strictSame(first.with(c).frames, [a, b, c])
  t.equal(first.with(c).count, 3)
  t.equal(first.with(c).textBytes, a.textBytes + b.textBytes + c.textBytes)
  t.strictSame(root.frames, [])
})

const outgoing = { event: 'x', data: '1', priority: EventPriority.NORMAL, target: {}, ephemeral: false }
const read = (chunk: Chunk) => new EventStreamParser().push(chunk.plain).events

t.test('in a batch, the last event of each key and target is kept, in order; a logged one never gives way to an ephemeral one', async t => {
  const message = fc.record({
    key: fc.option(fc.constantFrom('k', 'l'), { nil: undefined }),
    topic: fc.constantFrom('a', 'b'),
    ephemeral: fc.boolean()
  })
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(message, { minLength: 1, maxLength: 12, size: 'max' }), list => {
    const messages: Message[] = list.map(({ key, topic, ephemeral }, i) => ({
      ...outgoing, data: String(i), target: { subscriptionIds: [topic] }, ephemeral, seq: ephemeral ? 0 : i + 1, ...(key !== undefined && { key })
    }))
    let batch = new Batch()
    for (const message of messages) batch = batch.with(Frame.ofMessage(message, 'e'))
    const got = read(batch.chunk).map(event => Number(event.data))
    const replaced = (i: number) => list.some((later, j) => j > i && later.key !== undefined && later.key === list[i]!.key && later.topic === list[i]!.topic && later.ephemeral === list[i]!.ephemeral)
    assert.deepEqual(got, list.map((_, i) => i).filter(i => !replaced(i)))
  }), { numRuns: RUNS }))
})

t.test('a frame of a message: id only when logged, key apart for each audience', async t => {
  const logged = Frame.ofMessage({ ...outgoing, seq: 100, key: 'k' }, 'epoch')
  t.equal(logged.head + logged.text, 'id: epoch.2s\nevent: x\ndata: 1\n\n')
  t.equal(Frame.ofMessage({ ...outgoing, ephemeral: true, seq: 0 }, 'epoch').head, '')
  t.equal(Frame.ofMessage({ ...outgoing, event: 'message', seq: 1, retry: 500 }, 'e').text, 'retry: 500\ndata: 1\n\n')
  const keys = [{}, { userIds: ['a'] }, { userIds: ['a', 'b'] }, { userIds: [] }, { subscriptionIds: ['a'] }, { clientIds: ['a'] }, { exceptClientIds: ['a'] }, { filter: () => true }]
    .flatMap(target => [0, 1].map(seq => Frame.ofMessage({ ...outgoing, target, key: 'k', ephemeral: seq === 0, seq }, 'e').key))
  t.equal(new Set(keys.filter(key => key !== null)).size, 14)
  t.strictSame(keys.slice(-2), [null, null], 'functions cannot be compared: with a filter nothing is replaced')
  t.equal(Frame.ofMessage({ ...outgoing, seq: 2, key: 'k' }, 'e').key, logged.key)
  const gap = gapFrame('trimmed', 'e.1')
  t.strictSame(new EventStreamParser().push(Buffer.from(gap.head + gap.text)).events, [{ type: 'sse:gap', data: '{"reason":"trimmed","lastEventId":"e.1"}', lastEventId: '' }])
})

t.test('a frame knows the bytes of its text, whatever is in it: chunks are framed by them', async t => {
  const message = fc.record({
    event: name.filter(validName) as fc.Arbitrary<string>,
    data: text,
    retry: fc.option(fc.integer({ min: 100, max: 3_600_000 }), { nil: undefined }),
    seq: fc.nat()
  })
  t.doesNotThrow(() => fc.assert(fc.property(message, input => {
    const frame = Frame.ofMessage({ ...outgoing, ...input }, 'epoch')
    assert.equal(frame.textBytes, Buffer.byteLength(frame.head + frame.text))
  }), { numRuns: RUNS }))
})

t.test('the encoder itself refuses what would forge fields, whoever calls it', async t => {
  for (const forged of ['a\nb', 'a\rb', 'a\0b', '\n', 'x\r\n\r\ndata: forged']) {
    t.throws(() => encodeEvent(forged, ''), { code: 'SSE_ERR_INVALID_EVENT_NAME' })
    t.throws(() => encodeId(forged), { code: 'SSE_ERR_INVALID_ID' })
    t.throws(() => encodeIdBlock(forged), { code: 'SSE_ERR_INVALID_ID' })
    t.throws(() => encodeEvent('x', '', forged as unknown as number), { code: 'SSE_ERR_INVALID_RETRY' })
  }
  t.doesNotThrow(() => fc.assert(fc.property(text, text, (reason, lastEventId) => {
    const block = encodeControl('gap', { reason, lastEventId })
    const [event, ...rest] = new EventStreamParser().push(Buffer.from(block)).events
    assert.equal(event!.type, 'sse:gap')
    assert.deepEqual(JSON.parse(event!.data), { reason, lastEventId })
    assert.equal(rest.length, 0)
  }), { numRuns: RUNS }))
})

t.test('comments dispatch nothing and move nothing, whatever is in them', async t => {
  t.doesNotThrow(() => fc.assert(fc.property(text.filter(wellFormed), places, (comment, at) => {
    const parser = new EventStreamParser().push(Buffer.from('id: 5\nretry: 700\n\n'))
    for (const piece of cut(Buffer.from(encodeComment(comment)), at)) parser.push(piece)
    parser.push(Buffer.from('data: next\n\n'))
    assert.deepEqual(parser.events, [{ type: 'message', data: 'next', lastEventId: '5' }])
    assert.deepEqual(parser.retries, [700])
    assert.equal(parser.comments.join('\n'), normalised(comment).split('\n').map(line => ' ' + line).join('\n'))
  }), { numRuns: RUNS }))
})

t.test('blocks without an event: a place, a reconnection time', async t => {
  const parser = new EventStreamParser().push(Buffer.from(encodeIdBlock('e.5') + encodeRetry(1234)))
  t.strictSame([parser.events, parser.lastEventId, parser.retries, parser.atRest], [[], 'e.5', [1234], true])
  for (const good of [100, 101, 3_599_999, 3_600_000]) t.doesNotThrow(() => encodeRetry(good))
  for (const bad of [99, 0, -100, 3_600_001, 100.5, NaN, Infinity, '1000', null, undefined, 100n, {}, Object.create(null), Symbol('s')]) {
    t.throws(() => encodeRetry(bad as number), { code: 'SSE_ERR_INVALID_RETRY' })
  }
  for (const good of [0, 1, 2, 3]) t.doesNotThrow(() => assertPriority(good))
  for (const bad of [-1, 4, 1.5, NaN, '1', null, undefined, {}, Object.create(null), Symbol('s')]) t.throws(() => assertPriority(bad), { code: 'SSE_ERR_INVALID_PRIORITY' })
})

// --- Cursors ---

const FORM = /^[A-Za-z0-9._~-]{1,128}$/
const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-'
const epoch = fc.string({ unit: fc.constantFrom(...LETTERS), minLength: 1, maxLength: 32 })
const seq = fc.oneof(fc.nat(100), fc.constantFrom(0, 1, Number.MAX_SAFE_INTEGER), fc.maxSafeNat())
const lanes = fc.oneof(fc.tuple(seq, seq, seq, seq), seq.map(n => [n, n, n, n]), seq.map(n => [n]))

t.test('a cursor is read back as it was written', async t => {
  t.doesNotThrow(() => fc.assert(fc.property(epoch, lanes, (epoch, lanes) => {
    const text = formatLanes(epoch, lanes)
    assert.match(text, FORM)
    assert.deepEqual(parseCursor(text), { epoch, lanes: lanes.length === 1 ? new Array(4).fill(lanes[0]) : [...lanes] })
    assert.doesNotThrow(() => encodeId(text))
  }), { numRuns: 2 * RUNS }))
  t.equal(formatLanes('k', [100, 100, 100, 100]), formatLanes('k', [100]), 'lanes that are level are written once')
  t.equal(formatLanes('k3f9x2', [100, 100, 108, 108]), 'k3f9x2.2s~2s~30~30')
})

t.test('a cursor is input from a stranger', async t => {
  const hostile = fc.oneof(
    text,
    fc.string({ unit: fc.constantFrom(...LETTERS, '.', '~', '~', '.'), maxLength: 90 }),
    fc.tuple(epoch, lanes, fc.nat(130), nasty).map(([epoch, lanes, at, junk]) => {
      const good = formatLanes(epoch, lanes)
      return good.slice(0, at % (good.length + 1)) + junk + good.slice(at % (good.length + 1))
    }))
  t.doesNotThrow(() => fc.assert(fc.property(hostile, text => {
    const cursor = parseCursor(text)
    if (cursor === null) return
    // What is accepted names one place, in the form we write.
    assert.match(text, FORM)
    assert.ok(cursor.lanes.length === 4 && cursor.lanes.every(seq => Number.isSafeInteger(seq) && seq >= 0))
    assert.match(cursor.epoch, /^[A-Za-z0-9_-]{1,32}$/)
    assert.deepEqual(parseCursor(formatLanes(cursor.epoch, cursor.lanes)), cursor)
  }), { numRuns: 3 * RUNS }))
  for (const bad of [
    '', '.', 'e', 'e.', '.1', 'e.1.2', 'e.~', 'e.1~', 'e.~1', 'e.1~2', 'e.1~2~3', 'e.1~2~3~4~5', 'e.-1', 'e.+1', 'e.1e3 ', ' e.1', 'e.1\n', '\ne.1', 'e.1\0', 'e .1',
    'e.A', 'e.1~B~1~1', 'e.zzzzzzzzzzz', 'e.2gosa7pa2gw', 'e.1~1~1~2gosa7pa2gw', 'e.000000000001', 'é.1', 'e.１', 'e.NaN', 'e.Infinity', `${'e'.repeat(33)}.1`,
    '__proto__', '12345', '0', '-1', '../../etc/passwd', 'e.1,e.2', '1700000000000-0', '[object Object]', 'undefined', 'e.' + '1~'.repeat(100_000), '1'.repeat(1_000_000)
  ]) t.equal(parseCursor(bad), null, JSON.stringify(bad.slice(0, 40)))
  t.strictSame(parseCursor('e.2gosa7pa2gv')!.lanes, new Array(4).fill(Number.MAX_SAFE_INTEGER), 'the last number that is exact')
})
