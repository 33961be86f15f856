import t, { type Test } from 'tap'
import { cut, connect, script, status, stream, testClock, timed } from './clients.js'
import { serve } from '../helpers/app.js'
import { until } from '../helpers/wait.js'
import { setGlobals } from '../helpers/globals.js'

// What a page does to its client, by events that this test dispatches. test/client/chromium.ts has a real page.

class Document extends EventTarget {
  visibilityState = 'visible'
  baseURI = 'http://localhost/'
}

/** Gives this process what a page has, until the test ends. */
function becomePage (t: Test) {
  const events = new EventTarget()
  const document = new Document()
  const stored = new Map<string, string>()
  const sessionStorage = {
    getItem: (key: string) => stored.get(key) ?? null,
    setItem: (key: string, value: string) => { stored.set(key, value) },
    removeItem: (key: string) => { stored.delete(key) }
  }
  const given = { addEventListener: events.addEventListener.bind(events), removeEventListener: events.removeEventListener.bind(events), document, sessionStorage }
  setGlobals(t, given)
  return {
    stored,
    fire: (type: string, persisted = true) => events.dispatchEvent(Object.assign(new Event(type), { persisted })),
    show (visibilityState: 'visible' | 'hidden') {
      document.visibilityState = visibilityState
      document.dispatchEvent(new Event('visibilitychange'))
    }
  }
}

const OPEN = ': stream keep-alive=1000\n\nretry: 3000\n\nid: e.1\n\n'

t.test('online: an open stream connects anew, a wait for the network ends, a wait that the server asked for does not', async t => {
  const page = becomePage(t)
  const server = await script(t, stream(OPEN), cut(OPEN), status(503), stream(OPEN))
  const clock = testClock()
  const { client, become } = connect(t, server.url, timed(clock))
  await become('open')
  page.fire('online')
  await become('waiting')
  t.equal(server.requests.at(-1)!.headers['last-event-id'], 'e.1')
  t.match(client.state, { reason: 'network' })
  page.fire('online')
  await server.received(3)
  await until(() => client.state.name === 'waiting')
  t.match(client.state, { reason: 'refused', status: 503 })
  page.fire('online')
  page.show('visible')
  t.equal(client.state.name, 'waiting')
})

t.test('a page in the back-forward cache has no stream, and resumes when it leaves it', async t => {
  const page = becomePage(t)
  const { app, url } = await serve(t)
  const { client, become } = connect(t, `${url}/sse?user=ada`)
  const seen: unknown[] = []
  client.on('x', data => { seen.push(data) })
  await become('open')
  page.fire('pagehide', false)
  t.equal(client.state.name, 'open', 'a page that ends is not asked')
  page.fire('pagehide')
  t.same(client.state, { name: 'waiting', retryInMs: null, reason: 'hidden' })
  await until(() => app.sse.connectionCount === 0)
  await app.sse.broadcastEvent({ event: 'x', data: 1 })
  page.fire('online')
  t.equal(client.state.name, 'waiting')
  page.fire('pageshow', false)
  t.equal(client.state.name, 'waiting')
  page.fire('pageshow')
  await until(() => seen.length === 1)
})

t.test('a hidden page keeps its stream unless told otherwise', async t => {
  const page = becomePage(t)
  const { url } = await serve(t)
  const kept = connect(t, `${url}/sse?user=ada`)
  const paused = connect(t, `${url}/sse?user=ada`, { pauseWhenHidden: true })
  await kept.become('open')
  await paused.become('open')
  page.show('hidden')
  t.equal(kept.client.state.name, 'open')
  t.match(paused.client.state, { name: 'waiting', retryInMs: null, reason: 'hidden' })
  const late = connect(t, `${url}/sse?user=ada`, { pauseWhenHidden: true })
  t.match(late.client.state, { name: 'waiting', reason: 'hidden' })
  page.show('visible')
  await paused.become('open')
  await late.become('open')
  t.equal(kept.states.length, 2)
})

