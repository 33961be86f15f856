import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, createServer, type AddressInfo } from 'node:net'
import fc from 'fast-check'
import t from 'tap'
import type { Broker, Page } from '../lib/log/broker.js'
import { type Message, bytesOf } from '../lib/events/message.js'
import type { Target } from '../lib/events/target.js'
import { MemoryBudget } from '../lib/util/memory-budget.js'
import { ReplayScheduler, type Reader, type Turns } from '../lib/delivery/replay-scheduler.js'
import { formatLanes, parseCursor, type Lanes } from '../lib/log/cursor.js'
import { SSEError } from '../lib/errors.js'
import { type EventPriority } from '../lib/events/event.js'
import { encodeIdBlock } from '../lib/wire/encoding.js'
import { Flusher, type Flushable } from '../lib/delivery/flusher.js'
import { Frame, FRAME_BYTES } from '../lib/delivery/frame.js'
import { Outbox } from '../lib/connections/outbox.js'
import { gapFrame } from '../lib/connections/control-frames.js'
import { warnings } from '../lib/util/logger.js'
import { Registry, type Member } from '../lib/subscriptions/registry.js'
import { Ring } from '../lib/log/ring.js'
import { PatternIndex } from '../lib/subscriptions/pattern-index.js'
import { assertSubscription, assertTopic, covers, isPattern } from '../lib/events/topic.js'
import { TimingWheel, type Timed } from '../lib/connections/timing-wheel.js'
import { inTime } from '../lib/util/timeout.js'
import { EventStreamParser } from './helpers/parser.js'
import { turns, until } from './helpers/wait.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 300)
fc.configureGlobal({ includeErrorInReport: true })
const priority = fc.constantFrom<EventPriority>(0, 1, 2, 3)

// --- timing-wheel.ts, timeout.ts ---

t.test('a turn of the wheel that comes late counts as two ticks of the time that the event loop has run', async t => {
  let now = 1000
  const wheel = new TimingWheel(10, () => now)
  const after = (ms: number): number => {
    now += ms
    return wheel.ran
  }
  t.equal(after(0), 0)
  t.equal(after(7), 7, 'also between turns')
  wheel.turn()
  t.equal(after(20), 27, 'a tick late is no standstill')
  t.equal(after(1), 27, 'and it never goes back')
  wheel.turn()
  t.equal(after(5000), 47, 'but this is')
  wheel.turn()
  t.equal(after(10), 57)
})

