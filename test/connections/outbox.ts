import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { gapFrame } from '../../lib/connections/control-frames.js'
import { Outbox } from '../../lib/connections/outbox.js'
import { Frame, FRAME_BYTES } from '../../lib/delivery/frame.js'
import { type EventPriority } from '../../lib/events/event-rules.js'
import { type Message } from '../../lib/events/message.js'
import type { Page } from '../../lib/log/broker.js'
import { formatLanes, parseCursor, type Lanes } from '../../lib/log/cursor.js'
import { Ring } from '../../lib/log/ring.js'
import { MemoryBudget } from '../../lib/util/memory-budget.js'
import { encodeIdBlock } from '../../lib/wire/event-stream.js'
import { EventStreamParser } from '../helpers/parser.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 300)
fc.configureGlobal({ includeErrorInReport: true })
const priority = fc.constantFrom<EventPriority>(0, 1, 2, 3)

// --- ring.ts ---

const EPOCH = 'e0'
const outgoing = { event: 'x', target: {}, ephemeral: false }

// --- outbox.ts ---

const FORM = /^[A-Za-z0-9._~-]{1,128}$/
const UNLIMITED = { maxEvents: 1e6, maxAgeMs: 1e12, maxBytes: 1e12 }

interface Publish { do: 'publish', priority: EventPriority, size: number, key: string | undefined, ephemeral: boolean, mine: boolean }

type Step = Publish
  | { do: 'take', count: number }
  | { do: 'drain', bytes: number }
  | { do: 'read', limit: number }
  | { do: 'apply' }
  | { do: 'cut' }
  | { do: 'renew' }
  | { do: 'neighbour', bytes: number }

interface Received {
  kind: 'logged' | 'ephemeral'
  n: number
  /** When it was published, among all events. */
  at: number
  priority: EventPriority
  key: string | undefined
}

/** What the client was told of: of each lane, all up to the place it is given with the gap. */
type Gap = readonly number[]

/**
 * A log, and one client that reads it through an outbox the way a connection does: published events are pushed as they
 * are delivered, a lagging lane is read in pages (other things happen between asking for a page and getting it), what the
 * socket takes is parsed, and now and then the connection is cut and comes back with the last id it saw.
 */
class World {
  readonly ring: Ring
  readonly budget: MemoryBudget
  readonly limit: number
  readonly client: EventStreamParser
  outbox: Outbox
  position = 0
  published = 0
  ephemerals = 0
  neighbours = 0
  /** All logged events for this client, oldest first. */
  readonly mine: Received[] = []
  readonly seen = new Map<number, Received>()
  readonly gaps: Gap[] = []
  readonly sizes = new Set<number>()
  /** Ephemeral events without a key given to this outbox, and what became of them. */
  pushed = 0
  got = 0
  refused = 0
  asked: { priority: EventPriority, after: number, page: Page } | null = null
  last: Lanes = [0, 0, 0, 0]
  readonly latest = [0, 0, 0, 0]
  /** Of each priority, as the publisher knows it. */
  readonly newest = [0, 0, 0, 0]
  statistics: Record<string, number>

  constructor (limit: number, history = UNLIMITED, budget = Infinity, statistics: Record<string, number> = {}) {
    this.limit = limit
    this.ring = new Ring(history, () => 0)
    this.budget = new MemoryBudget(budget)
    this.outbox = new Outbox(limit, this.budget)
    this.client = new EventStreamParser()
    this.statistics = statistics
    this.#greet()
  }

