import { createParser } from 'eventsource-parser'
import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { Batch } from '../../lib/delivery/batch.js'
import { Frame } from '../../lib/delivery/frame.js'
import { SSEError } from '../../lib/errors.js'
import { assertEventName, assertPriority, assertRetry, EventPriority, serialize } from '../../lib/events/event-rules.js'
import { Chunk } from '../../lib/wire/chunk.js'
import { encodeComment, encodeControl, encodeEvent, encodeId, encodeIdBlock, encodeRetry } from '../../lib/wire/event-stream.js'
import { cut, decodeChunked, EventStreamParser } from '../helpers/parser.js'
import { name, text, validName, wellFormed } from './arbitraries.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 400)
fc.configureGlobal({ includeErrorInReport: true })

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
