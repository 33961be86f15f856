import t, { type Test } from 'tap'
import type { ClientOptions } from '../../lib/client/index.js'
import { slowRedis } from '../../lib/testing/index.js'
import { serve } from '../helpers/app.js'
import { turns, until } from '../helpers/wait.js'
import { connect, cut, ended, script, status, stream, testClock, timed, type Answer } from './clients.js'

const OPEN = ': stream keep-alive=15000\n\nretry: 3000\n\nid: e.1\n\n'

/** What a client that is refused once does. */
async function refusedBy (t: Test, answer: Answer) {
  const server = await script(t, answer)
  const { client, become } = connect(t, server.url)
  await until(() => client.state.name === 'waiting' || client.state.name === 'closed')
  return { server, client, become }
}

t.test('final answers close the client, with status and code', async t => {
  const cases: [Answer, object][] = [
    [status(401, { code: 'SSE_ERR_UNAUTHENTICATED' }), { reason: 'refused', status: 401, code: 'SSE_ERR_UNAUTHENTICATED' }],
    [status(403, { code: 'SSE_ERR_ORIGIN_FORBIDDEN' }), { reason: 'refused', status: 403, code: 'SSE_ERR_ORIGIN_FORBIDDEN' }],
    [status(404, {}), { reason: 'refused', status: 404 }],
    [response => { response.writeHead(400, { 'content-type': 'application/json' }).end('{') }, { reason: 'refused', status: 400 }],
    [status(204), { reason: 'no-content', status: 204 }],
    [response => { response.writeHead(200, { 'content-type': 'text/html' }).end('<p>Sign in') }, { reason: 'not-a-stream', status: 200 }],
    [ended(`${OPEN}event: sse:close\ndata: {"reason":"kicked","reconnect":false}\n\n`), { reason: 'kicked' }]
  ]
  for (const [answer, state] of cases) {
    const { server, client, become } = await refusedBy(t, answer)
    await become('closed')
    t.same(client.state, { name: 'closed', ...state })
    t.equal(server.requests.length, 1)
  }
})

t.test('after other answers the client waits', async t => {
  const cases: [Answer, object, number][] = [
    [status(500), { reason: 'refused', status: 500 }, 3_000],
    [status(502), { reason: 'refused', status: 502 }, 3_000],
    [status(503, { code: 'SSE_ERR_CLOSED' }, { 'retry-after': '7' }), { reason: 'refused', status: 503, code: 'SSE_ERR_CLOSED' }, 7_000],
    [status(429, {}, { 'retry-after': new Date(Date.now() + 100_000).toUTCString() }), { reason: 'refused', status: 429 }, 90_000],
    [status(429, {}, { 'retry-after': 'soon' }), { reason: 'refused', status: 429 }, 3_000],
    [status(408), { reason: 'refused', status: 408 }, 3_000],
    [ended('retry: 4417\n\nevent: sse:error\ndata: {"code":"SSE_ERR_TOO_MANY_CONNECTIONS","message":"Too many","retryable":true}\n\n'), { reason: 'refused', code: 'SSE_ERR_TOO_MANY_CONNECTIONS' }, 4_417],
    [ended(`${OPEN}retry: 5000\n\nevent: sse:close\ndata: {"reason":"shutdown","reconnect":true}\n\n`), { reason: 'shutdown' }, 5_000],
    [ended(OPEN), { reason: 'end' }, 3_000],
    [cut(OPEN), { reason: 'network' }, 3_000],
    [(response, request) => { request.socket.destroy() }, { reason: 'network' }, 3_000]
  ]
  for (const [answer, state, leastMs] of cases) {
    const { client, become } = await refusedBy(t, answer)
    const { retryInMs } = await become('waiting')
    t.same(client.state, { name: 'waiting', retryInMs, ...state })
    t.ok(retryInMs! >= leastMs && retryInMs! <= leastMs * 1.7, `${retryInMs} ms`)
  }
})

