import t from 'tap'
import { Inbox, type InboxOptions } from '../../lib/testing/inbox.js'
import { turns } from '../helpers/wait.js'

// What a stream of a test has received, and the waits for it.

function inbox (options: Partial<InboxOptions> = {}): Inbox {
  return new Inbox({ isStream: true, timeoutMs: 60_000, lastEventId: '', describe: () => 'GET /sse', ...options })
}

/** Blocks of events with these names, and data 0, 1, … */
const blocks = (...names: string[]) => names.map((name, n) => `event: ${name}\ndata: ${n}\n\n`).join('')
const timers = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length
const label = ({ event, json }: { event: string, json: unknown }) => `${event}${json}`

t.test('what was received', async t => {
  const stream = inbox({ lastEventId: 'before' })
  t.strictSame([stream.text, stream.receivedBytes, stream.lastEventId, stream.retryMs, stream.events, stream.comments], ['', 0, 'before', null, [], []])
  const parts = [': é\n\nretry: 20\n\nid: 1\nevent: a\nda', 'ta: {"x":"ü"}\n\n', 'id: 2\n\ndata: null\n\n', ': last\n\nevent: a\ndata: no JSON\n\n']
  for (const part of parts) {
    stream.push(part)
    for (const again of [false, true]) t.equal(stream.text, parts.slice(0, parts.indexOf(part) + 1).join(''), `again: ${again}`)
  }
  t.equal(stream.receivedBytes, Buffer.byteLength(parts.join('')))
  t.strictSame(stream.events, [
    { event: 'a', data: '{"x":"ü"}', json: { x: 'ü' }, id: '1' },
    { event: 'message', data: 'null', json: null, id: null },
    { event: 'a', data: 'no JSON', json: undefined, id: null }
  ])
  t.strictSame(stream.named('a').map(({ data }) => data), ['{"x":"ü"}', 'no JSON'])
  t.strictSame([stream.lastEventId, stream.retryMs, stream.comments], ['2', 20, ['é', 'last']])
  const plain = inbox({ isStream: false })
  plain.push(blocks('a'))
  t.strictSame([plain.text, plain.events], [blocks('a'), []], 'the body of another response is no stream')
})

t.test('each event is returned once, in order, by whom it was wanted first', async t => {
  const stream = inbox()
  const waits = [stream.next('b'), stream.next(), stream.collect(2, 'a'), stream.collect(({ event }) => event === 'c'), stream.collect(2)]
  const settled: number[] = []
  for (const [n, wait] of waits.entries()) wait.then(() => settled.push(n))
  for (const [part, done] of [['a0', [1]], ['a1', [1]], ['b2', [1, 0]], ['a3', [1, 0, 2]], ['x4', [1, 0, 2]], ['y5', [1, 0, 2, 4]], ['c6', [1, 0, 2, 4, 3]]] as const) {
    stream.push(`event: ${part[0]}\ndata: ${part[1]}\n\n`)
    await turns(1)
    t.strictSame(settled, done, part)
  }
  t.strictSame((await Promise.all(waits)).map(found => [found].flat().map(label).join()), ['b2', 'a0', 'a1,a3', 'c6', 'x4,y5'])
  t.equal(stream.events.length, 7, 'all are kept')
})

t.test('collect() takes as many as it names, and leaves the others unread', async t => {
  const stream = inbox()
  stream.push(blocks('a', 'b', 'a', 'a', 'b', 'c', 'd'))
  t.strictSame((await stream.collect(2, 'a')).map(label), ['a0', 'a2'])
  t.strictSame((await stream.collect(0)).map(label), [])
  t.strictSame((await stream.collect(({ json }) => json >= 3)).map(label), ['b1', 'a3'], 'up to and including the first')
  t.strictSame((await stream.collect(1)).map(label), ['b4'])
  t.strictSame((await stream.collect(2)).map(label), ['c5', 'd6'])
})

t.test('a wait that is settled leaves nothing behind', async t => {
  const before = timers()
  const stream = inbox()
  let looks = 0
  const found = stream.wait('three looks', () => ++looks === 3 ? 'found' : undefined)
  const thrown = stream.wait('an error', () => { if (looks === 2) throw new RangeError('of the test') })
  t.equal(looks, 1, 'at once')
  t.equal(timers(), before + 2, 'each deadline keeps the process alive')
  stream.push(': one\n\n')
  await t.rejects(thrown, { name: 'RangeError', message: 'of the test' })
  stream.look()
  t.equal(await found, 'found')
  for (let n = 0; n < 3; n++) stream.look()
  t.equal(looks, 3)
  t.equal(timers(), before)
  t.equal(await stream.wait('at once', () => 0), 0, 'any value but undefined')
  await t.rejects(stream.wait('at once', () => { throw new RangeError('at once') }), { message: 'at once' })
  t.equal(timers(), before)
})

t.test('the end and the deadline reject what is not there; what is there can be read afterwards', async t => {
  const before = timers()
  const stream = inbox({ timeoutMs: 30 })
  stream.push(blocks('a'))
  await t.rejects(stream.next('b'), { code: 'SSE_ERR_TEST_TIMEOUT', message: /within 30 ms: event "b"\. GET \/sse; 1 events/ })
  t.equal(timers(), before)

  const closed = inbox()
  closed.push(blocks('a', 'b'))
  // Not awaited, as in a test that has failed meanwhile: no unhandled rejection.
  closed.next('x')
  const pending = closed.collect(3)
  closed.close()
  await t.rejects(pending, { code: 'SSE_ERR_TEST_STREAM_ENDED', message: /3 events\. / })
  t.equal(timers(), before)
  t.strictSame((await closed.collect(2)).map(label), ['a0', 'b1'])
  for (const [what, wait] of [['an event.', closed.next()], ['event "x"', closed.next('x')], ['1 events "x"', closed.collect(1, 'x')], ['1 events.', closed.collect(1)], ['for which event => event.json is true', closed.collect(event => event.json)]] as const) {
    await t.rejects(wait as Promise<unknown>, { code: 'SSE_ERR_TEST_STREAM_ENDED', message: what })
  }
})

t.test('the summary shows the newest five events, each with 80 letters', async t => {
  const stream = inbox({ lastEventId: 'x"' })
  t.equal(stream.summary(), 'GET /sse; 0 events; 0 unread; 0 comments; last event id "x\\""')
  stream.push(`: c\n\n: c\n\ndata: first\n\n${['x'.repeat(79), 'x'.repeat(80), 'x'.repeat(81)].map(data => `data: ${data}\n\n`).join('')}event: e\ndata: 4\n\n`)
  await stream.next()
  stream.push('event: e\ndata: 5\n\n')
  t.equal(stream.summary(), `GET /sse; 6 events, the last 5: message ${'x'.repeat(79)} | message ${'x'.repeat(80)} | message ${'x'.repeat(80)}… | e 4 | e 5; 5 unread; 2 comments; last event id "x\\""`)
})
