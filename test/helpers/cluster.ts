import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { EventPriority, type Broker, type History, type OutgoingMessage, type Page, type Published, type ReadRequest, type Sink, type SSEOptions } from '../../lib/index.js'
import { memoryBroker } from '../../lib/log/memory-broker.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { startNode, type TestNode } from '../../lib/testing/index.js'
import { serve, type Service } from './app.js'
import { RedisServer, withoutRedis } from './redis.js'
import { until } from './wait.js'

// Two and more nodes on one log: real applications, a real redis-server, clients on sockets.

export const server = withoutRedis !== false ? null : await RedisServer.start()
t.teardown(async () => { await server?.stop() })

/** Each test has a log of its own. */
export const prefixes = { last: 0 }

export interface ClusterOptions extends SSEOptions {
  keyPrefix?: string
  redis?: Pick<RedisServer, 'url'>
  broker?: never
  startDegraded?: boolean
}

/** An application on the log of this name, as node `name`. */
export async function node (t: Test, name: string, { keyPrefix = `cluster-${process.pid}-${prefixes.last}`, redis = server!, startDegraded = false, cluster, ...options }: ClusterOptions = {}): Promise<Service> {
  const client = new Redis(redis.url, { lazyConnect: true })
  return await serve(t, {
    broker: redisStreamsBroker({ client, keyPrefix, replyTimeoutMs: startDegraded ? 1_000 : 10_000, publishTimeoutMs: 10_000, ...(startDegraded && { startDegraded, startTimeoutMs: 100 }) }),
    cluster: { nodeName: name, heartbeatIntervalMs: 200, ...cluster },
    ...options
  })
}

/** Nodes `a`, `b`, … on a log of their own, each of which has heard of all others. */
export async function nodes (t: Test, count: number, options: ClusterOptions = {}): Promise<Service[]> {
  prefixes.last++
  const services: Service[] = []
  for (let i = 0; i < count; i++) services.push(await node(t, 'abcdef'[i]!, options))
  await until(() => services.every(({ app }) => app.sse.clusterStats().nodes.length === count), undefined, 'the nodes know each other')
  return services
}

/** Starts a node as a process of its own on this log, which a test can kill and freeze: see cluster-node.ts. */
export async function startClusterNode (t: Test, keyPrefix: string, nodeName: string): Promise<TestNode> {
  return await startNode(new URL('cluster-node.ts', import.meta.url), { test: t, args: [server!.url, keyPrefix, nodeName], execArgv: ['--import=@tapjs/typescript/import'], timeoutMs: 120_000 })
}

/** A log in memory that other nodes could share, and what is said on it. */
export class TestLog implements Broker {
  readonly shared = true
  readonly #log = memoryBroker()
  epoch = 'one'
  sink: Sink | null = null
  readonly said: OutgoingMessage[] = []
  /** While set, messages with this text are not taken. */
  refuse: string | null = null
  refused = 0
  get position (): number { return this.#log.position }
  async open (sink: Sink, history: History): Promise<void> {
    this.sink = sink
    await this.#log.open(sink, history)
  }

  publish (message: OutgoingMessage): Published | Promise<Published> {
    if (message.event === 'sse:node') this.said.push({ ...message })
    if (this.refuse !== null && message.data.includes(this.refuse)) {
      this.refused++
      throw new Error('The other nodes are not reached')
    }
    return this.#log.publish(message)
  }

  read (request: ReadRequest): Promise<Page> { return this.#log.read({ ...request, epoch: this.#log.epoch }) }
  claim (key: string, ttlMs: number): Promise<boolean> { return this.#log.claim(key, ttlMs) }
  close (): Promise<void> { return this.#log.close() }

  /** Another node says something. */
  async hear (message: object): Promise<void> {
    await this.#log.publish({ event: 'sse:node', data: JSON.stringify({ from: 'x', ...message }), priority: EventPriority.NORMAL, target: {}, ephemeral: true })
  }

  sayings (kind: string): any[] {
    return this.said.map(({ data }) => JSON.parse(data)).filter(message => message.kind === kind)
  }
}

export const REPORT = { nodeId: 'x', name: 'x', startedAt: 0, connections: 0, users: 0, subscriptions: 0, status: 'up', everyMs: 60_000, present: null }
