import t from 'tap'
import { Run } from '../../lib/index.js'
import { Hand, never, serveRuns, told, tokens } from '../helpers/runs.js'
import { until } from '../helpers/wait.js'

// What a run is: started once, read by anyone from anywhere in it, and ended once.

t.test('a run goes on without readers, and each reader receives all of it', async t => {
  const { begin, read } = await serveRuns(t)
  const hand = new Hand()
  const earliest = Date.now()
  const { run, started } = await begin('a', hand.factory)
  t.ok(run instanceof Run)
  t.ok(run.startedAt >= earliest && run.startedAt <= Date.now(), 'when it was started')
  t.same([started, run.id, run.ownerId, run.status, hand.calls], [true, 'a', null, 'running', 1])
  hand.yield('one', { event: 'token', data: { n: 2 } })
  const first = await read('a')
  await first.collect(2)
  await first.cut()
  hand.yield('two\nlines')
  const second = await read('a')
  await second.collect(3)
  hand.end()
  t.same(await run.finished, { status: 'done', events: 3 })
  t.equal(run.status, 'done')
  const late = await read('a')
  for (const stream of [second, late]) {
    t.match(await stream.ended, { by: 'server', reason: 'source-end', reconnect: false })
    const ids = told(stream).map(([id]) => id)
    t.same(told(stream).map(([, event, data]) => [event, data]), [['message', 'one'], ['token', '{"n":2}'], ['message', 'two\nlines'], ['sse:end', '{"status":"done","events":3}']])
    t.same(ids, [1, 2, 3, 4].map(n => ids[0]!.replace(/1$/, String(n))))
    t.match(ids[0]!, /^r:[0-9a-z]+\.1$/)
  }
  t.same(told(second), told(late), 'both have the same ids')
  t.equal(hand.calls, 1)
})

t.test('a second start joins a running run, and replaces a finished one unless it asks for it', async t => {
  const { begin, app } = await serveRuns(t)
  const [first, second, third] = [new Hand(), new Hand(), new Hand()]
  const { run } = await begin('a', first.factory)
  t.equal((await begin('a', second.factory)).started, false)
  first.end()
  await run.finished
  const joined = await begin('a', second.factory, { ifFinished: 'join' })
  t.same([joined.started, joined.run.status, second.calls], [false, 'done', 0])
  t.equal((await begin('a', third.factory)).started, true)
  t.same([first.calls, second.calls, third.calls], [1, 0, 1])
  t.equal((await app.sse.getRun('a', { ownerId: null }))!.status, 'running')
  t.equal(run.status, 'done', 'the first one has ended all the same')
})

t.test('of many starts at the same time, one calls its source', async t => {
  const { begin } = await serveRuns(t)
  const hand = new Hand()
  const starts = await Promise.all(Array.from({ length: 50 }, () => begin('a', hand.factory)))
  t.equal(starts.filter(({ started }) => started).length, 1)
  t.equal(hand.calls, 1)
})

t.test('a client that is behind when its run is replaced is told so; without control events, its stream is cut', async t => {
  const { begin, read } = await serveRuns(t)
  const item = 'x'.repeat(10_000)
  const first = await begin('a', function * () { for (let n = 0; n < 100; n++) yield `one ${item}` })
  await first.run.finished
  const behind = async (control: boolean) => {
    const stream = await read('a', { control, socket: false, readRate: 100_000 })
    await stream.next()
    stream.freeze()
    return stream
  }
  const [told, cut] = [await behind(true), await behind(false)]
  const second = await begin('a', () => ['two', 'three'])
  await second.run.finished
  for (const stream of [told, cut]) stream.thaw()
  await told.ended
  const names = told.events.map(({ event }) => event)
  const at = names.indexOf('sse:gap')
  t.same(names.slice(at), ['sse:gap', 'message', 'message', 'sse:end', 'sse:close'])
  t.same(told.events[at]!.json, { reason: 'epoch', lastEventId: told.events[at - 1]!.id })
  t.equal(told.events[at]!.id, told.events[at + 1]!.id!.replace(/1$/, '0'), 'its id is the beginning of the new run')
  t.match(await cut.ended, { by: 'network' })
  t.ok(tokens(cut).length < 100 && tokens(cut).every(text => text.startsWith('one')))
})

