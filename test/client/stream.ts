import { getEventListeners } from 'node:events'
import t from 'tap'
import type { ReadEvent } from '../../lib/client/client-event.js'
import { readStream, type Ending, type StreamSink } from '../../lib/client/stream.js'
import { TestClock } from '../../lib/testing/test-clock.js'
import { turns, until } from '../helpers/wait.js'
import { counted } from './timers.js'

// One attempt, from the request to the end of the response: what is passed on, and how it ends.

const TYPE = 'text/event-stream'
const encoder = new TextEncoder()

/** A body that a test writes. */
function body () {
  let controller!: ReadableStreamDefaultController<Uint8Array>
  const stream = new ReadableStream<Uint8Array>({ start (given) { controller = given } })
  return { stream, write (text: string) { controller.enqueue(encoder.encode(text)) }, end () { controller.close() }, fail () { controller.error(new Error('broken')) } }
}

const streamOf = (content: string | ReadableStream<Uint8Array>, type = TYPE, status = 200) => new Response(content, { status, headers: { 'content-type': type } })

/** Sends a request that is answered so, and records what is passed on. */
function attempt (response: Response | null | Promise<Response | null>, { onEvent = () => {}, read }: { onEvent?: (event: ReadEvent) => void, read?: StreamSink['read'] } = {}) {
  const time = new TestClock()
  const { clock, timers } = counted(time.clock)
  const controller = new AbortController()
  const calls: unknown[] = []
  let sent!: AbortSignal
  const ending = readStream({
    send: async signal => {
      sent = signal
      return await response
    },
    sink: {
      response: () => { calls.push('response') },
      open: () => { calls.push('open') },
      event: event => {
        calls.push(event.data)
        onEvent(event)
      },
      lastEventId: id => { calls.push(`id ${id}`) },
      retry: ms => { calls.push(`retry ${ms}`) },
      ...(read !== undefined && { read })
    },
    signal: controller.signal,
    clock,
    timeoutMs: 5_000
  })
  return {
    calls,
    controller,
    time,
    timers,
    sent: () => sent,
    has: async (call: unknown) => { await until(() => calls.includes(call), undefined, `${String(call)} arrives`) },
    /** The ending, after which nothing of the attempt is left. */
    async ends (): Promise<Ending> {
      const result = await ending
      if (!sent.aborted || timers.size > 0 || getEventListeners(controller.signal, 'abort').length > 0) t.fail('the attempt has left something behind')
      return result
    }
  }
}

t.test('answers', async t => {
  const json = (status: number, text: string, headers: Record<string, string> = {}) => new Response(text, { status, headers: { 'content-type': 'application/json', ...headers } })
  const date = (ms: number) => new Date(Math.ceil(Date.now() / 1000) * 1000 + ms).toUTCString()
  const stream = { isFinal: false, reason: 'end', openMs: 0 }
  const noStream = (status: number) => ({ isFinal: true, reason: 'not-a-stream', status, openMs: 0 })
  const refused = (status: number, isFinal: boolean, code?: string, retryAfterMs?: number) => ({ isFinal, reason: 'refused', status, code, retryAfterMs, openMs: 0 })
  const cases: [Response | null, object][] = [
    ...[TYPE, `${TYPE};charset=utf-8`, 'Text/Event-Stream'].map(type => [streamOf('', type), stream] as [Response, object]),
    ...[`${TYPE}s`, 'text/plain', `x-${TYPE}`].map(type => [streamOf('', type), noStream(200)] as [Response, object]),
    [new Response(body().stream), noStream(200)],
    ...[201, 206, 299].map(status => [streamOf('', TYPE, status), noStream(status)] as [Response, object]),
    [new Response(null, { status: 204 }), { isFinal: true, reason: 'no-content', status: 204, openMs: 0 }],
    [null, { isFinal: true, reason: 'no-credentials', openMs: 0 }],
    ...[400, 401, 403, 404, 409, 424, 426, 428, 430, 499].map(status => [json(status, '{}'), refused(status, true)] as [Response, object]),
    ...[408, 425, 429, 500, 501, 502, 503, 599].map(status => [json(status, '{}'), refused(status, false)] as [Response, object]),
    [streamOf('', TYPE, 403), refused(403, true)],
    [json(401, '{"code":"X"}'), refused(401, true, 'X')],
    [json(401, '{"code":7}'), refused(401, true)],
    [json(401, 'null'), refused(401, true)],
    [json(401, '{'), refused(401, true)],
    [streamOf('{"code":"X"}', 'application/problem+json; charset=utf-8', 401), refused(401, true, 'X')],
    [streamOf('{"code":"X"}', 'text/plain', 401), refused(401, true)],
    [json(503, '{}', { 'retry-after': '7' }), refused(503, false, undefined, 7_000)],
    [json(503, '{}', { 'retry-after': '0' }), refused(503, false)],
    [json(503, '{}', { 'retry-after': 'soon' }), refused(503, false)],
    [json(503, '{}', { 'retry-after': '7s' }), refused(503, false)],
    [json(503, '{}', { 'retry-after': date(-60_000) }), refused(503, false)]
  ]
  for (const [response, expected] of cases) {
    const name = `${response?.status} ${response?.headers.get('content-type')} ${response?.headers.get('retry-after')}`
    const { ends, calls } = attempt(response)
    t.same(JSON.parse(JSON.stringify(await ends())), JSON.parse(JSON.stringify(expected)), name)
    t.same(calls, expected === stream ? ['response'] : [], name)
  }
  const { retryAfterMs } = await attempt(json(503, '{}', { 'retry-after': date(3_600_000) })).ends()
  t.ok(retryAfterMs! > 3_500_000 && retryAfterMs! <= 3_601_000, `${retryAfterMs} ms to a date`)
})

