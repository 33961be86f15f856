import { getEventListeners, once } from 'node:events'
import { createServer } from 'node:http'
import t, { type Test } from 'tap'
import { readEvents, readRun, type ClientEvent, type EventReader, type ReadRunOptions } from '../../lib/client/index.js'
import { kClock } from '../../lib/util/clock.js'
import { serve } from '../helpers/app.js'
import { Network } from '../helpers/network.js'
import { Hand } from '../helpers/runs.js'
import { turns, until } from '../helpers/wait.js'
import { cut, ended, script, status, stream, testClock, timed, type Answer } from './clients.js'
import { counted } from './timers.js'

/** A server with runs, behind a network that can be cut. POST starts a run of the hand, or joins it; GET reads it; DELETE stops it. */
async function serveAnswers (t: Test) {
  const hand = new Hand()
  const bodies: unknown[] = []
  const { app, url } = await serve(t, { retryMs: 100 }, {}, app => {
    const owner = { ownerId: null }
    app.post('/answers/:id', { sse: true }, async (request, reply) => {
      bodies.push(request.body)
      const { run } = await app.sse.startRun((request.params as { id: string }).id, hand.factory, owner)
      return await reply.sse(run)
    })
    app.get('/answers/:id', { sse: true }, async (request, reply) => await reply.sse(await app.sse.getRun((request.params as { id: string }).id, owner)))
  })
  const network = await Network.start(t, Number(new URL(url).port))
  return { app, hand, bodies, network, url: `${network.url}/answers/7` }
}

/** What a loop has read so far. */
function collect (reader: EventReader): { texts: string[], finished: Promise<unknown> } {
  const texts: string[] = []
  const finished = (async () => {
    for (;;) {
      const { done, value } = await reader.next()
      if (done === true) return value
      texts.push(value.text)
    }
  })()
  finished.catch(() => {})
  return { texts, finished }
}

/** The next event, of a loop that has one. */
async function next (reader: EventReader): Promise<ClientEvent> {
  const { done, value } = await reader.next()
  if (done === true) throw new Error('The loop has ended')
  return value
}

t.test('a run is read to its end, whatever happens to the connection; the body is sent once', async t => {
  const { app, hand, bodies, network, url } = await serveAnswers(t)
  const { texts, finished } = collect(readRun(url, { method: 'POST', body: { prompt: 'hello' } }))
  hand.yield('one', 'two')
  await until(() => texts.length === 2)
  network.reset()
  hand.yield('three')
  await until(() => texts.length === 3)
  network.cutAfter(30)
  hand.yield('four', 'five')
  await until(() => texts.length === 5)
  for (const connection of app.sse.connections()) connection.close('max-age')
  hand.yield('1')
  hand.end()
  t.match(await finished, { status: 'done', events: 6 })
  t.same(texts, ['one', 'two', 'three', 'four', 'five', '1'])
  t.same(bodies, [{ prompt: 'hello' }])
  t.equal(hand.calls, 1)

  const again = collect(readRun(url))
  t.match(await again.finished, { status: 'done' })
  t.same(again.texts, texts, 'it can be read again')
  const [, id] = /^(r:.*)\.\d+$/.exec((await next(readRun(url))).id!)!
  const rest = collect(readRun(url, { lastEventId: `${id}.4` }))
  await rest.finished
  t.same(rest.texts, ['five', '1'], 'and from a cursor')
  t.equal(await collect(readRun(`${network.url}/answers/none`)).finished, undefined, '204 is nothing to read')
})

