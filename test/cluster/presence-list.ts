import t from 'tap'
import type { MessageOf, Saying } from '../../lib/cluster/node-message.js'
import { PresenceList } from '../../lib/cluster/presence.js'
import { testClock } from '../../lib/testing/index.js'
import { systemClock, type Clock, type Timer } from '../../lib/util/clock.js'
import { collect } from '../helpers/heap.js'
import { turns, until } from '../helpers/wait.js'

// The list of one node, as a part of it: what it tells the others, and what it announces here.

t.test('a list of exactly as many as a message takes is whole in one', async t => {
  const said: Saying[] = []
  const list = new PresenceList(systemClock, { topics: ['room:*'], lingerMs: 50 }, 'here', { say: saying => said.push(saying), announce: () => {} })
  for (let i = 0; i < 500; i++) list.held({ userId: `user-${i}` }, 'room:1')
  list.tellAll()
  const lists = said.filter(({ kind }) => kind === 'present') as MessageOf<'present'>[]
  t.strictSame(lists.map(({ first, more, entries }) => [first, more, entries.length]), [[true, false, 500]])
  list.held({ userId: 'one more' }, 'room:1')
  said.length = 0
  list.tellAll()
  t.strictSame((said.filter(({ kind }) => kind === 'present') as MessageOf<'present'>[]).map(({ first, more, entries }) => [first, more, entries.length]), [[true, true, 500], [false, false, 1]])
  list.close()
})

t.test('who comes back in time does not leave later either', async t => {
  const time = testClock()
  const told: string[] = []
  const list = new PresenceList(time.clock, { topics: ['room:*'], lingerMs: 1_000 }, 'here', { say: () => {}, announce: (what, _topic, userId) => told.push(`${what} ${userId}`) })
  const change = (userId: string, present: boolean) => list.changed({ kind: 'presence', from: 'there', changes: [['room:1', userId, present]] })
  for (const present of [true, false]) for (const userId of ['ada', 'grace']) change(userId, present)
  await time.advance(500)
  change('ada', true)
  await time.advance(2_000)
  t.strictSame(told, ['join ada', 'join grace', 'leave grace'])
  list.close()
})

t.test('of users whom others hold, those are named whose nodes have not answered, and those who may come back', async t => {
  const time = testClock()
  const told: string[] = []
  const list = new PresenceList(time.clock, { topics: ['room:*'], lingerMs: 1_000 }, 'here', { say: () => {}, announce: (what, _topic, userId) => told.push(`${what} ${userId}`) })
  const change = (from: string, present: boolean, ...users: string[]) => list.changed({ kind: 'presence', from, changes: users.map(userId => ['room:1', userId, present]) })
  const absent = (nodeIds: string[]) => [...list.announced('room:1', nodeIds).keys()]
  change('x', true, 'ada', 'both', 'gone')
  change('y', true, 'both', 'grace')
  change('x', false, 'gone')
  t.strictSame(absent([]), ['gone'])
  t.strictSame(absent(['x']), ['ada', 'gone'])
  t.strictSame(absent(['x', 'y']), ['ada', 'both', 'gone', 'grace'])
  t.strictSame(list.announced('room:2'), new Map())
  t.strictSame(list.announced('room:1'), new Map([['ada', 1], ['both', 2], ['gone', 0], ['grace', 1]]))
  // Users who had left before this node started: told of by each other node, and known already.
  told.length = 0
  for (let i = 0; i < 2; i++) list.lingering({ from: 'y', kind: 'leaving', entries: [['room:2', 'late', 700], ['room:1', 'early', 900], ['room:1', 'ada', 5], ['room:2', 'soon', 300]] })
  t.strictSame(absent([]), ['gone', 'early'])
  change('y', true, 'early')
  await time.advance(2_000)
  t.strictSame(told, ['leave soon', 'leave late', 'leave gone'], 'who has come back was never announced, and has not left')
  t.strictSame(absent([]), [])
  list.close()
})

