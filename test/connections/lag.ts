import t from 'tap'
import { gapFrame } from '../../lib/connections/control-frames.js'
import { Frame } from '../../lib/delivery/frame.js'
import type { Turns } from '../../lib/delivery/replay-scheduler.js'
import { EventPriority } from '../../lib/index.js'
import { Client, Fixture } from './fixture.js'

// A connection that is behind, step by step: what it holds, what it reads of the log, and what it reports.

const { LOW, NORMAL, HIGH } = EventPriority
/** A frame for one client of so many bytes in a batch, with its objects. */
const frameOf = (bytes: number) => new Frame('', 'x'.repeat(bytes - 500), NORMAL)

t.test('a batch is written before it exceeds outboxBytes, or what its holders justify when memory is short', async t => {
  const { context } = await Fixture.create(t, { outboxBytes: 2_000, maxQueuedBytes: 65_536 })
  const fixture = { context, clients: new Set() } as unknown as Fixture
  const [ada, bob] = [new Client(fixture), new Client(fixture, 'bob')]
  for (const client of [ada, bob]) client.blocked = false
  const { backlog } = ada
  t.equal(backlog.overflows(frameOf(9_000)), false, 'a batch without frames never overflows')
  const first = frameOf(1_000)
  ada.receive(first)
  t.strictSame([backlog.bytes, context.budget.used, backlog.empty, backlog.behind, backlog.textBytes], [1_000, 1_000, false, false, 500])
  for (const [bytes, overflows] of [[1_499, false], [1_500, false], [1_501, true]] as const) t.equal(backlog.overflows(frameOf(bytes)), overflows, `${bytes} bytes more`)
  context.budget.add(64_536)
  t.equal(backlog.overflows(frameOf(500)), false, 'the budget is full, and not exceeded')
  context.budget.add(1)
  t.equal(backlog.overflows(frameOf(500)), true, 'a batch with one holder is written')
  bob.receive(first)
  t.equal(context.budget.used, 65_537, 'two share the batch')
  t.equal(backlog.overflows(frameOf(500)), false, 'which the second holder justifies')
  bob.backlog.takeBatch()
  ada.leave()
  for (const [bytes, overflows] of [[1_024, false], [1_025, true]] as const) {
    const frame = frameOf(bytes)
    for (const client of [ada, bob]) client.receive(frame)
    t.equal(backlog.overflows(frameOf(500)), overflows, `${bytes} bytes for two`)
    for (const client of [ada, bob]) client.backlog.clear()
  }
  t.equal(context.budget.used, 64_537)
  t.strictSame([backlog.bytes, backlog.empty, backlog.takeBatch()], [0, true, null])
})

t.test('what waits is in the budget once, wherever it moves, and nothing when it is gone', async t => {
  const fixture = await Fixture.create(t)
  const client = new Client(fixture)
  client.blocked = false
  const target = { clientIds: ['ada'] }
  await fixture.publish('1')
  client.send('2', NORMAL, target)
  client.receive(gapFrame('limit', ''))
  await fixture.publish('3')
  const { bytes } = client.backlog
  t.ok(bytes > 1_500)
  t.equal(fixture.used, bytes)
  client.backlog.sift(({ clientIds }) => clientIds === undefined)
  t.ok(client.backlog.bytes < bytes, 'what the client may not receive any more is removed')
  t.equal(fixture.used, client.backlog.bytes)
  client.backlog.spill()
  t.equal(fixture.context.budget.yielders.size, 1)
  t.equal(fixture.used, client.backlog.bytes)
  t.strictSame([client.backlog.empty, client.backlog.behind], [false, true])
  client.send('4', NORMAL, target)
  client.send('5')
  client.backlog.sift(({ clientIds }) => clientIds === undefined)
  t.equal(fixture.used, client.backlog.bytes)
  t.strictSame(client.take(), ['sse:gap', '1 2~1~2~2', '3 2', '5'])
  t.equal(fixture.used, 0)
  client.backlog.settle()
  t.strictSame([client.backlog.empty, client.backlog.lagging, fixture.context.budget.yielders.size], [true, false, 0], 'live again')
  for (const blocked of [false, true]) {
    client.blocked = blocked
    client.send('6')
    client.backlog.clear()
    t.equal(fixture.used, 0)
    t.equal(fixture.context.budget.yielders.size, 0)
    t.equal(client.backlog.empty, true)
  }
})

