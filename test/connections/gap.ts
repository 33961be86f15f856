import t, { type Test } from 'tap'
import type { Message, OutgoingMessage } from '../../lib/events/message.js'
import { EventPriority, type Broker, type SSEOptions } from '../../lib/index.js'
import type { GapReason, Page, Published, ReadRequest, Sink } from '../../lib/log/broker.js'
import { testClock, testLog } from '../../lib/testing/index.js'
import { block, payloads, serve, settle, texts, type Service } from '../helpers/app.js'
import { turns, until } from '../helpers/wait.js'
import { PRIORITIES } from './reading.js'
import { blocksOf, RawSocket } from '../helpers/raw.js'

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
  await first.close()
  for (let i = 1; i <= 30; i++) await app.sse.broadcastEvent({ event: 'old', data: i, priority: PRIORITIES[i % 4]! })
  for (const [name, reason, of, way = 'header'] of cases) {
    const cursor = of(epoch)
    const stream = way === 'header'
      ? await service.open('/sse', { headers: { 'last-event-id': cursor } })
      : await service.open(`/sse?lastEventId=${encodeURIComponent(cursor.toWellFormed())}`)
    await app.sse.broadcastEvent({ event: 'x', data: name }, { ephemeral: true })
    await stream.until(() => stream.named('x').length >= 1)
    t.strictSame(stream.events.map(({ event }) => event), ['sse:gap', 'x'], `${name}: one gap, no replay, then live`)
    t.strictSame(payloads(stream, 'sse:gap'), [{ reason, lastEventId: cursor.toWellFormed() }], name)
    t.equal(stream.lastEventId, `${epoch}.u`, `${name}: and a place again`)
    const beforeGap = blocksOf(stream.text).slice(0, blocksOf(stream.text).findIndex(({ event }) => event === 'sse:gap'))
    t.notOk(beforeGap.some(({ id }) => id !== null), `${name}: no place before the gap is told; a client cut here comes back with its old one`)
    await stream.close()
  }

  await t.test('NUL in the header is no HTTP', async t => {
    const socket = new RawSocket(service.url, { path: '/sse', headers: { 'last-event-id': `${epoch}.1\0` } })
    t.teardown(() => socket.close())
    await socket.until(() => socket.answers.length === 1)
    t.equal(socket.answers[0]!.status, 400)
  })

  await t.test('the last place within the limit', async t => {
    const stream = await service.open('/sse', { headers: { 'last-event-id': `${epoch}.m` } })
    await stream.collect(8, 'old')
    t.strictSame(stream.named('sse:gap'), [])
    t.strictSame(payloads(stream, 'old').sort((a, b) => a - b), [23, 24, 25, 26, 27, 28, 29, 30])
  })

  await t.test('an empty log', async t => {
    const service = await serve(t)
    const stream = await service.open('/sse', { headers: { 'last-event-id': 'zzzzzzzz.5' } })
    await stream.next('sse:gap')
    t.notOk(blocksOf(stream.text).slice(0, blocksOf(stream.text).findIndex(({ event }) => event === 'sse:gap')).some(({ id }) => id !== null))
    await service.app.sse.broadcastEvent({ event: 'x', data: 1 })
    await stream.next('x')
    t.strictSame(stream.events.map(({ event }) => event), ['sse:gap', 'x'])
  })
})

t.test('a gap for what the history has let go', async t => {
  const gap = async (t: Test, service: Service, cursor: string, ways: object = {}) => {
    const { stream } = await service.join('ada', [], { cursor, ...ways })
    // An event that is published before the log has been read for the client is within the gap.
    await stream.until(() => stream.named('sse:gap').length >= 1)
    await service.app.sse.broadcastEvent({ event: 'live', data: 1 })
    await stream.until(() => stream.named('live').length >= 1)
    t.strictSame(stream.events.map(({ event }) => event), ['sse:gap', 'live'])
    t.match(payloads(stream, 'sse:gap')[0], { reason: 'trimmed' })
    // Cut anywhere, it is told again, or goes on behind it.
    // What comes after, marks of the clients below among it, is not looked at.
    const received = [...blocksOf(stream.text)]
    for (let k = 1; k <= received.length; k++) {
      const blocks = received.slice(0, k)
      const place = blocks.findLast(({ id }) => id !== null)?.id ?? cursor
      const again = await service.join('ada', [], { cursor: place })
      const told = blocks.some(({ event }) => event === 'sse:gap')
      if (!told) await again.stream.next('sse:gap')
      await settle(service, again.stream)
      t.equal(again.stream.named('sse:gap').length, told ? 0 : 1, `cut after block ${k}`)
      t.equal(again.stream.named('live').length, blocks.some(({ event }) => event === 'live') || !told ? 0 : 1, `cut after block ${k}`)
      await again.stream.close()
    }
    await stream.close()
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
    const { stream } = await service.join('ada', [], { cursor: start.replace(/0$/, `0~${(41).toString(36)}~0~1`) })
    await service.app.sse.broadcastEvent({ event: 'live', data: 1 })
    await stream.next('live')
    t.strictSame(stream.events.map(({ event }) => event), [...new Array(10).fill('old'), 'live'])
    t.equal(stream.lastEventId, start.replace(/0$/, (52).toString(36)))
  })

  await t.test('by age', async t => {
    const clock = testClock()
    const service = await serve(t, clock.options)
    const start = (await service.open('/sse')).lastEventId
    await service.app.sse.broadcastEvent({ event: 'old', data: 1 })
    await clock.advance(300_001)
    const { stream } = await service.join('ada', [], { cursor: start })
    await stream.next('sse:gap')
    await service.app.sse.broadcastEvent({ event: 'live', data: 1 })
    await stream.next('live')
    t.strictSame(stream.events.map(({ event }) => event), ['sse:gap', 'live'])
    t.match(payloads(stream, 'sse:gap'), [{ reason: 'trimmed' }])
  })

  await t.test('by bytes', async t => {
    const service = await serve(t, { history: { maxBytes: 10_000 }, maxEventBytes: 5_000 })
    const start = (await service.open('/sse')).lastEventId
    for (let i = 1; i <= 3; i++) await service.app.sse.broadcastEvent({ event: 'old', data: 'x'.repeat(5_000 - 'old'.length) })
    await gap(t, service, start)
  })
})

