import assert from 'node:assert/strict'
import { EventPriority } from '../events/event-rules.js'
import type { Broker } from '../log/broker.js'
import { EPOCH } from '../log/cursor.js'
import { ContractNode, flood, HISTORY, message, numbers, texts, within, type Check, type StoreFaults } from './broker-harness.js'
import { betweenNodes, forPublishers, whenOneNodeLags, whenThePublisherFails, whenTheStoreFails } from './shared-broker-contract.js'

// Tests of the guarantees that the interface `Broker` describes.

/** Function that runs a test: `test` of `node:test` or of tap, or any function that runs `run` and reports a rejection. */
export type RunTest = (name: string, run: () => Promise<void>) => unknown

/**
 * Creates a broker on the log with this name, and does not open it. A broker without a shared log creates its own. The suite closes the
 * broker.
 * @param node 0 for the first broker of a log, 1 for the second: see `StoreFaults`
 */
export type CreateBroker = (log: string, node: number) => Broker

/** Options of `brokerContract()`. */
export interface BrokerContractOptions {
  /** Whether several nodes share the log. `true` adds the tests with two nodes. Default false. */
  shared?: boolean
  /** Breaks the connections to the store. Absent: failures of the store are not tested. */
  faults?: StoreFaults
}

let counter = 0

/**
 * Tests a broker against the guarantees of the interface `Broker`.
 * @param name prefix of the name of each test
 * @example
 * ```ts
 * import { test } from 'node:test'
 * import { brokerContract } from 'fastify-sse-manager/testing'
 *
 * brokerContract(test, 'mine', log => myBroker({ log }), { shared: true })
 * ```
 */
export function brokerContract (test: RunTest, name: string, create: CreateBroker, { shared = false, faults }: BrokerContractOptions = {}): void {
  const check: Check = (what, run, history = HISTORY) => test(`${name}: ${what}`, async () => {
    const log = `contract-${process.pid}-${++counter}`
    const nodes: ContractNode[] = []
    const add = () => {
      const node = new ContractNode(create(log, nodes.length))
      nodes.push(node)
      return node
    }
    try {
      await run(async () => {
        const node = add()
        await node.open(history)
        return node
      }, async () => {
        const node = add()
        const log = await node.openForPublishing(history)
        return log === null ? null : { node, log }
      })
    } finally {
      for (const [index] of nodes.entries()) await faults?.heal(index)
      await Promise.all(nodes.map(({ broker }) => broker.close()))
    }
  })
  ofEachNode(check, shared)
  if (shared) {
    betweenNodes(check)
    forPublishers(check)
  }
  if (faults !== undefined) whenTheStoreFails(check, faults)
  if (faults !== undefined && shared) {
    whenOneNodeLags(check, faults)
    whenThePublisherFails(check, faults)
  }
}

