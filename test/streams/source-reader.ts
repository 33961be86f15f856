import fc from 'fast-check'
import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { ReadableStream } from 'node:stream/web'
import t from 'tap'
import { readSource, type Sink } from '../../lib/streams/source-reader.js'
import { ItemDecoder } from '../../lib/streams/item-decoder.js'
import { discard, frameOf, isSource, type Result, type Source, type SourceItem } from '../../lib/streams/source.js'
import { listenForTrouble } from '../helpers/trouble.js'
import { turns, until } from '../helpers/wait.js'

/** A source that counts what is asked of it. */
class Counted {
  asked = 0
  stopped = 0
  readonly #next: (n: number) => Result | Promise<Result>
  readonly #stop: () => unknown

  constructor (next: (n: number) => Result | Promise<Result>, stop: () => unknown = () => {}) {
    this.#next = next
    this.#stop = stop
  }

  [Symbol.asyncIterator] () {
    return {
      next: () => this.#next(this.asked++),
      return: () => {
        this.stopped++
        return this.#stop()
      }
    }
  }
}

const asSource = (source: object): Source => source as Source

class Collector implements Sink {
  isOpen = true
  readonly taken: unknown[] = []
  readonly waits: (() => void)[] = []
  readonly take: Sink['take']

  constructor (take: (result: Result) => Promise<unknown> | null = () => null) {
    this.take = result => {
      this.taken.push(result.done === true ? 'end' : result.value)
      return take(result)
    }
  }
}

const after = (count: number) => (n: number): Result => n < count ? { value: n } : { done: true }

t.test('a source is read to its end, one item at a time, and stopped once', async t => {
  for (const wrap of [(result: Result) => result, (result: Result) => Promise.resolve(result)]) {
    for (const isSlow of [false, true]) {
      let waiting = 0
      const source = new Counted(n => wrap(after(600)(n)))
      const sink = new Collector(() => {
        assert.equal(waiting, 0, 'nothing is read while an item waits')
        if (!isSlow) return null
        waiting++
        return new Promise(resolve => { setImmediate(() => { waiting--; resolve(null) }) })
      })
      await readSource(asSource(source), new AbortController().signal, sink)
      t.strictSame(sink.taken, [...Array.from({ length: 600 }, (_, i) => i), 'end'])
      t.strictSame([source.asked, source.stopped, waiting], [601, 1, 0])
    }
  }
})

t.test('a source that never waits leaves the event loop to others after every 256 items', async t => {
  const seen: number[] = []
  const sink = new Collector()
  const done = readSource(asSource((function * () { for (let i = 0; i < 600; i++) yield String(i) })()), new AbortController().signal, sink)
  await Promise.resolve()
  while (sink.taken.at(-1) !== 'end') {
    seen.push(sink.taken.length)
    await turns(1)
  }
  await done
  t.strictSame([...new Set(seen)].filter(count => count > 0), [256, 512])
})

t.test('a stream that ends takes no further item, and stops its source once, whatever it is doing', async t => {
  const cases: Record<string, (end: (sink: Collector) => void) => { source: Counted, take?: (sink: () => Collector) => Promise<unknown> | null, asked: number, taken: number }> = {
    'while an item is awaited': end => ({
      source: new Counted(async n => {
        if (n === 2) {
          await turns(2)
          end(sink)
          await turns(2)
        }
        return { value: n }
      }),
      asked: 3,
      taken: 2
    }),
    'while an item is made': end => ({
      source: new Counted(n => {
        if (n === 2) end(sink)
        return { value: n }
      }),
      asked: 3,
      taken: 2
    }),
    'while the sink makes it wait': end => ({
      source: new Counted(n => ({ value: n })),
      take: () => {
        if (sink.taken.length < 3) return null
        return (async () => {
          await turns(2)
          end(sink)
          await turns(2)
        })()
      },
      asked: 3,
      taken: 3
    }),
    'while the sink takes it': end => ({
      source: new Counted(n => ({ value: n })),
      take: () => {
        if (sink.taken.length === 3) end(sink)
        return null
      },
      asked: 3,
      taken: 3
    }),
    'while its last item waits': end => ({
      source: new Counted(after(2)),
      take: () => {
        if (sink.taken.length < 3) return null
        end(sink)
        return Promise.resolve()
      },
      asked: 3,
      taken: 3
    })
  }
  let sink: Collector
  for (const [name, make] of Object.entries(cases)) {
    for (const how of ['abort', 'close', 'both'] as const) {
      const controller = new AbortController()
      const { source, take, asked, taken } = make(sink => {
        if (how !== 'abort') sink.isOpen = false
        if (how !== 'close') controller.abort()
      })
      sink = new Collector(take as (() => Promise<unknown> | null) | undefined)
      await readSource(asSource(source), controller.signal, sink)
      await turns(6)
      t.equal(source.stopped, 1, `${name}, ${how}`)
      // An abort is heard when the source waits, at the latest after 256 items: the sink says at once that it is closed.
      const isLate = how === 'abort' && (name === 'while an item is made' || name === 'while the sink takes it')
      t.strictSame([source.asked, sink.taken.length], isLate ? [256, 256] : [asked, taken], `${name}, ${how}`)
    }
  }
})