t.test('an attempt follows each wait', async t => {
  const clock = testClock()
  const server = await script(t, status(500), status(500), stream(OPEN))
  const { client, states, become } = connect(t, server.url, timed(clock))
  for (const [attempt, least] of [3_000, 6_000].entries()) {
    const { retryInMs } = await become('waiting')
    t.ok(retryInMs! >= least && retryInMs! <= least * 1.5)
    await clock.advance(retryInMs! - 1)
    t.equal(server.requests.length, attempt + 1, 'not before its time')
    await clock.advance(1)
    await server.received(attempt + 2)
  }
  await become('open')
  t.same(states.map(({ name }) => name), ['connecting', 'waiting', 'connecting', 'waiting', 'connecting', 'open'])
  t.equal(client.lastEventId, 'e.1')
  t.equal(server.requests[2]!.headers['last-event-id'], undefined)
})

t.test('a stream that was open for a minute resets the back-off', async t => {
  for (const [openMs, least] of [[59_000, 12_000], [60_000, 3_000]] as const) {
    const clock = testClock()
    let end = () => {}
    const server = await script(t, status(500), status(500), (response, request) => {
      stream(': stream\n\nretry: 3000\n\n')(response, request)
      end = () => { response.end() }
    })
    const { become } = connect(t, server.url, timed(clock))
    for (let failures = 1; failures <= 2; failures++) {
      const { retryInMs } = await become('waiting')
      await clock.advance(retryInMs!)
      await server.received(failures + 1)
    }
    await become('open')
    await clock.advance(openMs)
    end()
    const { retryInMs } = await become('waiting')
    t.ok(retryInMs! >= least && retryInMs! <= least * 1.5, `${retryInMs} ms after ${openMs} ms`)
  }
})

t.test('the cursor is sent, and moves without events too; events of a stream that is cut within a block do not count', async t => {
  const clock = testClock()
  const server = await script(t,
    cut(`${OPEN}id: e.2\ndata: "a"\n\nid: e.5\n\nid: e.6\ndata: "lost`),
    cut('id: \n\nid: é\n\n'),
    stream(': stream\n\n'))
  const { client, become } = connect(t, server.url, timed(clock))
  const seen: unknown[] = []
  client.on('message', data => { seen.push(data) })
  for (const cursor of ['e.5', Buffer.from('é').toString('latin1')]) {
    const { retryInMs } = await become('waiting')
    await clock.advance(retryInMs!)
    await become('open')
    t.equal(server.requests.at(-1)!.headers['last-event-id'], cursor)
  }
  t.same(seen, ['a'])
})

t.test('headers() and ticket() are asked at each attempt, one at a time, and the cursor is kept', async t => {
  const clock = testClock()
  const server = await script(t, cut(OPEN), stream(OPEN))
  let tokens = 0
  const { become } = connect(t, server.url, {
    ...timed(clock),
    headers: async () => ({ authorization: `Bearer ${++tokens}` }),
    ticket: () => `t${tokens}`
  })
  const { retryInMs } = await become('waiting')
  await clock.advance(retryInMs!)
  await become('open')
  t.same(server.requests.map(({ url, headers }) => [url, headers.authorization, headers['last-event-id'] ?? '']), [['/sse?ticket=t0', 'Bearer 1', ''], ['/sse?ticket=t1', 'Bearer 2', 'e.1']])
})

t.test('credentials', async t => {
  const server = await script(t, stream(OPEN))
  const connectWith = (options: ClientOptions) => connect(t, server.url, options)

  t.test('without them the client closes, and connects again when it is asked to', async t => {
    let user: string | null = null
    for (const options of [{ headers: () => user === null ? null : { authorization: user } }, { ticket: async () => user }]) {
      user = null
      const { client, become } = connectWith(options)
      await become('closed')
      t.same(client.state, { name: 'closed', reason: 'no-credentials' })
      user = 'ada'
      client.reconnect()
      await become('open')
      client.close()
    }
  })

  t.test('if they cannot be had, the client waits', async t => {
    const { client, become } = connectWith({ headers: async () => { throw new Error('The token server does not answer') } })
    await become('waiting')
    t.match(client.state, { reason: 'network' })
  })

  t.test('one attempt at a time, however often the client is asked', async t => {
    let asked = 0
    let pending = 0
    let most = 0
    const release: (() => void)[] = []
    const { client, become } = connectWith({
      headers: async () => {
        asked++
        most = Math.max(most, ++pending)
        await new Promise<void>(resolve => { release.push(resolve) })
        pending--
        return {}
      }
    })
    for (let i = 0; i < 5; i++) client.reconnect()
    await until(() => asked === 1)
    release.shift()!()
    await become('open')
    client.reconnect()
    client.reconnect()
    await until(() => asked === 2)
    client.close()
    client.reconnect()
    client.close()
    client.reconnect()
    release.shift()!()
    await until(() => asked === 3)
    release.shift()!()
    await become('open')
    t.equal(most, 1)
    t.equal(asked, 3)
  })
})

