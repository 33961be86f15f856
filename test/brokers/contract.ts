// What every Broker promises (lib/broker.ts), as tests. For a new broker write a file of ten lines beside this one:
//
//     import t from 'tap'
//     import { brokerContract } from './contract.js'
//     brokerContract(t, 'mine', () => myBroker({ … }))
//
// `create` makes a broker with a log of its own, unopened; the suite opens and closes it.
import type { Test } from 'tap'
import type { Broker, GapReason, History, Message, OutgoingMessage } from '../../lib/broker.js'
import { EventPriority } from '../../lib/event.js'
import { until } from '../helpers/wait.js'

const HISTORY: History = { maxEvents: 100, maxAgeMs: 60_000, maxBytes: 1 << 20 }
let nonces = 0

function message (data: string, more: Partial<OutgoingMessage> = {}): OutgoingMessage {
  return { event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, nonce: `n${++nonces}`, ...more }
}

interface Opened {
  broker: Broker
  delivered: Message[]
  gaps: GapReason[]
}

export function brokerContract (t: Test, name: string, create: () => Broker): void {
  const open = async (t: Test, history = HISTORY, onDeliver?: (broker: Broker, message: Message) => void): Promise<Opened> => {
    const broker = create()
    const delivered: Message[] = []
    const gaps: GapReason[] = []
    let inside = false
    await broker.open({
      deliver (batch) {
        t.equal(inside, false, 'deliver is not re-entered')
        inside = true
        for (const message of batch) {
          delivered.push(message)
          onDeliver?.(broker, message)
        }
        inside = false
      },
      gap: reason => gaps.push(reason),
      state: () => {}
    }, history)
    t.teardown(() => broker.close())
    return { broker, delivered, gaps }
  }

  t.test(`${name}: delivers each message once, in order, with sequence numbers that grow by one`, async t => {
    const { broker, delivered, gaps } = await open(t)
    const start = broker.position
    const results = await Promise.all(Array.from({ length: 50 }, (_, i) => broker.publish(message(String(i)))))
    await until(() => delivered.length >= 50)
    t.strictSame(delivered.map(({ data }) => data), Array.from({ length: 50 }, (_, i) => String(i)))
    t.strictSame(delivered.map(({ seq }) => seq), Array.from({ length: 50 }, (_, i) => start + i + 1))
    t.strictSame(results.map(({ seq }) => seq), delivered.map(({ seq }) => seq))
    t.equal(broker.position, start + 50)
    t.match(broker.epoch, /^[A-Za-z0-9_-]{1,32}$/)
    t.strictSame(gaps, [])
  })

  t.test(`${name}: carries a message whole`, async t => {
    const { broker, delivered } = await open(t)
    const sent = message('{"ü":"\\n🎉"}', { event: 'chat', priority: EventPriority.CRITICAL, retry: 500, key: 'k', target: { userIds: ['a'], subscriptionIds: ['b:c'], clientIds: ['d'], exceptClientIds: ['f'] } })
    const { seq } = await broker.publish(sent)
    await until(() => delivered.length === 1)
    t.strictSame(delivered[0], { ...sent, seq })
  })

  t.test(`${name}: an ephemeral message has no place in the log`, async t => {
    const { broker, delivered } = await open(t)
    const first = await broker.publish(message('logged'))
    t.strictSame(await broker.publish(message('not', { ephemeral: true })), { seq: null })
    const second = await broker.publish(message('logged too'))
    await until(() => delivered.length === 3)
    t.strictSame(delivered.map(({ data, seq }) => [data, seq]), [['logged', first.seq], ['not', 0], ['logged too', second.seq]])
    t.equal(second.seq, first.seq! + 1)
    const page = await broker.read({ epoch: broker.epoch, after: first.seq! - 1, priority: EventPriority.NORMAL, limit: 10 })
    t.strictSame(page.messages.map(({ data }) => data), ['logged', 'logged too'])
  })

  t.test(`${name}: what is published from inside a delivery is delivered after it`, async t => {
    const { broker, delivered } = await open(t, HISTORY, (broker, { data }) => {
      if (data === 'outer') broker.publish(message('inner')).catch(error => t.error(error))
    })
    await broker.publish(message('outer'))
    await broker.publish(message('next'))
    await until(() => delivered.length === 3)
    t.equal(delivered[0]!.data, 'outer')
    t.strictSame(delivered.map(({ seq }) => seq), [1, 2, 3].map(n => delivered[0]!.seq + n - 1))
  })

  t.test(`${name}: reads one lane in pages`, async t => {
    const { broker, delivered } = await open(t)
    const start = broker.position
    for (let i = 1; i <= 10; i++) await broker.publish(message(String(i), { priority: i % 2 === 0 ? EventPriority.HIGH : EventPriority.NORMAL }))
    await until(() => delivered.length === 10)
    const { epoch } = broker
    const first = await broker.read({ epoch, after: start, priority: EventPriority.HIGH, limit: 3 })
    t.strictSame(first.messages.map(({ data }) => data), ['2', '4', '6'])
    t.ok(first.next >= first.messages.at(-1)!.seq && first.next < start + 8)
    const rest = await broker.read({ epoch, after: first.next, priority: EventPriority.HIGH, limit: 3 })
    t.strictSame(rest.messages.map(({ data }) => data), ['8', '10'])
    t.equal(rest.next, start + 10)
    t.strictSame(await broker.read({ epoch, after: start + 10, priority: EventPriority.HIGH, limit: 3 }), { messages: [], next: start + 10 })
    t.strictSame((await broker.read({ epoch, after: start, priority: EventPriority.LOW, limit: 3 })), { messages: [], next: start + 10 }, 'an empty lane is read to the end')
  })

  t.test(`${name}: a place that is not in the log is a gap`, async t => {
    const { broker, delivered } = await open(t, { ...HISTORY, maxEvents: 5 })
    for (let i = 0; i < 20; i++) await broker.publish(message(String(i)))
    await until(() => delivered.length === 20)
    const { epoch, position } = broker
    const read = async (epoch: string, after: number) => await broker.read({ epoch, after, priority: EventPriority.NORMAL, limit: 10 })
    t.match(await read('other', position), { gap: 'epoch', messages: [] })
    t.match(await read(epoch, position + 1), { gap: 'unknown', messages: [] })
    t.match(await read(epoch, position - 6), { gap: 'trimmed', messages: [] })
    t.strictSame((await read(epoch, position - 5)).messages.map(({ data }) => data), ['15', '16', '17', '18', '19'])
  })

  t.test(`${name}: after close every call rejects and nothing is delivered`, async t => {
    const { broker, delivered } = await open(t)
    await broker.publish(message('before'))
    await until(() => delivered.length === 1)
    const { epoch } = broker
    await broker.close()
    await t.rejects(broker.publish(message('after')), { code: 'SSE_ERR_CLOSED' })
    await t.rejects(broker.read({ epoch, after: 0, priority: EventPriority.NORMAL, limit: 1 }), { code: 'SSE_ERR_CLOSED' })
    t.equal(delivered.length, 1)
    await t.resolves(broker.close(), 'a second close is a no-op')
  })
}
