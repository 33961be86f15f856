import { once } from 'node:events'
import { Readable } from 'node:stream'
import { ReadableStream } from 'node:stream/web'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import type { Source, SourceFactory } from '../../lib/index.js'
import { blocksOf, dataOf, RawSocket } from '../helpers/raw.js'
import { raw, start, startSource } from '../helpers/reply.js'
import { turns, until } from '../helpers/wait.js'

const never = new Promise<never>(() => {})

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

t.test('a factory that answers while its stream closes: its Node stream is stopped, and may fail then', async t => {
  let answer!: (source: Source) => void
  const { app, url } = await startSource(t, () => () => new Promise<Source>(resolve => { answer = resolve }), { maxEventBytes: 1 << 25, drainMs: 60_000 })
  const socket = raw(t, url, {})
  await socket.waitFor('\n\n')
  const [connection] = app.sse.connections()
  // The client does not read, so the stream closes, and does not end.
  socket.socket.pause()
  connection!.sendEvent({ event: 'x', data: 'x'.repeat(20_000_000) })
  connection!.close('kicked')
  t.equal(app.sse.connectionCount, 1)
  let isStopped = false
  answer(new Readable({ read () {}, destroy (_, done) { isStopped = true; done(new Error('too late')) } }))
  await until(() => isStopped)
  await turns()
  t.equal(connection!.signal.aborted, false)
  socket.close()
  await until(() => app.sse.connectionCount === 0)
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
    'lone surrogate': () => ['\ud800'],
    'half of a character before another character': () => ['\ud800', 'a'],
    'the second half of a character alone': () => ['\udc00']
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