/** The tests for every broker. */
function ofEachNode (check: Check, shared: boolean): void {
  check('delivers each message once, in order, with sequence numbers that grow by one', async join => {
    const node = await join()
    const { broker, delivered } = node
    const start = broker.position
    const results = await Promise.all(numbers(50).map(n => node.publish(n)))
    await node.has(50)
    assert.deepEqual(node.texts, numbers(50))
    assert.deepEqual(delivered.map(({ seq }) => seq), numbers(50).map(n => start + Number(n) + 1))
    assert.deepEqual(results.map(({ seq }) => seq), delivered.map(({ seq }) => seq))
    assert.equal(broker.position, start + 50)
    assert.match(broker.epoch, EPOCH)
    assert.equal(broker.shared, shared)
    assert.deepEqual(node.gaps, [])
  })

  check('is up once it is open', async join => {
    assert.deepEqual((await join()).states, ['up'])
  })

  check('answers each publish with what its own delivery has answered', async join => {
    const node = await join()
    const results = await Promise.all(numbers(20).map(n => node.publish(n, { ephemeral: Number(n) % 3 === 0 })))
    assert.deepEqual(results.map(({ delivered }) => delivered), numbers(20).map(n => Number(n) + 1))
  })

  check('reads of those with the same key and target only the newest', async join => {
    const node = await join()
    const start = node.broker.position
    const target = { subscriptionIds: ['a'] }
    for (const [data, more] of [['1', { key: 'k', target }], ['2', {}], ['3', { key: 'k' }], ['4', { key: 'l', target }], ['5', { key: 'k', target }]] as const) await node.publish(data, more)
    await node.has(5)
    assert.deepEqual(texts((await node.read(start)).messages), ['2', '3', '4', '5'])
  })

  check('a read for a connection leaves out nothing that the connection can receive', async join => {
    const node = await join()
    const { broker } = node
    const start = broker.position
    const targets = [{}, { subscriptionIds: ['room:1'] }, { subscriptionIds: ['room:2:x'] }, { subscriptionIds: ['other'] }, { userIds: ['ada'] }, { userIds: ['alan'] }, { clientIds: ['c'] }, { userIds: ['ada'], subscriptionIds: ['room:1'] }]
    // Enough for a broker that uses an index only for long reads.
    for (const n of numbers(400)) await node.publish(n, { target: targets[Number(n) % targets.length]! })
    await node.has(400)
    const interest = { clientId: 'c', userId: 'ada', subscriptions: new Set(['room:1', 'room:*:x']) }
    const read: string[] = []
    for (let after = start, reads = 0; after < start + 400; reads++) {
      assert.ok(reads < 400, 'reads come to the end')
      const { messages, next, gap } = await broker.read({ epoch: broker.epoch, after, priority: EventPriority.NORMAL, limit: 30, interest })
      assert.equal(gap, undefined)
      assert.ok(messages.length <= 30 && next > after)
      read.push(...texts(messages))
      after = next
    }
    const wanted = numbers(400).filter(n => ![3, 5].includes(Number(n) % targets.length))
    assert.deepEqual(read.filter(text => wanted.includes(text)), wanted)
    if (broker.hasNothing === undefined) return
    for (const n of numbers(200)) await node.publish(n, { target: targets[3]! })
    await node.publish('last', { target: targets[4]! })
    await node.has(601)
    const stranger = { clientId: 'x', userId: null, subscriptions: new Set(['room:9']) }
    assert.equal(broker.hasNothing(start, stranger), false, 'there are messages for everybody')
    assert.equal(broker.hasNothing(start + 400, interest), false, 'there is a message for the user')
    const kinds = { topic: targets[1]!, 'topic that a pattern covers': targets[2]!, client: targets[6]!, 'user with a topic': targets[7]!, 'list of many users': { userIds: [...numbers(9), 'ada'] } }
    let count = 601
    for (const [kind, target] of Object.entries(kinds)) {
      await node.publish('last', { target })
      await node.has(++count)
      assert.equal(broker.hasNothing(broker.position - 1, interest), false, `there is a message for a ${kind}`)
    }
    await Promise.all(numbers(500).map(n => node.publish(n, { target: targets[3]! })))
    await node.has(count + 500)
    assert.equal(broker.hasNothing(start, stranger), false, 'messages have left the history')
    const end = broker.position
    await broker.close()
    // It may throw as well.
    let closed = false
    try { closed = broker.hasNothing(end, stranger) } catch {}
    assert.equal(closed, false, 'the broker is closed')
  }, { ...HISTORY, maxEvents: 700 })

  check('has delivered a message here when its publish resolves', async join => {
    const node = await join()
    for (const ephemeral of [false, true]) {
      const { delivered } = await node.publish(`ephemeral: ${ephemeral}`, { ephemeral })
      assert.equal(node.texts.at(-1), `ephemeral: ${ephemeral}`)
      assert.equal(delivered, node.delivered.length, 'with the answer of its delivery')
    }
  })

  check('carries a message whole', async join => {
    const node = await join()
    const sent = message('{"ü":"\\n🎉"}', { event: 'chat', priority: EventPriority.CRITICAL, retry: 500, key: 'k', target: { userIds: ['a'], subscriptionIds: ['b:c'], clientIds: ['d'], exceptClientIds: ['f'] } })
    // The published object belongs to the broker, which can add properties. The expected value is a copy.
    const whole = structuredClone(sent)
    const { seq } = await node.broker.publish(sent)
    await node.has(1)
    assert.deepEqual(node.delivered[0], { ...whole, seq })
    assert.deepEqual((await node.broker.read({ epoch: node.broker.epoch, after: seq! - 1, priority: EventPriority.CRITICAL, limit: 1 })).messages, [{ ...whole, seq }])
  })

  check('an ephemeral message has no place in the log', async join => {
    const node = await join()
    const first = await node.publish('logged')
    assert.deepEqual(await node.publish('not', { ephemeral: true }), { seq: null, delivered: 2 })
    const second = await node.publish('logged too')
    await node.has(3)
    assert.deepEqual(node.delivered.map(({ data, seq }) => [data, seq]), [['logged', first.seq], ['not', 0], ['logged too', second.seq]])
    assert.equal(second.seq, first.seq! + 1)
    assert.deepEqual(texts((await node.read(first.seq! - 1)).messages), ['logged', 'logged too'])
  })

  if (!shared) {
    check('a message with a filter does not replace another: two functions cannot be compared', async join => {
      const node = await join()
      const { position: start } = node.broker
      for (const data of ['1', '2']) await node.publish(data, { key: 'k', target: { filter: () => true } })
      await node.publish('3', { key: 'k' })
      await node.publish('4', { key: 'k' })
      await node.has(4)
      assert.deepEqual(texts((await node.read(start)).messages), ['1', '2', '4'])
    })
  }

  check('ephemeral messages push no logged one out of the history', async join => {
    const node = await join()
    const { seq } = await node.publish('logged')
    await Promise.all(numbers(20).map(n => node.publish(n, { ephemeral: true })))
    assert.deepEqual(texts((await node.read(seq! - 1)).messages), ['logged'])
  }, { ...HISTORY, maxEvents: 5 })

  check('keeps no more bytes than its history may have', async join => {
    const node = await join()
    const { position: start } = node.broker
    for (const n of numbers(20)) await node.publish(n.repeat(500))
    await node.has(20)
    assert.equal((await node.read(start)).gap, 'trimmed')
    const { messages } = await node.read(start + 19)
    assert.deepEqual(messages.map(({ data }) => data.slice(0, 2)), ['19'])
  }, { ...HISTORY, maxBytes: 4_000 })

  check('messages older than maxAgeMs are not read', async join => {
    const node = await join()
    const { position: start } = node.broker
    await node.publish('old')
    await within(async () => (await node.read(start)).gap === 'trimmed', () => 'the message leaves the history')
    const young = await node.publish('young')
    assert.equal(young.seq, start + 2, 'its position is not used again')
    await node.has(2)
  }, { ...HISTORY, maxAgeMs: 300 })

  check('what nodes tell each other reaches all, however many ephemeral messages are published', async join => {
    const nodes = [await join(), ...shared ? [await join()] : []]
    const told = await flood(nodes[0]!)
    for (const node of nodes) {
      await node.hasTold(told.length)
      assert.deepEqual(node.told, told)
    }
  })

  check('what is published from inside a delivery is delivered after it', async join => {
    const node = await join()
    const inner: Promise<unknown>[] = []
    const nested: Record<string, string> = { outer: 'inner', inner: 'innermost' }
    node.onDeliver = ({ data }) => { if (data in nested) inner.push(node.publish(nested[data]!)) }
    await node.publish('outer')
    await node.publish('next')
    await node.has(4)
    await Promise.all(inner)
    assert.equal(node.texts[0], 'outer')
    assert.ok(node.texts.indexOf('inner') < node.texts.indexOf('innermost'))
    assert.deepEqual(node.delivered.map(({ seq }) => seq), numbers(4).map(n => node.delivered[0]!.seq + Number(n)))
  })

  check('reads one lane in pages', async join => {
    const node = await join()
    const { broker } = node
    const { epoch, position: start } = broker
    for (let i = 1; i <= 10; i++) await node.publish(String(i), { priority: i % 2 === 0 ? EventPriority.HIGH : EventPriority.NORMAL })
    await node.has(10)
    const high = { epoch, priority: EventPriority.HIGH, limit: 3 }
    const first = await broker.read({ ...high, after: start })
    assert.deepEqual(texts(first.messages), ['2', '4', '6'])
    assert.ok(first.next >= first.messages.at(-1)!.seq && first.next < start + 8)
    const rest = await broker.read({ ...high, after: first.next })
    assert.deepEqual(texts(rest.messages), ['8', '10'])
    assert.equal(rest.next, start + 10)
    assert.deepEqual(await broker.read({ ...high, after: start + 10 }), { messages: [], next: start + 10 })
    assert.deepEqual(await broker.read({ ...high, after: start, priority: EventPriority.LOW }), { messages: [], next: start + 10 }, 'an empty lane is read to the end')
  })

  check('a place that is not in the log is a gap', async join => {
    const node = await join()
    for (const n of numbers(20)) await node.publish(n)
    await node.has(20)
    const { position } = node.broker
    const gapOf = async (after: number, epoch?: string) => {
      const { gap, messages } = await node.read(after, epoch)
      return [gap, messages]
    }
    assert.deepEqual(await gapOf(position, 'other'), ['epoch', []])
    assert.deepEqual(await gapOf(0, 'other'), ['epoch', []])
    assert.deepEqual(await gapOf(position + 1), ['unknown', []])
    assert.deepEqual(await gapOf(position - 6), ['trimmed', []])
    assert.deepEqual(texts((await node.read(position - 5)).messages), numbers(20).slice(15))
  }, { ...HISTORY, maxEvents: 5 })

  check('a key is claimed once, until its time is over', async join => {
    const { broker } = await join()
    const answers = await Promise.all(Array.from({ length: 20 }, () => broker.claim('a', 60_000)))
    assert.deepEqual(answers.filter(Boolean), [true])
    assert.equal(await broker.claim('a', 1), false)
    assert.equal(await broker.claim('b', 50), true)
    await within(() => broker.claim('b', 60_000), () => 'it can be claimed again')
    assert.equal(await broker.claim('b', 60_000), false)
  })

  check('after close every call rejects and nothing is delivered', async join => {
    const node = await join()
    await node.publish('before')
    await node.has(1)
    const { epoch } = node.broker
    await node.broker.close()
    await assert.rejects(node.publish('after'), { code: 'SSE_ERR_CLOSED' })
    await assert.rejects(node.read(0, epoch), { code: 'SSE_ERR_CLOSED' })
    await assert.rejects(node.broker.claim('key', 1_000), { code: 'SSE_ERR_CLOSED' })
    assert.equal(node.delivered.length, 1)
    await node.broker.close()
  })
}
