import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { changes, held } from './helpers/held.js'
import { block, serve, type Service } from './helpers/app.js'
import { gated } from './helpers/loads.js'
import { turns, until } from './helpers/wait.js'
import { EventPriority } from '../lib/index.js'
import { testClock, testLog } from '../lib/testing/index.js'

// When a stream has ended, however it was used and ended, its node holds what it held at boot: no entry in an index, no reservation, no
// timer, no byte of a budget. Every collection and every number of the node is compared, so that a field that is new is looked at too.

/** What goes on by itself, counts what has happened, or remembers it within bounds of its own: the log, caches, users who were disconnected. */
const STAYS = new RegExp([
  String.raw`\.telemetry\.`,
  String.raw`#dispatcher\.#(messages|deliveries)$`,
  String.raw`\.registry\.#marks$`,
  String.raw`\.eventLog\.(newest|#position|#reached|#broker\.#ring)\b`,
  String.raw`\.options\.broker\.`,
  String.raw`\.cluster\.(#membership\.#listenedMs|#scatter\.(#asked|#answers\.size)|#commands\.#newest)$`,
  String.raw`\.(#disconnections|#matches|frames)\.`,
  // Removed when the next ticket is redeemed.
  String.raw`#claims\.size$`,
  String.raw`\.replays\.#turns\.`,
  String.raw`(#timer\.dueAt|#polledAt|#agedAt|#lastGeneration)$`,
  String.raw`\.greetings\.`,
  String.raw`\.wheel\.#(now|ran|tick)$`,
  String.raw`\.wheel\.#slots\.\*\.\*\.(dueAt|slot|slotIndex|#ahead)$`,
  String.raw`lusher\.#(flushed|intervalMs|since|nextSince|due)$`
].join('|'))

const clock = testClock()
const states = gated()
/** Rights that are asked for, while `asks`. */
const asked: (() => void)[] = []
let asks = false
const permit = (): void => { for (const grant of asked.splice(0)) grant() }

interface Scene extends Service {
  /** Waits until nobody is connected. */
  alone (): Promise<void>
}

