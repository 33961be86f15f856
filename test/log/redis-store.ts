import t, { type Test } from 'tap'
import { EventPriority } from '../../lib/events/event-rules.js'
import { bytesOf } from '../../lib/events/message.js'
import type { Connection } from '../../lib/log/redis/client.js'
import { ReadSize } from '../../lib/log/redis/read-size.js'
import { Script } from '../../lib/log/redis/script.js'
import { ServerClock } from '../../lib/log/redis/server-clock.js'
import { RedisStore } from '../../lib/log/redis/store.js'
import { fakeTimers } from '../helpers/timers.js'

const REPLY_MS = 700
const HEAD = JSON.stringify({ event: 'e', priority: 1, target: {}, nonce: 'n' })
const fields = (text: string) => ['t', '100', 'b', '0', 'o', '0', 'h', HEAD, 'd', text, 'c', '0', 'ct', '0']

/** A store on a Redis that gives the replies of the test, and what it was sent. */
function storeOf (t: Test) {
  const time = fakeTimers(t)
  const clock = new ServerClock()
  const sent: { command: readonly string[], timeoutMs: number }[] = []
  const replies: unknown[] = []
  const connection: Connection = {
    send: async (command, timeoutMs) => {
      sent.push({ command, timeoutMs })
      const reply = replies.shift()
      if (reply instanceof Error) throw reply
      return reply
    },
    destroy: () => {}
  }
  return { time, clock, sent, replies, connection, store: new RedisStore('sse', 'writer', clock, REPLY_MS) }
}

t.test('a script is sent by its digest, and whole only to a Redis that does not have it', async t => {
  const { connection, sent, replies } = storeOf(t)
  const script = new Script('return 1')
  const digest = 'e0e1f9fabfc9d4800c877a703b823ac0578ff8db'
  const run = () => script.run(connection, ['a', 'b'], ['c'], 5)
  replies.push('one', new Error('NOSCRIPT No matching script.'), 'other', new Error('ERR NOSCRIPT of something else'), new Error('NOSCRIPT'), new Error('NOSCRIPT No matching script.'), new Error('OOM not allowed'))
  t.strictSame([await run(), await run()], ['one', 'other'])
  for (const message of ['ERR NOSCRIPT of something else', 'NOSCRIPT', 'OOM not allowed']) await t.rejects(run(), { message })
  const rest = ['2', 'a', 'b', 'c']
  const [short, whole] = [['EVALSHA', digest, ...rest], ['EVAL', 'return 1', ...rest]]
  t.strictSame(sent.map(({ command }) => command), [short, short, whole, short, short, short, whole])
  t.ok(sent.every(({ timeoutMs }) => timeoutMs === 5))
})

t.test('a batch is sent with its deadline by the clock of Redis, and has the time that its bytes need', async t => {
  const { connection, sent, replies, store, clock, time } = storeOf(t)
  clock.observe(Date.now() + 5_000)
  store.progress = { epoch: 9, command: 8, commandTime: 7 }
  const message = (data: string, more: object = {}) => ({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, ...more })
  const large = 'x'.repeat(640_000)
  const items = [message('logged'), message('command', { channel: 'node' }), message('ephemeral', { ephemeral: true }), message('ephemeral', { ephemeral: true, channel: 'node' }), message(large)].map((message, i) => ({ message, nonce: `n${i}` }))
  const batch = { number: 3, remainingMs: () => 1_000.7, items }
  const history = { maxEvents: 11, maxAgeMs: 12, maxBytes: 13 }
  const before = Date.now()
  replies.push(['done', String(before + 60_000), '4', '5'])
  t.strictSame(await store.append(connection, batch, history), { epoch: 4, first: 5 })
  t.equal(clock.now, before + 60_000, 'a reply tells the time')
  const { command, timeoutMs } = sent[0]!
  t.strictSame(command.slice(2, 7), ['4', '{sse}:meta', '{sse}:log', '{sse}:ephemeral', '{sse}:writer:writer'])
  t.strictSame(command.slice(7, 16), ['3', String(before + 6_000), '300000', '11', '12', '13', '1000', '10000', String(4 << 20)])
  const sizes = items.map(({ message }) => bytesOf(message))
  t.strictSame(command.slice(16), [...items.flatMap(({ message: { data } }, i) => [['1', '2', '0', '0', '1'][i], String(sizes[i]), JSON.stringify({ event: 'e', priority: 1, target: {}, nonce: `n${i}` }), data]), '9:8:7'])
  t.equal(timeoutMs, REPLY_MS + Math.ceil(sizes.reduce((sum, size) => sum + size) / 64))
  await time.advance(100)
  replies.push(['late', String(Date.now() - 1_000)])
  t.equal(await store.append(connection, batch, history), null)
  t.equal(clock.now, Date.now() - 1_000)
})

