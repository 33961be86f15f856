import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import { createServer as createH2Server, type Http2Server } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { getDefaultHighWaterMark, pipeline, Readable, Writable } from 'node:stream'
import { ReadableStream } from 'node:stream/web'
import { setTimeout as sleep } from 'node:timers/promises'
import { createGunzip, createGzip } from 'node:zlib'
import compress from '@fastify/compress'
import cookie from '@fastify/cookie'
import cors from '@fastify/cors'
import helmet from '@fastify/helmet'
import express from 'express'
import Fastify, { type FastifyBaseLogger, type FastifyInstance, type FastifyReply, type FastifyRequest, type FastifyServerOptions, type RouteOptions } from 'fastify'
import t, { type Test } from 'tap'
import { EventSource, fetch } from 'undici'
import ssePlugin, { SSEError, SSEManager, type SSEConnection, type SSEOptions } from '../lib/index.js'
import type { Source, SourceFactory } from '../lib/index.js'
import { listen } from './helpers/app.js'
import { createCertificate } from './helpers/certificate.js'
import { connectH2, H2Stream } from './helpers/h2.js'
import { collectAll } from './helpers/heap.js'
import { blocksOf, dataOf, RawSocket, requestText } from './helpers/raw.js'
import { SSEClient } from './helpers/sse.js'
import { turns, until } from './helpers/wait.js'

// The response: what `reply.sse()` and `createConnection()` put on the wire, and what becomes of a source.

interface Log {
  lines: string[]
  stream: Writable
}

function createLog (): Log {
  const lines: string[] = []
  return { lines, stream: new Writable({ write (line, _, done) { lines.push(String(line)); done() } }) }
}

type Register = (app: FastifyInstance) => void | Promise<void>

/** A Fastify with the plugin, listening; closed at the end of the test. */
async function start (t: Test, register: Register, options: SSEOptions = {}, server: FastifyServerOptions = {}): Promise<{ app: FastifyInstance, url: string, log: Log }> {
  const log = createLog()
  const app = Fastify({ logger: { level: 'error', stream: log.stream }, ...server } as FastifyServerOptions) as FastifyInstance
  await app.register(ssePlugin, { drainMs: 300, ...options })
  await register(app)
  t.teardown(() => app.close())
  return { app, url: await listen(app), log }
}

/** A Fastify whose route `/` streams the source. */
function startSource (t: Test, source: (request: FastifyRequest) => Source | SourceFactory, options?: SSEOptions): ReturnType<typeof start> {
  return start(t, app => { app.route({ method: ['GET', 'POST'], url: '/', handler: (request, reply) => reply.sse(source(request)) }) }, options)
}

function raw (t: Test, url: string, request?: Parameters<typeof requestText>[0]): RawSocket {
  const socket = new RawSocket(url, request)
  t.teardown(() => socket.close())
  return socket
}

const never = new Promise<never>(() => {})

t.test('the head and a first comment come at once, in chunks that are exact to the byte', async t => {
  let connection: SSEConnection | undefined
  const { app, url } = await start(t, app => {
    app.get('/', async (request, reply) => { connection = await reply.sse() })
  })
  const socket = raw(t, url, {})
  await socket.waitFor('\n\n\r\n')

  const [answer] = socket.answers
  t.equal(answer!.status, 200)
  t.match(answer!.headers, {
    'content-type': 'text/event-stream',
    'cache-control': 'private, no-cache, no-store, no-transform',
    'x-accel-buffering': 'no',
    connection: 'keep-alive',
    'transfer-encoding': 'chunked'
  })
  t.notOk('content-length' in answer!.headers)
  t.notOk('content-encoding' in answer!.headers)
  t.equal(answer!.chunks.length, 1)
  t.match(answer!.body, /^: stream\n\nretry: 3000\n\nid: [A-Za-z0-9_-]+\.0\n\n$/)
  t.equal(connection!.isConnected, true)

  const before = socket.length
  connection!.sendEvent({ event: 'größe', data: 'zwölf\r\nBoxkämpfer 🥊' })
  await socket.waitFor('🥊')
  const expected = 'event: größe\ndata: zwölf\ndata: Boxkämpfer 🥊\n\n'
  t.equal(socket.bytes.subarray(before).toString(), `${Buffer.byteLength(expected).toString(16)}\r\n${expected}\r\n`)

  const { id } = await app.sse.broadcastEvent({ data: { n: 1 } })
  t.equal(connection!.sendEvent({ data: 'two' }), true)
  const last = socket.length
  connection!.close('done')
  await socket.waitFor('0\r\n\r\n')
  const farewell = `id: ${id}\n\nevent: sse:close\ndata: {"reason":"done","reconnect":false}\n\n`
  const end = `${Buffer.byteLength(farewell).toString(16)}\r\n${farewell}\r\n0\r\n\r\n`
  t.ok(socket.text.endsWith(end), socket.bytes.subarray(last).toString())
  t.equal(socket.answers[0]!.complete, true)
  t.strictSame(dataOf(socket.answers[0]!.body), ['zwölf\nBoxkämpfer 🥊', '{"n":1}', 'two'])
  t.equal(app.sse.connectionCount, 0)
})

