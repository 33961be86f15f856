import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { Chunk, ChunkMemo, TEXT_ENCODING } from '../../lib/wire/chunk.js'
import { decodeChunked } from '../helpers/parser.js'

fc.configureGlobal({ includeErrorInReport: true })

t.test('a chunk carries its bytes, framed and plain', async t => {
  t.doesNotThrow(() => fc.assert(fc.property(fc.string({ unit: 'binary', minLength: 1 }), fc.nat(70_000), (unit, length) => {
    const value = unit.repeat(Math.max(1, Math.floor(length / unit.length)))
    const chunk = new Chunk(value)
    // As the first socket writes it, and as others do.
    const shared = new Chunk(value)
    for (const text of [shared.forOneMore(), shared.forOneMore()]) assert.ok(Buffer.from(text as string, TEXT_ENCODING).equals(new Chunk(value).framed))
    assert.ok(chunk.plain.equals(Buffer.from(value)))
    assert.ok(decodeChunked(chunk.framed).body.equals(chunk.plain))
    // Text is queued once: for others, it would be converted again.
    const ascii = Buffer.byteLength(value) === value.length
    assert.deepEqual([shared, new Chunk(value)].map(chunk => [typeof chunk.forOneMore(), Buffer.isBuffer(chunk.forOneMore())]), [['object', true], [ascii ? 'string' : 'object', true]])
    assert.ok(Buffer.from(chunk.forOneMore()).equals(chunk.framed), 'also once its bytes were made')
    assert.equal(chunk.bytes, chunk.framed.length, 'the budget counts what is kept')
    assert.equal(chunk.framed.length, chunk.plain.length + chunk.plain.length.toString(16).length + 4)
  }), { numRuns: 100 }))
})

t.test('a memo makes the chunk of a text once, as long as no other text comes between', async t => {
  const memo = new ChunkMemo()
  const first = memo.of('a')
  t.equal(memo.of('a'), first)
  const second = memo.of('b')
  t.strictSame([String(first.plain), String(second.plain), memo.of('b') === second, memo.of('a') === first], ['a', 'b', true, false])
  t.equal(String(memo.of('a').plain), 'a')
  t.equal(String(new ChunkMemo().of('').plain), '', 'also of an empty text')
})
