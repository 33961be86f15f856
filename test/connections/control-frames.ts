import t, { type Test } from 'tap'
import { assertCloseReason, CLOSE_REASONS, isCloseReason, shouldReconnect } from '../../lib/connections/close-reason.js'
import { FAREWELL, farewellText, gapFrame, greetingText, KEEP_ALIVE, MAX_RETRY_MS, pingText, sourceErrorFrame, unsubscribedFrame } from '../../lib/connections/control-frames.js'
import { Greetings } from '../../lib/connections/greetings.js'
import { failedId, INCOMPLETE, parseClaimedId } from '../../lib/connections/snapshot-mark.js'
import { resolveSnapshot } from '../../lib/connections/snapshot-options.js'
import { EventPriority } from '../../lib/index.js'

// The texts that this package sends beside events, and the ids of clients without their state.

t.test('control events, byte by byte', async t => {
  const cursor = 'id: e.1\n\n'
  t.equal(KEEP_ALIVE, ': keep-alive\n\n')
  t.equal(FAREWELL, ': end\n\n')
  t.equal(pingText('e.1'), 'id: e.1\nevent: sse:ping\ndata: {"lastEventId":"e.1"}\n\n')
  t.equal(pingText(null), 'event: sse:ping\ndata: {"lastEventId":null}\n\n')
  t.equal(greetingText(15_000, 2_000, cursor), `: stream keep-alive=15000\n\nretry: 2000\n\n${cursor}`)
  t.equal(greetingText(null, 2_000, ''), ': stream\n\nretry: 2000\n\n')
  t.equal(greetingText(15_000, null, cursor), `: stream keep-alive=15000\n\n${cursor}`)
  const frames = {
    gap: gapFrame('trimmed', 'e.1'),
    state: gapFrame('limit', '', true),
    unsubscribed: unsubscribedFrame('news', 'revoked'),
    error: sourceErrorFrame()
  }
  t.match(frames, {
    gap: { text: 'event: sse:gap\ndata: {"reason":"trimmed","lastEventId":"e.1"}\n\n', priority: EventPriority.CRITICAL },
    state: { text: 'event: sse:gap\ndata: {"reason":"limit","lastEventId":"","snapshot":true}\n\n', priority: EventPriority.CRITICAL },
    unsubscribed: { text: 'event: sse:unsubscribed\ndata: {"subscriptionId":"news","reason":"revoked"}\n\n', priority: EventPriority.CRITICAL },
    error: { text: 'event: sse:error\ndata: {"message":"The source of this stream failed"}\n\n', priority: EventPriority.NORMAL }
  })
  for (const frame of Object.values(frames)) t.match(frame, { head: '', seq: 0, key: null, target: null, fromLog: false })
})

/** Calls a function with the least and the greatest random number. */
function extremes (t: Test, call: () => string): [least: string, greatest: string] {
  const { random } = Math
  t.teardown(() => { Math.random = random })
  const at = (value: number): string => {
    Math.random = () => value
    return call()
  }
  const results: [string, string] = [at(0), at(1)]
  Math.random = random
  return results
}

t.test('the end of a stream: whether the client returns, and when', async t => {
  // Reason: whether the client reconnects, and whether it is told a time.
  const expected: Record<string, [reconnect: boolean, retry: boolean]> = {
    client: [false, false],
    closed: [false, false],
    disconnected: [false, false],
    shutdown: [true, true],
    'max-age': [true, true],
    'auth-expired': [true, false],
    revoked: [false, false],
    'rights-unknown': [true, true],
    stalled: [false, false],
    'source-end': [false, false],
    'source-error': [true, false],
    'snapshot-error': [true, true],
    head: [false, false],
    kicked: [false, false]
  }
  t.strictSame(Object.keys(expected).slice(0, -1), [...CLOSE_REASONS])
  for (const [reason, [reconnect, retry]] of Object.entries(expected)) {
    t.equal(isCloseReason(reason), reason !== 'kicked', reason)
    t.equal(shouldReconnect(reason), reconnect, reason)
    const rest = `id: e.1\n\nevent: sse:close\ndata: {"reason":"${reason}","reconnect":${reconnect}}\n\n`
    const [least, greatest] = extremes(t, () => farewellText(reason, 1_000, 700, 'id: e.1\n\n'))
    t.equal(least, (retry ? 'retry: 1000\n\n' : '') + rest)
    t.equal(greatest, (retry ? 'retry: 2000\n\n' : '') + rest)
  }
  const times = (reason: string, retryMs: number, drainMs: number) => extremes(t, () => farewellText(reason, retryMs, drainMs, '')).map(text => Number(/^retry: (\d+)\n/.exec(text)![1]))
  t.strictSame(times('shutdown', 1_000, 5_000), [5_000, 10_000], 'not before the server has closed')
  t.strictSame(times('max-age', 1_000, 5_000), [1_000, 2_000], 'which only a shutdown waits for')
  t.strictSame(times('shutdown', 101, 100), [101, 202])
  t.strictSame(times('max-age', MAX_RETRY_MS - 1, 0), [MAX_RETRY_MS - 1, MAX_RETRY_MS])
  t.equal(MAX_RETRY_MS, 3_600_000)
})