t.test('the last event decides how a stream has ended', async t => {
  const event = (name: string, data: string) => `event: ${name}\ndata: ${data}\n\n`
  const open = ': stream\n\n'
  const cases: [string, object, unknown[]][] = [
    [open, { isFinal: false, reason: 'end' }, ['open']],
    [open + event('sse:close', '{"reason":"kicked","reconnect":false}'), { isFinal: true, reason: 'kicked' }, ['open']],
    [open + event('sse:close', '{"reason":"shutdown","reconnect":true}'), { isFinal: false, reason: 'shutdown' }, ['open']],
    [open + event('sse:close', '{"reason":"x"}'), { isFinal: false, reason: 'x' }, ['open']],
    [open + event('sse:close', 'null'), { isFinal: false, reason: 'undefined' }, ['open']],
    [event('sse:close', '{"reason":"kicked","reconnect":false}'), { isFinal: true, reason: 'kicked' }, []],
    [`retry: 9\n\n${event('sse:error', '{"code":"X"}')}`, { isFinal: false, reason: 'refused', code: 'X' }, ['retry 9']],
    [event('sse:error', '{"code":7}'), { isFinal: false, reason: 'refused', code: undefined }, []],
    [event('sse:error', 'null'), { isFinal: false, reason: 'refused', code: undefined }, []],
    [event('sse:error', 'broken'), { isFinal: false, reason: 'refused', code: undefined }, []],
    [open + event('sse:error', '"late"'), { isFinal: false, reason: 'end' }, ['open', 'late']],
    [event('x', '1') + event('sse:error', '"late"'), { isFinal: false, reason: 'end' }, ['open', 1, 'late']],
    ['id: 1\n\n', { isFinal: false, reason: 'end' }, ['open', 'id 1']],
    ['\uFEFF:\n\nid: 1\ndata: 1\n\nretry: 5\n\n', { isFinal: false, reason: 'end' }, ['open', 'id 1', 1, 'retry 5']],
    ['retry: 5\n\n', { isFinal: false, reason: 'end' }, ['retry 5']]
  ]
  for (const [text, expected, passed] of cases) {
    const { ends, calls } = attempt(streamOf(text))
    t.match(await ends(), expected, JSON.stringify(text))
    t.same(calls, ['response', ...passed], JSON.stringify(text))
  }
})

t.test('after the end, and after an abort in a listener, nothing is passed on', async t => {
  const rest = ': comment\n\nretry: 7\n\nid: 2\n\nid: 3\ndata: 2\n\n'
  const closed = attempt(streamOf(`id: 1\ndata: 1\n\nevent: sse:close\ndata: {"reason":"max-age","reconnect":true}\n\n${rest}event: sse:close\ndata: {"reason":"x","reconnect":false}\n\n`))
  t.match(await closed.ends(), { reason: 'max-age', isFinal: false })
  t.same(closed.calls, ['response', 'open', 'id 1', 1])

  const { stream, write } = body()
  const aborted = attempt(streamOf(stream), { onEvent: () => { aborted.controller.abort() } })
  write(`id: 1\ndata: 1\n\n${rest}event: sse:close\ndata: {"reason":"x","reconnect":false}\n\n`)
  t.match(await aborted.ends(), { reason: 'network' })
  t.same(aborted.calls, ['response', 'open', 'id 1', 1])
  const unopened = attempt(streamOf(`retry: 1\n\n${rest}`))
  unopened.controller.abort()
  await unopened.ends()
  t.notOk(unopened.calls.includes('open'))
})