const scenes: Record<string, (scene: Scene) => Promise<unknown>> = {
  'clients that leave, are closed, or end with their rights': async ({ join, app, alone }) => {
    const joined = await Promise.all(['ada', 'ada', 'bob', null].map(user => join(user, ['news', 'rooms:*', 'rooms:1:**'])))
    await app.sse.broadcastEvent({ data: 1 }, { subscriptionIds: ['rooms:1'] })
    await app.sse.broadcastEvent({ data: 2, key: 'k' }, { userIds: ['ada'], priority: EventPriority.CRITICAL })
    await app.sse.broadcastEvent({ data: 3 }, { filter: ({ userId }) => userId === 'bob', ephemeral: true })
    await joined[1]!.stream.collect(2)
    await joined[2]!.stream.collect(2)
    await joined[0]!.stream.cut()
    joined[1]!.connection.close('kicked')
    await app.sse.disconnectUser('bob')
    joined[3]!.stream.halfClose()
    await joined[3]!.stream.close()
    await alone()
  },
  'requests that are refused': async ({ open, app, alone }) => {
    const status = async (path: string, options = {}) => (await open(path, options)).status
    t.same(await Promise.all([status('/events?subscription=forbidden&user=ada'), status('/sse?user=ada', { headers: { accept: 'text/html' } }), status('/sse?user=ada', { headers: { origin: 'https://elsewhere.example' } }), status('/sse?ticket=none')]), [403, 406, 403, 401])
    const streams = await Promise.all(Array.from({ length: 6 }, () => open('/sse?join=&user=eve')))
    t.equal(streams.filter(({ status }) => status === 429).length, 2)
    t.equal((await app.inject({ method: 'HEAD', url: '/sse?join=&user=ada', headers: { accept: 'text/event-stream' } })).statusCode, 200)
    for (const stream of streams) await stream.close()
    await alone()
  },
  'a ticket': async ({ open, app, alone }) => {
    const ticket = app.sse.issueTicket({ userId: 'ada', subscriptions: ['news'] })
    const stream = await open(`/events?ticket=${ticket}`)
    t.equal(stream.status, 200)
    await states.release()
    await stream.next('state')
    await stream.close()
    await alone()
  },
  'clients that resume, or cannot': async ({ join, app, alone }) => {
    const first = await join('ada', ['news'])
    await app.sse.broadcastEvent({ data: 1 }, { subscriptionIds: ['news'] })
    await first.stream.next()
    await first.stream.cut()
    for (let i = 0; i < 20; i++) await app.sse.broadcastEvent({ data: i }, { subscriptionIds: ['news'] })
    const second = await first.stream.reconnect()
    await second.collect(20)
    await second.close()
    for (const cursor of ['wrong', 'abcdefgh.5']) {
      const { stream } = await join('ada', ['news'], { cursor })
      await stream.next('sse:gap')
      await stream.close()
    }
    await alone()
  },
  'clients that do not read: one that reads on, one that leaves, one that is cut': async ({ join, app, alone }) => {
    const slow = await Promise.all(['ada', 'bob', 'eve'].map(user => join(user, ['news'])))
    for (const joined of slow) await block(joined)
    for (let i = 0; i < 40; i++) await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(4_000), key: `${i % 7}` }, { subscriptionIds: ['news'], ephemeral: i % 3 === 0, priority: i % 4 as EventPriority })
    await until(() => slow.every(({ connection }) => connection.stats().lagging))
    slow[0]!.stream.thaw()
    await until(() => !slow[0]!.connection.stats().lagging && slow[0]!.connection.stats().queuedBytes === 0)
    await slow[0]!.stream.close()
    await slow[1]!.stream.cut()
    await until(() => app.sse.connectionCount === 1)
    await clock.advance(60_000)
    t.equal(slow[2]!.connection.closeReason, 'stalled')
    await alone()
  },
  'an event that is written in pieces when its client leaves': async ({ join, app, alone }) => {
    const { stream } = await join('ada')
    stream.freeze()
    await app.sse.broadcastEvent({ event: 'large', data: 'x'.repeat(900_000) })
    await turns()
    await stream.cut()
    await alone()
  },
  'sources that end, fail, or lose their client': async ({ open, alone }) => {
    for (const path of ['/source', '/fails']) await (await open(path)).ended
    const endless = await open('/endless')
    await endless.next()
    await endless.cut()
    await alone()
  },
  runs: async ({ open, app, alone }) => {
    const { run } = await app.sse.startRun('r', async function * () {
      for (let i = 0; i < 50; i++) {
        await turns(1)
        yield `${i}`
      }
    }, { ownerId: null, ttlMs: 60_000 })
    const [reader, leaver] = [await open('/run/r'), await open('/run/r')]
    await leaver.next()
    await leaver.cut()
    await reader.ended
    await run.finished
    await app.sse.startRun('e', async function * ({ signal }) {
      while (!signal.aborted) {
        await sleep(1)
        yield 'x'
      }
    }, { ownerId: null, ttlMs: 60_000 })
    const stopped = await open('/run/e')
    await stopped.next()
    await app.sse.stopRun('e', { ownerId: null })
    await stopped.ended
    await alone()
  },
  'states that are loaded, and one whose client does not wait': async ({ open, alone }) => {
    const whole = await open('/events?subscription=news&user=ada')
    await states.release()
    await whole.next('state')
    await whole.close()
    const impatient = await open('/events?subscription=news&user=ada')
    await impatient.cut()
    await alone()
    await states.release()
  },
  'states that clients share, that wait for their turn, and that fail': async ({ join, app, alone }) => {
    const [shared, failing] = [gated(() => ({ event: 'state', data: 1 })), gated(() => { throw new Error('no') })]
    const [share, fail] = [shared, failing].map(({ snapshot }, i) => ({ snapshot: { load: () => snapshot.load(undefined as never), key: `key ${i}`, maxConcurrent: 1 } }))
    const [first, second] = [await join('ada', ['news'], share), await join('bob', ['news'], share)]
    const leaver = await join('eve', ['news'], fail)
    await leaver.stream.cut()
    await until(() => app.sse.connectionCount === 2)
    const unlucky = await join('eve', ['news'], fail)
    await shared.release()
    await Promise.all([first, second].map(({ stream }) => stream.next('state')))
    t.equal(shared.questions.length, 1)
    await failing.release()
    t.match(await unlucky.stream.ended, { reason: 'snapshot-error' })
    await first.stream.close()
    await second.stream.cut()
    await alone()
  },
  'rights that change while events wait': async ({ join, app, alone }) => {
    const { stream, connection } = await join('ada', ['news', 'other'])
    await connection.addSubscription('rooms:1')
    await connection.removeSubscription('other')
    asks = true
    const changed = app.sse.reauthorize('ada')
    await app.sse.broadcastEvent({ data: 'held' }, { subscriptionIds: ['news'] })
    await until(() => asked.length === 2)
    permit()
    await changed
    asks = false
    await stream.next()
    await app.sse.revokeSubscription('ada', 'news')
    asks = true
    const late = connection.addSubscription('rooms:2').catch(() => {})
    await stream.cut()
    await alone()
    permit()
    asks = false
    await late
  }
}

