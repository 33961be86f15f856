import { createHook } from 'node:async_hooks'
import { once } from 'node:events'
import { Readable } from 'node:stream'
import { ReadableStream } from 'node:stream/web'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { EventSource, fetch } from 'undici'
import type { Source, SourceFactory } from '../../lib/index.js'
import { block, serve } from '../helpers/app.js'
import { collectAll } from '../helpers/heap.js'
import { blocksOf, dataOf } from '../helpers/raw.js'
import { HIGH_WATER_MARK, raw, start, startSource, waitingAtMost } from '../helpers/reply.js'
import { until } from '../helpers/wait.js'

t.test('every kind of source', async t => {
  const ada = Buffer.from('Ada ☕ Byron')
  const sources: Record<string, { source: () => Source | SourceFactory, data: string[] }> = {
    array: { source: () => ['a', 'b', 'c'], data: ['a', 'b', 'c'] },
    set: { source: () => new Set(['a', 'b']), data: ['a', 'b'] },
    empty: { source: () => [], data: [] },
    generator: { source: () => (function * () { yield 'a'; yield { data: { n: 1 } } })(), data: ['a', '{"n":1}'] },
    'async generator': { source: () => (async function * () { yield 'a'; await sleep(5); yield 'b' })(), data: ['a', 'b'] },
    'async iterable without return': {
      source: () => {
        let n = 0
        return { [Symbol.asyncIterator]: () => ({ next: async () => n < 3 ? { done: false, value: String(n++) } : { done: true, value: undefined } }) } as AsyncIterable<string>
      },
      data: ['0', '1', '2']
    },
    'Node stream of bytes': { source: () => Readable.from([Buffer.from('a'), Buffer.from('b')], { objectMode: false }), data: ['a', 'b'] },
    'Node stream of objects': { source: () => Readable.from([{ data: 'a' }, 'b']), data: ['a', 'b'] },
    'bytes that cut characters': {
      source: () => Array.from(ada, byte => Buffer.of(byte)),
      data: Array.from(ada.toString())
    },
    'bytes that end inside a character': { source: () => [Buffer.from('a'), Buffer.from('b☕').subarray(0, -1)], data: ['a', 'b', '\ufffd'] },
    'strings that cut characters': { source: () => ['a\ud83d', '\ude00b', '', '\ud83d', '', '\ude00\ud83d', '\ude00'], data: ['a', '😀b', '', '😀', '😀'] },
    'web stream of strings': { source: () => new ReadableStream<string>({ start (controller) { controller.enqueue('a'); controller.enqueue('b'); controller.close() } }) as Source, data: ['a', 'b'] },
    'web stream of bytes': { source: () => new Blob(['a ☕']).stream() as unknown as Source, data: ['a ☕'] },
    factory: { source: () => () => ['a'], data: ['a'] },
    'async factory': { source: () => async () => (async function * () { yield 'a' })(), data: ['a'] },
    lines: { source: () => ['one\r\ntwo\rthree\n', ' indented', ''], data: ['one\ntwo\nthree\n', ' indented', ''] }
  }
  const { app, url } = await startSource(t, request => sources[decodeURIComponent((request.query as { kind: string }).kind)]!.source())
  for (const [i, [kind, { data }]] of Object.entries(sources).entries()) {
    const socket = raw(t, `${url}`, { path: `/?kind=${encodeURIComponent(kind)}` })
    const [answer] = await socket.waitForAnswers(1)
    t.strictSame(dataOf(answer!.body), data, kind)
    t.equal(answer!.chunks[0], `: stream keep-alive=15000\n\nretry: ${Math.round(3000 * (1 + i / 32))}\n\n`, `${kind}: head`)
    const last = blocksOf(answer!.body).at(-1)!
    t.strictSame([last.event, last.data], ['sse:close', '{"reason":"source-end","reconnect":false}'], `${kind}: farewell`)
  }
  t.equal(app.sse.stats().closed['source-end'], Object.keys(sources).length)
})

