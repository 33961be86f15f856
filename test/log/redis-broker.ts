import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { EventPriority } from '../../lib/events/event-rules.js'
import type { Broker, Sink } from '../../lib/log/broker.js'
import { RedisStreamsBroker } from '../../lib/log/redis/broker.js'
import { connector, type Connect } from '../../lib/log/redis/client.js'
import { resolveRedisOptions } from '../../lib/log/redis/options.js'
import { redisStreamsBroker, type RedisStreamsOptions } from '../../lib/redis.js'
import { slowRedis } from '../../lib/testing/index.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { fakeTimers } from '../helpers/timers.js'
import { turns, until } from '../helpers/wait.js'

// A broker on Redis: its life and what holds it together. How it behaves to a node: test/brokers/redis.test.ts.

const HISTORY = { maxEvents: 1_000, maxAgeMs: 60_000, maxBytes: 1 << 20 }
const UNAVAILABLE = { code: 'SSE_ERR_BROKER_UNAVAILABLE' }

function nodeOn (t: Test, broker: Broker) {
  t.teardown(() => broker.close())
  const told = { delivered: [] as string[], gaps: [] as unknown[], states: [] as string[] }
  const sink: Sink = {
    deliver: ({ data, seq }) => {
      assert.ok(broker.position >= seq, 'the position includes the message that is being delivered')
      return told.delivered.push(data)
    },
    gap: (reason, error, kept) => { told.gaps.push([reason, error?.message ?? null, kept]) },
    state: (state, error) => { told.states.push(error === undefined ? state : `${state}: ${error.message}`) }
  }
  return {
    ...told,
    broker,
    sink,
    open: () => broker.open(sink, HISTORY),
    publish: async (data: string, more: object = {}) => await broker.publish({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, ...more }),
    read: async (after: number, epoch = broker.epoch) => {
      const { messages, gap } = await broker.read({ epoch, after, priority: EventPriority.NORMAL, limit: 100 })
      return gap ?? messages.map(({ data }) => data)
    }
  }
}

async function silentServer (t: Test): Promise<string> {
  const server = createServer(socket => socket.on('error', () => {}).resume()).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  return `redis://127.0.0.1:${(server.address() as AddressInfo).port}`
}

t.test('what keeps Redis from being reached is told once, as long as it is the same', async t => {
  const time = fakeTimers(t)
  let error = 'away'
  let attempts = 0
  const connect: Connect = Object.assign(async () => {
    attempts++
    throw new Error(error)
  }, { peer: { address: 'redis.example', port: 7 } })
  const broker = new RedisStreamsBroker(resolveRedisOptions({ client: 'redis://redis.example', startTimeoutMs: 1_000, startDegraded: true }), connect)
  const node = nodeOn(t, broker)
  const errors: unknown[] = []
  const opening = broker.open({ ...node.sink, state: (state, error) => { errors.push([state, error]) } }, HISTORY)
  await time.advance(1_000)
  await opening
  await time.advance(10_000)
  t.ok(attempts > 20)
  t.match(errors, [['down', { message: 'away', address: 'redis.example', port: 7 }]])
  t.equal(errors.length, 1)
  error = 'refused'
  await time.advance(10_000)
  t.match(errors.slice(1), [['down', { message: 'refused' }]])
  t.equal(errors.length, 2)
  t.strictSame([broker.epoch, broker.position, broker.size], ['none', 0, undefined])
  await t.rejects(node.publish('x'), UNAVAILABLE)
  await t.rejects(node.publish('x', { ephemeral: true, channel: 'node' }), { ...UNAVAILABLE, message: /cannot be reached/ })
  await t.rejects(node.read(0), { ...UNAVAILABLE, message: /cannot be reached/ })
  await t.rejects(broker.claim('k', 1), { ...UNAVAILABLE, message: /cannot be reached/ })
  await broker.close()
  t.strictSame([errors.length, time.count], [2, 0])
})

t.test('closing ends an opening that waits for Redis', async t => {
  const node = nodeOn(t, redisStreamsBroker({ client: await silentServer(t), startTimeoutMs: 60_000, replyTimeoutMs: 60_000 }))
  const ended: string[] = []
  const opening = node.open().then(() => { ended.push('opened') })
  await turns(3)
  const closing = node.broker.close().then(() => { ended.push('closed') })
  await until(() => ended.length === 2, 20_000)
  await Promise.all([opening, closing])
  t.strictSame(node.states, [])
})

