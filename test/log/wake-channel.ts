import t from 'tap'
import { Closed } from '../../lib/errors.js'
import type { Connection } from '../../lib/log/redis/client.js'
import { OnDemandConnection } from '../../lib/log/redis/on-demand.js'
import { WakeChannel, type RunNews } from '../../lib/log/redis/wake-channel.js'
import { PAGE_BYTES, PAGE_EVENTS } from '../../lib/log/run-store.js'
import { turns, until } from '../helpers/wait.js'

// How news of runs are put into messages, and read from them.

/** A channel of the node `me`, on connections that note its commands. Reads are answered by the test. */
function start () {
  const sent: { node: string, news: RunNews[], size: number, keptMs: number }[] = []
  let problem: Error | null = null
  const connection: Connection = {
    send: async ([, , , key, text, keptMs]) => {
      if (problem !== null) throw problem
      const news = JSON.parse(text!) as RunNews[]
      sent.push({ node: key!, news, size: news.flatMap(({ events }) => events?.texts ?? []).join('').length, keptMs: Number(keptMs) })
      return 1
    },
    destroy () {}
  }
  const reads: { command: readonly string[], timeoutMs: number, answer (reply: unknown): void }[] = []
  const reading: Connection = {
    send: (command, timeoutMs) => new Promise((resolve, reject) => {
      reads.push({ command, timeoutMs, answer: reply => reply instanceof Error ? reject(reply) : resolve(reply) })
    }),
    destroy () {}
  }
  const told: RunNews[] = []
  const channel = new WakeChannel({ nodeId: 'me', keyPrefix: 'sse', replyTimeoutMs: 1_000 }, new OnDemandConnection(async () => connection), async () => reading, news => { told.push(news) })
  return { channel, sent, reads, told, fail: (error: Error | null) => { problem = error } }
}

const news = (run: string, ...texts: string[]): RunNews => ({ run, events: { generation: 1, after: 2, texts } })

t.test('the news of a turn are one message for each node, and those for this node are no message', async t => {
  const { channel, sent, told } = start()
  const all = [news('a', 'one'), { run: 'b', ended: true }, { run: 'c' }]
  for (const one of all) for (const node of ['me', 'n1', 'n2']) channel.tell(node, one)
  t.same(told, all, 'at once')
  t.equal(sent.length, 0, 'at the end of the turn')
  await turns()
  t.match(sent, ['n1', 'n2'].map(node => ({ node: `sse:wake:{${node}}`, news: all, keptMs: 10_000 })))
  channel.tell('n1', all[0]!)
  await turns()
  t.match(sent.slice(2), [{ node: 'sse:wake:{n1}', news: [all[0]] }], 'each once')
})

t.test('news come with their events, up to a page', async t => {
  const pages: [texts: string[], isWhole: boolean][] = [
    [['x'.repeat(PAGE_BYTES)], true],
    [['x'.repeat(PAGE_BYTES), 'x'], false],
    [new Array(PAGE_EVENTS).fill('x'), true],
    [new Array(PAGE_EVENTS + 1).fill('x'), false]
  ]
  for (const [texts, isWhole] of pages) {
    const { channel, sent } = start()
    channel.tell('n', news('a', ...texts))
    await turns()
    t.same(sent.map(({ news }) => news), [[isWhole ? news('a', ...texts) : { run: 'a' }]])
  }
})

t.test('a message has 64 KB of events, and what does not fit is in the next one', async t => {
  const page = 'x'.repeat(PAGE_BYTES)
  for (const [texts, sizes] of [
    [[page, page, page, page], [4]],
    [[page, page, page, page, 'x'], [4, 1]],
    [[page, page, page, page.slice(1), 'x'], [5]],
    [[page, page, page, page.slice(1), 'xx', page, page, page, page], [4, 4, 1]]
  ] as const) {
    const { channel, sent } = start()
    for (const text of texts) channel.tell('n', news('a', text))
    await turns()
    t.same(sent.map(({ news }) => news.length), sizes)
    t.same(sent.flatMap(({ news }) => news), texts.map(text => news('a', text)), 'in order')
    t.ok(sent.every(({ size }) => size <= 64 * 1024))
  }
})

t.test('messages that cannot be sent are lost, and nothing else', async t => {
  const { channel, sent, fail } = start()
  fail(new Error('is down'))
  channel.tell('n', { run: 'a' })
  await turns(5)
  fail(null)
  channel.tell('n', { run: 'b' })
  await turns(5)
  t.same(sent.map(({ news }) => news), [[{ run: 'b' }]])
})

t.test('messages are read one after the other, from the last one on, also over a new connection', async t => {
  const { channel, reads, told } = start()
  await turns()
  t.equal(reads.length, 0, 'not before somebody needs them')
  channel.listen()
  channel.listen()
  const message = (id: string, ...all: RunNews[]) => [id, ['w', JSON.stringify(all)]]
  const answer = async (n: number, reply: unknown) => {
    await until(() => reads.length === n)
    t.same(reads[n - 1]!.command.slice(-3, -1), ['STREAMS', 'sse:wake:{me}'])
    t.equal(reads[n - 1]!.timeoutMs, 1_000 + Number(reads[n - 1]!.command[reads[n - 1]!.command.indexOf('BLOCK') + 1]), 'longer than it blocks')
    reads[n - 1]!.answer(reply)
    await turns()
    return reads[n - 1]!.command.at(-1)
  }
  t.equal(await answer(1, null), '0-0')
  t.same(told, [])
  t.equal(await answer(2, [['key', [message('1-0', { run: 'a' }, { run: 'b', ended: true }), message('1-1', news('c', 'x'))]]]), '0-0')
  t.same(told, [{ run: 'a' }, { run: 'b', ended: true }, news('c', 'x')])
  t.equal(await answer(3, new Error('lost')), '1-1')
  t.equal(await answer(4, [['key', [message('2-0', { run: 'd' })]]]), '1-1')
  t.equal(await answer(5, null), '2-0')
  t.equal(told.length, 4)
  await until(() => reads.length === 6)
  const closed = channel.close()
  reads[5]!.answer(new Closed())
  await closed
  await turns(5)
  t.equal(reads.length, 6)
})
