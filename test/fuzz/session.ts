import assert from 'node:assert/strict'
import { createServer, type Server } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import Fastify, { type FastifyInstance } from 'fastify'
import ssePlugin, { SSEManager, type BroadcastOptions, type ConnectOptions, type EventPriority, type SSEConnection, type SSEOptions } from '../../lib/index.js'
import type { Log } from '../../lib/util/logger.js'
import { requestText } from '../helpers/raw.js'
import { AnswerReader, type Block } from '../helpers/sse.js'
import { onTrouble } from '../helpers/trouble.js'
import { turns, until } from '../helpers/wait.js'
import { isFor, Journal, Reader, SUBSCRIPTIONS, TOPICS, USERS, type Published } from './model.js'
import { Wire, type WireOptions } from './wire.js'

// One session of the fuzz: a server, some clients on wires of memory, and steps that are made of numbers only, so that
// they can be shrunk and replayed.

export interface Setup {
  front: 'fastify' | 'node'
  options: Omit<SSEOptions, 'authHandler' | 'extractAuthData'>
  wires: WireOptions[]
}

type Cursor = 'own' | 'fresh' | 'other' | 'garbage' | 'future' | 'epoch' | 'split'
type Audience = 'all' | 'user' | 'topic' | 'topics' | 'both' | 'client' | 'except' | 'filter' | 'nobody'

export type Step =
  | { do: 'connect', who: number, cursor: Cursor, gated: boolean }
  | { do: 'release' }
  | { do: 'publish', burst: number, priority: EventPriority, size: number, key: string | null, audience: Audience, pick: number, ephemeral: boolean, local: boolean }
  | { do: 'send', who: number, priority: EventPriority, size: number }
  | { do: 'turn', count: number }
  | { do: 'wait', ms: number }
  | { do: 'outlast' }
  | { do: 'read', who: number, bytes: number }
  | { do: 'stall' | 'flow' | 'cut' | 'finish', who: number }
  | { do: 'subscribe' | 'unsubscribe', who: number, pick: number, settle: boolean }
  | { do: 'close', who: number }
  | { do: 'disconnect', pick: number }
  | { do: 'look' }

// --- Arbitraries ---

const who = fc.nat(3)
const pick = fc.nat(7)
const priority = fc.constantFrom<EventPriority>(0, 1, 1, 2, 3)
const size = fc.constantFrom(0, 0, 30, 300, 900, 1500, 5000)
const step = (weight: number, arbitrary: fc.Arbitrary<Step>) => ({ weight, arbitrary })
const one = <D extends Step['do']>(name: D) => fc.constant(name)

export const steps: fc.Arbitrary<Step[]> = fc.array(fc.oneof(
  step(5, fc.record({ do: one('connect'), who, cursor: fc.constantFrom<Cursor>('own', 'own', 'own', 'own', 'fresh', 'other', 'garbage', 'future', 'epoch', 'split'), gated: fc.constantFrom(false, false, false, true) })),
  step(1, fc.record({ do: one('release') })),
  step(12, fc.record({
    do: one('publish'),
    burst: fc.constantFrom(1, 1, 1, 2, 5, 40),
    priority,
    size,
    key: fc.constantFrom(null, null, null, 'k', 'l'),
    audience: fc.constantFrom<Audience>('all', 'all', 'all', 'user', 'topic', 'topic', 'topics', 'both', 'client', 'except', 'filter', 'nobody'),
    pick,
    ephemeral: fc.constantFrom(false, false, false, true),
    local: fc.constantFrom(false, false, false, false, true)
  })),
  step(2, fc.record({ do: one('send'), who, priority, size })),
  step(6, fc.record({ do: one('turn'), count: fc.constantFrom(1, 1, 2, 5) })),
  step(1, fc.record({ do: one('wait'), ms: fc.constantFrom(5, 12, 40) })),
  step(1, fc.record({ do: one('outlast') })),
  step(6, fc.record({ do: one('read'), who, bytes: fc.constantFrom(1, 20, 100, 700, 3000, 50_000) })),
  step(4, fc.record({ do: one('stall'), who })),
  step(3, fc.record({ do: one('flow'), who })),
  step(3, fc.record({ do: one('cut'), who })),
  step(1, fc.record({ do: one('finish'), who })),
  step(2, fc.record({ do: one('subscribe'), who, pick, settle: fc.boolean() })),
  step(2, fc.record({ do: one('unsubscribe'), who, pick, settle: fc.boolean() })),
  step(1, fc.record({ do: one('close'), who })),
  step(1, fc.record({ do: one('disconnect'), pick })),
  step(1, fc.record({ do: one('look') }))
), { maxLength: 80, size: 'max' })