  /** The first block of a connection names its place, unless a gap comes first. */
  #greet (): void {
    const place = this.outbox.place(this.position)
    assert.ok(place !== null)
    this.client.push(Buffer.from(encodeIdBlock(formatLanes(EPOCH, place))))
    this.#place()
  }

  #count (what: string): void {
    this.statistics[what] = (this.statistics[what] ?? 0) + 1
  }

  /** Where the client would come back to; it never goes backwards. */
  #place (): void {
    const id = this.client.lastEventId
    assert.match(id, FORM)
    const { lanes } = parseCursor(id)!
    for (const [priority, seq] of lanes.entries()) assert.ok(seq >= this.last[priority]! && seq <= this.position, `${id} after ${this.last.join()}, at ${this.position}`)
    this.last = lanes
  }

  step (step: Step): void {
    switch (step.do) {
      case 'publish': this.publish(step); break
      case 'take': for (let i = 0; i < step.count && this.takeOne(); i++); break
      case 'drain': this.drain(step.bytes); break
      case 'read': this.read(step.limit); break
      case 'apply': this.apply(); break
      case 'cut': this.cut(); break
      case 'renew': if (this.outbox.idle) this.#replace(); break
      case 'neighbour':
        this.budget.add(step.bytes - this.neighbours)
        this.neighbours = step.bytes
    }
    this.checkBounds()
  }

  checkBounds (): void {
    const { bytes } = this.outbox
    assert.ok(bytes >= 0)
    // A single frame may be larger than the limit.
    assert.ok(bytes <= this.limit || this.sizes.has(bytes), `${bytes} bytes, limit ${this.limit}`)
    assert.equal(this.budget.used, this.neighbours + bytes)
  }

  publish ({ priority, size, key, ephemeral, mine }: Publish): void {
    const n = ephemeral ? ++this.ephemerals : this.position + 1
    const event: Received = { kind: ephemeral ? 'ephemeral' : 'logged', n, at: ++this.published, priority, key }
    const message: Message = {
      ...outgoing,
      priority,
      ephemeral,
      seq: ephemeral ? 0 : n,
      data: JSON.stringify({ ...event, filling: 'x'.repeat(size) }),
      target: { userIds: [mine ? 'me' : 'another'] },
      ...(key !== undefined && { key })
    }
    if (!ephemeral) this.ring.append(message)
    if (mine) {
      if (!ephemeral) this.mine.push(event)
      const frame = Frame.ofMessage(message, EPOCH)
      this.sizes.add(frame.bytes + FRAME_BYTES)
      const before = this.outbox.bytes
      const { dropped } = this.outbox
      const taken = this.outbox.push(frame, this.position)
      assert.ok(taken || ephemeral, 'a logged event is never dropped')
      assert.ok(this.budget.used <= this.budget.limit || this.outbox.bytes <= before, 'beyond the budget nothing more is taken')
      if (ephemeral && key === undefined) this.pushed++
      if (!taken) {
        this.refused++
        assert.ok(this.outbox.dropped > dropped)
      }
      if (this.outbox.lagging !== null) this.#count('lagging')
    }
    // As in the manager: a connection is given a message before the node's place moves on.
    if (!ephemeral) this.position = this.newest[priority] = n
  }

  /** What one write would carry. */
  #take (bytes: number): Received[] {
    const { text, frames: { length: count } } = this.outbox.take(bytes, EPOCH, this.position)
    const from = this.client.events.length
    this.client.push(Buffer.from(text))
    const events = this.client.events.slice(from)
    assert.equal(events.length, count)
    assert.ok(this.client.atRest)
    const received: Received[] = []
    for (const { type, data, lastEventId } of events) {
      if (type === 'sse:gap') {
        this.gaps.push(parseCursor(lastEventId)!.lanes)
        this.#count('gap')
        continue
      }
      const { filling, ...event } = JSON.parse(data) as Received & { filling: string }
      received.push(event)
      this.#checkOrder(event)
      if (event.kind === 'ephemeral') {
        if (event.key === undefined) this.got++
        continue
      }
      assert.ok(!this.seen.has(event.n), `${event.n} arrived twice`)
      this.seen.set(event.n, event)
    }
    this.#place()
    return received
  }

  /** Whatever is logged and more urgent, or of the same priority and older, has come before it; and nothing that replaces it has. */
  #checkOrder (event: Received): void {
    const { priority, at, key, kind } = event
    assert.ok(at > this.latest[priority]!, 'the order within a priority is kept')
    this.latest[priority] = at
    for (const older of this.mine) {
      if (older.priority < priority || (older.priority === priority && older.at >= at)) continue
      if (this.seen.has(older.n) || this.gaps.some(lanes => lanes[older.priority]! >= older.n)) continue
      const replaced = older.key !== undefined && this.mine.some(({ n, key }) => n > older.n && key === older.key)
      assert.ok(replaced, `${kind} ${event.n} of priority ${priority} came before ${older.n} of ${older.priority}`)
    }
    if (kind === 'logged' && key !== undefined) for (const newer of this.seen.values()) assert.ok(newer.key !== key || newer.n < event.n, `${event.n} is stale: ${newer.n} came before`)
  }

  takeOne (): boolean {
    const from = this.client.events.length
    this.#take(1)
    const taken = this.client.events.length - from
    assert.ok(taken <= 1)
    if (taken === 1) this.checkCut()
    return taken === 1
  }

  drain (bytes: number): void {
    const keys = new Set<string>()
    for (let i = 0; ; i++) {
      assert.ok(i < 10_000)
      const before = this.client.events.length
      const received = this.#take(bytes)
      if (this.client.events.length === before) break
      for (const { kind, key } of received) {
        if (key === undefined) continue
        assert.ok(!keys.has(kind + key), 'of one key only the newest waits')
        keys.add(kind + key)
      }
    }
    // What is left waits for the log.
    assert.ok(this.outbox.bytes === 0 || this.outbox.lagging !== null)
  }

  /** The first half of reading a page: the question. */
  read (limit: number): void {
    if (this.asked !== null) return
    const lane = this.outbox.ask(this.newest, this.position)
    if (lane === null) return
    this.asked = { ...lane, page: this.ring.read({ ...lane, limit }) }
  }

  /** The second half, some time later: the answer. */
  apply (): boolean {
    const asked = this.asked
    const now = this.outbox.lagging
    this.asked = null
    if (asked === null || now?.priority !== asked.priority || now.after !== asked.after) return false
    return fillFrom(this.outbox, asked.priority, asked.page, this.position, () => this.#count('refused refill'))
  }

  /** Ephemeral events without a key are received, dropped and counted, or still waiting: nothing else becomes of them. */
  #replace (): void {
    let waiting = 0
    this.outbox.restart(gapFrame('unknown', ''))
    const rest = new EventStreamParser().push(Buffer.from(this.outbox.take(Infinity, EPOCH, this.position).text))
    for (const { type, data } of rest.events) {
      if (type === 'sse:gap') continue
      const event = JSON.parse(data) as Received
      if (event.kind === 'ephemeral' && event.key === undefined) waiting++
    }
    const lost = this.pushed - this.got - waiting
    if (this.statistics['keyed ephemerals'] === undefined) assert.equal(this.outbox.dropped, lost)
    else assert.ok(this.outbox.dropped >= lost)
    assert.ok(this.outbox.dropped >= this.refused)
    assert.equal(this.outbox.bytes, 0)
    if (lost > 0) this.#count('dropped')
    this.outbox.discard()
    this.outbox = new Outbox(this.limit, this.budget)
    this.pushed = this.got = this.refused = 0
    this.asked = null
  }

  cut (): void {
    this.#replace()
    this.outbox.startAt(this.last, this.position)
    if (this.outbox.lagging !== null) this.#count('resumed behind')
    this.#greet()
  }

  /** THE CUT TEST: whoever leaves now and comes back with the last id it saw gets the rest: nothing is lost, nothing comes twice. */
  checkCut (): void {
    const { lanes } = parseCursor(this.client.lastEventId)!
    const again = new Outbox(this.limit, new MemoryBudget(Infinity))
    again.startAt(lanes, this.position)
    const replayed = new Set<number>()
    const gaps: Gap[] = [...this.gaps]
    const parser = new EventStreamParser()
    for (let i = 0; !again.idle; i++) {
      assert.ok(i < 10_000, 'catching up comes to an end')
      const lane = again.ask(this.newest, this.position)
      const before = again.bytes
      const applied = lane !== null && fillFrom(again, lane.priority, this.ring.read({ ...lane, limit: 3 }), this.position)
      if (!applied || again.bytes === before) parser.push(Buffer.from(again.take(1, EPOCH, this.position).text))
    }
    for (const { type, data, lastEventId } of parser.events) {
      if (type === 'sse:gap') {
        gaps.push(parseCursor(lastEventId)!.lanes)
        continue
      }
      const { n } = JSON.parse(data) as Received
      assert.ok(!this.seen.has(n) && !replayed.has(n), `${n} arrived twice, after ${this.client.lastEventId}`)
      replayed.add(n)
    }
    assert.deepEqual(again.place(this.position), new Array(4).fill(this.position))
    this.checkComplete(n => this.seen.has(n) || replayed.has(n), gaps)
  }

  /** Every logged event arrived, lies in a gap the client was told of, or was replaced by one with the same key of which that is true. */
  checkComplete (arrived: (n: number) => boolean, gaps: readonly Gap[]): void {
    const newest = new Map<string, number>()
    const isTold = ({ n, priority }: Received) => gaps.some(lanes => lanes[priority]! >= n)
    for (const event of this.mine) if (event.key !== undefined && (arrived(event.n) || isTold(event))) newest.set(event.key, event.n)
    for (const event of this.mine) {
      const { n, key } = event
      if (arrived(n)) continue
      if (key !== undefined && (newest.get(key) ?? 0) > n) {
        this.#count('conflated')
        continue
      }
      assert.ok(isTold(event), `${n} was lost, at ${this.client.lastEventId}`)
    }
  }

  /** The socket takes everything from now on. */
  finish (): void {
    for (let i = 0; !this.outbox.idle; i++) {
      assert.ok(i < 10_000, 'catching up comes to an end')
      this.read(4)
      if (!this.apply()) this.takeOne()
      this.checkBounds()
    }
    this.checkComplete(n => this.seen.has(n), this.gaps)
    this.#replace()
    assert.equal(this.budget.used, this.neighbours)
  }
}

