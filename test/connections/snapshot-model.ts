import { randomInt } from 'node:crypto'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import ssePlugin, { type SSEConnection, type SSEOptions } from '../../lib/index.js'
import { EventParser, type ParsedEvent } from '../../lib/client/event-parser.js'
import { parseCursor } from '../../lib/log/cursor.js'
import { openStream, testLog, type TestBroker, type TestLog, type TestStream } from '../../lib/testing/index.js'
import { turns, until } from '../helpers/wait.js'
import { random } from './reading.js'

// Many clients with snapshots, on two nodes of which one lags: what they receive is compared with the state of the server. Each run has a
// seed of its own, which is printed. SEED=… begins with that one, COUNT=… repeats it with those that follow.

const SEED = Number(process.env['SEED'] ?? randomInt(2 ** 31))
const COUNT = Number(process.env['COUNT'] ?? 10)
const TOPICS = ['a', 'b', 'c'] as const
const STEPS = 150
t.comment(`SEED=${SEED}`)

type Topic = typeof TOPICS[number]

/** A change that was published, in the order of the log. */
interface Change {
  readonly topic: Topic
  readonly version: number
  readonly isKeyed: boolean
  readonly epoch: number
  readonly seq: number
  readonly priority: number
}

/** A place in the log, which can be wiped: epochs are numbered. */
type Place = { readonly epoch: number, readonly lanes: readonly number[] }

/** The server: two nodes, the state, and the changes of it. */
class World {
  readonly log: TestLog = testLog()
  readonly nodes: { app: FastifyInstance, broker: TestBroker, loading: number }[] = []
  readonly connections = new Map<string, SSEConnection>()
  readonly versions: Record<Topic, number> = { a: 0, b: 0, c: 0 }
  readonly changes = new Map<string, Change>()
  readonly faults: string[] = []
  readonly met: Record<string, number>
  readonly int: (below: number) => number
  readonly #epochs: string[] = []
  readonly #pad: string
  readonly #rows: number
  readonly #size: number
  readonly #maxConcurrent: number
  /** Number of loads that were started. */
  loads = 0
  isCalm = false

  constructor (seed: number, met: Record<string, number>) {
    const int = this.int = random(seed)
    this.met = met
    this.#pad = 'x é語🚀'.split('')[int(3)]! + ['', '語', '🚀'][int(3)]!
    this.#rows = [0, 0, 3, 12][int(4)]!
    this.#size = [10, 300, 3_000, 15_000][int(4)]!
    this.#maxConcurrent = 1 + int(3)
  }