t.test('a reason of the application is 1 to 64 characters of a-z, 0-9 and -', async t => {
  for (const reason of ['a', '0', '-', 'a-9', 'z'.repeat(64)]) t.doesNotThrow(() => assertCloseReason(reason))
  const wrong: [reason: unknown, shown: string][] = [
    ['', '""'], ['z'.repeat(65), `"${'z'.repeat(65)}"`], ['A', '"A"'], ['a b', '"a b"'], ['a\n', '"a\\n"'], ['a_b', '"a_b"'], [7, 'a value of type number'], [undefined, 'a value of type undefined'], [null, 'a value of type object']
  ]
  for (const [reason, shown] of wrong) t.throws(() => assertCloseReason(reason), { code: 'SSE_ERR_INVALID_CLOSE_REASON', message: `A close reason is 1 to 64 characters of a-z, 0-9 and -, got ${shown}` })
})

const textOf = ({ framed }: { framed: Buffer }) => framed.toString().split('\r\n').slice(1, -1).join('\r\n')

t.test('the first blocks of streams have 32 reconnection times in turn, from the given one to twice as long', async t => {
  const greetings = new Greetings(15_000)
  const chunks = Array.from({ length: 32 }, () => greetings.next(1_000, 'id: e.1\n\n'))
  t.strictSame(chunks.map(textOf), Array.from({ length: 32 }, (_, step) => greetingText(15_000, Math.round(1_000 + step * 1_000 / 32), 'id: e.1\n\n')))
  t.equal(new Set(chunks.map(textOf)).size, 32)
  for (const chunk of chunks) t.equal(greetings.next(1_000, 'id: e.1\n\n'), chunk, 'the bytes are made once')
  t.match(textOf(greetings.next(1_000, 'id: e.2\n\n')), 'retry: 1000\n\nid: e.2\n\n', 'until the cursor is another')
  t.match(textOf(greetings.next(2_000, 'id: e.1\n\n')), 'retry: 2063\n\nid: e.1\n\n', 'or the time')
  t.equal(textOf(greetings.next(null, 'id: e.1\n\n')), ': stream keep-alive=15000\n\nid: e.1\n\n', 'or none is sent')
  const longest = new Greetings(null)
  t.strictSame([0, 1, 2].map(() => textOf(longest.next(MAX_RETRY_MS - 1, ''))), [MAX_RETRY_MS - 1, MAX_RETRY_MS, MAX_RETRY_MS].map(retryMs => greetingText(null, retryMs, '')))
})

t.test('an id of a client without its state', async t => {
  const ids: [id: string, cursor: string, failures: number | null][] = [
    ['e.1', 'e.1', null], ['', '', null], ['!0', '', 0], ['e.1!0', 'e.1', 0], ['e.1!9', 'e.1', 9], ['e.1!z', 'e.1', 35], ['e.1!10', 'e.1!10', null], ['e.1!', 'e.1!', null], ['e.1!Z', 'e.1!Z', null],
    ['a!1!2', 'a!1', 2], ['a\nb!3', 'a\nb', 3], ['!4 ', '!4 ', null]
  ]
  for (const [id, cursor, failures] of ids) t.strictSame(parseClaimedId(id), { cursor, failures }, JSON.stringify(id))
  for (const [failures, mark] of [[0, '!0'], [1, '!1'], [10, '!a'], [34, '!y'], [35, '!z'], [36, '!z'], [1_000, '!z']] as const) {
    t.equal(failedId('e.1', failures), `e.1${mark}`)
    t.strictSame(parseClaimedId(failedId('', failures)), { cursor: '', failures: Math.min(failures, 35) })
  }
  t.equal(INCOMPLETE, failedId('', 0))
})

t.test('the option snapshot, at its bounds and beyond', async t => {
  const load = (): null => null
  t.equal(resolveSnapshot(undefined), null)
  t.strictSame(resolveSnapshot({ load }), { load, timeoutMs: 10_000, maxConcurrent: 16 })
  for (const [name, least, most] of [['timeoutMs', 1, 600_000], ['maxConcurrent', 1, 10_000]] as const) {
    for (const value of [least, most]) t.equal(resolveSnapshot({ load, [name]: value })![name], value)
    for (const value of [least - 1, most + 1, 1.5, '1']) t.throws(() => resolveSnapshot({ load, [name]: value }), { code: 'SSE_ERR_INVALID_OPTION', message: `snapshot.${name}` })
  }
  for (const key of ['k', 'k'.repeat(256)]) t.equal(resolveSnapshot({ load, key })!.key, key)
  for (const key of ['', 'k'.repeat(257), 7]) t.throws(() => resolveSnapshot({ load, key }), { code: 'SSE_ERR_INVALID_OPTION', message: 'snapshot.key' })
  for (const wrong of [null, {}, { load: 'load' }, { load, more: 1 }]) t.throws(() => resolveSnapshot(wrong), { code: 'SSE_ERR_INVALID_OPTION' })
})
