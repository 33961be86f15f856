import t, { type Test } from 'tap'
import { EventSource } from 'undici'
import { parseCursor } from '../../lib/log/cursor.js'
import { formatRunId, parseRunId } from '../../lib/runs/run-position.js'
import { serve } from '../helpers/app.js'
import { tableOf } from '../helpers/pages.js'
import { RawSocket } from '../helpers/raw.js'
import { Hand, serveRuns, told, tokens, type RunService } from '../helpers/runs.js'
import { until } from '../helpers/wait.js'

// Which answer each request for a run receives. The table of docs/guides/runs.md has a row for each, checked in undici's EventSource.

/** What an EventSource receives from the run `a` with this cursor. */
async function ask (t: Test, { url }: RunService, cursor: string | null, path = '/runs/a'): Promise<{ events: [string, string, string][], isClosed: boolean }> {
  const source = new EventSource(`${url}${path}${cursor === null ? '' : `?lastEventId=${encodeURIComponent(cursor)}`}`)
  t.teardown(() => source.close())
  const events: [string, string, string][] = []
  for (const name of ['message', 'sse:gap', 'sse:end']) source.addEventListener(name, event => { events.push([(event as MessageEvent).lastEventId, name, (event as MessageEvent).data as string]) })
  let isOver = false
  source.addEventListener('sse:close', () => {
    isOver = true
    source.close()
  })
  let isClosed = false
  source.onerror = () => { isClosed = source.readyState === EventSource.CLOSED && !isOver }
  await until(() => isOver || isClosed || events.at(-1)?.[2] === 'two')
  source.close()
  return { events, isClosed }
}

/** A run `a` with two events, and the ids of its events. */
async function start (t: Test, finish: boolean) {
  const service = await serveRuns(t)
  const hand = new Hand()
  const { run } = await service.begin('a', hand.factory)
  hand.yield('one', 'two')
  const stream = await service.read('a')
  const [first, last] = await stream.collect(2)
  if (finish) {
    hand.end()
    await run.finished
  }
  const [generation] = first!.id!.split('.')
  return { service, hand, first: first!.id!, last: last!.id!, end: `${generation}.3`, ahead: `${generation}.9`, older: first!.id!.replace(/^r:./, 'r:1') }
}

const ONE_TWO = [['message', 'one'], ['message', 'two']]
const DONE = ['sse:end', '{"status":"done","events":2}']
const shown = (events: [string, string, string][]) => events.map(([, event, data]) => [event, data.replace(/"lastEventId":.*}/, '"lastEventId":…}')])

const ROWS: Record<string, (t: Test) => Promise<void>> = {
  'The run is running. No id.': async t => {
    const { service } = await start(t, false)
    t.same(shown((await ask(t, service, null)).events), ONE_TWO)
  },
  'The run is running. The id of one of its events.': async t => {
    const { service, first } = await start(t, false)
    t.same(shown((await ask(t, service, first)).events), ONE_TWO.slice(1))
  },
  'The run has ended and is kept. No id.': async t => {
    const { service, end } = await start(t, true)
    const { events } = await ask(t, service, null)
    t.same(shown(events), [...ONE_TWO, DONE])
    t.equal(events.at(-1)![0], end)
  },
  'The run has ended and is kept. The id of one of its events.': async t => {
    const { service, first, last } = await start(t, true)
    t.same(shown((await ask(t, service, first)).events), [ONE_TWO[1], DONE])
    t.same(shown((await ask(t, service, last)).events), [DONE], 'the last one: the end is missing')
  },
  'The run has ended and is kept. The id of its `sse:end`.': async t => {
    const { service, end } = await start(t, true)
    t.same(await ask(t, service, end), { events: [], isClosed: true })
    t.equal((await service.read('a', { lastEventId: end })).status, 204)
  },
  'The run is kept. An id of an earlier run with the same id.': async t => {
    const { service, older } = await start(t, true)
    const { events } = await ask(t, service, older)
    t.same(shown(events), [['sse:gap', '{"reason":"epoch","lastEventId":…}'], ...ONE_TWO, DONE])
    t.equal(JSON.parse(events[0]![2]).lastEventId, older)
    t.same(shown((await ask(t, service, events[0]![0])).events), [...ONE_TWO, DONE], 'with the id of the gap, without another gap')
  },
  'The run is kept. An id that the run has not reached.': async t => {
    for (const finished of [false, true]) {
      const { service, ahead, end } = await start(t, finished)
      for (const id of finished ? [ahead] : [ahead, end]) t.same(shown((await ask(t, service, id)).events).slice(0, 3), [['sse:gap', '{"reason":"unknown","lastEventId":…}'], ...ONE_TWO], id)
    }
  },
  'The run is kept. Any other id.': async t => {
    const { service } = await start(t, true)
    for (const foreign of ['k3f9x2ab.1', '17', 'r:x', 'r:1.-1', 'r:1.01']) t.same(shown((await ask(t, service, foreign)).events), [['sse:gap', '{"reason":"malformed","lastEventId":…}'], ...ONE_TWO, DONE], foreign)
  },
  'No such run. No id, or an id that is not of a run.': async t => {
    const { service } = await start(t, true)
    for (const cursor of [null, '17', 'k3f9x2ab.1']) {
      t.same(await ask(t, service, cursor, '/runs/other'), { events: [], isClosed: true })
      t.equal((await service.read('other', { lastEventId: cursor })).status, 204)
    }
  },
  'No such run: expired, lost with the store, or of another owner. An id of a run.': async t => {
    const { service, first } = await start(t, true)
    t.same((await ask(t, service, first, '/runs/other')).events, [['', 'sse:end', '{"status":"unknown"}']])
    const stream = await service.read('a', { ownerId: 'eve', lastEventId: first })
    t.equal(stream.status, 200)
    await stream.ended
    t.same(told(stream).map(([, event, data]) => [event, data]), [['sse:end', '{"status":"unknown"}']])
    t.equal(stream.lastEventId, '', 'the client forgets its id, and the next request is answered with 204')
  },
  'A HEAD request': async t => {
    const { service, end } = await start(t, true)
    for (const [cursor, status] of [['', 200], [end, 204]] as const) {
      const socket = new RawSocket(service.url, { method: 'HEAD', path: '/runs/a', headers: { 'last-event-id': cursor, connection: 'close' } })
      await until(() => socket.closed)
      t.match(socket.bytes.toString(), new RegExp(`^HTTP/1.1 ${status} [^]*\r\n\r\n$`))
    }
  }
}

