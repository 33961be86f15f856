import t from 'tap'
import { FRAME_BYTES } from '../../lib/delivery/frame.js'
import { EventPriority } from '../../lib/index.js'
import { turns } from '../helpers/wait.js'
import { Client, Fixture, source } from './fixture.js'

// A client that needs a state, step by step: what waits for it, where the client stands, and that nothing of it is left.

const { LOW, NORMAL, HIGH } = EventPriority

t.test('before its state, a client has no cursor and no event; after it, each event once', async t => {
  const fixture = await Fixture.create(t)
  await fixture.publish('1')
  const { source: own, asked, end } = source()
  const client = new Client(fixture).begin(null, own)
  const { backlog } = client
  await fixture.publish('2', { priority: LOW })
  await turns(1)
  t.strictSame(asked(), ['connect a'])
  await fixture.publish('3', { priority: HIGH })
  await fixture.publish('4', { ephemeral: true })
  t.equal(client.send('5', HIGH), true)
  t.strictSame([backlog.lagging, backlog.wantsPage, backlog.cursor, backlog.resumed, backlog.leads], [true, false, null, false, false])
  t.strictSame(await client.drain(), [], 'all wait')
  const waiting = backlog.bytes
  t.ok(waiting > 800 && waiting === fixture.used, 'events that are not logged are held')
  await end([{ data: 'row' }, { data: 'state' }])
  t.strictSame([backlog.wantsPage, backlog.lagging, backlog.leads], [true, true, false])
  await client.read()
  t.strictSame([backlog.leads, backlog.cursor, backlog.lagging], [true, `${fixture.cursor(2)}!0`, true])
  t.equal(backlog.bytes, fixture.used)
  t.equal(backlog.snapshot!.isLoaded, false, 'it waits for no load any more')
  t.strictSame(client.take(1), ['row'])
  t.equal(backlog.cursor, `${fixture.cursor(2)}!0`, 'the rest of the state is missing')
  t.strictSame(await client.drain(), ['state 2', '3 3', '5', '4'])
  t.strictSame([backlog.lagging, backlog.behind, backlog.cursor, fixture.used], [false, false, fixture.cursor(3), 0])
  t.equal(fixture.context.budget.yielders.size, 0)
  client.leave()
})

t.test('a load begins when the stream is open, its client can be written to, and no other call for it continues', async t => {
  const fixture = await Fixture.create(t)
  const { source: own, questions, asked, end } = source()
  const client = new Client(fixture)
  client.begin(null, own)
  const snapshot = client.backlog.snapshot!
  await turns(1)
  snapshot.begin()
  snapshot.open()
  await turns(1)
  t.equal(questions.length, 1, 'one at a time')
  client.held.add('b')
  snapshot.revise()
  t.equal(questions[0]!.signal.aborted, true)
  await turns(1)
  t.equal(questions.length, 1, 'the call that was abandoned continues')
  await end()
  t.strictSame(asked(), ['connect a', 'connect a b'], 'with what the client holds now')
  client.blocked = true
  snapshot.revise()
  await end()
  t.equal(questions.length, 2)
  await client.drain()
  t.equal(questions.length, 2, 'it cannot be written to')
  client.blocked = false
  client.backlog.settle()
  await turns(1)
  t.equal(questions.length, 3)
  await end()
  t.strictSame(await client.drain(), ['state 0'])
  snapshot.revise()
  await turns(1)
  t.equal(questions.length, 3, 'nothing is needed')
  client.leave()
  t.equal(fixture.used, 0)
})