export const setups: fc.Arbitrary<Setup> = fc.record({
  front: fc.constantFrom('fastify', 'node'),
  options: fc.record({
    outboxBytes: fc.constantFrom(1024, 1024, 3000, 20_000, 1 << 20),
    maxQueuedBytes: fc.constantFrom(1024, 4000, 1 << 28, 1 << 28),
    history: fc.constantFrom({}, {}, { maxEvents: 1 }, { maxEvents: 4 }, { maxEvents: 30 }, { maxBytes: 8192 }),
    maxEventBytes: fc.constant(8192),
    maxReplayEvents: fc.constantFrom(0, 0, 0, 5),
    flush: fc.constantFrom<NonNullable<SSEOptions['flush']>>('immediate', 'immediate', 'immediate', { intervalMs: 1 }),
    keepAliveIntervalMs: fc.constantFrom(15_000, 15_000, 10),
    stallTimeoutMs: fc.constantFrom(0, 10),
    maxConnectionAgeMs: fc.constantFrom(0, 0, 0, 60),
    drainMs: fc.constantFrom(20, 1000)
  }),
  wires: fc.array(fc.record({ networkBytes: fc.constantFrom(0, 100, 2000, 1 << 20), socketBytes: fc.constantFrom(1, 500, 16_384) }), { minLength: 4, maxLength: 4 })
})

// --- The session ---

/** One attempt to open a stream, and what came of it. */
class Attempt extends AnswerReader {
  readonly wire: Wire
  gone = false
  opened = false

  constructor (options: WireOptions) {
    super()
    this.wire = new Wire(options, bytes => { this.push(bytes) })
  }

  override get left (): boolean {
    return this.gone
  }
}

class Client {
  readonly user: string | null
  readonly subscriptions = new Set<string>()
  /** Whether a change of the subscriptions is under way: it may hold these as well. */
  readonly unsettled = new Set<string>()
  reader: Reader
  attempt: Attempt | null = null
  connection: SSEConnection | null = null
  flowing = true

  constructor (user: string | null, reader: Reader) {
    this.user = user
    this.reader = reader
  }

  get certain () {
    return { user: this.user, subscriptions: this.subscriptions, clientId: this.connection?.clientId ?? null }
  }

  get possible () {
    return { ...this.certain, subscriptions: new Set([...this.subscriptions, ...this.unsettled]) }
  }
}