t.test('a run that did not complete', async t => {
  const { app, hand, network, url } = await serveAnswers(t)
  const failed = collect(readRun(url, { method: 'POST', body: {} }))
  hand.yield('one')
  await until(() => failed.texts.length === 1)
  hand.fail(new Error('The model has failed'))
  await t.rejects(failed.finished, { code: 'SSE_ERR_CLIENT_RUN_NOT_DONE', reason: 'failed' })

  const stopped = collect(readRun(url, { method: 'POST', body: {} }))
  await until(() => hand.calls === 2)
  await app.sse.stopRun('7', { ownerId: null })
  t.match(await stopped.finished, { status: 'stopped' })

  await t.rejects(collect(readRun(`${network.url}/answers/none`, { lastEventId: 'r:1.5' })).finished, { code: 'SSE_ERR_CLIENT_RUN_NOT_DONE', reason: 'unknown' })
})

t.test('a gap: what was received is discarded, or the loop ends', async t => {
  const { hand, url } = await serveAnswers(t)
  const first = collect(readRun(url, { method: 'POST', body: {} }))
  hand.yield('one')
  await until(() => first.texts.length === 1)
  await t.rejects(collect(readRun(url, { lastEventId: 'r:1.5' })).finished, { code: 'SSE_ERR_CLIENT_GAP', reason: 'epoch' })
  const order: string[] = []
  const reader = readRun(url, { lastEventId: 'r:1.5', onGap: ({ reason }) => { order.push(reason) } })
  order.push((await next(reader)).text)
  t.same(order, ['epoch', 'one'])
  await reader.return(undefined)
  hand.end()
  await first.finished
})

t.test('a request that is not a GET', async t => {
  const post: ReadRunOptions = { method: 'post', body: 'prompt', maxRetryMs: 100 }
  const attempts = async (answers: Answer[], options: ReadRunOptions = post) => {
    const server = await script(t, ...answers)
    const { texts, finished } = collect(readRun(server.url, options))
    const result = await finished.catch(error => error)
    return { texts, result, requests: server.requests.map(({ method, url }) => `${method} ${url}`), server }
  }
  const hangUp: Answer = (response, request) => { request.resume().on('end', () => request.socket.destroy()) }
  const done = 'event: sse:end\ndata: {"status":"done","events":1}\n\n'
  const OPEN = ': stream keep-alive=15000\n\nretry: 100\n\n'

  t.test('without a response it is not sent again', async t => {
    const { result, requests } = await attempts([hangUp])
    t.match(result, { code: 'SSE_ERR_CLIENT_UNKNOWN_OUTCOME', reason: 'network' })
    t.same(requests, ['POST /sse'])
  })

  t.test('unless it has an Idempotency-Key', async t => {
    const { result, requests, texts } = await attempts([hangUp, status(503), ended(`${OPEN}data: a\n\n${done}`)], { ...post, headers: { 'Idempotency-Key': '7' } })
    t.match(result, { status: 'done' })
    t.same(requests, ['POST /sse', 'POST /sse', 'POST /sse'])
    t.same(texts, ['a'])
  })

  t.test('a refusal is final, also one that is temporary', async t => {
    const { result, requests } = await attempts([status(503, { code: 'SSE_ERR_TOO_MANY_RUNS' })])
    t.match(result, { code: 'SSE_ERR_CLIENT_REFUSED', status: 503, serverCode: 'SSE_ERR_TOO_MANY_RUNS', message: /status 503 SSE_ERR_TOO_MANY_RUNS$/ })
    t.same(requests, ['POST /sse'])
  })

  t.test('after a break, Content-Location is read', async t => {
    const located: Answer = (response, request) => {
      response.setHeader('content-location', '/answers/9?x=1')
      cut(`${OPEN}id: r:1.1\ndata: a\n\n`)(response, request)
    }
    const { requests, texts, server } = await attempts([located, status(500), ended(`${OPEN}id: r:1.2\ndata: b\n\n${done}`)])
    t.same(requests, ['POST /sse', 'GET /answers/9?x=1', 'GET /answers/9?x=1'])
    t.same(server.requests.map(({ headers }) => headers['last-event-id']), [undefined, 'r:1.1', 'r:1.1'])
    t.same(texts, ['a', 'b'])
  })

  t.test('an answer that is cut off is not complete, however the connection ends', async t => {
    for (const [first, texts] of [[`${OPEN}id: r:1.1\ndata: a\n\n`, ['a', 'b']], [OPEN, ['b']]] as const) {
      for (const [method, interrupt] of [['POST', ended], ['POST', cut], ['GET', ended], ['GET', cut]] as const) {
        const { texts: read, requests, result } = await attempts([interrupt(first), ended(`${OPEN}id: r:1.2\ndata: b\n\n${done}`)], { method, maxRetryMs: 100 })
        t.same(read, texts, `${method} ${first}`)
        t.match(result, { status: 'done' })
        t.same(requests, [`${method} /sse`, 'GET /sse'])
      }
    }
    const { texts, result } = await attempts([ended('id: 1\ndata: a\n\n')])
    t.same([texts, result], [['a'], undefined], 'another server ends the response')
  })

  t.test('events without ids cannot be continued', async t => {
    const { result, requests, texts } = await attempts([cut(`${OPEN}data: a\n\n`)])
    t.match(result, { code: 'SSE_ERR_CLIENT_BROKEN', reason: 'network' })
    t.same(requests, ['POST /sse'])
    t.same(texts, ['a'])
  })

  t.test('credentials that fail before it is sent are asked for again', async t => {
    let asked = 0
    const { requests } = await attempts([ended(`${OPEN}${done}`)], { ...post, headers: async () => { if (++asked === 1) throw new Error('No token'); return {} } })
    t.same(requests, ['POST /sse'])
  })

  t.test('no credentials', async t => {
    const { result, requests } = await attempts([status(500)], { ...post, headers: () => null })
    t.match(result, { code: 'SSE_ERR_CLIENT_CLOSED', reason: 'no-credentials' })
    t.same(requests, [])
  })
})