t.test('a stream that ends takes everything along, whatever its state does at the time', async t => {
  const times: Record<string, (client: Client, end: (result: unknown) => Promise<void>) => Promise<unknown> | null> = {
    'before the load starts': () => null,
    'while it is loaded': async () => await turns(1),
    'when it is loaded': async (client, end) => { await turns(1); await end({ data: 'x' }) },
    'while the log is asked': async (client, end) => { await turns(1); await end({ data: 'x' }); return { reading: client.read() } },
    'when it is placed': async (client, end) => { await turns(1); await end([{ data: 'x' }, { data: 'y' }]); await client.read() },
    'when it is sent in part': async (client, end) => { await turns(1); await end([{ data: 'x' }, { data: 'y' }]); await client.read(); client.take(1) },
    'when it is sent': async (client, end) => { await turns(1); await end([{ data: 'x' }, { data: 'y' }]); await client.read(); client.take() }
  }
  for (const [name, until] of Object.entries(times)) {
    for (const key of [undefined, 'k']) {
      await t.test(`${name}, key ${key}`, async t => {
        const fixture = await Fixture.create(t)
        const { source: own, questions, end } = source(key)
        const client = new Client(fixture).begin(null, own)
        client.send('direct')
        const waiting = until(client, end)
        const pending = waiting === null ? null : await waiting as { reading: Promise<void> } | undefined
        t.equal(fixture.used > 0, name !== 'when it is sent')
        client.leave()
        await pending?.reading
        t.strictSame([fixture.used, client.backlog.bytes, client.backlog.behind, fixture.context.budget.yielders.size], [0, 0, false, 0])
        if (name === 'while it is loaded') t.equal(questions[0]!.signal.aborted, true)
        // Nothing asks again, whatever ends later.
        client.backlog.snapshot!.begin()
        if (name.startsWith('while it')) await end({ data: 'late' })
        await turns(1)
        t.equal(questions.length, name.startsWith('before') ? 0 : 1)
        t.strictSame(client.calls.filter(call => call === 'failed'), [])
        t.equal(fixture.used, 0)
      })
    }
  }
})

t.test('the state of added subscriptions', async t => {
  const fixture = await Fixture.create(t)
  const { source: own, asked, end } = source()
  const client = new Client(fixture).begin(fixture.cursor(0), own)
  const { backlog } = client
  const add = (topic: string): void => {
    client.held.add(topic)
    backlog.added(topic)
  }
  await fixture.publish('1')
  add('b')
  t.strictSame(await client.drain(), ['1~0~1~1!0', '1 1!0'], 'from now on, the cursor says that a state is missing')
  t.strictSame([backlog.lagging, backlog.resumed, backlog.leads], [true, true, false])
  await turns(1)
  t.strictSame(client.calls, ['started 1'], 'from here on, logged events wait for the state')
  await fixture.publish('2', { priority: HIGH })
  add('c')
  client.send('3')
  await fixture.publish('4')
  t.strictSame(await client.drain(), [])
  t.equal(backlog.cursor, `${fixture.cursor(1)}!0`, 'not behind events that the client was not sent')
  await end()
  t.strictSame(asked(), ['added b'])
  t.strictSame(await client.drain(), ['state 1!0', '2 3~1~3~3!0', '3', '4 3!0'])
  await turns(1)
  t.strictSame(asked(), ['added b', 'added c'])
  add('d')
  client.held.delete('d')
  await end()
  t.strictSame(await client.drain(), ['state 3!0', '3'])
  t.strictSame(asked(), ['added b', 'added c'], 'what was removed meanwhile is not asked for')
  t.strictSame([backlog.lagging, backlog.behind, backlog.cursor, fixture.used], [false, false, fixture.cursor(3), 0])
})

t.test('what was asked for in vain is asked for again', async t => {
  for (const way of ['revise', 'postpone'] as const) {
    const fixture = await Fixture.create(t)
    const { source: own, asked, end } = source()
    const client = new Client(fixture).begin(fixture.cursor(0), own, { fresh: ['a'] })
    await turns(1)
    client.held.add('b')
    client.backlog.added('b')
    if (way === 'revise') client.backlog.snapshot!.revise()
    else client.backlog.snapshot!.postpone()
    t.equal(client.backlog.snapshot!.owes, true)
    await end(null)
    t.strictSame(asked(), ['added a', 'added a b'], way)
    await end()
    t.strictSame(await client.drain(), ['state 0'])
    client.held.add('c')
    client.backlog.added('c')
    client.backlog.snapshot!.revise()
    await turns(1)
    t.strictSame(asked().slice(2), ['added c'], 'once')
    client.leave()
  }
})

