import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import Fastify from 'fastify'
import { Redis } from 'ioredis'
import { redisStreamsBroker } from '../../lib/redis.js'
import ssePlugin, { type EventPriority, type SSEManager } from '../../lib/index.js'
import { listen } from '../helpers/app.js'
import { slowRedis } from '../../lib/testing/index.js'
import type { RedisServer } from '../helpers/redis.js'
import { SSEClient, type Block } from '../helpers/sse.js'
import { until } from '../helpers/wait.js'
import { parseLanes, type Lanes } from './model.js'

// Two nodes on one Redis, one of which lags at random, and clients that move between them in the middle of what they read.
// Nothing is trimmed here, so every gap is a fault, as is everything that comes twice, too early or not at all.

const CLIENTS = 3
const TOPICS = ['a', 'b'] as const
const KEYS = [null, null, 'k', 'l'] as const

export type NodeStep =
  | { do: 'publish', burst: number, pick: number, ephemeral: boolean }
  /** Node b hears nothing of Redis from now on, or only nothing new of the log. */
  | { do: 'hold', text: '' | 'XREAD' }
  | { do: 'release' }
  /** The client leaves, and goes to a node where it leaves after so many blocks; 0 never does. To none: it stays away. */
  | { do: 'move', who: number, to: 'a' | 'b' | null, blocks: number }
  | { do: 'wait', ms: number }