t.test('a node whose streams have ended holds what it held at boot', async t => {
  const service = await serve(t, {
    ...clock.options,
    path: '/events',
    clientSubscriptions: true,
    authorizeSubscription: ({ subscriptionId }) => asks ? new Promise<boolean>(resolve => { asked.push(() => resolve(true)) }) : subscriptionId !== 'forbidden',
    snapshot: { load: states.snapshot.load, timeoutMs: 60_000 },
    ticketSecret: 'x'.repeat(32),
    maxConnections: 100,
    maxConnectionsPerUser: 4,
    maxConnectionsPerIp: 90,
    outboxBytes: 16_384,
    presenceEvents: { topics: ['who'] }
  }, {}, app => {
    app.get('/source', (request, reply) => reply.sse(['a', 'b', 'c']))
    app.get('/fails', (request, reply) => reply.sse(async function * () {
      yield 'a'
      throw new Error('no')
    }))
    app.get('/endless', (request, reply) => reply.sse(async function * ({ signal }) {
      while (!signal.aborted) {
        await sleep(1)
        yield 'x'.repeat(1_000)
      }
    }))
    app.get('/run/:id', async (request, reply) => reply.sse(await app.sse.getRun((request.params as { id: string }).id, { ownerId: null })))
  })
  const { app } = service
  const alone = async (): Promise<void> => { await until(() => app.sse.connectionCount === 0, 20_000, 'nobody is connected') }
  const boot = held(app.sse)
  for (const [name, play] of Object.entries(scenes)) {
    await t.test(name, async t => {
      await play({ ...service, alone })
      let left: string[] = []
      // Users linger before they count as gone, and runs are kept after their end.
      await until(async () => {
        await clock.advance(20_000)
        await turns()
        left = changes(boot, held(app.sse), STAYS)
        return left.length === 0
      }, 10_000).catch(() => {})
      t.strictSame(left, [])
    })
  }
  const seen = [...boot.keys()]
  for (const part of ['registry', 'admission.#capacity', '#context.budget', '#context.wheel', '#context.replays', '#context.snapshotLoads', 'cluster', 'runs']) t.ok(seen.some(path => path.includes(part)), `${part} is looked at`)
})

t.test('nodes whose streams have ended hold what they held before, and nothing of a node that has left', async t => {
  const log = testLog()
  const clock = testClock()
  const start = (): Promise<Service> => serve(t, { ...clock.options, broker: log.broker(), presenceEvents: { topics: ['who'] } })
  const services = await Promise.all([start(), start()])
  const [a, b] = services as [Service, Service]
  /** Heartbeats go on meanwhile. */
  const heard = (what: 'nodes' | 'connections', count: number) => until(async () => {
    await clock.advance(1_000)
    return services.every(({ app }) => {
      const { nodes, connections } = app.sse.clusterStats()
      return count === { nodes: nodes.length, connections }[what]
    })
  }, 20_000, `${count} ${what}`)
  await heard('nodes', 2)
  const before = services.map(({ app }) => held(app.sse))

  const third = await start()
  await heard('nodes', 3)
  const joined = await Promise.all([a.join('ada', ['who', 'news']), b.join('ada', ['who']), b.join('bob', ['news']), third.join('eve', ['who'])])
  await heard('connections', 4)
  await b.app.sse.broadcastEvent({ data: 1 }, { subscriptionIds: ['news'] })
  await joined[0]!.stream.next('message')
  t.equal((await a.app.sse.presence('who')).users.length, 2)
  t.equal((await a.app.sse.listConnections()).connections.length, 4)
  await a.app.sse.addSubscription(joined[2]!.connection.clientId, 'who')
  t.equal(await a.app.sse.revokeSubscription('bob', 'news'), 1)
  t.equal(await a.app.sse.closeConnection(joined[1]!.connection.clientId), true)
  t.equal(await a.app.sse.disconnectUser('bob'), 1)
  await joined[0]!.stream.close()
  await third.app.close()
  await heard('nodes', 2)
  let left: string[] = []
  await until(async () => {
    await clock.advance(20_000)
    await turns()
    left = services.flatMap(({ app }, i) => changes(before[i]!, held(app.sse), STAYS))
    return left.length === 0
  }, 10_000).catch(() => {})
  t.strictSame(left, [])
})
