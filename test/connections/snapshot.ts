import { createServer } from 'node:http'
import t, { type Test } from 'tap'
import { SSEManager, type ConnectionGap, type SSEConnection } from '../../lib/index.js'
import { openStream } from '../../lib/testing/index.js'
import { anyAnswer, block, payloads, serve, settle, type Service } from '../helpers/app.js'
import { counted, gated } from '../helpers/loads.js'
import { blocksOf } from '../helpers/raw.js'
import { turns, until } from '../helpers/wait.js'

const names = (stream: { events: readonly { event: string }[] }) => stream.events.map(({ event }) => event).filter(event => event !== 'settled')

t.test('the state comes first, with the position of before its load, and then all that was published since', async t => {
  const service = await serve(t)
  const { sse } = service.app
  await sse.broadcastEvent({ event: 'x', data: 'before' }, { subscriptionIds: ['a'] })
  const { snapshot, questions, release } = gated()
  const { stream, connection } = await service.join('ada', ['a', 'b:*'], { snapshot })
  await until(() => questions.length === 1)
  const at = sse.position()
  t.match(questions[0], { subscriptions: ['a', 'b:*'], reason: 'connect' })
  t.equal(questions[0]!.connection, connection)
  connection.sendEvent({ event: 'own', data: 1 })
  await sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds: ['a'] })
  await sse.broadcastEvent({ event: 'fleeting', data: 1 }, { ephemeral: true })
  await sse.broadcastEvent({ event: 'x', data: 2 }, { subscriptionIds: ['b:1'] })
  await turns(5)
  t.strictSame(stream.events, [], 'all wait')
  t.equal(stream.lastEventId, '', 'no cursor before the state')
  t.equal(connection.stats().lagging, true)
  await release()
  await settle(service, stream)
  t.strictSame(stream.events.map(({ event }) => event), ['state', 'own', 'x', 'fleeting', 'x', 'settled'])
  t.strictSame(payloads(stream, 'state'), [['a', 'b:*']])
  const [state] = blocksOf(stream.text).filter(({ event }) => event === 'state')
  t.equal(state!.id, at, 'the position before the load')
  t.equal(connection.resumed, false)
  t.equal(connection.stats().lagging, false)
})

t.test('a client that is cut before its state loads it again; right after it, it resumes', async t => {
  const service = await serve(t)
  const slow = gated()
  const first = await service.join('ada', ['a'], { snapshot: slow.snapshot })
  await until(() => slow.questions.length === 1)
  t.equal(slow.questions[0]!.signal.aborted, false)
  await first.stream.cut()
  await until(() => slow.questions[0]!.signal.aborted, undefined, 'the signal of a load that nobody waits for aborts')
  t.match(slow.questions[0]!.signal.reason, { name: 'AbortError', code: 'SSE_ERR_SNAPSHOT_ABORTED' })
  await slow.release()

  const { snapshot, asked } = counted()
  const second = await service.join('ada', ['a'], { snapshot, cursor: first.stream.lastEventId })
  await second.stream.next('state')
  await second.stream.cut()
  await service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds: ['a'] })
  const third = await service.join('ada', ['a'], { snapshot, cursor: second.stream.lastEventId })
  await settle(service, third.stream)
  t.strictSame(names(third.stream), ['x'])
  t.equal(third.connection.resumed, true)
  t.strictSame(asked(), ['connect a'])
})

t.test('what load returns', async t => {
  const service = await serve(t)
  const received = async (answer: unknown) => {
    const { snapshot } = counted(() => answer)
    const { stream } = await service.join('ada', [], { snapshot })
    await until(() => stream.lastEventId !== '')
    const blocks = blocksOf(stream.text).filter(({ data, id }) => data !== null || id !== null)
    t.equal(stream.lastEventId, service.app.sse.position())
    await stream.close()
    return blocks.map(({ event, data, id }) => (data === null ? 'nothing' : `${event} ${data}`) + (id === null ? '' : ' id'))
  }
  const event = (n: number) => ({ event: 's', data: n })
  t.strictSame(await received(null), ['nothing id'], 'no event, and the cursor')
  t.strictSame(await received([]), ['nothing id'])
  t.strictSame(await received(event(1)), ['s 1 id'])
  t.strictSame(await received([event(1), event(2), event(3)]), ['s 1', 's 2', 's 3 id'], 'only the last has the cursor')
  t.strictSame(await received((async function * () { yield event(1); yield event(2) })()), ['s 1', 's 2 id'])
  t.strictSame(await received(Promise.resolve(new Set([event(1)]))), ['s 1 id'])
  const many = await received(Array.from({ length: 2_000 }, (_, n) => ({ event: 's', data: 'x'.repeat(100) + n })))
  t.equal(many.length, 2_000)
  t.strictSame(many.map(text => text.endsWith(' id')).indexOf(true), 1_999)
})