export class Session {
  readonly #setup: Setup
  readonly #journal: Journal
  readonly #clients: Client[]
  readonly #waiting: (() => void)[] = []
  readonly #entering: { client: Client, attempt: Attempt, options: ConnectOptions, gated: boolean }[] = []
  readonly #faults: unknown[] = []
  /** A line is a fault, unless it says that clients were disconnected that read nothing: many here do not. */
  readonly #log: Log = {
    error: (details, message) => { this.#faults.push({ message, details }) },
    warn: (details, message) => { if (!message.startsWith('Clients were disconnected')) this.#faults.push({ message, details }) },
    info: () => {},
    debug: () => {}
  }

  #server!: Server
  #app: FastifyInstance | null = null
  #sse!: SSEManager
  #epoch = ''
  #settling = false
  /** What a session has met, for the sum over all. */
  readonly met: Record<string, number> = {}

  constructor (setup: Setup) {
    this.#setup = setup
    const { maxEvents = Infinity, maxBytes } = setup.options.history ?? {}
    this.#journal = new Journal(maxBytes !== undefined ? 0 : maxEvents, setup.options.maxReplayEvents ?? 0)
    this.#clients = [0, 1, 2, 3].map(i => {
      const user = USERS[i % USERS.length]!
      return new Client(user, new Reader(this.#journal, '', null, { user, subscriptions: new Set(), clientId: null }))
    })
  }

  async run (steps: readonly Step[]): Promise<void> {
    const stop = onTrouble(what => { this.#faults.push(what) })
    try {
      await this.#open()
      for (const step of steps) {
        await this.#do(step)
        this.#check()
      }
      await this.#settle()
      await this.#shut()
      this.#check()
    } finally {
      for (const { attempt } of this.#clients) attempt?.wire.destroy()
      this.#waiting.forEach(release => release())
      await this.#app?.close()
      await this.#sse.close()
      stop()
    }
  }

  async #open (): Promise<void> {
    const { front, options } = this.#setup
    const authHandler = async ({ query }: { query: Readonly<Record<string, unknown>> }) => {
      const { gated, client } = this.#entering[Number(query['n'])]!
      if (gated && !this.#settling) await new Promise<void>(resolve => { this.#waiting.push(resolve) })
      return client.user
    }
    if (front === 'fastify') {
      const app = this.#app = Fastify()
      await app.register(ssePlugin, { ...options, authHandler })
      app.get('/', { sse: true }, async (request, reply) => {
        const entering = this.#entering[Number((request.query as { n: string }).n)]!
        this.#entered(entering, await reply.sse(entering.options))
      })
      await app.ready()
      this.#server = app.server
      this.#sse = app.sse
    } else {
      const sse = this.#sse = new SSEManager({ ...options, authHandler }, this.#log)
      this.#server = createServer(async (request, response) => {
        const entering = this.#entering[Number(new URL(request.url!, 'http://x').searchParams.get('n'))]!
        try {
          this.#entered(entering, await sse.createConnection({ request, response, ...entering.options }))
        } catch (error) {
          response.statusCode = (error as { statusCode?: number }).statusCode ?? 500
          response.end()
        }
      })
      await sse.open()
    }
    this.#epoch = (await this.#sse.broadcastEvent({ data: { n: 0 } })).id!.split('.')[0]!
    const first: Published = { n: 0, kind: 'logged', seq: 0, priority: 1, conflation: null, target: {}, audience: null }
    this.#journal.events.push(first)
    this.#journal.logged(first, 1)
  }

  #entered ({ client, attempt }: { client: Client, attempt: Attempt }, connection: SSEConnection): void {
    attempt.opened = true
    if (client.attempt !== attempt) return
    client.connection = connection
    // What names this connection by its id may be for it from now on.
    client.reader.changed(client.certain, client.possible)
    connection.signal.addEventListener('abort', () => {
      this.#meet(`end: ${String(connection.signal.reason.closeReason)}`)
      if (client.connection === connection) client.connection = null
    })
  }

  async #do (step: Step): Promise<void> {
    const client = 'who' in step ? this.#clients[step.who]! : null
    switch (step.do) {
      case 'connect': return this.#connect(client!, step.cursor, step.gated)
      case 'release': return this.#waiting.shift()?.()
      case 'publish': return await this.#publish(step)
      case 'send': return this.#send(client!, step)
      case 'turn': return await turns(step.count)
      case 'wait': return await sleep(step.ms)
      case 'outlast': return await this.#outlast()
      case 'read': return client!.attempt?.wire.carry(step.bytes)
      case 'stall': return this.#flow(client!, false)
      case 'flow': return this.#flow(client!, true)
      case 'cut': return this.#cut(client!)
      case 'finish': return client!.attempt?.wire.finish()
      case 'subscribe': case 'unsubscribe': return await this.#subscribe(client!, SUBSCRIPTIONS[step.pick % SUBSCRIPTIONS.length]!, step.do === 'subscribe', step.settle)
      case 'close': return client!.connection?.close('kicked')
      case 'disconnect': {
        const user = USERS[step.pick % USERS.length]!
        if (user !== null) await this.#sse.disconnectUser(user)
        return
      }
      case 'look': return this.#look()
    }
  }

  /** Waits until all that are open now are too old; where there is no age, for longer than a client that takes nothing may. */
  async #outlast (): Promise<void> {
    if (this.#setup.options.maxConnectionAgeMs === 0) return await sleep(30)
    const open = this.#clients.flatMap(({ connection }) => connection ?? [])
    await until(() => open.every(({ closeReason }) => closeReason !== null), undefined, 'connections have a maximum age')
  }

