import { isDeepStrictEqual } from 'node:util'
import t from 'tap'
import { BrokerUnavailable } from '../../lib/errors.js'
import type { RunEnd } from '../../lib/log/run-store.js'
import { Client, startFeed } from '../helpers/run-feed.js'
import { turns } from '../helpers/wait.js'

// A reader of a run, from the news of the store to what a connection is given.

const numbers = (count: number, from = 1) => Array.from({ length: count }, (_, n) => [String(from + n), 'message', String(from + n)])

t.test('whatever is appended and when, each reader receives each event once, in order', async t => {
  let seed = 1
  const random = (below: number) => (seed = seed * 48_271 % 2_147_483_647) % below
  for (const isLate of [false, true]) {
    const run = await startFeed(t)
    run.store.isLate = isLate
    const readers = [run.read()]
    let count = 0
    for (let round = 0; round < 200; round++) {
      // Now and then more than a page.
      const events = random(50) === 0 ? 300 : random(3)
      run.append(events)
      count += events
      if (random(40) === 0) readers.push(run.read())
      for (const { client } of readers) if (random(10) === 0) client.toggle()
      if (random(2) === 0) await Promise.resolve()
      else await turns(random(4))
    }
    for (const { client } of readers) client.thaw()
    await turns(100)
    for (const { client } of readers) {
      t.ok(isDeepStrictEqual(client.events, numbers(count)))
      t.equal(client.written, count, 'counted one by one')
    }
    await run.finish('done')
    for (const { client, played } of readers) {
      await played
      t.same(client.events.slice(count), [[String(count + 1), 'sse:end', JSON.stringify({ status: 'done', events: count })]])
      t.equal(client.ended, 'close source-end')
    }
  }
})

t.test('a live reader receives many events at once, although the run goes on', async t => {
  const run = await startFeed(t)
  const { client } = run.read()
  await turns()
  run.append(2_000)
  await turns(50)
  t.equal(client.events.length, 2_000)
})

t.test('a reader without news reads nothing, and one that is woken for what it has already read writes nothing', async t => {
  const run = await startFeed(t)
  const early = run.read()
  await turns()
  run.append()
  // It reads the event before the end of the turn, at which both readers are woken.
  const late = run.read()
  await turns()
  for (const { client } of [early, late]) t.same([client.events, client.ended], [numbers(1), null])
  const { reads } = run.store
  await turns(20)
  t.equal(run.store.reads, reads)
})

t.test('news that come while a page is being sent wait for its end', async t => {
  const run = await startFeed(t)
  const { client } = run.read()
  await turns()
  client.isCrowded = true
  run.store.isLate = true
  run.append(3)
  run.tell()
  await turns(5)
  run.store.isLate = false
  run.append()
  await turns(5)
  t.same(client.events, [])
  client.thaw()
  await turns(5)
  t.same(client.events, numbers(4))
})

t.test('a store that has events and does not return them is not read again and again', async t => {
  const run = await startFeed(t)
  run.append()
  run.store.change = ({ state }) => ({ state, texts: [] })
  for (const isLate of [false, true]) {
    run.store.isLate = isLate
    const before = run.store.reads
    run.read()
    await turns(30)
    t.ok(run.store.reads - before <= 2, `${run.store.reads - before} reads`)
  }
})

t.test('a run that is replaced while its reader waits: a gap at once, and the new run from its beginning', async t => {
  for (const [events, control] of [[0, true], [2, true], [0, false]] as const) {
    const run = await startFeed(t)
    run.append(events)
    const { client } = run.read(new Client(control))
    await turns()
    const old = run.id(events)
    await run.replace()
    await turns()
    const gap = control ? [['0', 'sse:gap', JSON.stringify({ reason: 'epoch', lastEventId: old })]] : []
    t.same(client.events.slice(events), gap, `${events} events`)
    t.equal(run.telemetry.gaps.epoch, 1)
    run.append(3)
    await turns()
    t.same(client.events.slice(events + gap.length), numbers(3))
    t.equal(client.ended, null)
  }
  const run = await startFeed(t)
  run.append(2)
  const { client, played } = run.read(new Client(false))
  await turns()
  await run.replace()
  run.append(3)
  await played
  t.same([client.events, client.ended], [numbers(2), 'fail'], 'without control events, it would be the continuation of the other run')
})