t.test('a failure is that of the source or of the sink; what comes after the end is none', async t => {
  const trouble = listenForTrouble(t)
  const open = () => new AbortController().signal
  const fail = (): never => { throw new Error('mine') }
  const failures: Record<string, [source: () => object, take?: () => Promise<unknown> | null]> = {
    'next throws': [() => new Counted(fail)],
    'next rejects': [() => new Counted(() => Promise.reject(new Error('mine')))],
    'the sink throws': [() => new Counted(after(1)), fail],
    'the sink throws for an item that was awaited': [() => new Counted(async n => after(1)(n)), fail],
    'the sink rejects': [() => new Counted(after(1)), () => Promise.reject(new Error('mine'))],
    'it cannot be stopped either': [() => new Counted(fail, fail)],
    'nor asynchronously': [() => new Counted(fail, () => Promise.reject(new Error('other')))]
  }
  for (const [name, [source, take]] of Object.entries(failures)) {
    const made = source()
    await t.rejects(readSource(asSource(made), open(), new Collector(take)), { message: 'mine' }, name)
    t.equal((made as Counted).stopped, 1, name)
  }
  const controller = new AbortController()
  const source = new Counted(async () => {
    await turns(3)
    return fail()
  }, fail)
  const done = readSource(asSource(source), controller.signal, new Collector())
  await turns(1)
  controller.abort()
  await done
  await turns(6)
  t.equal(source.stopped, 1)
  await t.rejects(readSource(asSource({}), open(), new Collector()), { code: 'SSE_ERR_INVALID_SOURCE' })
  await t.rejects(readSource(Promise.reject(new Error('mine')), open(), new Collector()), { message: 'mine' })
  t.strictSame(trouble, [])
})

t.test('a source that is made too late is stopped unread', async t => {
  const trouble = listenForTrouble(t)
  for (const isAborted of [true, false]) {
    const controller = new AbortController()
    if (isAborted) controller.abort()
    let answer!: (source: Source) => void
    const done = readSource(new Promise<Source>(resolve => { answer = resolve }), controller.signal, new Collector())
    controller.abort()
    await done
    let destroyed = 0
    answer(new Readable({ read () {}, destroy (_error, done) { destroyed++; done(new Error('too late')) } }))
    await until(() => destroyed === 1)
  }
  const controller = new AbortController()
  const done = readSource(Promise.resolve().then(async () => { throw new Error('too late') }), controller.signal, new Collector())
  controller.abort()
  await done.catch(() => {})
  await turns()
  t.strictSame(trouble, [])
})

t.test('a source that was not read is stopped, if it can be', async t => {
  const trouble = listenForTrouble(t)
  let cancelled = 0
  const count = () => { cancelled++ }
  const counted = new Counted(after(1))
  discard(asSource(counted))
  t.strictSame([counted.asked, counted.stopped], [0, 1])
  discard(new ReadableStream({ cancel: count }) as Source)
  t.equal(cancelled, 1)
  const failing = new Readable({ read () {}, destroy (_error, done) { done(new Error('no')) } })
  discard(failing)
  t.equal(failing.destroyed, true)
  const locked = new ReadableStream({ cancel: count })
  locked.getReader()
  discard(locked as Source)
  discard(asSource({}))
  discard(() => { throw new Error('not called') })
  discard(asSource(new Counted(after(1), () => { throw new Error('no') })))
  discard(asSource(new Counted(after(1), () => Promise.reject(new Error('no')))))
  await turns()
  t.equal(cancelled, 1)
  t.strictSame(trouble, [])
})

