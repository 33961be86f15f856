import t, { type Test } from 'tap'
import { CLIENT_OPTIONS } from '../../lib/client/client-options.js'
import { Endpoint } from '../../lib/client/endpoint.js'
import { endError, SSEClientError } from '../../lib/client/errors.js'
import { headersOf, resolveOptions, type RequestOptions } from '../../lib/client/options.js'
import { resolveURL } from '../../lib/client/page.js'
import { systemClock } from '../../lib/util/clock.js'
import { setGlobals } from '../helpers/globals.js'

// What a client asks for: its URL, its headers, its options, and the errors about them.

t.test('options: defaults, and what is rejected', async t => {
  t.strictSame(resolveOptions({}, CLIENT_OPTIONS), { headers: {}, credentials: 'same-origin', maxRetryMs: 60_000, timeoutMs: 30_000, fetch: globalThis.fetch, clock: systemClock })
  for (const name of ['maxRetryMs', 'timeoutMs'] as const) {
    for (const ms of [0, -1, NaN, 'soon' as unknown as number]) t.throws(() => resolveOptions({ [name]: ms }, CLIENT_OPTIONS), { code: 'SSE_ERR_CLIENT_OPTION', message: `${name} must be a number of milliseconds above 0` }, `${name} ${ms}`)
    for (const ms of [0.5, 1, Infinity]) t.equal(resolveOptions({ [name]: ms }, CLIENT_OPTIONS)[name], ms)
  }
  for (const name of CLIENT_OPTIONS) t.doesNotThrow(() => resolveOptions({ [name]: undefined } as RequestOptions, CLIENT_OPTIONS), name)
  for (const headers of ['x-a: 1', 7, ['authorization'], null, { 'x a': '1' }, { a: '1\n2' }]) t.throws(() => resolveOptions({ headers } as object, CLIENT_OPTIONS), { code: 'SSE_ERR_CLIENT_OPTION', message: 'Invalid option: headers cannot be sent' }, String(headers))
  const endpoint = new Endpoint('http://localhost/', ['orders:7'])
  for (const use of [() => endpoint.replace('orders:8'), () => new Endpoint('http://localhost/', 'orders:8')]) t.throws(use, { code: 'SSE_ERR_CLIENT_OPTION', message: 'Invalid option: subscriptions must be an array' })
  t.equal(endpoint.request('').search, '?subscription=orders%3A7', 'it keeps those that it had')
  t.throws(() => resolveOptions({ header: {} } as RequestOptions, ['headers']), { message: /there is no option "header"; the options are headers$/ })
})

t.test('headers: any case, those of the application first, and the cursor last', async t => {
  const { signal } = new AbortController()
  const of = async (headers: RequestOptions['headers'], cursor = '') => await headersOf(resolveOptions({ headers }, CLIENT_OPTIONS), signal, cursor)
  t.strictSame(await of(undefined), { accept: 'text/event-stream' })
  t.strictSame(await of({ Accept: 'text/plain', 'X-Trace': '1' }), { accept: 'text/plain', 'x-trace': '1' })
  for (const headers of [new Headers({ Authorization: 'Bearer 1' }), [['Authorization', 'Bearer 1']]] as [Headers, [string, string][]]) t.strictSame(await of(headers), { accept: 'text/event-stream', authorization: 'Bearer 1' })
  t.strictSame(await of({ 'Last-Event-ID': 'own' }, 'é'), { accept: 'text/event-stream', 'last-event-id': '\u00c3\u00a9' }, 'the bytes of UTF-8')
  t.equal(await of(({ signal: given }) => given === signal ? null : {}), null)
  t.equal(await of(async () => null), null)
})