t.test('of several gaps that no listener has received, onGap() reports the last', async t => {
  const log = testLog()
  const service = await serve(t, { broker: log.broker() })
  const { stream, connection } = await service.join('ada', [], { cursor: 'garbage' })
  log.wipe()
  await stream.collect(2, 'sse:gap')
  const reasons: string[] = []
  connection.onGap(({ reason }) => { reasons.push(reason) })
  await turns()
  t.strictSame(reasons, ['epoch'])
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
  const { stream } = await service.join('ada')
  t.throws(() => later.wipe('a\nid: forged'), { code: 'SSE_ERR_INVALID_OPTION' }, 'also when it comes with a gap')
  t.match(service.app.sse.health(), { status: 'degraded' })
  later.wipe()
  await stream.next('sse:gap')
})

t.test('a log that is wiped under a slow client: the gap is told, or its place is not', async t => {
  for (const reads of [true, false]) {
    const broker = new WipedLog()
    const service = await serve(t, { broker, outboxBytes: 4096 })
    const slow = await service.join('ada')
    await service.app.sse.broadcastEvent({ event: 'x', data: 'before' })
    await slow.stream.until(() => slow.stream.named('x').length >= 1)
    const place = slow.stream.lastEventId
    await block(slow)
    await service.app.sse.broadcastEvent({ event: 'x', data: 'lost' })
    broker.wipe()
    if (!reads) slow.connection.close('max-age')
    slow.stream.thaw()
    if (reads) {
      await slow.stream.until(() => slow.stream.named('sse:gap').length >= 1)
      await service.app.sse.broadcastEvent({ event: 'x', data: 'after' })
      await slow.stream.until(() => slow.stream.named('x').length >= 2)
      t.strictSame(texts(slow.stream), ['before', 'after'])
      t.equal(slow.stream.lastEventId, 'two.4')
      continue
    }
    await slow.stream.ended
    t.equal(slow.stream.lastEventId, place, 'closed before it heard of the gap, it keeps the place it had')
    const { stream } = await service.join('ada', [], { cursor: slow.stream.lastEventId })
    t.strictSame((await stream.collect(1, 'sse:gap')).map(({ data }) => JSON.parse(data!)), [{ reason: 'epoch', lastEventId: place }])
  }
})

t.test('a log that begins anew with smaller numbers', async t => {
  await t.test('ephemeral events that wait come before what is logged then', async t => {
    const broker = new WipedLog()
    const service = await serve(t, { broker })
    const slow = await service.join('ada')
    for (let n = 0; n < 10; n++) await service.app.sse.broadcastEvent({ event: 'old', data: n })
    await block(slow)
    await service.app.sse.broadcastEvent({ event: 'x', data: 'ephemeral' }, { ephemeral: true })
    broker.wipe()
    await service.app.sse.broadcastEvent({ event: 'x', data: 'logged' })
    slow.stream.thaw()
    await slow.stream.collect(2, 'x')
    t.strictSame(texts(slow.stream), ['ephemeral', 'logged'])
  })

  await t.test('an idle client is told its place there, also if the number is that of its old place', async t => {
    const broker = new WipedLog()
    const service = await serve(t, { broker, keepAliveIntervalMs: 100 })
    const { stream } = await service.join('ada')
    for (let n = 0; n < 4; n++) await service.app.sse.broadcastEvent({ event: 'old', data: n })
    await until(() => stream.lastEventId === 'one.4')
    broker.wipe()
    await stream.next('sse:gap')
    t.equal(stream.lastEventId, 'two.3')
    await service.app.sse.broadcastEvent({ event: 'x', data: 'not for ada' }, { userIds: ['grace'] })
    await until(() => stream.lastEventId === 'two.4')
    t.strictSame(texts(stream), [])
  })
})