t.test('after the event loop stood still, a reply that has arrived meanwhile is in time', async t => {
  const server = createServer(socket => { socket.on('error', () => {}).end('reply') })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1')
  await once(server, 'connection')
  const reply = inTime(once(socket, 'data'), 50)
  const until = performance.now() + 200
  while (performance.now() < until);
  t.equal(String((await reply)[0]), 'reply')
  await t.rejects(inTime(new Promise(() => {}), 10), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
})

// --- topic.ts ---

t.test('the grammar of topics and subscriptions', async t => {
  const topics = ['a', 'a:b', 'user:1', 'chat:général', '日本:東京', '😀', 'a.b-c_d/e', 'x'.repeat(512), new Array(32).fill('a').join(':')]
  const patterns = ['*', '**', 'a:*', '*:a', 'a:*:b', 'a:**', '*:**', 'a:*:*:**']
  const neither = [
    '', ':', 'a:', ':a', 'a::b', 'a b', 'a\tb', 'a\n', ' a', 'a\u00a0b', 'a\0b', 'a\u200bb', 'a\u202eb', '\ud800', 'a*', '*a', 'a*:b', '***', '**:a', 'a:**:b', '**:**', 'a:***',
    'e\u0301', 'x'.repeat(513), new Array(33).fill('a').join(':'), undefined, null, 1, {}, ['a'], Symbol('a'), Object.create(null)]
  for (const topic of topics) {
    t.doesNotThrow(() => assertTopic(topic))
    t.doesNotThrow(() => assertSubscription(topic))
    t.notOk(isPattern(topic))
  }
  for (const pattern of patterns) {
    t.throws(() => assertTopic(pattern), { code: 'SSE_ERR_INVALID_TOPIC' })
    t.doesNotThrow(() => assertSubscription(pattern))
    t.ok(isPattern(pattern))
  }
  for (const wrong of neither) {
    t.throws(() => assertTopic(wrong), { code: 'SSE_ERR_INVALID_TOPIC' })
    t.throws(() => assertSubscription(wrong), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
  }
})

t.test('the grammar, for arbitrary text', async t => {
  const part = fc.oneof(fc.constantFrom(':', '*', '**', ':*', ':**', 'a', 'b:', ' ', '\0', '\ud800', '\u2028', '\ufeff', '\ufffd', '\u180b', '\u{e0100}', 'é', 'e\u0301', '😀'), fc.string({ unit: 'binary', maxLength: 3 }))
  const text = fc.array(part, { maxLength: 8 }).map(parts => parts.join(''))
  const plain = (segment: string) => segment !== '' && [...segment].every(c => c !== ':' && c !== '*' && !/\s/.test(c) && c !== '\ufffd' && !/\p{C}|\p{Default_Ignorable_Code_Point}/u.test(c))
  const valid = (text: string, wildcards: boolean) => text.normalize('NFC') === text && text.split(':').every((segment, i, all) =>
    plain(segment) || (wildcards && (segment === '*' || (segment === '**' && i === all.length - 1))))
  let accepted = 0
  t.doesNotThrow(() => fc.assert(fc.property(text, text => {
    for (const [check, wildcards] of [[assertTopic, false], [assertSubscription, true]] as const) {
      let refused = false
      try {
        check(text)
        accepted++
      } catch (error) {
        assert.ok(error instanceof SSEError)
        refused = true
      }
      assert.equal(refused, !valid(text, wildcards))
    }
  }), { numRuns: 3 * RUNS }))
  t.ok(accepted > 0)
})

const segment = fc.constantFrom('a', 'b', 'c')
const topic = fc.array(segment, { minLength: 1, maxLength: 5 }).map(segments => segments.join(':'))
const pattern = fc.tuple(fc.array(fc.oneof(segment, fc.constant('*')), { maxLength: 4 }), fc.boolean())
  .map(([segments, rest]) => [...segments, ...(rest || segments.length === 0 ? ['**'] : [])].join(':'))

/** The grammar's sentence, letter by letter: `*` is one segment, a last `**` zero or more. */
function coversNaively (wanted: string[], given: string[]): boolean {
  if (wanted.length === 0) return given.length === 0
  const [first, ...rest] = wanted
  if (first === '**') return true
  return given.length > 0 && (first === '*' || first === given[0]) && coversNaively(rest, given.slice(1))
}

t.test('a subscription covers what the grammar says', async t => {
  t.doesNotThrow(() => fc.assert(fc.property(fc.oneof(pattern, topic), topic, (subscription, topic) => {
    assert.equal(covers(subscription, topic), coversNaively(subscription.split(':'), topic.split(':')))
  }), { numRuns: 5 * RUNS }))
  t.ok(covers('user:1:**', 'user:1') && covers('user:1:**', 'user:1:a:b') && covers('**', 'a:b'))
  t.notOk(covers('user:1:**', 'user:10') || covers('user:*', 'user') || covers('user:*', 'user:1:a') || covers('user', 'user:1') || covers('*', 'a:b'))
})

t.test('the index of patterns finds those that cover a topic, through any history of changes', async t => {
  const step = fc.record({ pattern, remove: fc.boolean(), topic })
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(step, { maxLength: 60, size: 'max' }), steps => {
    const index = new PatternIndex<string>()
    const model = new Set<string>()
    for (const { pattern, remove, topic } of steps) {
      if (remove) {
        index.delete(pattern)
        model.delete(pattern)
      } else {
        index.set(pattern, pattern)
        model.add(pattern)
      }
      assert.equal(index.size, model.size)
      // Twice: the second answer comes from the cache.
      for (let i = 0; i < 2; i++) assert.deepEqual([...index.match(topic)].sort(), [...model].filter(pattern => covers(pattern, topic)).sort())
    }
    for (const pattern of model) index.delete(pattern)
    assert.equal(index.size, 0)
  }), { numRuns: RUNS }))
})

