import t from 'tap'
import { FRAME_BYTES } from '../../lib/delivery/frame.js'
import { turns } from '../helpers/wait.js'
import { Client, Fixture, source } from './fixture.js'

// What waits with a state, and behind it: within which bounds, and who gives way when memory is short.

t.test('a client gives way as long as a part of its state is not written', async t => {
  const cases: Record<string, (first: Client, load: (rows: number) => Promise<void>) => unknown> = {
    'a part is written': client => client.take(1),
    'all is written': client => { client.take(); client.backlog.written() },
    'a gap has replaced the rest': client => { client.take(1); client.blocked = true; client.backlog.invalidate('epoch') },
    'the stream has ended': client => { client.take(1); client.leave() },
    'all of two states is written': async (client, load) => {
      client.take()
      client.held.add('b')
      client.backlog.added('b')
      client.take()
      await load(1)
      client.take()
      client.backlog.written()
    }
  }
  for (const [name, write] of Object.entries(cases)) {
    const fixture = await Fixture.create(t, { maxQueuedBytes: 65_536 })
    const { source: own, end } = source()
    const load = async (client: Client, rows: number): Promise<void> => {
      await turns(1)
      await end(Array.from({ length: rows }, () => ({ data: 'x'.repeat(15_000) })))
      await client.read()
    }
    const [first, second, reading] = ['first', 'second', 'reading'].map(name => new Client(fixture, name)) as [Client, Client, Client]
    await load(first.begin(null, own), 2)
    await write(first, rows => load(first, rows))
    await load(second.begin(null, own), 2)
    second.take(1)
    for (const [n, client] of [first, second].entries()) {
      client.backlog.written()
      client.blocked = true
      client.lastWriteAt = n
    }
    await fixture.clock.advance(3_000)
    const gaveWay = name === 'a part is written'
    reading.begin(null, own)
    fixture.context.budget.add(gaveWay ? 14_000 : 22_000)
    await load(reading, 2)
    t.equal(reading.take().length, 2, name)
    t.strictSame([first, second].map(({ calls }) => calls.includes('gave way')), [gaveWay, !gaveWay], name)
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
