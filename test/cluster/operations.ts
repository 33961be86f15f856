import t from 'tap'
import { DisconnectedUsers } from '../../lib/access/disconnected-users.js'
import { createCommands, endUncertain, withAnnounced, type Presence } from '../../lib/cluster/commands.js'
import { ConnectionList } from '../../lib/cluster/connection-list.js'
import type { NodeInspection } from '../../lib/cluster/node-inspection.js'
import type { SSEConnection } from '../../lib/connections/connection.js'
import { Authorization } from '../../lib/subscriptions/authorization.js'
import { Registry } from '../../lib/subscriptions/registry.js'
import { recorder } from '../helpers/logged.js'

// What one node does for an operation, and what is made of the results of two.

function node () {
  const registry = new Registry<SSEConnection>()
  const disconnections = new DisconnectedUsers()
  const subscriptions = new Authorization({ maxSubscriptionsPerConnection: 10 }, registry, recorder().log)
  const calls: string[] = []
  const commands = createCommands(registry, subscriptions, disconnections, new ConnectionList('a', registry), { read: async () => 'details' } as unknown as NodeInspection)
  let count = 0
  return {
    commands,
    disconnections,
    calls,
    subscriptions,
    registry,
    add: (userId: string | null, topic = 'room:1') => {
      const clientId = `c${count++}`
      const call = (name: string) => (...args: unknown[]) => { calls.push([clientId, name, ...args].join(' ')) }
      const connection = { clientId, userId, managed: true, held: new Set<string>(), index: 0, mark: 0, close: call('close'), hold: call('hold') } as unknown as SSEConnection
      registry.add(connection)
      registry.subscribe(connection, topic)
      return clientId
    }
  }
}

t.test('the holders of a topic: each user once, at most a thousand of one node', async t => {
  const { commands, add } = node()
  const of = async (topic: string) => await commands.presence.run(topic) as Presence
  t.strictSame(await of('room:1'), { connections: 0, anonymous: 0, users: [], complete: true })
  for (let i = 0; i < 999; i++) add(`user ${i}`)
  for (const userId of ['ada', 'ada', 'ada', null, null]) add(userId)
  add('grace', 'room:2')
  const { users, ...counts } = await of('room:1')
  t.strictSame(counts, { connections: 1_004, anonymous: 2, complete: true })
  t.equal(users.length, 1_000)
  t.strictSame(users.at(-1), { userId: 'ada', connections: 3 })
  add('one more')
  const more = await of('room:1')
  t.strictSame([more.connections, more.users.length, more.complete], [1_005, 1_000, false])
})

t.test('the holders on two nodes', t => {
  const { merge } = node().commands.presence
  const one: Presence = { connections: 4, anonymous: 1, users: [{ userId: 'ada', connections: 2 }, { userId: 'alan', connections: 1 }], complete: true }
  const other: Presence = { connections: 7, anonymous: 2, users: [{ userId: 'grace', connections: 2 }, { userId: 'ada', connections: 3 }], complete: true }
  t.strictSame(merge!(one, other), { connections: 11, anonymous: 3, users: [{ userId: 'ada', connections: 5 }, { userId: 'alan', connections: 1 }, { userId: 'grace', connections: 2 }], complete: true })
  for (const [a, b] of [[true, false], [false, true], [false, false]] as const) t.equal(merge!({ ...one, complete: a }, { ...other, complete: b }).complete, false)
  t.end()
})

t.test('announced users are added to those that nodes name, at most a thousand; that a node names not all stays known', t => {
  const named: Presence = { connections: 1_100, anonymous: 0, users: [{ userId: 'ada', connections: 2 }], complete: false }
  t.strictSame(withAnnounced(named, new Map([['ada', 1], ['gone', 0]])), { ...named, users: [{ userId: 'ada', connections: 2 }, { userId: 'gone', connections: 0 }] })
  for (const count of [1_000, 1_001]) {
    const { users, complete } = withAnnounced({ ...named, complete: true }, new Map([['ada', 1], ...Array.from({ length: count }, (_, i): [string, number] => [`u${i}`, 1])]))
    t.strictSame([users.length, complete], [1_001, count === 1_000], `${count}`)
  }
  t.end()
})

t.test('a connection is closed on the node that has it, a user on each', async t => {
  const { commands, disconnections, add, calls } = node()
  const [one, two] = [add('ada'), add('ada')]
  add('grace')
  const { moment } = disconnections
  t.strictSame([await commands.closeConnection.run(one, 'kicked'), await commands.closeConnection.run('nobody', 'kicked')], [true, null])
  t.strictSame(calls.splice(0), [`${one} close kicked`])
  t.equal(disconnections.hit('ada', moment), false)
  t.strictSame([await commands.disconnectUser.run('ada', 'kicked'), await commands.disconnectUser.run('nobody', 'kicked')], [2, 0])
  t.strictSame(calls.splice(0), [`${one} close kicked`, `${two} close kicked`])
  t.strictSame(['ada', 'nobody', 'grace'].map(userId => disconnections.hit(userId, moment)), [true, true, false])
  t.strictSame([commands.disconnectUser, commands.revokeSubscription, commands.reauthorize].map(({ merge }) => merge!(2, 3)), [5, 5, 5])
  t.strictSame(commands.details.merge!(await commands.details.run() as never, ['other'] as never), ['details', 'other'])
})

t.test('after a command that may have been missed, users come back, and nobody is admitted on what was known before', t => {
  const { registry, subscriptions, disconnections, add, calls } = node()
  const ada = add('ada')
  add(null)
  const grace = add('grace')
  const { moment } = disconnections
  endUncertain(registry, subscriptions, disconnections)
  t.strictSame(calls, [ada, grace].flatMap(clientId => [`${clientId} hold`, `${clientId} close rights-unknown`]), 'what waits is held before the end')
  t.ok(disconnections.hit('anybody', moment) && disconnections.isUnsure('anybody', moment))
  t.end()
})