/** What a connection does with a page. False when nothing of it could be used. */
function fillFrom (outbox: Outbox, priority: EventPriority, page: Page, position: number, refused?: () => void): boolean {
  if (page.gap !== undefined) {
    outbox.skip(gapFrame(page.gap, ''))
    assert.equal(outbox.place(position), null, 'no place is told before the gap')
    return true
  }
  let used = false
  for (const message of page.messages) {
    if (message.seq > position) break
    if (message.target.userIds![0] === 'me' && !outbox.refill(Frame.ofMessage(message, EPOCH))) {
      refused?.()
      assert.ok(outbox.bytes > 0, 'no room: something has to leave first')
      return used
    }
    outbox.advance(priority, message.seq, position)
    used = true
  }
  const before = outbox.lagging
  outbox.advance(priority, Math.min(page.next, position), position)
  return used || before?.priority !== outbox.lagging?.priority || before?.after !== outbox.lagging?.after
}

const size = fc.constantFrom(0, 0, 10, 50, 200, 700)

const publish = (keys: fc.Arbitrary<string | undefined>, ephemeralKeys: boolean) => fc.record({
  do: fc.constant('publish' as const), priority, size, key: keys, ephemeral: fc.constantFrom(false, false, true), mine: fc.constantFrom(true, true, true, false)
}).map(step => step.ephemeral && !ephemeralKeys ? { ...step, key: undefined } : step)

