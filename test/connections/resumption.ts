import t, { type Test } from 'tap'
import { GapListeners } from '../../lib/connections/gap-listeners.js'
import { EventPriority } from '../../lib/index.js'
import type { Broker, ReadRequest } from '../../lib/log/broker.js'
import { recorder } from '../helpers/logged.js'
import { turns } from '../helpers/wait.js'
import { AMPLE, Client, Fixture } from './fixture.js'

// How a stream begins at a cursor, step by step, also at one that this node has not reached; and how it goes on after a gap.

const { LOW, NORMAL, HIGH, CRITICAL } = EventPriority
const publishAll = async (fixture: Fixture, count: number): Promise<void> => { for (let n = 1; n <= count; n++) await fixture.publish(`${n}`) }
const gapsOf = ({ backlog }: Client): unknown[] => {
  const heard: unknown[] = []
  backlog.onGap(({ reason, lastEventId, snapshot }) => { heard.push([reason, lastEventId, snapshot]) })
  return heard
}

t.test('a client without a cursor is live at once; so is one at the end of the log', async t => {
  const fixture = await Fixture.create(t)
  await publishAll(fixture, 3)
  for (const [cursor, resumed] of [[null, false], [fixture.cursor(3), true], [fixture.cursor(3, 3, 3, 3), true]] as const) {
    const { backlog } = new Client(fixture).begin(cursor)
    t.strictSame([backlog.resumed, backlog.lagging, backlog.behind, backlog.wantsPage, backlog.cursor], [resumed, false, false, false, fixture.cursor(3)])
  }
  t.equal(fixture.context.budget.yielders.size, 0)
  fixture.log.wipe()
  for (const { backlog } of fixture.clients) t.strictSame([backlog.resumed, backlog.lagging], [false, false])
  t.strictSame(fixture.telemetry.resumes, { fresh: 0, resumed: 2, gap: 0 }, 'a gap in the middle of a stream is no start')
})

t.test('a client that has missed nothing is live at once, with the cursor of the log and without a read', async t => {
  const fixture = await Fixture.create(t)
  const reads: ReadRequest[] = []
  t.intercept(fixture.broker, 'read', { value: async (request: ReadRequest) => { reads.push(request); return { messages: [], next: request.after } } })
  for (let n = 0; n < 200; n++) await fixture.publish(`${n}`, { target: { userIds: ['grace'] }, priority: n % 4 as EventPriority })
  for (const cursor of [fixture.cursor(0), fixture.cursor(100), fixture.cursor(7, 9, 200, 9)]) {
    const { backlog } = new Client(fixture).begin(cursor)
    t.strictSame([backlog.resumed, backlog.lagging, backlog.behind, backlog.wantsPage, backlog.cursor], [true, false, false, false, fixture.cursor(200)])
  }
  t.strictSame(reads, [])
  t.equal(fixture.context.budget.yielders.size, 0)
  // The bounds of a replay are bounds of what lies between, as before.
  Object.assign(fixture.context.options, { maxReplayEvents: 100 })
  t.equal(new Client(fixture).begin(fixture.cursor(99)).backlog.resumed, false)
  t.equal(new Client(fixture).begin(fixture.cursor(100)).backlog.resumed, true)
  // What is not known in memory is read.
  fixture.broker.fail()
  t.equal(new Client(fixture).begin(fixture.cursor(100)).backlog.resumed, null)
})

t.test('a client behind the log reads each lane from its number on, most urgent first', async t => {
  const fixture = await Fixture.create(t)
  for (const [n, priority] of [LOW, CRITICAL, NORMAL, HIGH, LOW, CRITICAL].entries()) await fixture.publish(`${n + 1}`, { priority })
  const cases: [lanes: number[], expected: string[]][] = [
    [[0], ['2', '6', '4', '3', '1', '5']],
    [[1], ['2', '6', '4', '3', '5']],
    [[6, 6, 6, 5], ['6']],
    [[4, 6, 6, 6], ['5']],
    [[5, 5, 5, 5], ['6']],
    [[0, 3, 6, 6], ['1', '5']],
    [[6, 2, 3, 6], ['4', '3']]
  ]
  for (const [lanes, expected] of cases) {
    const client = new Client(fixture).begin(fixture.cursor(...lanes))
    t.strictSame([client.backlog.resumed, client.backlog.lagging], [null, true])
    t.strictSame((await client.drain()).map(block => block.split(' ')[0]), expected, lanes.join())
    t.strictSame([client.backlog.resumed, client.backlog.lagging, client.backlog.cursor], [true, false, fixture.cursor(6)])
    client.leave()
  }
  t.strictSame(fixture.telemetry.resumes, { fresh: 0, resumed: cases.length, gap: 0 })
})