t.test('a store that has lost events: a gap, and what it still has', async t => {
  const run = await startFeed(t)
  run.append(5)
  const [told, cut] = [run.read(), run.read(new Client(false))]
  await turns()
  run.store.change = ({ state, texts }) => ({ state: { ...state!, events: Math.min(state!.events, 2) }, texts: texts.slice(0, 2) })
  run.tell()
  await turns()
  t.same(told.client.events.slice(5), [['0', 'sse:gap', JSON.stringify({ reason: 'unknown', lastEventId: run.id(5) })], ...numbers(2)])
  t.same([cut.client.events.length, cut.client.ended], [5, 'fail'])
  t.equal(run.telemetry.gaps.unknown, 1)
})

t.test('a reader begins with the gap of its cursor, and continues at its position without one', async t => {
  const run = await startFeed(t)
  run.append(3)
  for (const [cursor, reason] of [['17', 'malformed'], [run.id(9), 'unknown']] as const) {
    const { client } = run.read(new Client(), cursor)
    await turns()
    t.same(client.events, [['0', 'sse:gap', JSON.stringify({ reason, lastEventId: cursor })], ...numbers(3)])
  }
  t.match(run.telemetry.gaps, { malformed: 1, unknown: 1, epoch: 0 })
  const { client } = run.read(new Client(), run.id(2))
  await turns()
  t.same(client.events, numbers(1, 3))
})

t.test('the end, with and without control events, comes after everything that is unsent', async t => {
  const orderly = (status: RunEnd) => status === 'done' || status === 'stopped'
  for (const status of ['done', 'stopped', 'failed', 'lost'] as const) {
    for (const control of [true, false]) {
      const run = await startFeed(t)
      run.append()
      const { client, played } = run.read(new Client(control))
      await turns()
      await run.finish(status)
      await turns(1)
      const slow = run.read(new Client(control))
      await played
      t.equal(client.ended, control || orderly(status) ? 'close source-end' : 'fail', `${status}, ${control}`)
      t.same(client.events.slice(1), control ? [['2', 'sse:end', JSON.stringify({ status, events: 1 })]] : [])
      // The last frame is given to the connection, whose client does not read it yet.
      const { receive } = slow.client
      slow.client.receive = frame => {
        const taken = receive.call(slow.client, frame)
        if (slow.client.written === 2) slow.client.isSlow = true
        return taken
      }
      await turns(5)
      t.same([slow.client.written, slow.client.ended], [2, null])
      slow.client.thaw()
      await slow.played
      t.equal(slow.client.ended, client.ended)
    }
  }
  for (const control of [true, false]) {
    const run = await startFeed(t)
    const { client, played } = run.read(new Client(control))
    await turns()
    run.store.change = () => ({ state: null, texts: [] })
    run.tell()
    await played
    t.same([client.events, client.ended], control ? [[['', 'sse:end', '{"status":"unknown"}']], 'close source-end'] : [[], 'fail'])
  }
})

t.test('a client that disconnects ends its reader, whatever it waits for', async t => {
  for (const waits of ['news', 'client', 'store', 'retry'] as const) {
    const run = await startFeed(t)
    run.append()
    const client = new Client()
    client.isSlow = waits === 'client'
    run.store.isLate = waits === 'store'
    if (waits === 'retry') run.store.problem = new BrokerUnavailable('is down')
    const { played } = run.read(client)
    await turns(waits === 'store' ? 0 : 3)
    client.leave()
    await played
    const { reads } = run.store
    run.tell()
    await turns()
    t.equal(run.store.reads, reads, waits)
  }
})

t.test('reads that fail are repeated for ten seconds, counted from the first of them', async t => {
  const down = new BrokerUnavailable('is down')
  const run = await startFeed(t)
  const { client, played } = run.read()
  /** With news that have to be read. */
  const append = async () => {
    run.append()
    run.tell()
    await turns()
  }
  await turns()
  run.store.problem = down
  await append()
  const { reads } = run.store
  await run.clock.advance(499)
  t.equal(run.store.reads, reads)
  // News do not wait for the next attempt.
  run.store.problem = null
  await append()
  t.same(client.events, numbers(2))
  await run.clock.advance(20_000)
  t.same(client.events, numbers(2))
  // Another failure, long after the first one, is the first one again.
  run.store.problem = down
  await append()
  await run.clock.advance(9_500)
  t.equal(client.ended, null)
  run.store.problem = null
  await run.clock.advance(500)
  t.same(client.events, numbers(3))
  run.store.problem = down
  await append()
  const before = run.store.reads
  let error: unknown = null
  played.catch(err => { error = err })
  await run.clock.advance(9_999)
  t.equal(error, null)
  t.equal(run.store.reads - before, 19, 'two attempts in a second')
  await run.clock.advance(1)
  t.equal(error, down)
})
