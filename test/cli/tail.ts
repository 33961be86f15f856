import { getEventListeners } from 'node:events'
import t from 'tap'
import { cut, script, status, stream } from '../client/clients.js'
import { serve } from '../helpers/app.js'
import { run } from './run.js'

// `tail` prints what a client receives, and goes on after interruptions.

t.test('events, one a line', async t => {
  const { url } = await script(t, stream('id: 1\nevent: order\ndata: {"n":1}\n\ndata: two\ndata: lines\u001b[0m\n\nevent: other\ndata: 3\n\nevent: sse:gap\ndata: {"reason":"epoch"}\n\n'))
  const all = await run(['tail', url, '--count', '4'])
  t.equal(all.code, 0)
  t.equal(all.out, '1  order  {"n":1}\n-  message  two\\u000alines\\u001b[0m\n-  other  3\n-  sse:gap  {"reason":"epoch"}\n')
  t.match(all.err, 'open\n')
  const named = await run(['tail', url, '--event', 'other', '--count', '2'])
  t.equal(named.out, '-  other  3\n-  sse:gap  {"reason":"epoch"}\n', 'a gap is always printed')
  const json = await run(['tail', url, '--json', '--event', 'order', '--event', 'other', '--count', '2'])
  t.same(json.out.trim().split('\n').map(line => JSON.parse(line)), [{ id: '1', event: 'order', data: { n: 1 } }, { id: null, event: 'other', data: 3 }])
})

t.test('it resumes after an interruption, and begins after an id', async t => {
  const { url, requests } = await script(t, cut('retry: 100\n\nid: 1\nevent: n\ndata: 1\n\n'), stream('id: 2\nevent: n\ndata: 2\n\n'))
  const { code, out, err } = await run(['tail', url, '--count', '2', '--header', 'X-Trace: 1'])
  t.equal(code, 0)
  t.equal(out, '1  n  1\n2  n  2\n')
  t.match(err, /^waiting \d+ ms: network$/m)
  t.equal(requests[1]!.headers['last-event-id'], '1')
  t.equal(requests[1]!.headers['x-trace'], '1')

  const service = await serve(t)
  const { app: { sse } } = service
  const { id } = await sse.broadcastEvent({ event: 'n', data: '1' })
  await sse.broadcastEvent({ event: 'n', data: '2' })
  const later = await run(['tail', `${service.url}/sse`, '--last-event-id', id!, '--count', '1'])
  t.match(later, { code: 0, out: /^\S+ {2}n {2}2\n$/ })
})

t.test('it ends when the server refuses it, when it has nothing more, and on Ctrl-C', async t => {
  const refusing = await script(t, status(403, { code: 'SSE_ERR_ORIGIN_FORBIDDEN' }))
  const refused = await run(['tail', refusing.url])
  t.equal(refused.code, 1)
  t.match(refused.err, /The server refused the request: status 403 SSE_ERR_ORIGIN_FORBIDDEN\.\n$/)
  const empty = await script(t, status(204))
  t.equal((await run(['tail', empty.url])).code, 0)
  const { url } = await script(t, stream('data: 1\n\n'))
  const interruption = new AbortController()
  const { code } = await run(['tail', url], { signal: interruption.signal, onOut: () => interruption.abort() })
  t.equal(code, 0)
  t.equal(getEventListeners(interruption.signal, 'abort').length, 0)
})

t.test('a close event without a reason', async t => {
  const { url } = await script(t, stream('event: sse:close\ndata: {"reconnect":false}\n\n'))
  const { code, err } = await run(['tail', url])
  t.equal(code, 1)
  t.match(err, 'closed: undefined\n')
})