t.test('event objects carry the application\'s own names, ids and retry', async t => {
  const { url } = await startSource(t, () => [
    { event: 'token', data: 'a', id: 'msg 1/3' },
    { data: { b: [1] }, id: '' },
    { event: 'message', data: 'c', retry: 250 }
  ])
  const socket = raw(t, url, {})
  const [answer] = await socket.waitForAnswers(1)
  t.equal(answer!.chunks.slice(1).join(''),
    'id: msg 1/3\nevent: token\ndata: a\n\n' +
    'id: \ndata: {"b":[1]}\n\n' +
    'retry: 250\ndata: c\n\n' +
    'event: sse:close\ndata: {"reason":"source-end","reconnect":false}\n\n')
})

t.test('a client resumes a source by its own ids', async t => {
  const seen: (string | null)[] = []
  const { url } = await startSource(t, () => async function * ({ lastEventId, signal }) {
    seen.push(lastEventId)
    const first = lastEventId === null ? 0 : Number(lastEventId) + 1
    for (let i = first; i < first + 3; i++) yield { id: String(i), data: String(i), retry: 100 }
    if (first >= 6) await once(signal, 'abort')
  })
  const received: string[] = []
  const source = new EventSource(url)
  t.teardown(() => source.close())
  source.onmessage = event => { received.push(event.data as string) }
  await until(() => received.length >= 9)
  t.strictSame(received, ['0', '1', '2', '3', '4', '5', '6', '7', '8'])
  t.strictSame(seen, [null, '2', '5'])

  const header = raw(t, url, { path: '/?lastEventId=40', headers: { 'last-event-id': '20' } })
  await header.waitFor('id: 23')
  const query = raw(t, url, { path: '/?lastEventId=40' })
  await query.waitFor('id: 43')
  t.pass('the header wins over the query')
})

t.test('a source is read no faster than its client reads', async t => {
  const item = 'x'.repeat(16_000)
  const sources: Record<string, (count: () => void) => Source> = {
    'async generator': count => (async function * () { for (;;) { count(); yield item } })(),
    'synchronous generator': count => (function * () { for (;;) { count(); yield item } })(),
    'Node stream': count => new Readable({ read () { count(); this.push(item) } }),
    'web stream': count => new ReadableStream<string>({ pull (controller) { count(); controller.enqueue(item) } }) as Source
  }
  for (const [kind, source] of Object.entries(sources)) {
    await t.test(kind, async t => {
      let made = 0
      const { app, url } = await startSource(t, () => source(() => { made++ }))
      const socket = raw(t, url)
      await once(socket.socket, 'connect')
      socket.socket.pause()
      socket.send({})
      // Stopped: not one more item over ten looks.
      let last = -1
      let quiet = 0
      await until(async () => {
        quiet = made > 0 && made === last ? quiet + 1 : 0
        last = made
        await sleep(10)
        return quiet > 10
      })
      const held = made
      t.ok(held * item.length < 32 * 1024 * 1024, `${held} items made for a client that does not read`)
      const { queuedBytes } = app.sse.stats()
      t.ok(queuedBytes <= waitingAtMost(kind === 'Node stream' ? HIGH_WATER_MARK + item.length : item.length), `${queuedBytes} bytes wait here`)
      socket.socket.resume()
      await until(() => made > held + 300)
      t.equal(app.sse.stats().dropped, 0)
      socket.close()
      await until(() => app.sse.connectionCount === 0)
    })
  }
})

