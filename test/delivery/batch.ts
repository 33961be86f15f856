import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { Batch } from '../../lib/delivery/batch.js'
import { Frame, FRAME_BYTES } from '../../lib/delivery/frame.js'
import { EventPriority } from '../../lib/events/event-rules.js'
import type { Message } from '../../lib/events/message.js'
import { Chunk } from '../../lib/wire/chunk.js'
import { encodeEvent } from '../../lib/wire/event-stream.js'
import { EventStreamParser } from '../helpers/parser.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 400)
fc.configureGlobal({ includeErrorInReport: true })

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

t.test('a batch counts its memory and its events, and lets go of what nobody holds', async t => {
  const frame = (data: string, key: string | null = null) => new Frame('', encodeEvent('x', data), EventPriority.NORMAL, 0, key)
  const [a, b, c] = [frame('a', 'k'), frame('b'), frame('c', 'k')]
  const root = new Batch()
  const chain = () => {
    const one = root.with(a)
    const two = one.with(b)
    return [one, two, two.with(c)] as const
  }
  const [one, two, three] = chain()
  t.equal(root.bytes, 0)
  for (const [batch, frames] of [[one, [a]], [two, [a, b]], [three, [a, b, c]]] as const) {
    const least = frames.reduce((sum, { bytes }) => sum + bytes + FRAME_BYTES, 0)
    t.ok(batch.bytes > least && batch.bytes < least + 500 * frames.length, 'frames, their objects and its own')
  }
  t.equal(three.events, 3)
  t.equal(three.chunk.plain.toString(), b.text + c.text)
  t.equal(three.events, 2, 'the event with the same key is not sent')

  // Held further up: only what is below goes.
  one.holders = 1
  three.prune()
  t.equal(root.with(a), one)
  t.not(one.with(b), two)
  // Another connection had other frames meanwhile: what it holds stays.
  const other = root.with(b)
  one.holders = 0
  one.prune()
  t.equal(root.with(b), other)
  const [begin, , end] = chain()
  end.prune()
  t.not(root.with(a), begin, 'all of it, if nobody holds any')
})