t.test('a batch that cannot be written keeps its order, also with what follows it', async t => {
  for (const batch of ['', 'e', 'l', 'ee', 'el', 'le', 'ele', 'lel', 'elel']) {
    for (const rest of ['e', 'l', 'el', 'le']) {
      const fixture = await Fixture.create(t)
      const client = new Client(fixture)
      const expected: string[] = []
      const publish = async (kinds: string): Promise<void> => {
        for (const kind of kinds) {
          const data = `${kind}${expected.length}`
          expected.push(data)
          await fixture.publish(data, { ephemeral: kind === 'e' })
        }
      }
      client.blocked = false
      await publish(batch)
      client.blocked = true
      await publish(rest)
      t.strictSame((await client.drain()).map(block => block.split(' ')[0]), expected, `${batch}, then ${rest}`)
    }
  }
})

t.test('dropped events are counted once, also after the outbox is gone', async t => {
  const fixture = await Fixture.create(t, { outboxBytes: 1_200 })
  const client = new Client(fixture)
  t.strictSame(['1', '2', '3', '4'].map(data => client.send(data)), [true, true, false, false])
  t.equal(client.backlog.dropped, 2)
  t.equal(fixture.telemetry.dropped.outbox, 2)
  await client.drain()
  t.equal(client.backlog.behind, false)
  t.equal(client.backlog.dropped, 2)
  t.strictSame(['5', '6', '7'].map(data => client.send(data)), [true, true, false])
  t.equal(client.backlog.dropped, 3)
  client.leave()
  t.equal(client.backlog.dropped, 3)
})

t.test('a page of the log has at most 128 events, or 16 KB and the event that reaches them', async t => {
  const pageOf = async (events: number, bytes: number) => {
    const fixture = await Fixture.create(t)
    // The memory of an event: its text, and the id line with a cursor of one or two digits.
    for (let n = 1; n <= events; n++) await fixture.publish('x'.repeat(bytes - 'data: \n\n'.length - `id: ${fixture.cursor(n)}\n`.length))
    const client = new Client(fixture).begin(fixture.cursor(0))
    await client.read()
    return fixture.telemetry.replayed
  }
  t.equal(await pageOf(127, 100), 127)
  t.equal(await pageOf(129, 100), 128)
  t.equal(await pageOf(20, 1_024), 16)
  t.equal(await pageOf(20, 1_023), 17)
  t.equal(await pageOf(20, 1_093), 15)
  t.equal(await pageOf(3, 20_000), 1)
})

t.test('a replay is reported once: its events, bytes and time since its first page, and how it ended', async t => {
  const fixture = await Fixture.create(t)
  const { reports, clock } = fixture
  const line = (data: string, n: number) => `id: ${fixture.cursor(n)}\ndata: ${data}\n\n`.length
  for (let n = 1; n <= 3; n++) await fixture.publish('x', { priority: n % 2 === 0 ? LOW : HIGH })
  const clientId = 'ada'
  const client = new Client(fixture, clientId).begin(fixture.cursor(0))
  await clock.advance(5)
  await client.read()
  await clock.advance(7)
  t.equal(client.backlog.resumed, null, 'not known before the log is read')
  await client.read()
  await client.read()
  t.equal(client.backlog.resumed, true)
  t.equal(client.backlog.lagging, false)
  await clock.advance(11)
  t.strictSame(reports.of('replay'), [])
  t.strictSame(await client.drain(), ['x 1~3~1~3', 'x 1~3~3~3', 'x 3'])
  const bytes = 3 * line('x', 1)
  t.strictSame(reports.of('replay'), [{ nodeId: fixture.telemetry.nodeId, clientId, events: 3, bytes, durationMs: 18, result: 'complete' }])

  for (const result of ['gap', 'closed'] as const) {
    const client = new Client(fixture, result).begin(fixture.cursor(0))
    await client.read()
    await clock.advance(3)
    if (result === 'gap') client.backlog.invalidate('epoch')
    client.leave()
    t.strictSame(reports.of('replay').slice(1), [{ nodeId: fixture.telemetry.nodeId, clientId: result, events: 2, bytes: 2 * line('x', 1), durationMs: 3, result }])
    reports.all.length = 1 + reports.all.findIndex(([channel]) => channel === 'replay')
  }
  const idle = new Client(fixture, 'idle').begin(fixture.cursor(0))
  idle.leave()
  t.equal(reports.of('replay').length, 1, 'nothing was read')
  t.equal(fixture.telemetry.replayed, 7)
  t.equal(fixture.used, 0)
})