t.test('a run exists for its owner only', async t => {
  const { begin, app, read } = await serveRuns(t)
  const hands = new Map<string, Hand>()
  const pairs: [string | null, string][] = [[null, 'c'], ['', 'c'], ['a', 'b:c'], ['a:b', 'c'], ['null', 'c'], ['-', 'c']]
  for (const [ownerId, id] of pairs) {
    const hand = new Hand()
    hands.set(JSON.stringify([ownerId, id]), hand)
    t.equal((await begin(id, hand.factory, { ownerId })).started, true, JSON.stringify([ownerId, id]))
    hand.yield(JSON.stringify([ownerId, id]))
  }
  t.equal(await app.sse.getRun('b:c', { ownerId: null }), null)
  t.equal(await app.sse.getRun('c', { ownerId: 'b' }), null)
  t.equal(await app.sse.stopRun('c', { ownerId: 'b' }), false)
  t.same((await app.sse.listRuns({ ownerId: 'a' })).map(({ id }) => id), ['b:c'])
  t.same((await app.sse.listRuns({ ownerId: null })).map(({ id, ownerId }) => [id, ownerId]), [['c', null]])
  t.equal((await read('c', { ownerId: 'b' })).status, 204)
  const stream = await read('c', { ownerId: 'a:b' })
  t.equal((await stream.next()).data, '["a:b","c"]')
})

t.test('stopRun ends a run once', async t => {
  const { begin, app, read } = await serveRuns(t)
  const hand = new Hand()
  const { run } = await begin('a', hand.factory)
  hand.yield('one')
  const stream = await read('a')
  await stream.next()
  const owner = { ownerId: null }
  t.same(await Promise.all([app.sse.stopRun('a', owner), app.sse.stopRun('a', owner)]), [true, true])
  t.equal(await app.sse.stopRun('a', owner), true, 'again')
  hand.yield('late')
  t.same(await run.finished, { status: 'stopped', events: 1 })
  t.match(hand.signal!.reason, { name: 'AbortError', code: 'SSE_ERR_STREAM_ENDED', closeReason: 'stopped' })
  await until(() => hand.returned === 1)
  await stream.ended
  t.same(told(stream).map(([, event, data]) => [event, data]), [['message', 'one'], ['sse:end', '{"status":"stopped","events":1}']])
  const done = new Hand()
  const other = await begin('b', done.factory)
  done.end()
  await other.run.finished
  t.equal(await app.sse.stopRun('b', owner), false, 'it was done before')
  t.equal(await app.sse.stopRun('c', owner), false)
})

t.test('a source that fails, or yields what is no event, ends its run as failed, and the client learns no more', async t => {
  const cases: [string, (hand: Hand) => void][] = [
    ['throws', hand => hand.fail(new Error('secret'))],
    ['an id of its own', hand => hand.yield({ data: 1, id: '7' } as never)],
    ['a reconnection time', hand => hand.yield({ data: 1, retry: 1000 } as never)],
    ['a reserved name', hand => hand.yield({ event: 'sse:end', data: 1 })],
    ['no event', hand => hand.yield(7 as never)],
    ['no JSON', hand => hand.yield({ data: 1n })]
  ]
  const { begin, read } = await serveRuns(t)
  for (const [id, break_] of cases) {
    const hand = new Hand()
    const { run } = await begin(id, hand.factory)
    hand.yield('one')
    break_(hand)
    t.same(await run.finished, { status: 'failed', reason: 'error', events: 1 }, id)
    const stream = await read(id)
    await stream.ended
    t.same(told(stream).map(([, event, data]) => [event, data]), [['message', 'one'], ['sse:end', '{"status":"failed","reason":"error","events":1}']], id)
  }
  for (const [what, factory] of Object.entries({ throws: () => { throw new Error('no') }, rejects: async () => { throw new Error('no') }, 'is no source': () => 7 as never })) {
    const { run } = await begin(`factory ${what}`, factory)
    t.same(await run.finished, { status: 'failed', reason: 'error', events: 0 }, what)
  }
})

t.test('objects with a type are sent as they are, bytes and strings too', async t => {
  const { begin, read } = await serveRuns(t)
  const parts = [{ type: 'start' }, { type: 'text-delta', id: '0', delta: 'Hi' }, { type: 'data-weather', data: { sun: true } }]
  const { run } = await begin('a', () => new ReadableStream({
    start (controller) {
      for (const part of parts) controller.enqueue(part)
      controller.enqueue(Buffer.from('[DONE]'))
      controller.close()
    }
  }))
  await run.finished
  const stream = await read('a')
  await stream.ended
  t.same(tokens(stream), [...parts.map(part => JSON.stringify(part)), '[DONE]'])
})

