import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { createClient } from '../../lib/client/index.js'
import { SSEManager } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { tie } from '../../lib/testing/tie.js'
import { serve } from '../helpers/app.js'
import { Namespace } from '../helpers/namespace.js'
import { Network } from '../helpers/network.js'
import { buildNode, startApplicationNode } from '../helpers/node.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

// Clients whose nodes are killed, one after the other, or whose network is gone, while events are published: each event arrives once and in order.

const CLIENTS = 30
const ROUNDS = 2
const EVENTS = 50

t.test('nodes are killed', { skip: withoutRedis, timeout: 300_000 }, async t => {
  const redis = await RedisServer.start()
  t.teardown(() => redis.stop())
  const main = buildNode(t)
  const nodes = [await startApplicationNode(t, main, redis.url), await startApplicationNode(t, main, redis.url)] as const
  const publisher = new SSEManager({ broker: redisStreamsBroker({ client: redis.url }) })
  t.teardown(() => publisher.close())
  const network = await Network.start(t, nodes[0].port)
  const clients = Array.from({ length: CLIENTS }, () => {
    const client = createClient(`${network.url}/sse`, { maxRetryMs: 1_000 })
    t.teardown(() => client.close())
    const received: number[] = []
    const gaps: unknown[] = []
    client.on('n', n => { received.push(n) })
    client.onGap(gap => { gaps.push(gap) })
    return { client, received, gaps }
  })
  await until(() => clients.every(({ client }) => client.state.name === 'open'), undefined, 'all clients are open')

  let published = 0
  const publish = (count: number) => Promise.all(Array.from({ length: count }, () => publisher.broadcastEvent({ event: 'n', data: ++published }, { subscriptionIds: ['topic:1'] })))
  for (let round = 0; round < ROUNDS; round++) {
    const [killed, other] = round % 2 === 0 ? nodes : [nodes[1], nodes[0]]
    const publishing = publish(EVENTS)
    await killed.kill()
    await publishing
    await until(() => clients.every(({ client }) => client.state.name !== 'open'), undefined, 'all clients have noticed')
    await publish(EVENTS)
    network.target = other.port
    await publish(EVENTS)
    await until(() => clients.every(({ received }) => received.length >= published), 60_000, `all clients have all events of round ${round}`)
    await killed.start()
  }
  const expected = Array.from({ length: published }, (_, i) => i + 1)
  t.equal(clients.filter(({ received }) => JSON.stringify(received) !== JSON.stringify(expected)).length, 0, `${published} events once and in order`)
  t.same(clients.flatMap(({ gaps }) => gaps), [])
})

t.test('a network that drops everything without a word is noticed by the silence', { timeout: 180_000 }, async t => {
  const namespace = Namespace.create(t)
  if (namespace === null) return
  const keepAliveIntervalMs = 2_000
  const { app } = await serve(t, { keepAliveIntervalMs }, {}, app => {
    app.get('/news', async (_request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
  })
  const url = await namespace.serve(t, app)
  const [command, ...args] = [...namespace.command, process.execPath, '--import=@tapjs/typescript/import', fileURLToPath(new URL('../helpers/client-process.ts', import.meta.url)), `${url}/news`]
  const child = tie(spawn(command!, args, { stdio: ['pipe', 'pipe', 'inherit'] }))
  t.teardown(() => { child.kill('SIGKILL') })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => { text += chunk })
  const lines = () => text.split('\n').slice(0, -1).map(line => JSON.parse(line) as { state?: string, n?: number, gap?: unknown })
  const state = () => lines().filter(({ state }) => state !== undefined).at(-1)?.state
  const numbers = () => lines().flatMap(({ n }) => n ?? [])
  let published = 0
  const publish = () => app.sse.broadcastEvent({ event: 'n', data: ++published }, { subscriptionIds: ['news'] })
  await until(() => state() === 'open', 60_000, 'the client is open')
  await publish()
  await until(() => numbers().length === 1)
  namespace.pullOut()
  const pulledAt = performance.now()
  // The kernel alone would not notice it: the client only reads.
  await until(() => state() !== 'open', 60_000, 'the client has noticed')
  t.comment(`noticed after ${Math.round(performance.now() - pulledAt)} ms, with keep-alives every ${keepAliveIntervalMs} ms`)
  for (let i = 0; i < 5; i++) await publish()
  namespace.plugIn()
  await until(() => numbers().length >= published, 60_000, 'the client has everything')
  t.same(numbers(), [1, 2, 3, 4, 5, 6], 'once and in order')
  t.same(lines().filter(({ gap }) => gap !== undefined), [])
})
