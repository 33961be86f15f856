import t, { type Test } from 'tap'
import { EventPriority } from '../../lib/events/event-rules.js'
import { connector, type Connection } from '../../lib/log/redis/client.js'
import { NodeChannel } from '../../lib/log/redis/node-channel.js'
import { ServerClock } from '../../lib/log/redis/server-clock.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { fakeTimers } from '../helpers/timers.js'
import { turns, until } from '../helpers/wait.js'

const AHEAD_MS = 3_600_000
const REPLY_MS = 700
const OUTGOING = { event: 'e', data: 'text', priority: EventPriority.NORMAL, target: { userIds: ['ada'] }, ephemeral: true, channel: 'node' } as const
const HEAD = JSON.stringify({ event: 'e', priority: 1, target: { userIds: ['ada'] }, nonce: '' })

/** The channel of a node on a Redis whose clock is an hour ahead, and which answers when the test says so. */
function channel (t: Test) {
  const time = fakeTimers(t)
  const asked: { command: readonly string[], timeoutMs: number, resolve (reply: unknown): void, reject (error: Error): void }[] = []
  const heard: string[] = []
  const clock = new ServerClock()
  const nodes = new NodeChannel('{sse}:nodes', clock, REPLY_MS, ({ data }) => { heard.push(data) })
  const connection: Connection = {
    send: (command, timeoutMs) => new Promise((resolve, reject) => { asked.push({ command, timeoutMs, resolve, reject }) }),
    destroy: () => {}
  }
  const failures: Error[] = []
  const reports: unknown[] = []
  const redisNow = () => Date.now() + AHEAD_MS
  return {
    time,
    asked,
    heard,
    clock,
    nodes,
    connection,
    failures,
    reports,
    redisNow,
    /** Receives over a new connection. */
    async serve () {
      asked.length = 0
      nodes.serve(connection, report => { reports.push(report) }).catch(error => { failures.push(error) })
      await turns(1)
    },
    /** Answers the question where the stream ends. */
    async locate (newest: string) {
      const { command, timeoutMs, resolve } = asked.shift()!
      t.strictSame([command[0], command.slice(2), timeoutMs], ['EVALSHA', ['1', '{sse}:nodes'], REPLY_MS])
      resolve([newest, String(redisNow())])
      await turns(2)
    },
    /** Answers a read behind `after`. */
    async give (after: string, ...entries: [id: string, ...fields: string[]][]) {
      const { command, timeoutMs, resolve } = asked.shift()!
      t.strictSame([command.slice(3), timeoutMs], [['BLOCK', '2000', 'STREAMS', '{sse}:nodes', after], 2_000 + REPLY_MS])
      resolve(entries.length === 0 ? null : [['{sse}:nodes', entries.map(([id, ...fields]) => [id, fields])]])
      await turns(2)
    }
  }
}
const said = (id: string, data: string): [id: string, ...fields: string[]] => [id, 'h', HEAD, 'd', data]

t.test('a message is sent once, and with it those are trimmed that have been kept for 15 s by the clock of Redis', async t => {
  const { asked, clock, nodes, connection, redisNow } = channel(t)
  clock.observe(redisNow())
  for (const failure of [null, new Error('away')]) {
    const sending = nodes.send(connection, OUTGOING)
    sending.catch(() => {})
    t.strictSame(asked.map(({ command, timeoutMs }) => [command, timeoutMs]), [[['XADD', '{sse}:nodes', 'MINID', '~', String(redisNow() - 15_000), '*', 'h', HEAD, 'd', 'text'], REPLY_MS]])
    if (failure === null) asked.pop()!.resolve('1-1')
    else asked.pop()!.reject(failure)
    if (failure === null) await sending
    else await t.rejects(sending, { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: /could not deliver a message to the other nodes/, cause: failure })
    t.equal(asked.length, 0)
  }
})