t.test('bodies', async t => {
  const received: unknown[] = []
  const server = createServer((request, response) => {
    let text = ''
    request.setEncoding('utf8').on('data', part => { text += part }).on('end', () => {
      received.push([request.method, request.headers['content-type'], text])
      response.writeHead(204).end()
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => { server.close() })
  const url = `http://127.0.0.1:${(server.address() as { port: number }).port}`
  for (const body of [{ a: 1 }, [1], 'text', new URLSearchParams({ a: '1' }), null, undefined]) await collect(readRun(url, { body })).finished
  await collect(readRun(url, { body: { a: 1 }, method: 'PUT', headers: { 'Content-Type': 'application/x+json' } })).finished
  t.same(received, [
    ['POST', 'application/json', '{"a":1}'], ['POST', 'application/json', '[1]'], ['POST', 'text/plain;charset=UTF-8', 'text'],
    ['POST', 'application/x-www-form-urlencoded;charset=UTF-8', 'a=1'], ['POST', undefined, ''], ['GET', undefined, ''], ['PUT', 'application/x+json', '{"a":1}']
  ])
})

t.test('a loop that is left, and a signal', async t => {
  const server = await script(t, stream(': stream\n\ndata: a\n\ndata: b\n\n'))
  const left: string[] = []
  for await (const { text } of readRun(server.url)) if (left.push(text) === 1) break
  t.same(left, ['a'])
  await until(() => server.requests[0]!.socket.destroyed, undefined, 'the connection is closed')

  const controller = new AbortController()
  const { texts, finished } = collect(readRun(server.url, { signal: controller.signal }))
  await until(() => texts.length === 2)
  controller.abort(new Error('Enough'))
  await t.rejects(finished, { message: 'Enough' })
  await until(() => server.requests[1]!.socket.destroyed)
  await t.rejects(readRun(server.url, { signal: controller.signal }).next(), { message: 'Enough' })
  t.equal(server.requests.length, 2)

  t.equal(getEventListeners(controller.signal, 'abort').length, 0)
  const waiting = new AbortController()
  const time = testClock()
  const { clock, timers } = counted(time.clock)
  const busy = await script(t, status(503, {}, { 'retry-after': '1000' }))
  const refused = readRun(busy.url, { signal: waiting.signal, [kClock]: clock } as ReadRunOptions).next()
  await busy.received(1)
  await until(() => [...timers.values()].some(ms => ms >= 1_000_000), undefined, 'the back-off')
  waiting.abort(new Error('No more'))
  await t.rejects(refused, { message: 'No more' })
  await until(() => timers.size === 0, undefined, 'no timer is left')
  await t.rejects(readRun(server.url, { methods: 'GET' } as object).next(), { code: 'SSE_ERR_CLIENT_OPTION' })
})

t.test('a server is read as fast as the loop reads, and a slow loop is no silent server', async t => {
  const clock = testClock()
  const PART = 'x'.repeat(65_536)
  let written = 0
  const server = await script(t, response => {
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write(': stream keep-alive=1000\n\n')
    const write = (): void => {
      while (written < 2_000) {
        written++
        if (!response.write(`data: ${PART}\n\n`)) {
          response.once('drain', write)
          return
        }
      }
    }
    write()
  })
  const reader = readRun(server.url, timed(clock))
  t.equal((await next(reader)).text.length, PART.length)
  await until(async () => {
    const before = written
    // Both ends are in this process: what can move does so within these turns.
    await turns(200)
    return written === before
  })
  t.ok(written < 1_000, `${written} of 2,000 parts were sent`)
  await clock.advance(10_000)
  // More than the client keeps: the stream goes on.
  for (let i = 0; i < 20; i++) t.equal((await next(reader)).text.length, PART.length)
  await reader.return(undefined)
})

t.test('readEvents(): the response to a fetch', async t => {
  const OPEN = ': stream keep-alive=15000\n\nretry: 100\n\n'
  const read = async (answer: Answer) => {
    const { url } = await script(t, answer)
    const { texts, finished } = collect(readEvents(fetch(url, { method: 'POST' })))
    return [texts, await finished.catch(({ code, reason, status }) => ({ code, reason, status }))] as const
  }
  t.strictSame(await read(ended('data: a\n\ndata: b\n\n')), [['a', 'b'], undefined], 'of another server')
  t.strictSame(await read(ended(`${OPEN}data: a\n\nevent: sse:close\ndata: {"reason":"source-end","reconnect":false}\n\n`)), [['a'], undefined])
  t.strictSame(await read(ended(`${OPEN}data: a\n\n`)), [['a'], { code: 'SSE_ERR_CLIENT_BROKEN', reason: 'end', status: undefined }], 'the end is missing')
  t.strictSame(await read(ended(`${OPEN}data: a\n\nevent: sse:error\ndata: {"message":"x"}\n\nevent: sse:close\ndata: {"reason":"source-error","reconnect":true}\n\n`)), [['a'], { code: 'SSE_ERR_CLIENT_BROKEN', reason: 'source-error', status: undefined }])
  t.strictSame(await read(cut('data: a\n\n')), [['a'], { code: 'SSE_ERR_CLIENT_BROKEN', reason: 'network', status: undefined }])
  t.strictSame(await read(ended('retry: 100\n\nevent: sse:error\ndata: {"code":"SSE_ERR_TOO_MANY_CONNECTIONS","message":"x","retryable":true}\n\n')), [[], { code: 'SSE_ERR_CLIENT_REFUSED', reason: 'refused', status: undefined }])
  t.strictSame(await read(status(503)), [[], { code: 'SSE_ERR_CLIENT_REFUSED', reason: 'refused', status: 503 }])
  t.strictSame(await read(status(403)), [[], { code: 'SSE_ERR_CLIENT_REFUSED', reason: 'refused', status: 403 }])
  t.strictSame(await read(status(200)), [[], { code: 'SSE_ERR_CLIENT_CLOSED', reason: 'not-a-stream', status: 200 }])
  t.strictSame(await read(status(204)), [[], undefined])
  await t.rejects(readEvents(Promise.reject(new Error('No network'))).next(), { message: 'No network' })
})