t.test('a character can be split between two strings or two buffers', async t => {
  const { begin, read } = await serveRuns(t)
  const { run } = await begin('a', () => ['a\ud83d', '\ude00b', Buffer.from('☕').subarray(0, 1), Buffer.from('☕').subarray(1)])
  t.match(await run.finished, { status: 'done', events: 3 })
  const stream = await read('a')
  await stream.ended
  t.same(tokens(stream), ['a', '😀b', '☕'])
  const { run: broken } = await begin('b', () => ['a\ud83d', 'b'])
  t.same(await broken.finished, { status: 'failed', reason: 'error', events: 1 })
})

t.test('mistakes of the caller are told at once', async t => {
  const { app: { sse } } = await serveRuns(t)
  const wrong = (code: string, text: RegExp) => ({ code, message: text })
  const ok = { ownerId: null }
  await t.rejects(sse.startRun('', never, ok), wrong('SSE_ERR_INVALID_RUN_ID', /1 to 256 bytes.*has 0/))
  await t.rejects(sse.startRun('é'.repeat(129), never, ok), wrong('SSE_ERR_INVALID_RUN_ID', /has 258/))
  await t.rejects(sse.startRun(7 as never, never, ok), wrong('SSE_ERR_INVALID_RUN_ID', /must be a string, got a number/))
  await t.rejects(sse.startRun('a', ['x'] as never, ok), wrong('SSE_ERR_INVALID_SOURCE', /function/))
  await t.rejects(sse.startRun('a', never, {} as never), wrong('SSE_ERR_INVALID_OPTION', /"ownerId" of startRun\(\) is missing/))
  await t.rejects(sse.startRun('a', never, { ownerId: undefined } as never), wrong('SSE_ERR_INVALID_OPTION', /"ownerId" is undefined, which would remove a protection|"ownerId" of startRun\(\) is undefined/))
  await t.rejects(sse.startRun('a', never, { ownerId: '\ud800' }), wrong('SSE_ERR_INVALID_OPTION', /"ownerId" of startRun\(\) must not have lone surrogates/))
  await t.rejects(sse.listRuns({ ownerId: '\udfff' }), wrong('SSE_ERR_INVALID_OPTION', /"ownerId" of listRuns\(\) must not have lone surrogates/))
  await t.rejects(sse.startRun('a', never, { ...ok, onDisconnect: { graceMs: 999 } }), wrong('SSE_ERR_INVALID_OPTION', /"onDisconnect.graceMs" of startRun\(\) must be an integer from 1000/))
  await t.rejects(sse.startRun('a', never, { ...ok, ttlMs: 4_999 }), wrong('SSE_ERR_INVALID_OPTION', /"ttlMs" of startRun\(\) must be an integer from 5000/))
  await t.rejects(sse.startRun('a', never, undefined as never), wrong('SSE_ERR_INVALID_OPTION', /"ownerId" of startRun\(\) is missing: The id of the user .*, or null for a public run/))
  await t.rejects(sse.startRun('a', never, { ...ok, ttlM: 1 } as never), wrong('SSE_ERR_INVALID_OPTION', /"ttlM" of startRun\(\) is not an option.*did you mean "ttlMs"/))
  await t.rejects(sse.startRun('a', never, { ...ok, onDisconnect: 'abort' } as never), wrong('SSE_ERR_INVALID_OPTION', /onDisconnect/))
  await t.rejects(sse.getRun('a', {} as never), wrong('SSE_ERR_INVALID_OPTION', /"ownerId" of getRun\(\) is missing/))
  await t.rejects(sse.stopRun('a', { ownerId: undefined } as never), wrong('SSE_ERR_INVALID_OPTION', /ownerId/))
  await t.rejects(sse.getRun('a', 'ada' as never), wrong('SSE_ERR_INVALID_OPTION', /of getRun\(\) must be an object { ownerId }, got "ada"$/))
  await t.rejects(sse.listRuns(undefined as never), wrong('SSE_ERR_INVALID_OPTION', /"ownerId" of listRuns\(\) is missing: The id of the user .*, or null for a public run/))
  t.same(await sse.listRuns(ok), [])
})