t.test('hostile topics and patterns cost what they are long', async t => {
  // Each of these would not end within this test's time if there were any going back.
  const a32 = new Array(32).fill('a').join(':')
  t.ok(covers(new Array(31).fill('*').join(':') + ':**', a32))
  t.notOk(covers(new Array(31).fill('*').join(':') + ':b', a32))
  for (const long of ['a:'.repeat(5_000_000), '*'.repeat(10_000_000), ' '.repeat(10_000_000), 'e\u0301'.repeat(5_000_000)]) {
    t.throws(() => assertSubscription(long), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
  }
  const index = new PatternIndex<number>()
  let random = 1
  const bit = () => (random = (random * 48271) % 2147483647) % 2 === 0
  for (let i = 0; i < 2000; i++) index.set(Array.from({ length: 31 }, () => bit() ? '*' : 'a').join(':') + (i % 2 === 0 ? ':b' : ':a'), i)
  const found = index.match(a32).length
  t.ok(found > 900 && found <= 1000, 'half of them end otherwise')
  for (let i = 0; i < 30_000; i++) index.match(`t:${i}`)
  t.equal(index.match(a32).length, found, 'however many topics have been asked for')
})

// --- registry.ts ---

const USERS = ['u', 'v', 'w']
const SUBSCRIPTIONS = ['a', 'a:b', 'a:c', 'b', 'a:*', 'a:**', '*', '**', '*:b']
const TOPICS = ['a', 'a:b', 'a:c', 'b', 'b:b', 'c:d:e']
const IPS = ['1', '2']

class Person implements Member {
  readonly held = new Set<string>()
  index = -1
  mark = 0
  constructor (readonly clientId: string, readonly userId: string | null, readonly clientInfo: { ip: string }, readonly managed: boolean) {}
}

interface Known { person: Person, held: Set<string> }
interface Model { known: Map<string, Known>, gone: Person[], count: number }

/** The definition of a target, without any index. */
function wanted ({ person, held }: Known, target: Target): boolean {
  if (!person.managed || target.exceptClientIds?.includes(person.clientId)) return false
  if (target.clientIds !== undefined && !target.clientIds.includes(person.clientId)) return false
  if (target.userIds !== undefined && (person.userId === null || !target.userIds.includes(person.userId))) return false
  return target.subscriptionIds === undefined || target.subscriptionIds.some(topic => [...held].some(subscription => covers(subscription, topic)))
}

function checkRegistry (model: Model, registry: Registry<Person>): void {
  const all = [...model.known.values()]
  const ids = (people: Iterable<Person>) => [...people].map(person => person.clientId).sort()
  assert.equal(registry.size, all.length)
  assert.deepEqual(ids(registry.all()), ids(all.map(known => known.person)))
  assert.equal(registry.users, new Set(all.map(known => known.person.userId).filter(userId => userId !== null)).size)
  assert.equal(registry.subscriptions, new Set(all.flatMap(known => [...known.held])).size)
  for (const userId of USERS) {
    const people = all.filter(known => known.person.userId === userId).map(known => known.person)
    assert.deepEqual(ids(registry.user(userId)), ids(people))
  }
  for (const subscription of SUBSCRIPTIONS) assert.deepEqual(ids(registry.subscription(subscription)), ids(all.filter(known => known.held.has(subscription)).map(known => known.person)))
  for (const { person, held } of all) {
    assert.equal(registry.client(person.clientId), person)
    assert.deepEqual([...person.held].sort(), [...held].sort())
  }
  for (const person of model.gone) assert.equal(registry.client(person.clientId), undefined)
}

function checkSelect (model: Model, registry: Registry<Person>, target: Target): void {
  const selected = registry.select(target).map(person => person.clientId)
  const expected = [...model.known.values()].filter(known => wanted(known, target))
  assert.equal(new Set(selected).size, selected.length, 'each once')
  assert.deepEqual([...selected].sort(), expected.map(known => known.person.clientId).sort())
  for (const { person } of model.known.values()) {
    if (person.managed) assert.equal(registry.isTargeted(person, target), expected.some(known => known.person === person))
  }
}

class Command implements fc.Command<Model, Registry<Person>> {
  constructor (readonly name: string, readonly act: (model: Model, registry: Registry<Person>) => void) {}
  check (): boolean { return true }
  run (model: Model, registry: Registry<Person>): void {
    this.act(model, registry)
    checkRegistry(model, registry)
  }

  toString (): string { return this.name }
}

const pick = (model: Model, n: number): Known | undefined => [...model.known.values()][n % Math.max(1, model.known.size)]
const list = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(fc.array(arbitrary, { maxLength: 4 }), { nil: undefined })
const target: fc.Arbitrary<Target> = fc.record({
  userIds: list(fc.constantFrom(...USERS, 'nobody')),
  subscriptionIds: list(fc.constantFrom(...TOPICS)),
  clientIds: list(fc.nat(12).map(n => `c${n}`)),
  exceptClientIds: list(fc.nat(12).map(n => `c${n}`))
}).map(target => Object.fromEntries(Object.entries(target).filter(([, value]) => value !== undefined)))

const registryCommands = fc.commands([
  fc.tuple(fc.option(fc.constantFrom(...USERS)), fc.constantFrom(...IPS), fc.integer({ min: 0, max: 4 })).map(([userId, ip, n]) => new Command(`add(${userId}, ${ip}, ${n > 0})`, (model, registry) => {
    const person = new Person(`c${model.count++}`, userId, { ip }, n > 0)
    registry.add(person)
    model.known.set(person.clientId, { person, held: new Set() })
  })),
  fc.nat(20).map(n => new Command(`remove(${n})`, (model, registry) => {
    const known = pick(model, n)
    if (known === undefined) return
    registry.remove(known.person)
    model.known.delete(known.person.clientId)
    model.gone.push(known.person)
    assert.equal(known.person.held.size, 0)
  })),
  fc.nat(20).map(n => new Command(`removeAgain(${n})`, (model, registry) => {
    const person = model.gone[n % Math.max(1, model.gone.length)]
    if (person !== undefined) registry.remove(person)
  })),
  fc.tuple(fc.nat(20), fc.constantFrom(...SUBSCRIPTIONS)).map(([n, subscription]) => new Command(`subscribe(${n}, ${subscription})`, (model, registry) => {
    const known = pick(model, n)
    if (known === undefined || !known.person.managed) return
    registry.subscribe(known.person, subscription)
    known.held.add(subscription)
    for (const topic of TOPICS) assert.equal(registry.holds(known.person, topic), [...known.held].some(held => covers(held, topic)))
  })),
  fc.tuple(fc.nat(20), fc.constantFrom(...SUBSCRIPTIONS)).map(([n, subscription]) => new Command(`unsubscribe(${n}, ${subscription})`, (model, registry) => {
    const known = pick(model, n)
    if (known === undefined) return
    assert.equal(registry.unsubscribe(known.person, subscription), known.held.delete(subscription))
  })),
  target.map(target => new Command(`select(${JSON.stringify(target)})`, (model, registry) => checkSelect(model, registry, target)))
], { maxCommands: 60, size: 'max' })

t.test('the registry selects whom a scan over everybody would, through any history of changes', async t => {
  let largest = 0
  t.doesNotThrow(() => fc.assert(fc.property(registryCommands, commands => {
    const registry = new Registry<Person>()
    const model: Model = { known: new Map(), gone: [], count: 0 }
    fc.modelRun(() => ({ model, real: registry }), commands)
    largest = Math.max(largest, model.known.size)
    for (const { person } of [...model.known.values()]) {
      registry.remove(person)
      model.known.delete(person.clientId)
      model.gone.push(person)
    }
    checkRegistry(model, registry)
    assert.deepEqual([registry.size, registry.users, registry.subscriptions], [0, 0, 0], 'nothing stays behind')
    assert.equal(registry.select({}).length, 0)
    for (const topic of TOPICS) assert.equal(registry.select({ subscriptionIds: [topic] }).length, 0)
  }), { numRuns: RUNS }))
  t.ok(largest >= 5, `with up to ${largest} members at once`)
})

t.test('somebody who matches in many ways is selected once; an empty list is nobody', async t => {
  const registry = new Registry<Person>()
  const person = new Person('c', 'u', { ip: '1' }, true)
  const stream = new Person('own', 'u', { ip: '1' }, false)
  for (const member of [person, stream]) registry.add(member)
  for (const subscription of ['a:b', 'a:*', 'a:**', '**', '*:b']) registry.subscribe(person, subscription)
  t.strictSame(registry.select({ subscriptionIds: ['a:b', 'a:b', 'a:c', 'x'], userIds: ['u', 'u'] }), [person])
  t.strictSame(registry.select({ clientIds: ['c', 'c', 'own'] }), [person])
  t.strictSame(registry.select({}), [person], 'a stream of its own source gets no broadcast')
  for (const nobody of [{ userIds: [] }, { subscriptionIds: [] }, { clientIds: [] }, { userIds: ['u'], subscriptionIds: [] }, { exceptClientIds: ['c'] }]) {
    t.strictSame(registry.select(nobody), [], JSON.stringify(nobody))
  }
})

// --- ring.ts ---

const EPOCH = 'e0'
const outgoing = { event: 'x', target: {}, ephemeral: false }
const logged = (seq: number, priority: EventPriority, data: string): Message => ({ ...outgoing, seq, priority, data })

t.test('the ring keeps the newest by count, age and bytes, and pages through one lane without a hole', async t => {
  const target = fc.constantFrom<Target>({}, { userIds: ['a', 'b'] }, { subscriptionIds: ['t'] }, { filter: () => true })
  const key = fc.constantFrom(undefined, undefined, 'k', 'l')
  const step = fc.oneof(
    { weight: 3, arbitrary: fc.record({ append: fc.constant(true as const), priority, target, key, data: fc.constantFrom('', 'x', 'é', '😀😀', 'x'.repeat(20)), wait: fc.constantFrom(0, 0, 1, 7) }) },
    { weight: 1, arbitrary: fc.record({ append: fc.constant(false as const), priority, after: fc.nat(60), limit: fc.integer({ min: 1, max: 5 }), wait: fc.constantFrom(0, 1, 30) }) })
  const history = fc.record({ maxEvents: fc.constantFrom(1, 3, 20, 1000), maxAgeMs: fc.constantFrom(10, 50, 1e9), maxBytes: fc.constantFrom(8, 60, 1e9) })
  t.doesNotThrow(() => fc.assert(fc.property(history, fc.array(step, { maxLength: 80, size: 'max' }), (history, steps) => {
    let now = 1000
    const ring = new Ring(history, () => now)
    let kept: { message: Message, at: number }[] = []
    let last = 0
    const size = () => kept.reduce((sum, { message }) => sum + bytesOf(message), 0)
    const isReplaced = ({ seq, key, target }: Message) => key !== undefined && target.filter === undefined &&
      kept.some(({ message }) => message.seq > seq && message.key === key && message.target === target)
    const trim = () => {
      while (kept.length > 0 && (kept.length > history.maxEvents || (size() > history.maxBytes && kept.length > 1) || now - kept[0]!.at > history.maxAgeMs)) kept = kept.slice(1)
    }
    for (const step of steps) {
      now += step.wait
      if (step.append) {
        const message: Message = { ...logged(++last, step.priority, step.data), target: step.target, ...(step.key !== undefined && { key: step.key }) }
        ring.append(message)
        kept.push({ message, at: now })
        trim()
      } else {
        trim()
        const first = kept[0]?.message.seq ?? last + 1
        const page = ring.read(step)
        if (step.after > last) assert.deepEqual(page, { messages: [], next: last, gap: 'unknown' })
        else if (step.after < first - 1) assert.deepEqual(page, { messages: [], next: last, gap: 'trimmed' })
        else {
          const lane = kept.map(({ message }) => message).filter(({ seq, priority }) => seq > step.after && priority === step.priority).filter(message => !isReplaced(message))
          assert.deepEqual(page.messages, lane.slice(0, step.limit))
          assert.equal(page.gap, undefined)
          // Nothing of the lane may lie between what was read and where the next page begins.
          assert.ok(page.next >= step.after && page.next <= last)
          assert.ok(lane.length > step.limit ? page.next >= lane[step.limit - 1]!.seq && page.next < lane[step.limit]!.seq : page.next === last)
        }
      }
      assert.deepEqual([ring.first, ring.last, ring.bytes], [kept[0]?.message.seq ?? last + 1, last, size()])
    }
  }), { numRuns: 2 * RUNS }))
})

t.test('one read of the ring looks at a bounded number of messages, and an event for many counts for what it keeps', async t => {
  const ring = new Ring({ maxEvents: 1e6, maxAgeMs: 1e9, maxBytes: 1_000_000 })
  for (let seq = 1; seq <= 10_000; seq++) ring.append(logged(seq, seq === 9_999 ? 3 : 1, 'x'))
  const pages: Page[] = []
  for (let after = 0; after < ring.last; after = pages.at(-1)!.next) pages.push(ring.read({ after, priority: 3, limit: 128 }))
  t.ok(pages.length >= 4, `${pages.length} pages`)
  t.strictSame(pages.flatMap(({ messages }) => messages.map(({ seq }) => seq)), [9_999])
  const userIds = Array.from({ length: 5_000 }, (_, i) => `user-${i}`)
  for (let seq = 10_001; seq <= 10_050; seq++) ring.append({ ...logged(seq, 1, 'x'), target: { userIds } })
  t.ok(ring.last - ring.first < 20 && ring.bytes <= 1_000_000)
})

t.test('the ring over many rounds of its own size', async t => {
  const ring = new Ring({ maxEvents: 100, maxAgeMs: 1e9, maxBytes: 1e9 })
  for (let seq = 1; seq <= 10_000; seq++) ring.append(logged(seq, (seq % 4) as EventPriority, String(seq)))
  t.strictSame([ring.first, ring.last], [9_901, 10_000])
  for (const priority of [0, 1, 2, 3] as const) {
    const seqs: number[] = []
    for (let after = 9_900; after < ring.last;) {
      const page = ring.read({ after, priority, limit: 7 })
      seqs.push(...page.messages.map(message => message.seq))
      after = page.next
    }
    t.strictSame(seqs, Array.from({ length: 25 }, (_, i) => 9_901 + i * 4 + (priority + 3) % 4))
  }
})

// --- wheel.ts ---

class Item implements Timed {
  dueAt = Infinity
  slot = -1
  slotIndex = 0
  scheduled = false
  fired = 0
  react: (now: number) => void = () => {}
  constructor (readonly world: { now: number }) {}
  onTime (now: number): void {
    assert.ok(this.scheduled, 'one that was cancelled is left alone')
    assert.ok(this.dueAt <= now && now <= this.world.now, 'nothing comes early')
    this.fired++
    this.react(now)
  }
}

t.test('the wheel misses nothing and fires nothing early, whatever happens inside onTime and however long it stood still', async t => {
  const TICK = 10
  // Past, now, soon, at the edge of a tick, a full turn of the wheel and more.
  const delay = fc.oneof(fc.constantFrom(-1e6, -50, -1, 0, 1, 9, 10, 11, 511 * TICK, 512 * TICK, 513 * TICK, 5000 * TICK, Infinity), fc.nat(600), fc.nat(12_000))
  const act = fc.record({ what: fc.constantFrom('schedule', 'schedule', 'cancel'), who: fc.nat(7), delay })
  const step = fc.oneof(
    { weight: 2, arbitrary: fc.record({ turn: fc.constant(true as const), wait: fc.oneof(fc.constantFrom(0, 1, 9, 10, 11, 100, 5110, 5120, 5130, 1e6), fc.nat(400)) }) },
    { weight: 1, arbitrary: fc.record({ turn: fc.constant(false as const), act, inside: fc.array(act, { maxLength: 3 }) }) })
  let fired = 0
  t.doesNotThrow(() => fc.assert(fc.property(fc.nat(20_000), fc.array(step, { maxLength: 60, size: 'max' }), (start, steps) => {
    const world = { now: start }
    const wheel = new TimingWheel(TICK, () => world.now)
    const items = Array.from({ length: 8 }, () => new Item(world))
    const touched = new Set<Item>()
    const rest = (item: Item) => () => { wheel.cancel(item); item.scheduled = false }
    for (const item of items) item.react = rest(item)
    const perform = ({ what, who, delay }: { what: string, who: number, delay: number }, from: number) => {
      const item = items[who]!
      touched.add(item)
      item.scheduled = what === 'schedule' && delay !== Infinity
      if (what === 'cancel') wheel.cancel(item)
      else wheel.schedule(item, from + delay)
    }
    for (const step of steps) {
      if (!step.turn) {
        perform(step.act, world.now)
        const item = items[step.act.who]!
        let bound = 3
        item.react = now => {
          for (const act of step.inside) perform(act, now)
          // What is to be looked at again says so; what is not, says that.
          if (!step.inside.some(act => act.who === step.act.who) || bound-- <= 0) perform({ what: 'cancel', who: step.act.who, delay: 0 }, now)
        }
        continue
      }
      world.now += step.wait
      touched.clear()
      // The tick that has begun may hold what is due later in it.
      const due = items.filter(item => item.scheduled && Math.ceil(item.dueAt / TICK) <= Math.floor(world.now / TICK))
      const before = items.map(item => item.fired)
      wheel.turn()
      for (const item of due) {
        const times = item.fired - before[items.indexOf(item)]!
        fired += times
        assert.ok(times > 0 || touched.has(item), 'what is due is found')
      }
    }
    // Whatever is still scheduled comes at its time, and then no more.
    for (const item of items) item.react = rest(item)
    const waiting = items.filter(item => item.scheduled)
    const counts = waiting.map(item => item.fired)
    world.now = Math.max(world.now, ...waiting.map(item => item.dueAt)) + TICK
    wheel.turn()
    wheel.turn()
    assert.deepEqual(waiting.map(item => item.fired), counts.map(count => count + 1))
    for (const item of items) wheel.cancel(item)
    world.now += 1e6
    wheel.turn()
    assert.deepEqual(waiting.map(item => item.fired), counts.map(count => count + 1))
  }), { numRuns: 4 * RUNS }))
  t.ok(fired > RUNS, `${fired} fired`)
})

t.test('an item set to a time that has passed, while others are looked at, comes with the next turn', async t => {
  const world = { now: 0 }
  const wheel = new TimingWheel(10, () => world.now)
  const first = new Item(world)
  const second = new Item(world)
  first.scheduled = second.scheduled = true
  second.react = () => wheel.cancel(second)
  first.react = () => {
    wheel.cancel(first)
    wheel.schedule(second, 20)
  }
  wheel.schedule(first, 50)
  world.now = 120
  wheel.turn()
  world.now = 130
  wheel.turn()
  t.equal(second.fired, 1)
})

t.test('the wheel turns by itself between start and stop', async t => {
  const wheel = new TimingWheel(5, () => performance.now())
  const item = new Item({ now: Infinity })
  item.scheduled = true
  let times = 0
  item.react = now => {
    if (++times < 3) wheel.schedule(item, now + 5)
    else wheel.cancel(item)
  }
  wheel.start()
  wheel.start()
  wheel.schedule(item, performance.now() + 5)
  await until(() => times === 3)
  wheel.stop()
  wheel.stop()
  wheel.schedule(item, performance.now())
  // Another goes on, by the same clock.
  const other = new TimingWheel(5, () => performance.now())
  let turns = 0
  const clock = new Item({ now: Infinity })
  clock.scheduled = true
  clock.react = now => {
    turns++
    other.schedule(clock, now + 5)
  }
  other.start()
  t.teardown(() => other.stop())
  other.schedule(clock, performance.now() + 5)
  await until(() => turns === 3)
  t.equal(times, 3)
})

// --- flush.ts ---

/** Notes when it is flushed, and does then what it was told to. */
class Noting implements Flushable {
  next: Flushable | null = null
  readonly #flushed: Noting[]
  readonly #react: (() => void) | undefined

  constructor (flushed: Noting[], react?: () => void) {
    this.#flushed = flushed
    this.#react = react
  }

  flush (): void {
    this.#flushed.push(this)
    this.#react?.()
  }
}

t.test('a flush takes 512 a turn, first marked first, each once, and leaves nobody in line', async t => {
  const flusher = new Flusher(0, () => 0)
  const flushed: Noting[] = []
  const items = Array.from({ length: 1300 }, () => new Noting(flushed))
  for (const item of items) flusher.mark(item)
  for (const item of items) flusher.mark(item)
  t.equal(flushed.length, 0, 'not before the end of the turn')
  const { root } = flusher
  for (const expected of [512, 1024, 1300]) {
    await turns(1)
    t.equal(flushed.length, expected)
  }
  t.strictSame(flushed.map(item => items.indexOf(item)), items.map((_, i) => i))
  t.ok(items.every(({ next }) => next === null))
  t.not(flusher.root, root, 'the frames of this turn may go')
  flusher.mark(items[7]!)
  await turns(1)
  t.equal(flushed.length, 1301, 'and it begins again')
})

t.test('a flush ends its turn where writing takes long, and goes on in the next', async t => {
  let now = 0
  const flusher = new Flusher(0, () => now)
  const flushed: Noting[] = []
  const items = Array.from({ length: 500 }, () => new Noting(flushed, () => { now += 0.05 }))
  for (const item of items) flusher.mark(item)
  let before = -1
  while (flushed.length < 500) {
    await turns(1)
    t.ok(flushed.length > before, 'each turn makes progress')
    t.ok(flushed.length - Math.max(before, 0) <= 224, 'of 0.05 ms each, those of 8 ms, and no more than a stretch beyond')
    before = flushed.length
  }
  t.strictSame(flushed, items)
  t.ok(items.every(({ next }) => next === null))
})

t.test('who is marked while others are flushed waits for the next turn, itself included', async t => {
  const flusher = new Flusher(0)
  const flushed: Noting[] = []
  const last = new Noting(flushed)
  let again = true
  const first: Noting = new Noting(flushed, () => {
    flusher.mark(last)
    if (again) flusher.mark(first)
    again = false
  })
  flusher.mark(first)
  await turns(1)
  t.strictSame(flushed, [first])
  await turns(1)
  t.strictSame(flushed, [first, last, first])
  // The second time it marked `last` once more.
  await turns(1)
  t.strictSame(flushed, [first, last, first, last])
})

t.test('with an interval, what comes within it goes together', async t => {
  const flusher = new Flusher(5)
  const flushed: Noting[] = []
  const items = [new Noting(flushed), new Noting(flushed)]
  for (const item of items) flusher.mark(item)
  t.equal(flushed.length, 0)
  await until(() => flushed.length > 0)
  t.strictSame(flushed, items)
})

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

// --- CatchUp ---

class BusyReader implements Reader {
  isConnected = true
  reads = 0
  constructor (readonly busyMs: number) {}
  async readPage (): Promise<void> {
    this.reads++
    const end = performance.now() + this.busyMs
    while (performance.now() < end);
  }
}

t.test('catch-up: a bounded time in a turn, everybody served', async t => {
  const catchUp = new ReplayScheduler(null as unknown as Broker, 8, { ...warnings, warn: ({ err }: { err?: unknown }) => t.error(err) })
  const readers = Array.from({ length: 40 }, () => new BusyReader(3))
  for (const reader of readers) catchUp.want(reader)
  catchUp.want(readers[0]!)
  readers[39]!.isConnected = false
  const total = () => readers.reduce((sum, { reads }) => sum + reads, 0)
  let last = 0
  while (total() < 39) {
    await new Promise(resolve => setImmediate(resolve))
    t.ok(total() - last <= 2, `${total() - last} pages of 3 ms in a turn`)
    last = total()
  }
  t.ok(readers.slice(0, 39).every(({ reads }) => reads === 1), 'each once, also one that asked twice')
  t.equal(readers[39]!.reads, 0, 'one that has left is not read for')
})

t.test('catch-up: the time of a turn is kept within pages as well, and no page is read again', async t => {
  const catchUp = new ReplayScheduler(null as unknown as Broker, 32, { ...warnings, warn: ({ err }: { err?: unknown }) => t.error(err) })
  const PAGE = 20
  let asked = 0
  class Asking implements Reader {
    isConnected = true
    reads = 0
    /** The turns in which its messages were asked about. */
    readonly turns: number[] = []
    constructor (readonly awayMs: number) {}
    async readPage (_broker: Broker, time: Turns): Promise<void> {
      this.reads++
      if (this.awayMs > 0) await new Promise(resolve => setTimeout(resolve, this.awayMs))
      for (let n = 0; n < PAGE; n++) {
        if (time.over) await time.next()
        asked++
        this.turns.push(turn)
        const end = performance.now() + 1
        while (performance.now() < end);
      }
    }
  }
  // Some of a log in memory, some of one that takes longer than a turn.
  const readers = Array.from({ length: 16 }, (_, i) => new Asking(i % 4 === 3 ? 10 : 0))
  for (const reader of readers) catchUp.want(reader)
  let turn = 0
  let most = 0
  for (let last = 0; asked < readers.length * PAGE; last = asked) {
    await new Promise(resolve => setImmediate(resolve))
    most = Math.max(most, asked - last)
    turn++
  }
  // The clock is looked at every eighth time as long as it is fast.
  t.ok(most <= 4 + 1 + 8, `${most} questions of 1 ms in a turn`)
  t.ok(readers.every(({ reads }) => reads === 1))
  const ends = readers.filter(({ awayMs }) => awayMs === 0).map(({ turns }) => turns.at(-1)!)
  t.strictSame(ends, ends.toSorted((a, b) => a - b), 'first come, first served')
})

t.test('catch-up: reads that do not come back keep nobody waiting', async t => {
  const catchUp = new ReplayScheduler(null as unknown as Broker, 8, { ...warnings, warn: ({ err }: { err?: unknown }) => t.error(err) })
  for (let i = 0; i < 50; i++) catchUp.want({ isConnected: true, readPage: () => new Promise(() => {}) })
  const readers = Array.from({ length: 50 }, () => new BusyReader(0))
  for (const reader of readers) catchUp.want(reader)
  await until(() => readers.every(({ reads }) => reads === 1))
})

t.test('catch-up: a log that cannot be read is asked again, nobody is forgotten, and it is said once', async t => {
  const said: unknown[] = []
  const catchUp = new ReplayScheduler(null as unknown as Broker, 32, { ...warnings, warn: ({ err }: { err?: unknown }) => said.push((err as Error).message), info: () => said.push('free') })
  const create = (failures: number) => {
    const reader = { isConnected: true, calls: 0, readPage: async () => { if (++reader.calls <= failures) throw new Error('away') } }
    return reader
  }
  const [reader, later, gone] = [create(2), create(3), create(Infinity)]
  // The retry timer does not keep a process alive; this one does.
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  catchUp.want(reader)
  await until(() => reader.calls === 1)
  catchUp.want(reader)
  catchUp.want(later)
  await turns(3)
  t.equal(reader.calls, 1, 'not at once, whoever asks')
  await until(() => reader.calls === 3 && later.calls === 3)
  catchUp.want(create(0))
  await turns(3)
  t.strictSame(said, ['away'], 'who needs nothing of what is away is no proof')
  await until(() => later.calls === 4)
  t.strictSame(said, ['away', 'free'])
  catchUp.want(gone)
  await until(() => gone.calls === 1)
  gone.isConnected = false
  await until(() => said.length === 4)
  t.strictSame(said, ['away', 'free', 'away', 'free'])
  t.equal(gone.calls, 1)
})

// --- Flusher ---

t.test('an interval is kept however many there are: each is written to once in a run', async t => {
  const flusher = new Flusher(20)
  const times: number[] = []
  class Item implements Flushable {
    next: Flushable | null = null
    flushes = 0
    flush (): void {
      this.flushes++
      if (this === items[0]) times.push(performance.now())
      // There is always something new.
      if (this.flushes < 5) flusher.mark(this)
    }
  }
  const items = Array.from({ length: 1_300 }, () => new Item())
  for (const item of items) flusher.mark(item)
  await until(() => items.every(({ flushes }) => flushes === 5))
  // Timers of Node may be early by a millisecond.
  t.ok(times.slice(1).every((time, i) => time - times[i]! >= 18), times.join())
})