t.test('events of one turn leave in one chunk, in order', async t => {
  let connection: SSEConnection | undefined
  const { app, url } = await start(t, app => {
    app.get('/', async (request, reply) => { connection = await reply.sse() })
  })
  const socket = raw(t, url, {})
  await socket.waitFor('\n\n\r\n')
  for (let i = 0; i < 50; i++) connection!.sendEvent({ data: String(i) })
  await Promise.all(Array.from({ length: 50 }, (_, i) => app.sse.broadcastEvent({ data: 50 + i })))
  await socket.waitFor('data: 99\n')
  connection!.close()
  const [answer] = await socket.waitForAnswers(1)
  t.strictSame(dataOf(answer!.body).map(Number), Array.from({ length: 100 }, (_, i) => i))
  t.equal(answer!.chunks.length, 3, 'the head, all events, the farewell')
})

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
    'web stream of strings': { source: () => new ReadableStream<string>({ start (controller) { controller.enqueue('a'); controller.enqueue('b'); controller.close() } }) as Source, data: ['a', 'b'] },
    'web stream of bytes': { source: () => new Blob(['a ☕']).stream() as unknown as Source, data: ['a ☕'] },
    factory: { source: () => () => ['a'], data: ['a'] },
    'async factory': { source: () => async () => (async function * () { yield 'a' })(), data: ['a'] },
    lines: { source: () => ['one\r\ntwo\rthree\n', ' indented', ''], data: ['one\ntwo\nthree\n', ' indented', ''] }
  }
  const { app, url } = await startSource(t, request => sources[decodeURIComponent((request.query as { kind: string }).kind)]!.source())
  for (const [kind, { data }] of Object.entries(sources)) {
    const socket = raw(t, `${url}`, { path: `/?kind=${encodeURIComponent(kind)}` })
    const [answer] = await socket.waitForAnswers(1)
    t.strictSame(dataOf(answer!.body), data, kind)
    t.equal(answer!.chunks[0], ': stream\n\nretry: 3000\n\n', `${kind}: head`)
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

/** What a socket takes before it asks for a pause, and a Node stream hands over at once: 16 KB, from Node 22 on 64 KB. */
const HIGH_WATER_MARK = getDefaultHighWaterMark(false)

/** The bytes that may wait for the client of a source: a socket that is not full yet takes one item more, or the 16 KB of small items that are written together. */
function waitingAtMost (itemBytes: number): number {
  return HIGH_WATER_MARK + Math.max(itemBytes, 16 * 1024) + 100
}

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
  const socket = new SSEClient(url)
  t.teardown(() => socket.close())
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

t.test('a client that leaves cancels the source', async t => {
  let cancelled: unknown = null
  const note = (what: unknown) => { cancelled = what }
  const sources: Record<string, () => Source | SourceFactory> = {
    'synchronous generator': () => (function * () { try { for (let i = 0; ; i++) yield String(i) } finally { note('finally') } })(),
    'async generator, between items': () => (async function * () { try { for (let i = 0; ; i++) { yield String(i); await sleep(1) } } finally { note('finally') } })(),
    'async generator that waits for ever, by the signal': () => async function * ({ signal }) {
      try {
        yield 'a'
        await Promise.race([never, once(signal, 'abort')])
      } finally {
        note(`finally ${signal.reason.closeReason}`)
      }
    },
    'async iterator whose next() is pending': () => ({
      [Symbol.asyncIterator]: () => ({ next: () => never, return: async () => { note('return'); return { done: true, value: undefined } } })
    }),
    'Node stream with nothing to read': () => new Readable({ read () {}, destroy (error, done) { note('destroy'); done(error) } }),
    'Node stream that fails while it is destroyed': () => new Readable({ read () {}, destroy (_, done) { note('destroy'); done(new Error('too late')) } }),
    'web stream with nothing to read': () => new ReadableStream({ cancel () { note('cancel') } }) as Source,
    'factory that has not answered yet': () => async ({ signal }) => {
      await once(signal, 'abort')
      note('signal')
      throw new Error('aborted')
    },
    'factory that answers too late': () => async ({ signal }) => {
      await once(signal, 'abort')
      return new Readable({ read () {}, destroy (error, done) { note('destroy'); done(error) } })
    }
  }
  let settled = 0
  const { app, url, log } = await start(t, app => {
    app.get('/', async (request, reply) => {
      await reply.sse(sources[(request.query as { kind: string }).kind]!())
      settled++
    })
  })
  for (const kind of Object.keys(sources)) {
    for (const way of ['FIN', 'RST'] as const) {
      cancelled = null
      const before = settled
      const socket = new RawSocket(url, { path: `/?kind=${encodeURIComponent(kind)}` })
      await socket.waitFor('\n\n')
      if (way === 'FIN') socket.close()
      else socket.socket.resetAndDestroy()
      await until(() => cancelled !== null, undefined, `${kind} to be cancelled by ${way}`)
      await until(() => settled === before + 1, undefined, `${kind}: reply.sse() to settle`)
      t.pass(`${kind}, ${way}: ${String(cancelled)}`)
    }
  }
  t.equal(app.sse.connectionCount, 0)
  t.equal(app.sse.stats().closed['client'], Object.keys(sources).length * 2)
  t.strictSame(log.lines, [], 'a client that leaves is no error')
})

t.test('a server-side end cancels the source too', async t => {
  let cancelled = ''
  const { app, url } = await startSource(t, () => async function * ({ signal }) {
    try {
      yield 'a'
      await Promise.race([never, once(signal, 'abort')])
    } finally {
      cancelled = String(signal.reason.closeReason)
    }
  })
  const socket = raw(t, url, {})
  await socket.waitFor('data: a')
  const [connection] = app.sse.connections()
  t.equal(await app.sse.closeConnection(connection!.clientId, 'kicked'), true)
  const [answer] = await socket.waitForAnswers(1)
  t.equal(blocksOf(answer!.body).at(-1)!.data, '{"reason":"kicked","reconnect":false}')
  await until(() => cancelled === 'kicked')
})

t.test('an error in the source is a sse:error without internals, and the log has it', async t => {
  const secret = 'password=hunter2'
  const fail = (): never => { throw new Error(secret) }
  const sources: Record<string, () => unknown> = {
    'synchronous generator throws': () => (function * () { yield 'a'; fail() })(),
    'async generator throws': () => (async function * () { yield 'a'; fail() })(),
    'next() rejects': () => ({ [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(new Error(secret)) }) }),
    'next() throws': () => ({ [Symbol.iterator]: () => ({ next: fail }) }),
    'Node stream is destroyed': () => {
      const stream = new Readable({ read () {} })
      setImmediate(() => stream.destroy(new Error(secret)))
      return stream
    },
    'Node stream fails before the head': () => new Readable({ read () {}, construct (done) { done(new Error(secret)) } }),
    'web stream fails': () => new ReadableStream({ pull: fail }),
    'factory throws': () => fail,
    'a frozen error is thrown': () => () => { throw Object.freeze(new Error(secret)) },
    'factory rejects': () => () => Promise.reject(new Error(secret)),
    'factory returns nothing to iterate': () => () => 42,
    'factory returns a string': () => () => 'abc',
    'number item': () => [1],
    'null item': () => [null],
    'item without data': () => [{ event: 'x' }],
    'item with a misspelt name': () => [{ name: 'x', data: 1 }],
    'data without a JSON form': () => [{ data: () => secret }],
    'cyclic data': () => { const data: Record<string, unknown> = {}; data['self'] = data; return [{ data }] },
    'event name of EventSource': () => [{ event: 'error', data: 1 }],
    'control event': () => [{ event: 'sse:close', data: 1 }],
    'forged event name': () => [{ event: 'a\ndata: forged', data: 1 }],
    'forged id': () => [{ id: '1\ndata: forged', data: 1 }],
    'number id': () => [{ id: 1, data: 1 }],
    'retry that storms': () => [{ retry: 0, data: 1 }],
    'lone surrogate': () => ['\ud800']
  }
  const { app, url, log } = await start(t, app => {
    // Slow before the head: a source may fail before anybody listens to it.
    app.addHook('onSend', async () => { await sleep(5) })
    app.get('/', (request, reply) => reply.sse(sources[(request.query as { kind: string }).kind]!() as Source))
  })
  for (const kind of Object.keys(sources)) {
    const lines = log.lines.length
    const socket = new RawSocket(url, { path: `/?kind=${encodeURIComponent(kind)}` })
    const [answer] = await socket.waitForAnswers(1)
    socket.close()
    const [error, close] = blocksOf(answer!.body).slice(-2)
    t.strictSame([error!.event, error!.data], ['sse:error', '{"message":"The source of this stream failed"}'], kind)
    t.strictSame([close!.event, close!.data], ['sse:close', '{"reason":"source-error","reconnect":true}'], kind)
    t.notMatch(answer!.body, /hunter2|forged|SSE_ERR|at .*:\d+:\d+/, kind)
    const logged = log.lines.slice(lines).join('')
    t.match(logged, /The source of an event stream failed/, kind)
    t.match(logged, /hunter2|SSE_ERR_INVALID_/, kind)
  }
  t.equal(app.sse.connectionCount, 0)
  t.equal(app.sse.stats().closed['source-error'], Object.keys(sources).length)
})

t.test('a slow reader learns of the error as well', async t => {
  let failed = false
  const { app, url } = await startSource(t, () => (async function * () {
    for (let i = 0; i < 6; i++) yield 'x'.repeat(1_000_000)
    // One more write that blocks, and then the failure while it does.
    yield 'y'.repeat(60_000)
    await until(() => app.sse.stats().queuedBytes === 0 || app.sse.connectionCount === 0)
    yield 'z'.repeat(8_000)
    failed = true
    throw new Error('broken')
  })(), { drainMs: 5000 })
  const socket = raw(t, url)
  await once(socket.socket, 'connect')
  socket.socket.pause()
  socket.send({})
  await until(() => app.sse.stats().queuedBytes > 0)
  socket.socket.resume()
  const [answer] = await socket.waitForAnswers(1)
  t.equal(failed, true)
  t.strictSame(blocksOf(answer!.body).slice(-2).map(({ event }) => event), ['sse:error', 'sse:close'])
  t.equal(dataOf(answer!.body).length, 8)
})

t.test('the failure of a source reaches a client whose socket is full at that moment', async t => {
  let fail: (error: Error) => void = () => {}
  const { app, url } = await startSource(t, () => (async function * () {
    // A single large item: nothing waits in the outbox, the socket itself is full.
    yield 'x'.repeat(12_000_000)
    await new Promise((resolve, reject) => { fail = reject })
  })(), { drainMs: 5000, outboxBytes: 1024 })
  const socket = raw(t, url)
  await once(socket.socket, 'connect')
  socket.send({})
  socket.socket.pause()
  await until(() => app.sse.connectionCount === 1)
  socket.socket.resume()
  await until(() => socket.length > 12_000_000)
  fail(new Error('broken'))
  const [answer] = await socket.waitForAnswers(1)
  t.strictSame(blocksOf(answer!.body).slice(-2).map(({ event }) => event), ['sse:error', 'sse:close'])
})

t.test('refusals before the head are JSON answers, and leave no source behind', async t => {
  let returned = 0
  let opened = 0
  const source = () => ({ [Symbol.asyncIterator]: () => ({ next: () => never, return: async () => { returned++; return { done: true, value: undefined } } }) }) as AsyncIterable<string>
  let destroyed = 0
  const { app, url } = await start(t, app => {
    app.get('/source', (request, reply) => reply.sse(source()))
    app.get('/readable', (request, reply) => reply.sse(new Readable({ read () {}, destroy (error, done) { destroyed++; done(error) } })))
    app.get('/web', (request, reply) => reply.sse(new ReadableStream({ cancel () { destroyed++ } }) as Source))
    app.get('/generator', (request, reply) => reply.sse(async function * () { opened++; yield 'a' }))
    app.get('/managed', async (request, reply) => {
      await reply.sse({ subscriptions: [(request.query as { topic: string }).topic] })
      opened++
    })
    app.get('/retry', async (request, reply) => { await reply.sse({ retryMs: 1 }) })
    app.get('/optional', { sse: { requireAuthentication: false } }, async (request, reply) => { (await reply.sse()).close() })
  }, {
    requireAuthentication: true,
    authHandler: ({ token }) => {
      if (token === 'broken') throw new Error('no database at db.internal')
      return token
    },
    authorizeSubscription: ({ subscriptionId }) => subscriptionId === 'news',
    allowedOrigins: ['https://app.example'],
    maxConnectionsPerUser: 1
  })
  const get = async (path: string, headers: Record<string, string> = {}): Promise<[number, string, string]> => {
    const response = await fetch(url + path, { headers })
    const { code, message } = await response.json() as { code: string, message: string }
    t.match(response.headers.get('content-type'), /^application\/json/)
    t.notMatch(message, /database/)
    return [response.status, code, message]
  }
  const ada = { authorization: 'Bearer ada' }

  t.match(await get('/managed?topic=news'), [401, 'SSE_ERR_UNAUTHENTICATED'])
  t.match(await get('/source'), [401, 'SSE_ERR_UNAUTHENTICATED'])
  t.equal(returned, 1)
  t.match(await get('/readable'), [401, 'SSE_ERR_UNAUTHENTICATED'])
  t.match(await get('/web'), [401, 'SSE_ERR_UNAUTHENTICATED'])
  await until(() => destroyed === 2)
  t.match(await get('/generator'), [401, 'SSE_ERR_UNAUTHENTICATED'])
  t.match(await get('/managed?topic=news', { authorization: 'Bearer broken' }), [500, 'SSE_ERR_AUTHENTICATION_FAILED'])
  t.match(await get('/managed?topic=secret', ada), [403, 'SSE_ERR_SUBSCRIPTION_FORBIDDEN'])
  t.match(await get('/managed?topic=a:**:b', ada), [400, 'SSE_ERR_INVALID_SUBSCRIPTION'])
  t.match(await get('/retry', ada), [400, 'SSE_ERR_INVALID_RETRY'])
  t.match(await get('/managed?topic=news', { ...ada, origin: 'https://evil.example' }), [403, 'SSE_ERR_ORIGIN_FORBIDDEN'])
  t.match(await get('/managed?topic=news', { ...ada, 'sec-fetch-site': 'cross-site' }), [403, 'SSE_ERR_ORIGIN_FORBIDDEN'])
  t.match(await get('/managed?topic=news', { ...ada, accept: 'application/json' }), [406, 'SSE_ERR_NOT_ACCEPTABLE'])
  t.equal(opened, 0)
  t.equal(app.sse.connectionCount, 0)

  const open = raw(t, url, { path: '/managed?topic=news', headers: ada })
  await open.waitFor('id: ')
  t.match(await get('/managed?topic=news', ada), [429, 'SSE_ERR_TOO_MANY_USER_CONNECTIONS'])
  const optional = raw(t, url, { path: '/optional' })
  t.equal((await optional.waitForAnswers(1))[0]!.status, 200)
})