export const nodeSteps = fc.array(fc.oneof(
  { weight: 5, arbitrary: fc.record({ do: fc.constant('publish' as const), burst: fc.integer({ min: 1, max: 30 }), pick: fc.nat(1 << 20), ephemeral: fc.integer({ max: 4, min: 0 }).map(n => n === 0) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('hold' as const), text: fc.constantFrom('' as const, 'XREAD' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('release' as const) }) },
  { weight: 6, arbitrary: fc.record({ do: fc.constant('move' as const), who: fc.nat(CLIENTS - 1), to: fc.constantFrom('a' as const, 'b' as const, 'b' as const, null), blocks: fc.integer({ min: 0, max: 8 }) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('wait' as const), ms: fc.integer({ min: 0, max: 60 }) }) }
), { minLength: 10, maxLength: 60 })

interface Published {
  n: number
  /** 0 until it is known, and for an ephemeral one. */
  seq: number
  ephemeral: boolean
  priority: EventPriority
  topic: string
  key: string | null
}

/** One client over all its connections. */
class Traveller {
  readonly topics: readonly string[]
  readonly #base: string
  readonly received: { n: number, on: string, connection: number }[] = []
  #connections = 0
  cursor = ''
  #lanes: Lanes = [0, 0, 0, 0]
  #client: SSEClient | null = null
  #blocks = 0
  #leaveAt = Infinity
  readonly faults: string[] = []

  constructor (topics: readonly string[], index: number) {
    this.topics = topics
    this.#base = `topics=${topics.join()}&client=${index}`
  }

  /** @param blocks after which it leaves. */
  async connect (url: string, node: string, blocks = Infinity): Promise<void> {
    this.#blocks = 0
    this.#connections++
    this.#leaveAt = blocks
    const client = this.#client = new SSEClient(`${url}/sse?${this.#base}`, { headers: this.cursor === '' ? {} : { 'last-event-id': this.cursor } })
    client.onBlock = block => this.#take(block, node)
    await until(() => this.#blocks > 0, undefined, 'a stream')
  }

  /** Leaves no more. */
  async stay (url: string, node: string): Promise<void> {
    this.#leaveAt = Infinity
    if (this.#client === null || this.#client.closed || this.#client.left) await this.connect(url, node)
  }

  leave (): void {
    this.#client?.close()
    this.#client = null
  }

  #take ({ id, event, data, text }: Block, on: string): boolean {
    this.#blocks++
    if (id !== null) {
      const { lanes } = parseLanes(id)
      for (const [priority, seq] of lanes.entries()) if (seq < this.#lanes[priority]!) this.faults.push(`on ${on} the place went from ${this.cursor} back to ${id}`)
      this.cursor = id
      this.#lanes = lanes
    }
    if (event === 'sse:gap') this.faults.push(`on ${on} at ${this.cursor}: ${text}`)
    if (event === 'n') this.received.push({ n: JSON.parse(data!).n, on, connection: this.#connections })
    return this.#blocks < this.#leaveAt
  }

  /** Everything has come that should have. */
  missing (journal: readonly Published[]): number[] {
    const has = new Set(this.received.map(({ n }) => n))
    return journal.filter(event => !event.ephemeral && this.topics.includes(event.topic) && !has.has(event.n) &&
      (event.key === null || !journal.some(other => other.key === event.key && other.topic === event.topic && other.seq > event.seq))).map(({ n }) => n)
  }

  judge (journal: readonly Published[]): void {
    const seen = new Set<number>()
    const newest = new Map<string, number>()
    // Events of a priority come in the order in which they were published, and so do those of a key and topic: on one
    // connection all of them, over several the logged ones. No cursor tells a node that is late which ephemeral ones are past.
    for (const { n, on, connection } of this.received) {
      const { priority, topic, key, ephemeral } = journal[n]!
      if (seen.has(n)) {
        // No cursor tells which ephemeral events a client has had since the last logged one.
        if (!ephemeral) this.faults.push(`${n} twice, now on ${on}`)
        continue
      }
      seen.add(n)
      if (!this.topics.includes(topic)) this.faults.push(`${n} is foreign`)
      for (const line of key === null ? [`${priority}`] : [`${priority}`, `key ${key} ${topic}`]) {
        for (const place of ephemeral ? [`${line} on ${connection}`] : [line, `${line} on ${connection}`]) {
          if (n < (newest.get(place) ?? -1)) this.faults.push(`${n} after ${newest.get(place)} on ${on}`)
        }
        for (const place of [line, `${line} on ${connection}`]) newest.set(place, Math.max(n, newest.get(place) ?? -1))
      }
    }
    const missing = this.missing(journal)
    if (missing.length > 0) this.faults.push(`lost: ${missing.join()}`)
    assert.deepEqual(this.faults, [])
  }
}

/** How many clients have come with a cursor that was ahead of their node, and what else a run was worth. */
export async function travel (redis: RedisServer, name: string, steps: readonly NodeStep[], met: Record<string, number>): Promise<void> {
  const meet = (what: string, count = 1) => { met[what] = (met[what] ?? 0) + count }
  const proxy = await slowRedis({ port: redis.port })
  const urls: Record<string, string> = {}
  const managers: Record<string, SSEManager> = {}
  const apps = await Promise.all([['a', redis.url], ['b', proxy.url]].map(async ([node, url]) => {
    const app = Fastify()
    await app.register(ssePlugin, { drainMs: 200, keepAliveIntervalMs: 50, broker: redisStreamsBroker({ client: new Redis(url!, { lazyConnect: true }), keyPrefix: name, replyTimeoutMs: 2_000 }) })
    app.get('/sse', { sse: true }, async (request, reply) => {
      await reply.sse({ subscriptions: (request.query as { topics: string }).topics.split(',') })
    })
    urls[node!] = await listen(app)
    managers[node!] = app.sse
    return app
  }))
  const journal: Published[] = []
  const clients = [['a'], ['b'], ['a', 'b']].map((topics, index) => new Traveller(topics, index))
  try {
    for (const client of clients) await client.connect(urls['a']!, 'a')
    const publish = async (pick: number, ephemeral: boolean, last?: EventPriority): Promise<void> => {
      const event: Published = { n: journal.length, seq: 0, ephemeral, priority: last ?? (pick & 3) as EventPriority, topic: TOPICS[pick >> 2 & 1]!, key: last === undefined && !ephemeral ? KEYS[pick >> 3 & 3]! : null }
      journal.push(event)
      const { id } = await managers['a']!.broadcastEvent({ event: 'n', data: { n: event.n }, priority: event.priority, ...(event.key !== null && { key: event.key }) }, { subscriptionIds: [event.topic], ephemeral })
      if (id !== null) event.seq = parseLanes(id).lanes[0]
    }
    const position = (node: string): number => Number(managers[node]!.stats().messages)
    for (const step of steps) {
      meet(step.do)
      if (step.do === 'publish') await Promise.all(Array.from({ length: step.burst }, (_, i) => publish(step.pick * 31 + i * 7919 >>> 0, step.ephemeral)))
      else if (step.do === 'hold') proxy.hold(step.text)
      else if (step.do === 'release') proxy.release()
      else if (step.do === 'wait') await sleep(step.ms)
      else {
        const client = clients[step.who]!
        client.leave()
        if (step.to === null) continue
        if (step.to === 'b' && position('b') < position('a')) meet('moved to a node that is late')
        if (new Set(client.cursor.split('.')[1]?.split('~')).size > 1) meet('moved with a cursor in lanes')
        await client.connect(urls[step.to]!, step.to, step.blocks === 0 ? Infinity : step.blocks + 1)
      }
    }
    proxy.release()
    for (const client of clients) await client.stay(urls['b']!, 'b')
    for (const topic of [0, 4]) await publish(topic, false, 0)
    await until(() => clients.every(client => client.missing(journal).length === 0), undefined, 'all has come').catch(() => {})
    await sleep(20)
    for (const client of clients) client.judge(journal)
  } finally {
    for (const client of clients) client.leave()
    proxy.release()
    await Promise.all(apps.map(app => app.close()))
    await proxy.close()
  }
}