t.test('a slow reader gets every item of a source, in order', async t => {
  const { url } = await startSource(t, () => (function * () {
    for (let i = 0; i < 3000; i++) yield `${i} ${'é'.repeat(i % 7 === 0 ? 5000 : 50)}`
    yield 'last'
  })())
  const socket = raw(t, url, {})
  for (let i = 0; i < 20; i++) {
    await sleep(5)
    if (i % 2 === 0) socket.socket.pause()
    else socket.socket.resume()
  }
  socket.socket.resume()
  const [answer] = await socket.waitForAnswers(1)
  const data = dataOf(answer!.body)
  t.equal(data.length, 3001)
  t.strictSame(data.slice(0, -1).map(text => parseInt(text)), Array.from({ length: 3000 }, (_, i) => i))
  t.ok(data.slice(0, -1).every((text, i) => text.length === `${i} `.length + (i % 7 === 0 ? 5000 : 50)))
})

t.test('an item larger than the outbox is not lost', async t => {
  const large = 'x'.repeat(300_000)
  const { app, url } = await startSource(t, () => ['small', large, 'small', large, large, 'last'], { outboxBytes: 1024 })
  const socket = raw(t, url, {})
  const [answer] = await socket.waitForAnswers(1)
  t.strictSame(dataOf(answer!.body).map(text => text.length), [5, 300_000, 5, 300_000, 300_000, 4])
  t.equal(app.sse.stats().dropped, 0)
})

t.test('the first item of a turn is written at once, and the others of it together', async t => {
  const written: number[] = []
  const { url } = await startSource(t, request => (async function * () {
    const { socket } = request.raw
    // An item has been written, or not, when the next one is asked for.
    const measure = () => { written.push(socket.bytesWritten) }
    measure()
    for (const item of ['a', 'b', 'c']) {
      yield item
      measure()
    }
    await new Promise(resolve => setImmediate(resolve))
    measure()
  })())
  const socket = raw(t, url, {})
  const [answer] = await socket.waitForAnswers(1)
  t.strictSame(answer!.chunks.slice(1, 3), ['data: a\n\n', 'data: b\n\ndata: c\n\n'])
  const [start, first, second, third, end] = written as [number, number, number, number, number]
  t.ok(first > start, 'the first item')
  t.equal(second, first)
  t.equal(third, first)
  t.ok(end > third, 'at the end of the turn')
})

t.test('an item costs no promise beside that of the source', async t => {
  let promises = 0
  const hook = createHook({ init (id, type) { if (type === 'PROMISE') promises++ } }).enable()
  t.teardown(() => hook.disable())
  const counts: Record<string, number[]> = { sync: [], async: [] }
  const { url } = await startSource(t, request => {
    const mine = counts[request.url.slice(2)]!
    if (request.url === '/?sync') return (function * () { for (let i = 0; i < 100; i++) { mine.push(promises); yield 'x' } })()
    let items = 0
    return { [Symbol.asyncIterator]: () => ({ next: () => { mine.push(promises); return Promise.resolve({ done: items === 100, value: String(items++) }) } }) } as AsyncIterable<string>
  })
  for (const kind of Object.keys(counts)) await raw(t, url, { path: `/?${kind}` }).waitForAnswers(1)
  // All items of an array are read in one turn; promises between two reads of the other source are its own and that of its callback.
  t.equal(counts.sync!.at(-1)! - counts.sync![0]!, 0)
  t.ok(Math.min(...counts.async!.slice(1).map((count, i) => count - counts.async![i]!)) <= 2)
})

t.test('a source that ends its own stream is stopped', async t => {
  let stopped = 0
  const { app, url } = await start(t, app => {
    app.get('/', (request, reply) => reply.sse((function * () {
      try {
        yield 'a'
        // The stream ends while the generator runs.
        reply.raw.emit('close')
        yield 'b'
      } finally {
        stopped++
      }
    })()))
  })
  raw(t, url, {})
  await until(() => stopped === 1)
  t.equal(app.sse.connectionCount, 0)
})

