import t, { type Test } from 'tap'
import { MemoryBudget } from '../lib/util/memory-budget.js'
import { Outbox } from '../lib/connections/outbox.js'
import { composeMessage, type Message } from '../lib/events/message.js'
import { Frame } from '../lib/delivery/frame.js'
import { Batch } from '../lib/delivery/batch.js'
import { FrameCache } from '../lib/delivery/frame-cache.js'
import type { BroadcastOptions, EventInput, SSEConnection } from '../lib/index.js'
import { Ring } from '../lib/log/ring.js'
import { MatchCache } from '../lib/subscriptions/match-cache.js'
import { PatternIndex } from '../lib/subscriptions/pattern-index.js'
import { block, serve } from './helpers/app.js'
import { collect } from './helpers/heap.js'
import { turns } from './helpers/wait.js'

// Whatever waits or is kept takes no more memory than it is counted for: the heap, after a collection, against each container's own count.

/** How much more than its count a container may take. */
const MARGIN = 1.5
const EPOCH = 'epoch123'
const KEPT = 4 << 20
/** What messages in the log take beside what `maxBytes` bounds: `maxEvents` does. */
const MESSAGE_BYTES = 320
/** What the caches of a node keep at most, each. */
const CACHE_BYTES = 4 << 20
const QUEUED_BYTES = 4 << 20
const LOG_BYTES = 1 << 20

const memory = () => collect() + process.memoryUsage().arrayBuffers

/** What an application has in hand: a large text, and a piece of it. */
function piece (i: number, length: number, wide = ''): string {
  const body = Buffer.alloc(16 * 1024, 97 + i % 26)
  body.write(`${i}-`, 1000)
  return (wide + body.toString('latin1')).slice(1000 + wide.length, 1000 + wide.length + length)
}
const users = (count: number, i: number) => Array.from({ length: count }, (_, user) => `user-${i}-${user}-of-the-tenant`)

const shapes: Record<string, (i: number) => [EventInput, BroadcastOptions?]> = {
  'small events': i => [{ event: 'x', data: { i } }],
  'a topic': i => [{ event: 'order_was_updated', data: { i, text: 'x'.repeat(30) } }, { subscriptionIds: [`orders:tenant-${i % 50}:item-${i}`] }],
  'a user and a key': i => [{ event: 'x', data: { i }, key: `key-${i}` }, { userIds: [`user-${i}`] }],
  'thousands of users': i => [{ event: 'x', data: { i } }, { userIds: users(2000, i) }],
  'thousands of users and a key': i => [{ event: 'x', data: { i }, key: `key-${i}` }, { userIds: users(2000, i) }],
  'a wide letter among many': i => [{ event: 'x', data: { i, text: `€${'x'.repeat(1000)}` } }],
  'wide names and ids': i => [{ event: '更新'.repeat(30), data: { i } }, { subscriptionIds: [`房間:${'漢字'.repeat(50)}:${i}`] }],
  'many lines': i => [{ event: 'x', data: `${i}${'\r\nline'.repeat(200)}` }],
  'nothing but line ends': i => [{ event: 'x', data: `${i}${'\n'.repeat(2000)}` }],
  'a text grown letter by letter': i => {
    let text = `${i}`
    for (let n = 0; n < 300; n++) text += 'letter'[n % 6]!
    return [{ event: 'x', data: text }]
  },
  'pieces of large texts': i => [{ event: piece(i, 20), data: piece(i, 64), key: piece(i, 30) }, { userIds: [piece(i, 40)], subscriptionIds: [piece(i, 50)], exceptClientIds: [piece(i, 60)] }],
  'plain pieces of wide texts': i => [{ event: 'x', data: piece(i, 900, '€') }, { userIds: [piece(i, 100, '€')] }]
}

function messages (shape: (i: number) => [EventInput, BroadcastOptions?]): (i: number) => Message {
  return i => {
    const [event, options = {}] = shape(i)
    return { ...composeMessage(event, options, { maxEventBytes: 1 << 20 }), seq: i }
  }
}

/** Fills a container until it counts `KEPT` bytes, and compares. */
function measure (t: Test, name: string, fill: (i: number) => number, keep: object): void {
  const before = memory()
  let counted = 0
  for (let i = 1; counted < KEPT; i++) counted = fill(i)
  const taken = memory() - before
  t.ok(taken <= MARGIN * counted, `${name}: ${taken} bytes of heap, counted as ${counted}, ${(taken / counted).toFixed(2)}`)
  t.ok(keep)
}