for (const [row, check] of Object.entries(ROWS)) t.test(row, check)

t.test('a route without the option sse authenticates, also if there is nothing to read', async t => {
  const { app, open } = await serve(t, { requireAuthentication: true }, {}, app => {
    app.get('/plain', async (_request, reply) => await reply.sse(null))
  })
  t.equal((await open('/plain')).status, 401)
  t.equal((await open('/plain?user=ada')).status, 204)
  t.equal(app.sse.connectionCount, 0)
})

t.test('the guide lists these cases', async t => {
  t.same(tableOf('Run and id of the client').map(([row]) => row), Object.keys(ROWS))
})

t.test('an id of a run is never a cursor of the log', async t => {
  for (const generation of [1, 1_800_000_000_000, Number.MAX_SAFE_INTEGER]) {
    for (const event of [0, 1, 123_456]) {
      const id = formatRunId(generation, event)
      t.equal(parseCursor(id), null, id)
      t.same(parseRunId(id), { generation, after: event })
    }
  }
  for (const text of ['', 'r:', 'r:1', 'r:1.', 'r:.1', 'R:1.1', 'r:1.1 ', 'r:1.1.1', 'r:1.1e3', 'r:zzzzzzzzzzzzz.1', `r:1.${'9'.repeat(20)}`, 'r:zzzzzzzzzzz.1']) t.equal(parseRunId(text), null, text)
})

t.test('a client that reconnects in mid-run misses nothing and receives nothing twice', async t => {
  const { begin, app, url } = await serveRuns(t, { retryMs: 100 })
  const hand = new Hand()
  await begin('a', hand.factory)
  const source = new EventSource(`${url}/runs/a`)
  t.teardown(() => source.close())
  const received: string[] = []
  source.onmessage = ({ data }) => { received.push(data as string) }
  let ends = 0
  source.addEventListener('sse:end', () => { ends++ })
  for (let n = 0; n < 30; n++) {
    hand.yield(String(n))
    await until(() => received.length > n)
    t.equal(received.length, n + 1)
    if (n % 7 === 3) for (const connection of app.sse.connections()) connection.close('max-age')
  }
  hand.end()
  await until(() => ends === 1)
  await until(() => source.readyState === EventSource.CLOSED, undefined, 'the EventSource stops at 204')
  t.same(received, Array.from({ length: 30 }, (_, n) => String(n)))
  t.equal(ends, 1)
})

t.test('without control events, only comments, ids and items are written', async t => {
  const { begin, read, app } = await serveRuns(t)
  const hand = new Hand()
  const { run } = await begin('a', hand.factory)
  hand.yield({ type: 'start' }, '[DONE]')
  const live = await read('a', { control: false })
  await live.collect(2)
  hand.end()
  await run.finished
  t.match(await live.ended, { by: 'server' })
  const id = live.named('message')[0]!.id!
  const generation = id.split('.')[0]
  t.equal(live.text, `: stream keep-alive=15000\n\nid: ${generation}.1\ndata: {"type":"start"}\n\nid: ${generation}.2\ndata: [DONE]\n\nid: ${generation}.3\n\n: end\n\n`)
  for (const number of [2, 3]) t.equal((await read('a', { control: false, lastEventId: `${generation}.${number}` })).status, 204)
  const foreign = await read('a', { control: false, lastEventId: '17' })
  await foreign.ended
  t.same(tokens(foreign), ['{"type":"start"}', '[DONE]'], 'from the beginning, without sse:gap')
  t.equal((await read('other', { control: false, lastEventId: id })).status, 204)

  const failing = new Hand()
  await begin('b', failing.factory)
  const cut = await read('b', { control: false })
  failing.yield('one')
  await cut.next()
  failing.fail(new Error('no'))
  t.match(await cut.ended, { by: 'network' }, 'a run that is not complete ends like a broken connection')
  t.notMatch(cut.text, /sse:|retry/)
  t.match((await app.inject('/runs/a?control=perhaps')).json(), { code: 'SSE_ERR_INVALID_OPTION', message: /"control" of reply.sse\(source\) must be true or false, got "perhaps"/ })
})
