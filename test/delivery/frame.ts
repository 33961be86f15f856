import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { gapFrame } from '../../lib/connections/control-frames.js'
import { Frame } from '../../lib/delivery/frame.js'
import { EventPriority } from '../../lib/events/event-rules.js'
import { bytesOfTarget } from '../../lib/events/target.js'
import { EventStreamParser } from '../helpers/parser.js'
import { name, text, validName } from '../wire/arbitraries.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 400)
fc.configureGlobal({ includeErrorInReport: true })

const outgoing = { event: 'x', data: '1', priority: EventPriority.NORMAL, target: {}, ephemeral: false }

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

t.test('a frame knows its memory: head, text, key and target, each once', async t => {
  const target = { userIds: ['ada'] }
  const bytes = (...args: ConstructorParameters<typeof Frame>) => new Frame(...args).bytes
  const { NORMAL } = EventPriority
  const empty = bytes('', '', NORMAL)
  t.equal(empty, 0)
  t.equal(bytes('id: a.1\n', '', NORMAL), 8)
  t.equal(bytes('', 'data: 12\n\n', NORMAL), 10)
  t.equal(bytes('', 'é', NORMAL), 2)
  t.equal(bytes('', '', NORMAL, 7, 'key'), 3)
  t.equal(bytes('', '', NORMAL, 7, null, target), bytesOfTarget(target))
  t.ok(bytesOfTarget(target) > 3)
  t.equal(bytes('id: a.1\n', 'data: 12\n\n', NORMAL, 7, 'key', target), 8 + 10 + 3 + bytesOfTarget(target))
})

t.test('a copy with a text of its own is the same frame', async t => {
  for (const seq of [0, 7]) {
    const message = { ...outgoing, event: 'name', data: 'é'.repeat(100), priority: EventPriority.HIGH, target: { userIds: ['ada'] }, ephemeral: seq === 0, seq, key: 'k' }
    for (const fromLog of [true, false]) {
      const frame = Frame.ofMessage(message, 'epoch', fromLog)
      const copy = frame.withOwnText()
      t.not(copy, frame)
      t.same({ ...copy }, { ...frame })
      t.match({ ...copy }, { priority: EventPriority.HIGH, seq, fromLog, textBytes: Buffer.byteLength(frame.head + frame.text) })
      t.equal(copy.target, frame.target)
      t.ok(copy.key !== null && copy.bytes > frame.textBytes)
    }
    t.equal(Frame.ofMessage(message, 'epoch').fromLog, seq > 0)
  }
})
