import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Broker, GapReason, History, Published } from '../log/broker.js'
import type { Message, OutgoingMessage } from '../events/message.js'
import { EPOCH } from '../log/cursor.js'
import { EventPriority } from '../events/event.js'

// What every Broker promises (see the interface), as tests. For a broker of your own:
//
//     import { test } from 'node:test' // or from 'tap'
//     import { brokerContract } from 'fastify-sse-manager/testing'
//     brokerContract(test, 'mine', log => myBroker({ log }), { shared: true })

/** `test` of `node:test`, of tap, or of anything that runs a function and reports that it rejected. */
export type RunTest = (name: string, run: () => Promise<void>) => unknown

/** Makes a broker, unopened, on the log of this name; for one that shares nothing, on a log of its own. The suite closes it. */
export type CreateBroker = (log: string) => Broker

const HISTORY: History = { maxEvents: 100, maxAgeMs: 60_000, maxBytes: 1 << 20 }
const DEADLINE_MS = 5_000
let counter = 0

/** A broker that is open, and all that it has told. */
class Node {
  readonly broker: Broker
  readonly delivered: Message[] = []
  readonly gaps: GapReason[] = []
  readonly states: string[] = []
  onDeliver: ((message: Message) => void) | null = null
  #inside = false

  constructor (broker: Broker) {
    this.broker = broker
  }

