import type { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { EventSource } from 'undici'
import { EventPriority, type SSEOptions } from '../../lib/index.js'
import { payloads, serve, settle, texts, type Service } from '../helpers/app.js'
import { turns, until } from '../helpers/wait.js'
import { random, Reader, Sequence } from './reading.js'
import { blocksOf } from '../helpers/raw.js'
import { SSEClient } from '../helpers/sse.js'

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
    const stream = await open(`/sse${query}`, { headers: header === null ? {} : { 'last-event-id': header } })
    await settle(service, stream)
    t.strictSame(texts(stream), expected, name)
    t.strictSame(stream.named('sse:gap'), [], name)
    await stream.close()
  }
  const own = await service.join(null, [], { lastEventId: ids[1]!, cursor: ids[0]! })
  await settle(service, own.stream)
  t.strictSame(texts(own.stream), ['3'], 'the application\'s word counts more')
  t.equal(own.connection.lastEventId, ids[1])
  const fresh = await service.join(null, [], { lastEventId: null, cursor: ids[0]! })
  await settle(service, fresh.stream)
  t.strictSame(texts(fresh.stream), [])
})

t.test('a client that has missed nothing has the newest id with its first block', async t => {
  const { app, join } = await serve(t)
  const { stream } = await join('ada', ['news'])
  const start = stream.lastEventId
  for (let n = 0; n < 200; n++) await app.sse.broadcastEvent({ event: 'x', data: n }, { userIds: ['grace'] })
  const back = await join('ada', ['news'], { cursor: start })
  t.equal(back.connection.resumed, true)
  t.equal(back.stream.lastEventId, app.sse.position())
  t.not(back.stream.lastEventId, start)
})

t.test('what is replayed is what this user may see now', async t => {
  const service = await serve(t, { authorizeSubscription: ({ userId, subscriptionId }) => subscriptionId !== 'secret' || userId === 'ada' })
  const { app, join } = service
  const ada = await join('ada', ['secret', 'news'])
  const start = ada.stream.lastEventId
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
  await settle(service, ada.stream)
  t.strictSame(texts(ada.stream), ['everyone', 'for ada', 'secret', 'news', 'ada\'s news', 'for the connection', 'filtered'])
  const cases: [name: string, user: string | null, subscriptions: string[], expected: string[]][] = [
    ['the same user again', 'ada', ['secret', 'news'], ['everyone', 'for ada', 'secret', 'news', 'ada\'s news', 'filtered']],
    ['with less rights than before', 'ada', [], ['everyone', 'for ada', 'filtered']],
    ['with other subscriptions', 'ada', ['new*'.slice(0, 3), 'news'], ['everyone', 'for ada', 'news', 'ada\'s news', 'filtered']],
    ['with a pattern', 'ada', ['*'], ['everyone', 'for ada', 'secret', 'news', 'ada\'s news', 'filtered']],
    ['another user with a stolen cursor', 'grace', ['news'], ['everyone', 'for grace', 'news']],
    ['nobody with a stolen cursor', null, [], ['everyone', 'filtered']]
  ]
  for (const [name, user, subscriptions, expected] of cases) {
    const { stream } = await join(user, subscriptions, { cursor: start })
    await settle(service, stream)
    t.strictSame(texts(stream), expected, name)
    t.strictSame(stream.named('sse:gap'), [], `${name}: not for it is not a gap`)
    await stream.close()
  }
  await t.rejects(join('grace', ['secret'], { cursor: start }), { message: /SSE_ERR_SUBSCRIPTION_FORBIDDEN/ })
  const late = await join('grace', [], { cursor: start })
  await late.connection.addSubscription('news')
  await settle(service, late.stream)
  t.strictSame(texts(late.stream).filter(text => text !== 'news'), ['everyone', 'for grace'])
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
    for (const [name, { stream }] of Object.entries({ quiet, busy })) {
      await until(() => stream.lastEventId === id, undefined, `${name} is told the place`)
      t.strictSame(stream.named('x'), [], name)
      const again = await join('ada', [], { cursor: stream.lastEventId })
      await until(() => again.stream.comments.includes('keep-alive'))
      t.strictSame(again.stream.events, [], `${name}: nothing was missed, so there is no gap`)
      await again.stream.close()
    }
  }
  const blocks = blocksOf(quiet.stream.text).filter(({ id }) => id !== null)
  t.ok(blocks.every(({ text }) => /^id: \S+$/.test(text)), 'blocks without an event')
  const count = blocksOf(quiet.stream.text).length
  await until(() => blocksOf(quiet.stream.text).length >= count + 2)
  t.ok(blocksOf(quiet.stream.text).slice(-2).every(({ text }) => text === ': keep-alive'), 'the same place is not told twice')
})

t.test('a client that was behind is told its place once it is level, whatever came last in the log', async t => {
  const service = await serve(t, { keepAliveIntervalMs: 50 })
  const { app } = service
  const { stream } = await service.join('ada', ['mine'])
  const cursor = stream.lastEventId
  await stream.close()
  await app.sse.broadcastEvent({ data: 1, priority: EventPriority.HIGH }, { subscriptionIds: ['mine'] })
  const { id: last } = await app.sse.broadcastEvent({ data: 2, priority: EventPriority.LOW }, { subscriptionIds: ['others'] })
  const again = await service.join('ada', ['mine'], { cursor })
  await until(() => again.stream.lastEventId === last)
  await until(() => blocksOf(again.stream.text).at(-1)!.comment === 'keep-alive')
  t.strictSame(payloads(again.stream), [1])
  t.equal(blocksOf(again.stream.text).filter(({ id }) => id === last).length, 1, 'once')
  const stranger = await service.join('ada', ['others'], { cursor })
  await until(() => stranger.stream.lastEventId === last)
  t.strictSame(payloads(stranger.stream), [2])
  const { id: live } = await app.sse.broadcastEvent({ data: 3 }, { subscriptionIds: ['mine'] })
  await until(() => again.stream.lastEventId === live && blocksOf(again.stream.text).at(-1)!.comment === 'keep-alive')
  t.equal(blocksOf(again.stream.text).filter(({ id }) => id === live).length, 1, 'an event has told it')
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
