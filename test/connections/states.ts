import t from 'tap'
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
  const shared = source('k')
  const other = new Client(fixture, 'other').begin(null, shared.source)
  await turns(1)
  other.backlog.snapshot!.revise()
  t.strictSame(shared.questions.map(({ signal }) => signal.aborted), [false], 'a shared state does not depend on the rights of a client')
  other.leave()
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
  t.equal(backlog.cursor, `${fixture.cursor(1)}!0`)
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

t.test('what was published before a load is sent before the state, and what follows after it', async t => {
  for (const begins of ['once', 'anew']) {
    const fixture = await Fixture.create(t)
    const publish = async (...events: string[]): Promise<void> => { for (const [n, data] of events.entries()) await fixture.publish(data, { priority: n % 2 === 0 ? LOW : HIGH }) }
    await publish('1', '2')
    const { source: own, end } = source()
    const client = new Client(fixture).begin(fixture.cursor(0), own, { fresh: ['a'] })
    await turns(1)
    await publish('3', '4')
    if (begins === 'anew') {
      t.strictSame(await client.drain(), ['2 0~2~2~2!0', '1 2!0'])
      client.backlog.snapshot!.revise()
      await publish('5')
      await end()
      await publish('6')
    }
    await end()
    const blocks = await client.drain()
    t.strictSame(blocks.map(block => block.split(' ')[0]), begins === 'once' ? ['2', '1', 'state', '4', '3'] : ['4', '3', '5', 'state', '6'], begins)
    t.equal(client.backlog.cursor, fixture.cursor(begins === 'once' ? 4 : 6))
    t.equal(client.backlog.lagging, false)
  }
})

t.test('a subscription that is added while a state is sent, and before the stream is open', async t => {
  const fixture = await Fixture.create(t)
  const { source: own, asked, end } = source()
  const client = new Client(fixture).begin(null, own)
  await turns(1)
  await end([{ data: 'row' }, { data: 'state' }])
  await client.read()
  t.strictSame(client.take(1), ['row'])
  client.held.add('b')
  client.backlog.added('b')
  t.strictSame(await client.drain(), ['state 0!0'])
  t.strictSame(asked(), ['connect a', 'added b'])
  const early = new Client(fixture, 'early').begin(fixture.cursor(0), own)
  early.backlog.snapshot!.isOpen = false
  early.backlog.added('a')
  t.strictSame([early.take(), early.backlog.cursor], [[], `${fixture.cursor(0)}!0`], 'the first block will have the cursor')
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
