import t from 'tap'
import { isAcceptable, namesEventStream, streamHeaders } from '../../lib/wire/headers.js'
import type { HttpRequest } from '../../lib/wire/http.js'

t.test('what an Accept header says of event streams', async t => {
  const rows: [accept: string | undefined, accepts: boolean, names: boolean][] = [
    [undefined, true, false],
    ['', true, false],
    [' ', true, false],
    ['*/*', true, false],
    ['text/*', true, false],
    ['text/event-stream', true, true],
    ['Text/Event-Stream', true, true],
    ['text/html, text/event-stream;charset=utf-8', true, true],
    ['text/html', false, false],
    ['application/json, text/plain', false, false],
    ['text/html, */*;q=0.1', true, false],
    ['text/event-stream;q=0', false, false],
    ['text/event-stream; Q=0', false, false],
    ['text/event-stream;q=0.0', false, false],
    ['text/event-stream;q=0.001', true, true],
    ['text/event-stream;q=nonsense', false, false],
    // The most precise range counts, wherever it stands.
    ['text/event-stream;q=0, */*', false, false],
    ['*/*, text/event-stream;q=0', false, false],
    ['text/*;q=0, */*', false, false],
    ['*/*, text/*;q=0', false, false],
    ['text/*;q=0, text/event-stream', true, true],
    ['text/event-stream, text/*;q=0, */*;q=0', true, true],
    // Of two that are equal, the first.
    ['text/event-stream, text/event-stream;q=0', true, true],
    ['xtext/event-streams', false, false]
  ]
  for (const [accept, accepts, names] of rows) t.strictSame([isAcceptable(accept), namesEventStream(accept)], [accepts, names], String(accept))
})

t.test('headers of a stream', async t => {
  const connectionOf = (httpVersion: string, connection?: string) => {
    const [httpVersionMajor, httpVersionMinor] = httpVersion.split('.').map(Number)
    const { 'cache-control': cache, ...headers } = streamHeaders({ httpVersionMajor, httpVersionMinor, headers: { connection } } as unknown as HttpRequest)
    t.match(headers, { 'content-type': 'text/event-stream', 'x-accel-buffering': 'no' })
    t.strictSame(cache!.split(', ').sort(), ['no-cache', 'no-store', 'no-transform', 'private'])
    return headers['connection']
  }
  t.strictSame([['1.1'], ['1.1', 'keep-alive'], ['1.1', 'Close'], ['1.1', 'upgrade, close'], ['1.0'], ['1.0', 'keep-alive'], ['2.0']].map(([version, connection]) => connectionOf(version!, connection)),
    ['keep-alive', 'keep-alive', 'close', 'close', 'close', 'close', undefined], 'HTTP/2 has no such header')
})