  #connect (client: Client, from: Cursor, gated: boolean): void {
    if (client.attempt !== null) this.#cut(client)
    const { reader } = client
    const other = this.#clients[(this.#clients.indexOf(client) + 1) % this.#clients.length]!.reader.cursor
    const own = reader.cursor
    const cursor = {
      own,
      fresh: null,
      other,
      garbage: 'x'.repeat(200),
      future: `${this.#epoch}.zzzz`,
      epoch: 'another.1',
      // Lanes as a stranger would make them up.
      split: `${this.#epoch}.0~${this.#journal.position.toString(36)}~0~1`
    }[from]
    const resumes = from === 'own' && cursor !== null
    if (resumes) reader.returned(client.certain)
    else client.reader = new Reader(this.#journal, this.#epoch, cursor, client.certain)
    client.reader.keepsUp &&= this.#setup.options.outboxBytes! >= 1 << 20 && this.#setup.options.maxQueuedBytes! > 1 << 20 && client.flowing && this.#wire(client).networkBytes >= 1 << 20
    const attempt = client.attempt = new Attempt(this.#wire(client))
    const current = client.reader
    attempt.onBlock = block => {
      try {
        this.#note(block)
        current.take(block, attempt)
      } catch (error) {
        this.#faults.push(error)
      }
      return true
    }
    attempt.wire.flow(client.flowing)
    const n = this.#entering.push({ client, attempt, options: { subscriptions: [...client.subscriptions] }, gated }) - 1
    this.#server.emit('connection', attempt.wire)
    attempt.wire.push(requestText({ path: `/?n=${n}`, headers: cursor === null ? {} : { 'last-event-id': cursor } }))
    this.#meet(`connect: ${from}`)
  }

  #wire (client: Client): WireOptions {
    return this.#setup.wires[this.#clients.indexOf(client)]!
  }

