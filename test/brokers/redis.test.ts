import fastifyRedis from '@fastify/redis'
import { createClient, RESP_TYPES } from '@redis/client'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { createServer, type AddressInfo } from 'node:net'
import Fastify from 'fastify'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import type { Broker, GapReason, History, Published } from '../../lib/log/broker.js'
import type { Message, OutgoingMessage } from '../../lib/events/message.js'
import { redisStreamsBroker, type RedisStreamsOptions } from '../../lib/redis.js'
import { Appender } from '../../lib/log/redis/appender.js'
import { connector } from '../../lib/log/redis/client.js'
import { ServerClock } from '../../lib/log/redis/server-clock.js'
import { ReadSize } from '../../lib/log/redis/read-size.js'
import { RedisStore } from '../../lib/log/redis/store.js'
import { formatCursor } from '../../lib/log/cursor.js'
import ssePlugin, { EventPriority, SSEError } from '../../lib/index.js'
import { brokerContract, slowRedis } from '../../lib/testing/index.js'
import { payloads, serve, type Service } from '../helpers/app.js'
import { collect } from '../helpers/heap.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

const HISTORY: History = { maxEvents: 10_000, maxAgeMs: 60_000, maxBytes: 1 << 20 }

/** An open broker and what it has told. */
interface Node {
  broker: Broker
  delivered: Message[]
  gaps: GapReason[]
  /** Of each gap whether no command is in it. */
  kept: (boolean | undefined)[]
  states: string[]
  publish (data: string, more?: Partial<OutgoingMessage>): Promise<Published>
  read (after: number, limit?: number): Promise<string[] | GapReason>
}

function nodeOf (broker: Broker): Node {
  return {
    broker,
    delivered: [],
    gaps: [],
    kept: [],
    states: [],
    publish: async (data, more) => await broker.publish({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, ...more }),
    read: async (after, limit = 1_000) => {
      const { messages, gap } = await broker.read({ epoch: broker.epoch, after, priority: EventPriority.NORMAL, limit })
      return gap ?? messages.map(({ data }) => data)
    }
  }
}

async function open (t: Test, options: RedisStreamsOptions, history: Partial<History> = {}): Promise<Node> {
  // Long, so that a busy machine is not taken for a Redis that does not answer.
  const node = nodeOf(redisStreamsBroker({ startTimeoutMs: 20_000, publishTimeoutMs: 20_000, replyTimeoutMs: 20_000, ...options }))
  t.teardown(() => node.broker.close())
  await node.broker.open({
    deliver: message => node.delivered.push(message),
    gap: (reason, _error, commandsKept) => {
      node.gaps.push(reason)
      node.kept.push(commandsKept)
    },
    state: (state, error) => { node.states.push(error === undefined ? state : `${state}: ${error.message}`) }
  }, { ...HISTORY, ...history })
  return node
}

async function start (t: Test, ...args: string[]): Promise<RedisServer> {
  const server = await RedisServer.start(...args)
  t.teardown(() => server.stop())
  return server
}

const texts = ({ delivered }: Node) => delivered.map(({ data }) => data)
const numbers = (count: number) => Array.from({ length: count }, (_, i) => String(i))
const unavailable = { code: 'SSE_ERR_BROKER_UNAVAILABLE' }