t.test('what changes in a turn is said once at its end, and only what is watched', async t => {
  const said: Saying[] = []
  const list = new PresenceList(systemClock, { topics: ['room:*'], lingerMs: 50 }, 'here', { say: saying => said.push(saying), announce: () => {} })
  const [ada, grace, nobody] = ['ada', 'grace', null].map(userId => ({ userId })) as [{ userId: string }, { userId: string }, { userId: null }]
  const end = async () => {
    await new Promise(resolve => setImmediate(resolve))
    return said.splice(0)
  }
  list.held(ada, 'room:1')
  list.held(ada, 'room:1')
  list.held(grace, 'room:1')
  for (const other of ['room:*', 'room:1:a', 'other', '**']) list.held(ada, other)
  list.held(nobody, 'room:1')
  t.strictSame(said, [], 'not before the end of the turn')
  t.strictSame(await end(), [{ kind: 'presence', changes: [['room:1', 'ada', true], ['room:1', 'grace', true]] }])
  t.equal(list.size, 2)
  list.held(ada, 'room:1')
  t.strictSame(await end(), [], 'nothing has changed')
  list.left(ada, 'room:1')
  list.left(ada, 'room:1')
  list.left(nobody, 'room:1')
  for (const other of ['room:*', 'room:1:a', 'other', '**']) list.left(ada, other)
  t.strictSame(await end(), [], 'she has another stream')
  list.left(ada, 'room:1')
  list.held(grace, 'room:2')
  t.strictSame(await end(), [{ kind: 'presence', changes: [['room:1', 'ada', false], ['room:2', 'grace', true]] }])
  list.held(ada, 'room:2')
  list.tellAll()
  const entries = [['room:1', 'grace'], ['room:2', 'grace'], ['room:2', 'ada']]
  t.strictSame(said.splice(0), [{ kind: 'presence', changes: [['room:2', 'ada', true]] }, { kind: 'present', first: true, more: false, entries }], 'what has changed comes before the list')
  t.strictSame(await end(), [])
  list.close()
})

t.test('a user who may return to a node that starts leaves there no later than anywhere, and a list that ends amiss begins anew', async t => {
  const time = testClock()
  const told: string[] = []
  const list = new PresenceList(time.clock, { topics: ['room:*'], lingerMs: 1_000 }, 'here', { say: () => {}, announce: (what, _topic, userId) => told.push(`${what} ${userId}`) })
  list.lingering({ from: 'x', kind: 'leaving', entries: [['room:1', 'ada', 5_000]] })
  await time.advance(1_000)
  t.strictSame(told.splice(0), ['leave ada'], 'another node may wait longer')

  const part = (first: boolean, more: boolean, ...users: string[]) => list.listed({ from: 'x', kind: 'present', first, more, entries: users.map(userId => ['room:1', userId]) }, false)
  part(true, false, 'ada', 'alan', 'grace')
  t.strictSame([told.length, list.misses('x', 3)], [0, false])
  // The end of this list is lost.
  part(true, true, 'ada')
  part(true, true, 'ada', 'alan')
  part(false, false, 'new')
  await time.advance(1_000)
  t.strictSame(told.splice(0), ['join new', 'leave grace'])
  list.changed({ from: 'x', kind: 'presence', changes: [['room:1', 'grace', true]] })
  part(false, false, 'late')
  await time.advance(1_000)
  t.strictSame(told.splice(0), ['join grace', 'join late'], 'a part without its beginning takes nobody away')
  t.equal(list.misses('x', 5), false)
  list.changed({ from: 'x', kind: 'presence', changes: [['room:1', 'grace', false]] })
  part(true, true, 'ada')
  list.gone('x')
  t.equal(list.misses('x', 4), true)
  await time.advance(1_000)
  t.strictSame(told.splice(0).sort(), ['leave ada', 'leave alan', 'leave grace', 'leave late', 'leave new'])
  // The end of a list that it began before is not compared with that beginning.
  list.changed({ from: 'x', kind: 'presence', changes: [['room:1', 'alan', true]] })
  part(false, false, 'grace')
  await time.advance(1_000)
  t.strictSame(told.splice(0), ['join alan'])
  list.gone('x')
  await time.advance(1_000)
  t.strictSame(told.splice(0).sort(), ['leave alan', 'leave grace'])
  // Unknown again: its users are announced only if this node is established.
  part(true, false, 'ada')
  t.strictSame(told, [])
  list.gone('x')
  list.close()
  await time.advance(5_000)
  t.strictSame(told, [], 'nothing is announced after the end')
})

t.test('users of this node are announced by its own list, too; one who returns while the event loop is blocked has not left', async t => {
  const timers = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length
  const before = timers()
  const told: string[] = []
  const list = new PresenceList(systemClock, { topics: ['room:*'], lingerMs: 20 }, 'here', { say: () => {}, announce: (what, topic, userId) => told.push(`${what} ${topic} ${userId}`) })
  const change = (present: boolean, ...changes: string[]) => list.changed({ kind: 'presence', from: 'here', changes: changes.map(topic => [topic, 'ada', present]) })
  list.listed({ from: 'here', kind: 'present', first: true, more: false, entries: [['room:1', 'ada']] }, false)
  t.strictSame(told, ['join room:1 ada'])
  change(false, 'room:1')
  t.equal(timers(), before, 'no timer keeps the process alive')
  setImmediate(() => change(true, 'room:1'))
  const blockedUntil = performance.now() + 100
  while (performance.now() < blockedUntil);
  const waitedUntil = performance.now() + 100
  await until(() => performance.now() > waitedUntil)
  t.strictSame(told, ['join room:1 ada'])

  const heap = collect()
  for (let round = 0; round < 20; round++) {
    const topics = Array.from({ length: 1_000 }, (_, i) => `room:${round}-${i}`)
    change(true, ...topics)
    change(false, ...topics)
    told.length = 0
    await until(() => told.length === 1_000)
    told.length = 0
  }
  const taken = collect() - heap
  t.ok(taken < 2 << 20, `${taken} bytes for 20,000 topics that nobody is in any more`)
  list.close()
})

