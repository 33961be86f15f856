import t from 'tap'
import { EventPriority } from '../../lib/index.js'
import { turns } from '../helpers/wait.js'
import { AMPLE, Client, Fixture, source } from './fixture.js'

// States and a log that moves on: gaps before, while and after a state is loaded, and who can share a load.

const { NORMAL, HIGH } = EventPriority

t.test('a client that returns without a complete state', async t => {
  const fixture = await Fixture.create(t)
  for (let n = 1; n <= 3; n++) await fixture.publish(`${n}`)
  const { source: own, asked, end } = source()
  const client = new Client(fixture).begin(fixture.cursor(1), own, { fresh: ['a'], failures: 4 })
  t.strictSame(await client.drain(), ['2 3~2~3~3!4', '3 3!4'], 'the cursor keeps the number of failures')
  t.equal(client.backlog.failedId, `${fixture.cursor(3)}!5`)
  await end()
  t.strictSame(asked(), ['added a'])
  t.strictSame(await client.drain(), ['state 3'])
  t.equal(client.backlog.snapshot!.failures, 0)
  t.equal(client.backlog.resumed, true)

  const ids: [cursor: string | null, failures: number, failedId: string, gap: boolean][] = [
    [null, 0, '!1', false], [null, 3, '!4', false], ['zzz.1', 2, 'zzz.1!3', true], ['garbage', 0, '-!1', true]
  ]
  for (const [cursor, failures, failedId, gap] of ids) {
    const { backlog } = new Client(fixture, `${cursor}`).begin(cursor, { load: () => null }, { failures })
    if (cursor === 'zzz.1') await backlog.readPage(fixture.broker, AMPLE, client, () => true)
    t.equal(backlog.failedId, failedId)
    t.equal(backlog.take(1e6)?.text.includes('sse:gap') === true, gap)
    t.equal(backlog.failedId, failedId, 'a gap event has no cursor, so the client keeps its own')
  }
})

t.test('a log that is trimmed under a state', async t => {
  const fixture = await Fixture.create(t)
  const { source: own, asked, end } = source()
  const client = new Client(fixture).begin(null, own)
  const trim = async (): Promise<void> => {
    await fixture.publish('lost')
    fixture.log.trim()
  }
  await turns(1)
  await trim()
  await end()
  t.strictSame(await client.drain(), [])
  await turns(1)
  t.strictSame(asked(), ['connect a', 'connect a'], 'it is loaded again')
  t.strictSame(client.calls, ['loaded'])
  await trim()
  await end()
  t.strictSame(await client.drain(), [])
  t.strictSame(client.calls, ['loaded', 'loaded', 'failed'], 'and given up the second time')
  client.backlog.settle()
  await turns(1)
  t.equal(asked().length, 2, 'nothing is asked for while the stream closes')
  client.leave()

  const other = new Client(fixture, 'bob').begin(null, own)
  await turns(1)
  await end()
  t.strictSame(await other.drain(), ['state 2'])
  await trim()
  other.held.add('b')
  other.backlog.added('b')
  t.strictSame(await other.drain(), ['3~2~3~3!0', 'lost 3!0'])
  await turns(1)
  await trim()
  await end()
  t.strictSame(await other.drain(), ['sse:gap'], 'of other subscriptions, events are lost')
  t.equal(other.backlog.resumed, false)
  await turns(1)
  t.strictSame(asked().slice(3), ['added b', 'gap a b'])
  await trim()
  await end()
  await other.drain()
  await turns(1)
  await end()
  t.strictSame(await other.drain(), ['state 5'], 'the count of trims began anew')
  t.strictSame(other.calls.filter(call => call === 'failed'), [])
  t.equal(fixture.used, 0)
})

t.test('gaps while a state is pending or sent', async t => {
  const fixture = await Fixture.create(t)
  const { source: own, asked, end } = source()
  const client = new Client(fixture).begin(null, own)
  fixture.log.wipe()
  await turns(1)
  t.strictSame(asked(), ['connect a'], 'a load that has not started is not affected')
  await end([{ data: 'row' }, { data: 'state' }])
  await client.read()
  t.strictSame(client.take(1), ['row'])
  fixture.log.wipe()
  t.strictSame([client.backlog.leads, client.backlog.cursor], [false, null], 'the rest of the state is not sent')
  await turns(1)
  t.strictSame(asked(), ['connect a', 'gap a'])
  t.strictSame(client.take(), ['sse:gap'])
  fixture.log.wipe()
  await end()
  await turns(1)
  t.strictSame(asked(), ['connect a', 'gap a', 'gap a'], 'the state is that of another epoch')
  t.strictSame(client.take(), [], 'the client was told')
  fixture.log.wipe()
  t.strictSame(client.calls.slice(-1), ['failed'], 'twice is too often')
  client.leave()
  await end()
  t.equal(fixture.used, 0)
})

t.test('who can join a load that runs', async t => {
  const fixture = await Fixture.create(t, { maxReplayEvents: 2, history: { maxEvents: 100 } })
  const { source: own, questions } = source('k')
  for (let n = 1; n <= 5; n++) await fixture.publish(`${n}`)
  new Client(fixture, 'first').begin(null, own)
  await turns(1)
  for (let n = 6; n <= 9; n++) await fixture.publish(`${n}`)
  const joins = async (cursor: string | null, fresh: string[] = []): Promise<boolean> => {
    const before = questions.length
    const client = new Client(fixture, 'other').begin(cursor, own, { fresh })
    await turns(1)
    const joined = questions.length === before
    client.leave()
    await turns(1)
    return joined
  }
  t.equal(await joins(null), true, 'who has nothing')
  t.equal(await joins('garbage'), true, 'or whose cursor says nothing')
  t.equal(await joins(fixture.cursor(5, 4, 3, 2)), true, 'who was sent nothing after its position')
  t.equal(await joins(fixture.cursor(6, 4, 3, 2)), false, 'and nobody else')
})

t.test('after a gap of the node, nobody joins a load that began before it', async t => {
  const fixture = await Fixture.create(t)
  const other = fixture.log.broker()
  await other.open({ deliver: () => 0, gap () {}, state () {} }, fixture.context.options as never)
  t.teardown(() => other.close())
  const { source: own, questions, end } = source('k')
  const live = new Client(fixture, 'live').begin(fixture.cursor(0), own)
  const first = new Client(fixture, 'first').begin(null, own)
  await turns(1)
  fixture.broker.fail()
  await other.publish({ event: 'message', data: 'lost', priority: NORMAL, target: {}, ephemeral: false })
  fixture.log.trim()
  fixture.broker.restore()
  await turns(1)
  t.equal(questions.length, 2)
  t.equal(questions[0]!.signal.aborted, true)
  await end()
  await end()
  t.strictSame(await live.drain(), ['sse:gap', 'state 1'])
  t.strictSame(await first.drain(), ['state 1'])
})

t.test('a gap discards all logged events of a client that then has its whole state', async t => {
  const fixture = await Fixture.create(t, { outboxBytes: 1_500 })
  const { source: own, asked, end } = source()
  const client = new Client(fixture).begin(fixture.cursor(0), own)
  client.blocked = true
  for (let n = 1; n <= 4; n++) await fixture.publish(`${n}`)
  await fixture.publish('5', { priority: HIGH })
  client.send('direct', HIGH)
  t.equal(client.backlog.lagging, true)
  fixture.log.trim()
  await client.read()
  client.blocked = false
  t.strictSame(await client.drain(), ['sse:gap', 'direct'])
  await end()
  t.strictSame(asked(), ['gap a'])
  t.strictSame(await client.drain(), ['state 5'])
})
