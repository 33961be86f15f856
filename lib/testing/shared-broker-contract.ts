import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Published } from '../log/broker.js'
import { HISTORY, numbers, texts, within, type Check, type StoreFaults } from './broker-harness.js'

// The part of the broker contract that needs several nodes, or a failing store.

const UNAVAILABLE = { code: 'SSE_ERR_BROKER_UNAVAILABLE' }

/** The tests with two nodes on one log. */
export function betweenNodes (check: Check): void {
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

/** The tests with a process that only publishes. A broker without `openForPublishing` passes them. */
export function forPublishers (check: Check): void {
  check('a publisher writes to the log of the nodes, and nothing is delivered to it', async (join, joinAsPublisher) => {
    const one = await join()
    const publisher = await joinAsPublisher()
    if (publisher === null) return
    const { node, log } = publisher
    assert.deepEqual(node.states, ['up'])
    const start = one.broker.position
    const results: Published[] = []
    for (const n of numbers(10)) results.push(await (Number(n) % 2 === 0 ? node : one).publish(n))
    assert.deepEqual(await node.publish('ephemeral', { ephemeral: true }), { seq: null, delivered: 0 })
    await one.has(11)
    assert.deepEqual(one.texts, [...numbers(10), 'ephemeral'])
    assert.deepEqual(results.map(({ seq }) => seq), numbers(10).map(n => start + Number(n) + 1))
    assert.deepEqual(results.map(({ delivered }, n) => n % 2 === 0 ? delivered : 0), results.map(() => 0))
    assert.equal(node.broker.epoch, one.broker.epoch)
    assert.deepEqual(await log.position(), { epoch: one.broker.epoch, position: start + 10 })
    assert.deepEqual([node.delivered, node.gaps], [[], []])
  })

  check('the messages of a publisher are in order, and kept for nodes that open later', async (join, joinAsPublisher) => {
    const publisher = await joinAsPublisher()
    if (publisher === null) return
    const results = await Promise.all(numbers(20).map(n => publisher.node.publish(n)))
    const other = await join()
    const { epoch, position } = await publisher.log.position()
    assert.deepEqual([epoch, position], [other.broker.epoch, results[19]!.seq])
    assert.deepEqual(texts((await other.read(results[15]!.seq!)).messages), numbers(20).slice(16))
    assert.equal((await other.read(results[10]!.seq!)).gap, 'trimmed')
  }, { ...HISTORY, maxEvents: 5 })

  check('after close every call of a publisher rejects', async (_join, joinAsPublisher) => {
    const publisher = await joinAsPublisher()
    if (publisher === null) return
    await publisher.node.publish('before')
    await publisher.node.broker.close()
    await assert.rejects(publisher.node.publish('after'), { code: 'SSE_ERR_CLOSED' })
    await assert.rejects(publisher.log.position(), { code: 'SSE_ERR_CLOSED' })
  })
}

/** The test with a node, and a publisher that is disconnected from the store. */
export function whenThePublisherFails (check: Check, faults: StoreFaults): void {
  check('without the store every call of a publisher rejects, and what is known to be rejected is not published later', async (join, joinAsPublisher) => {
    const one = await join()
    const publisher = await joinAsPublisher()
    if (publisher === null) return
    const { node, log } = publisher
    await node.publish('before')
    await faults.cut(1)
    await within(() => node.publish('during').then(() => false, ({ code }) => code === UNAVAILABLE.code), () => 'a publish is rejected')
    await node.isIn('down')
    await assert.rejects(node.publish('later'), UNAVAILABLE)
    await assert.rejects(log.position(), UNAVAILABLE)
    await faults.heal(1)
    await node.isIn('up')
    await within(() => node.publish('after').then(() => true, () => false), () => 'a publish is accepted again')
    await within(() => one.texts.at(-1) === 'after', () => 'it is delivered')
    assert.equal(one.texts[0], 'before')
    assert.equal(one.texts.includes('later'), false)
    assert.deepEqual(node.states, ['up', 'down', 'up'])
  })
}

/** The tests with one node and a failing store. */
export function whenTheStoreFails (check: Check, faults: StoreFaults): void {
  check('without the store every call rejects, and the state says so; afterwards nothing is missing', async join => {
    const node = await join()
    const before = await node.publish('before')
    await faults.cut(0)
    await within(() => node.publish('during', { ephemeral: true }).then(() => false, ({ code }) => code === UNAVAILABLE.code), () => 'a publish is rejected')
    await node.isIn('down')
    await assert.rejects(node.publish('during'), UNAVAILABLE)
    await assert.rejects(node.broker.claim('key', 1_000), UNAVAILABLE)
    await faults.heal(0)
    await node.isIn('up')
    let after: number | null = null
    await within(() => node.publish('after').then(({ seq }) => { after = seq; return true }, () => false), () => 'a publish is accepted again')
    const logged = node.delivered.filter(({ seq }) => seq > 0)
    assert.deepEqual(logged.map(({ seq }) => seq), numbers(logged.length).map(n => before.seq! + Number(n)), 'each once, in order')
    assert.equal(logged.at(-1)!.seq, after)
    assert.deepEqual([logged[0]!.data, logged.at(-1)!.data], ['before', 'after'])
    assert.deepEqual(texts((await node.read(before.seq! - 1)).messages), texts(logged))
    assert.deepEqual(node.gaps, [])
    assert.deepEqual(node.states, ['up', 'down', 'up'])
  })
}

/** The tests with two nodes, one of which lags or is disconnected from the store. */
export function whenOneNodeLags (check: Check, faults: StoreFaults): void {
  check('a cursor that is ahead of a node waits for the node, and is no gap', async join => {
    const [one, other] = [await join(), await join()]
    await faults.hold(1)
    const results = await Promise.all(numbers(5).map(n => one.publish(n)))
    const ahead = results[2]!.seq!
    assert.ok(other.broker.position < ahead, 'the node lags')
    let answered = false
    const reading = other.read(ahead).finally(() => { answered = true })
    reading.catch(() => {})
    await sleep(100)
    assert.equal(answered, false)
    await faults.heal(1)
    const page = await reading
    assert.equal(page.gap, undefined)
    await other.has(5)
    assert.deepEqual(texts((await other.read(ahead)).messages), ['3', '4'])
    assert.equal((await other.read(results[4]!.seq! + 1)).gap, 'unknown', 'beyond the end of the log it is one')
  })

  check('a node that was away receives commands and events in their order, each once', async join => {
    const [one, other] = [await join(), await join()]
    await one.publish('before')
    await other.has(1)
    await faults.cut(1)
    await one.publish('1')
    await one.publish('command', { channel: 'node' })
    await one.publish('2')
    await faults.heal(1)
    await other.has(4)
    assert.deepEqual(other.texts, ['before', '1', 'command', '2'])
    assert.deepEqual(other.gaps, [])
  })

  check('a command that has left the history while a node was away is not passed over in silence', async join => {
    const [one, other] = [await join(), await join()]
    await one.publish('before')
    await other.has(1)
    await faults.cut(1)
    await one.publish('command', { channel: 'node' })
    for (const n of numbers(20)) await one.publish(n)
    await faults.heal(1)
    await within(() => other.broker.position >= one.broker.position, () => 'the node has caught up')
    if (other.texts.includes('command')) return
    assert.deepEqual(other.gaps.map(({ reason }) => reason), ['trimmed'])
    assert.notEqual(other.gaps[0]!.commandsKept, true)
  }, { ...HISTORY, maxEvents: 5 })
}