t.test('options', async t => {
  const client = 'redis://127.0.0.1:1'
  const cases: [options: unknown, path: string, problem?: RegExp][] = [
    [undefined, 'broker', /must be an object { client }, got undefined$/],
    [{}, 'broker.client', /node-redis/],
    [{ client: {} }, 'broker.client', /node-redis/],
    [{ client: null }, 'broker.client', /node-redis/],
    [{ client: new Redis.Cluster([{ host: '127.0.0.1', port: 1 }], { lazyConnect: true }) }, 'broker.client', /no cluster/],
    [{ client: 'localhost:6379' }, 'broker.client', /redis:\/\//],
    [{ clinet: client }, 'broker.clinet', /did you mean "client"/],
    [{ client, keyPrefix: '' }, 'broker.keyPrefix', /must have at least 1 character, has 0: /],
    [{ client, keyPrefix: 'a{b}' }, 'broker.keyPrefix', /must not have braces or white space, got "a\{b}": /],
    [{ client, database: -1 }, 'broker.database'],
    [{ client, publishTimeoutMs: 0 }, 'broker.publishTimeoutMs'],
    [{ client, replyTimeoutMs: '2s' }, 'broker.replyTimeoutMs', /must be an integer from 100 to 60000, got "2s": /],
    [{ client, waitWhenDown: 1 }, 'broker.waitWhenDown'],
    [{ client, maxPendingBytes: 1 }, 'broker.maxPendingBytes'],
    [{ client, startTimeoutMs: 1 }, 'broker.startTimeoutMs'],
    [{ client, startDegraded: 'yes' }, 'broker.startDegraded'],
    [{ client, prefix: 'x' }, 'broker.prefix', /is not an option/]
  ]
  for (const [options, path, problem = / must /] of cases) {
    const error = await Promise.resolve().then(() => redisStreamsBroker(options as RedisStreamsOptions)).catch(error => error)
    t.match(error, { code: 'SSE_ERR_INVALID_OPTION', message: `"${path}"` }, path)
    t.match(error.message, problem)
  }
})

t.test('with a server', { skip: withoutRedis }, async t => {
  const server = await start(t)
  const { url } = server
  const clients: Record<string, (url: string) => RedisStreamsOptions['client']> = {
    ioredis: url => new Redis(url, { lazyConnect: true }),
    'node-redis': url => createClient({ url }),
    'a URL': url => url
  }

  for (const [name, client] of Object.entries(clients)) {
    await t.test(`contract, ${name}`, async t => {
      // One for each node of a test, so that a node can be cut off alone.
      const proxies = await Promise.all([0, 1].map(() => slowRedis({ port: server.port, test: t })))
      const ways = proxies.map(({ url }) => client(url))
      brokerContract(t.test.bind(t), name, (keyPrefix, node) => redisStreamsBroker({ client: ways[node]!, keyPrefix }), {
        shared: true,
        faults: {
          cut: node => proxies[node]!.cut(),
          hold: node => proxies[node]!.hold(),
          heal: node => proxies[node]!.heal()
        }
      })
    })
  }

  await t.test('clients, however they are set up, read one another', async t => {
    const app = Fastify()
    await app.register(fastifyRedis, { url })
    t.teardown(() => app.close())
    const buffers = createClient({ url, commandOptions: { typeMapping: { [RESP_TYPES.BLOB_STRING]: Buffer, [RESP_TYPES.MAP]: Map } } })
    const all: RedisStreamsOptions['client'][] = [
      app.redis,
      new Redis(url, { lazyConnect: true, protocol: 2 }),
      new Redis(url, { lazyConnect: true, protocol: 3, replyMapping: 'resp3', stringNumbers: true, enableAutoPipelining: true, commandTimeout: 500 }),
      createClient({ url, RESP: 2 }),
      createClient({ url, RESP: 3, pingInterval: 10_000 }),
      buffers,
      `${url}/0`
    ]
    const nodes = await Promise.all(all.map(client => open(t, { client, keyPrefix: 'mixed' })))
    for (const [i, node] of nodes.entries()) {
      await node.publish(`{"ü":${i}}`, { target: { userIds: ['ada'] } })
      await node.publish('ephemeral', { ephemeral: true })
    }
    for (const node of nodes) {
      await until(() => node.delivered.length === all.length * 2)
      t.strictSame(node.delivered, nodes[0]!.delivered)
      t.strictSame(await node.read(0), all.map((_, i) => `{"ü":${i}}`))
    }
    const late = await open(t, { client: buffers, keyPrefix: 'mixed' })
    t.strictSame(await late.read(0), all.map((_, i) => `{"ü":${i}}`), 'also from Redis')
  })

  await t.test('the client\'s own key prefix stays in front', async t => {
    const one = await open(t, { client: new Redis(url, { lazyConnect: true, keyPrefix: 'app:' }) })
    await one.publish('here')
    await one.publish('and gone', { ephemeral: true })
    t.strictSame(texts(one), ['here', 'and gone'])
    t.match(await server.ask('KEYS', '*sse}:log'), 'app:{sse}:log')
  })

  await t.test('a database of its own', async t => {
    for (const client of [new Redis(url, { lazyConnect: true }), createClient({ url })]) {
      const [zero, seven] = await Promise.all([open(t, { client, keyPrefix: 'databases' }), open(t, { client, keyPrefix: 'databases', database: 7 })])
      await zero.publish('zero')
      await seven.publish('seven')
      t.strictSame([texts(zero), texts(seven)], [['zero'], ['seven']])
    }
  })

  await t.test('the application\'s client is copied, not used', async t => {
    const ioredis = new Redis(url, { lazyConnect: true })
    const nodeRedis = createClient({ url })
    const ours = async () => (await server.ask('CLIENT', 'LIST')).match(/name=fastify-sse-manager/g)?.length ?? 0
    for (const client of [ioredis, nodeRedis]) {
      const node = await open(t, { client, keyPrefix: 'copied' })
      await node.publish('x')
      t.equal(ioredis.status, 'wait', 'not even connected')
      t.equal(nodeRedis.isOpen, false)
      t.equal(await ours(), 3)
      await node.broker.close()
      await until(async () => await ours() === 0, undefined, 'ours are closed')
    }
    await ioredis.set('used', 'before')
    const node = await open(t, { client: ioredis })
    t.equal(await ioredis.get('used'), 'before', 'not blocked')
    await node.broker.close()
    t.equal(await ioredis.get('used'), 'before', 'not closed')
    ioredis.disconnect()
  })

  await t.test('what the history leaves out leaves Redis', async t => {
    const length = async (key: string) => Number((await server.ask('XLEN', key)).split('\r\n')[0]!.slice(1))
    const byCount = await open(t, { client: url, keyPrefix: 'count' }, { maxEvents: 10 })
    for (const n of numbers(25)) await byCount.publish(n)
    t.equal(await length('{count}:log'), 10)
    t.strictSame(await byCount.read(15), numbers(25).slice(15))
    t.equal(await byCount.read(14), 'trimmed')

    const byBytes = await open(t, { client: url, keyPrefix: 'bytes' }, { maxBytes: 10_000 })
    for (let i = 0; i < 25; i++) await byBytes.publish('x'.repeat(1_000))
    t.equal(await length('{bytes}:log'), 9, 'names count as well')
    t.equal((await byBytes.read(16)).length, 9, 'nodes count alike')
    t.equal(await byBytes.read(15), 'trimmed')
    // And so do those for whom it is.
    for (let i = 0; i < 25; i++) await byBytes.publish('x', { target: { userIds: Array.from({ length: 20 }, (_, user) => `user-${user + 10}`) } })
    t.equal(await length('{bytes}:log'), 12)
    t.equal((await byBytes.read(38)).length, 12)
    t.equal(await byBytes.read(37), 'trimmed')

    const byAge = await open(t, { client: url, keyPrefix: 'age' }, { maxAgeMs: 300 })
    for (const n of numbers(300)) await byAge.publish(n)
    await until(async () => await byAge.read(299) === 'trimmed')
    const fresh = await open(t, { client: url, keyPrefix: 'age' }, { maxAgeMs: 300 })
    t.equal(await fresh.read(299), 'trimmed', 'nor is it fetched')
    await byAge.publish('new')
    t.ok(await length('{age}:log') <= 300 - 256 + 1, 'dropped a part at a time')
    await byAge.publish('newer')
    t.ok(await length('{age}:log') <= 2)
    t.strictSame(await byAge.read(300), ['new', 'newer'])

    const ephemeral = await open(t, { client: url, keyPrefix: 'ephemeral' })
    await Promise.all(numbers(1_500).map(n => ephemeral.publish(n, { ephemeral: true })))
    t.ok(await length('{ephemeral}:ephemeral') <= 1_000)
    t.equal(ephemeral.delivered.length, 1_500)
    await Promise.all(numbers(10).map(() => ephemeral.publish('x'.repeat(1_000_000), { ephemeral: true })))
    t.ok(await length('{ephemeral}:ephemeral') <= 4)
    t.equal(await length('{ephemeral}:log'), 0)
    const writers = (await server.ask('KEYS', '{ephemeral}:writer:*')).match(/\{\w+\}:writer:[\w-]+/g)!
    for (const writer of writers) t.match(await server.ask('PTTL', writer), /^:[1-9]/, 'a node that is gone is forgotten')
  })

  await t.test('a herd of returning clients costs a bounded number of reads', async t => {
    const publisher = await open(t, { client: url, keyPrefix: 'herd' })
    await Promise.all(numbers(3_000).map(n => publisher.publish(n)))
    const { broker, read } = await open(t, { client: url, keyPrefix: 'herd' })
    t.equal(broker.position, 3_000)
    const before = await server.calls('xrevrange')
    const results = await Promise.all(Array.from({ length: 2_000 }, (_, i) => read(3_000 - 100 - (i % 1_000), 50)))
    for (const [i, result] of results.entries()) {
      const after = 3_000 - 100 - (i % 1_000)
      if (result.length !== 50 || result[0] !== String(after)) t.fail(`read after ${after}: ${result}`)
    }
    const reads = await server.calls('xrevrange') - before
    t.ok(reads >= 3 && reads < 3 + 12, `${reads} reads for 2,000 clients: a page for each 64 to 500 events`)
    t.strictSame((await read(0, 1)), ['0'])
    t.equal((await read(500)).length, 1_000)
  })

  await t.test('cursors that clients make up cost a bounded number of questions', async t => {
    const { broker, read } = await open(t, { client: url, keyPrefix: 'made-up' })
    const before = await server.calls('evalsha')
    const startedAt = performance.now()
    const reads: Promise<unknown>[] = []
    for (const n of numbers(500)) {
      reads.push(broker.read({ epoch: `made-up-${n}`, after: 1, priority: EventPriority.NORMAL, limit: 1 }).then(({ gap }) => gap), read(1_000 + Number(n)))
      await new Promise(resolve => setImmediate(resolve))
    }
    const results = await Promise.all(reads)
    const asked = await server.calls('evalsha') - before
    // The readers of this node ask as well, once in two seconds of silence.
    const elapsedMs = performance.now() - startedAt
    t.ok(asked <= 2 + elapsedMs / 50 + 2 * Math.ceil(elapsedMs / 2_000), `${asked} questions in ${elapsedMs} ms`)
    t.strictSame(results, reads.map((_, i) => i % 2 === 0 ? 'epoch' : 'unknown'))
    await read(1)
    const closing = read(2)
    closing.catch(() => {})
    await broker.close()
    await t.rejects(closing, { code: 'SSE_ERR_CLOSED' })
  })

  await t.test('clients that return to another node get what they missed', async t => {
    const one = await serve(t, { broker: redisStreamsBroker({ client: url, keyPrefix: 'return' }) })
    const { stream } = await one.join()
    for (const n of numbers(150)) await one.app.sse.broadcastEvent({ event: 'x', data: n })
    await stream.until(() => stream.named('x').length >= 150)
    const cursor = stream.named('x')[49]!.id!
    const other = await serve(t, { broker: redisStreamsBroker({ client: url, keyPrefix: 'return' }) })
    const before = await server.calls('xrevrange')
    const returned = await Promise.all(Array.from({ length: 100 }, () => other.join(null, [], { cursor })))
    for (const { stream } of returned) {
      await stream.until(() => stream.named('x').length >= 100)
      t.strictSame(stream.named('x').map(({ data }) => data), numbers(150).slice(50))
      t.strictSame(stream.named('sse:gap'), [])
    }
    t.ok(await server.calls('xrevrange') - before < 12)
    await one.app.sse.broadcastEvent({ event: 'x', data: 'live' })
    for (const { stream } of returned) await stream.until(() => stream.named('x').length >= 101)
    t.equal((await one.app.sse.broadcastEvent({ event: 'x', data: 'y' }, { local: true })).id, null)
    await t.rejects(one.app.sse.broadcastEvent({ data: 1 }, { filter: () => true }), { code: 'SSE_ERR_FILTER_NOT_SHARED' })
  })

  await t.test('a publish whose answer was lost is logged once', async t => {
    const proxy = await slowRedis({ port: server.port, test: t })
    const witness = await open(t, { client: url, keyPrefix: 'lost' })
    let losses = 0
    for (const client of [new Redis(proxy.url, { lazyConnect: true }), createClient({ url: proxy.url })]) {
      const node = await open(t, { client, keyPrefix: 'lost' })
      const from = witness.delivered.length
      const batch = numbers(20).map(n => `${n} swallowed`)
      const before = losses
      proxy.loseReply('7 swallowed').then(() => losses++)
      const results = await Promise.all(batch.map((data, i) => node.publish(data, { ephemeral: i % 5 === 4 })))
      await until(() => losses > before, undefined, 'the answer is swallowed')
      await until(() => witness.delivered.length >= from + 20)
      t.strictSame(texts(witness).slice(from), batch)
      t.strictSame(texts(node), batch)
      t.strictSame(results.map(({ seq }) => seq ?? 0), node.delivered.map(({ seq }) => seq))
      await until(() => node.publish('next').then(() => true, () => false))
      t.strictSame(texts(node).slice(20), ['next'])
      t.strictSame(node.gaps, [])
    }
    t.equal(losses, 2)
  })

  await t.test('a log that is not the same any more is another', async t => {
    const one = await open(t, { client: url, keyPrefix: 'epoch' })
    const other = await open(t, { client: url, keyPrefix: 'epoch' })
    const { epoch } = one.broker
    await one.publish('1')
    const restarted = await open(t, { client: url, keyPrefix: 'epoch' })
    t.equal(restarted.broker.epoch, epoch, 'it survives nodes')
    t.equal(restarted.broker.position, 1)
    for (const key of ['log', 'meta']) {
      const before = one.broker.epoch
      await server.ask('DEL', `{epoch}:${key}`)
      const from = other.delivered.length
      const { seq } = await one.publish(`after ${key}`)
      t.equal(seq, 1)
      await until(() => other.delivered.length > from)
      for (const { broker, gaps, delivered } of [one, other]) {
        t.not(broker.epoch, before, `without its ${key}`)
        t.equal(gaps.at(-1), 'epoch')
        t.equal(broker.position, 1)
        t.match(delivered.at(-1), { data: `after ${key}`, seq: 1 })
        t.match(await broker.read({ epoch: before, after: 1, priority: EventPriority.NORMAL, limit: 1 }), { gap: 'epoch' })
      }
    }
    // Nobody publishes: it is noticed all the same, within the time that a reader waits.
    const before = one.broker.epoch
    await server.ask('DEL', '{epoch}:log', '{epoch}:meta', '{epoch}:ephemeral')
    await until(() => one.broker.epoch !== before && other.broker.epoch === one.broker.epoch)
    t.equal(one.gaps.length, 3)
  })

  await t.test('after a new epoch it is known whether a command was missed', async t => {
    const command = { event: 'sse:node', channel: 'node' } as const
    let prefix = 0
    /** What `one`, which reads everything, and `late`, which reads on at the end, learn of the commands that the log has lost. */
    const learn = async (act: (one: Node, key: (name: string) => string) => Promise<unknown>, history: Partial<History> = {}) => {
      const keyPrefix = `missed-${prefix++}`
      const proxy = await slowRedis({ port: server.port, test: t })
      const one = await open(t, { client: url, keyPrefix }, history)
      const late = await open(t, { client: new Redis(proxy.url, { lazyConnect: true }), keyPrefix }, history)
      await one.publish('before')
      await until(() => late.delivered.length === 1)
      proxy.hold('XREAD')
      // The next entry is the reply to a read that is under way, and will be read.
      await one.publish('on its way')
      await act(one, name => `{${keyPrefix}}:${name}`)
      await one.publish('after')
      proxy.release()
      await until(() => late.broker.epoch === one.broker.epoch && late.broker.position === one.broker.position && one.gaps.length > 0)
      t.strictSame([one.gaps.at(-1), late.gaps], ['epoch', ['epoch']])
      return [one.kept.at(-1), late.kept.at(-1)]
    }
    const wipe = (key: (name: string) => string) => server.ask('DEL', key('meta'), key('log'), key('ephemeral'))
    t.strictSame(await learn(async (_one, key) => await wipe(key)), [undefined, undefined], 'no command')
    t.strictSame(await learn(async (one, key) => {
      await one.publish('read by one node', command)
      await wipe(key)
    }), [undefined, false])
    t.strictSame(await learn(async (one, key) => {
      await one.publish('read by one node', command)
      await one.publish('and an event')
      await server.ask('DEL', key('log'))
    }), [undefined, false], 'with meta data left')
    t.strictSame(await learn(async (one, key) => {
      await wipe(key)
      await one.publish('in an epoch of which the other node never hears', command)
      await wipe(key)
    }), [undefined, false])
    t.strictSame(await learn(async (one, key) => {
      await wipe(key)
      await one.publish('trimmed before the other node is back', command)
      for (const n of numbers(5)) await one.publish(n)
    }, { maxEvents: 3 }), [undefined, false])
    t.strictSame(await learn(async (one, key) => {
      await wipe(key)
      await one.publish('in the new epoch', command)
    }), [undefined, undefined], 'it is read there')
    const restored = async (one: Node, key: (name: string) => string, lost: () => Promise<unknown>, instead: () => Promise<unknown>) => {
      await one.publish('command in the snapshot', command)
      for (const name of ['meta', 'log']) await server.ask('COPY', key(name), key(`${name}-snapshot`))
      await lost()
      for (const name of ['meta', 'log']) await server.ask('RENAME', key(`${name}-snapshot`), key(name))
      await instead()
      await until(() => one.gaps.length > 0)
    }
    t.strictSame(await learn((one, key) => restored(one, key, async () => { for (const n of numbers(3)) await one.publish(n) }, async () => {})), [undefined, false], 'the command was read by one node')
    t.strictSame(await learn((one, key) => restored(one, key, async () => { for (const n of numbers(3)) await one.publish(n) }, async () => {
      // Logged before the node finds out: it is lost, and the publisher is told.
      await t.rejects(one.publish('in the place of an event', command), { ...unavailable, message: /lost together/ })
    })), [false, false])
    t.strictSame(await learn((one, key) => restored(one, key, async () => {
      for (const n of numbers(2)) await one.publish(n)
      await one.publish('command that is lost', command)
    }, async () => {
      await t.rejects(one.publish('command with a smaller number', command), { ...unavailable, message: /lost together/ })
    })), [false, false])
    t.strictSame(await learn((one, key) => restored(one, key, async () => await one.publish('command that is lost', command), async () => {
      await t.rejects(one.publish('command with the same number', command), { ...unavailable, message: /lost together/ })
    })), [false, false], 'a command is more than its number')
    t.strictSame(await learn(async (one, key) => {
      await one.publish('read by one node', command)
      await server.ask('HSET', key('meta'), 'seq', '2', 'command', '0', 'commandTime', '0')
      // The node that has read on begins the new epoch, and has no other chance to say what it had read.
      await until(() => one.gaps.length > 0)
    }), [undefined, false], 'meta data of before, and a node that has read on')
  })

  await t.test('a command in the place of one that was lost is another, also when its epoch has ended', async t => {
    const command = { event: 'sse:node', channel: 'node' } as const
    const results: unknown[] = []
    for (const lost of [true, false]) {
      const keyPrefix = `instead-${lost}`
      const key = (name: string) => `{${keyPrefix}}:${name}`
      const proxy = await slowRedis({ port: server.port, test: t })
      const away = await open(t, { client: new Redis(proxy.url, { lazyConnect: true }), keyPrefix })
      await away.publish('before')
      for (const name of ['meta', 'log']) await server.ask('COPY', key(name), key(`${name}-snapshot`))
      await away.publish('read by this node', command)
      proxy.hold()
      if (lost) for (const name of ['meta', 'log']) await server.ask('RENAME', key(`${name}-snapshot`), key(name))
      const other = await open(t, { client: url, keyPrefix })
      if (lost) t.equal((await other.publish('with the same number', command)).seq, 2)
      await server.ask('DEL', key('log'))
      await other.publish('after')
      proxy.release()
      await until(() => away.gaps.length > 0)
      results.push(away.kept)
    }
    t.strictSame(results, [[false], [undefined]])
  })

  await t.test('a node that was stopped for longer than messages between nodes are kept connects again', async t => {
    const node = await open(t, { client: url, keyPrefix: 'stopped' })
    const { now } = Date
    const stopFor = (ms: number) => {
      Date.now = () => now() + ms
    }
    t.teardown(() => { Date.now = now })
    stopFor(10_000)
    // Redis answers once in two seconds at least.
    await sleep(2_500)
    t.strictSame(node.states, ['up'])
    stopFor(26_000)
    await until(() => node.states.length > 2)
    t.match(node.states, ['up', /^down: .*messages of other nodes may be lost/, 'up'])
    t.strictSame(node.gaps, [], 'events have been kept')
    await sleep(2_500)
    t.equal(node.states.length, 3, 'once')
  })

  await t.test('what a node has read of a lost log counts for all that come after it', async t => {
    const proxies = await Promise.all(numbers(3).map(() => slowRedis({ port: server.port, test: t })))
    const [first, knowing, last] = await Promise.all(proxies.map(proxy => open(t, { client: new Redis(proxy.url, { lazyConnect: true }), keyPrefix: 'counts' }))) as [Node, Node, Node]
    await knowing.publish('before')
    await until(() => [first, last].every(({ delivered }) => delivered.length === 1))
    for (const proxy of [proxies[0]!, proxies[2]!]) proxy.hold('XREAD')
    await knowing.publish('on its way')
    await knowing.publish('command', { event: 'sse:node', channel: 'node' })
    proxies[1]!.hold()
    await server.ask('DEL', '{counts}:meta', '{counts}:log')
    for (const [i, node] of [first, knowing, last].entries()) {
      proxies[i]!.release()
      await until(() => node.gaps.length === 1)
    }
    t.strictSame([first, knowing, last].map(({ kept }) => kept), [[undefined], [undefined], [false]])
  })

  await t.test('a node that begins without Redis knows whether a command was logged meanwhile', async t => {
    for (const commands of [0, 1]) {
      const keyPrefix = `without-${commands}`
      const near = await open(t, { client: url, keyPrefix })
      // The log has had another epoch.
      await server.ask('DEL', `{${keyPrefix}}:meta`)
      const proxy = await slowRedis({ port: server.port, test: t })
      proxy.hold()
      const far = await open(t, { client: new Redis(proxy.url, { lazyConnect: true }), keyPrefix, startDegraded: true, startTimeoutMs: 100 })
      await near.publish('event')
      if (commands > 0) await near.publish('command', { event: 'sse:node', channel: 'node' })
      proxy.release()
      await until(() => far.gaps.length === 1)
      t.strictSame(far.kept, [commands === 0])
    }
  })

  await t.test('an epoch that a new node has begun says nothing of the one before', async t => {
    const keyPrefix = 'begun'
    const proxy = await slowRedis({ port: server.port, test: t })
    const old = await open(t, { client: new Redis(proxy.url, { lazyConnect: true }), keyPrefix })
    await old.publish('before')
    proxy.hold()
    await server.ask('DEL', '{begun}:meta', '{begun}:log')
    const fresh = await open(t, { client: url, keyPrefix })
    await fresh.publish('after')
    proxy.release()
    await until(() => texts(old).includes('after'))
    t.strictSame([old.gaps, old.kept], [['epoch'], [false]])
  })

  await t.test('a hole is a gap', async t => {
    const one = await open(t, { client: url, keyPrefix: 'hole' }, { maxEvents: 5 })
    const results = await Promise.all(numbers(50).map(n => one.publish(n)))
    t.strictSame(results.map(({ seq }) => seq), numbers(50).map(n => Number(n) + 1), 'they were logged, and trimmed before they were read')
    t.ok(one.gaps.length > 0 && one.gaps.every(reason => reason === 'trimmed'))
    t.strictSame(texts(one).slice(-5), numbers(50).slice(45))
    t.strictSame(await one.read(45), numbers(50).slice(45))
    t.same(new Set(one.kept), new Set([true]), 'no command was among them')
    for (const [prefix, commands] of [['none', []], ['one', [0]], ['last', [49]], ['next', [44]]] as const) {
      const node = await open(t, { client: url, keyPrefix: `hole-${prefix}` }, { maxEvents: 5 })
      await node.publish('command', { channel: 'node' })
      await Promise.all(numbers(50).map((n, i) => node.publish(n, (commands as readonly number[]).includes(i) ? { channel: 'node' } : {})))
      t.strictSame(node.gaps, ['trimmed'])
      t.strictSame(node.kept, [prefix === 'none' || prefix === 'last'], `${prefix}: it is known whether one is in the hole`)
    }

    // Somebody else has written to our stream.
    const foreign = await open(t, { client: url, keyPrefix: 'foreign' })
    await foreign.publish('before')
    const epoch = parseInt(foreign.broker.epoch, 36)
    await server.ask('HSET', '{foreign}:meta', 'seq', '2')
    await server.ask('XADD', '{foreign}:log', `${epoch}-2`, 'what', 'ever')
    await foreign.publish('after')
    t.strictSame(texts(foreign), ['before', 'after'])
    t.strictSame(foreign.gaps, ['trimmed'])
    t.equal(await foreign.read(1), 'trimmed')
    t.strictSame(await foreign.read(2), ['after'])
    // What looks like ours and cannot be delivered, by a fault or of another version: it stops nothing.
    const good = { event: 'e', priority: 1, target: {}, nonce: 'other' }
    let seq = 3
    for (const head of ['{', 'null', '7', ...[{ ...good, event: 'a\nid: 9' }, { ...good, event: '' }, { ...good, priority: 4 }, { ...good, retry: 0 }, { ...good, target: undefined }, { ...good, target: { userIds: 'ada' } }, { ...good, nonce: undefined }].map(head => JSON.stringify(head))]) {
      // In this order: an entry behind what the meta data say is not of the log at all.
      await server.ask('HSET', '{foreign}:meta', 'seq', String(++seq))
      await server.ask('XADD', '{foreign}:log', `${epoch}-${seq}`, 't', String(Date.now()), 'b', '0', 'o', '0', 'h', head, 'd', 'bad')
      await foreign.publish(head)
      seq++
      t.equal(texts(foreign).at(-1), head)
      t.equal(await foreign.read(seq - 2), 'trimmed')
    }
    t.equal(foreign.gaps.length, 11, 'each is told')
    t.notOk(texts(foreign).includes('bad'))
    t.strictSame(foreign.states, ['up'], 'and the connections stay')
  })

  await t.test('what something else does to the keys is got over by one gap', async t => {
    const epochOf = (node: Node) => parseInt(node.broker.epoch, 36)
    const cases: [name: string, gaps: number, harm: (key: (name: string) => string, epoch: number) => string[][]][] = [
      ['an entry by the clock', 1, key => [['XADD', key('log'), '*', 'a', 'b']]],
      ['the next entry', 1, (key, epoch) => [['XADD', key('log'), `${epoch}-4`, 'a', 'b']]],
      ['the next entry, in our form', 1, (key, epoch) => [['XADD', key('log'), `${epoch}-4`, 't', String(Date.now()), 'b', '0', 'o', '1', 'h', '{}', 'd', '']]],
      ['the next entry, as if of a node', 1, (key, epoch) => [['XADD', key('log'), `${epoch}-4`, 't', String(Date.now()), 'b', '0', 'o', '1', 'h', JSON.stringify({ event: 'e', priority: 1, target: {}, nonce: '' }), 'd', 'x']]],
      ['an entry far away in this epoch', 1, (key, epoch) => [['XADD', key('log'), `${epoch}-18446744073709551610`, 'a', 'b']]],
      ['the last id there is', 1, key => [['XADD', key('log'), '18446744073709551615-18446744073709551615', 'a', 'b']]],
      ['an entry that was deleted again', 1, key => [['XADD', key('log'), '18446744073709551615-1', 'a', 'b'], ['XDEL', key('log'), '18446744073709551615-1']]],
      ['an ephemeral entry by the clock', 1, key => [['XADD', key('ephemeral'), '*', 'a', 'b']]],
      ['the next ephemeral entry', 1, (key, epoch) => [['XADD', key('ephemeral'), `${epoch}-2`, 'a', 'b']]],
      ['meta data of before', 1, key => [['HSET', key('meta'), 'seq', '2']]],
      ['meta data of before, of ephemeral entries', 1, key => [['HSET', key('meta'), 'ephemerals', '0']]],
      ['an epoch that is no number', 1, key => [['HSET', key('meta'), 'epoch', 'nan']]],
      ['a sequence number that is none', 1, key => [['HSET', key('meta'), 'seq', '1e300']]],
      ['a value for the log', 1, key => [['SET', key('log'), 'x']]],
      ['a list for the ephemeral stream', 1, key => [['DEL', key('ephemeral')], ['RPUSH', key('ephemeral'), 'x']]],
      ['a value for the meta data', 1, key => [['SET', key('meta'), 'x']]],
      ['an entry deleted that all have read', 0, (key, epoch) => [['XDEL', key('log'), `${epoch}-2`]]],
      ['accounts that are lost', 0, key => [['HDEL', key('meta'), 'logBytes', 'logFirstBytes', 'logFirstTime'], ['HSET', key('meta'), 'ephemeralBytes', 'x', 'ephemeralFirstBytes', '-1', 'ephemeralFirstTime', '1.5']]]
    ]
    await Promise.all(cases.map(async ([name, gaps, harm], i) => {
      const keyPrefix = `harm-${i}`
      const [one, other] = [await open(t, { client: url, keyPrefix }), await open(t, { client: createClient({ url }), keyPrefix })]
      for (const n of numbers(3)) await one.publish(n)
      await one.publish('ephemeral', { ephemeral: true })
      await until(() => other.delivered.length === 4)
      const [epoch, answers] = [one.broker.epoch, [] as string[]]
      for (const command of harm(key => `{${keyPrefix}}:${key}`, epochOf(one))) answers.push(await server.ask(...command))
      t.notOk(answers.some(answer => answer.startsWith('-')), `${name}: ${answers}`)
      // One that had been given a place in the old epoch is lost with it, and its publisher is told.
      const outcomes = await Promise.all(numbers(10).map(n => one.publish(`after ${n}`, { ephemeral: n === '5' }).then(() => 'ok', error => (error as Error).message)))
      t.strictSame(outcomes.filter(outcome => outcome !== 'ok' && !/lost together/.test(outcome)), [], name)
      for (let n = 0; n < 5; n++) await other.publish(`later ${n}`)
      await until(() => one.delivered.at(-1)?.data === 'later 4')
      const late = await open(t, { client: url, keyPrefix })
      t.strictSame((await late.read(late.broker.position - 5)), numbers(5).map(n => `later ${n}`), name)
      for (const node of [one, other]) {
        t.equal(node.gaps.length, gaps, `${name}: ${node.gaps}`)
        t.ok(gaps === 0 ? node.broker.epoch === epoch : node.broker.epoch > epoch, name)
        t.strictSame(texts(node).filter(text => text.startsWith('later')), numbers(5).map(n => `later ${n}`), name)
        t.equal(node.states.at(-1), 'up', name)
      }
      t.strictSame(texts(one).filter(text => text.startsWith('after')), numbers(10).filter(n => outcomes[Number(n)] === 'ok').map(n => `after ${n}`), `${name}: what was confirmed has arrived, nothing else`)
    }))
  })

  await t.test('an entry of something else in the stream of nodes stops neither nodes nor events', async t => {
    const [one, other] = [await open(t, { client: url, keyPrefix: 'nodes' }), await open(t, { client: url, keyPrefix: 'nodes' })]
    const tell = (data: string) => one.publish(data, { ephemeral: true, channel: 'node' })
    let round = 0
    for (const id of ['*', `${Date.now() + 3_600_000}-0`, '18446744073709551615-18446744073709551615']) {
      t.notMatch(await server.ask('XADD', '{nodes}:nodes', id, 'a', 'b'), /^-/)
      // One that was told in between may be lost with the entry: nodes say it again.
      await until(async () => {
        await tell(`${id} ${++round}`).catch(() => {})
        return texts(other).includes(`${id} ${round}`)
      })
      await until(async () => Number(/(\d+)-/.exec(await server.ask('XREVRANGE', '{nodes}:nodes', '+', '-', 'COUNT', '1'))?.[1]) < Date.now() + 60_000, 10_000, `${id} is gone`)
      await one.publish(id)
    }
    await until(() => texts(other).at(-1)!.startsWith('1844'))
    for (const { gaps, states } of [one, other]) t.strictSame([gaps, states], [[], ['up']])
  })

  await t.test('what is in the stream of nodes after it was replaced by an older one is read', async t => {
    const node = await open(t, { client: url, keyPrefix: 'replaced' })
    await node.publish('before', { ephemeral: true, channel: 'node' })
    await until(() => texts(node).includes('before'))
    await server.ask('DEL', '{replaced}:nodes')
    await server.ask('XADD', '{replaced}:nodes', '1-1', 'h', JSON.stringify({ event: 'e', priority: 1, target: {}, nonce: '' }), 'd', 'after')
    await until(() => texts(node).includes('after'))
  })

  await t.test('a foreign entry that is the oldest is trimmed as any other', async t => {
    const node = await open(t, { client: url, keyPrefix: 'oldest' }, { maxEvents: 3 })
    await node.publish('0')
    await server.ask('HSET', '{oldest}:meta', 'seq', '2')
    await server.ask('XADD', '{oldest}:log', `${parseInt(node.broker.epoch, 36)}-2`, 'a', 'b')
    for (const n of numbers(10).slice(2)) await node.publish(n)
    t.strictSame(node.gaps, ['trimmed'])
    t.strictSame(await node.read(node.broker.position - 3), ['7', '8', '9'])
  })

  await t.test('numbers of an entry that are none spoil nothing', async t => {
    const node = await open(t, { client: url, keyPrefix: 'numbers' })
    const epoch = parseInt(node.broker.epoch, 36)
    const head = JSON.stringify({ event: 'e', priority: 1, target: {}, nonce: '' })
    let seq = 0
    for (const [time, other] of [['x', '0'], ['1', 'x'], ['1e400', '0'], ['1', '-1']] as const) {
      await server.ask('HSET', '{numbers}:meta', 'seq', String(++seq))
      await server.ask('XADD', '{numbers}:log', `${epoch}-${seq++}`, 't', time, 'b', '0', 'o', other, 'h', head, 'd', 'bad')
      await node.publish('ephemeral', { ephemeral: true })
      await node.publish('logged')
    }
    t.strictSame(texts(node).join(), 'ephemeral,logged,'.repeat(4).slice(0, -1))
    t.strictSame(node.gaps, ['trimmed', 'trimmed', 'trimmed', 'trimmed'])
    t.equal(parseInt(node.broker.epoch, 36), epoch)
  })

  await t.test('a batch is appended whole, and once, also when its streams are broken', async t => {
    const connection = await connector(url, undefined, 20_000)(() => {}, new AbortController().signal)
    t.teardown(() => connection.destroy())
    const length = async (key: string) => Number((await server.ask('XLEN', `{whole}:${key}`)).split('\r\n')[0]!.slice(1))
    const log = new RedisStore('whole', 'writer', new ServerClock(), 20_000)
    const item = (data: string, ephemeral: boolean) => ({ nonce: data, message: { event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral } })
    const batch = (number: number, remainingMs = 20_000) => ({ number, remainingMs: () => remainingMs, items: [item('1', false), item('2', true), item('3', false), item('4', true)] })
    const before = await log.append(connection, batch(1), HISTORY)
    for (const [n, key] of ['ephemeral', 'log'].entries()) {
      await server.ask('XADD', `{whole}:${key}`, '*', 'a', 'b')
      const after = await log.append(connection, batch(2 + n), HISTORY)
      t.match(after, { first: 1 })
      t.ok(after!.epoch > before!.epoch)
      t.strictSame([await length('log'), await length('ephemeral')], [2, 2], `${key}: nothing half, nothing twice`)
      t.strictSame(await log.append(connection, batch(2 + n), HISTORY), after, 'sent again')
      t.strictSame([await length('log'), await length('ephemeral')], [2, 2])
      t.match(await log.greet(connection, { asked: 0 }), { why: `{whole}:${key} has an id that no node has given` })
    }
    // The node that begins an epoch tells Redis what it has read of the previous one.
    await server.ask('DEL', '{whole}:meta')
    log.progress = { epoch: before!.epoch, command: 7, commandTime: 1_000 }
    t.match(await log.greet(connection, { asked: 0 }), { previous: log.progress, why: 'Redis has lost the log (restarted without its data, flushed, or the key {whole}:meta was deleted)' })
    await server.ask('HSET', '{whole}:meta', 'seq', 'x')
    t.match(await log.greet(connection, { asked: 0 }), { why: 'the key {whole}:meta was changed' })
    log.progress = { epoch: 0, command: 0, commandTime: 0 }
    // What is remembered of the writer was overwritten.
    await server.ask('DEL', '{whole}:writer:writer')
    await server.ask('RPUSH', '{whole}:writer:writer', 'x')
    t.match(await log.append(connection, batch(4), HISTORY), { first: 1 })
    // Clocks of nodes may be wrong.
    for (const shiftMs of [60_000, -60_000]) {
      const { now } = Date
      Date.now = () => now() + shiftMs
      try {
        await log.greet(connection, { asked: 0 })
        t.not(await log.append(connection, batch(shiftMs > 0 ? 5 : 6), HISTORY), null, `${shiftMs} ms`)
        t.equal(await log.append(connection, batch(20, -1_000), HISTORY), null, 'too late')
      } finally {
        Date.now = now
      }
    }
  })

  await t.test('an exception of a delivery costs a gap, and nothing else', async t => {
    const broker = redisStreamsBroker({ client: url, keyPrefix: 'throws', startTimeoutMs: 20_000, publishTimeoutMs: 20_000, replyTimeoutMs: 20_000 })
    t.teardown(() => broker.close())
    const told: string[] = []
    let gapThrows = false
    await broker.open({
      deliver: ({ data }) => {
        told.push(data)
        if (data.startsWith('bad')) throw new Error(data)
        return 1
      },
      gap: (reason, error) => {
        told.push(`${reason}: ${error?.message}`)
        if (gapThrows) throw new Error('as well')
      },
      state: state => { told.push(state) }
    }, HISTORY)
    const warnings: Error[] = []
    process.on('warning', warning => { if (/^bad/.test(warning.message)) warnings.push(warning) })
    const publish = (data: string, ephemeral = false) => broker.publish({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral })
    const results = await Promise.all(['1', 'bad 2', '3'].map(data => publish(data)))
    t.strictSame(results, [{ seq: 1, delivered: 1 }, { seq: 2, delivered: 0 }, { seq: 3, delivered: 1 }])
    gapThrows = true
    await Promise.all([publish('bad ephemeral', true), publish('4')])
    t.strictSame(told, ['up', '1', 'bad 2', 'trimmed: bad 2', '3', 'bad ephemeral', 'trimmed: bad ephemeral', '4'])
    t.equal(broker.position, 4)
    await until(() => warnings.length === 1, undefined, 'a gap that throws is a warning')
  })

  await t.test('a deleted entry in the middle is a gap for what is before it', async t => {
    const one = await open(t, { client: url, keyPrefix: 'middle' })
    for (const n of numbers(20)) await one.publish(n)
    await server.ask('XDEL', '{middle}:log', `${parseInt(one.broker.epoch, 36)}-10`)
    const other = await open(t, { client: url, keyPrefix: 'middle' })
    t.equal(await other.read(8), 'trimmed')
    t.strictSame(await other.read(10), numbers(20).slice(10))
    t.equal(await other.read(9), 'trimmed')
  })

  await t.test('more than fits at once keeps its order, of both kinds', async t => {
    const proxy = await slowRedis({ port: server.port, test: t })
    const one = await open(t, { client: url, keyPrefix: 'full' })
    const other = await open(t, { client: new Redis(proxy.url, { lazyConnect: true }), keyPrefix: 'full' })
    await one.publish('before')
    await until(() => other.delivered.length === 1)
    proxy.cut()
    await Promise.all(numbers(600).map(n => one.publish(n, { ephemeral: n === '20' || n === '550' })))
    proxy.heal()
    await until(() => other.delivered.length === 601)
    t.strictSame(texts(other), ['before', ...numbers(600)])
    t.strictSame(other.gaps, [])
  })

  await t.test('a slow link', async t => {
    const big = 'x'.repeat(100_000)
    await Promise.all(Object.entries({ ioredis: (url: string) => new Redis(url, { lazyConnect: true }), 'node-redis': (url: string) => createClient({ url }) }).map(async ([name, client]) => {
      const keyPrefix = `slow-${name}`
      const history = { maxBytes: 1 << 26 }
      const proxy = await slowRedis({ port: server.port, test: t })
      const near = await open(t, { client: url, keyPrefix }, history)
      const far = await open(t, { client: client(proxy.url), keyPrefix, replyTimeoutMs: 1_500 }, history)
      await near.publish('before')
      await until(() => far.delivered.length === 1)
      proxy.cut()
      await until(() => far.states.at(-1) !== 'up')
      await Promise.all(numbers(40).map(() => near.publish(big)))
      proxy.bytesPerSecond = 1_000_000
      proxy.heal()
      await until(() => far.states.at(-1) === 'up', 60_000, `${name}: it catches up`)
      t.equal(far.delivered.length, 41, `${name}: and is degraded until then`)
      t.ok(far.states.some(state => /has \d+ events that this node has not read yet/.test(state)), `${name}: and says so: ${far.states}`)
      t.strictSame(far.gaps, [])

      // Whoever returns to a node that has just started. What others publish there does not wait behind it.
      const fresh = await open(t, { client: client(proxy.url), keyPrefix, replyTimeoutMs: 1_500 }, history)
      const first = fresh.read(1)
      first.catch(() => {})
      for (const n of numbers(20)) await fresh.publish(n)
      const read = await until(() => first.catch(() => fresh.read(1)).catch(() => null), 30_000, `${name}: old events come`)
      t.ok(read.length >= 40, name)
      t.strictSame(fresh.states, ['up'], `${name}: the connection that publishes stays`)

      // A single event may take many times as long as Redis has to answer.
      const { seq } = await near.publish('y'.repeat(500_000))
      proxy.bytesPerSecond = 200_000
      const late = await open(t, { client: client(proxy.url), keyPrefix, replyTimeoutMs: 1_500 }, history)
      t.equal((await late.read(seq! - 1))[0]!.length, 500_000, `${name}: an event of 2.5 s`)
    }))
  })

  await t.test('messages between nodes do not wait behind large events on a slow link', async t => {
    const proxy = await slowRedis({ port: server.port, test: t })
    const near = await open(t, { client: url, keyPrefix: 'heartbeats' })
    const far = await open(t, { client: new Redis(proxy.url, { lazyConnect: true }), keyPrefix: 'heartbeats' })
    proxy.bytesPerSecond = 100_000
    await Promise.all(numbers(8).map(() => near.publish('x'.repeat(100_000))))
    await near.publish('heartbeat', { ephemeral: true, channel: 'node' })
    await until(() => texts(far).includes('heartbeat'))
    t.ok(far.broker.position < 8, 'the events take 8 s')
    proxy.bytesPerSecond = Infinity
    await until(() => far.broker.position === 8)
  })

  await t.test('what fails to come from the history costs no connection that publishes', async t => {
    const proxy = await slowRedis({ port: server.port, test: t })
    const one = await open(t, { client: url, keyPrefix: 'apart' })
    for (const n of numbers(3)) await one.publish(n)
    for (const client of [new Redis(proxy.url, { lazyConnect: true }), createClient({ url: proxy.url })]) {
      const node = await open(t, { client, keyPrefix: 'apart' })
      let lost = false
      proxy.loseReply('XREVRANGE').then(() => { lost = true })
      await t.rejects(node.read(0))
      t.ok(lost)
      t.strictSame((await node.read(0)).slice(0, 3), numbers(3))
      await node.publish('goes on')
      t.strictSame(node.states, ['up'])
    }
  })

  await t.test('the history is read again after a connection for it could not be made', async t => {
    const server = await start(t)
    const admin = new Redis(server.url)
    t.teardown(() => { admin.disconnect() })
    const one = await open(t, { client: server.url })
    for (const n of numbers(3)) await one.publish(n)
    for (const client of [new Redis(server.url, { lazyConnect: true }), createClient({ url: server.url })]) {
      const node = await open(t, { client })
      await until(async () => {
        await admin.call('CONFIG', 'SET', 'maxclients', String(String(await admin.client('LIST')).trim().split('\n').length))
        return /max number of clients/.test(await server.ask('PING').catch(() => ''))
      }, undefined, 'no more clients are let in')
      await t.rejects(node.read(0))
      await admin.call('CONFIG', 'SET', 'maxclients', '1000')
      t.strictSame(await node.read(0), numbers(3))
      t.strictSame(node.states, ['up'])
    }
  })

  await t.test('a node that is one event behind a cursor has it with this event, and waits for no other', async t => {
    const proxy = await slowRedis({ port: server.port, test: t })
    const one = await open(t, { client: url, keyPrefix: 'behind' })
    const late = await open(t, { client: new Redis(proxy.url, { lazyConnect: true }), keyPrefix: 'behind' })
    proxy.hold('XREAD')
    await one.publish('1')
    const asked = await server.calls('evalsha')
    const reading = late.read(1)
    reading.catch(() => {})
    await until(async () => await server.calls('evalsha') > asked)
    // The answer to this comes behind that to the question where the log stands.
    await late.broker.claim('any', 1_000)
    proxy.release()
    t.strictSame(await reading, [])
    t.strictSame(texts(late), ['1'])
  })

  await t.test('messages between nodes are heard once, also after nobody has said anything for a time', async t => {
    const node = await open(t, { client: url, keyPrefix: 'quiet' })
    await node.publish('one', { ephemeral: true, channel: 'node' })
    await until(() => node.delivered.length === 1)
    const looks = await server.calls('exists')
    await until(async () => await server.calls('exists') > looks, undefined, 'it looks where the stream ends')
    await node.publish('two', { ephemeral: true, channel: 'node' })
    await until(() => texts(node).includes('two'))
    t.strictSame(texts(node), ['one', 'two'])
  })

  await t.test('what was logged behind ephemeral messages that are gone comes all the same', async t => {
    const proxy = await slowRedis({ port: server.port, test: t })
    const one = await open(t, { client: url, keyPrefix: 'gone' })
    const other = await open(t, { client: new Redis(proxy.url, { lazyConnect: true }), keyPrefix: 'gone' })
    proxy.cut()
    await until(() => other.states.at(-1) !== 'up')
    for (const n of numbers(6)) await one.publish(n, { ephemeral: n === '2' || n === '4' })
    await server.ask('DEL', '{gone}:ephemeral')
    proxy.heal()
    await until(() => other.delivered.length >= 4)
    t.strictSame(texts(other), ['0', '1', '3', '5'])
    t.strictSame(other.gaps, [])
    await one.publish('6', { ephemeral: true })
    await until(() => texts(other).includes('6'))
  })

  await t.test('a batch that came too late keeps its place before what was published after it', async t => {
    const connection = await connector(url, undefined, 20_000)(() => {}, new AbortController().signal)
    t.teardown(() => connection.destroy())
    class Store extends RedisStore {
      batches = 0
      override append (...[connection, batch, history]: Parameters<RedisStore['append']>): ReturnType<RedisStore['append']> {
        if (++this.batches > 1) return super.append(connection, batch, history)
        publish('2')
        return super.append(connection, { ...batch, remainingMs: () => -1_000 }, history)
      }
    }
    const store = new Store('too-late', 'writer', new ServerClock(), 20_000)
    const appender = new Appender(store, HISTORY, { publishTimeoutMs: 20_000, maxPendingBytes: 1 << 20, waitWhenDown: true })
    const published: Promise<Published>[] = []
    const publish = (data: string) => { published.push(appender.publish({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false })) }
    publish('0')
    publish('1')
    appender.serve(connection, () => {})
    const { epoch } = await store.greet(connection, { asked: 0 })
    const logged = async () => (await store.range(connection, epoch, 1, 3, new ReadSize())).map(({ message }) => message?.data).reverse()
    await until(async () => (await logged()).length === 3)
    t.ok(store.batches > 1)
    t.strictSame(await logged(), numbers(3))
    await until(() => {
      appender.skipped(epoch, 3)
      return Promise.race([Promise.all(published).then(() => true), sleep(5)])
    })
    t.strictSame((await Promise.all(published)).map(({ seq }) => seq), [1, 2, 3])
    await appender.close()
  })

  await t.test('a link that has become slow is degraded while its node is late', async t => {
    const proxy = await slowRedis({ port: server.port, test: t })
    const history = { maxBytes: 1 << 26 }
    const near = await open(t, { client: url, keyPrefix: 'late' }, history)
    const far = await open(t, { client: new Redis(proxy.url, { lazyConnect: true }), keyPrefix: 'late' }, history)
    proxy.bytesPerSecond = 500_000
    await Promise.all(numbers(150).map(() => near.publish('x'.repeat(50_000))))
    await until(() => /has \d+ events that this node has not read yet/.test(far.states.at(-1)!))
    proxy.bytesPerSecond = Infinity
    await until(() => far.states.at(-1) === 'up')
    t.equal(far.delivered.length, 150)
    t.strictSame(far.gaps, [])
  })

  await t.test('bytes of publishes that are answered make room again', async t => {
    const node = await open(t, { client: url, keyPrefix: 'room', maxPendingBytes: 10_000 })
    for (let round = 0; round < 10; round++) await Promise.all(numbers(4).map(() => node.publish('x'.repeat(1_000))))
    t.equal(node.delivered.length, 40)
  })

  await t.test('scripts are sent again to a Redis that has forgotten them', async t => {
    const node = await open(t, { client: url, keyPrefix: 'scripts' })
    await server.ask('SCRIPT', 'FLUSH')
    await node.publish('x')
    t.strictSame(texts(node), ['x'])
    t.strictSame(node.states, ['up'])
  })

  await t.test('closing answers what is pending', async t => {
    const node = await open(t, { client: url, keyPrefix: 'closing' })
    const publishes = numbers(300).map(n => node.publish(n))
    await node.broker.close()
    t.equal((await Promise.allSettled(publishes)).filter(({ status }) => status === 'fulfilled').length, 300)
    await t.rejects(node.publish('late'), { code: 'SSE_ERR_CLOSED' })
    await t.resolves(redisStreamsBroker({ client: url }).close(), 'one that was never opened')
  })
})

t.test('closing does not wait for a server that says nothing', async t => {
  const server = createServer(socket => socket.on('error', () => {})).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const url = `redis://127.0.0.1:${(server.address() as AddressInfo).port}`
  for (const client of [new Redis(url, { lazyConnect: true }), createClient({ url })]) {
    const node = await open(t, { client, replyTimeoutMs: 60_000, startTimeoutMs: 100, startDegraded: true })
    let closed = false
    node.broker.close().then(() => { closed = true })
    await until(() => closed, 20_000, 'it is closed')
  }
})

t.test('during an outage', { skip: withoutRedis }, async t => {
  const server = await start(t)
  const proxy = await slowRedis({ port: server.port, test: t })
  const client = () => new Redis(proxy.url, { lazyConnect: true })
  const patient = await open(t, { client: client(), waitWhenDown: true, publishTimeoutMs: 60_000 })
  const hasty = await open(t, { client: client(), waitWhenDown: true, publishTimeoutMs: 100 })
  proxy.cut()
  await until(() => [patient, hasty].every(({ states }) => states.at(-1) !== 'up'))

  // Made here, so that nothing but the broker can keep them.
  const rejected = numbers(10).map(n => {
    const message = { event: 'e', data: n, priority: EventPriority.NORMAL, target: {}, ephemeral: false }
    return { publishing: t.rejects(Promise.resolve(hasty.broker.publish(message)), unavailable), kept: new WeakRef(message) }
  })
  for (const { publishing } of rejected) await publishing
  await until(() => {
    collect()
    return rejected.every(({ kept }) => kept.deref() === undefined)
  }, undefined, 'what was rejected is forgotten')

  const waiting = t.rejects(patient.publish('waits'), { code: 'SSE_ERR_CLOSED' }, 'what waits is answered')
  let closed = false
  patient.broker.close().then(() => { closed = true })
  await until(() => closed, 20_000, 'closing does not wait for Redis')
  await waiting
})

t.test('a server that refuses', { skip: withoutRedis }, async t => {
  const server = await start(t)
  for (const [what, wrong, right, message] of [
    ['out of memory', ['CONFIG', 'SET', 'maxmemory', '1'], ['CONFIG', 'SET', 'maxmemory', '0'], /OOM/],
    ['a replica', ['REPLICAOF', '127.0.0.1', '1'], ['REPLICAOF', 'NO', 'ONE'], /READONLY/]
  ] as const) {
    const node = await open(t, { client: server.url, keyPrefix: 'refused' })
    await node.publish('before')
    await server.ask(...wrong)
    const error = await node.publish('refused').catch(error => error) as SSEError
    t.match(error, { ...unavailable, message: /cannot be written, Redis answers (OOM|READONLY); nothing was published/ }, what)
    t.match((error.cause as Error).message, message)
    await until(() => node.states.at(-1) !== 'up')
    t.match(node.states.at(-1), /^down: (?:OOM|READONLY|UNBLOCKED)/)
    await t.rejects(node.publish('down'), unavailable)
    await server.ask(...right)
    await until(() => node.states.at(-1) === 'up')
    await node.publish('after')
    t.strictSame(texts(node), ['before', 'after'])
    t.strictSame(node.gaps, [])
    await node.broker.close()
    await until(async () => await server.info('connected_clients') === 1, undefined, 'of all attempts no connection is left')
  }
})

t.test('while it is frozen', { skip: withoutRedis }, async t => {
  const server = await start(t)
  const short = { client: server.url, publishTimeoutMs: 300, replyTimeoutMs: 1_000 }
  const witness = await open(t, { client: server.url })
  const node = await open(t, short)
  const waiting = await open(t, { ...short, waitWhenDown: true, publishTimeoutMs: 5_000, maxPendingBytes: 10_000 })
  server.signal('SIGSTOP')
  const error = await node.publish('rejected').catch(error => error) as SSEError
  t.match(error, { ...unavailable, message: 'not known' })
  await until(() => node.states.at(-1)!.startsWith('down') && waiting.states.at(-1)!.startsWith('down'))
  t.match(node.states.at(-1), /did not answer within \d+ ms/)
  await t.rejects(node.publish('rejected too'), { ...unavailable, message: 'nothing was published' })
  const waited = Promise.allSettled(numbers(100).map(() => waiting.publish('x'.repeat(100))))
  server.signal('SIGCONT')
  const results = await waited
  const taken = results.filter(({ status }) => status === 'fulfilled').length
  t.ok(taken > 5 && taken <= 10_000 / 600, `${taken} waited, as many as there was room for`)
  t.match(results.find(({ status }) => status === 'rejected'), { reason: { ...unavailable, message: 'has reached maxPendingBytes; nothing was published' } })
  await until(() => node.states.at(-1) === 'up')
  await node.publish('after')
  await until(() => texts(witness).includes('after'))
  t.strictSame(texts(witness).filter(text => !text.startsWith('x')), ['after'], 'what was rejected does not come after all')
  t.equal(texts(witness).length, taken + 1)
  server.signal('SIGSTOP')
  await Promise.all([node, waiting, witness].map(({ broker }) => broker.close()))
  server.signal('SIGCONT')
})

t.test('neither the password nor what was published gets into the log', { skip: withoutRedis }, async t => {
  const server = await start(t)
  await server.ask('ACL', 'SETUSER', 'sse', 'on', '>right', '~*', '&*', '+@all')
  const url = (password: string) => `redis://sse:${password}@127.0.0.1:${server.port}`
  const clients: Record<string, (url: string) => RedisStreamsOptions['client']> = { ioredis: url => new Redis(url, { lazyConnect: true }), 'node-redis': url => createClient({ url }), 'a URL': url => url }
  for (const [name, client] of Object.entries(clients)) {
    const lines: string[] = []
    const logged = (password: string, startDegraded: boolean) => serve(t, { broker: redisStreamsBroker({ client: client(url(password)), startTimeoutMs: startDegraded ? 200 : 20_000, startDegraded }) }, { logger: { level: 'trace', stream: { write: line => { lines.push(line) } } } })
    const fail = async ({ app }: Service) => {
      const error: unknown = await app.sse.broadcastEvent({ data: 'confidential' }, { userIds: ['somebody'] }).then(() => null, error => error)
      t.match(error, unavailable)
      app.log.error(error)
    }
    const locked = await logged('hunter2', true)
    await fail(locked)
    await until(() => /WRONGPASS/.test(locked.app.sse.health().reason ?? ''), undefined, 'health names the reason')
    const service = await logged('right', false)
    await server.ask('CONFIG', 'SET', 'maxmemory', '1')
    await fail(service)
    await until(() => service.app.sse.health().status === 'degraded')
    await server.ask('CONFIG', 'SET', 'maxmemory', '0')
    for (const reason of ['WRONGPASS', 'OOM']) t.ok(lines.some(line => line.includes(reason)), `${name}: the reason is there`)
    for (const secret of ['hunter2', 'confidential', 'somebody']) t.strictSame(lines.filter(line => line.includes(secret)), [], `${name}: ${secret}`)
  }
})

t.test('an outage is logged once, and its end', { skip: withoutRedis }, async t => {
  const server = await start(t, '--appendonly', 'yes')
  const one = await open(t, { client: server.url })
  const after = await one.publish('seen')
  for (const n of numbers(10)) await one.publish(n)
  const lines: { level: number, msg: string, err?: object }[] = []
  const said = (level: number) => lines.filter(line => line.level === level && /event log/.test(line.msg)).map(({ msg }) => msg)
  const { app, join } = await serve(t, { broker: redisStreamsBroker({ client: server.url, startTimeoutMs: 20_000 }) }, { logger: { stream: { write: line => { lines.push(JSON.parse(line)) } } } })
  await server.kill()
  await until(() => app.sse.health().status === 'degraded')
  // What they have missed this node has not read yet.
  const clients = await Promise.all(numbers(3).map(async () => (await join(null, [], { cursor: formatCursor(one.broker.epoch, after.seq!) })).stream))
  await until(() => said(40).length > 0)
  const askedAt = performance.now()
  await until(() => performance.now() - askedAt > 1_500, undefined, 'it was asked for again')
  await server.run()
  for (const stream of clients) t.strictSame((await stream.collect(10, 'e')).map(({ data }) => data), numbers(10))
  await until(() => said(30).length === 2)
  t.match(lines.find(({ level }) => level === 50)!.err, { address: '127.0.0.1', port: server.port }, 'which server')
  t.strictSame([50, 40, 30].map(level => said(level).sort()), [['The event log cannot be reached'], ['Reading the event log failed; it is tried again every 500 ms'], ['The event log can be read again', 'The event log is reachable again']])
})

t.test('at boot', { skip: withoutRedis }, async t => {
  const server = await start(t, '--requirepass', 'right', '--databases', '2')
  const absent = await RedisServer.prepare()
  t.teardown(() => absent.stop())
  const withPassword = (password: string, path = '') => `redis://:${password}@127.0.0.1:${server.port}${path}`
  const refused: [name: string, client: RedisStreamsOptions['client'], reason: RegExp][] = [
    ['a wrong password, ioredis', new Redis(withPassword('wrong'), { lazyConnect: true }), /WRONGPASS/],
    ['a wrong password, node-redis', createClient({ url: withPassword('wrong') }), /WRONGPASS/],
    ['no password', server.url, /NOAUTH/],
    ['a database that is not there, ioredis', new Redis(withPassword('right', '/5'), { lazyConnect: true }), /out of range/],
    ['a database that is not there, node-redis', createClient({ url: withPassword('right', '/5') }), /out of range/],
    ['nothing there, ioredis', new Redis(absent.url, { lazyConnect: true }), /ECONNREFUSED/],
    ['nothing there, node-redis', createClient({ url: absent.url }), /ECONNREFUSED/],
    ['a host that does not exist', 'redis://nowhere.invalid:6379', /ENOTFOUND|EAI_AGAIN/]
  ]
  await Promise.all(refused.map(async ([name, client, reason]) => {
    const app = Fastify()
    t.teardown(() => app.close())
    const error = await Promise.resolve(app.register(ssePlugin, { broker: redisStreamsBroker({ client, startTimeoutMs: 1_500 }) })).then(() => null, error => error)
    t.match(error, { ...unavailable, message: /could not be reached within 1500 ms/ }, name)
    // Redis's words are for the log: a request that opens the manager is answered with the message.
    t.match((error?.cause as Error | undefined)?.message, reason, name)
  }))

  const service = await serve(t, { broker: redisStreamsBroker({ client: absent.url, startTimeoutMs: 200, startDegraded: true }) })
  const { stream } = await service.join()
  await t.rejects(service.app.sse.broadcastEvent({ event: 'x', data: 1 }), unavailable)
  t.equal((await service.app.sse.broadcastEvent({ event: 'x', data: 'local' }, { local: true })).delivered, 1, 'what needs no log goes on')
  await absent.run()
  await stream.next('sse:gap')
  t.strictSame(payloads(stream, 'sse:gap').map(({ reason }) => reason), ['epoch'])
  await until(() => service.app.sse.broadcastEvent({ event: 'x', data: 'shared' }).then(() => true, () => false))
  await stream.collect(2, 'x')
  t.strictSame(stream.named('x').map(({ data }) => data), ['local', 'shared'])
})
