import fc from 'fast-check'
import t from 'tap'
import { RunLog } from '../../lib/log/run-log.js'
import { PAGE_BYTES, PAGE_EVENTS } from '../../lib/log/run-store.js'
import { encodeEvent } from '../../lib/wire/event-stream.js'
import { collectAll } from '../helpers/heap.js'

t.test('events are read back as they were appended, from any number', async t => {
  fc.assert(fc.property(fc.array(fc.tuple(fc.string({ unit: 'binary', maxLength: 40 }), fc.nat(3), fc.boolean()), { maxLength: 60 }), given => {
    const log = new RunLog()
    const texts = given.map(([data, size, pack]) => {
      const text = encodeEvent('message', data.replaceAll('\0', '') + 'é'.repeat(4 ** (size + 3)))
      log.append(text)
      if (pack) log.pack()
      return text
    })
    for (let after = 0; after <= texts.length; after++) {
      const read: string[] = []
      for (let page = log.read(after); page.length > 0; page = log.read(after + read.length)) read.push(...page)
      if (read.join('|') !== texts.slice(after).join('|')) throw new Error(`after ${after}`)
    }
    return log.count === texts.length && log.bytes === Buffer.byteLength(texts.join(''))
  }), { numRuns: 100 })
  t.pass()
})

t.test('a page has a bounded number of events, however short they are', async t => {
  const log = new RunLog()
  for (let n = 0; n < 5_000; n++) log.append(encodeEvent('message', ''))
  for (const pack of [false, true]) {
    if (pack) log.pack()
    for (const after of [0, 1_700, 4_990]) t.equal(log.read(after).length, Math.min(PAGE_EVENTS, 5_000 - after))
  }
})

t.test('an ended log takes little more memory than its bytes', async t => {
  const before = await collectAll()
  const external = process.memoryUsage().arrayBuffers
  const logs: RunLog[] = []
  for (let i = 0; i < 200; i++) {
    const log = new RunLog()
    for (let n = 0; n < 1_000; n++) log.append(encodeEvent('message', `token ${n}`))
    log.pack()
    logs.push(log)
  }
  const taken = await collectAll() - before + process.memoryUsage().arrayBuffers - external
  const bytes = logs.reduce((sum, log) => sum + log.bytes, 0)
  t.ok(taken <= bytes * 1.5 + 200 * 2_000, `${taken} bytes for ${bytes}`)
})

t.test('a page has a bounded size, however large the events are', async t => {
  for (const size of [10, 500, 3_000, PAGE_BYTES - 1, PAGE_BYTES, 3 * PAGE_BYTES]) {
    const log = new RunLog()
    const text = encodeEvent('message', 'x'.repeat(size))
    for (let n = 0; n < 100; n++) log.append(text)
    for (let after = 0; after < 100; after++) {
      const { length } = log.read(after)
      // A page ends with the buffer in which it reaches its size.
      t.ok(length > 0 && (length - 1) * text.length < 2 * PAGE_BYTES, `${length} events of ${text.length} bytes after ${after}`)
    }
    for (const after of [100, 101, 1_000]) t.same(log.read(after), [])
  }
  for (const after of [0, 1]) t.same(new RunLog().read(after), [])
})