t.test('what is neither a source nor options opens no stream', async t => {
  const attempts: [unknown[], string, RegExp][] = [
    [[Promise.resolve(['a'])], 'SSE_ERR_INVALID_SOURCE', /await it/],
    [['text'], 'SSE_ERR_INVALID_SOURCE', /a string/],
    [[null], 'SSE_ERR_INVALID_SOURCE', /null/],
    [[{ subscription: 'a' }], 'SSE_ERR_INVALID_OPTION', /"subscription" of reply.sse\(\) is not an option/],
    [[['a'], { subscriptions: ['a'] }], 'SSE_ERR_INVALID_OPTION', /subscriptions/],
    [[{ subscriptions: 'chat' }], 'SSE_ERR_INVALID_SUBSCRIPTION', /must be an array/],
    [[{ subscriptions: [7] }], 'SSE_ERR_INVALID_SUBSCRIPTION', /must be a string/]
  ]
  const { app, url } = await start(t, app => {
    for (const [i, [given]] of attempts.entries()) app.get(`/${i}`, async (request, reply) => { await (reply.sse as (...given: unknown[]) => Promise<unknown>)(...given) })
  })
  for (const [i, [, code, message]] of attempts.entries()) t.match(await (await fetch(`${url}/${i}`)).json(), { code, message })
  t.match(app.sse.stats(), { connections: 0, closed: {} })
})

t.test('a handler that forgets the promise of reply.sse() does not end the process', async t => {
  const lines: string[] = []
  const rejections: unknown[] = []
  const onRejection = (error: unknown) => { rejections.push(error) }
  process.on('unhandledRejection', onRejection)
  t.teardown(() => process.off('unhandledRejection', onRejection))
  const app = Fastify({ logger: { level: 'warn', stream: { write: line => { lines.push(line) } } } })
  t.teardown(() => app.close())
  await app.register(ssePlugin)
  app.get('/', (request, reply) => { reply.sse() })
  // Fastify answers for a handler that is over.
  app.get('/over', async (request, reply) => { reply.sse() })
  app.get('/second', async (request, reply) => {
    reply.send('first')
    await reply.sse()
  })
  const url = await listen(app)
  const open = raw(t, url, {})
  await open.waitFor('id: ')
  const refused = raw(t, url, { headers: { accept: 'text/html' } })
  await until(() => lines.length === 1)
  t.match(JSON.parse(lines[0]!), { err: { code: 'SSE_ERR_NOT_ACCEPTABLE' }, msg: /await or return/ })
  t.strictSame(await (await fetch(`${url}/over`)).text(), '')
  await until(() => lines.length === 2)
  t.match(JSON.parse(lines[1]!), { level: 40, msg: /was answered meanwhile: the handler must await or return/ })
  t.equal(await (await fetch(`${url}/second`)).text(), 'first')
  await until(() => lines.length === 3)
  t.notMatch(JSON.parse(lines[2]!), { msg: /must await/ }, 'whoever answers twice is told by Fastify')
  t.strictSame(rejections, [])
  refused.close()
})

/** A logger that fails from the moment it is told to. */
function createBreakingLogger (state: { broken: boolean }): FastifyBaseLogger {
  const write = (): void => { if (state.broken) throw new Error('disk full') }
  const logger: FastifyBaseLogger = { level: 'info', silent () {}, trace () {}, debug: write, info: write, warn: write, error: write, fatal: write, child: () => logger }
  return logger
}

t.test('a logger that throws: failed sources, forgotten promises, strategies and responses that throw have the same end', async t => {
  const rejections: unknown[] = []
  const onRejection = (error: unknown) => { rejections.push(error) }
  process.on('unhandledRejection', onRejection)
  t.teardown(() => process.off('unhandledRejection', onRejection))
  const state = { broken: false }
  const app = Fastify({ loggerInstance: createBreakingLogger(state), disableRequestLogging: true })
  t.teardown(() => app.close())
  await app.register(ssePlugin, { authStrategies: [async () => { throw Object.freeze(new Error('no')) }], drainMs: 100 })
  app.get('/source', (_request, reply) => reply.sse(async function * () {
    yield 'a'
    throw Object.freeze(new Error('frozen'))
  }))
  app.get('/forgotten', (request, reply) => { reply.sse() })
  app.get('/over', async (request, reply) => { reply.sse() })
  app.get('/sse', async (request, reply) => { await reply.sse() })
  app.get('/wrapped', async (request, reply) => {
    const { raw } = reply
    const { write } = raw
    raw.write = ((chunk: string | Buffer, ...rest: []) => {
      if (String(chunk).includes('event: poison')) throw Object.freeze(new Error('poison'))
      return Reflect.apply(write, raw, [chunk, ...rest])
    }) as typeof write
    await reply.sse()
  })
  const url = await listen(app)

  state.broken = true
  const source = raw(t, url, { path: '/source' })
  const [answer] = await source.waitForAnswers(1)
  t.strictSame(blocksOf(answer!.body).slice(-2).map(({ event }) => event), ['sse:error', 'sse:close'])
  raw(t, url, { path: '/forgotten', headers: { accept: 'text/html' } })
  t.equal(await (await fetch(`${url}/over`)).text(), '')
  const neighbours = [raw(t, url, { path: '/sse' }), raw(t, url, { path: '/wrapped' }), raw(t, url, { path: '/sse' })]
  for (const neighbour of neighbours) await neighbour.waitFor('id: ')
  await app.sse.broadcastEvent({ event: 'poison', data: 1 })
  await neighbours[0]!.waitFor('event: poison')
  await neighbours[2]!.waitFor('event: poison')
  await neighbours[1]!.waitForClose()
  await turns(3)
  t.strictSame(rejections, [])
})

t.test('what a client accepts', async t => {
  const { url } = await startSource(t, () => ['a'])
  const accepts: [string | null, number][] = [
    [null, 200], ['text/event-stream', 200], ['*/*', 200], ['text/*;q=0.1', 200], ['TEXT/EVENT-STREAM', 200],
    ['text/html, text/event-stream;q=0.5', 200], ['text/html,*/*;q=0.8', 200],
    ['application/json', 406], ['text/html', 406], ['text/event-stream;q=0', 406], ['*/*, text/event-stream;q=0', 406], ['*/*;q=0', 406]
  ]
  for (const [accept, status] of accepts) {
    const socket = raw(t, url, { headers: accept === null ? {} : { accept } })
    t.equal((await socket.waitForAnswers(1))[0]!.status, status, String(accept))
    socket.close()
  }
})

t.test('HEAD gets the head, and ends', async t => {
  let destroyed = 0
  const ended: (boolean | string | null)[] = []
  const { app, url } = await start(t, app => {
    app.get('/managed', async (request, reply) => {
      const connection = await reply.sse({ subscriptions: ['news'] })
      ended.push(connection.isConnected, connection.sendEvent({ data: 1 }))
      if (!connection.signal.aborted) await once(connection.signal, 'abort')
      ended.push(String(connection.signal.reason.closeReason))
    })
    app.get('/readable', (request, reply) => reply.sse(new Readable({ read () {}, destroy (error, done) { destroyed++; done(error) } })))
    app.route({ method: 'HEAD', url: '/own', handler: async (request, reply) => { await reply.sse() } })
  })
  for (const path of ['/managed', '/readable', '/own']) {
    const socket = raw(t, url, { method: 'HEAD', path, headers: { connection: 'close' } })
    await socket.waitFor('\r\n\r\n')
    t.match(socket.text, /^HTTP\/1\.1 200 OK\r\n/, path)
    t.match(socket.text.toLowerCase(), 'content-type: text/event-stream\r\n', path)
    t.match(socket.text.toLowerCase(), 'cache-control: private, no-cache, no-store, no-transform\r\n', path)
    await socket.waitForClose()
    t.ok(socket.text.endsWith('\r\n\r\n') && socket.text.indexOf('\r\n\r\n') === socket.length - 4, `${path}: no body`)
  }
  await until(() => destroyed === 1 && ended.length === 3)
  t.strictSame(ended, [false, false, 'head'])
  t.equal(app.sse.connectionCount, 0)
  t.strictSame(app.sse.stats().closed, { head: 3 })

  // The socket of a HEAD request is free for the next.
  const socket = raw(t, url, { method: 'HEAD', path: '/managed' })
  await socket.waitFor('\r\n\r\n')
  socket.send({ path: '/nothing' })
  await socket.waitFor('Route GET:/nothing not found')
})