  async open (history: History): Promise<void> {
    await this.broker.open({
      deliver: message => {
        assert.equal(this.#inside, false, 'deliver is not re-entered')
        assert.ok(this.broker.position >= message.seq, 'the position includes the message that is being delivered')
        this.#inside = true
        const count = this.delivered.push(message)
        this.onDeliver?.(message)
        this.#inside = false
        return count
      },
      gap: reason => { this.gaps.push(reason) },
      state: state => { this.states.push(state) }
    }, history)
  }

  async publish (data: string, more: Partial<OutgoingMessage> = {}): Promise<Published> {
    return await this.broker.publish(message(data, more))
  }

  /** The page of NORMAL messages after `after`. */
  read (after: number, epoch = this.broker.epoch) {
    return this.broker.read({ epoch, after, priority: EventPriority.NORMAL, limit: 10 })
  }

  get texts (): string[] {
    return this.delivered.map(({ data }) => data)
  }

  /** What `flood` has told, each as often as it came. */
  get told (): string[] {
    return this.texts.filter(text => text.startsWith('told ')).sort()
  }

  async hasTold (count: number): Promise<void> {
    const deadline = Date.now() + DEADLINE_MS
    while (this.told.length < count) {
      assert.ok(Date.now() < deadline, `${count} messages between nodes are delivered, there are ${this.told.length}`)
      await sleep(5)
    }
  }

  async has (count: number): Promise<void> {
    const deadline = Date.now() + DEADLINE_MS
    while (this.delivered.length < count) {
      assert.ok(Date.now() < deadline, `${count} messages are delivered, there are ${this.delivered.length}`)
      await sleep(5)
    }
  }
}

function message (data: string, more: Partial<OutgoingMessage> = {}): OutgoingMessage {
  return { event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, ...more }
}

function texts (messages: readonly Message[]): string[] {
  return messages.map(({ data }) => data)
}

const numbers = (count: number) => Array.from({ length: count }, (_, i) => String(i))

/**
 * Runs the promises of `Broker` as tests.
 * @param name begins the name of each test.
 * @param options.shared also what holds between nodes that share a log. Default false.
 */
export function brokerContract (test: RunTest, name: string, create: CreateBroker, { shared = false }: { shared?: boolean } = {}): void {
  const check: Check = (what, run, history = HISTORY) => test(`${name}: ${what}`, async () => {
    const log = `contract-${process.pid}-${++counter}`
    const nodes: Node[] = []
    try {
      await run(async () => {
        const node = new Node(create(log))
        nodes.push(node)
        await node.open(history)
        return node
      })
    } finally {
      await Promise.all(nodes.map(({ broker }) => broker.close()))
    }
  })
  ofEachNode(check, shared)
  if (shared) betweenNodes(check)
}

/** Runs a test on a log of its own; `join` opens one more node on it. */
type Check = (what: string, run: (join: () => Promise<Node>) => Promise<void>, history?: History) => unknown

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
    // What is published is the broker's own, to add to: what it was is known by a copy.
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
    node.onDeliver = ({ data }) => { if (data === 'outer') inner.push(node.publish('inner')) }
    await node.publish('outer')
    await node.publish('next')
    await node.has(3)
    await Promise.all(inner)
    assert.equal(node.texts[0], 'outer')
    assert.deepEqual(node.delivered.map(({ seq }) => seq), [0, 1, 2].map(n => node.delivered[0]!.seq + n))
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
    const deadline = Date.now() + 10_000
    while (!await broker.claim('b', 60_000)) assert.ok(Date.now() < deadline, 'it can be claimed again')
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

/** Messages of both kinds between nodes, in a flood of ephemeral ones. Returns the former. */
async function flood (node: Node): Promise<string[]> {
  const noise = 'x'.repeat(500)
  const told: string[] = []
  for (let i = 0; i < 12; i++) {
    // It may be lost, and its publish rejected.
    for (let n = 0; n < 100; n++) node.publish(noise, { ephemeral: true }).catch(() => {})
    told.push(`told ${i}`)
    await node.publish(told.at(-1)!, { channel: 'node', ephemeral: i % 2 === 0 })
  }
  return told.sort()
}

function betweenNodes (check: Check): void {
  check('a key is claimed by one node', async join => {
    const nodes = [await join(), await join()]
    const answers = await Promise.all(Array.from({ length: 20 }, (_, i) => nodes[i % 2]!.broker.claim('shared', 60_000)))
    assert.deepEqual(answers.filter(Boolean), [true])
  })

  check('all nodes get the same messages in the same order', async join => {
    const [one, other] = [await join(), await join()]
    await Promise.all(numbers(50).map(n => (Number(n) % 2 === 0 ? one : other).publish(n)))
    await Promise.all([one.has(50), other.has(50)])
    assert.deepEqual(one.delivered, other.delivered)
    assert.deepEqual([...one.texts].sort(), numbers(50).sort())
    assert.equal(one.broker.epoch, other.broker.epoch)
    assert.equal(one.broker.position, other.broker.position)
  })

  check('ephemeral messages reach all nodes', async join => {
    const [one, other] = [await join(), await join()]
    await one.publish('logged')
    await one.publish('not', { ephemeral: true })
    await one.publish('logged too')
    await other.has(3)
    assert.deepEqual(other.delivered, one.delivered)
  })

  check('a place of one node is one of all', async join => {
    const [one, other] = [await join(), await join()]
    const first = await one.publish('1')
    await other.publish('2')
    await one.publish('3')
    await other.has(3)
    assert.deepEqual(await other.read(first.seq!, one.broker.epoch), await one.read(first.seq!))
    assert.deepEqual(texts((await other.read(first.seq!)).messages), ['2', '3'])
  })

  check('a node that opens later begins at the newest message, and reads what came before', async join => {
    const one = await join()
    const before = await Promise.all(numbers(20).map(n => one.publish(n)))
    const other = await join()
    await one.publish('live')
    await other.has(1)
    assert.deepEqual(other.texts, ['live'])
    assert.equal(other.broker.epoch, one.broker.epoch)
    assert.deepEqual(texts((await other.read(before[15]!.seq!)).messages), [...numbers(20).slice(16), 'live'])
    assert.deepEqual(await other.read(before[0]!.seq!), await one.read(before[0]!.seq!))
  })

  check('a node that opens later does not read what has left the history', async join => {
    const one = await join()
    const published = await Promise.all(numbers(20).map(n => one.publish(n)))
    const other = await join()
    assert.equal((await other.read(published[10]!.seq!)).gap, 'trimmed')
    assert.deepEqual(texts((await other.read(published[14]!.seq!)).messages), numbers(20).slice(15))
  }, { ...HISTORY, maxEvents: 5 })
}