t.test('what is a source, and how it is read', async t => {
  const reader = () => {
    let n = 0
    return { read: async () => n < 2 ? { done: false, value: String(n++) } : { done: true, value: undefined }, cancel: async () => { n = 9 } }
  }
  const sources: Record<string, object> = {
    // A stream of another realm or library need not be iterable.
    'a web stream without an iterator': { getReader: reader },
    'both iterators: the asynchronous one counts': { async * [Symbol.asyncIterator] () { yield '0'; yield '1' }, * [Symbol.iterator] () { yield 'wrong' } },
    'an iterable with a method of a Node.js stream': { destroy () { throw new Error('no stream') }, on: true, * [Symbol.iterator] () { yield '0'; yield '1' } },
    'another one': { destroy: true, on () { throw new Error('no stream') }, * [Symbol.iterator] () { yield '0'; yield '1' } }
  }
  for (const [name, source] of Object.entries(sources)) {
    t.equal(isSource(source), true, name)
    const sink = new Collector()
    await readSource(asSource(source), new AbortController().signal, sink)
    t.strictSame(sink.taken, ['0', '1', 'end'], name)
  }
  t.strictSame([null, undefined, 'text', 7, {}, { subscriptions: [] }, [], new Set(), () => []].map(isSource), [false, false, false, false, false, false, true, true, true])
})

t.test('items: parts, events, and what is neither', async t => {
  const textOf = (item: unknown) => {
    const frame = frameOf(item as SourceItem, new ItemDecoder())
    return frame === null ? null : frame.head + frame.text
  }
  for (const [item, text] of [
    ['a', 'data: a\n\n'],
    ['', 'data: \n\n'],
    ['\ud83d', null],
    [Buffer.of(0xe2), null],
    [{ type: 'start', data: 1 }, 'data: {"type":"start","data":1}\n\n'],
    [{ data: null }, 'data: null\n\n'],
    [{ event: 'e', data: 'd', id: 'i', retry: 100 }, 'id: i\nevent: e\nretry: 100\ndata: d\n\n'],
    [{ event: undefined, data: 'd', id: undefined, retry: undefined }, 'data: d\n\n']
  ] as const) t.equal(textOf(item), text)
  for (const [item, code, message] of [
    [{ type: 'start', event: 'e', data: 1 }, 'SSE_ERR_INVALID_SOURCE', /an unknown property "type": it yields strings/],
    [{ type: 7, data: 1 }, 'SSE_ERR_INVALID_SOURCE', /an unknown property "type"/],
    [{ type: 7 }, 'SSE_ERR_INVALID_SOURCE', /yielded an object without data: it yields/],
    [['a'], 'SSE_ERR_INVALID_SOURCE', /yielded an array: it yields/],
    [Promise.resolve('a'), 'SSE_ERR_INVALID_SOURCE', /yielded a promise: it yields/],
    [7, 'SSE_ERR_INVALID_SOURCE', /yielded a number: it yields/],
    [{ event: '', data: 1 }, 'SSE_ERR_INVALID_EVENT_NAME', /./],
    [{ data: 1, retry: 99 }, 'SSE_ERR_INVALID_RETRY', /./],
    [{ data: 1, retry: null }, 'SSE_ERR_INVALID_RETRY', /./],
    [{ data: 1, id: 'x'.repeat(1025) }, 'SSE_ERR_INVALID_ID', /./],
    [{ data: undefined }, 'SSE_ERR_INVALID_DATA', /./]
  ] as const) t.throws(() => textOf(item), { code, message })
})

t.test('pieces of texts and of bytes are decoded as the whole, wherever they are cut', async t => {
  const unit = fc.constantFrom('a', '', 'é', '☕', '😀', '👩‍👧')
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(unit, { maxLength: 6 }), fc.boolean(), fc.array(fc.nat(30), { maxLength: 5 }), (units, isText, places) => {
    const whole = units.join('')
    const bytes = Buffer.from(whole)
    const size = isText ? whole.length : bytes.length
    const cuts = [0, ...places.filter(at => at <= size).sort((a, b) => a - b), size]
    const decoder = new ItemDecoder()
    const pieces = cuts.slice(1).map((to, i) => decoder.decode(isText ? whole.slice(cuts[i]!, to) : bytes.subarray(cuts[i]!, to)))
    assert.equal([...pieces, decoder.end()].join(''), whole)
    assert.ok(pieces.every(piece => piece === null || piece.isWellFormed()))
  }), { numRuns: 500 }))
  const cut = new ItemDecoder()
  t.strictSame([cut.decode(Buffer.from('☕').subarray(0, 2)), cut.end(), cut.end()], [null, '\ufffd', null])
  const half = new ItemDecoder()
  t.strictSame([half.decode('\ud83d'), half.end()], [null, '\ud83d'])
})
