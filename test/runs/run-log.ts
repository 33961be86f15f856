import fc from 'fast-check'
import t from 'tap'
import { RunLog } from '../../lib/log/run-log.js'
import { PAGE_EVENTS } from '../../lib/log/run-store.js'
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