for (const [what, shape] of Object.entries(shapes)) {
  t.test(`what ${what} take is what they are counted for`, async t => {
    const message = messages(shape)
    const ring = new Ring({ maxEvents: 1e6, maxAgeMs: 1e9, maxBytes: 1e9 }, Date.now)
    measure(t, 'the ring', i => { ring.append(message(i)); return ring.bytes + ring.last * MESSAGE_BYTES }, ring)
    const outbox = new Outbox(1e9, new MemoryBudget(1e9))
    measure(t, 'an outbox', i => { outbox.push(Frame.ofMessage(message(i), EPOCH), i - 1); return outbox.bytes }, outbox)
    const batches = [new Batch()]
    measure(t, 'the batch of a turn', i => { batches[0] = batches[0]!.with(Frame.ofMessage(message(i), EPOCH)); return batches[0].bytes }, batches)
  })
}

t.test('the frames that are shared by those who read the log', async t => {
  for (const what of ['small events', 'thousands of users and a key', 'pieces of large texts']) {
    const message = messages(shapes[what]!)
    const cache = new FrameCache()
    const before = memory()
    for (let i = 1, counted = 0; counted < 2 * CACHE_BYTES; i++) counted += cache.of(message(i), EPOCH).bytes
    const taken = memory() - before
    t.ok(taken <= MARGIN * CACHE_BYTES, `${what}: ${taken} bytes`)
    t.ok(cache)
  }
  const cache = new FrameCache()
  const large = Array.from({ length: 3 }, (_, i) => messages(() => [{ event: 'x', data: 'x'.repeat(1_000_000) }])(i + 1))
  const frames = large.map(message => cache.of(message, EPOCH))
  for (let reader = 0; reader < 5; reader++) t.ok(large.every((message, i) => cache.of(message, EPOCH) === frames[i]), 'each is encoded once, however large, for all who read it together')
  t.not(cache.of(large[0]!, 'another'), frames[0], 'in another life of the log it is another')
})

t.test('what topics were found to match', async t => {
  for (const matching of [0, 1, 20, 2_000, 600_000]) {
    const cache = new MatchCache<string>()
    const patterns = Array.from({ length: matching }, (_, i) => `p${i}`)
    const before = memory()
    let largest = 0
    let most = 0
    for (let i = 0; i < (matching > 20 ? 1_000 : 12_000); i++) {
      cache.set(`orders:${piece(i, 30)}`, patterns)
      largest = Math.max(largest, cache.bytes)
      most = Math.max(most, cache.size)
    }
    t.ok(most <= 10_000 && largest <= CACHE_BYTES, `${most} topics, ${largest} bytes`)
    const taken = memory() - before
    t.ok(taken <= MARGIN * CACHE_BYTES, `${matching} patterns match: ${taken} bytes, counted as ${cache.bytes}`)
    t.equal(largest > 0, matching < 100_000, 'what does not fit is not kept')
  }
  const index = new PatternIndex<string>()
  index.set('*:b', '*:b')
  const before = memory()
  for (let i = 0; i < 30_000; i++) index.match(`topic-of-some-length-${i}:b`)
  t.ok(memory() - before < MARGIN * CACHE_BYTES, 'however many topics are asked for while a pattern is held')
  t.same(index.match('topic-of-some-length-1:b'), ['*:b'])
})

t.test('a new pattern concerns the topics it covers; the matches of others stay', async t => {
  const index = new PatternIndex<string>()
  index.set('a:*:x', 'a:*:x')
  index.match('a:1:x')
  const known = index.match('a:1:x')
  t.equal(index.match('a:1:x'), known, 'it is remembered')
  for (let i = 0; i < 20; i++) {
    index.set(`b:${i}:**`, `b:${i}:**`)
    index.set(`*:${i}:*:y`, `*:${i}:*:y`)
    index.delete(`b:${i}:**`)
    if (i % 5 === 0) t.equal(index.match('a:1:x'), known, 'others come and go')
  }
  index.set('a:**', 'a:**')
  t.same([...index.match('a:1:x')].sort(), ['a:**', 'a:*:x'])
  for (let i = 0; i < 100; i++) index.set(`c:${i}:*`, 'c')
  t.same([...index.match('a:1:x')].sort(), ['a:**', 'a:*:x'], 'after more changes than are remembered it is matched again')
  index.delete('a:*:x')
  t.same(index.match('a:1:x'), ['a:**'])
})

/** Streams of users that do not read, on a node that writes once in ten seconds. */
async function intervals (t: Test, names: readonly string[]) {
  const service = await serve(t, { flush: { intervalMs: 10_000 }, maxQueuedBytes: QUEUED_BYTES, outboxBytes: 1 << 20, history: { maxBytes: LOG_BYTES }, maxEventBytes: 1 << 19, stallTimeoutMs: 0 })
  const joined = await Promise.all(names.map(name => service.join(name)))
  for (const { stream } of joined) stream.freeze()
  await turns(10)
  return { sse: service.app.sse, joined }
}