const steps = (published: fc.Arbitrary<Step>, maxLength: number): fc.Arbitrary<Step[]> => fc.array(fc.oneof(
  { weight: 12, arbitrary: published },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('take' as const), count: fc.integer({ min: 1, max: 4 }) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('drain' as const), bytes: fc.constantFrom(1, 300, 16_384) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('read' as const), limit: fc.integer({ min: 1, max: 6 }) }) },
  { weight: 4, arbitrary: fc.constant<Step>({ do: 'apply' }) },
  { weight: 1, arbitrary: fc.constant<Step>({ do: 'cut' }) },
  { weight: 1, arbitrary: fc.constant<Step>({ do: 'renew' }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('neighbour' as const), bytes: fc.constantFrom(0, 500, 5_000) }) }
), { maxLength, size: 'max' })
const limit = fc.constantFrom(1, 150, 400, 1_000, 3_000)
const noKey = fc.constant(undefined)
const someKeys = fc.constantFrom(undefined, 'k', 'k', 'l', 'm')

const variants = {
  'with a full log': { published: publish(noKey, false), history: UNLIMITED, budgets: [Infinity], must: ['lagging', 'dropped', 'resumed behind'] },
  'with keys': { published: publish(someKeys, false), history: UNLIMITED, budgets: [Infinity], must: ['lagging', 'dropped', 'conflated', 'resumed behind'] },
  'with keys on ephemeral events too': { published: publish(someKeys, true), history: UNLIMITED, budgets: [Infinity], must: ['lagging', 'dropped', 'conflated', 'resumed behind'], keyedEphemerals: true },
  'with a budget shared with others': { published: publish(someKeys, false), history: UNLIMITED, budgets: [200, 1_000, 5_100], must: ['lagging', 'dropped', 'resumed behind', 'refused refill'] },
  'with a log that is trimmed': { published: publish(someKeys, false), history: { ...UNLIMITED, maxEvents: 6 }, budgets: [Infinity, 1_000], must: ['lagging', 'dropped', 'gap', 'resumed behind'] }
}

