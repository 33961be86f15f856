import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { covers } from '../../lib/events/topic.js'
import type { Target } from '../../lib/events/target.js'
import { Audience, type Receiver, type TopicQuestion } from '../../lib/subscriptions/audience.js'
import { Registry } from '../../lib/subscriptions/registry.js'
import { recorder } from '../helpers/logged.js'

// Who receives a message, and who would be asked for it again at a replay, against the definition.

const TOPICS = ['a', 'a:b', 'a:c', 'b']
const SUBSCRIPTIONS = [...TOPICS, 'a:*', 'a:**', '**', '*']
const USERS = ['u', 'v', null]

const some = <T>(values: readonly T[], max = 3) => fc.uniqueArray(fc.constantFrom(...values), { maxLength: max })
const list = <T>(values: readonly T[]) => fc.option(some(values), { nil: undefined })
const IDS = ['c0', 'c1', 'c2', 'c3']

const world = fc.record({
  people: fc.array(fc.record({ userId: fc.constantFrom(...USERS), held: some(SUBSCRIPTIONS, 4), managed: fc.integer({ max: 4, min: 0 }).map(n => n > 0) }), { minLength: 4, maxLength: 4 }),
  /** `authorizeTopic` allows these, by connection and topic; null: there is none. */
  rights: fc.option(some(IDS.flatMap(id => TOPICS.map(topic => `${id} ${topic}`)), 12)),
  targets: fc.array(fc.record({ userIds: list(['u', 'v', 'w']), subscriptionIds: list([...TOPICS, 'c']), clientIds: list(IDS), exceptClientIds: list(IDS), passing: fc.option(some(IDS), { nil: undefined }) }), { minLength: 1, maxLength: 8 })
})

t.test('who receives what, by lists, rights and filters', t => {
  let asked = 0
  t.doesNotThrow(() => fc.assert(fc.property(world, ({ people, rights, targets }) => {
    const registry = new Registry<Receiver>()
    const { log, lines } = recorder()
    const members = people.map(({ userId, held, managed }, i) => ({ clientId: IDS[i]!, userId, claims: `claims of ${i}`, managed, held: new Set(managed ? held : []), index: 0, mark: 0 }) as unknown as Receiver)
    for (const member of members) registry.add(member)
    const covered = ({ held }: Receiver, topic: string) => [...held].some(subscription => covers(subscription, topic))
    const hears = (member: Receiver, topic: string) => member.held.has(topic) || (covered(member, topic) && (rights === null || rights.includes(`${member.clientId} ${topic}`)))
    const authorizeTopic = ({ userId, claims, topic, connection }: TopicQuestion) => {
      asked++
      const member = connection as Receiver
      assert.deepEqual([userId, claims], [member.userId, member.claims])
      assert.ok(covered(member, topic) && !member.held.has(topic), `${topic} is asked about for ${[...member.held]}`)
      return rights!.includes(`${member.clientId} ${topic}`)
    }
    const audience = new Audience<Receiver>({ authorizeTopic: rights === null ? undefined : authorizeTopic }, registry, log)
    for (const { passing, ...lists } of targets) {
      const target = Object.fromEntries(Object.entries({ ...lists, filter: passing && (({ clientId }: Receiver) => passing.includes(clientId)) }).filter(([, value]) => value !== undefined)) as Target
      const { userIds, subscriptionIds, clientIds, exceptClientIds } = lists
      const expected = members.filter(member => member.managed &&
        (userIds === undefined || (member.userId !== null && userIds.includes(member.userId))) &&
        (clientIds === undefined || clientIds.includes(member.clientId)) &&
        exceptClientIds?.includes(member.clientId) !== true &&
        (subscriptionIds === undefined || subscriptionIds.some(topic => hears(member, topic))) &&
        passing?.includes(member.clientId) !== false)
      assert.deepEqual(audience.select(target).map(({ clientId }) => clientId).sort(), expected.map(({ clientId }) => clientId), JSON.stringify(target))
      for (const member of members) if (member.managed) assert.equal(audience.includes(member, target), expected.includes(member), `${member.clientId} ${JSON.stringify(target)}`)
    }
    for (const member of members) for (const topic of TOPICS) assert.equal(audience.hears(member, topic), hears(member, topic))
    assert.deepEqual(lines, [])
  }), { numRuns: 400 }))
  t.ok(asked > 500, `${asked} questions`)
  t.end()
})