t.test('POST streams as well, and the body of the request is read first', async t => {
  const { url } = await startSource(t, request => [`you said ${(request.body as { text: string }).text}`])
  const socket = raw(t, url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"text":"hello"}' })
  const [answer] = await socket.waitForAnswers(1)
  t.strictSame(dataOf(answer!.body), ['you said hello'])

  // On an HTTP/1 POST the request's own events fire at once; the stream stays.
  let connection: SSEConnection | undefined
  let over = false
  const managed = await start(t, app => {
    app.post('/', async (request, reply) => {
      request.raw.once('close', () => { over = true })
      connection = await reply.sse()
    })
  })
  const post = raw(t, managed.url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' })
  await post.waitFor('id: ')
  await until(() => over)
  t.equal(connection!.isConnected, true)
  connection!.sendEvent({ data: 'still here' })
  await post.waitFor('still here')
  post.close()
  await until(() => managed.app.sse.connectionCount === 0)
})

t.test('a response can only be begun once', async t => {
  const codes: string[] = []
  const attempt = async (promise: Promise<unknown>) => {
    try {
      await promise
      codes.push('opened')
    } catch (error) {
      codes.push((error as SSEError).code)
    }
  }
  const { app, url } = await start(t, app => {
    app.get('/twice', async (request, reply) => {
      await attempt(reply.sse())
      await attempt(reply.sse())
      await attempt(reply.sse(['a']))
      const [connection] = app.sse.connections()
      connection!.close()
    })
    app.get('/together', async (request, reply) => {
      await Promise.all([attempt(reply.sse()), attempt(reply.sse()), attempt(reply.sse(['a']))])
      t.equal(app.sse.connectionCount, 1)
      for (const connection of app.sse.connections()) connection.close()
    })
    app.get('/after-head', async (request, reply) => {
      reply.raw.writeHead(200, { 'content-type': 'text/plain' })
      await attempt(reply.sse())
      reply.hijack()
      reply.raw.end('mine')
    })
    app.get('/hijacked', async (request, reply) => {
      reply.hijack()
      await attempt(reply.sse())
      reply.raw.end('mine')
    })
    app.get('/sent', async (request, reply) => {
      reply.send('mine')
      await attempt(reply.sse())
    })
  })
  const expected: Record<string, string[]> = {
    '/twice': ['opened', 'SSE_ERR_HEAD_ALREADY_SENT', 'SSE_ERR_HEAD_ALREADY_SENT'],
    '/together': ['SSE_ERR_HEAD_ALREADY_SENT', 'SSE_ERR_HEAD_ALREADY_SENT', 'opened'],
    '/after-head': ['SSE_ERR_HEAD_ALREADY_SENT'],
    '/hijacked': ['SSE_ERR_HEAD_ALREADY_SENT'],
    '/sent': ['SSE_ERR_HEAD_ALREADY_SENT']
  }
  for (const [path, wanted] of Object.entries(expected)) {
    codes.length = 0
    const socket = raw(t, url, { path, headers: { connection: 'close' } })
    const [answer] = await socket.waitForAnswers(1)
    await until(() => codes.length === wanted.length)
    t.strictSame([...codes].sort(), [...wanted].sort(), path)
    t.equal(answer!.status, 200, path)
    if (!['/twice', '/together'].includes(path)) t.equal(answer!.body, 'mine', path)
    await until(() => app.sse.connectionCount === 0)
  }
})

t.test('hooks', async t => {
  t.test('onSend hooks run, also asynchronous ones; onResponse runs when the server ends the stream, onRequestAbort when the client does', async t => {
    const ran: string[] = []
    let connection: SSEConnection | undefined
    const { url } = await start(t, app => {
      app.addHook('onSend', (request, reply, payload, done) => {
        reply.header('x-callback', '1')
        done(null, payload)
      })
      app.addHook('onSend', async (request, reply, payload) => {
        await sleep(10)
        reply.header('x-async', '1')
        return payload
      })
      app.addHook('onResponse', async (request, reply) => { ran.push(`onResponse ${reply.statusCode}`) })
      app.addHook('onRequestAbort', async request => { ran.push('onRequestAbort') })
      app.get('/', async (request, reply) => {
        reply.header('x-handler', '1').code(200)
        connection = await reply.sse()
        connection.signal.addEventListener('abort', () => { ran.push('signal') })
      })
    })
    const socket = raw(t, url, {})
    await socket.waitFor('id: ')
    t.match(socket.answers[0]!.headers, { 'x-callback': '1', 'x-async': '1', 'x-handler': '1', 'content-type': 'text/event-stream' })
    t.strictSame(ran, [])
    connection!.close()
    await socket.waitForAnswers(1)
    await until(() => ran.length === 2)
    t.strictSame(ran.splice(0).sort(), ['onResponse 200', 'signal'])
    const leaving = raw(t, url, {})
    await leaving.waitFor('id: ')
    leaving.close()
    await until(() => ran.length === 2)
    t.strictSame(ran.sort(), ['onRequestAbort', 'signal'])
  })

  t.test('the application keeps its listeners on the response, whenever it added them', async t => {
    const heard: string[] = []
    const { url, app } = await start(t, app => {
      app.addHook('onSend', async (request, reply, payload) => {
        (payload as NodeJS.ReadableStream).on('error', () => {})
        return payload
      })
      app.addHook('onSend', async (request, reply, payload) => {
        for (const event of ['close', 'finish']) reply.raw.once(event, () => heard.push(event))
        return payload
      })
      app.get('/', async (request, reply) => { await reply.sse() })
    })
    const socket = raw(t, url, {})
    await socket.waitFor('id: ')
    for (const connection of app.sse.connections()) connection.close()
    await socket.waitForAnswers(1)
    await until(() => heard.length === 2)
    t.strictSame(heard, ['finish', 'close'])
  })

  t.test('onSend hooks of a route with `sse`, however and whenever they were added, see the body before it is opened', async t => {
    const { url } = await start(t, app => {
      const ran = (name: string) => async (_request: unknown, reply: FastifyReply, payload: unknown) => {
        reply.header(`x-${name}`, typeof payload)
        return payload
      }
      const kept: RouteOptions[] = []
      app.addHook('onRoute', route => {
        if (!route.url.startsWith('/hooked')) return
        if (route.url === '/hooked/list') route.onSend = [route.onSend ?? []].flat().concat(ran('list'))
        if (route.url === '/hooked/push') (route.onSend as unknown[]).push(ran('push'))
        if (route.url === '/hooked/alone') route.onSend = ran('alone')
        if (route.url === '/hooked/wrapped') route.onSend = [route.onSend ?? []].flat().map(hook => function (this: FastifyInstance, ...given: Parameters<typeof hook>) { return hook.apply(this, given) })
        kept.push(route)
      })
      app.addHook('onRoute', route => {
        if (route.url === '/hooked/wrapped') (route.onSend as unknown[]).push(ran('after'))
      })
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() }
      for (const name of ['list', 'push', 'alone', 'wrapped']) app.get(`/hooked/${name}`, { sse: true, onSend: ran('own') }, handler)
      app.get('/hooked/late', { sse: true }, handler)
      for (const route of kept) if (route.url === '/hooked/late') (route.onSend as unknown[]).push(ran('late'))
      app.addHook('onSend', ran('instance'))
    })
    const seen = { list: ['own', 'list', 'instance'], push: ['own', 'push', 'instance'], alone: ['alone', 'instance'], wrapped: ['own', 'after', 'instance'], late: ['late', 'instance'] }
    for (const [path, names] of Object.entries(seen)) {
      const socket = raw(t, url, { path: `/hooked/${path}` })
      await socket.waitFor('id: ')
      const { headers } = socket.answers[0]!
      t.strictSame(Object.keys(headers).filter(name => name.startsWith('x-') && headers[name] === 'object').sort(), names.map(name => `x-${name}`).sort(), path)
      t.match(headers, { 'content-type': 'text/event-stream', 'transfer-encoding': 'chunked' })
    }
  })

  t.test('headers that were set on the response itself are sent, too', async t => {
    const { url } = await start(t, app => {
      app.addHook('onRequest', async (_request, reply) => { reply.raw.setHeader('x-raw', '1') })
      app.get('/', { sse: true }, async (_request, reply) => { await reply.header('set-cookie', ['a=1', 'b=2']).sse() })
    })
    const socket = raw(t, url, {})
    await socket.waitFor('id: ')
    t.match(socket.answers[0]!.headers, { 'x-raw': '1', 'transfer-encoding': 'chunked' })
    t.match(socket.text, /set-cookie: a=1\r\nset-cookie: b=2\r\n/)
  })

  t.test('a head that cannot be written is an error of the request, and its connection ends', async t => {
    const { url, app } = await start(t, app => {
      app.get('/', { sse: true }, async (_request, reply) => { await reply.header('x-bad', 'a\r\nb').sse() })
    })
    const socket = raw(t, url, {})
    await socket.waitForAnswers(1)
    t.equal(socket.answers[0]!.status, 500)
    await until(() => app.sse.connectionCount === 0)
  })

  t.test('the answer to a head that cannot be written is sent as it comes', async t => {
    const answer = new Readable({ read () {} })
    const { url, app } = await start(t, app => {
      app.setErrorHandler((_error, _request, reply) => reply.header('x-bad', 'good').type('text/plain').send(answer))
      app.get('/', { sse: true }, async (_request, reply) => { await reply.header('x-bad', 'a\r\nb').sse() })
    })
    const socket = raw(t, url, {})
    answer.push('first')
    await socket.waitFor('first')
    answer.push(null)
    await socket.waitForAnswers(1)
    await until(() => app.sse.connectionCount === 0)
  })

  t.test('a stream has status 200 and no length, whatever the handler or a hook said', async t => {
    const { url } = await start(t, app => {
      app.addHook('onSend', async (request, reply) => {
        const { said } = request.query as { said?: string }
        if (said === 'reply') reply.header('content-length', '5')
        if (said === 'raw') reply.raw.setHeader('Content-Length', '5')
      })
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.code(201).header('content-length', '5').sse() }
      app.get('/', handler)
      app.get('/sse', { sse: true }, handler)
    })
    for (const path of ['/', '/?said=reply', '/?said=raw', '/sse', '/sse?said=reply', '/sse?said=raw']) {
      const socket = raw(t, url, { path })
      await socket.waitFor('id: ')
      t.equal(socket.answers[0]!.status, 200, path)
      t.notOk('content-length' in socket.answers[0]!.headers, path)
    }
  })

  t.test('trailers do not end a stream; where they are announced they come after it', async t => {
    const { url, app } = await start(t, app => {
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.trailer('x-sum', async () => 'abc').sse() }
      app.get('/', handler)
      app.get('/sse', { sse: true }, handler)
    })
    for (const path of ['/', '/sse']) {
      const socket = raw(t, url, { path })
      await socket.waitFor('id: ')
      await app.sse.broadcastEvent({ data: 'later' })
      await socket.waitFor('later')
      const { trailer } = socket.answers[0]!.headers
      for (const connection of app.sse.connections()) connection.close()
      await socket.waitFor('sse:close')
      await until(() => app.sse.connectionCount === 0)
      await socket.waitFor(trailer === undefined ? '0\r\n\r\n' : '0\r\nx-sum: abc\r\n\r\n')
    }
  })

  t.test('an onSend hook that fails answers 500, and the connection has ended', async t => {
    let connection: SSEConnection | undefined
    const { app, url } = await start(t, app => {
      app.addHook('onSend', async (request, reply) => {
        // The answer about the failure passes here as well.
        if (reply.statusCode === 200) throw new Error('refused')
      })
      app.get('/', async (request, reply) => { connection = await reply.sse() })
    })
    const socket = raw(t, url, {})
    const [answer] = await socket.waitForAnswers(1)
    t.equal(answer!.status, 500)
    t.match(answer!.headers['content-type'], /^application\/json/)
    t.match(JSON.parse(answer!.body), { statusCode: 500, message: 'refused' })
    t.notOk('content-length' in answer!.headers && 'transfer-encoding' in answer!.headers, 'one framing only')
    await until(() => connection !== undefined)
    t.equal(connection!.isConnected, false)
    t.equal(connection!.sendEvent({ data: 1 }), false)
    t.equal(app.sse.connectionCount, 0)
    socket.send({ path: '/nothing' })
    await socket.waitFor('Route GET:/nothing not found')
  })

  t.test('an onSend hook that answers otherwise has the last word', async t => {
    let connection: SSEConnection | undefined
    const { app, url } = await start(t, app => {
      app.addHook('onSend', async () => 'something else')
      app.get('/', async (request, reply) => { connection = await reply.sse() })
    })
    const response = await fetch(url)
    t.equal(await response.text(), 'something else')
    await until(() => connection !== undefined)
    t.equal(connection!.isConnected, false)
    t.equal(app.sse.connectionCount, 0)
  })

  t.test('a client that leaves during onSend finds its connection ended', async t => {
    let connection: SSEConnection | undefined
    let inHook = false
    const { app, url } = await start(t, app => {
      app.addHook('onSend', async () => {
        inHook = true
        await until(() => app.sse.connectionCount === 0)
      })
      app.get('/', async (request, reply) => { connection = await reply.sse() })
    })
    const socket = raw(t, url, {})
    await until(() => inHook)
    socket.close()
    await until(() => connection !== undefined)
    t.equal(connection!.isConnected, false)
    // A turn later, so that the handler can listen to it.
    await until(() => connection!.signal.aborted)
    t.equal(connection!.signal.reason.closeReason, 'client')
    t.equal(app.sse.connectionCount, 0)
  })

  t.test('events of the time between admission and head are not lost', async t => {
    let release: (() => void) | undefined
    let connection: SSEConnection | undefined
    const { app, url } = await start(t, app => {
      app.addHook('onSend', () => new Promise<void>(resolve => { release = resolve }))
      app.get('/', async (request, reply) => { connection = await reply.sse({ subscriptions: ['news'] }) })
    }, { outboxBytes: 1024 })
    const socket = raw(t, url, {})
    await until(() => release !== undefined)
    for (let i = 0; i < 100; i++) t.equal((await app.sse.broadcastToSubscriptions({ data: `${i} ${'x'.repeat(100)}` }, ['news'])).delivered, 1)
    release!()
    await until(() => connection !== undefined)
    await socket.waitFor('data: 99 ')
    t.strictSame(dataOf(socket.answers[0]!.body).map(text => parseInt(text)), Array.from({ length: 100 }, (_, i) => i))
    connection!.close()
  })

  t.test('handlerTimeout does not cut a stream', async t => {
    let connection: SSEConnection | undefined
    const { url } = await start(t, app => {
      app.get('/', { handlerTimeout: 50 }, async (request, reply) => { connection = await reply.sse() })
      app.get('/source', { handlerTimeout: 50 }, (request, reply) => reply.sse((async function * () {
        for (let i = 0; i < 10; i++) { yield String(i); await sleep(15) }
      })()))
      app.get('/slow', { handlerTimeout: 50 }, () => never)
    })
    const slow = await fetch(`${url}/slow`)
    t.equal(slow.status, 503, 'it does cut what is no stream')
    const socket = raw(t, url, {})
    const source = raw(t, url, { path: '/source' })
    t.strictSame(dataOf((await source.waitForAnswers(1))[0]!.body), ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
    t.equal(connection!.isConnected, true)
    connection!.sendEvent({ data: 'later' })
    await socket.waitFor('later')
    t.equal(connection!.signal.aborted, false)
    connection!.close()
    await socket.waitForAnswers(1)
  })

  t.test('a handlerTimeout that passes during onSend has the last word', async t => {
    const { url, app } = await start(t, app => {
      const overdue = new WeakMap<FastifyReply, Promise<unknown>>()
      app.addHook('onSend', async (_request, reply, payload) => {
        if (typeof payload === 'object') overdue.set(reply, until(() => reply.statusCode === 503))
        await overdue.get(reply)
        // The answer about the timeout comes after the body.
        if (typeof payload === 'string') await turns(3)
      })
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() }
      app.get('/', { handlerTimeout: 20 }, handler)
      app.get('/sse', { sse: true, handlerTimeout: 20 }, handler)
    })
    for (const path of ['/', '/sse']) {
      const socket = raw(t, url, { path })
      const [answer] = await socket.waitForAnswers(1)
      t.equal(answer!.status, 503, path)
      t.match(JSON.parse(answer!.body), { code: 'FST_ERR_HANDLER_TIMEOUT' }, path)
      t.notOk('transfer-encoding' in answer!.headers, path)
      await until(() => app.sse.connectionCount === 0)
      socket.send({ path: '/nothing' })
      t.equal((await socket.waitForAnswers(2))[1]!.status, 404, path)
    }
  })

  t.test('a handler may return the promise, await it, or leave it', async t => {
    const { url } = await start(t, app => {
      app.get('/return', (request, reply) => reply.sse(['a']))
      app.get('/await', async (request, reply) => { await reply.sse(['a']) })
      app.get('/connection', async (request, reply) => {
        const connection = await reply.sse()
        connection.sendEvent({ data: 'a' })
        connection.close()
        return connection
      })
      app.get('/plain', (request, reply) => { reply.sse(['a']) })
      app.get('/throws', async (request, reply) => {
        const connection = await reply.sse()
        connection.sendEvent({ data: 'a' })
        setImmediate(() => connection.close())
        throw new Error('after the head')
      })
    })
    for (const path of ['/return', '/await', '/connection', '/plain', '/throws']) {
      const socket = raw(t, url, { path })
      const [answer] = await socket.waitForAnswers(1)
      t.strictSame(dataOf(answer!.body), ['a'], path)
      t.equal(socket.answers.length, 1, path)
    }
  })
})