for (const [name, { published, history, budgets, must, ...rest }] of Object.entries(variants)) {
  t.test(`the outbox ${name}: bounded, ordered, and exact wherever it is cut`, async t => {
    const statistics: Record<string, number> = 'keyedEphemerals' in rest ? { 'keyed ephemerals': 1 } : {}
    t.doesNotThrow(() => fc.assert(fc.property(limit, fc.constantFrom(...budgets), steps(published, 70), (limit, budget, steps) => {
      const world = new World(limit, history, budget, statistics)
      for (const step of steps) world.step(step)
      world.finish()
    }), { numRuns: 2 * RUNS }))
    for (const what of must) t.ok((statistics[what] ?? 0) > 10, `${what}: ${statistics[what]}`)
  })
}

t.test('an ephemeral event waits for what was logged before it, and no longer', async t => {
  const outbox = new Outbox(1 << 20, new MemoryBudget(1 << 20))
  const take = () => outbox.take(1 << 20, EPOCH, 5).frames.map(({ text }) => text)
  const read = (seq: number) => t.ok(outbox.refill(new Frame('', `${seq}`, 1, seq)))
  outbox.startAt([0, 0, 3, 3], 3)
  outbox.push(new Frame('', 'ephemeral', 1), 3)
  // Two more are logged meanwhile.
  read(1)
  read(2)
  t.strictSame(take(), ['1', '2'])
  read(3)
  t.strictSame(take(), ['3', 'ephemeral'])
  t.ok(outbox.lagging !== null, 'although the lane still lags')
  read(4)
  t.strictSame(take(), ['4'])
})

t.test('when all priorities begin to lag, those that lag already keep their position', async t => {
  const outbox = new Outbox(1 << 20, new MemoryBudget(1 << 20))
  outbox.startAt([3, 3, 10, 10], 10)
  t.equal(outbox.push(new Frame('', 'data: x\n\n', 2, 11), 10), true)
  outbox.lagFrom(12)
  t.strictSame(outbox.place(15), [3, 3, 10, 12])
  t.strictSame(outbox.lagging, { priority: 3, after: 12 })
  outbox.discard()
})
