import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { formatLanes, parseCursor } from '../../lib/log/cursor.js'
import { encodeId } from '../../lib/wire/event-stream.js'
import { nasty, text } from '../wire/arbitraries.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 400)
fc.configureGlobal({ includeErrorInReport: true })

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