t.test('a page that is shown looks at the clock: timers stand still in suspend', async t => {
  const page = becomePage(t)
  const clock = testClock()
  // Only the time of day goes on while a machine is suspended.
  let suspendedMs = 0
  const { clock: base } = clock
  const server = await script(t, stream(OPEN))
  const { client, become } = connect(t, server.url, { [Symbol.for('fastify-sse-manager.clock')]: { ...base, wall: () => base.wall() + suspendedMs } } as object)
  await become('open')
  suspendedMs = 1_999
  page.show('visible')
  t.equal(client.state.name, 'open')
  suspendedMs = 2_000
  page.show('visible')
  await become('waiting')
  t.match(client.state, { reason: 'timeout' })
  page.show('visible')
  await server.received(2)
})

t.test('a closed client does not listen any more', async t => {
  const page = becomePage(t)
  const server = await script(t, stream(OPEN))
  const { client, states, become } = connect(t, server.url)
  await become('open')
  client.close()
  for (const type of ['online', 'pagehide', 'pageshow']) page.fire(type)
  page.show('visible')
  t.equal(states.length, 3)
  t.equal(server.requests.length, 1)
})

t.test('a client that connects again listens again, once', async t => {
  const page = becomePage(t)
  const server = await script(t, stream(OPEN))
  const { client, become } = connect(t, server.url, { pauseWhenHidden: true })
  for (let count = 1; count <= 3; count++) {
    await become('open')
    client.reconnect()
    await server.received(count + 1)
  }
  client.close()
  page.show('hidden')
  page.fire('pagehide')
  t.match(client.state, { name: 'closed', reason: 'client' }, 'no earlier listener is left')
  page.show('visible')
  client.reconnect()
  await become('open')
  page.show('hidden')
  t.match(client.state, { reason: 'hidden' })
  page.show('visible')
  await become('open')
  t.equal(server.requests.length, 6)
})

t.test("persist: 'session' keeps the cursor for the next page", async t => {
  const page = becomePage(t)
  const { app, url } = await serve(t)
  const before = connect(t, `${url}/sse?user=ada`, { persist: 'session' })
  await before.become('open')
  await app.sse.broadcastEvent({ event: 'x', data: 1 })
  await until(() => before.client.lastEventId.endsWith('.1'))
  before.client.close()
  await app.sse.broadcastEvent({ event: 'x', data: 2 })
  const seen: unknown[] = []
  const { client } = connect(t, `${url}/sse?user=ada`, { persist: 'session', lastEventId: 'replaced.0' })
  client.on('x', data => { seen.push(data) })
  await until(() => seen.length === 1)
  t.same(seen, [2])
  t.equal(page.stored.size, 1)
  client.close()

  t.test('for the same subscriptions only: a cursor says nothing of others', async t => {
    const server = await script(t, stream(OPEN))
    for (const [subscriptions, cursor] of [[['a', 'b'], undefined], [['a'], undefined], [['b', 'a'], 'e.1']] as const) {
      const { client, become } = connect(t, server.url, { persist: 'session', subscriptions })
      await become('open')
      await until(() => client.lastEventId === 'e.1')
      client.close()
      t.equal(server.requests.at(-1)!.headers['last-event-id'], cursor, subscriptions.join())
    }
  })

  t.test('a cursor that the server takes back is forgotten, and a browser may forbid the storage', async t => {
    const server = await script(t, stream(`${OPEN}id: \n\n`))
    const { become } = connect(t, server.url, { persist: 'session' })
    await become('open')
    await until(() => ![...page.stored.keys()].some(key => key.includes(server.url)))
    Object.defineProperty(globalThis, 'sessionStorage', { configurable: true, get () { throw new Error('SecurityError') } })
    const other = connect(t, `${server.url}?other`, { persist: 'session' })
    await other.become('open')
  })
})