t.test('neighbours', async t => {
  t.test('cookies, CORS and helmet headers arrive', async t => {
    let connection: SSEConnection | undefined
    const { url } = await start(t, async app => {
      await app.register(cookie)
      await app.register(cors, { origin: ['https://app.example'], credentials: true })
      await app.register(helmet)
      app.get('/', async (request, reply) => {
        reply.setCookie('session', 'abc', { httpOnly: true, path: '/' })
        connection = await reply.sse()
      })
    }, { allowedOrigins: ['https://app.example'] })
    const response = await fetch(url, { headers: { origin: 'https://app.example' } })
    t.equal(response.status, 200)
    t.strictSame(response.headers.getSetCookie(), ['session=abc; Path=/; HttpOnly; SameSite=Lax'])
    t.equal(response.headers.get('access-control-allow-origin'), 'https://app.example')
    t.equal(response.headers.get('access-control-allow-credentials'), 'true')
    t.equal(response.headers.get('x-content-type-options'), 'nosniff')
    t.ok(response.headers.get('content-security-policy'))
    t.equal(response.headers.get('content-type'), 'text/event-stream')
    connection!.sendEvent({ data: 'hello' })
    connection!.close()
    t.match(await response.text(), 'data: hello\n\n')
  })

  t.test('@fastify/compress swallows no event', async t => {
    for (const customTypes of [undefined, /event-stream|text/]) {
      let connection: SSEConnection | undefined
      const { url } = await start(t, async app => {
        await app.register(compress, { global: true, threshold: 0, ...(customTypes !== undefined && { customTypes }) })
        app.get('/', async (request, reply) => { connection = await reply.sse() })
        app.get('/text', async (request, reply) => reply.type('text/plain').send('x'.repeat(2000)))
      })
      const socket = raw(t, url, { headers: { 'accept-encoding': 'gzip, br' } })
      await socket.waitFor('id: ')
      t.notOk('content-encoding' in socket.answers[0]!.headers)
      connection!.sendEvent({ data: 'one' })
      await socket.waitFor('data: one\n\n')
      connection!.close()
      await socket.waitForAnswers(1)
      const text = raw(t, url, { path: '/text', headers: { 'accept-encoding': 'gzip' } })
      await text.waitFor('\r\n\r\n')
      t.equal(text.answers[0]!.headers['content-encoding'], 'gzip', 'it does compress other answers')
    }
  })

  const wrappers: Record<string, (payload: Readable) => Readable> = {
    'payload.pipe(gzip)': payload => payload.pipe(createGzip()),
    'pipeline(payload, gzip)': payload => pipeline(payload, createGzip(), () => {})
  }
  for (const [name, wrap] of Object.entries(wrappers)) {
    t.test(`a compressor put in by an onSend hook: ${name}`, async t => {
      let connection: SSEConnection | undefined
      const { app, url, log } = await start(t, app => {
        app.addHook('onSend', async (request, reply, payload) => {
          reply.header('content-encoding', 'gzip')
          return wrap(payload as Readable)
        })
        app.get('/', async (request, reply) => { connection = await reply.sse() })
        app.get('/source', (request, reply) => reply.sse((function * () { for (let i = 0; i < 2000; i++) yield `${i} ${'é'.repeat(200)}` })()))
      })
      const open = (path: string) => {
        const socket = raw(t, url, { path })
        const gunzip = createGunzip()
        let text = ''
        let fed = 0
        gunzip.on('data', bytes => { text += String(bytes) })
        gunzip.on('error', () => {})
        socket.socket.on('data', () => {
          const chunks = socket.answers[0]?.chunks ?? []
          if (chunks.length === 0) return
          // Bytes as they are: the decoded text of a chunk would have lost them.
          const all = rawBody(socket.bytes)
          gunzip.write(all.subarray(fed))
          fed = all.length
        })
        return { socket, text: () => text }
      }
      const first = open('/')
      await until(() => first.text().includes('id: '))
      t.equal(first.socket.answers[0]!.headers['content-encoding'], 'gzip')
      for (let i = 0; i < 5; i++) {
        connection!.sendEvent({ data: `event ${i}` })
        await until(() => first.text().includes(`data: event ${i}\n\n`), 10_000, `event ${i}, before a keep-alive`)
      }
      connection!.close()
      await until(() => first.socket.answers[0]!.complete && first.text().includes('sse:close'))
      t.match(first.text(), /event: sse:close\ndata: \{"reason":"closed","reconnect":false\}\n\n$/)
      await until(() => app.sse.connectionCount === 0)

      const source = open('/source')
      await until(() => source.socket.answers[0]?.complete)
      await until(() => source.text().includes('sse:close'))
      t.equal(dataOf(source.text()).length, 2000)

      const leaver = open('/')
      await until(() => leaver.text().includes('id: '))
      leaver.socket.close()
      await until(() => app.sse.connectionCount === 0)
      t.equal(connection!.signal.reason.closeReason, 'client')
      t.equal(connection!.sendEvent({ data: 'nobody' }), false)
      t.notMatch(log.lines.join(''), /uncaught|ERR_STREAM/)

      const head = raw(t, url, { method: 'HEAD', headers: { connection: 'close' } })
      await head.waitForClose()
      t.match(head.text, /^HTTP\/1\.1 200 OK\r\n/)
      await until(() => app.sse.connectionCount === 0)
    })
  }
})