/** Publishes so much that nothing before it can be replayed. */
async function trim ({ app }: Service, topic: string, events = 30): Promise<void> {
  for (let i = 0; i < events; i++) await app.sse.broadcastEvent({ event: 'x', data: i }, { subscriptionIds: [topic] })
}

t.test('after a gap the client is told, and receives its state', async t => {
  const cases: [reason: string, cursorOf: (epoch: string, position: number) => string][] = [
    ['malformed', () => 'garbage'],
    ['malformed', () => '-'],
    ['epoch', () => 'zzzzzzzz.1'],
    ['unknown', epoch => `${epoch}.zzz`],
    ['trimmed', (epoch, position) => `${epoch}.${(position - 22).toString(36)}`],
    ['limit', epoch => `${epoch}.1`]
  ]
  const service = await serve(t, { history: { maxEvents: 20 }, maxReplayEvents: 25 })
  await trim(service, 'a')
  for (const [reason, cursorOf] of cases) {
    const [epoch, position] = service.app.sse.position().split('.') as [string, string]
    const cursor = cursorOf(epoch, parseInt(position, 36))
    const { snapshot, questions, release } = gated()
    const { stream, connection } = await service.join('ada', ['a'], { snapshot, cursor })
    const gaps: ConnectionGap[] = []
    connection.onGap(gap => { gaps.push(gap) })
    await stream.next('sse:gap')
    const told = { reason, lastEventId: RegExp(`^${cursor}`), snapshot: true }
    t.match(payloads(stream, 'sse:gap'), [told], reason)
    t.equal(stream.lastEventId, cursor, `${reason}: the client keeps its cursor until it has its state`)
    await until(() => questions.length === 1)
    t.match(questions[0], { reason: 'gap', subscriptions: ['a'] })
    const at = service.app.sse.position()
    await service.app.sse.broadcastEvent({ event: 'live', data: 1 }, { subscriptionIds: ['a'] })
    await release()
    await settle(service, stream)
    t.strictSame(names(stream), ['sse:gap', 'state', 'live'], reason)
    t.equal(blocksOf(stream.text).find(({ event }) => event === 'state')!.id, at)
    t.equal(connection.resumed, false)
    t.match(gaps, [told], `${reason}: the listener is called, although the gap was found before it was added`)
    await stream.close()
  }
})

t.test('a slow client that falls out of the history', async t => {
  const service = await serve(t, { history: { maxEvents: 20 }, outboxBytes: 4_000 })
  const { snapshot, asked } = counted(() => ({ event: 'state', data: service.app.sse.position() }))
  const joined = await service.join('ada', ['a'], { snapshot })
  await joined.stream.next('state')
  const gaps: ConnectionGap[] = []
  joined.connection.onGap(gap => { gaps.push(gap) })
  await block(joined)
  await trim(service, 'a', 100)
  const received = names(joined.stream).length
  joined.stream.thaw()
  await joined.stream.until(() => joined.stream.named('state').length === 2)
  await settle(service, joined.stream)
  const after = joined.stream.events.slice(received).filter(({ event }) => event !== 'filler' && event !== 'settled')
  const told = after.findIndex(({ event }) => event === 'sse:gap')
  t.equal(after[told + 1]!.event, 'state', 'the state follows the gap')
  t.match(payloads(joined.stream, 'sse:gap'), [{ reason: 'trimmed', snapshot: true }])
  t.match(gaps, [{ reason: 'trimmed', snapshot: true }])
  t.strictSame(asked(), ['connect a', 'gap a'])
  t.equal(joined.stream.named('state').at(-1)!.id, joined.stream.named('state').at(-1)!.data, 'the position is that of before the load')
})