  #note ({ event, data }: Block): void {
    if (event === 'sse:gap') this.#meet(`gap: ${JSON.parse(data!).reason}`)
    else if (data !== null) this.#meet('received')
  }

  #meet (what: string): void {
    this.met[what] = (this.met[what] ?? 0) + 1
  }

  #cut (client: Client): void {
    const { attempt } = client
    if (attempt === null) return
    attempt.gone = true
    attempt.wire.cut()
    client.attempt = null
    client.connection = null
  }

  #flow (client: Client, flowing: boolean): void {
    client.flowing = flowing
    if (!flowing) client.reader.keepsUp = false
    client.attempt?.wire.flow(flowing)
  }

  #target (audience: Audience, pick: number): BroadcastOptions {
    const topic = TOPICS[pick % TOPICS.length]!
    const user = USERS[pick % 2]!
    const clientId = this.#clients[pick % this.#clients.length]!.connection?.clientId
    const clientIds = clientId === undefined ? ['nobody'] : [clientId]
    switch (audience) {
      case 'all': return {}
      case 'user': return { userIds: [user] }
      case 'topic': return { subscriptionIds: [topic] }
      case 'topics': return { subscriptionIds: [...TOPICS] }
      case 'both': return { userIds: ['ada', 'bob'], subscriptionIds: [topic] }
      case 'client': return { clientIds }
      case 'except': return { exceptClientIds: clientIds }
      case 'filter': return { filter: ({ userId }) => userId === 'ada' }
      case 'nobody': return { subscriptionIds: [] }
    }
  }

  async #publish ({ burst, priority, size, key, audience, pick, ephemeral, local }: Step & { do: 'publish' }): Promise<void> {
    const target = this.#target(audience, pick)
    const logged = !ephemeral && !local
    const results = Array.from({ length: burst }, async () => {
      const event: Published = {
        n: this.#journal.events.length,
        kind: logged ? 'logged' : 'ephemeral',
        seq: 0,
        priority,
        conflation: key === null || !logged ? null : JSON.stringify([key, audience, target]),
        target,
        audience: logged ? null : new Set(this.#clients.filter(client => isFor(target, client.possible)).map(({ attempt }) => attempt))
      }
      this.#journal.events.push(event)
      const before = this.#receivers(target)
      for (const client of this.#clients) client.reader.published(event, client.certain, client.possible)
      const { id, delivered } = await this.#sse.broadcastEvent({ data: { n: event.n, x: 'x'.repeat(size) }, priority, ...(key !== null && { key }) }, { ...target, ephemeral, local })
      // Some may have come, gone or subscribed in these microtasks.
      const after = this.#receivers(target)
      assert.ok(delivered <= Math.max(before, after), `delivered to ${delivered}, not ${before} or ${after}`)
      assert.ok(!logged || delivered >= Math.min(before, after), `delivered to ${delivered}, not ${before} or ${after}`)
      assert.equal(id === null, !logged)
      if (id !== null) this.#journal.logged(event, parseInt(id.split('.')[1]!, 36))
    })
    await Promise.all(results)
    this.#meet(logged ? 'logged' : 'ephemeral')
  }

  #receivers (target: BroadcastOptions): number {
    return [...this.#sse.connections()].filter(({ closeReason, clientId, userId, subscriptions }) =>
      closeReason === null && isFor(target, { user: userId, subscriptions, clientId })).length
  }

  #send ({ connection, attempt, reader }: Client, { priority, size }: Step & { do: 'send' }): void {
    if (connection === null) return
    const { length: n } = this.#journal.events
    const event: Published = { n, kind: 'direct', seq: 0, priority, conflation: null, target: {}, audience: new Set([attempt]) }
    this.#journal.events.push(event)
    if (!connection.sendEvent({ data: { n, x: 'x'.repeat(size) }, priority })) reader.keepsUp = false
  }

  async #subscribe (client: Client, subscription: string, wanted: boolean, settle: boolean): Promise<void> {
    const { connection, attempt } = client
    if (connection === null || client.unsettled.size > 0) return
    client.subscriptions.delete(subscription)
    client.unsettled.add(subscription)
    client.reader.changed(client.certain, client.possible)
    const change = (wanted ? connection.addSubscription(subscription) : connection.removeSubscription(subscription).then(() => {})).then(() => {
      // A stream that the client has opened since does not have it.
      if (wanted && client.attempt === attempt) client.subscriptions.add(subscription)
    }, error => {
      // It has ended meanwhile: then it holds nothing.
      if (error.code !== 'SSE_ERR_UNKNOWN_CONNECTION') this.#faults.push(error)
    }).finally(() => {
      client.unsettled.delete(subscription)
      client.reader.changed(client.certain, client.possible)
    })
    if (settle) await change
  }

  #look (): void {
    const { outboxBytes = 0 } = this.#setup.options
    let queued = 0
    for (const connection of this.#sse.connections()) {
      const { queuedBytes, droppedEvents, sentEvents } = connection.stats()
      assert.ok(queuedBytes >= 0 && droppedEvents >= 0 && sentEvents >= 0)
      // The outbox or one larger event, the turn's batch, and what is left of a write.
      assert.ok(queuedBytes <= 2 * outboxBytes + 20_000 + 65_536, `${queuedBytes} bytes wait`)
      queued += queuedBytes
    }
    const stats = this.#sse.stats()
    assert.equal(stats.queuedBytes, queued)
    assert.equal(stats.connections, [...this.#sse.connections()].length)
  }

  #check (): void {
    if (this.#faults.length > 0) throw this.#faults[0]
  }

  /** All come back, read everything, and should have seen it all. */
  async #settle (): Promise<void> {
    this.#settling = true
    for (const release of this.#waiting.splice(0)) release()
    for (const client of this.#clients) this.#flow(client, true)
    // A keep-alive that is always due never lets a client be quiet; ages end streams over and over.
    const deadline = Date.now() + 60_000
    for (const client of this.#clients) {
      for (let quiet = 0; quiet < 5;) {
        assert.ok(Date.now() < deadline, `no end: ${client.attempt?.status} ${JSON.stringify(client.connection?.stats())} ${client.attempt?.wire.inFlight}`)
        this.#check()
        const { attempt, connection } = client
        const ended = attempt === null || attempt.ended || attempt.wire.destroyed || (attempt.opened && connection === null)
        if (ended && (attempt === null || attempt.wire.inFlight === 0)) {
          this.#connect(client, 'own', false)
          quiet = 0
        }
        await turns(1)
        const stats = client.connection?.stats()
        quiet = stats !== undefined && !stats.lagging && stats.queuedBytes === 0 && client.attempt!.wire.inFlight === 0 && client.attempt!.blocks.length > 0 ? quiet + 1 : 0
        if (this.#setup.options.flush !== 'immediate') await sleep(1)
      }
      this.#check()
      client.reader.settled()
    }
  }

  async #shut (): Promise<void> {
    if (this.#app !== null) await this.#app.close()
    await this.#sse.close()
    const { connections, users, subscriptions, lagging, queuedBytes, closed } = this.#sse.stats()
    assert.deepEqual({ connections, users, subscriptions, lagging, queuedBytes }, { connections: 0, users: 0, subscriptions: 0, lagging: 0, queuedBytes: 0 })
    assert.ok(Object.values(closed).reduce((a, b) => a + b, 0) <= this.#entering.length)
    await turns(3)
  }
}