t.test('an attempt that fails, or that is silent', async t => {
  t.same(await attempt(Promise.reject(new Error('No network'))).ends(), { isFinal: false, reason: 'network', openMs: 0 })
  const silent = body()
  for (const [response, fail] of [[new Promise<never>(() => {}), () => {}], [streamOf(silent.stream), silent.fail]] as const) {
    const { ends, time, sent } = attempt(response)
    await time.advance(4_999)
    t.equal(sent().aborted, false)
    await time.advance(1)
    t.equal(sent().aborted, true)
    // As the body of a request that is aborted.
    fail()
    t.same(await ends(), { isFinal: false, reason: 'timeout', openMs: 0 })
  }
  const given = attempt(new Promise<never>(() => {}))
  await turns(1)
  given.controller.abort()
  t.ok(given.sent().aborted, 'the request is aborted with its attempt')
  await given.time.advance(5_000)
  await given.ends()
})

t.test('how long a stream was open', async t => {
  const { stream, write, end } = body()
  const { ends, time, has } = attempt(streamOf(stream))
  await time.advance(1_000)
  write('retry: 5\n\n')
  await has('retry 5')
  await time.advance(1_000)
  write(': stream keep-alive=60000\n\n')
  await has('open')
  await time.advance(1_000)
  write('data: 1\n\n')
  await has(1)
  await time.advance(3_000)
  end()
  t.same(await ends(), { isFinal: false, reason: 'end', openMs: 4_000 })
})

t.test('the first block decides how long the server may be silent', async t => {
  for (const [text, limitMs] of [[': stream keep-alive=1000\n\n', 2_000], [': stream\n\n', Infinity], [': keep-alive=1000\n\n', Infinity], [': stream keep-alive=1000 more\n\n', Infinity], ['id: 1\n\n', Infinity], ['data: 1\n\n', Infinity], ['id: 1\n\n: stream keep-alive=1000\n\n', Infinity], ['retry: 1\n\n', 5_000]] as const) {
    const { stream, write, end } = body()
    const { ends, time, calls, sent } = attempt(streamOf(stream))
    await turns(2)
    write(text)
    await until(() => calls.length > 1)
    await turns(1)
    await time.advance(Math.min(limitMs - 1, 1_000_000))
    t.equal(sent().aborted, false, text)
    await time.advance(1)
    t.equal(sent().aborted, limitMs !== Infinity, text)
    end()
    await ends()
  }
})

t.test('the next part is read when the listener allows it, and this time does not count', async t => {
  const { stream, write, end } = body()
  let release = () => {}
  let isSlow = true
  const { ends, time, calls, has, sent, timers } = attempt(streamOf(stream), { read: () => isSlow ? new Promise<void>(resolve => { release = resolve }) : undefined })
  write(': stream keep-alive=1000\n\ndata: 1\n\n')
  await has(1)
  await until(() => timers.size === 0)
  write('data: 2\n\n')
  await time.advance(60_000)
  t.notOk(calls.includes(2), 'the second part waits')
  t.equal(sent().aborted, false)
  isSlow = false
  release()
  await has(2)
  await time.advance(1_999)
  t.equal(sent().aborted, false)
  await time.advance(1)
  t.equal(sent().aborted, true, 'afterwards it counts again')
  end()
  await ends()
})

t.test('an event that does not end breaks the stream', async t => {
  const part = encoder.encode('x'.repeat(1 << 20))
  let parts = 0
  const endless = new ReadableStream<Uint8Array>({
    start (controller) { controller.enqueue(encoder.encode(': stream\n\ndata: ')) },
    pull (controller) {
      parts++
      controller.enqueue(part)
    }
  })
  t.match(await attempt(streamOf(endless)).ends(), { isFinal: false, reason: 'network' })
  t.ok(parts >= 64 && parts < 70, `${parts} MiB`)
})
