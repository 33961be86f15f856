import { setTimeout as sleep } from 'node:timers/promises'
import type { Socket } from 'node:net'
import { getDefaultHighWaterMark } from 'node:stream'
import t, { type Test } from 'tap'
import { EventSource } from 'undici'
import { EventPriority, type Broker, type SSEOptions } from '../lib/index.js'
import type { GapReason, Page, Published, ReadRequest, Sink } from '../lib/log/broker.js'
import type { Message, OutgoingMessage } from '../lib/events/message.js'
import { block, FILLER_BYTES, serve, type Joined, type Service, settle, texts } from './helpers/app.js'
import { SSEClient, type Block } from './helpers/sse.js'
import { turns, until } from './helpers/wait.js'

// The promise of the whole: ordered, at least once within the history, nothing twice; otherwise one explicit gap.

const PRIORITIES = [EventPriority.LOW, EventPriority.NORMAL, EventPriority.HIGH, EventPriority.CRITICAL]

/** Random numbers that are the same in each run. */
function random (seed: number): (below: number) => number {
  return below => {
    seed = (seed + 0x6d2b79f5) | 0
    let x = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
    return ((x ^ (x >>> 14)) >>> 0) % below
  }
}

/** Numbers events within each priority, so that a reader sees any hole, repetition or change of order. */
class Sequence {
  readonly published = [0, 0, 0, 0]
  readonly #service: Service
  readonly #next: (below: number) => number

  constructor (service: Service, next: (below: number) => number) {
    this.#service = service
    this.#next = next
  }

  /** Publishes one event for everyone, of a random priority or the one given. */
  async publish (priority: EventPriority = PRIORITIES[this.#next(4)]!, padding = 0): Promise<string> {
    const n = ++this.published[priority]!
    const { id } = await this.#service.app.sse.broadcastEvent({ event: 'n', data: { priority, n, padding: 'x'.repeat(padding) }, priority })
    return id!
  }

  get total (): number {
    return this.published.reduce((sum, count) => sum + count, 0)
  }
}

/** Checks what one client reads of a Sequence, over as many connections as it likes. */
class Reader {
  readonly seen = [0, 0, 0, 0]
  readonly faults: string[] = []
  gaps = 0

  take ({ event, data }: Block): void {
    if (event === 'sse:gap') this.gaps++
    if (event !== 'n') return
    const { priority, n } = JSON.parse(data!) as { priority: EventPriority, n: number }
    if (n !== this.seen[priority]! + 1) this.faults.push(`priority ${priority}: ${n} after ${this.seen[priority]}`)
    this.seen[priority] = Math.max(this.seen[priority]!, n)
  }