t.test('the state of the log', async t => {
  const { connection, sent, replies, store, clock } = storeOf(t)
  const now = Date.now() + 1_000
  replies.push([1_000, '3', '6', '2', String(now), '40', '', 'of the test', '4', '41', '900', '2', '20'], [1_000, '7', '6', '2', String(now), '', '60', '', '0', '0', '0', '0', '0'])
  t.strictSame(await store.greet(connection, { asked: 4 }), { epoch: 1_000, oldest: 3, newest: 6, ephemerals: 2, now, askedTime: 40, newestTime: null, why: 'of the test', command: 4, commandTime: 41, previous: { epoch: 900, command: 2, commandTime: 20 } })
  t.equal(clock.now, now)
  store.progress = { epoch: 5, command: 6, commandTime: 7 }
  t.match(await store.greet(connection, { asked: 0, giveUp: 0, writable: true }), { askedTime: null, newestTime: 60 })
  t.strictSame(sent.map(({ command, timeoutMs }) => [command.slice(2), timeoutMs]), [
    [['3', '{sse}:meta', '{sse}:log', '{sse}:ephemeral', '4', '', '0', '0:0:0'], REPLY_MS],
    [['3', '{sse}:meta', '{sse}:log', '{sse}:ephemeral', '0', '0', '1', '5:6:7'], REPLY_MS]
  ])
})

t.test('a claim', async t => {
  const { connection, sent, replies, store } = storeOf(t)
  store.progress = { epoch: 5, command: 0, commandTime: 0 }
  replies.push(1, 0, '1', -1, new Error('away'))
  t.strictSame([await store.claim(connection, 'k', 0.2), await store.claim(connection, 'k', 1_000), await store.claim(connection, 'k', 1_000)], [true, false, true])
  await t.rejects(store.claim(connection, 'k', 1), { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: /has a new epoch that this node has not read yet/ })
  await t.rejects(store.claim(connection, 'k', 1), { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: /could not be reached to claim a key/, cause: { message: 'away' } })
  t.strictSame(sent[0]!.command.slice(2), ['2', '{sse}:meta', '{sse}:claim:k', '5', '1'])
  t.equal(sent[0]!.timeoutMs, REPLY_MS)
})

t.test('what follows a position: both streams, whether more may follow, and what no node may have written', async t => {
  const { connection, sent, replies, store } = storeOf(t)
  const position = { epoch: 5, seq: 7, ephemerals: 2 }
  const portion = new ReadSize()
  const follow = async (reply: unknown, blockMs = 0) => {
    replies.push(reply)
    const news = await store.follow(connection, position, { newest: 9, ephemerals: 4 }, portion, blockMs)
    return news && { suspect: news.suspect, ...Object.fromEntries((['logged', 'ephemeral'] as const).map(kind => [kind, [news[kind].entries.map(({ number, message }) => message?.data ?? number), news[kind].cut]])) }
  }
  const ours = (id: string) => [id, fields(id)]
  const foreign = (id: string) => [id, ['a', 'b']]
  t.equal(await follow(null, 2_000), null)
  t.strictSame(await follow([['{sse}:log', [ours('5-8'), ours('5-9')]]]), { suspect: false, logged: [['5-8', '5-9'], false], ephemeral: [[], false] })
  const keys = ['STREAMS', '{sse}:log', '{sse}:ephemeral', '5-7', '5-2']
  t.strictSame(sent.map(({ command, timeoutMs }) => [command, timeoutMs]), [[['XREAD', 'COUNT', '64', 'BLOCK', '2000', ...keys], 2_000 + REPLY_MS], [['XREAD', 'COUNT', '64', ...keys], REPLY_MS]])
  t.strictSame(await follow([['app:{sse}:ephemeral', [ours('5-3')]], ['app:{sse}:log', [ours('5-8')]]]), { suspect: false, logged: [['5-8'], false], ephemeral: [['5-3'], false] }, 'with a prefix of the client')
  const full = (n: number) => Array.from({ length: n }, (_, i) => ours(`5-${8 + i}`))
  for (const count of [63, 64]) t.match(await follow([['{sse}:log', full(count)]]), { logged: [{ length: count }, count === 64], ephemeral: [[], false], suspect: false })
  t.equal(portion.count, 128)
  t.strictSame(await follow([['{sse}:log', [foreign('5-9'), foreign('5-10'), ours('5-11')]]]), { suspect: true, logged: [[9], true], ephemeral: [[], false] }, 'Redis has confirmed the first')
  t.strictSame(await follow([['{sse}:ephemeral', [foreign('5-4'), ours('5-5'), foreign('5-6')]]]), { suspect: true, logged: [[], false], ephemeral: [[4, '5-5'], true] })
  t.strictSame(await follow([['{sse}:log', [ours('5-8'), ours('6-1')]], ['{sse}:ephemeral', [ours('6-1')]]]), { suspect: true, logged: [['5-8'], true], ephemeral: [[], true] }, 'of another epoch')
})

t.test('the newest entries of a range', async t => {
  const { connection, sent, replies, store } = storeOf(t)
  replies.push([['5-9', fields('nine')], ['5-8', ['a', 'b']]])
  const entries = await store.range(connection, 5, 1, 9, new ReadSize())
  t.strictSame(entries.map(({ number, message }) => [number, message?.data, message?.seq]), [[9, 'nine', 9], [8, undefined, undefined]])
  t.strictSame(sent.map(({ command, timeoutMs }) => [command, timeoutMs]), [[['XREVRANGE', '{sse}:log', '5-9', '5-1', 'COUNT', '64'], REPLY_MS]])
})