t.test('many changes, and many who may return, are told in messages of at most 500', async t => {
  const said: Saying[] = []
  const list = new PresenceList(systemClock, { topics: ['room:*'], lingerMs: 60_000 }, 'here', { say: saying => { said.push(saying) }, announce: () => {} })
  const users = (count: number) => Array.from({ length: count }, (_, i) => `user-${i}`)
  const told = (kind: Saying['kind']) => said.splice(0).filter(saying => saying.kind === kind) as any[]
  for (const [count, sizes] of [[1, [1]], [500, [500]], [501, [500, 1]], [1_001, [500, 500, 1]]] as const) {
    for (const userId of users(count)) list.held({ userId }, 'room:1')
    list.flush()
    const parts = told('presence').map(({ changes }) => changes)
    t.strictSame(parts.map(part => part.length), sizes)
    t.strictSame(parts.flat(), users(count).map(userId => ['room:1', userId, true]))
    for (const userId of users(count)) list.left({ userId }, 'room:1')
    list.flush()
    said.length = 0
    list.changed({ kind: 'presence', from: 'there', changes: users(count).map(userId => ['room:2', userId, true]) })
    list.changed({ kind: 'presence', from: 'there', changes: users(count).map(userId => ['room:2', userId, false]) })
    list.tellAll()
    const leaving = told('leaving').map(({ entries }) => entries)
    t.strictSame(leaving.map(part => part.length), sizes)
    t.strictSame(new Set(leaving.flat().map(([, userId]) => userId)), new Set(users(count)))
    t.ok(leaving.flat().every(([topic, , restMs]) => topic === 'room:2' && restMs > 0 && restMs <= 60_000))
  }
  list.close()
})

t.test('a user who may return for less time than another leaves before, whoever is known first', async t => {
  const time = testClock()
  const told: string[] = []
  const list = new PresenceList(time.clock, { topics: ['room:*'], lingerMs: 1_000 }, 'here', { say: () => {}, announce: (what, _topic, userId) => told.push(`${what} ${userId}`) })
  for (const present of [true, false]) list.changed({ kind: 'presence', from: 'there', changes: [['room:1', 'ada', present]] })
  list.lingering({ from: 'x', kind: 'leaving', entries: [['room:1', 'soon', 300], ['room:1', 'now', 0]] })
  told.length = 0
  for (const [ms, expected] of [[1, ['leave now']], [298, []], [1, ['leave soon']], [699, []], [1, ['leave ada']], [5_000, []]] as const) {
    await time.advance(ms)
    t.strictSame(told.splice(0), expected)
  }
  list.close()
})

t.test('there is one timer while anybody may return, and none after the end, even if it has just fired', async t => {
  const armed = new Map<Timer, () => unknown>()
  const clock: Clock = {
    ...systemClock,
    monotonic: () => 0,
    after: (_ms, run) => {
      const timer = { unref: () => {} }
      armed.set(timer, run)
      return timer
    },
    cancel: timer => { armed.delete(timer!) }
  }
  const told: string[] = []
  const list = new PresenceList(clock, { topics: ['room:*'], lingerMs: 0 }, 'here', { say: () => {}, announce: (what, _topic, userId) => told.push(`${what} ${userId}`) })
  const come = (userId: string, present: boolean) => list.changed({ kind: 'presence', from: 'there', changes: [['room:1', userId, present]] })
  const fire = () => {
    const [[timer, run]] = armed as Iterable<[Timer, () => unknown]> as [[Timer, () => unknown]]
    armed.delete(timer)
    run()
  }
  for (const present of [true, false]) for (const userId of ['ada', 'grace']) come(userId, present)
  t.equal(armed.size, 1)
  fire()
  list.lingering({ from: 'x', kind: 'leaving', entries: [['room:1', 'late', 0]] })
  await turns()
  t.equal(armed.size, 1, 'the one that has fired is replaced')
  t.strictSame(told.splice(0), ['join ada', 'join grace'])
  fire()
  await turns()
  t.strictSame([told.splice(0), armed.size], [['leave ada', 'leave grace', 'leave late'], 0])
  for (const present of [true, false]) come('alan', present)
  fire()
  list.close()
  for (const present of [true, false]) come('last', present)
  t.equal(armed.size, 1)
  list.close()
  await turns()
  t.strictSame([told, armed.size], [['join alan', 'join last'], 0])
})