  get total (): number {
    return this.seen.reduce((sum, count) => sum + count, 0)
  }
}

/** What identifies an event of a Sequence. */
const nameOf = ({ data }: Block) => {
  const { priority, n } = JSON.parse(data!) as { priority: number, n: number }
  return `${priority}:${n}`
}

t.test('where the cursor comes from', async t => {
  const service = await serve(t)
  const { app, open } = service
  const publish = async (data: string) => (await app.sse.broadcastEvent({ event: 'x', data })).id!
  const ids = [await publish('1'), await publish('2'), await publish('3')]
  const cases: [name: string, query: string, header: string | null, expected: string[]][] = [
    ['none', '', null, []],
    ['header', '', ids[0]!, ['2', '3']],
    ['query lastEventId', `?lastEventId=${ids[0]}`, null, ['2', '3']],
    ['query last_event_id', `?last_event_id=${ids[1]}`, null, ['3']],
    ['both queries', `?last_event_id=${ids[0]}&lastEventId=${ids[1]}`, null, ['3']],
    ['header and query: the header wins', `?lastEventId=${ids[0]}`, ids[1]!, ['3']],
    ['an empty header is a client that has been told no place', '', '', []],
    ['an empty query', '?lastEventId=', null, []],
    ['an empty header hides no query', `?lastEventId=${ids[1]}`, '', ['3']],
    ['an empty query hides no other', `?lastEventId=&last_event_id=${ids[1]}`, null, ['3']],
    ['all empty', '?lastEventId=&last_event_id=', '', []],
    ['at the end', '', ids[2]!, []]
  ]
  for (const [name, query, header, expected] of cases) {
    const client = await open(`/sse${query}`, { headers: header === null ? {} : { 'last-event-id': header } })
    await settle(service, client)
    t.strictSame(texts(client), expected, name)
    t.strictSame(client.named('sse:gap'), [], name)
    client.close()
  }
  const own = await service.join(null, [], { lastEventId: ids[1]!, cursor: ids[0]! })
  await settle(service, own.client)
  t.strictSame(texts(own.client), ['3'], 'the application\'s word counts more')
  t.equal(own.connection.lastEventId, ids[1])
  const fresh = await service.join(null, [], { lastEventId: null, cursor: ids[0]! })
  await settle(service, fresh.client)
  t.strictSame(texts(fresh.client), [])
})

t.test('what is replayed is what this user may see now', async t => {
  const service = await serve(t, { authorizeSubscription: ({ userId, subscriptionId }) => subscriptionId !== 'secret' || userId === 'ada' })
  const { app, join } = service
  const ada = await join('ada', ['secret', 'news'])
  const start = ada.client.lastEventId
  const publish = (data: string, options: object = {}) => app.sse.broadcastEvent({ event: 'x', data }, options)
  await publish('everyone')
  await publish('for ada', { userIds: ['ada'] })
  await publish('for grace', { userIds: ['grace'] })
  await publish('secret', { subscriptionIds: ['secret'] })
  await publish('news', { subscriptionIds: ['news'] })
  await publish('ada\'s news', { userIds: ['ada'], subscriptionIds: ['news'] })
  await publish('for the connection', { clientIds: [ada.connection.clientId] })
  await publish('filtered', { filter: ({ userId }: { userId: string | null }) => userId !== 'grace' })
  await publish('nobody', { userIds: [] })
  await settle(service, ada.client)
  t.strictSame(texts(ada.client), ['everyone', 'for ada', 'secret', 'news', 'ada\'s news', 'for the connection', 'filtered'])
  const cases: [name: string, user: string | null, subscriptions: string[], expected: string[]][] = [
    ['the same user again', 'ada', ['secret', 'news'], ['everyone', 'for ada', 'secret', 'news', 'ada\'s news', 'filtered']],
    ['with less rights than before', 'ada', [], ['everyone', 'for ada', 'filtered']],
    ['with other subscriptions', 'ada', ['new*'.slice(0, 3), 'news'], ['everyone', 'for ada', 'news', 'ada\'s news', 'filtered']],
    ['with a pattern', 'ada', ['*'], ['everyone', 'for ada', 'secret', 'news', 'ada\'s news', 'filtered']],
    ['another user with a stolen cursor', 'grace', ['news'], ['everyone', 'for grace', 'news']],
    ['nobody with a stolen cursor', null, [], ['everyone', 'filtered']]
  ]
  for (const [name, user, subscriptions, expected] of cases) {
    const { client } = await join(user, subscriptions, { cursor: start })
    await settle(service, client)
    t.strictSame(texts(client), expected, name)
    t.strictSame(client.named('sse:gap'), [], `${name}: not for it is not a gap`)
    client.close()
  }
  await t.rejects(join('grace', ['secret'], { cursor: start }), { message: /SSE_ERR_SUBSCRIPTION_FORBIDDEN/ })
  const late = await join('grace', [], { cursor: start })
  await late.connection.addSubscription('news')
  await settle(service, late.client)
  t.strictSame(texts(late.client).filter(text => text !== 'news'), ['everyone', 'for grace'])
})

/** Clients that read a Sequence while it is published, each cutting its connection now and then, until they have it all. */
async function churn (t: Test, options: SSEOptions, { clients, events, perTurn, cutEvery, server }: { clients: number, events: number, perTurn: number, cutEvery: number, server?: (app: Service['app']) => void }): Promise<void> {
  const service = await serve(t, { history: { maxEvents: 100_000 }, ...options }, {}, server)
  const sequence = new Sequence(service, random(events))
  let cuts = 0
  const read = async (seed: number, ready: () => void): Promise<Reader> => {
    const next = random(seed)
    const reader = new Reader()
    let cursor: string | null = null
    for (let round = 0; round < 2_000; round++) {
      const client = new SSEClient(`${service.url}/sse`, { headers: cursor === null ? {} : { 'last-event-id': cursor } })
      t.teardown(() => client.close())
      let left = 1 + next(2 * cutEvery)
      client.onBlock = block => {
        if (block.id !== null) cursor = block.id
        if (round === 0) ready()
        reader.take(block)
        if (block.event === 'end') return false
        return block.event !== 'n' || --left > 0
      }
      await until(() => client.closed, undefined, `the cut of reader ${seed}`)
      if (client.status !== 200) throw new Error(`${client.status} ${client.body}`)
      if (client.blocks.at(-1)?.event === 'end') return reader
      cuts++
    }
    throw new Error('It never came to the end')
  }
  const starts: Promise<void>[] = []
  const readers = Array.from({ length: clients }, (_, seed) => {
    let ready = () => {}
    starts.push(new Promise(resolve => { ready = resolve }))
    return read(seed + 1, ready)
  })
  await Promise.all(starts)
  while (sequence.total < events) {
    await Promise.all(Array.from({ length: perTurn }, () => sequence.publish()))
    await turns(1)
  }
  // Of the lowest priority, so that it comes last however far behind a reader is.
  await app(service).broadcastEvent({ event: 'end', data: '', priority: EventPriority.LOW })
  const results = await Promise.all(readers)
  for (const [i, { faults, seen, gaps }] of results.entries()) {
    t.strictSame(faults.slice(0, 5), [], `reader ${i}: no hole, no repetition, no change of order`)
    t.strictSame(seen, sequence.published, `reader ${i}: everything`)
    t.equal(gaps, 0, `reader ${i}: no gap`)
  }
  t.ok(cuts >= clients * 3, `${cuts} cuts`)
  await until(() => service.app.sse.connectionCount === 0)
}
const app = ({ app }: Service) => app.sse

t.test('publishing goes on at full rate while clients come and go', t => churn(t, {}, { clients: 6, events: 20_000, perTurn: 10, cutEvery: 400 }))

t.test('so with outboxes that overflow all the time', t => churn(t, { outboxBytes: 1024 }, { clients: 4, events: 4_000, perTurn: 40, cutEvery: 100 }))

t.test('so when it takes time between the request and the head', t => {
  const next = random(7)
  return churn(t, { authHandler: async () => { await sleep(next(15)); return 'ada' } }, {
    clients: 6,
    events: 6_000,
    perTurn: 5,
    cutEvery: 150,
    server: app => { app.addHook('onSend', async () => { await sleep(next(15)) }) }
  })
})

t.test('a gap, once, and then live', async t => {
  const options: SSEOptions = { history: { maxEvents: 10 }, maxReplayEvents: 8 }
  const hostile = 'x'.repeat(15_000)
  type Cursor = (epoch: string) => string
  const cases: [name: string, reason: string, cursor: Cursor, way?: 'header' | 'query'][] = [
    ['garbage', 'malformed', () => 'garbage'],
    ['a number', 'malformed', () => '5'],
    ['without a place', 'malformed', epoch => `${epoch}.`],
    ['a negative place', 'malformed', epoch => `${epoch}.-1`],
    ['upper case', 'malformed', epoch => `${epoch}.A`],
    ['two lanes', 'malformed', epoch => `${epoch}.1~2`],
    ['five lanes', 'malformed', epoch => `${epoch}.1~2~3~4~5`],
    ['an empty lane', 'malformed', epoch => `${epoch}.1~~2~3`],
    ['a place beyond numbers', 'malformed', epoch => `${epoch}.${'z'.repeat(11)}`],
    ['a place too long', 'malformed', epoch => `${epoch}.${'1'.repeat(12)}`],
    ['something after it', 'malformed', epoch => `${epoch}.1 2`],
    ['a line after it', 'malformed', epoch => `${epoch}.1\n`, 'query'],
    ['forged fields', 'malformed', () => '1\r\ndata: forged\r\n\r\n', 'query'],
    ['a very long one', 'malformed', () => hostile],
    ['a very long one in the query', 'malformed', () => hostile, 'query'],
    ['NUL', 'malformed', epoch => `${epoch}.\0`, 'query'],
    ['no ASCII', 'malformed', epoch => `${epoch}.\xff\xfe\xe9`],
    ['no ASCII in the query', 'malformed', () => '\u{1f600}\u2028\ud800', 'query'],
    ['another life of the log', 'epoch', () => 'zzzzzzzz.1'],
    ['another life of the log, in lanes', 'epoch', () => 'zzzzzzzz.1~2~3~4'],
    ['the future', 'unknown', epoch => `${epoch}.zzz`],
    ['the future in one lane', 'unknown', epoch => `${epoch}.s~s~s~zzz`],
    ['more than maxReplayEvents', 'limit', epoch => `${epoch}.l`],
    ['more than maxReplayEvents in one lane', 'limit', epoch => `${epoch}.u~u~l~u`],
    ['long ago', 'limit', epoch => `${epoch}.0`]
  ]
  const service = await serve(t, options)
  const { app } = service
  const first = await service.open('/sse')
  const epoch = first.lastEventId.split('.')[0]!
  first.close()
  for (let i = 1; i <= 30; i++) await app.sse.broadcastEvent({ event: 'old', data: i, priority: PRIORITIES[i % 4]! })
  for (const [name, reason, of, way = 'header'] of cases) {
    const cursor = of(epoch)
    const client = way === 'header'
      ? await service.open('/sse', { headers: { 'last-event-id': cursor } })
      : await service.open(`/sse?lastEventId=${encodeURIComponent(cursor.toWellFormed())}`)
    await app.sse.broadcastEvent({ event: 'x', data: name }, { ephemeral: true })
    await client.waitFor('x')
    t.strictSame(client.events.map(({ event }) => event), ['sse:gap', 'x'], `${name}: one gap, no replay, then live`)
    t.strictSame(client.json('sse:gap'), [{ reason, lastEventId: cursor.toWellFormed() }], name)
    t.equal(client.lastEventId, `${epoch}.u`, `${name}: and a place again`)
    const beforeGap = client.blocks.slice(0, client.blocks.findIndex(({ event }) => event === 'sse:gap'))
    t.notOk(beforeGap.some(({ id }) => id !== null), `${name}: no place before the gap is told; a client cut here comes back with its old one`)
    client.close()
  }

  await t.test('NUL in the header is no HTTP', async t => {
    const client = await service.open('/sse', { headers: { 'last-event-id': `${epoch}.1\0` } })
    t.equal(client.status, 400)
  })

  await t.test('the last place within the limit', async t => {
    const client = await service.open('/sse', { headers: { 'last-event-id': `${epoch}.m` } })
    await client.waitFor('old', 8)
    t.strictSame(client.named('sse:gap'), [])
    t.strictSame(client.json('old').sort((a, b) => a - b), [23, 24, 25, 26, 27, 28, 29, 30])
  })

  await t.test('an empty log', async t => {
    const service = await serve(t)
    const client = await service.open('/sse', { headers: { 'last-event-id': 'zzzzzzzz.5' } })
    await client.waitFor('sse:gap')
    t.notOk(client.blocks.slice(0, client.blocks.findIndex(({ event }) => event === 'sse:gap')).some(({ id }) => id !== null))
    await service.app.sse.broadcastEvent({ event: 'x', data: 1 })
    await client.waitFor('x')
    t.strictSame(client.events.map(({ event }) => event), ['sse:gap', 'x'])
  })
})

t.test('a gap for what the history has let go', async t => {
  const gap = async (t: Test, service: Service, cursor: string, ways: object = {}) => {
    const { client } = await service.join('ada', [], { cursor, ...ways })
    // An event that is published before the log has been read for the client is within the gap.
    await client.waitFor('sse:gap')
    await service.app.sse.broadcastEvent({ event: 'live', data: 1 })
    await client.waitFor('live')
    t.strictSame(client.events.map(({ event }) => event), ['sse:gap', 'live'])
    t.match(client.json('sse:gap')[0], { reason: 'trimmed' })
    // Cut anywhere, it is told again, or goes on behind it.
    // What comes after, marks of the clients below among it, is not looked at.
    const received = [...client.blocks]
    for (let k = 1; k <= received.length; k++) {
      const blocks = received.slice(0, k)
      const place = blocks.findLast(({ id }) => id !== null)?.id ?? cursor
      const again = await service.join('ada', [], { cursor: place })
      await settle(service, again.client)
      const told = blocks.some(({ event }) => event === 'sse:gap')
      t.equal(again.client.named('sse:gap').length, told ? 0 : 1, `cut after block ${k}`)
      t.equal(again.client.named('live').length, blocks.some(({ event }) => event === 'live') || !told ? 0 : 1, `cut after block ${k}`)
      again.client.close()
    }
    client.close()
  }

  await t.test('by count', async t => {
    const service = await serve(t, { history: { maxEvents: 20 } })
    const start = (await service.open('/sse')).lastEventId
    for (let i = 1; i <= 50; i++) await service.app.sse.broadcastEvent({ event: 'old', data: i, priority: PRIORITIES[i % 4]! })
    await gap(t, service, start)
    await gap(t, service, start.replace(/0$/, '1~1~1~1'))
  })

  await t.test('but none for a priority of which there was nothing to let go', async t => {
    const service = await serve(t, { history: { maxEvents: 20 } })
    const start = (await service.open('/sse')).lastEventId
    await service.app.sse.broadcastEvent({ event: 'urgent', data: 0, priority: EventPriority.CRITICAL })
    for (let i = 1; i <= 50; i++) await service.app.sse.broadcastEvent({ event: 'old', data: i })
    // So slow in the middle that the other lanes have never come to be read.
    const { client } = await service.join('ada', [], { cursor: start.replace(/0$/, `0~${(41).toString(36)}~0~1`) })
    await service.app.sse.broadcastEvent({ event: 'live', data: 1 })
    await client.waitFor('live')
    t.strictSame(client.events.map(({ event }) => event), [...new Array(10).fill('old'), 'live'])
    t.equal(client.lastEventId, start.replace(/0$/, (52).toString(36)))
  })

  await t.test('by age', async t => {
    const service = await serve(t, { history: { maxAgeMs: 50 } })
    const start = (await service.open('/sse')).lastEventId
    await service.app.sse.broadcastEvent({ event: 'old', data: 1 })
    await sleep(80)
    const { client } = await service.join('ada', [], { cursor: start })
    await client.waitFor('sse:gap')
    await service.app.sse.broadcastEvent({ event: 'live', data: 1 })
    await client.waitFor('live')
    t.strictSame(client.events.map(({ event }) => event), ['sse:gap', 'live'])
    t.match(client.json('sse:gap'), [{ reason: 'trimmed' }])
  })

  await t.test('by bytes', async t => {
    const service = await serve(t, { history: { maxBytes: 10_000 }, maxEventBytes: 5_000 })
    const start = (await service.open('/sse')).lastEventId
    for (let i = 1; i <= 3; i++) await service.app.sse.broadcastEvent({ event: 'old', data: 'x'.repeat(5_000 - 'old'.length) })
    await gap(t, service, start)
  })
})

t.test('quiet and filtered clients keep their place', async t => {
  const service = await serve(t, { keepAliveIntervalMs: 60, history: { maxEvents: 5 } })
  const { app, join } = service
  const quiet = await join('ada')
  const busy = await join('grace')
  let id = ''
  const publish = async (count: number) => {
    for (let i = 0; i < count; i++) id = (await app.sse.broadcastEvent({ event: 'x', data: i }, { userIds: ['zoe'] })).id!
  }
  const stop = setInterval(() => { busy.connection.sendEvent({ event: 'tick', data: 1 }) }, 10)
  t.teardown(() => clearInterval(stop))
  for (let round = 0; round < 3; round++) {
    await publish(20)
    for (const [name, { client }] of Object.entries({ quiet, busy })) {
      await until(() => client.lastEventId === id, undefined, `${name} is told the place`)
      t.strictSame(client.named('x'), [], name)
      const again = await join('ada', [], { cursor: client.lastEventId })
      await until(() => again.client.blocks.some(({ comment }) => comment === 'keep-alive'))
      t.strictSame(again.client.events, [], `${name}: nothing was missed, so there is no gap`)
      again.client.close()
    }
  }
  const blocks = quiet.client.blocks.filter(({ id }) => id !== null)
  t.ok(blocks.every(({ text }) => /^id: \S+$/.test(text)), 'blocks without an event')
  const count = quiet.client.blocks.length
  await until(() => quiet.client.blocks.length >= count + 2)
  t.ok(quiet.client.blocks.slice(-2).every(({ text }) => text === ': keep-alive'), 'the same place is not told twice')
})

/** All blocks of a backlog: published while the client does not read, then read to the end. */
async function backlog (service: Service, slow: Joined, publish: () => Promise<void>): Promise<Block[]> {
  await block(slow)
  const from = slow.client.blocks.length
  await publish()
  slow.client.resume()
  await settle(service, slow.client)
  return slow.client.blocks.slice(from)
}

for (const outboxBytes of [1 << 20, 4096, 1024]) {
  t.test(`priorities with an exact cursor, outboxBytes ${outboxBytes}`, async t => {
    const service = await serve(t, { outboxBytes })
    const { join, app } = service
    const sequence = new Sequence(service, random(outboxBytes))
    const slow = await join('ada')
    const start = slow.client.lastEventId
    const blocks = await backlog(service, slow, async () => {
      for (let i = 0; i < 60; i++) {
        await sequence.publish(undefined, 100)
        if (i % 4 === 0) await app.sse.broadcastEvent({ event: 'other', data: i, priority: PRIORITIES[(i / 4) % 4]! }, { userIds: ['grace'] })
        if (i % 10 === 0) await turns(1)
      }
    })
    const events = blocks.filter(({ event }) => event === 'n')
    const reader = new Reader()
    for (const event of events) reader.take(event)
    t.strictSame(reader.faults, [], 'order is kept within a priority')
    t.strictSame(reader.seen, sequence.published)
    const priorities = events.map(({ data }) => (JSON.parse(data!) as { priority: number }).priority)
    if (outboxBytes === 1 << 20) t.strictSame(priorities, [...priorities].sort((a, b) => b - a), 'higher first')
    const position = (values: number[], of: number) => values.reduce((sum, value, i) => value === of ? sum + i : sum, 0) / sequence.published[of]!
    t.ok(position(priorities, 3) < position(priorities, 0), 'higher first, on the whole, however small the outbox')
    t.ok(blocks.some(({ id }) => id?.includes('~')), 'a cursor that names what was read ahead')
    t.ok(blocks.every(({ id }) => id === null || /^[A-Za-z0-9._~-]{1,128}$/.test(id)))
    t.equal(slow.client.lastEventId.includes('~'), false, 'level again at the end')

    const all = [...new Set(events.map(nameOf))].sort()
    await t.test('cut after any frame, the rest comes, and nothing twice', async t => {
      let place = start
      const had: string[] = []
      for (let k = 0; k <= blocks.length; k++) {
        const block = k === 0 ? null : blocks[k - 1]!
        if (block?.id != null) place = block.id
        if (block?.event === 'n') had.push(nameOf(block))
        const { client } = await join('ada', [], { cursor: place })
        await settle(service, client)
        t.strictSame([...had, ...client.named('n').map(nameOf)].sort(), all, `cut after frame ${k}`)
        t.equal(client.named('sse:gap').length, 0)
        client.close()
      }
    })

    await t.test('one frame for each connection', async t => {
      let place = start
      const had: string[] = []
      for (let round = 0; round < 200 && had.length < all.length; round++) {
        const client = new SSEClient(`${service.url}/sse?user=ada`, { headers: { 'last-event-id': place } })
        t.teardown(() => client.close())
        client.onBlock = block => {
          if (block.id !== null) place = block.id
          if (block.event !== 'n') return true
          had.push(nameOf(block))
          return false
        }
        await until(() => client.closed, undefined, 'one frame')
      }
      t.strictSame([...had].sort(), all, 'all, and nothing twice')
      t.equal(had.length, all.length)
      const order = had.map(name => Number(name[0]))
      t.strictSame(order, [...order].sort((a, b) => b - a), 'higher first, over all connections')
      const { client } = await join('ada', [], { cursor: place })
      await settle(service, client)
      t.strictSame(client.named('n'), [])
    })
  })
}

t.test('a client that is slow now and then gets everything, and is live again', async t => {
  const service = await serve(t, { outboxBytes: 4096, stallTimeoutMs: 0 })
  const slow = await service.join('ada')
  const brisk = await service.join('grace')
  const next = random(3)
  const sequence = new Sequence(service, next)
  let lagged = 0
  for (let round = 0; round < 5; round++) {
    await block(slow)
    for (let i = 0; i < 300; i++) {
      await sequence.publish(undefined, next(300))
      if (i % 20 === 0) await turns(1)
    }
    if (slow.connection.stats().lagging) lagged++
    // A socket that is not full yet takes one filler more, and an outbox without anything else a larger one than it has room for.
    const { queuedBytes } = slow.connection.stats()
    t.ok(queuedBytes <= getDefaultHighWaterMark(false) + 2 * (FILLER_BYTES + 100), `${queuedBytes} bytes wait`)
    slow.client.resume()
    // Sometimes it has caught up before it is slow again, sometimes not.
    if (round % 2 === 0) await settle(service, slow.client)
  }
  await settle(service, slow.client, brisk.client)
  for (const [name, { client }] of Object.entries({ slow, brisk })) {
    const reader = new Reader()
    for (const event of client.events) reader.take(event)
    t.strictSame(reader.faults.slice(0, 5), [], `${name}: no hole, no repetition, no change of order`)
    t.strictSame(reader.seen, sequence.published, name)
    t.equal(reader.gaps, 0, name)
  }
  t.equal(lagged, 5, 'the outbox has overflowed')
  await until(() => !slow.connection.stats().lagging)
  t.match(service.app.sse.stats(), { lagging: 0, queuedBytes: 0 })
  const id = await sequence.publish()
  await until(() => slow.client.lastEventId === id, undefined, 'live')
  t.notOk(id.includes('~'))
})

t.test('a slow client that falls out of the log: one gap, then live', async t => {
  for (const priorities of [[EventPriority.NORMAL], PRIORITIES]) {
    const service = await serve(t, { outboxBytes: 4096, history: { maxEvents: 50 } })
    const slow = await service.join('ada')
    await block(slow)
    const sequence = new Sequence(service, random(5))
    for (let i = 0; i < 600; i++) await sequence.publish(priorities[i % priorities.length]!, 50)
    slow.client.resume()
    await slow.client.waitFor('sse:gap')
    const newest = [...sequence.published]
    await settle(service, slow.client)
    for (let i = 0; i < 20; i++) await sequence.publish(priorities[i % priorities.length]!)
    await settle(service, slow.client)
    t.strictSame(slow.client.json('sse:gap').map(({ reason }) => reason), ['trimmed'], 'one gap')
    const seen = slow.client.named('n').map(({ data }) => JSON.parse(data!) as { priority: EventPriority, n: number })
    for (const priority of priorities) {
      const numbers = seen.filter(event => event.priority === priority).map(({ n }) => n)
      t.strictSame(numbers, [...new Set(numbers)].sort((a, b) => a - b), 'in order, nothing twice')
      const breaks = numbers.filter((n, i) => n !== (i === 0 ? 1 : numbers[i - 1]! + 1)).length
      t.ok(breaks <= 1, 'one hole at most, where the gap is')
      const live = Array.from({ length: sequence.published[priority]! - newest[priority]! }, (_, i) => newest[priority]! + i + 1)
      t.strictSame(numbers.slice(-live.length), live, 'then live')
    }
    t.equal(slow.client.lastEventId.includes('~'), false)
    const again = await service.join('ada', [], { cursor: slow.client.lastEventId })
    await settle(service, again.client)
    t.strictSame([again.client.named('sse:gap').length, again.client.named('n').length], [0, 0])
  }
})

t.test('ephemeral events are dropped lowest first, and counted', async t => {
  const service = await serve(t, { outboxBytes: 16_384, drainMs: 100 })
  const { app } = service
  const slow = await service.join('ada')
  await block(slow)
  const filler = slow.connection.stats()
  t.equal(filler.droppedEvents, 0)
  const data = 'x'.repeat(1000)
  const outcome: Record<string, number> = {}
  const send = async (event: string, priority: EventPriority, count: number) => {
    for (let i = 0; i < count; i++) {
      const { delivered } = await app.sse.broadcastEvent({ event, data, priority }, { ephemeral: true })
      outcome[event] = (outcome[event] ?? 0) + delivered
    }
    await turns(1)
  }
  await send('low', EventPriority.LOW, 10)
  await send('normal', EventPriority.NORMAL, 10)
  await send('high', EventPriority.HIGH, 10)
  await send('critical', EventPriority.CRITICAL, 10)
  await send('late-low', EventPriority.LOW, 5)
  const logged = await app.sse.broadcastEvent({ event: 'logged', data, priority: EventPriority.LOW })
  t.equal(logged.delivered, 1, 'a logged event is never dropped')
  t.equal(outcome['critical'], 10)
  t.equal(outcome['late-low'], 0, 'nothing makes room for what is lowest')
  t.equal(slow.connection.sendEvent({ event: 'direct', data, priority: EventPriority.LOW }), false, 'and a send says so')
  const { droppedEvents } = slow.connection.stats()
  t.ok(droppedEvents > 0)
  t.equal(app.sse.stats().dropped, droppedEvents)
  slow.client.resume()
  await settle(service, slow.client)
  const got = (event: string) => slow.client.named(event).length
  t.equal(got('critical'), 10, 'the highest have all come')
  t.ok(got('high') < 10 || got('normal') === 0, 'a lower one only where all higher ones are')
  t.ok(got('low') <= got('normal') && got('normal') <= got('high') && got('high') <= got('critical'), `${got('low')} ≤ ${got('normal')} ≤ ${got('high')}`)
  t.equal(got('logged'), 1)
  t.equal(got('late-low'), 0)
  const sent = 10 + 10 + 10 + 10 + 5 + 1
  const arrived = got('low') + got('normal') + got('high') + got('critical') + got('late-low') + got('direct')
  t.ok(droppedEvents >= sent - arrived, `${droppedEvents} dropped, ${sent - arrived} of ours missing; the rest is filler`)
  t.equal(slow.client.named('sse:gap').length, 0, 'what is not logged leaves no gap')
  t.equal(slow.connection.stats().droppedEvents, droppedEvents)

  await t.test('the count survives the connection', async t => {
    await block(slow)
    await send('critical', EventPriority.CRITICAL, 40)
    const { dropped } = app.sse.stats()
    t.ok(dropped > droppedEvents)
    slow.connection.close()
    t.equal(app.sse.stats().dropped, dropped, 'while it closes')
    slow.client.close()
    await until(() => app.sse.connectionCount === 0)
    t.equal(app.sse.stats().dropped, dropped, 'and when it has')
  })
})

t.test('a key conflates in the outbox and in catch-up, without a loss', async t => {
  for (const outboxBytes of [1 << 20, 2048]) {
    const service = await serve(t, { outboxBytes })
    const { app, join } = service
    const slow = await join('ada')
    const start = slow.client.lastEventId
    const next = random(11)
    const newest: Record<string, number> = {}
    const blocks = await backlog(service, slow, async () => {
      for (let i = 1; i <= 80; i++) {
        const key = `k${next(4)}`
        newest[key] = i
        await app.sse.broadcastEvent({ event: 'x', data: { key, i, padding: 'x'.repeat(60) }, key, priority: PRIORITIES[Number(key[1])]! })
        if (i % 10 === 0) {
          await app.sse.broadcastEvent({ event: 'plain', data: i })
          await turns(1)
        }
      }
    })
    const values = (list: Block[]) => {
      const last: Record<string, number> = {}
      for (const { data, event } of list) {
        if (event !== 'x') continue
        const { key, i } = JSON.parse(data!) as { key: string, i: number }
        if (i <= (last[key] ?? 0)) t.fail(`${i} after ${last[key]}`)
        last[key] = i
      }
      return last
    }
    t.strictSame(values(blocks), newest, 'the newest of each')
    t.equal(blocks.filter(({ event }) => event === 'plain').length, 8, 'without a key nothing is replaced')
    if (outboxBytes === 1 << 20) t.equal(blocks.filter(({ event }) => event === 'x').length, 4, 'and nothing else')
    let place = start
    for (const [k, block] of [null, ...blocks].entries()) {
      if (block?.id != null) place = block.id
      const { client } = await join('ada', [], { cursor: place })
      await settle(service, client)
      t.strictSame({ ...values(blocks.slice(0, k)), ...values(client.blocks) }, newest, `cut after frame ${k}`)
      client.close()
    }
  }

  await t.test('a logged event is not lost to an ephemeral one of its key', async t => {
    const service = await serve(t)
    const slow = await service.join('ada')
    await block(slow)
    const start = slow.client.lastEventId
    await service.app.sse.broadcastEvent({ event: 'x', data: 'logged', key: 'k' })
    await service.app.sse.broadcastEvent({ event: 'x', data: 'ephemeral', key: 'k' }, { ephemeral: true })
    await service.app.sse.broadcastEvent({ event: 'y', data: 1, priority: EventPriority.HIGH })
    slow.client.resume()
    const y = await slow.client.waitFor('y')
    const { client } = await service.join('ada', [], { cursor: y[0]!.id! })
    await settle(service, client)
    t.strictSame(texts(client), ['logged'], 'cut before it came, it comes')
    t.not(y[0]!.id, start)
  })

  await t.test('an older event that is caught up with does not replace a newer one that waits', async t => {
    const service = await serve(t, { outboxBytes: 2048 })
    const { app, join } = service
    const slow = await join('ada')
    await block(slow)
    // The lane of low priority leaves for the log with the older event; the newer waits in another lane.
    await app.sse.broadcastEvent({ event: 'x', data: 'older', key: 'k', priority: EventPriority.LOW })
    for (let i = 0; i < 30; i++) await app.sse.broadcastEvent({ event: 'bulk', data: 'x'.repeat(200), priority: EventPriority.LOW })
    await app.sse.broadcastEvent({ event: 'x', data: 'newer', key: 'k', priority: EventPriority.CRITICAL })
    slow.client.resume()
    await settle(service, slow.client)
    t.ok(texts(slow.client).includes('newer'))
    t.equal(slow.client.named('bulk').length, 30)
    const again = await join('ada', [], { cursor: slow.client.blocks.find(({ id }) => id !== null)!.id! })
    await settle(service, again.client)
    t.ok(texts(again.client).includes('newer'))
  })
})

/** A log that other nodes share, and that is wiped: another epoch, with other events in it already. */
class WipedLog implements Broker {
  readonly shared = true
  epoch = 'one'
  position = 0
  #log: Message[] = []
  #sink: Sink | null = null