t.test('a page that is read in vain has no effect', async t => {
  const changes: Record<string, (client: Client, fixture: Fixture) => unknown> = {
    'the stream ends': client => client.leave(),
    'the log has a gap': client => client.backlog.invalidate('trimmed'),
    'the client was read the event by another page': async client => await client.read()
  }
  for (const [name, change] of Object.entries(changes)) {
    for (const when of ['while it is read', 'in a filter', 'between two turns']) {
      await t.test(`${name} ${when}`, async t => {
        const fixture = await Fixture.create(t)
        for (let n = 1; n <= 4; n++) await fixture.publish(`${n}`)
        const client = new Client(fixture).begin(fixture.cursor(0))
        let asked = 0
        client.wants = () => {
          asked++
          if (when === 'in a filter' && asked === 2) change(client, fixture)
          return true
        }
        let waits = 0
        const turns = { get over () { return when === 'between two turns' && asked === 1 && waits === 0 }, async next () { waits++; change(client, fixture) } } as unknown as Turns
        const reading = client.read(turns)
        if (when === 'while it is read') change(client, fixture)
        await reading
        if (name.startsWith('the client')) return t.strictSame(await client.drain(), ['1 4~1~4~4', '2 4~2~4~4', '3 4~3~4~4', '4 4'], 'a second read')
        t.equal(asked, when === 'while it is read' ? 0 : when === 'in a filter' ? 2 : 1, 'the application is not asked any more')
        t.equal(fixture.telemetry.replayed, when === 'while it is read' ? 0 : 1)
        if (name === 'the stream ends') t.strictSame([client.backlog.empty, client.backlog.bytes, client.take()], [true, 0, []])
        else t.strictSame([client.backlog.lagging, await client.drain()], [false, ['sse:gap 4']])
        t.equal(fixture.used, 0)
      })
    }
  }
})

t.test('a read that waits for its turn goes on when it has one', async t => {
  const fixture = await Fixture.create(t)
  for (let n = 1; n <= 3; n++) await fixture.publish(`${n}`)
  const client = new Client(fixture).begin(fixture.cursor(0))
  let waits = 0
  client.wants = () => {
    t.equal(waits, 2)
    return true
  }
  const turns = { get over () { return waits < 2 }, async next () { waits++ } } as unknown as Turns
  await client.read(turns)
  t.equal(waits, 2, 'the first turn was used up by others')
  t.strictSame(await client.drain(), ['1 3~1~3~3', '2 3~2~3~3', '3 3'])
})

t.test('a page that is broken off goes on where it was', async t => {
  const fixture = await Fixture.create(t, { outboxBytes: 3_000 })
  for (let n = 1; n <= 8; n++) await fixture.publish(`${n}`.padEnd(600, 'x'))
  const client = new Client(fixture).begin(fixture.cursor(0))
  client.wants = ({ seq }) => seq !== 2
  await client.read()
  t.equal(fixture.telemetry.replayed, 2, 'the outbox is full')
  t.strictSame(client.take(1).map(block => block[0]), ['1'])
  t.equal(client.backlog.cursor, fixture.cursor(8, 1, 8, 8))
  await client.read()
  t.strictSame((await client.drain()).map(block => block[0]), ['3', '4', '5', '6', '7', '8'])
  t.equal(fixture.telemetry.replayed, 7)
  t.equal(client.backlog.cursor, fixture.cursor(8))
})

t.test('memory that is needed is given back, and the events are read from the log', async t => {
  const fixture = await Fixture.create(t)
  const client = new Client(fixture)
  for (let n = 1; n <= 4; n++) await fixture.publish(`${n}`, { priority: n === 4 ? HIGH : NORMAL })
  client.send('direct')
  const { budget } = fixture.context
  const before = budget.used
  t.equal(client.backlog.lagging, false)
  t.equal(budget.reclaim({ bytes: budget.limit - 1_000, holders: 0 }), true)
  t.ok(budget.used < before / 4)
  t.equal(fixture.reports.of('lag').length, 1)
  t.equal(client.backlog.lagging, true)
  t.equal(client.backlog.wantsPage, true)
  t.strictSame(await client.drain(), ['4 4~0~4~4', '1 4~1~4~4', '2 4~2~4~4', '3 4', 'direct'])
})

t.test('an ephemeral event that finds no memory loses nothing and repeats nothing of the log', async t => {
  const fixture = await Fixture.create(t)
  const { budget } = fixture.context
  const client = new Client(fixture)
  client.blocked = false
  await fixture.publish('1', { priority: LOW })
  client.backlog.takeBatch()
  client.send('2', HIGH)
  budget.add(budget.limit)
  client.backlog.spill()
  budget.add(-budget.limit)
  t.equal(fixture.telemetry.dropped.memory, 1)
  client.blocked = true
  await fixture.publish('3', { priority: LOW })
  t.strictSame(await client.drain(), ['3 2'])
})
