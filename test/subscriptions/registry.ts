import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import type { Target } from '../../lib/events/target.js'
import { covers } from '../../lib/events/topic.js'
import { Registry, type Member } from '../../lib/subscriptions/registry.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 300)
fc.configureGlobal({ includeErrorInReport: true })

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