t.test('a node reads from the end of the stream at its first contact, and afterwards behind what it has read', async t => {
  const { asked, heard, reports, clock, redisNow, serve, locate, give, failures } = channel(t)
  await serve()
  t.strictSame(reports, [])
  await locate('500-3')
  t.strictSame([reports, clock.now], [[null], redisNow()])
  await give('500-3', said('600-0', 'one'), ['600-1', 'of', 'something else'], said('600-2', 'two'))
  await give('600-2', said('600-3', 'three'))
  await give('600-3', ['700-0', 'a', 'b'])
  t.strictSame(heard, ['one', 'two', 'three'])
  // After silence it looks where the stream ends. One that has gone on, or ends at the same time, is read on; one that was begun anew is read from its beginning.
  for (const [newest, after] of [['700-0', '700-0'], ['900-0', '700-0'], ['700-5', '700-0'], ['699-9', '0-0']] as const) {
    await give('700-0')
    await locate(newest)
    t.equal(asked[0]!.command.at(-1), after, newest)
    if (after === '700-0') continue
    await give('0-0', said('5-0', 'anew'))
  }
  t.equal(heard.at(-1), 'anew')
  await serve()
  await locate('900-0')
  await give('5-0', said('900-0', 'last'))
  t.strictSame([heard.at(-1), asked[0]!.command.at(-1), failures, reports], ['last', '900-0', [], [null, null]])
})

t.test('an id that is more than a minute ahead of the clock of Redis is not read behind', async t => {
  const { asked, redisNow, serve, locate, give } = channel(t)
  await serve()
  await locate('0-0')
  const [near, far] = [`${redisNow() + 60_000}-0`, `${redisNow() + 60_001}-0`]
  await give('0-0', said(near, 'near'))
  t.equal(asked[0]!.command[0], 'XREAD')
  await give(near, said(far, 'far'))
  await locate('0-0')
  t.equal(asked[0]!.command.at(-1), '0-0')
})

t.test('a node that Redis has not answered for more than 15 s connects again, after it has heard what has come', async t => {
  const { time, heard, failures, serve, locate, give } = channel(t)
  await serve()
  await locate('0-0')
  await time.advance(10_000)
  await give('0-0', said('1-0', 'a'))
  await time.advance(15_000)
  await give('1-0', said('2-0', 'b'))
  t.strictSame(failures, [])
  await time.advance(15_001)
  await give('2-0', said('3-0', 'c'))
  t.match(failures, [{ code: 'SSE_ERR_BROKER_UNAVAILABLE', message: /did not reach this node for 15001 ms: messages of other nodes may be lost/ }])
  t.strictSame(heard, ['a', 'b', 'c'])
  await serve()
  await locate('9-0')
  await give('3-0', said('4-0', 'd'))
  t.equal(heard.at(-1), 'd')
  t.equal(failures.length, 1)
})

t.test('a connection that fails ends the reading', async t => {
  const { asked, failures, serve, locate } = channel(t)
  await serve()
  asked.shift()!.reject(new Error('at the first question'))
  await turns(1)
  await serve()
  await locate('0-0')
  asked.shift()!.reject(new Error('at a read'))
  await turns(1)
  t.strictSame(failures.map(({ message }) => message), ['at the first question', 'at a read'])
})

t.test('a stream that cannot be used is deleted before it is read', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const connection = await connector(server.url, undefined, 20_000)(() => {}, new AbortController().signal)
  t.teardown(() => connection.destroy())
  const now = Date.now()
  const last = '18446744073709551615-18446744073709551615'
  const cases: [found: string[][], after: string, isKept: boolean][] = [
    [[], '0-0', false],
    [[['XADD', '5-1'], ['XADD', '5-2']], '5-2', true],
    [[['XADD', '5-1'], ['XDEL', '5-1']], '5-1', true],
    [[['XADD', `${now + 50_000}-7`]], `${now + 50_000}-7`, true],
    [[['XADD', `${now + 90_000}-7`]], '0-0', false],
    [[['XADD', last]], '0-0', false],
    [[['XADD', last], ['XDEL', last]], '0-0', false],
    [[['SET', 'x']], '0-0', false]
  ]
  for (const [i, [found, after, isKept]] of cases.entries()) {
    const key = `{${i}}:nodes`
    for (const [command, ...args] of found) await connection.send([command!, key, ...args, ...command === 'XADD' ? ['a', 'b'] : []], 20_000)
    const reads: string[] = []
    const clock = new ServerClock()
    clock.observe(0)
    const nodes = new NodeChannel(key, clock, 20_000, () => {})
    nodes.serve({
      send: (command, timeoutMs) => {
        if (command[0] !== 'XREAD') return connection.send(command, timeoutMs)
        reads.push(command.at(-1)!)
        return new Promise(() => {})
      },
      destroy: () => {}
    }, () => {}).catch(() => {})
    await until(() => reads.length > 0)
    t.strictSame([reads, await connection.send(['EXISTS', key], 20_000)], [[after], isKept ? 1 : 0], JSON.stringify(found))
    t.ok(Math.abs(clock.now - Date.now()) < 60_000)
  }
})