/** A node that is behind another one, on the same log: the other has published `ahead` events that this node has not delivered. */
async function behindBy (t: Test, ahead: number): Promise<Fixture> {
  const fixture = await Fixture.create(t)
  const other = fixture.log.broker()
  await other.open({ deliver: () => 0, gap () {}, state () {} }, fixture.context.options as never)
  t.teardown(() => other.close())
  fixture.broker.lag()
  for (let n = 1; n <= ahead; n++) await other.publish({ event: 'message', data: `${n}`, priority: NORMAL, target: {}, ephemeral: n === 2 })
  return fixture
}

t.test('a cursor that this node has not reached', async t => {
  await t.test('the stream begins there when the node has reached it, and no event comes twice', async t => {
    for (const way of ['a read', 'a delivery', 'both', 'a read that is too late']) {
      const fixture = await behindBy(t, 4)
      const client = new Client(fixture).begin(fixture.cursor(3))
      const { backlog } = client
      t.strictSame([backlog.resumed, backlog.lagging, backlog.wantsPage, backlog.cursor], [null, true, true, fixture.cursor(3)])
      t.equal(client.send('direct'), true, 'what is sent to the client waits')
      t.strictSame(client.take(), ['direct'])
      backlog.settle()
      t.strictSame([backlog.lagging, backlog.behind], [true, true], 'nothing waits, and yet the stream has not begun')
      const reading = way === 'a delivery' ? null : client.read()
      if (reading !== null) t.equal(backlog.wantsPage, false, 'one read at a time')
      const results: boolean[] = []
      const { receive } = client
      client.receive = frame => {
        results.push(receive.call(client, frame))
        return results.at(-1)!
      }
      fixture.broker.catchUp()
      t.strictSame(results, [true, false, true, true].slice(0, results.length), 'an ephemeral event is older than the stream')
      t.equal(results.length, 4)
      if (way === 'both') await fixture.publish('5')
      await reading
      if (way === 'a delivery') {
        await fixture.publish('5')
        t.strictSame([backlog.resumed, backlog.wantsPage], [true, false], 'without a read')
      }
      if (way.endsWith('late')) await client.read()
      t.strictSame(await client.drain(), way === 'both' || way === 'a delivery' ? ['5 4'] : [], way)
      t.strictSame([backlog.resumed, backlog.lagging, backlog.behind], [true, false, false])
      t.equal(fixture.telemetry.resumes.resumed, 1)
      client.leave()
    }
  })

  await t.test('which can be ahead of the cursor then', async t => {
    const fixture = await behindBy(t, 6)
    const clients = [[2], [0, 3, 0, 0]].map(lanes => new Client(fixture).begin(fixture.cursor(...lanes)))
    for (const { backlog } of clients) t.strictSame([backlog.resumed, backlog.lagging], [null, true])
    fixture.broker.catchUp()
    for (const [n, client] of clients.entries()) {
      t.strictSame((await client.drain()).map(block => block[0]), [['4', '5', '6'], ['5', '6']][n])
      t.strictSame([client.backlog.resumed, client.backlog.cursor], [true, fixture.cursor(5)])
    }
  })

  await t.test('the log says that it has no such position', async t => {
    const fixture = await behindBy(t, 4)
    const cursor = fixture.cursor(9)
    const client = new Client(fixture).begin(cursor)
    client.isConnected = false
    const heard = gapsOf(client)
    t.equal(fixture.telemetry.gaps.unknown, 0, 'not known before the log is asked')
    await client.read()
    await turns(1)
    t.strictSame(heard, [['unknown', cursor, false]])
    t.strictSame([client.backlog.resumed, client.backlog.lagging, client.backlog.cursor], [false, false, null])
    t.strictSame(client.take(), ['sse:gap 0'])
    t.equal(client.backlog.cursor, fixture.cursor(0))
    t.equal(fixture.telemetry.gaps.unknown, 1)
    t.equal(fixture.telemetry.resumes.gap, 0, 'before it opens, that is for the stream to report')
  })

  await t.test('a log that is wiped meanwhile is told of once', async t => {
    const fixture = await behindBy(t, 4)
    const cursor = fixture.cursor(3)
    const client = new Client(fixture).begin(cursor)
    const heard = gapsOf(client)
    fixture.log.wipe()
    t.equal(client.backlog.cursor, cursor, 'as long as the log was not asked, the client keeps its cursor')
    t.strictSame(client.take(), [])
    t.strictSame(await client.drain(), ['sse:gap 0'])
    t.strictSame(heard, [['epoch', cursor, false]])
    t.equal(fixture.telemetry.resumes.gap, 1)
  })

  await t.test('an answer that comes too early is asked for again; one for a stream that has ended has no effect', async t => {
    const fixture = await behindBy(t, 4)
    const asked: ReadRequest[] = []
    const early = { read: async (request: ReadRequest) => { asked.push(request); return { messages: [], next: 3 } } } as unknown as Broker
    const client = new Client(fixture).begin(fixture.cursor(1, 3, 2, 1))
    await t.rejects(client.backlog.readPage(early, AMPLE, client, () => true), { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: /is ahead of this node/ })
    t.match(asked, [{ epoch: fixture.log.epoch, after: 3, limit: 1 }])
    t.strictSame([client.backlog.wantsPage, client.backlog.lagging, client.backlog.resumed], [true, true, null])
    const reading = client.backlog.readPage(early, AMPLE, client, () => true)
    client.leave()
    await reading
    t.strictSame([client.backlog.behind, fixture.used, fixture.context.budget.yielders.size], [false, 0, 0])
  })
})

