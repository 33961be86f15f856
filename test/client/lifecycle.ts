import t, { type Test } from 'tap'
import type { ClientOptions } from '../../lib/client/index.js'
import { kClock } from '../../lib/util/clock.js'
import { turns, until } from '../helpers/wait.js'
import { connect, ended, script, status, stream, testClock, type Answer } from './clients.js'
import { counted } from './timers.js'

// What each call does in each state, and that nothing of a client is left when it is closed.

const OPEN = ': stream keep-alive=1000\n\nretry: 3000\n\nid: e.1\n\n'
const KICKED = ended(`${OPEN}event: sse:close\ndata: {"reason":"kicked","reconnect":false}\n\n`)
const silent: Answer = () => {}

/** A client whose clock is moved by hand. */
async function start (t: Test, answers: Answer[], options: ClientOptions = {}) {
  const time = testClock()
  const { clock, timers } = counted(time.clock)
  const server = await script(t, ...answers)
  const connected = connect(t, server.url, { ...options, [kClock]: clock } as ClientOptions)
  return { ...connected, server, time, timers }
}

const settled = async (): Promise<void> => await turns(10)

t.test('a client that is closed sends nothing more, and has no timer', async t => {
  for (const [name, answers] of [['connecting', [silent]], ['open', [stream(OPEN)]], ['waiting', [status(503)]], ['closed', [KICKED]]] as const) {
    const { client, states, server, time, timers, become } = await start(t, [...answers])
    await server.received(1)
    await become(name)
    client.close()
    const { length } = states
    const { state } = client
    t.match(state, { name: 'closed', reason: name === 'closed' ? 'kicked' : 'client' })
    client.close()
    await until(() => timers.size === 0, undefined, `no timer after ${name}`)
    await time.advance(3_600_000)
    t.same([states.length, server.requests.length], [length, 1], name)
    t.equal(client.state, state)
    if (name === 'connecting' || name === 'open') await until(() => server.requests[0]!.socket.destroyed, undefined, 'the connection is closed')
  }
})

t.test('after close(), only reconnect() connects', async t => {
  for (const answer of [KICKED, stream(OPEN), status(503)]) {
    const { client, server, become } = await start(t, [answer, stream(OPEN)])
    await server.received(1)
    await until(() => client.state.name !== 'connecting')
    client.close()
    client.setSubscriptions(['a'])
    await settled()
    t.equal(client.state.name, 'closed')
    t.equal(server.requests.length, 1)
    client.reconnect()
    await become('open')
    t.match(server.requests[1]!.url, /^\/sse\?subscription=a\b/)
    client.setSubscriptions(['b'])
    await server.received(3)
  }
})

t.test('reconnect(): at once, once, and without the earlier failures', async t => {
  const { client, server, time, timers, states, become } = await start(t, [status(503), status(503), status(503), stream(OPEN), silent, status(503)])
  for (const least of [3_000, 6_000, 12_000]) {
    const { retryInMs } = await become('waiting')
    t.ok(retryInMs! >= least && retryInMs! <= least * 1.5, `${retryInMs} ms`)
    if (least < 12_000) await time.advance(retryInMs!)
  }
  client.reconnect()
  await become('open')
  await until(() => timers.size === 1, undefined, 'the watchdog has the only timer')
  t.equal(server.requests.length, 4)

  client.reconnect()
  await server.received(5)
  const { length } = states
  client.reconnect()
  await settled()
  t.same([server.requests.length, states.length], [5, length], 'an attempt that is under way goes on')
  await time.advance(30_000)
  const { retryInMs } = await become('waiting')
  t.ok(retryInMs! <= 4_500, `${retryInMs} ms`)
})

t.test('setSubscriptions() during an attempt begins another one', async t => {
  const { client, server, become } = await start(t, [silent, stream(OPEN)], { subscriptions: ['a'] })
  await server.received(1)
  client.setSubscriptions(['a'])
  await settled()
  t.equal(server.requests.length, 1)
  client.setSubscriptions(['b'])
  await become('open')
  t.same(server.requests.map(({ url }) => url), ['/sse?subscription=a', '/sse?subscription=b'])
  await until(() => server.requests[0]!.socket.destroyed)
})

t.test('the server closes the stream: the connection is closed, whether it has ended the response or not', async t => {
  const close = (reconnect: boolean) => `event: sse:close\ndata: {"reason":"bye","reconnect":${reconnect}}\n\n`
  const html: Answer = response => { response.writeHead(200, { 'content-type': 'text/html' }).write('<p>') }
  const refusal: Answer = response => { response.writeHead(403, { 'content-type': 'text/plain' }).write('no') }
  for (const [answer, state] of [[stream(OPEN + close(false)), 'closed'], [stream(OPEN + close(true)), 'waiting'], [html, 'closed'], [refusal, 'closed']] as const) {
    const { server, become, timers } = await start(t, [answer])
    await become(state)
    await until(() => server.requests[0]!.socket.destroyed, undefined, 'the connection is closed')
    t.equal(timers.size, state === 'waiting' ? 1 : 0)
  }
})

t.test('a listener that is added twice is called twice, until it is removed', async t => {
  const { client, become } = await start(t, [stream(`${OPEN}data: {"n":1}\n\n`)])
  const seen: unknown[] = []
  const listener = (data: unknown, event: { data: unknown }): void => { seen.push(data === event.data) }
  const removes = [client.on('message', listener), client.on('message', listener), client.on('message', listener)]
  removes[1]!()
  removes[1]!()
  await become('open')
  await until(() => seen.length > 0)
  t.same(seen, [true, true], 'and the data is parsed once')
})

t.test('a loop holds a thousand unread events', async t => {
  for (const count of [1_000, 1_001]) {
    const { client, become } = await start(t, [ended(`${OPEN}${'data: 1\n\n'.repeat(count)}event: sse:close\ndata: {"reason":"source-end","reconnect":false}\n\n`)])
    const loop = client.events('message')
    await become('closed')
    let read = 0
    const error = await (async () => { for await (const { data } of loop) read += data as number })().catch(error => error)
    t.equal(read, 1_000)
    t.equal(error?.code, count > 1_000 ? 'SSE_ERR_CLIENT_OVERFLOW' : undefined, 'a source without more events ends the loop normally')
  }
})

t.test('the request is that of an EventSource, with the credentials of the option', async t => {
  const requests: unknown[] = []
  let receiver: unknown = 'none'
  const given: typeof fetch = async function (this: unknown, input, init) {
    receiver = this
    const { method = 'GET', headers, credentials, cache, signal } = init as RequestInit & { cache: string }
    requests.push([String(input), method, headers, credentials, cache, signal instanceof AbortSignal])
    return await fetch(input, init)
  }
  for (const credentials of [undefined, 'include', 'omit'] as const) {
    const { become, server } = await start(t, [stream(OPEN)], { fetch: given, credentials, lastEventId: 'e.0' })
    await become('open')
    t.same(requests.pop(), [server.url, 'GET', { accept: 'text/event-stream', 'last-event-id': 'e.0' }, credentials ?? 'same-origin', 'no-store', true])
    t.equal(receiver, undefined, 'browsers reject other receivers')
  }
})