t.test('silence', async t => {
  t.test('a stream is dead after two intervals without a byte', async t => {
    const clock = testClock()
    const server = await script(t, stream(': stream keep-alive=1000\n\n'))
    const { client, become } = connect(t, server.url, timed(clock))
    await become('open')
    await clock.advance(1_999)
    t.equal(client.state.name, 'open')
    await clock.advance(1)
    t.match(client.state, { name: 'waiting', reason: 'timeout' })
  })

  t.test('comments count', async t => {
    const clock = testClock()
    let comment = () => {}
    const server = await script(t, response => {
      stream(': stream keep-alive=1000\n\n')(response, response.req)
      comment = () => { response.write(': keep-alive\n\n') }
    })
    let parts = 0
    const counted: typeof fetch = async (...args) => {
      const response = await fetch(...args)
      return new Response(response.body!.pipeThrough(new TransformStream({
        transform (part, controller) {
          controller.enqueue(part)
          parts++
        }
      })), response)
    }
    const { client, become } = connect(t, server.url, { ...timed(clock), fetch: counted })
    await become('open')
    for (let i = 0; i < 5; i++) {
      const before = parts
      comment()
      await until(() => parts > before)
      await turns(1)
      await clock.advance(1_900)
      t.equal(client.state.name, 'open')
    }
    await clock.advance(100)
    t.match(client.state, { reason: 'timeout' })
  })

  t.test('without an interval there is no limit', async t => {
    const clock = testClock()
    const server = await script(t, stream(': stream\n\n'))
    const { client, become } = connect(t, server.url, timed(clock))
    await become('open')
    await clock.advance(1_000_000)
    t.equal(client.state.name, 'open')
  })

  t.test('no response, no first byte, and credentials that never come', async t => {
    const cases: [Answer, ClientOptions][] = [
      [() => {}, {}],
      [response => { response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders() }, {}],
      [stream(OPEN), { headers: () => new Promise(() => {}) }]
    ]
    for (const [answer, options] of cases) {
      const clock = testClock()
      const server = await script(t, answer)
      const { client, become } = connect(t, server.url, { ...options, ...timed(clock), timeoutMs: 5_000 })
      if (options.headers === undefined) await server.received(1)
      await clock.advance(4_999)
      t.equal(client.state.name, 'connecting')
      await clock.advance(1)
      await become('waiting')
      t.match(client.state, { reason: 'timeout' })
    }
  })

  t.test('a network that drops everything: found within two intervals, and nothing is lost', async t => {
    const clock = testClock()
    const { app, url } = await serve(t, { keepAliveIntervalMs: 15_000, ...clock.options })
    const network = await slowRedis({ port: Number(new URL(url).port), test: t })
    const { client, become } = connect(t, `${network.url.replace('redis:', 'http:')}/sse?user=ada`, timed(clock))
    const seen: unknown[] = []
    client.on('x', data => { seen.push(data) })
    await become('open')
    await app.sse.broadcastEvent({ event: 'x', data: 1 })
    await until(() => seen.length === 1)
    network.drop()
    await app.sse.broadcastEvent({ event: 'x', data: 2 })
    await clock.advance(30_000)
    t.match(client.state, { name: 'waiting', reason: 'timeout' })
    network.heal()
    await clock.advance((client.state as { retryInMs: number }).retryInMs)
    await until(() => seen.length === 2)
    t.same(seen, [1, 2])
  })
})