  async start (t: Test): Promise<this> {
    const { int } = this
    const state = (this.#rows + 3) * this.#size * 4
    const options: SSEOptions = {
      outboxBytes: int(2) === 0 ? 3_000 : 1 << 20,
      maxQueuedBytes: int(3) === 0 ? state + 20_000 : 1 << 27,
      history: { maxEvents: int(3) === 0 ? 40 : 10_000 },
      ...(int(4) === 0 && { maxReplayEvents: 30 }),
      ...(int(5) === 0 && { flush: { intervalMs: 2 } }),
      drainMs: 500,
      stallTimeoutMs: 0
    }
    for (let n = 0; n < 2; n++) {
      const app = Fastify()
      const node = { app, broker: this.log.broker(), loading: 0 }
      t.teardown(() => app.close())
      await app.register(ssePlugin, { ...options, broker: node.broker })
      app.get('/:way', { sse: true }, async (request, reply) => {
        const { topics = '', name = '' } = request.query as { topics?: string, name?: string }
        const load = ({ subscriptions = TOPICS }: { subscriptions?: readonly string[] }): unknown => this.#load(node, subscriptions as readonly Topic[])
        const key = (request.params as { way: string }).way === 'shared' ? { key: 'all' } : {}
        this.connections.set(name, await reply.sse({ subscriptions: topics.split(','), snapshot: { ...key, maxConcurrent: this.#maxConcurrent, load } as never }))
      })
      await app.ready()
      this.nodes.push(node)
    }
    return this
  }

  async #load (node: { loading: number }, topics: readonly Topic[]): Promise<unknown> {
    const load = ++this.loads
    if (++node.loading > this.#maxConcurrent) this.faults.push(`${node.loading} loads at the same time`)
    try {
      await turns(this.int(8))
      if (!this.isCalm && this.int(25) === 0) throw new Error('no database')
      const events = [
        ...Array.from({ length: this.#rows }, () => ({ event: 'row', data: { text: this.text } })),
        ...topics.map(topic => ({ event: 'state', data: { topic, version: this.versions[topic], load, text: this.text } }))
      ]
      await turns(this.int(8))
      const isLazy = this.int(2) === 0
      return isLazy ? (async function * () { yield * events })() : events
    } finally {
      node.loading--
    }
  }

  get text (): string {
    return this.#pad.repeat(this.int(this.#size))
  }

  /** The number of an epoch. */
  epochOf (name: string): number {
    if (!this.#epochs.includes(name)) this.#epochs.push(name)
    return this.#epochs.indexOf(name)
  }

  placeOf (id: string): Place | null {
    const cursor = parseCursor(id)
    return cursor === null ? null : { epoch: this.epochOf(cursor.epoch), lanes: cursor.lanes }
  }

  covers ({ epoch, lanes }: Place, change: Change): boolean {
    return change.epoch < epoch || (change.epoch === epoch && change.seq <= lanes[change.priority]!)
  }

  async publish (): Promise<void> {
    const topic = TOPICS[this.int(3)]!
    const version = ++this.versions[topic]
    const priority = this.int(4) as 0 | 1 | 2 | 3
    const isKeyed = this.int(3) === 0
    const { id } = await this.nodes[0]!.app.sse.broadcastEvent({ event: 'change', data: { topic, version, text: 'x'.repeat(this.int(3) * 200) }, priority, ...(isKeyed && { key: topic }) }, { subscriptionIds: [topic] })
    const { epoch, lanes } = this.placeOf(id!)!
    this.changes.set(`${topic}${version}`, { topic, version, isKeyed, epoch, seq: lanes[0]!, priority })
  }

  count (what: string): void {
    this.met[what] = (this.met[what] ?? 0) + 1
  }
}

/** A client: applies states and changes by version, and notes what must not happen. */
class Client {
  readonly #world: World
  readonly #name: string
  readonly #way: 'own' | 'shared'
  /** The topics that it wants, with the number of loads that had been started when it asked. */
  readonly #wanted = new Map<Topic, number>([['a', 0]])
  /** Topics whose state was loaded after it asked for them. */
  readonly #confirmed = new Set<Topic>()
  readonly #held = new Map<Topic, number>()
  /** The position of the state of each topic. */
  readonly #base = new Map<Topic, Place>()
  readonly #received = new Set<string>()
  #cursor = ''
  #stream: TestStream | null = null
  #parser = new EventParser({ event () {}, comment () {}, retry () {}, lastEventId () {} })
  #consumed = 0
  readonly trace: string[] = []
  // --- Of the current stream ---
  #onStream = new Set<string>()
  #place: Place | null = null
  #group: { topic: Topic, version: number, load: number }[] | null = null
  #own = 0
  #sentOwn = 0
  #marks = new Set<string>()

  constructor (world: World, n: number) {
    this.#world = world
    this.#name = String(n)
    this.#way = world.int(2) === 0 ? 'own' : 'shared'
  }

  #fault (what: string): void {
    this.#world.faults.push(`client ${this.#name} (${this.#way}): ${what}`)
  }

  async open (t: Test): Promise<void> {
    const { int, nodes } = this.#world
    this.#consumed = this.#own = this.#sentOwn = 0
    this.#onStream = new Set()
    this.#group = this.#place = null
    this.#marks = new Set()
    if (this.#cursor === '' || this.#cursor.startsWith('!')) {
      for (const kept of [this.#held, this.#base, this.#received, this.#confirmed]) kept.clear()
    } else if (!this.#cursor.includes('!')) this.#place = this.#world.placeOf(this.#cursor)
    this.#parser = new EventParser({
      event: event => { this.#take(event) },
      comment () {},
      retry () {},
      lastEventId: id => { this.#cursor = id }
    })
    for (const topic of this.#wanted.keys()) this.#wanted.set(topic, this.#confirmed.has(topic) ? this.#wanted.get(topic)! : this.#world.loads)
    const query = new URLSearchParams({ name: this.#name, topics: [...this.#wanted.keys()].join(',') })
    for (const topic of this.#wanted.keys()) if (this.#cursor !== '' && !this.#confirmed.has(topic)) query.append('fresh', topic)
    const node = int(2)
    this.trace.push(`open ${node} ${query} ${this.#cursor}`)
    this.#stream = await openStream(nodes[node]!.app, `/${this.#way}?${query}`, { test: t, timeoutMs: 30_000, ...(this.#cursor !== '' && { lastEventId: this.#cursor }), ...(!this.#world.isCalm && int(5) === 0 && { readRate: 4_000_000 }) })
  }

  /** Reads what has arrived. */
  read (letters = Infinity): void {
    const text = this.#stream!.text.slice(this.#consumed, this.#consumed + letters)
    this.#consumed += text.length
    this.#parser.push(text)
  }

  #take ({ event, data, id }: ParsedEvent): void {
    const json = JSON.parse(data)
    this.trace.push(`${event} ${JSON.stringify({ ...json, text: undefined })} ${id}`)
    if (event === 'state' || event === 'row') {
      this.#group ??= []
      if (event === 'state') this.#group.push(json)
      if (id !== null) this.#applyState(id)
      return
    }
    if (event === 'sse:gap') {
      this.#world.count(`gap: ${json.reason}`)
      this.#group = this.#place = null
      return
    }
    if (event === 'sse:close') return this.#world.count(`end: ${json.reason}`)
    if (this.#group !== null) this.#fault(`${event} ${data.slice(0, 40)} in the middle of a state`)
    if (event === 'change') this.#applyChange(json)
    if (event === 'mark') this.#marks.add(json.mark)
    if (event !== 'own') return
    if (json.n <= this.#own) this.#fault(`own ${json.n} after ${this.#own}`)
    this.#own = json.n
  }

  #applyState (id: string): void {
    const [cursor = '', mark] = id.split('!')
    const place = this.#world.placeOf(cursor)
    if (place === null) return this.#fault(`a state with the id ${id}`)
    this.#world.count(mark === undefined ? 'state' : 'state, another is missing')
    for (const { topic, version, load } of this.#group!) {
      const asked = this.#wanted.get(topic)
      if (asked === undefined) continue
      const held = this.#held.get(topic) ?? 0
      if (version < held) this.#fault(`a state of ${topic}${version}, it has ${held}`)
      this.#held.set(topic, Math.max(version, held))
      this.#base.set(topic, place)
      if (load > asked) this.#confirmed.add(topic)
    }
    this.#group = null
    this.#place = place
  }

  #applyChange ({ topic, version }: { topic: Topic, version: number }): void {
    const name = `${topic}${version}`
    const change = this.#world.changes.get(name)
    if (this.#onStream.has(name)) this.#fault(`${name} twice`)
    if (change !== undefined && this.#place !== null && this.#world.covers(this.#place, change)) this.#fault(`${name} (${change.seq}) after its position ${JSON.stringify(this.#place)}`)
    this.#onStream.add(name)
    this.#received.add(name)
    if (this.#wanted.has(topic)) this.#held.set(topic, Math.max(version, this.#held.get(topic) ?? 0))
  }

  // --- What it does ---

  freeze (): void {
    if (this.#stream!.isOpen) this.#stream!.freeze()
  }

  thaw (): void {
    this.#stream!.thaw()
  }

  /** Breaks the connection. The last bytes that were on their way are lost. */
  async cut (): Promise<void> {
    this.read(this.#world.int(this.#stream!.text.length - this.#consumed + 1))
    if (this.#stream!.isOpen) await this.#stream!.cut()
  }

  /** Opens a stream in place of one that the server has ended. */
  async keep (t: Test): Promise<void> {
    if (this.#stream!.isOpen) return
    this.read()
    this.trace.push(`ended ${this.#cursor}`)
    if (this.#connection?.closeReason !== undefined) this.#world.count(`ended: ${this.#connection.closeReason}`)
    await this.open(t)
  }

  get #connection (): SSEConnection | undefined {
    return this.#world.connections.get(this.#name)
  }

  async add (topic: Topic): Promise<void> {
    if (this.#wanted.has(topic)) return
    this.read()
    this.#wanted.set(topic, this.#world.loads)
    this.trace.push(`add ${topic}`)
    await this.#connection!.addSubscription(topic).catch(() => {})
  }

  async remove (topic: Topic): Promise<void> {
    if (topic === 'a' || !this.#wanted.has(topic)) return
    this.#wanted.delete(topic)
    this.#base.delete(topic)
    this.#held.delete(topic)
    this.#confirmed.delete(topic)
    this.trace.push(`remove ${topic}`)
    await this.#connection!.removeSubscription(topic).catch(() => {})
  }

  sendOwn (): void {
    this.#connection!.sendEvent({ event: 'own', data: { n: ++this.#sentOwn, text: 'x'.repeat(this.#world.int(3) * 20_000) } })
  }

  // --- The end ---

  /** Whether it has its whole state, and a mark or a state after the mark, or its stream has ended. */
  hasMark (mark: string, id: string): boolean {
    this.read()
    if (!this.#stream!.isOpen) return true
    if (this.#cursor.includes('!')) return false
    if (this.#marks.has(mark)) return true
    const { epoch, lanes } = this.#world.placeOf(id)!
    return this.#place !== null && this.#place.epoch === epoch && Math.min(...this.#place.lanes) >= lanes[0]!
  }

  get isOpen (): boolean {
    return this.#stream!.isOpen
  }

  check (): void {
    const { versions, changes } = this.#world
    for (const topic of this.#wanted.keys()) {
      const base = this.#base.get(topic)
      if (base === undefined) {
        this.#fault(`has no state of ${topic}`)
        continue
      }
      if (this.#held.get(topic) !== versions[topic]) this.#fault(`ends with ${topic}${this.#held.get(topic)}, not ${versions[topic]}`)
      const missed = [...changes.values()].filter(change => change.topic === topic && !this.#world.covers(base, change))
      const newest = missed.findLast(({ isKeyed, version }) => isKeyed && this.#received.has(`${topic}${version}`))?.version ?? 0
      for (const { version, isKeyed } of missed) if (!this.#received.has(`${topic}${version}`) && !(isKeyed && version < newest)) this.#fault(`has never received ${topic}${version}`)
    }
  }

  async close (): Promise<void> {
    await this.#stream!.close()
  }
}

async function run (t: Test, seed: number, met: Record<string, number>): Promise<void> {
  const world = await new World(seed, met).start(t)
  const { int } = world
  const late = world.nodes[1]!.broker
  const clients = Array.from({ length: 2 + int(6) }, (_, n) => new Client(world, n))
  await world.publish()
  for (const client of clients) await client.open(t)
  const mayFail = int(6) === 0
  for (let step = 0; step < STEPS; step++) {
    const client = clients[int(clients.length)]!
    const x = int(100)
    await client.keep(t)
    if (x < 35) await world.publish()
    else if (x < 42) {
      await client.add(TOPICS[1 + int(2)]!)
      if (int(2) === 0) {
        // While the state is loaded.
        await turns(int(4))
        await world.publish()
        await client.remove(TOPICS[1 + int(2)]!)
        await clients[int(clients.length)]!.add(TOPICS[1 + int(2)]!)
      }
    } else if (x < 46) await client.remove(TOPICS[1 + int(2)]!)
    else if (x < 54) {
      await client.cut()
      await client.open(t)
      if (int(3) === 0) client.freeze()
    } else if (x < 62) client.freeze()
    else if (x < 72) client.thaw()
    else if (x < 77) client.sendOwn()
    else if (x < 79) for (let n = 0; n < 50; n++) await world.publish()
    else if (x < 82) late.lag()
    else if (x < 87) late.catchUp()
    else if (x < 88) world.log.trim()
    else if (x < 89 && int(3) === 0) world.log.wipe()
    else if (x < 90 && mayFail) late.fail()
    else if (x < 91) late.restore()
    else await turns(int(10))
  }
  world.isCalm = true
  late.restore()
  late.catchUp()
  for (const client of clients) client.thaw()
  for (let n = 0; ; n++) {
    const mark = `${seed}.${n}`
    for (const client of clients) await client.keep(t)
    const { id } = await world.nodes[0]!.app.sse.broadcastEvent({ event: 'mark', data: { mark }, priority: 0 })
    await until(() => clients.every(client => client.hasMark(mark, id!)), 20_000, `all clients have mark ${n}`).catch(error => { world.faults.push(error.message) })
    if (clients.every(({ isOpen }) => isOpen) || n === 100) break
  }
  for (const client of clients) client.check()
  for (const client of clients) await client.close()
  for (const { app: { sse } } of world.nodes) {
    await until(() => sse.connectionCount === 0)
    if (sse.stats().queuedBytes !== 0) world.faults.push(`${sse.stats().queuedBytes} bytes stay in memory`)
  }
  t.strictSame(world.faults, [], `SEED=${seed} COUNT=1`)
  if (world.faults.length > 0 && process.env['TRACE'] !== undefined) for (const [n, { trace }] of clients.entries()) t.comment(`client ${n}\n${trace.join('\n')}`)
}

t.test('clients of snapshots end with the state of the server', async t => {
  const met: Record<string, number> = {}
  for (let seed = SEED; seed < SEED + COUNT; seed++) await t.test(`SEED=${seed}`, { buffered: true }, t => run(t, seed, met))
  t.comment(JSON.stringify(met))
})