t.test('a client gives way as long as a part of its state is not written', async t => {
  for (const [taken, gaveWay] of [['part', true], ['all', false], ['part, before a gap', false]] as const) {
    const fixture = await Fixture.create(t, { maxQueuedBytes: 65_536 })
    const { source: own, end } = source()
    const [first, second] = [new Client(fixture, 'first').begin(null, own), new Client(fixture, 'second').begin(null, own)]
    const rows = (count: number) => Array.from({ length: count }, () => ({ data: 'x'.repeat(15_000) }))
    await turns(1)
    await end(rows(3))
    await first.read()
    first.blocked = true
    first.take(taken === 'all' ? Infinity : 1)
    first.backlog.written()
    if (taken.endsWith('gap')) first.backlog.invalidate('epoch')
    await fixture.clock.advance(3_000)
    // More than there is beside what the first client has not received.
    if (taken !== 'part') fixture.context.budget.add(30_000)
    await end(rows(taken === 'part' ? 3 : 2))
    await second.read()
    t.strictSame(second.take().length, taken === 'part' ? 3 : 2)
    t.equal(first.calls.includes('gave way'), gaveWay, taken)
  }
})

t.test('events that are not logged wait within the limit of the outbox', async t => {
  const fixture = await Fixture.create(t, { outboxBytes: 2_000 })
  const { source: own, end } = source()
  const client = new Client(fixture).begin(fixture.cursor(0), own, { fresh: ['a'] })
  t.equal(client.send('x'.repeat(500)), true)
  const before = client.backlog.bytes
  await turns(1)
  t.strictSame(client.calls, ['started 0'])
  t.equal(client.send('y'.repeat(100)), true)
  const behind = client.backlog.bytes - before
  t.ok(behind > 500)
  const rest = 2_000 - client.backlog.bytes - FRAME_BYTES - 'data: \n\n'.length
  t.equal(client.send('z'.repeat(rest + 1)), false, 'a byte too many')
  t.strictSame([client.backlog.dropped, fixture.telemetry.dropped.outbox], [1, 1])
  t.equal(client.send('z'.repeat(rest)), true)
  t.equal(client.backlog.bytes, 2_000)
  t.equal(client.backlog.bytes, fixture.used)
  t.equal(client.send('zz'), false)
  t.strictSame([client.backlog.dropped, fixture.telemetry.dropped.outbox], [2, 2])
  client.backlog.sift(() => false)
  await end()
  t.strictSame((await client.drain()).map(block => block[0]), ['x', 's', 'y', 'z'])
  t.equal(client.backlog.dropped, 2)
  t.equal(fixture.used, 0)
})

t.test('of events that are not logged, one that is larger than the outbox waits if nothing else does', async t => {
  const fixture = await Fixture.create(t, { outboxBytes: 2_000 })
  const { source: own, end } = source()
  const client = new Client(fixture).begin(null, own)
  t.strictSame([client.send('x'.repeat(5_000)), client.send('y')], [true, false])
  t.strictSame([client.backlog.dropped, fixture.telemetry.dropped.outbox], [1, 1])
  await turns(1)
  await end()
  t.strictSame((await client.drain()).map(block => block[0]), ['s', 'x'])
  t.equal(client.backlog.dropped, 1)
})

t.test('an event whose right has ended is not sent behind a state', async t => {
  const fixture = await Fixture.create(t)
  const { source: own, end } = source()
  const client = new Client(fixture).begin(null, own)
  client.send('1', NORMAL, { userIds: ['ada'] })
  client.send('2')
  await turns(1)
  client.backlog.sift(() => false)
  await end()
  t.strictSame(await client.drain(), ['state 0', '2'])
})