/** The body of a chunked answer, byte by byte. */
function rawBody (bytes: Buffer): Buffer {
  const parts: Buffer[] = []
  let at = bytes.indexOf('\r\n\r\n') + 4
  while (at < bytes.length) {
    const lineEnd = bytes.indexOf('\r\n', at)
    if (lineEnd < 0) break
    const size = parseInt(bytes.toString('latin1', at, lineEnd), 16)
    if (size === 0 || bytes.length < lineEnd + 2 + size + 2) break
    parts.push(bytes.subarray(lineEnd + 2, lineEnd + 2 + size))
    at = lineEnd + 2 + size + 2
  }
  return Buffer.concat(parts)
}

t.test('sockets', async t => {
  t.test('as many requests as a client cares to pipeline wait, without a warning, and go with the socket', async t => {
    const warnings: Error[] = []
    const onWarning = (warning: Error) => { warnings.push(warning) }
    process.on('warning', onWarning)
    t.teardown(() => process.off('warning', onWarning))
    const { app, url } = await start(t, app => { app.get('/', async (request, reply) => { await reply.sse() }) })
    const socket = raw(t, url, {})
    for (let i = 0; i < 30; i++) socket.socket.write(requestText({}))
    await until(() => app.sse.connectionCount === 31)
    socket.socket.resetAndDestroy()
    await until(() => app.sse.connectionCount === 0)
    t.strictSame(warnings, [])
  })

  const routes: Register = app => {
    app.get('/managed', async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
    app.get('/source', (request, reply) => reply.sse(['a', 'b']))
    app.get('/json', async () => ({ json: true }))
  }

  t.test('a socket is used again after a stream ended', async t => {
    const { app, url } = await start(t, routes)
    const socket = raw(t, url, { path: '/source' })
    await socket.waitForAnswers(1)
    socket.send({ path: '/json' })
    await socket.waitForAnswers(2)
    for (let i = 3; i < 6; i++) {
      socket.send({ path: '/managed' })
      await until(() => app.sse.connectionCount === 1)
      await app.sse.broadcastEvent({ data: `event ${i}` })
      const [connection] = app.sse.connections()
      connection!.close()
      await socket.waitForAnswers(i)
    }
    const answers = socket.answers
    t.strictSame(answers.map(({ status }) => status), [200, 200, 200, 200, 200])
    t.strictSame(dataOf(answers[0]!.body), ['a', 'b'])
    t.strictSame(answers[1]!.body, '{"json":true}')
    t.strictSame(answers.slice(2).map(({ body }) => dataOf(body)), [['"event 3"'], ['"event 4"'], ['"event 5"']].map(list => list.map(text => JSON.parse(text) as string)))
    t.equal(app.sse.connectionCount, 0)
    t.equal(socket.closed, false)
  })

  t.test('a client that asks for the end of the socket gets it', async t => {
    const { url } = await start(t, routes)
    const socket = raw(t, url, { path: '/source', headers: { connection: 'close' } })
    const [answer] = await socket.waitForAnswers(1)
    t.strictSame(dataOf(answer!.body), ['a', 'b'])
    await socket.waitForClose()
    t.equal(answer!.headers['connection'], 'close')
  })

  t.test('requests sent ahead wait for the stream, and streams wait for requests', async t => {
    const { app, url } = await start(t, routes)
    const socket = raw(t, url)
    socket.socket.write(requestText({ path: '/json' }) + requestText({ path: '/managed' }) + requestText({ path: '/json' }) + requestText({ path: '/managed' }) + requestText({ path: '/source' }))
    await until(() => app.sse.connectionCount >= 2)
    const { delivered } = await app.sse.broadcastEvent({ data: 'for both' })
    t.equal(delivered, 2)
    await socket.waitFor('for both')
    t.equal(socket.answers.length, 2)
    const [first, second] = app.sse.connections()
    first!.close('one')
    await until(() => socket.answers.length === 4 && socket.answers[3]!.body.includes('for both'))
    await app.sse.broadcastEvent({ data: 'for the second' })
    await socket.waitFor('for the second')
    second!.close('two')
    const answers = await socket.waitForAnswers(5)
    t.strictSame(answers.map(({ status }) => status), [200, 200, 200, 200, 200])
    t.strictSame(answers.map(({ body }) => body.startsWith('{') ? body : dataOf(body).join()), ['{"json":true}', 'for both', '{"json":true}', 'for both,for the second', 'a,b'])
    await until(() => app.sse.connectionCount === 0)
  })

  t.test('streams behind a stream end with their socket', async t => {
    let release: (() => void) | null = null
    const codes: string[] = []
    const { app, url } = await start(t, app => {
      routes(app)
      app.get('/slow', async (request, reply) => {
        await new Promise<void>(resolve => { release = resolve })
        await reply.sse().catch((error: SSEError) => { codes.push(error.code) })
      })
    })
    for (const leave of ['FIN', 'RST'] as const) {
      const socket = raw(t, url)
      socket.socket.write(requestText({ path: '/managed' }) + requestText({ path: '/managed' }) + requestText({ path: '/source' }) + requestText({ path: '/slow' }))
      await until(() => app.sse.connectionCount === 3 && release !== null)
      if (leave === 'FIN') socket.close()
      else socket.socket.resetAndDestroy()
      await until(() => app.sse.connectionCount === 0, undefined, 'all streams of the socket to end')
      release!()
      release = null
      await until(() => codes.length > 0)
      t.strictSame(codes.splice(0), ['SSE_ERR_CLIENT_GONE'], `${leave}: nor does one begin later`)
      t.equal(app.sse.connectionCount, 0)
    }
  })

  t.test('HTTP/1.0 is delimited by the close', async t => {
    const { app, url } = await start(t, routes)
    const socket = raw(t, url, { path: '/managed', version: '1.0', headers: { connection: 'keep-alive' } })
    await socket.waitFor('id: ')
    await app.sse.broadcastEvent({ data: 'old' })
    await socket.waitFor('data: old\n\n')
    const [answer] = socket.answers
    t.notOk('transfer-encoding' in answer!.headers)
    t.equal(answer!.headers['connection'], 'close')
    t.match(answer!.body, /^: stream\n\nretry: 3000\n\nid: \S+\n\n/)
    const [connection] = app.sse.connections()
    connection!.close()
    await socket.waitForClose()
    t.ok(socket.text.endsWith('event: sse:close\ndata: {"reason":"closed","reconnect":false}\n\n'))
    t.equal(app.sse.connectionCount, 0)
  })

  const secure = createCertificate(t.testdir())
  const servers: Record<string, { options: object, scheme: string }> = {
    'HTTP/2 in clear text': { options: { http2: true }, scheme: 'http' },
    'HTTP/2 over TLS': { options: { http2: true, https: { ...secure, allowHTTP1: true } }, scheme: 'https' }
  }
  for (const [name, { options, scheme }] of Object.entries(servers)) {
    t.test(name, async t => {
      let cancelled = 0
      const { app, url } = await start(t, async app => {
        await app.register(cookie)
        routes(app)
        app.get('/cookie', async (request, reply) => {
          reply.setCookie('session', 'abc')
          await reply.sse()
        })
        app.get('/endless', (request, reply) => reply.sse((async function * () { try { for (;;) yield 'x'.repeat(10_000) } finally { cancelled++ } })()))
        app.get('/large', (request, reply) => reply.sse(['é'.repeat(500_000), 'b'.repeat(500_000)]))
      }, {}, options)
      const session = connectH2(url.replace('http', scheme))
      t.teardown(() => session.destroy())
      const warnings: Error[] = []
      const onWarning = (warning: Error) => { warnings.push(warning) }
      process.on('warning', onWarning)
      t.teardown(() => process.off('warning', onWarning))

      const stream = new H2Stream(session, '/cookie')
      await stream.waitFor('id: ')
      t.equal(stream.status, 200)
      t.match(stream.headers, { 'content-type': 'text/event-stream', 'x-accel-buffering': 'no', 'set-cookie': ['session=abc'] })
      t.notOk('connection' in stream.headers || 'transfer-encoding' in stream.headers)
      const second = new H2Stream(session, '/managed')
      await second.waitFor('id: ')
      await app.sse.broadcastEvent({ data: 'both' })
      await Promise.all([stream.waitFor('data: both\n\n'), second.waitFor('data: both\n\n')])
      await app.sse.broadcastToSubscriptions({ data: 'one' }, ['news'])
      await second.waitFor('data: one\n\n')
      t.notMatch(stream.text, 'data: one')

      const [first] = app.sse.connections()
      first!.close('kicked')
      await stream.waitForClose()
      t.equal(stream.ended, true)
      t.equal(stream.named('sse:close')[0]!.data, '{"reason":"kicked","reconnect":false}')
      second.stream.close(8)
      await until(() => app.sse.connectionCount === 0)
      t.strictSame(app.sse.stats().closed, { kicked: 1, client: 1 })

      const source = new H2Stream(session, '/large')
      await source.waitForClose()
      t.strictSame(dataOf(source.text).map(text => text.length), [500_000, 500_000])

      const endless = new H2Stream(session, '/endless')
      endless.stream.pause()
      await until(() => app.sse.stats().queuedBytes > 0 || endless.status === 200)
      t.ok(app.sse.stats().queuedBytes <= waitingAtMost(10_000))
      endless.stream.resume()
      await until(() => endless.text.length > 1_000_000)
      endless.stream.close(8)
      await until(() => cancelled === 1)

      const refused = new H2Stream(session, '/managed', { accept: 'text/html' })
      await refused.waitForClose()
      t.equal(refused.status, 406)
      const head = session.request({ ':path': '/managed', ':method': 'HEAD' })
      const [headers] = await once(head, 'response') as [Record<string, unknown>]
      t.match(headers, { ':status': 200, 'content-type': 'text/event-stream' })
      head.resume()
      await once(head, 'close')
      await until(() => app.sse.connectionCount === 0)

      // The whole session at once.
      const several = Array.from({ length: 5 }, () => new H2Stream(session, '/managed'))
      await Promise.all(several.map(stream => stream.waitFor('id: ')))
      t.equal(app.sse.connectionCount, 5)
      session.destroy()
      await until(() => app.sse.connectionCount === 0)
      t.strictSame(warnings, [])

      if (scheme === 'https') {
        const old = raw(t, url.replace('http', 'https'), { path: '/managed' })
        await old.waitFor('id: ')
        await app.sse.broadcastEvent({ data: 'HTTP/1.1 beside it' })
        await old.waitFor('HTTP/1.1 beside it')
        const [connection] = app.sse.connections()
        connection!.close()
        const [answer] = await old.waitForAnswers(1)
        t.strictSame(dataOf(answer!.body), ['HTTP/1.1 beside it'])
      }
    })
  }

  t.test('HTTPS', async t => {
    const { app, url } = await start(t, routes, {}, { https: secure } as FastifyServerOptions)
    const socket = raw(t, url.replace('http', 'https'), { path: '/managed' })
    await socket.waitFor('id: ')
    for (let i = 0; i < 20; i++) await app.sse.broadcastEvent({ data: `${i} ${'ü'.repeat(20_000)}` })
    const [connection] = app.sse.connections()
    await socket.waitFor('data: 19 ')
    connection!.close()
    const [answer] = await socket.waitForAnswers(1)
    t.equal(dataOf(answer!.body).length, 20)
  })

  t.test('inject with payloadAsStream, and its abort', async t => {
    const { app } = await start(t, routes)
    const ended = await app.inject({ url: '/source', payloadAsStream: true })
    t.equal(ended.statusCode, 200)
    let text = ''
    for await (const bytes of ended.stream()) text += String(bytes)
    t.strictSame(dataOf(text), ['a', 'b'])

    const controller = new AbortController()
    const response = await app.inject({ url: '/managed', payloadAsStream: true, signal: controller.signal })
    t.equal(response.headers['content-type'], 'text/event-stream')
    let received = ''
    response.stream().on('data', bytes => { received += String(bytes) })
    response.stream().on('error', () => {})
    await app.sse.broadcastEvent({ data: 'injected' })
    await until(() => received.includes('data: injected\n\n'))
    t.match(received, /^: stream\n\nretry: 3000\n\nid: \S+\n\nid: \S+\ndata: injected\n\n$/)
    const [connection] = app.sse.connections()
    const { signal } = connection!
    controller.abort()
    await until(() => app.sse.connectionCount === 0)
    t.equal(signal.reason.closeReason, 'client')
  })
})

t.test('createConnection', async t => {
  const authHandler: NonNullable<SSEOptions['authHandler']> = ({ token }) => token
  type Open = (manager: SSEManager, request: any, response: any) => Promise<void>

  const serveHttp = async (t: Test, server: Server | Http2Server): Promise<string> => {
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.teardown(() => new Promise<void>(resolve => { server.close(() => resolve()) }))
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  }

  const open: Open = async (manager, request, response) => {
    try {
      const connection = await manager.createConnection({ request, response, subscriptions: ['news'], clientInfo: { device: 'watch' } })
      connection.sendData('welcome', { user: connection.userId })
    } catch (error) {
      // Untouched: the application's own answer, head and all.
      t.equal(response.headersSent, false)
      t.strictSame(Object.keys(response.getHeaders()).filter(name => name !== 'x-powered-by'), [])
      response.writeHead((error as SSEError).statusCode, { 'content-type': 'text/plain' })
      response.end((error as SSEError).code)
    }
  }

  const plain = (manager: SSEManager): Server => createServer((request, response) => { open(manager, request, response) })
  const inExpress = (manager: SSEManager): Server => {
    const app = express()
    app.use((request, response, next) => {
      response.locals['seen'] = true
      next()
    })
    app.get('/sse', (request, response) => open(manager, request, response))
    return createServer(app)
  }

  for (const [name, create] of Object.entries({ 'node:http': plain, 'Express 5': inExpress })) {
    t.test(name, async t => {
      const manager = new SSEManager({ authHandler, requireAuthentication: true, authorizeSubscription: ({ userId }) => userId !== 'eve', drainMs: 300, maxConnections: 2 })
      const url = `${await serveHttp(t, create(manager))}/sse`
      t.teardown(() => manager.close())
      const path = '/sse'
      const get = async (headers: Record<string, string>): Promise<[number, string]> => {
        const response = await fetch(url, { headers })
        return [response.status, await response.text()]
      }
      t.strictSame(await get({}), [401, 'SSE_ERR_UNAUTHENTICATED'])
      t.strictSame(await get({ authorization: 'Bearer eve' }), [403, 'SSE_ERR_SUBSCRIPTION_FORBIDDEN'])
      t.strictSame(await get({ authorization: 'Bearer ada', accept: 'text/html' }), [406, 'SSE_ERR_NOT_ACCEPTABLE'])
      t.equal(manager.connectionCount, 0)

      const socket = raw(t, url, { path, headers: { authorization: 'Bearer ada', 'user-agent': 'test/1' } })
      await socket.waitFor('welcome')
      const [answer] = socket.answers
      t.equal(answer!.status, 200)
      t.match(answer!.headers, { 'content-type': 'text/event-stream', 'transfer-encoding': 'chunked', 'x-accel-buffering': 'no' })
      t.strictSame(dataOf(answer!.body), ['{"resource":"welcome","data":{"user":"ada"}}'])
      const [connection] = manager.getConnectionsByUser('ada')
      t.match(connection!.clientInfo, { device: 'watch', ip: '127.0.0.1', userAgent: 'test/1', connectedAt: Number })
      t.equal((await manager.broadcastToSubscriptions({ event: 'headline', data: 'é' }, ['news'])).delivered, 1)
      await socket.waitFor('event: headline\ndata: é\n\n')

      // Another one leaves, a third comes in its place; a HEAD request counts for nothing.
      const second = raw(t, url, { path, headers: { authorization: 'Bearer bob' } })
      await second.waitFor('welcome')
      t.strictSame(await get({ authorization: 'Bearer cid' }), [503, 'SSE_ERR_TOO_MANY_CONNECTIONS'])
      second.close()
      await until(() => manager.connectionCount === 1)
      const head = raw(t, url, { method: 'HEAD', path, headers: { authorization: 'Bearer ada', connection: 'close' } })
      await head.waitForClose()
      t.match(head.text, /^HTTP\/1\.1 200 OK\r\n/)
      await until(() => manager.connectionCount === 1)

      // Resumed by the cursor it was told.
      const { lastEventId } = await SSEClient.open(url, { headers: { authorization: 'Bearer dan' } }).then(client => {
        client.close()
        return client
      })
      await until(() => manager.connectionCount === 1)
      await manager.broadcastToSubscriptions({ data: 'missed' }, ['news'])
      const returning = raw(t, url, { path, headers: { authorization: 'Bearer dan', 'last-event-id': lastEventId } })
      await returning.waitFor('data: missed\n\n')

      await manager.close()
      await socket.waitForAnswers(1)
      t.match(socket.text, '"reason":"shutdown","reconnect":true')
      t.strictSame(await get({ authorization: 'Bearer ada' }), [503, 'SSE_ERR_CLOSED'])
    })
  }

  t.test('node:http2', async t => {
    const manager = new SSEManager({ authHandler, drainMs: 300 })
    const server = createH2Server((request, response) => { open(manager, request, response) })
    const url = await serveHttp(t, server)
    const session = connectH2(url)
    t.teardown(() => session.destroy())
    t.teardown(() => manager.close())
    const stream = new H2Stream(session, '/sse', { authorization: 'Bearer ada' })
    await stream.waitFor('welcome')
    t.equal(stream.headers['content-type'], 'text/event-stream')
    await manager.broadcastToUsers({ data: 'you' }, ['ada'])
    await stream.waitFor('data: you\n\n')
    t.equal(await manager.disconnectUser('ada'), 1)
    await stream.waitForClose()
    t.equal(stream.ended, true)
    t.equal(manager.connectionCount, 0)
  })

  t.test('the user that the application names is held to the rules of authHandler', async t => {
    const manager = new SSEManager({ authHandler, requireAuthentication: true, drainMs: 300 })
    const users: Record<string, unknown> = { nobody: null, number: { userId: 7 }, time: { userId: 'ada', expiresAt: NaN }, seconds: { userId: 'ada', expiresAt: Date.now() / 1000 + 60 }, expired: { userId: 'ada', expiresAt: Date.now() - 1 }, id: 'ada', user: { userId: 'ada' } }
    const url = await serveHttp(t, createServer((request, response) => {
      manager.createConnection({ request, response, user: users[request.url!.slice(1)] as { userId: string }, lastEventId: '' }).then(
        connection => connection.sendData('user', connection.userId),
        error => response.writeHead(error.statusCode).end(error.code))
    }))
    t.teardown(() => manager.close())
    const get = async (path: string) => (await raw(t, url, { path: `/${path}`, headers: { connection: 'close' } }).waitForAnswers(1))[0]!.body
    t.equal(await get('nobody'), 'SSE_ERR_UNAUTHENTICATED')
    t.equal(await get('expired'), 'SSE_ERR_UNAUTHENTICATED')
    t.equal(await get('number'), 'SSE_ERR_INVALID_USER')
    t.equal(await get('time'), 'SSE_ERR_INVALID_USER')
    t.equal(await get('seconds'), 'SSE_ERR_INVALID_USER')
    t.equal(manager.connectionCount, 0)
    for (const path of ['id', 'user']) {
      const socket = raw(t, url, { path: `/${path}` })
      await socket.waitFor('"data":"ada"')
      t.notMatch(socket.text, 'sse:gap', 'an empty cursor is none')
    }
  })

  t.test('what is not an option opens no stream: a misspelt user would be an anonymous one', async t => {
    const manager = new SSEManager({ drainMs: 300 })
    const attempts: [object, RegExp][] = [
      [{ userId: 'ada' }, /"userId" of createConnection\(\) is not an option: it has request, response, user, authData, subscriptions,/],
      [{ subscription: ['a'] }, /"subscription" of createConnection\(\) is not an option/],
      [{ requireAuthentication: true }, /"requireAuthentication"/],
      [{ user: undefined }, /"user" of createConnection\(\) is undefined: .* null for an anonymous connection/]
    ]
    const url = await serveHttp(t, createServer((request, response) => {
      const [options] = attempts[Number(request.url!.slice(1))] ?? [{}]
      manager.createConnection({ request, response, ...options }).then(() => {}, error => manager.refuse({ request, response }, error))
    }))
    t.teardown(() => manager.close())
    for (const [i, [, message]] of attempts.entries()) {
      const [answer] = await raw(t, url, { path: `/${i}`, headers: { accept: 'application/json', connection: 'close' } }).waitForAnswers(1)
      t.equal(answer!.status, 500)
      t.match(JSON.parse(answer!.body), { code: 'SSE_ERR_INVALID_OPTION', message })
    }
    t.equal(manager.connectionCount, 0)
    await raw(t, url, { path: '/none' }).waitFor('id: ')
  })

  t.test('what wraps a response may throw: that stream ends, the others go on', async t => {
    const manager = new SSEManager({ drainMs: 300 }, { error: (details, message) => { logged.push(message) }, warn () {}, info () {}, debug () {} })
    const logged: string[] = []
    const url = await serveHttp(t, createServer((request, response) => {
      if (request.url === '/broken') {
        let writes = 0
        const { write } = response
        response.write = function (this: typeof response, ...args: unknown[]) {
          if (writes++ > 0) throw new Error('broken pipe')
          return (write as (...args: unknown[]) => boolean).apply(this, args)
        } as typeof response.write
      }
      manager.createConnection({ request, response })
    }))
    t.teardown(() => manager.close())
    const broken = raw(t, url, { path: '/broken' })
    await broken.waitFor('id: ')
    const sound = raw(t, url, {})
    await sound.waitFor('id: ')
    await manager.broadcastEvent({ data: 'one' })
    await broken.waitForClose()
    await manager.broadcastEvent({ data: 'two' })
    await sound.waitFor('data: two')
    t.match(logged, [/wrapped response threw/])
    t.equal(manager.connectionCount, 1)
  })

  t.test('the user the application knows already; the same response twice; a response that has begun', async t => {
    const manager = new SSEManager({ authHandler: () => { throw new Error('not asked') }, drainMs: 300 })
    const codes: string[] = []
    const url = await serveHttp(t, createServer(async (request, response) => {
      const connect = async () => {
        try {
          const connection = await manager.createConnection({ request, response, user: request.url === '/nobody' ? null : { userId: 'ada', claims: { role: 'admin' } } })
          t.equal(connection.isAuthenticated, request.url !== '/nobody')
          if (request.url !== '/nobody') t.strictSame(connection.claims, { role: 'admin' })
        } catch (error) {
          codes.push((error as SSEError).code)
        }
      }
      if (request.url === '/begun') {
        response.writeHead(200)
        response.write('mine')
      }
      await Promise.all([connect(), connect()])
      for (const connection of manager.connections()) connection.close()
      if (request.url === '/begun') response.end()
    }))
    t.teardown(() => manager.close())
    for (const path of ['/', '/nobody']) {
      codes.length = 0
      const [answer] = await raw(t, url, { path }).waitForAnswers(1)
      t.match(answer!.body, /"reason":"closed","reconnect":false\}\n\n$/)
      t.strictSame(codes, ['SSE_ERR_HEAD_ALREADY_SENT'], path)
      await until(() => manager.connectionCount === 0)
    }
    codes.length = 0
    const [answer] = await raw(t, url, { path: '/begun' }).waitForAnswers(1)
    t.equal(answer!.body, 'mine')
    t.strictSame(codes, ['SSE_ERR_HEAD_ALREADY_SENT', 'SSE_ERR_HEAD_ALREADY_SENT'])
  })

  t.test('a client that left meanwhile', async t => {
    let asked = false
    const manager = new SSEManager({
      authHandler: async (authData, request) => {
        asked = true
        await once(request.socket, 'close')
        return 'ada'
      },
      drainMs: 300
    })
    const codes: string[] = []
    const url = await serveHttp(t, createServer((request, response) => {
      manager.createConnection({ request, response }).then(() => codes.push('opened'), error => { codes.push(error.code) })
    }))
    t.teardown(() => manager.close())
    const socket = raw(t, url, {})
    await until(() => asked)
    socket.close()
    await until(() => codes.length === 1)
    t.strictSame(codes, ['SSE_ERR_CLIENT_GONE'])
    t.equal(manager.connectionCount, 0)
  })

  t.test('a response that something has wrapped is written through the wrapper', async t => {
    const manager = new SSEManager({ drainMs: 300 })
    let seen = 0
    const url = await serveHttp(t, createServer((request, response) => {
      const { write } = response
      response.write = function (this: typeof response, ...args: unknown[]) {
        seen++
        return (write as (...args: unknown[]) => boolean).apply(this, args)
      } as typeof response.write
      manager.createConnection({ request, response })
    }))
    t.teardown(() => manager.close())
    const socket = raw(t, url, {})
    await socket.waitFor('id: ')
    await manager.broadcastEvent({ data: 'through' })
    await socket.waitFor('data: through\n\n')
    t.equal(seen, 2)
    for (const connection of manager.connections()) connection.close()
    const [answer] = await socket.waitForAnswers(1)
    t.strictSame(dataOf(answer!.body), ['through'])
  })
})