t.test('the URL: subscriptions once, those without a state, and the cursor', async t => {
  const endpoint = new Endpoint('http://localhost/sse?lastEventId=1&x=2', ['a', 'b', 'a'])
  const query = (cursor: string) => endpoint.request(cursor).search
  t.equal(query(''), '?lastEventId=1&x=2&subscription=a&subscription=b')
  t.equal(query('e.1'), '?x=2&subscription=a&subscription=b')
  t.equal(endpoint.url.search, '?lastEventId=1&x=2', 'the URL of the application is not changed')

  const replace = (...names: string[]): [boolean, string] => [endpoint.replace(names), query('e.1')]
  t.same(replace('b', 'a'), [false, '?x=2&subscription=b&subscription=a'])
  t.same(replace('a', 'b', 'c'), [true, '?x=2&subscription=a&subscription=b&subscription=c&fresh=c'])
  t.equal(query(''), '?lastEventId=1&x=2&subscription=a&subscription=b&subscription=c', 'without a cursor all are fresh')
  t.same(replace('a', 'b', 'c'), [false, '?x=2&subscription=a&subscription=b&subscription=c&fresh=c'])
  t.same(replace('a', 'b', 'd'), [true, '?x=2&subscription=a&subscription=b&subscription=d&fresh=d'], 'one that was removed again is not fresh')
  t.same(replace('a', 'd'), [true, '?x=2&subscription=a&subscription=d&fresh=d'])
  endpoint.settle()
  t.same(replace('a', 'd', 'b'), [true, '?x=2&subscription=a&subscription=d&subscription=b&fresh=b'])
  t.same(replace(), [true, '?x=2'])
  t.same(replace(), [false, '?x=2'])
})

t.test('what a stored cursor is for: a URL with its subscriptions, in any order', async t => {
  const key = (url: string, ...names: string[]) => new Endpoint(url, names).key
  t.equal(key('http://localhost/sse', 'b', 'a'), key('http://localhost/sse', 'a', 'b'))
  t.equal(new Set([key('http://localhost/sse'), key('http://localhost/sse', 'a'), key('http://localhost/sse', 'a', 'b'), key('http://localhost/other', 'a'), key('http://localhost/sse?user=b', 'a')]).size, 5)
})

t.test('relative URLs: by the base of the page, in a worker by its location, in Node.js not at all', async t => {
  const resolved = (t: Test, given: Record<string, unknown>): string => {
    setGlobals(t, given)
    return resolveURL('events?x').href
  }
  const [document, location] = [{ baseURI: 'http://base/a/' }, { href: 'http://worker/b/worker.js' }]
  await t.test('a page', async t => t.equal(resolved(t, { document, location }), 'http://base/a/events?x'))
  await t.test('a worker', async t => t.equal(resolved(t, { location }), 'http://worker/b/events?x'))
  t.throws(() => new Endpoint('events?x', []), { code: 'SSE_ERR_CLIENT_OPTION', message: 'Invalid option: events?x is not a URL; outside of a page it must be absolute' })
  t.equal(resolveURL('http://localhost/sse').href, 'http://localhost/sse')
})

t.test('errors say why the stream has ended', async t => {
  t.match(new SSEClientError('SSE_ERR_CLIENT_GAP'), { name: 'SSEClientError', message: 'Events are lost, and no onGap was given', reason: undefined, status: undefined, serverCode: undefined })
  const cases: [{ reason: string, status?: number, code?: string }, string, string][] = [
    [{ reason: 'refused', status: 401, code: 'SSE_ERR_X' }, 'SSE_ERR_CLIENT_REFUSED', 'The server refused the request: status 401 SSE_ERR_X'],
    [{ reason: 'refused', status: 401 }, 'SSE_ERR_CLIENT_REFUSED', 'The server refused the request: status 401'],
    [{ reason: 'refused', code: 'SSE_ERR_X' }, 'SSE_ERR_CLIENT_REFUSED', 'The server refused the request: SSE_ERR_X'],
    [{ reason: 'kicked' }, 'SSE_ERR_CLIENT_CLOSED', 'The stream was closed for good: kicked'],
    [{ reason: 'not-a-stream', status: 200 }, 'SSE_ERR_CLIENT_CLOSED', 'The stream was closed for good: not-a-stream']
  ]
  for (const [cause, code, message] of cases) {
    const error = endError('SSE_ERR_CLIENT_CLOSED', cause)
    t.strictSame([error.code, error.message, error.reason, error.status, error.serverCode], [code, message, cause.reason, cause.status, cause.code])
  }
})