  async open (sink: Sink): Promise<void> {
    this.#sink = sink
  }

  async claim (): Promise<boolean> {
    return true
  }

  async publish (outgoing: OutgoingMessage): Promise<Published> {
    const message: Message = { ...outgoing, seq: outgoing.ephemeral ? 0 : ++this.position }
    this.#log.push(message)
    return { seq: message.seq === 0 ? null : message.seq, delivered: this.#sink!.deliver(message) }
  }

  async read ({ epoch, after, priority }: ReadRequest): Promise<Page> {
    const gap: GapReason = 'epoch'
    if (epoch !== this.epoch) return { messages: [], next: this.position, gap }
    return { messages: this.#log.filter(message => message.seq > after && message.priority === priority), next: this.position }
  }

  async close (): Promise<void> {}

  wipe (epoch = 'two'): void {
    this.epoch = epoch
    this.position = 3
    this.#log = [1, 2, 3].map(seq => ({ event: 'others', data: String(seq), priority: EventPriority.NORMAL, target: {}, ephemeral: false, seq }))
    this.#sink!.gap('epoch')
  }
}

t.test('what waits is counted in bytes, however many a letter takes', async t => {
  const service = await serve(t)
  const { client, connection } = await service.join('ada')
  client.pause()
  const data = '漢'.repeat(5_000)
  // The kernel takes the first megabytes.
  for (let i = 0; i < 5_000 && connection.stats().queuedBytes === 0; i++) {
    connection.sendEvent({ event: 'x', data })
    await turns(3)
  }
  t.ok(connection.stats().queuedBytes >= 3 * data.length, `${connection.stats().queuedBytes} bytes`)
})

t.test('what a broker of one\'s own fails with is for the log; an epoch that cannot be part of an id is refused at boot', async t => {
  const broker = new WipedLog()
  const { app } = await serve(t, { broker })
  const secret = new Error('password of the disk')
  const answers = [undefined, null, {}, { seq: NaN, delivered: 1 }, { seq: '1', delivered: 1 }, { seq: 1 }, 7]
  for (const wrong of [() => Promise.reject(secret), () => { throw secret }, ...answers.flatMap(answer => [() => answer, () => Promise.resolve(answer)])]) {
    broker.publish = wrong as never
    const error = await app.sse.broadcastEvent({ event: 'x', data: 1 }).then(() => null, error => error)
    t.match(error, { code: 'SSE_ERR_BROKER_UNAVAILABLE', statusCode: 503 })
    if (error.cause !== undefined) t.equal(error.cause, secret)
    t.notMatch(error.message, 'password')
  }
  const odd = new WipedLog()
  odd.epoch = 'not valid.~'
  await t.rejects(serve(t, { broker: odd }), { code: 'SSE_ERR_INVALID_OPTION', message: /epoch "not valid.~"/ })
  const later = new WipedLog()
  const service = await serve(t, { broker: later })
  const { client } = await service.join('ada')
  t.throws(() => later.wipe('a\nid: forged'), { code: 'SSE_ERR_INVALID_OPTION' }, 'also when it comes with a gap')
  t.match(service.app.sse.health(), { status: 'degraded' })
  later.wipe()
  await client.waitFor('sse:gap')
})

t.test('a log that is wiped under a slow client: the gap is told, or its place is not', async t => {
  for (const reads of [true, false]) {
    const broker = new WipedLog()
    const service = await serve(t, { broker, outboxBytes: 4096 })
    const slow = await service.join('ada')
    await service.app.sse.broadcastEvent({ event: 'x', data: 'before' })
    await slow.client.waitFor('x')
    const place = slow.client.lastEventId
    await block(slow)
    await service.app.sse.broadcastEvent({ event: 'x', data: 'lost' })
    broker.wipe()
    if (!reads) slow.connection.close('max-age')
    slow.client.resume()
    if (reads) {
      await slow.client.waitFor('sse:gap')
      await service.app.sse.broadcastEvent({ event: 'x', data: 'after' })
      await slow.client.waitFor('x', 2)
      t.strictSame(texts(slow.client), ['before', 'after'])
      t.equal(slow.client.lastEventId, 'two.4')
      continue
    }
    await slow.client.waitForEnd()
    t.equal(slow.client.lastEventId, place, 'closed before it heard of the gap, it keeps the place it had')
    const { client } = await service.join('ada', [], { cursor: slow.client.lastEventId })
    t.strictSame((await client.waitFor('sse:gap')).map(({ data }) => JSON.parse(data!)), [{ reason: 'epoch', lastEventId: place }])
  }
})

t.test('what is more urgent has left for the log: nothing less urgent goes before it', async t => {
  const service = await serve(t, { outboxBytes: 8192 })
  const { app } = service
  const slow = await service.join('ada')
  const publish = async (event: string, priority: EventPriority, count: number, options = {}) => {
    for (let i = 0; i < count; i++) await app.sse.broadcastEvent({ event, data: 'x'.repeat(500), priority }, options)
  }
  await block(slow)
  await publish('high', EventPriority.HIGH, 20)
  t.ok(slow.connection.stats().lagging)
  await publish('low', EventPriority.LOW, 5, { ephemeral: true })
  await publish('low', EventPriority.LOW, 15)
  await publish('high', EventPriority.HIGH, 3)
  slow.client.resume()
  await slow.client.waitFor('low', 15)
  const order = slow.client.applicationEvents.map(({ event }) => event).filter(event => event !== 'filler')
  t.strictSame(order.slice(0, 23), new Array(23).fill('high'))
  await settle(service, slow.client)
})

t.test('an ephemeral event stays behind what was logged before it', async t => {
  const service = await serve(t, { outboxBytes: 2048 })
  const { app } = service
  const slow = await service.join('ada')
  await block(slow)
  for (let i = 0; i < 8; i++) await app.sse.broadcastEvent({ event: 'x', data: String(i).padEnd(500) })
  t.ok(slow.connection.stats().lagging)
  await app.sse.broadcastEvent({ event: 'x', data: 'ephemeral' }, { ephemeral: true })
  await app.sse.broadcastEvent({ event: 'x', data: 'last' })
  slow.client.resume()
  await slow.client.waitFor('x', 10)
  t.strictSame(texts(slow.client).map(text => text!.trim()), ['0', '1', '2', '3', '4', '5', '6', '7', 'ephemeral', 'last'])

  const again = await service.join('ada', [], { cursor: slow.client.blocks.find(({ id }) => id !== null)!.id! })
  again.connection.sendEvent({ event: 'x', data: 'welcome' })
  await again.client.waitFor('x', 10)
  t.equal(texts(again.client).at(-1), 'welcome', 'also what a handler sends to a client that has come back')
})

t.test('a client never sees an old value of a key after a newer one', async t => {
  const service = await serve(t, { outboxBytes: 4096 })
  const slow = await service.join('ada')
  const publish = (data: string, priority: EventPriority, key?: string) => service.app.sse.broadcastEvent({ event: 'x', data, priority, ...(key !== undefined && { key }) })
  const start = slow.client.lastEventId
  await block(slow)
  await publish('old', EventPriority.LOW, 'price')
  for (let i = 0; i < 12; i++) await publish('x'.repeat(500), EventPriority.NORMAL)
  await publish('new', EventPriority.HIGH, 'price')
  slow.client.resume()
  await settle(service, slow.client)
  const values = (client: SSEClient) => texts(client).filter(text => text!.length < 10)
  t.strictSame(values(slow.client), ['new'])
  for (const { id } of [{ id: start }, ...slow.client.blocks]) {
    if (id === null) continue
    const { client } = await service.join('ada', [], { cursor: id })
    await settle(service, client)
    t.notOk(values(client).includes('old'), `from ${id}`)
    client.close()
  }
})

t.test('a lagging client that reads nothing holds its place, and next to nothing else', async t => {
  const service = await serve(t, {})
  const slow = await service.join('ada')
  await block(slow)
  const { queuedBytes } = slow.connection.stats()
  for (let i = 0; i < 3_000; i++) {
    await service.app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(1_000) })
    if (i % 100 === 0) await turns(1)
  }
  t.ok(slow.connection.stats().lagging)
  await turns(50)
  const held = slow.connection.stats().queuedBytes - queuedBytes
  t.ok(held < 50_000, `${held} bytes wait besides`)
  const herd = await Promise.all(Array.from({ length: 8 }, async () => {
    const client = new SSEClient(`${service.url}/sse?user=ada`, { headers: { 'last-event-id': slow.client.blocks.find(({ id }) => id !== null)!.id! } })
    t.teardown(() => client.close())
    await client.ready()
    client.pause()
    return client
  }))
  await settle(service)
  for (const client of herd) client.resume()
  await settle(service, ...herd)
  for (const client of herd) t.equal(client.named('x').length, 3_000)
})

t.test('the budget holds for all slow clients together, whatever waits where', async t => {
  const service = await serve(t, { maxQueuedBytes: 1 << 20, maxEventBytes: 4 << 20, outboxBytes: 8 << 20 })
  const slow = await Promise.all(Array.from({ length: 5 }, (_, i) => service.join(`user-${i}`)))
  for (const joined of slow) await block(joined)
  const data = 'x'.repeat(700_000)
  const taken = slow.map(({ connection }) => connection.sendEvent({ event: 'own', data: data + connection.clientId, priority: EventPriority.HIGH }))
  t.ok(taken.includes(false), 'what does not fit is refused')
  t.ok(service.app.sse.stats().queuedBytes < (1 << 20) + 5 * 200_000, `${service.app.sse.stats().queuedBytes} bytes`)
  // One that many wait for is there once.
  for (let i = 0; i < 5; i++) await service.app.sse.broadcastEvent({ event: 'shared', data: 'y'.repeat(10_000) })
  for (const { client } of slow) client.resume()
  await settle(service, ...slow.map(({ client }) => client))
  for (const [i, { client }] of slow.entries()) {
    t.equal(client.named('own').length, taken[i] ? 1 : 0, 'what was taken has come')
    t.equal(client.named('shared').length, 5)
  }
  t.match(service.app.sse.stats(), { queuedBytes: 0, lagging: 0 })
})

t.test('what has been sent takes nothing of the budget', async t => {
  const service = await serve(t, { maxQueuedBytes: 1 << 20 })
  const { client } = await service.join('fast')
  for (let i = 0; i < 150; i++) {
    await service.app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(10_000) })
    await turns(1)
  }
  await client.waitFor('x', 150)
  const slow = await service.join('slow')
  await block(slow)
  for (let i = 0; i < 20; i++) t.ok(slow.connection.sendEvent({ event: 'small', data: i }), 'there is room')
  slow.client.resume()
  await slow.client.waitFor('small', 20)
})