t.test('subscriptions that are added', async t => {
  const service = await serve(t)
  const { sse } = service.app
  const { snapshot, questions, release } = gated()
  const { stream, connection } = await service.join('ada', ['a'], { snapshot })
  await release()
  await stream.next('state')
  const before = stream.lastEventId
  await sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds: ['a'] })
  await connection.addSubscription('a')
  await connection.addSubscription('b')
  await stream.until(() => stream.lastEventId.endsWith('!0'))
  await until(() => questions.length === 2)
  t.match(questions[1], { reason: 'added', subscriptions: ['b'] })
  const at = sse.position()
  await sse.broadcastEvent({ event: 'x', data: 2 }, { subscriptionIds: ['a', 'b'] })
  await sse.addSubscription(connection.clientId, 'c')
  await sse.addSubscription(connection.clientId, 'd')
  await release()
  await stream.until(() => stream.named('state').length === 2)
  t.equal(stream.named('state')[1]!.id, `${at}!0`, 'the state of those added meanwhile is still missing')
  await until(() => questions.length === 3)
  t.match(questions[2], { reason: 'added', subscriptions: ['c', 'd'] })
  await release()
  await settle(service, stream)
  t.strictSame(names(stream), ['state', 'x', 'state', 'x', 'state'])
  t.strictSame(payloads(stream, 'x'), [1, 2])
  t.notMatch(stream.lastEventId, '!')
  t.not(stream.lastEventId, before)

  await t.test('removed before its state is loaded', async t => {
    await connection.addSubscription('e')
    await until(() => questions.length === 4)
    await connection.removeSubscription('e')
    await release()
    await settle(service, stream)
    // The call that was abandoned ends before the client is known to need nothing.
    await until(() => !stream.lastEventId.includes('!'), undefined, 'the cursor says that no state is missing')
    t.equal(stream.named('state').length, 3, 'its state is not sent')
  })

  await t.test('a client that is cut meanwhile receives all states when it returns', async t => {
    await connection.addSubscription('f')
    await stream.until(() => stream.lastEventId.endsWith('!0'))
    await stream.cut()
    const again = counted()
    const back = await service.join('ada', ['a', 'f'], { snapshot: again.snapshot, cursor: stream.lastEventId })
    t.notMatch(back.connection.lastEventId, '!')
    await sse.broadcastEvent({ event: 'x', data: 3 }, { subscriptionIds: ['f'] })
    await settle(service, back.stream)
    t.strictSame(names(back.stream), ['state', 'x'])
    t.strictSame(again.asked(), ['added a f'])
    t.equal(back.connection.resumed, true, 'it has missed no event')
    await release()
  })
})

t.test('a client that is slow when a subscription is added', async t => {
  const service = await serve(t, { outboxBytes: 4_000 })
  const { snapshot, asked } = counted()
  const joined = await service.join('ada', ['a'], { snapshot })
  await joined.stream.next('state')
  await block(joined)
  for (let i = 0; i < 200; i++) await service.app.sse.broadcastEvent({ event: 'x', data: i, priority: [0, 1, 2, 3][i % 4] as 0 }, { subscriptionIds: ['a'] })
  await joined.connection.addSubscription('b')
  for (let i = 200; i < 400; i++) await service.app.sse.broadcastEvent({ event: 'x', data: i, priority: [0, 1, 2, 3][i % 4] as 0 }, { subscriptionIds: [i % 2 === 0 ? 'a' : 'b'] })
  t.ok(joined.connection.stats().queuedBytes < 150_000)
  joined.stream.thaw()
  await joined.stream.until(() => joined.stream.named('state').length === 2)
  await settle(service, joined.stream)
  const { events } = joined.stream
  const second = events.findLastIndex(({ event }) => event === 'state')
  const values = (part: typeof events) => part.filter(({ event }) => event === 'x').map(({ json }) => json as number).sort((a, b) => a - b)
  t.strictSame(values(events.slice(0, second)), Array.from({ length: 400 }, (_, i) => i), 'all that was published before the load comes before the state')
  t.strictSame(values(events.slice(second)), [])
  t.ok(events.slice(0, second).filter(({ event }) => event === 'x').slice(-100).every(({ id }) => id!.endsWith('!0')), 'each cursor before it says that it is missing')
  t.strictSame(asked(), ['connect a', 'added b'])
})