t.test('what waits for an interval stays within the budget', async t => {
  const names = Array.from({ length: 40 }, (_, i) => `user-${i}`)
  for (const [what, connections] of [['one connection', names], ['two connections', [...names, ...names]]] as const) {
    await t.test(`${what} of each user`, async t => {
      const { sse } = await intervals(t, connections)
      const before = memory()
      let most = 0
      for (let i = 0; i < 60; i++) {
        for (const [n, name] of names.entries()) await sse.broadcastEvent({ event: 'x', data: { i } }, { userIds: [name, ...users(100, 1000 * i + n)] })
        if (i % 20 === 19) most = Math.max(most, memory() - before)
      }
      t.ok(most > LOG_BYTES, 'something waits')
      t.ok(most <= MARGIN * (QUEUED_BYTES + LOG_BYTES), `${most} bytes of heap`)
    })
  }
  await t.test('one that has been written to leaves nothing to those it shared a beginning with', async t => {
    const { sse } = await intervals(t, ['fast', ...names])
    const before = memory()
    for (const name of names) {
      await sse.broadcastEvent({ event: 'x', data: 'shared' }, { userIds: [name, 'fast'], ephemeral: true })
      for (let i = 0; i < 200; i++) await sse.broadcastEvent({ event: 'x', data: { i } }, { userIds: ['fast', ...users(100, i)], ephemeral: true })
    }
    const taken = memory() - before
    t.ok(taken <= MARGIN * (QUEUED_BYTES + LOG_BYTES), `${taken} bytes of heap`)
  })
})

t.test('one client that does not read, and events for thousands', async t => {
  for (const key of [false, true]) {
    await t.test(key ? 'with a key' : 'without', async t => {
      const service = await serve(t, { maxQueuedBytes: QUEUED_BYTES, outboxBytes: 1 << 20, history: { maxBytes: LOG_BYTES }, maxEventBytes: 1 << 19, stallTimeoutMs: 0 })
      await block(await service.join('ada'))
      const before = memory()
      for (let n = 0; n < 400; n++) await service.app.sse.broadcastEvent({ event: 'x', data: { n }, ...(key && { key: `k${n}` }) }, { userIds: ['ada', ...users(1000, n)], priority: n % 4 as 0 | 1 | 2 | 3, ephemeral: n % 3 === 0 })
      const taken = memory() - before
      t.ok(taken <= MARGIN * ((1 << 20) + LOG_BYTES), `${taken} bytes of heap`)
    })
  }
})

t.test('what a filter closes over cannot be measured: the log and an outbox keep few', async t => {
  const service = await serve(t, { outboxBytes: 1 << 20, history: { maxBytes: LOG_BYTES }, maxEventBytes: 1 << 19, stallTimeoutMs: 0 })
  await block(await service.join('ada'))
  const before = memory()
  for (let i = 0; i < 1000; i++) {
    const request = { body: Buffer.alloc(64 * 1024, 97 + i % 26).toString('latin1'), user: `user-${i}` }
    await service.app.sse.broadcastEvent({ event: 'x', data: 'y' }, { filter: connection => connection.userId !== request.user, ephemeral: i % 2 === 0 })
  }
  t.ok(memory() - before < 20 << 20, `${memory() - before} bytes of heap where all would be 64 MB`)
})

t.test('what a connection holds keeps nothing else', async t => {
  const bodies = (i: number, what: string) => `${what}-${i}-of-some-length\n${'x'.repeat(1 << 18)}${i}`
  const first = (text: string) => text.slice(0, text.indexOf('\n'))
  let opened = 0
  const connections: SSEConnection[] = []
  const service = await serve(t, { authHandler: () => first(bodies(opened++, 'user')), authorizeSubscription: () => true, maxConnectionsPerUser: 2 }, {}, app => {
    app.get('/own', { sse: true }, async (_request, reply) => {
      const i = connections.length
      connections.push(await reply.sse({ subscriptions: [first(bodies(i, 'topic')), `${first(bodies(i, 'pattern'))}:*`], lastEventId: first(bodies(i, 'cursor')) }))
    })
  })
  const join = async (i: number) => {
    await service.open('/own')
    await connections[i]!.addSubscription(first(bodies(i, 'added')))
    await service.app.sse.disconnectUser(first(bodies(i, 'gone')))
    connections[i]!.hasSubscription(first(bodies(i, 'asked')))
  }
  // The first bring along what all share.
  for (let i = 0; i < 5; i++) await join(i)
  const before = memory()
  for (let i = 5; i < 25; i++) await join(i)
  const taken = memory() - before
  t.ok(taken < 4 << 20, `${taken} bytes for 20 connections, where one piece of each body would be 5 MB`)
})
