import { writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Agent, EventSource } from 'undici'
import { SSEManager } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { startNode } from '../../lib/testing/index.js'
import { transpile } from '../helpers/compiler.js'
import { buildNode } from '../helpers/node.js'
import { sampleOf } from '../helpers/pages.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { ReverseProxy, withoutProxy } from '../helpers/reverse-proxy.js'
import { until } from '../helpers/wait.js'

// Two nodes behind a load balancer that asks each whether it is ready, and never asks another one. As a Service of Kubernetes, it learns
// that a node stops only by the answer. Both are restarted: no request is refused, and no event is lost.

const CLIENTS = 30
/** Thirty times as long as the load balancer needs. */
const WAIT_MS = 3_000

const BALANCER = `
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout check 2s
  retries 0
  option httpchk GET /ready
  default-server check inter ${WAIT_MS / 30}ms fall 1 rise 1
listen web
  bind 127.0.0.1:PORT
  balance roundrobin
  server one 127.0.0.1:3001
  server two 127.0.0.1:3002
`

/** Opens streams one after the other, and keeps what is not a stream. */
class Visitors {
  readonly refused: string[] = []
  opened = 0
  #isStopped = false
  readonly #done: Promise<void>

  constructor (url: string) {
    this.#done = this.#visit(url)
  }

  async #visit (url: string): Promise<void> {
    while (!this.#isStopped) {
      const abort = new AbortController()
      await fetch(url, { headers: { accept: 'text/event-stream' }, signal: abort.signal }).then(
        ({ status, headers }) => { if (status !== 200 || headers.get('content-type') !== 'text/event-stream') this.refused.push(String(status)) },
        error => { this.refused.push(String(error.cause ?? error)) })
      this.opened++
      abort.abort()
      await sleep(20)
    }
  }

  async stop (): Promise<void> {
    this.#isStopped = true
    await this.#done
  }
}

t.test('nodes that say when they stop', { skip: withoutRedis || withoutProxy('haproxy'), timeout: 180_000 }, async t => {
  const redis = await RedisServer.start()
  t.teardown(() => redis.stop())
  const main = buildNode(t, 'test/helpers/ready-node.ts')
  const sample = join(dirname(main), 'sample.mjs')
  writeFileSync(sample, transpile(sampleOf('live-and-ready')).replace('10_000', String(WAIT_MS)).replace('10000', String(WAIT_MS)))
  const nodes = await Promise.all([0, 1].map(() => startNode(main, { test: t, args: [redis.url, sample], execArgv: [], timeoutMs: 60_000 })))
  const balancer = await ReverseProxy.start('haproxy', [nodes[0]!.port, nodes[1]!.port], BALANCER)
  t.teardown(() => balancer.stop())
  const readiness = (url: string) => fetch(`${url}/ready`).then(({ status }) => status, () => 0)
  await until(async () => await readiness(balancer.url) === 200)

  const dispatcher = new Agent()
  const clients = Array.from({ length: CLIENTS }, () => {
    const source = new EventSource(`${balancer.url}/sse`, { node: { dispatcher } })
    const texts: string[] = []
    source.addEventListener('n', event => { texts.push((event as MessageEvent).data as string) })
    t.teardown(() => source.close())
    return { source, texts }
  })
  const isConnected = () => clients.every(({ source }) => source.readyState === EventSource.OPEN)
  await until(isConnected)

  const publisher = new SSEManager({ broker: redisStreamsBroker({ client: redis.url }) })
  t.teardown(() => publisher.close())
  const published: string[] = []
  const publish = async () => {
    await publisher.broadcastEvent({ event: 'n', data: String(published.length) }, { subscriptionIds: ['news'] })
    published.push(String(published.length))
  }
  const visitors = new Visitors(`${balancer.url}/sse`)
  t.teardown(() => visitors.stop())

  for (const node of nodes) {
    await publish()
    const before = visitors.opened
    const stopping = node.stop()
    await until(async () => await readiness(node.url) === 503, undefined, 'the node says that it stops')
    while (node.isRunning) {
      await publish()
      await sleep(50)
    }
    t.equal(await stopping, 0, 'the node ends by itself')
    t.ok(visitors.opened > before, 'streams were opened meanwhile')
    await until(isConnected, undefined, 'all are on the other node')
    await publish()
    await node.start()
    await until(async () => await readiness(node.url) === 200, undefined, 'the node is ready')
    await until(async () => await fetch(`${balancer.url}/port`).then(response => response.text()) === String(node.port), undefined, 'the load balancer asks it again')
  }
  await publish()
  await until(() => clients.every(({ texts }) => texts.length >= published.length), undefined, 'all events have arrived')
  await visitors.stop()
  t.strictSame(visitors.refused, [], `none of ${visitors.opened} requests was refused`)
  for (const { texts } of clients) t.strictSame(texts, published)
  t.equal(clients.filter(({ source }) => source.readyState === EventSource.CLOSED).length, 0)
})
