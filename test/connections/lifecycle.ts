import { type FastifyInstance } from 'fastify'
import { EventEmitter, once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { SSEError, type SSEConnection, type SSEOptions } from '../../lib/index.js'
import { block, payloads, serve } from '../helpers/app.js'
import { blocksOf, RawSocket } from '../helpers/raw.js'
import { listenForTrouble } from '../helpers/trouble.js'
import { until } from '../helpers/wait.js'
import type { TestStream } from '../../lib/testing/index.js'

// The end of a connection, whoever ends it and however: told to the client, and nothing left behind.

const closes = (stream: TestStream): unknown[] => payloads(stream, 'sse:close')

t.test('silence', async t => {
  t.test('keep-alives come in silence only', async t => {
    const intervalMs = 150
    const { join } = await serve(t, { keepAliveIntervalMs: intervalMs })
    const startedAt = performance.now()
    const { stream, connection } = await join('ada')
    const sentAt: number[] = []
    for (let i = 0; i < 60; i++) {
      sentAt.push(performance.now())
      connection.sendEvent({ data: i })
      await sleep(15)
    }
    await stream.collect(60, 'message')
    let event = -1
    for (const block of blocksOf(stream.text)) {
      if (block.data !== null) event++
      // A machine that was busy with something else may have made a silence of its own.
      else if (block.comment === 'keep-alive') t.ok(sentAt[event + 1]! - (sentAt[event] ?? startedAt) >= intervalMs * 0.8, `a keep-alive after event ${event} of a busy stream`)
    }
    const busy = blocksOf(stream.text).length
    t.ok(sentAt[59]! - sentAt[0]! > intervalMs * 3, 'busy for longer than the interval')
    await until(() => blocksOf(stream.text).slice(busy).filter(({ comment }) => comment === 'keep-alive').length >= 3)
    t.strictSame([...new Set(blocksOf(stream.text).slice(busy).map(({ text }) => text))], [': keep-alive'])
  })

  t.test('when the log has moved on with nothing for a client, a block without an event keeps its place', async t => {
    const { app, join } = await serve(t, { keepAliveIntervalMs: 40 })
    const quiet = await join('ada', ['quiet'])
    const place = quiet.stream.lastEventId
    await until(() => quiet.stream.comments.includes('keep-alive'))
    t.equal(quiet.stream.lastEventId, place)
    t.equal(blocksOf(quiet.stream.text).filter(({ id }) => id !== null).length, 1, 'no cursor is repeated')
    let id: string | null = null
    for (let i = 0; i < 5; i++) ({ id } = await app.sse.broadcastToSubscriptions({ data: i }, ['elsewhere']))
    await until(() => quiet.stream.lastEventId === id)
    const block = blocksOf(quiet.stream.text).at(-1)!
    t.strictSame([block.data, block.text], [null, `id: ${id}`])
    t.equal(quiet.stream.events.length, 0)
    await until(() => blocksOf(quiet.stream.text).slice(-2).every(({ comment }) => comment === 'keep-alive'))
  })

  t.test('none when they are switched off', async t => {
    const { app, join } = await serve(t, { keepAlive: false, keepAliveIntervalMs: 10 })
    const { stream } = await join('ada', ['quiet'])
    // Its place is kept all the same: a gap after a long silence would be a false one.
    for (let i = 0; i < 10; i++) {
      const { id } = await app.sse.broadcastToSubscriptions({ data: i }, ['elsewhere'])
      await until(() => stream.lastEventId === id)
    }
    t.equal(stream.comments.filter(comment => comment === 'keep-alive').length, 0)
  })

  t.test('with keepAlive: event, a page receives them, with its cursor', async t => {
    const { app, join, open } = await serve(t, { keepAlive: 'event', keepAliveIntervalMs: 40 }, {}, app => {
      app.get('/source', (request, reply) => reply.sse(async function * ({ signal }) {
        await once(signal, 'abort')
      }))
    })
    const { stream } = await join('ada', ['quiet'])
    t.equal(stream.comments[0], 'stream keep-alive=40', 'the interval is in the first comment')
    const first = await stream.next('sse:ping')
    t.strictSame([first.id, first.json], [app.sse.position(), { lastEventId: app.sse.position() }])
    const { id } = await app.sse.broadcastToSubscriptions({ data: 1 }, ['elsewhere'])
    await stream.until(() => stream.named('sse:ping').some(ping => ping.id === id && (ping.json as { lastEventId: string }).lastEventId === id))
    t.strictSame(stream.comments.slice(1), [], 'and no comments')
    const pending = await join('ada', [], { snapshot: { load: () => new Promise<never>(() => {}) } })
    t.strictSame((await pending.stream.next('sse:ping')).json, { lastEventId: null }, 'no cursor before the state')
    t.equal(pending.stream.lastEventId, '')
    const source = await open('/source')
    await source.until(() => source.comments.includes('keep-alive'))
    t.strictSame(source.events, [], 'a source decides alone which events its client receives')

    const batching = await serve(t, { keepAlive: 'event', keepAliveIntervalMs: 20, flush: { intervalMs: 90 } })
    const batched = await batching.join('ada', ['a'])
    for (let n = 0; n < 8; n++) {
      const { id } = await batching.app.sse.broadcastToSubscriptions({ event: 'x', data: n }, ['a'])
      await batched.stream.until(() => batched.stream.lastEventId === id)
      t.equal(batched.stream.named('x').at(-1)?.id, id, 'no ping has the cursor of an event that waits')
    }

    const off = await serve(t, { keepAlive: false })
    t.strictSame((await off.join()).stream.comments, ['stream'])
  })

  t.test('a stream of its own source is kept awake as well, without a cursor', async t => {
    const { open, app } = await serve(t, { keepAliveIntervalMs: 20 }, {}, app => {
      app.get('/source', (request, reply) => reply.sse(async function * ({ signal }) {
        yield 'a'
        await once(signal, 'abort')
      }))
    })
    const stream = await open('/source')
    await app.sse.broadcastEvent({ data: 'not for you' })
    await until(() => stream.comments.filter(comment => comment === 'keep-alive').length >= 2)
    t.strictSame(blocksOf(stream.text).filter(({ id }) => id !== null), [])
    t.strictSame(stream.events.map(({ data }) => data), ['a'])
  })
})

t.test('every way a stream ends: the reason is told to client, signal and counters', async t => {
  interface Case {
    options?: SSEOptions
    end?: (service: { app: FastifyInstance, stream: TestStream, connection: SSEConnection }) => unknown
    reason: string
    reconnect?: boolean
    /** The client is not there, or not reading. */
    untold?: boolean
  }
  const cases: Record<string, Case> = {
    'connection.close()': { end: ({ connection }) => connection.close(), reason: 'closed', reconnect: false },
    'connection.close(reason)': { end: ({ connection }) => connection.close('bye'), reason: 'bye', reconnect: false },
    closeConnection: { end: ({ app, connection }) => app.sse.closeConnection(connection.clientId), reason: 'closed', reconnect: false },
    'closeConnection with a reason': { end: ({ app, connection }) => app.sse.closeConnection(connection.clientId, 'kicked'), reason: 'kicked', reconnect: false },
    disconnectUser: { end: ({ app }) => app.sse.disconnectUser('ada'), reason: 'disconnected', reconnect: false },
    'disconnectUser with a reason': { end: ({ app }) => app.sse.disconnectUser('ada', 'banned'), reason: 'banned', reconnect: false },
    drain: { end: ({ app }) => app.sse.drain(), reason: 'shutdown', reconnect: true },
    'maximum age': { options: { maxConnectionAgeMs: 100, retryMs: 400 }, reason: 'max-age', reconnect: true },
    'end of the rights': { options: { authHandler: () => ({ userId: 'ada', expiresAt: Date.now() + 100 }) }, reason: 'auth-expired', reconnect: true },
    'rights that end before the age': { options: { maxConnectionAgeMs: 60_000, authHandler: () => ({ userId: 'ada', expiresAt: Date.now() + 100 }) }, reason: 'auth-expired', reconnect: true },
    'an age before the end of the rights': { options: { maxConnectionAgeMs: 100, authHandler: () => ({ userId: 'ada', expiresAt: Date.now() + 60_000 }) }, reason: 'max-age', reconnect: true },
    FIN: { end: ({ stream }) => stream.halfClose(), reason: 'client', untold: true },
    RST: { end: ({ stream }) => stream.cut(), reason: 'client', untold: true },
    // Nothing else is due in the time that a test has.
    'a client that does not read': {
      options: { stallTimeoutMs: 200, keepAliveIntervalMs: 3_600_000 },
      end: ({ stream, connection }) => block({ stream, connection }),
      reason: 'stalled',
      untold: true
    },
    'end of the rights while the client does not read': {
      options: { keepAliveIntervalMs: 3_600_000, stallTimeoutMs: 3_600_000, drainMs: 100, authHandler: () => ({ userId: 'ada', expiresAt: Date.now() + 1_000 }) },
      end: ({ stream, connection }) => block({ stream, connection }),
      reason: 'auth-expired',
      untold: true
    },
    'a client that does not read a log': {
      options: { stallTimeoutMs: 200, keepAliveIntervalMs: 3_600_000 },
      end: async ({ stream, connection, app }) => {
        stream.freeze()
        for (let i = 0; i < 500 && connection.isConnected; i++) {
          await app.sse.broadcastEvent({ data: 'x'.repeat(50_000) })
          await new Promise(setImmediate)
        }
      },
      reason: 'stalled',
      untold: true
    }
  }
  for (const [name, { options, end, reason, reconnect, untold = false }] of Object.entries(cases)) {
    await t.test(name, async t => {
      const { app, join } = await serve(t, { drainMs: 2000, ...options })
      const { stream, connection } = await join('ada', ['news'])
      const { signal } = connection
      const aborts: unknown[] = []
      signal.addEventListener('abort', () => { aborts.push(signal.reason.closeReason) })
      if (end === undefined) t.equal(connection.isConnected, true)
      await end?.({ app, stream, connection })
      await until(() => aborts.length > 0)
      t.strictSame(aborts, [reason])
      t.equal(connection.closeReason, reason)
      t.equal(connection.isConnected, false)
      t.strictSame(app.sse.stats().closed, { [reason]: 1 })
      t.equal(app.sse.connectionCount, 0)
      t.equal(app.sse.getConnection(connection.clientId), undefined)

      // Nothing is sent to it any more, nothing throws, nothing waits.
      t.equal(connection.sendEvent({ data: 1 }), false)
      t.equal(connection.sendData('a', 1), false)
      t.equal(connection.sendNotification({ title: 'a', message: 'b' }), false)
      connection.close('again')
      t.equal(connection.closeReason, reason)
      t.match(await app.sse.broadcastEvent({ data: 1 }), { delivered: 0 })
      t.match(connection.stats(), { queuedBytes: 0, lagging: false })
      t.equal(await app.sse.closeConnection(connection.clientId), false)
      t.equal(await app.sse.disconnectUser('ada'), 0)
      await t.rejects(connection.addSubscription('more'), { code: 'SSE_ERR_UNKNOWN_CONNECTION' })
      await t.rejects(connection.removeSubscription('news'), { code: 'SSE_ERR_UNKNOWN_CONNECTION' })

      if (untold) return
      await stream.ended
      t.equal((await stream.ended).by === 'server', true)
      t.strictSame(closes(stream), [{ reason, reconnect }])
      const last = blocksOf(stream.text).at(-1)!
      t.equal(last.event, 'sse:close')
      const farewell = blocksOf(stream.text).slice(3)
      t.equal(farewell.filter(({ id }) => id !== null).length >= 1, true, 'its place')
    })
  }

  t.test('reasons are checked', async t => {
    const { app, join } = await serve(t)
    const { stream, connection } = await join('ada')
    for (const reason of ['', 'Two Words', 'a\nb', 'x'.repeat(65), 'é']) {
      await t.rejects(app.sse.closeConnection(connection.clientId, reason), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
      await t.rejects(app.sse.disconnectUser('ada', reason), { code: 'SSE_ERR_INVALID_CLOSE_REASON' })
    }
    t.equal(connection.isConnected, true)
    t.equal(await app.sse.closeConnection('nobody'), false)
    t.equal(await app.sse.disconnectUser('nobody'), 0)
    const second = await join('ada')
    t.equal(await app.sse.disconnectUser('ada', 'x'.repeat(64)), 2)
    await Promise.all([stream.ended, second.stream.ended])
    t.match(closes(second.stream), [{ reason: 'x'.repeat(64) }])
  })

  t.test('a signal asked for after the end is aborted already', async t => {
    const { app, join } = await serve(t)
    const { connection } = await join('ada')
    connection.close('early')
    await until(() => app.sse.connectionCount === 0)
    t.equal(connection.signal.aborted, true)
    t.equal(connection.signal.reason.closeReason, 'early')
  })

  t.test('what was sent in the turn of the close still arrives, then the place, then the close', async t => {
    const { app, join } = await serve(t)
    const { stream, connection } = await join('ada')
    const { id } = await app.sse.broadcastEvent({ data: 'one' })
    connection.sendEvent({ data: 'two' })
    connection.close('done')
    t.equal(connection.sendEvent({ data: 'three' }), false)
    await stream.ended
    t.strictSame(blocksOf(stream.text).slice(3).map(({ text }) => text), [
      `id: ${id}\ndata: one`, 'data: two', `id: ${id}`, 'event: sse:close\ndata: {"reason":"done","reconnect":false}'
    ])
  })
})

t.test('the signal of a stream that ends aborts as fetch, Node and SDKs expect it', async t => {
  const { app, open, url } = await serve(t, {}, {}, app => {
    app.get('/never', () => new Promise(() => {}))
    app.get('/source', (request, reply) => reply.sse(async function * ({ signal }) {
      yield 'x'
      const attempts = [fetch(`${url}/never`, { signal }), sleep(60_000, null, { signal }), once(new EventEmitter(), 'never', { signal }), fetch(`${url}/never`, { signal: AbortSignal.any([signal]) })]
      errors.push(...(await Promise.allSettled(attempts)).map(result => (result as PromiseRejectedResult).reason))
      try {
        signal.throwIfAborted()
      } catch (error) {
        errors.push(error)
      }
    }))
  })
  const errors: any[] = []
  const stream = await open('/source')
  await stream.next('message')
  await stream.close()
  await until(() => errors.length === 5)
  // As SDKs tell an abort from a failure.
  for (const error of errors) t.ok(error instanceof Error && error.name === 'AbortError', `${error}`)
  t.match(errors[4], { code: 'SSE_ERR_STREAM_ENDED', closeReason: 'client', message: 'The stream has ended: client' })
  t.ok(errors[4] instanceof SSEError)
  t.equal(errors[0], errors[4], 'fetch rejects with it')
  t.equal(app.sse.connectionCount, 0)
})

t.test('what listens to the signal as soon as there is a connection hears of its end, also when that was before', async t => {
  let leave: (() => void) | null = null
  let heard: string[] = []
  const listen = async (connection: SSEConnection): Promise<void> => {
    const { signal } = connection
    signal.addEventListener('abort', () => { heard.push(`listener ${connection.closeReason}`) })
    signal.onabort = () => { heard.push('onabort') }
    await once(signal, 'abort')
    heard.push('once')
  }
  const { app, url } = await serve(t, {}, {}, app => {
    app.addHook('onSend', async (request, reply, payload) => {
      if (request.url !== '/gone') return payload
      // The client leaves while the head is made.
      await new Promise<void>(resolve => {
        reply.raw.once('close', resolve)
        leave!()
      })
      return payload
    })
    for (const path of ['/marked', '/gone']) app.get(path, { sse: true }, async (request, reply) => { await listen(await reply.sse()) })
    app.get('/plain', async (request, reply) => { await listen(await reply.sse()) })
    app.get('/bare', async (request, reply) => {
      reply.hijack()
      await listen(await app.sse.createConnection({ request: request.raw, response: reply.raw }))
    })
  })
  const hears = async (reason: string, name: string) => {
    await until(() => heard.length === 3, undefined, name)
    t.strictSame(heard, [`listener ${reason}`, 'onabort', 'once'], name)
    heard = []
  }
  for (const path of ['/marked', '/plain', '/bare']) {
    await app.inject({ method: 'HEAD', url: path })
    await hears('head', `HEAD of inject ${path}`)
    const socket = new RawSocket(url, { method: 'HEAD', path })
    t.teardown(() => socket.close())
    await hears('head', `HEAD ${path}`)
  }
  const { socket } = new RawSocket(url, { path: '/gone' })
  leave = () => socket.resetAndDestroy()
  await hears('client', 'a client that leaves while the head is made')
})

t.test('a handler that goes on sending after the client left harms nobody', async t => {
  const trouble = listenForTrouble(t)
  let results: boolean[] = []
  let finished = false
  const { app, open, join } = await serve(t, {}, {}, app => {
    app.get('/stubborn', async (request, reply) => {
      const connection = await reply.sse()
      connection.sendEvent({ data: 'hello' })
      await until(() => connection.signal.aborted)
      results = Array.from({ length: 1000 }, (_, i) => connection.sendEvent({ data: 'x'.repeat(i) }))
      for (let i = 0; i < 100; i++) await app.sse.broadcastEvent({ data: i }, { clientIds: [connection.clientId] })
      connection.close()
      finished = true
    })
  })
  const other = await join('bob')
  const stream = await open('/stubborn')
  await stream.next('message')
  await stream.cut()
  await until(() => finished)
  t.equal(results.length, 1000)
  t.ok(results.every(result => !result))
  other.connection.sendEvent({ data: 'still here' })
  await other.stream.next('message')
  t.match(app.sse.stats(), { connections: 1, queuedBytes: 0 })
  t.strictSame(trouble, [])
})

t.test('a response that throws when its time is over ends by itself', async t => {
  const trouble = listenForTrouble(t)
  let failing = false
  const { app, open } = await serve(t, { maxConnectionAgeMs: 100 }, {}, app => {
    app.addHook('onRequest', async (request, { raw }) => {
      const { write } = raw
      raw.write = ((...args: Parameters<typeof write>) => { if (failing) throw new Error('write failed'); else return write.apply(raw, args) }) as typeof write
    })
  })
  const stream = await open('/sse')
  failing = true
  await until(() => !stream.isOpen)
  t.strictSame(app.sse.stats().closed, { 'max-age': 1 })
  t.strictSame(trouble, [])
})