t.test('a broker', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const brokerAt = (keyPrefix: string, client: RedisStreamsOptions['client'] = server.url) => redisStreamsBroker({ client, keyPrefix, startTimeoutMs: 20_000, publishTimeoutMs: 20_000, replyTimeoutMs: 20_000 })
  const join = async (t: Test, keyPrefix: string, client?: RedisStreamsOptions['client']) => {
    const node = nodeOn(t, brokerAt(keyPrefix, client))
    await node.open()
    return node
  }

  await t.test('messages are as old as the log says, also where the clock of the node is wrong', async t => {
    const { now } = Date
    for (const shiftMs of [120_000, -120_000]) {
      const { restore } = t.intercept(Date, 'now', { value: () => now() + shiftMs, configurable: true, writable: true }) as unknown as { restore (): void }
      try {
        const one = await join(t, `clock${shiftMs}`)
        for (const text of ['1', '2', '3']) await one.publish(text)
        t.strictSame(await one.read(0), ['1', '2', '3'], `${shiftMs} ms: as they have arrived`)
        const other = await join(t, `clock${shiftMs}`)
        t.strictSame(await other.read(0), ['1', '2', '3'], `${shiftMs} ms: as they are in Redis`)
        for (const { broker } of [one, other]) t.equal(broker.size!.events, 3)
      } finally {
        restore()
      }
    }
  })

  await t.test('what has expired by the clock of Redis is no history of a node whose clock is behind', async t => {
    const { now } = Date
    const one = await join(t, 'expired')
    await one.publish('1')
    const epoch = parseInt(one.broker.epoch, 36)
    await server.ask('DEL', '{expired}:log')
    await server.ask('XADD', '{expired}:log', `${epoch}-1`, 't', String(now() - 90_000), 'b', '0', 'o', '0', 'h', JSON.stringify({ event: 'e', priority: 1, target: {}, nonce: '' }), 'd', 'old')
    t.intercept(Date, 'now', { value: () => now() - 120_000, configurable: true, writable: true })
    const other = await join(t, 'expired')
    t.equal(await other.read(0), 'trimmed')
  })

  await t.test('is opened once, and again only after it could not be', async t => {
    const absent = await RedisServer.prepare()
    t.teardown(() => absent.stop())
    const node = nodeOn(t, redisStreamsBroker({ client: absent.url, startTimeoutMs: 300 }))
    await t.rejects(node.open(), { ...UNAVAILABLE, message: /could not be reached within 300 ms/, cause: { message: /ECONNREFUSED/ } })
    await t.rejects(node.publish('x'), { code: 'SSE_ERR_CLOSED' })
    await absent.run()
    const { states } = node
    states.length = 0
    await until(() => node.open().then(() => true, () => false))
    t.equal(states.at(-1), 'up')
    await node.publish('x')
    t.strictSame(node.delivered, ['x'])
    t.equal(await absent.info('connected_clients'), 3 + 1, 'three, and that of the question')
    const openings: (() => Promise<unknown>)[] = [node.open, () => node.broker.openForPublishing!(node.sink, HISTORY)]
    for (const open of openings) await t.rejects(open, { code: 'SSE_ERR_INVALID_OPTION', message: /already open/ })
    await node.publish('y')
    t.strictSame(node.delivered, ['x', 'y'])
  })

  await t.test('a link that has been reached hurries the others', async t => {
    const real = connector(server.url, undefined, 20_000)
    let allowed = 0
    let attempts = 0
    let connects = () => {}
    const connecting = new Promise<void>(resolve => { connects = resolve })
    const connect: Connect = async (onLost, signal) => {
      attempts++
      if (allowed-- <= 0) throw new Error('away')
      await connecting
      return await real(onLost, signal)
    }
    const node = nodeOn(t, new RedisStreamsBroker(resolveRedisOptions({ client: server.url, keyPrefix: 'hurry', startTimeoutMs: 100, startDegraded: true }), connect))
    const time = fakeTimers(t)
    const opening = node.open()
    await time.advance(10_000)
    await opening
    const before = attempts
    allowed = 1
    const haveFailed = () => attempts >= before + 3
    for (let i = 0; i < 20 && !haveFailed(); i++) await time.advance(100)
    allowed = 9
    connects()
    for (let i = 0; i < 2_000 && node.states.at(-1) !== 'up'; i++) await sleep(5)
    t.equal(node.states.at(-1), 'up', 'without a wait of theirs')
    t.strictSame(node.gaps.map(gap => (gap as unknown[])[0]), ['epoch'], 'of clients that were there before')
    t.ok(attempts <= before + 9)
  })

  await t.test('knows from memory that a client has missed nothing, as far as it has the history', async t => {
    const one = await join(t, 'quiet')
    t.equal(brokerAt('quiet').hasNothing!(0, { clientId: 'c', userId: 'ada', subscriptions: new Set() }), false, 'not open')
    const nobody = { clientId: 'c', userId: null, subscriptions: new Set(['news']) }
    for (let n = 0; n < 200; n++) await one.publish('x', { target: { userIds: ['ada'] } })
    t.equal(one.broker.hasNothing!(0, nobody), true)
    t.equal(one.broker.hasNothing!(0, { ...nobody, userId: 'ada' }), false)
    const other = await join(t, 'quiet')
    t.equal(other.broker.hasNothing!(0, nobody), false, 'it has read nothing yet')
    await other.read(0)
    t.equal(other.broker.hasNothing!(0, nobody), true)
  })

  await t.test('leaves no connection open, nor that which has read the history', async t => {
    const one = await join(t, 'close')
    await one.publish('1')
    const other = await join(t, 'close')
    t.strictSame(await other.read(0), ['1'])
    t.equal(await server.info('connected_clients'), 3 + 4 + 1)
    for (const { broker } of [one, other]) await broker.close()
    await until(async () => await server.info('connected_clients') === 1, 5_000, 'sooner than an idle connection is closed')
    const calls: (() => Promise<unknown>)[] = [() => one.publish('x'), () => one.read(0, one.broker.epoch), () => one.broker.claim('k', 1)]
    for (const call of calls) await t.rejects(call, { code: 'SSE_ERR_CLOSED' })
  })

  await t.test('a publisher knows the epoch when it is open, and tells of it when it is the first to reach a wiped Redis', async t => {
    const proxy = await slowRedis({ port: server.port, test: t })
    const node = await join(t, 'publisher', proxy.url)
    const publisher = nodeOn(t, brokerAt('publisher'))
    const log = await publisher.broker.openForPublishing!(publisher.sink, HISTORY)
    t.equal(publisher.broker.epoch, node.broker.epoch)
    t.strictSame(await log.position(), { epoch: node.broker.epoch, position: 0 })
    for (let round = 1; round <= 2; round++) {
      await publisher.publish('before')
      await until(() => node.delivered.length === 2 * round - 1)
      proxy.hold()
      await server.ask('DEL', '{publisher}:meta', '{publisher}:log')
      await publisher.publish('after')
      proxy.release()
      await until(() => node.delivered.length === 2 * round)
      t.equal(publisher.broker.epoch, node.broker.epoch)
      t.match(node.gaps[round - 1], ['epoch', /^The event log has a new epoch: Redis has lost the log/, undefined], 'no command was missed')
      t.equal(node.gaps.length, round)
    }
    await t.rejects(publisher.read(0), { code: 'SSE_ERR_CLOSED' })
    await t.rejects(publisher.broker.claim('k', 1), { code: 'SSE_ERR_CLOSED' })
    t.strictSame([publisher.delivered, publisher.gaps, publisher.states], [[], [], ['up']])
    await publisher.broker.close()
    await t.rejects(log.position(), { code: 'SSE_ERR_CLOSED' })
  })

  await t.test('a cursor of an epoch that the node has not reached yet waits for it', async t => {
    const proxy = await slowRedis({ port: server.port, test: t })
    const [one, late] = [await join(t, 'next'), await join(t, 'next', proxy.url)]
    await one.publish('before')
    await until(() => late.delivered.length === 1)
    proxy.hold('XREAD')
    await server.ask('DEL', '{next}:meta', '{next}:log')
    const { seq } = await one.publish('after')
    const reading = late.read(seq!, one.broker.epoch)
    await sleep(100)
    t.not(late.broker.epoch, one.broker.epoch)
    proxy.release()
    t.strictSame(await reading, [])
    t.equal(late.broker.epoch, one.broker.epoch)
  })

  await t.test('while Redis is away, old events are not asked for', async t => {
    const proxy = await slowRedis({ port: server.port, test: t })
    const one = await join(t, 'away')
    for (const text of ['1', '2']) await one.publish(text)
    const node = await join(t, 'away', proxy.url)
    await node.publish('3')
    proxy.cut()
    await until(() => node.states.at(-1) !== 'up')
    await t.rejects(node.publish('4'), UNAVAILABLE)
    await t.rejects(node.read(0), { ...UNAVAILABLE, message: /^The event log cannot be reached$/ })
    t.strictSame(await node.read(2), ['3'], 'what the node has in memory is read')
    proxy.heal()
    await until(() => node.states.at(-1) === 'up')
    t.strictSame(await node.read(0), ['1', '2', '3'])
    t.strictSame([node.gaps, node.states.filter((state, i) => state === node.states[i - 1])], [[], []])
  })
})