t.test('what a gap discards', async t => {
  const start = async () => {
    const fixture = await Fixture.create(t, { outboxBytes: 1_500 })
    const client = new Client(fixture)
    for (let n = 1; n <= 4; n++) await fixture.publish(`${n}`)
    await fixture.publish('5', { priority: HIGH })
    client.send('direct', LOW)
    t.equal(client.backlog.lagging, true)
    return { fixture, client, heard: gapsOf(client) }
  }
  await t.test('of events that were trimmed: those that were not read; the client receives what waits', async t => {
    const { fixture, client, heard } = await start()
    const cursor = fixture.cursor(5, 0, 4, 5)
    fixture.log.trim()
    await client.read()
    t.equal(client.backlog.cursor, null)
    t.strictSame(await client.drain(), ['sse:gap 5~5~4~5', '5 5', 'direct'])
    t.strictSame(heard, [['trimmed', cursor, false]])
    t.equal(client.backlog.resumed, false)
    t.equal(client.backlog.cursor, fixture.cursor(5))
  })
  await t.test('of a log that has lost its continuity: all logged events', async t => {
    const { fixture, client, heard } = await start()
    fixture.log.wipe()
    t.equal(client.backlog.lagging, false)
    await fixture.publish('6')
    t.strictSame(await client.drain(), ['sse:gap 1~0~1~1', '6 1', 'direct'])
    t.strictSame(heard, [['epoch', '', false]])
    t.equal(fixture.telemetry.gaps.epoch, 1)
  })
  await t.test('also those of the turn, but no ephemeral one', async t => {
    const fixture = await Fixture.create(t)
    const client = new Client(fixture)
    client.blocked = false
    await fixture.publish('1')
    client.send('direct')
    fixture.log.wipe()
    t.strictSame(await client.drain(), ['sse:gap 0', 'direct'])
    t.strictSame(fixture.telemetry.resumes, { fresh: 0, resumed: 0, gap: 0 }, 'a gap in the middle of a stream is no start')
  })
})

t.test('listeners of gaps', async t => {
  const { log, lines } = recorder()
  const gaps = new GapListeners(log)
  const heard: string[] = []
  const gap = (reason: 'epoch' | 'limit' | 'trimmed') => ({ reason, lastEventId: '', snapshot: false })
  const said = async (): Promise<string[]> => {
    t.strictSame(heard, [], 'not at once: the caller is in the middle of something')
    await turns(1)
    return heard.splice(0)
  }
  gaps.add(gap('epoch'))
  gaps.add(gap('limit'))
  gaps.listen(({ reason }) => { heard.push(`one ${reason}`) })
  t.strictSame(await said(), ['one limit'])
  const error = new Error('of a listener')
  gaps.listen(() => { throw error })
  gaps.listen(async () => { throw error })
  gaps.listen(({ reason }) => { heard.push(`other ${reason}`) })
  t.strictSame(await said(), [], 'a gap that was heard is not repeated')
  gaps.add(gap('trimmed'))
  gaps.add(gap('epoch'))
  t.strictSame(await said(), ['one trimmed', 'other trimmed', 'one epoch', 'other epoch'])
  t.strictSame(lines, new Array(4).fill(['error', { err: error }, 'A listener of connection.onGap() failed']))
})