t.test('a client that was behind is told its place once it is level, whatever came last in the log', async t => {
  const service = await serve(t, { keepAliveIntervalMs: 50 })
  const { app } = service
  const { client } = await service.join('ada', ['mine'])
  const cursor = client.lastEventId
  client.close()
  await app.sse.broadcastEvent({ data: 1, priority: EventPriority.HIGH }, { subscriptionIds: ['mine'] })
  const { id: last } = await app.sse.broadcastEvent({ data: 2, priority: EventPriority.LOW }, { subscriptionIds: ['others'] })
  const again = await service.join('ada', ['mine'], { cursor })
  await until(() => again.client.lastEventId === last)
  await until(() => again.client.blocks.at(-1)!.comment === 'keep-alive')
  t.strictSame(again.client.json(), [1])
  t.equal(again.client.blocks.filter(({ id }) => id === last).length, 1, 'once')
  const stranger = await service.join('ada', ['others'], { cursor })
  await until(() => stranger.client.lastEventId === last)
  t.strictSame(stranger.client.json(), [2])
})

t.test('EventSource comes back by itself and has missed nothing', async t => {
  const sockets = new Set<Socket>()
  const service = await serve(t, { retryMs: 100 }, {}, app => {
    app.server.on('connection', socket => {
      sockets.add(socket)
      socket.on('close', () => { sockets.delete(socket) })
    })
  })
  const source = new EventSource(`${service.url}/sse?user=ada`)
  t.teardown(() => source.close())
  const numbers: number[] = []
  const ids: string[] = []
  let opened = 0
  let gaps = 0
  source.addEventListener('open', () => { opened++ })
  source.addEventListener('n', event => {
    numbers.push(Number((event as unknown as { data: string }).data))
    ids.push((event as unknown as { lastEventId: string }).lastEventId)
  })
  source.addEventListener('sse:gap', () => { gaps++ })
  await until(() => opened === 1)
  let published = 0
  const publish = () => service.app.sse.broadcastEvent({ event: 'n', data: ++published, priority: EventPriority.NORMAL }, { userIds: ['ada'] })
  for (let cut = 1; cut <= 3; cut++) {
    for (let i = 0; i < 20; i++) await publish()
    await until(() => numbers.length === published)
    for (const socket of sockets) socket.resetAndDestroy()
    await until(() => service.app.sse.connectionCount === 0)
    // These it must be given when it is back.
    for (let i = 0; i < 20; i++) await publish()
    await until(() => opened === cut + 1, undefined, 'it is back')
    await publish()
    await until(() => numbers.length === published, undefined, `${published} events, has ${numbers.length}`)
  }
  t.strictSame(numbers, Array.from({ length: published }, (_, i) => i + 1), 'all, in order, once')
  t.equal(gaps, 0)
  t.equal(new Set(ids).size, published)
  // Before the third cut it had read two rounds of 41 and then 20.
  t.equal(service.app.sse.getConnectionsByUser('ada')[0]!.lastEventId, ids[101])
})
