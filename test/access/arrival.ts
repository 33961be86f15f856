import t from 'tap'
import { Arrival } from '../../lib/access/arrival.js'
import type { HttpRequest, HttpResponse } from '../../lib/wire/http.js'

// What a request says of itself before anybody is asked who it is.

const arrive = (url: string | undefined, headers: object = {}, method = 'GET') => {
  const request = { url, headers, method } as HttpRequest
  return new Arrival(request, {} as HttpResponse, request, '192.0.2.1', 5, 7)
}

t.test('which requests expect a stream, and which cannot have one', t => {
  const STREAM = 'text/event-stream'
  for (const [accept, byGet, byPost] of [[undefined, true, false], ['*/*', true, false], [STREAM, true, true], [`application/json, ${STREAM}`, true, true], [`${STREAM};q=0, */*`, false, false], ['text/html', false, false]] as const) {
    for (const [method, expected] of [['GET', byGet], ['HEAD', byGet], ['POST', byPost], ['PUT', byPost]] as const) {
      const arrival = arrive('/', { accept }, method)
      t.equal(arrival.expectsStream, expected, `${method} ${accept}`)
      if (byGet) t.doesNotThrow(() => arrival.assertAcceptable())
      else t.throws(() => arrival.assertAcceptable(), { code: 'SSE_ERR_NOT_ACCEPTABLE' })
    }
  }
  const { request, subject, ip, at, since, reservation, hasEntered } = arrive('/')
  t.equal(request, subject)
  t.strictSame([ip, at, since, reservation, hasEntered], ['192.0.2.1', 5, 7, null, false])
  t.end()
})

t.test('the cursor: of the header, else of the query, in both spellings; and which state a client lacks', t => {
  const values = [undefined, '', 'one', 'two']
  for (const header of [...values, ['one', 'two'], []]) {
    for (const first of values) {
      for (const second of values) {
        const query = new URLSearchParams({ ...(first !== undefined && { lastEventId: first }), ...(second !== undefined && { last_event_id: second }) })
        for (const topic of ['a', 'b:*']) query.append('fresh', topic)
        const arrival = arrive(`/sse?x=1&${query}`, { 'last-event-id': header })
        const [byHeader, byQuery] = [Array.isArray(header) ? header[0] : header, first || second]
        const what = JSON.stringify({ header, first, second })
        t.equal(arrival.lastEventId || null, byHeader || byQuery || null, what)
        // An EventSource keeps its URL: its header tells whether it has received more since.
        t.strictSame(arrival.fresh, byHeader && byQuery && byHeader !== byQuery ? [] : ['a', 'b:*'], what)
      }
    }
  }
  for (const url of [undefined, '', '/sse', '/sse?', '/fresh=a']) {
    t.equal(arrive(url).lastEventId || null, null)
    t.equal(arrive(url, { 'last-event-id': 'one' }).lastEventId, 'one')
    t.strictSame(arrive(url, { 'last-event-id': 'one' }).fresh, [])
  }
  t.end()
})