t.test('an endless synchronous generator leaves the event loop to others', async t => {
  const { app, url } = await start(t, app => {
    app.get('/endless', (request, reply) => reply.sse((function * () { for (let i = 0; ; i++) yield String(i) })()))
    app.get('/ping', async () => 'pong')
  })
  const socket = raw(t, url, { path: '/endless' })
  await socket.waitFor('data: 5000\n')
  for (let i = 0; i < 5; i++) {
    const before = socket.length
    t.equal(await (await fetch(`${url}/ping`)).text(), 'pong')
    await until(() => socket.length > before)
  }
  socket.close()
  await until(() => app.sse.connectionCount === 0)
})

t.test('a long stream leaves nothing behind for each item', async t => {
  let resume: (() => void) | null = null
  const pause = () => new Promise<void>(resolve => { resume = resolve })
  const { url } = await startSource(t, () => (async function * () {
    for (let i = 0; i < 20_000; i++) yield 'warm'
    await pause()
    for (let i = 0; i < 100_000; i++) yield 'x'
    await pause()
  })())
  const socket = raw(t, url, {})
  socket.socket.removeAllListeners('data')
  socket.socket.resume()
  const paused = async () => {
    await until(() => resume !== null, 120_000)
    const go = resume!
    resume = null
    return go
  }
  const start = await paused()
  const before = await collectAll()
  start()
  const end = await paused()
  const grown = await collectAll() - before
  t.ok(grown < 4_000_000, `${grown} bytes more after 100,000 items`)
  end()
})

t.test('a client that stops to read loses no item while other clients fill the memory of all queues', async t => {
  const count = 8_000
  const service = await serve(t, { maxQueuedBytes: 150_000, stallTimeoutMs: 0, drainMs: 100 }, {}, app => {
    app.get('/source', { sse: true }, (_request, reply) => reply.sse(async function * () { for (let i = 0; i < count; i++) yield String(i).padStart(1_000) }))
  })
  const { app: { sse } } = service
  const slow = await service.join('slow')
  await block(slow)
  while (sse.stats().dropped === 0) slow.connection.sendEvent({ data: 'x'.repeat(20_000) })
  const { dropped } = sse.stats()
  const stream = await service.open('/source')
  stream.freeze()
  // Its socket is full: over ten looks, nothing more was written.
  let last = -1
  let quiet = 0
  await until(async () => {
    const sent = (await sse.listConnections({ userId: null })).connections[0]!.sentEvents
    quiet = sent > 0 && sent === last ? quiet + 1 : 0
    last = sent
    return quiet > 10
  })
  stream.thaw()
  await stream.ended
  t.strictSame(stream.named('message').map(({ data }) => Number(data)), Array.from({ length: count }, (_, i) => i))
  t.equal(sse.stats().dropped, dropped)
})

t.test('a source whose user is authorized again loses no item while the memory of all queues is full', async t => {
  const count = 200
  const service = await serve(t, { maxQueuedBytes: 150_000, stallTimeoutMs: 0, drainMs: 100, authorizeSubscription: () => true }, {}, app => {
    const hold = (i: number): void => { if (i % 3 === 0) app.sse.reauthorize('ada').catch(t.error) }
    app.get('/:kind', { sse: true }, (request, reply) => reply.sse((request.params as { kind: string }).kind === 'sync'
      ? (function * () { for (let i = 0; i < count; i++, hold(i)) yield String(i).padStart(1_000) })()
      : (async function * () { for (let i = 0; i < count; i++, hold(i)) yield String(i).padStart(1_000) })()))
  })
  const slow = await service.join('slow')
  await block(slow)
  const { sse } = service.app
  while (sse.stats().dropped === 0) slow.connection.sendEvent({ data: 'x'.repeat(20_000) })
  const { dropped } = sse.stats()
  for (const kind of ['sync', 'async']) {
    const stream = await service.open(`/${kind}?user=ada`)
    await stream.ended
    t.strictSame(stream.named('message').map(({ data }) => Number(data)), Array.from({ length: count }, (_, i) => i), kind)
  }
  t.equal(sse.stats().dropped, dropped)
})