t.test('a client that returns with more topics names them in ?fresh=', async t => {
  const { snapshot, asked, questions } = counted()
  const service = await serve(t, { path: '/ready', snapshot, clientSubscriptions: true, authorizeSubscription: () => true })
  const first = await service.open('/ready?subscription=a')
  await first.next('state')
  const at = first.lastEventId
  await first.close()
  await service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds: ['a'] })
  t.strictSame(asked(), ['connect a'])
  questions.length = 0
  const url = `/ready?subscription=a&subscription=b&fresh=b&fresh=nothing&lastEventId=${at}`
  const second = await service.open(url)
  await second.until(() => second.named('state').length === 1)
  t.strictSame(names(second), ['x', 'state'])
  t.strictSame(asked(), ['added b'])
  t.equal(second.lastEventId, service.app.sse.position())
  t.ok(second.events[0]!.id!.endsWith('!0'), 'cut here, it loads again')
  await second.close()
  questions.length = 0
  const third = await service.open(url, { lastEventId: second.lastEventId })
  await settle(service, third)
  t.strictSame(asked(), [], 'an EventSource comes back with the same URL')
  await third.close()
  const again = await service.open(url, { lastEventId: at })
  await again.until(() => again.named('state').length === 1)
  t.strictSame(asked(), ['added b'], 'one that has received nothing since then has no state either')
  await again.close()
  questions.length = 0
  const fourth = await service.open('/ready?subscription=a&fresh=a')
  await fourth.next('state')
  t.strictSame(asked(), ['connect a'], 'without a cursor all is fresh')
  await fourth.close()
  questions.length = 0
  const fifth = await service.open(`/ready?subscription=a&subscription=b&fresh=**&lastEventId=${at}`)
  await fifth.until(() => fifth.named('state').length === 1)
  t.strictSame(asked(), ['added a b'], '** names all')
})

t.test('HEAD loads nothing', async t => {
  const { snapshot, questions } = counted()
  const service = await serve(t, { path: '/ready', snapshot })
  const answer = await fetch(`${service.url}/ready`, { method: 'HEAD' })
  t.equal(answer.status, 200)
  await fetch(`${service.url}/ready`, { method: 'HEAD', headers: { 'last-event-id': 'garbage' } })
  t.strictSame(questions, [])
})

t.test('createConnection', async t => {
  const sse = new SSEManager()
  t.teardown(() => sse.close())
  t.throws(() => sse.position(), { code: 'SSE_ERR_BROKER_UNAVAILABLE', message: /await open\(\)/ }, 'the log has no epoch before it is open')
  const { snapshot } = counted()
  const connections: SSEConnection[] = []
  const server = createServer((request, response) => {
    sse.createConnection({ request, response, subscriptions: ['a'], snapshot }).then(connection => connections.push(connection), error => sse.refuse({ request, response }, error))
  }).listen(0, '127.0.0.1')
  t.teardown(() => { server.close() })
  await until(() => server.listening)
  const stream = await openStream(server, '/', anyAnswer(t))
  t.strictSame((await stream.next('state')).json, ['a'])
  t.equal(stream.lastEventId, sse.position())
  await stream.close()
})

t.test('wherever a client is cut, it ends with the state of the server', async t => {
  const service = await serve(t)
  const values = new Map([['a', 0], ['b', 0]])
  const change = async (topic: string) => {
    values.set(topic, values.get(topic)! + 1)
    await service.app.sse.broadcastEvent({ event: 'change', data: { topic, value: values.get(topic) } }, { subscriptionIds: [topic] })
  }
  const { snapshot, release } = gated(({ subscriptions }) => subscriptions.map(topic => ({ event: 'state', data: { topic, value: values.get(topic) } })))
  const { stream, connection } = await service.join('ada', ['a'], { snapshot })
  await change('a')
  await release()
  await change('a')
  await connection.addSubscription('b')
  await change('b')
  await change('a')
  await release()
  await change('b')
  await settle(service, stream)
  await stream.close()
  const blocks = blocksOf(stream.text)
  t.ok(blocks.length > 8)
  for (let k = 0; k <= blocks.length; k++) await endsRight(t, service, blocks.slice(0, k), values)
})

async function endsRight (t: Test, service: Service, blocks: ReturnType<typeof blocksOf>, values: ReadonlyMap<string, number>): Promise<void> {
  const { snapshot } = counted(({ subscriptions }) => subscriptions.map(topic => ({ event: 'state', data: { topic, value: values.get(topic) } })))
  const cursor = blocks.findLast(({ id }) => id !== null)?.id ?? undefined
  // The server does not know of the second topic before it is added.
  const topics = cursor === undefined || blocks.some(({ id }) => id?.endsWith('!0')) ? ['a', 'b'] : ['a']
  const { stream } = await service.join('ada', topics, { snapshot, ...(cursor !== undefined && { cursor }) })
  await settle(service, stream)
  const held = new Map<string, number>()
  for (const { event, data } of [...blocks, ...stream.events]) {
    if (event !== 'state' && event !== 'change') continue
    const { topic, value } = JSON.parse(data!)
    t.ok(event === 'change' || value >= (held.get(topic) ?? 0), 'no state is older than what the client has')
    held.set(topic, Math.max(value, held.get(topic) ?? 0))
  }
  t.strictSame(topics.map(topic => held.get(topic)), topics.map(topic => values.get(topic)), `cut after block ${blocks.length}`)
  await stream.close()
}
