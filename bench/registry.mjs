// What it costs to find the receivers of a message among 100,000: node bench/registry.mjs
import { build } from './build.mjs'

const MEMBERS = 100_000
const RECEIVERS = [1, 10, 100, 1000]
const SECONDS = 0.3

const { Registry } = await import(new URL('lib/subscriptions/registry.js', build))

class Member {
  managed = true
  held = new Set()
  index = -1
  mark = 0

  constructor (i) {
    this.clientId = `client-${i}`
    // Ten connections to each user.
    this.userId = `user-${i % (MEMBERS / 10)}`
    this.clientInfo = { ip: `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}` }
  }
}

global.gc?.()
const heapBefore = process.memoryUsage().heapUsed
const start = performance.now()
const registry = new Registry()
const members = Array.from({ length: MEMBERS }, (_, i) => new Member(i))
for (const [i, member] of members.entries()) {
  registry.add(member)
  registry.subscribe(member, `topic:${i}`)
}
const seconds = (performance.now() - start) / 1000
global.gc?.()
const heap = process.memoryUsage().heapUsed - heapBefore
console.log(`${MEMBERS.toLocaleString('en')} members, each with a topic of its own: ${(seconds * 1e9 / MEMBERS).toFixed(0)} ns and ${(heap / MEMBERS).toFixed(0)} bytes of heap for each (member included)${global.gc === undefined ? '; --expose-gc makes the bytes exact' : ''}\n`)

const rows = []
measure('one topic of its own', 1, i => ({ subscriptionIds: [`topic:${i % MEMBERS}`] }))
for (const count of RECEIVERS) {
  for (let i = 0; i < count; i++) registry.subscribe(members[i * 7 % MEMBERS], `shared:${count}`)
  measure(`a topic that ${count.toLocaleString('en')} hold`, count, () => ({ subscriptionIds: [`shared:${count}`] }))
}
measure('a topic nobody holds', 0, i => ({ subscriptionIds: [`nobody:${i % 1000}`] }))
measure('a user with ten connections', 10, i => ({ userIds: [`user-${i % (MEMBERS / 10)}`] }))
measure('a user and a topic', 1, i => ({ userIds: [`user-${i % (MEMBERS / 10)}`], subscriptionIds: [`topic:${i % (MEMBERS / 10)}`] }))
measure('one client', 1, i => ({ clientIds: [`client-${i % MEMBERS}`] }))
measure('everyone', MEMBERS, () => ({}))

for (const [i, member] of members.entries()) registry.subscribe(member, `room:${i}:**`)
measure(`${MEMBERS.toLocaleString('en')} patterns, a topic asked before`, 1, i => ({ subscriptionIds: [`room:${i % 1000}:news`] }))
measure(`${MEMBERS.toLocaleString('en')} patterns, a topic never asked`, 1, i => ({ subscriptionIds: [`room:${i % MEMBERS}:message:${i}`] }))
measure('the same, and not covered', 0, i => ({ subscriptionIds: [`hall:${i}:message`] }))
measure('one topic of its own, patterns beside it', 1, i => ({ subscriptionIds: [`topic:${i % 1000}`] }))
print()

/** Selects for `SECONDS`, counts the receivers, and fails when they are not as many as there should be. */
function measure (name, receivers, targetOf) {
  const select = i => {
    const found = registry.select(targetOf(i)).length
    if (found !== receivers) throw new Error(`${name}: ${found} receivers instead of ${receivers}`)
  }
  for (let i = 0; i < 2000; i++) select(i)
  const start = performance.now()
  const end = start + SECONDS * 1000
  let count = 0
  while (performance.now() < end) for (let i = 0; i < 100; i++) select(2000 + count++)
  const ns = (performance.now() - start) * 1e6 / count
  rows.push([name, receivers.toLocaleString('en'), ns.toFixed(0), receivers === 0 ? '' : (ns / receivers).toFixed(1)])
}

function print () {
  const heading = ['select', 'receivers', 'ns', 'ns/receiver']
  for (const [name, ...figures] of [heading, ...rows]) console.log(name.padEnd(48) + figures.map(figure => figure.padStart(12)).join(''))
}
