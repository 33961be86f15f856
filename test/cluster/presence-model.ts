import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import type { Saying } from '../../lib/cluster/node-message.js'
import { PresenceList } from '../../lib/cluster/presence.js'
import { testClock } from '../../lib/testing/index.js'

t.test('all nodes agree on who is present, whoever comes, leaves, dies or starts', async t => {
  const LINGER_MS = 1_000
  const TOPICS = ['room:1', 'room:2']
  const user = fc.constantFrom('ada', 'alan', 'grace')
  const step = fc.oneof(
    { weight: 4, arbitrary: fc.record({ do: fc.constant('hold' as const), node: fc.nat(2), user, topic: fc.constantFrom(...TOPICS) }) },
    { weight: 4, arbitrary: fc.record({ do: fc.constant('leave' as const), node: fc.nat(2), pick: fc.nat(20) }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('wait' as const), ms: fc.constantFrom(1, 400, 600, 2_000) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('restart' as const), node: fc.nat(2) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('greet' as const), node: fc.nat(2) }) })
  await t.resolves(fc.assert(fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 30, size: 'max' }), async steps => {
    const time = testClock()
    let started = 0
    interface Node { id: string, list: PresenceList, connections: [userId: string, topic: string][], announced: Set<string>, established: boolean }
    const nodes: Node[] = []
    /** When the last node of a user was gone, by topic and user. */
    const leftAt = new Map<string, number>()
    const hear = (from: string, saying: Saying) => {
      for (const { list, established } of nodes) {
        if (saying.kind === 'presence') list.changed({ ...saying, from })
        else if (saying.kind === 'present') list.listed({ ...saying, from }, established)
        else if (saying.kind === 'leaving' && !established) list.lingering({ ...saying, from })
      }
    }
    const start = (at: number) => {
      const id = `node-${started++}`
      const announced = new Set<string>()
      const announce = (what: 'join' | 'leave', topic: string, userId: string) => {
        const key = `${topic} ${userId}`
        assert.equal(announced.has(key), what === 'leave', `${what} ${key} on ${id}`)
        if (what === 'join') announced.add(key)
        else announced.delete(key)
      }
      const node: Node = nodes[at] = { id, list: new PresenceList(time.clock, { topics: ['room:*'], lingerMs: LINGER_MS }, id, { say: saying => hear(id, saying), announce }), connections: [], announced, established: false }
      for (const { list } of nodes) list.tellAll()
      // Those who are there when a node starts, or may return to it, are announced to nobody there.
      for (const topic of TOPICS) for (const userId of node.list.announced(topic).keys()) announced.add(`${topic} ${userId}`)
      node.established = true
    }
    for (let at = 0; at < 3; at++) start(at)
    const holders = (topic: string, userId: string) => nodes.filter(({ connections }) => connections.some(([user, held]) => user === userId && held === topic)).length
    for (const step of steps) {
      const before = new Map(TOPICS.flatMap(topic => ['ada', 'alan', 'grace'].map(userId => [`${topic} ${userId}`, holders(topic, userId)])))
      if (step.do === 'wait') {
        await time.advance(step.ms)
      } else {
        const node = nodes[step.node]!
        if (step.do === 'hold') {
          node.connections.push([step.user, step.topic])
          node.list.held({ userId: step.user }, step.topic)
        } else if (step.do === 'leave' && node.connections.length > 0) {
          const [[userId, topic]] = node.connections.splice(step.pick % node.connections.length, 1) as [[string, string]]
          node.list.left({ userId }, topic)
        } else if (step.do === 'greet') {
          for (const { list } of nodes) list.tellAll()
        } else if (step.do === 'restart') {
          node.list.close()
          node.connections = []
          for (const { id, list } of nodes) if (id !== node.id) list.gone(node.id)
          start(step.node)
        }
        node.list.flush()
      }
      const now = time.clock.monotonic()
      for (const topic of TOPICS) {
        const expected = new Map<string, number>()
        for (const userId of ['ada', 'alan', 'grace']) {
          const key = `${topic} ${userId}`
          const count = holders(topic, userId)
          if (count === 0 && before.get(key)! > 0) leftAt.set(key, now)
          if (count > 0) leftAt.delete(key)
          if (count > 0 || (leftAt.has(key) && now < leftAt.get(key)! + LINGER_MS)) expected.set(userId, count)
        }
        for (const { id, list, announced } of nodes) {
          const present = list.announced(topic)
          assert.deepEqual(new Map([...present].sort()), expected, `${topic} on ${id}`)
          assert.deepEqual([...announced].filter(key => key.startsWith(topic)).sort(), [...expected.keys()].map(userId => `${topic} ${userId}`).sort(), `announced on ${id}`)
        }
      }
      for (const { list } of nodes) for (const other of nodes) assert.equal(list.misses(other.id, other.list.size), false)
    }
    for (const { list } of nodes) list.close()
  }), { numRuns: 60 }))
})
