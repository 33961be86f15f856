import type { IncomingMessage } from 'node:http'
import t from 'tap'
import type { ParsedEvent } from '../../lib/client/event-parser.js'
import { Answer, type Head, type HeaderValues } from '../../lib/cli/answer.js'
import { checkHeaders, checkStatus, checkType } from '../../lib/cli/check-answer.js'
import { checkConnection, checkConnectTime } from '../../lib/cli/check-connection.js'
import { checkOrigin, checkPreflight, preflightHeaders } from '../../lib/cli/check-origin.js'
import { checkIds, checkResume, checkReturn, isMissed, returnOf } from '../../lib/cli/check-resume.js'
import type { Failure } from '../../lib/cli/exchange.js'
import { duration, jsonText, printable } from '../../lib/cli/finding.js'
import { proxyOf } from '../../lib/cli/proxy.js'
import { reportText } from '../../lib/cli/report.js'
import { observation } from './observations.js'

// What doctor says about an answer, a failure and a resumed stream, at the bounds of each check. Streams: test/cli/watched.ts.

function answer (headers: HeaderValues = {}, head: Partial<Head> = {}): Answer {
  return new Answer({ url: new URL('https://x/sse'), status: 200, version: '1.1', connectMs: 1, headMs: 1, headers, ...head }, {} as IncomingMessage, () => {})
}

const failure = (code: string, message = 'a message', kind: Failure['failure'] = 'unreachable'): Failure => ({ failure: kind, code, message })
const UNKNOWN = proxyOf(null)

t.test('the status, and what to change for each', async t => {
  t.match(checkStatus(answer({}, { headMs: 1_999 }), ''), { level: 'ok', text: 'The server answers 200 after 2 s.' })
  t.match(checkStatus(answer({}, { headMs: 2_000 }), ''), { level: 'warning', text: /only after 2 s, .*a proxy between here/ })
  const cases = [
    [204, /^the route: 204/], [301, 'the route: it must answer 200'], [399, 'the route: it must answer 200'], [400, /^the request; .*https/], [401, /authorization: Bearer .*cookie/],
    [403, /with the rights/], [404, 'the path of the URL'], [405, /method of the route/], [406, /accept: text\/event-stream/], [410, 'the request'], [429, /^the limits/], [499, 'the request'],
    [500, 'what the log of the server says'], [502, /cannot reach the server$/], [503, /^start the server/], [504, /time-out/], [599, 'what the log of the server says']
  ] as const
  for (const [status, change] of cases) t.match(checkStatus(answer({}, { status }), ''), { check: 'status', level: 'problem', text: `The server answers ${status}, after which an EventSource stops for good.`, change })
})

t.test('what a refusal says', async t => {
  const said = (body: string, type = 'application/json'): string => /for good(.*)$/.exec(checkStatus(answer({ 'content-type': type }, { status: 500 }), body).text)![1]!
  for (const [body, text] of [
    ['{"code":"X","message":"No."}', ': X, No.'], ['{"message":"No"}', ': No.'], ['{"error":"Bad"}', ': Bad.'], ['{"message":"No","error":"Bad"}', ': No.'], ['{"code":"X","message":""}', ': X.'], ['{"code":7,"message":[1]}', '.'],
    ['{}', '.'], ['null', '.'], ['{', '.'], ['{"message":"\u001b[1m"}'.replace('\u001b', '\\u001b'), ': \\u001b[1m.'], [JSON.stringify({ message: 'x'.repeat(201) }), `: ${'x'.repeat(200)}.`]
  ] as const) t.equal(said(body), text, body.slice(0, 40))
  t.equal(said('{"message":"No"}', 'application/problem+json;charset=utf-8'), ': No.')
  t.equal(said('{"message":"No"}', 'text/plain'), '.')
})

t.test('the type', async t => {
  const type = (value: string) => checkType(answer({ 'content-type': value }))
  for (const value of ['text/event-stream', 'Text/Event-Stream', 'text/event-stream; charset=utf-8', 'text/event-stream ; Charset="UTF8"', 'text/event-stream;charset= utf-8 ;x=1', 'text/event-stream; x=1']) t.match(type(value), { level: 'ok', text: `The type is ${value}.` })
  for (const value of ['text/event-streams', 'text/event-stream+x', 'text/plain', 'application/json', 'x text/event-stream']) t.match(type(value), { level: 'problem', text: `The answer is ${value}, not an event stream`, change: 'content-type: text/event-stream' })
  t.match(type('text/html; charset=utf-8'), { level: 'problem', change: /^the path of the URL/ })
  t.match(type('text/html5'), { level: 'problem', change: 'content-type: text/event-stream' })
  t.match(checkType(answer()), { level: 'problem', text: 'The answer is of no type' })
  for (const charset of ['latin1', 'utf-16', 'utf-80']) t.match(type(`text/event-stream; charset=${charset}`), { level: 'warning', text: `the charset ${charset}, and` })
})

t.test('version, caches and cookies', async t => {
  const of = (check: string, headers: HeaderValues, head: Partial<Head> = {}) => checkHeaders(answer(headers, head)).filter(finding => finding.check === check).map(({ level, text }) => `${level}: ${text}`)
  t.match(of('version', {}, { version: '2' }), [/^ok: .*HTTP\/2/])
  t.match(of('version', {}), [/^warning: .*HTTP\/1.1/])
  t.match(of('version', {}, { version: '1.0', url: new URL('http://x/') }), [/^note: .*HTTP\/1.0/])

  for (const control of ['no-store', 'No-Cache', 'private, max-age=60']) t.match(of('cache', { 'cache-control': control, age: '0', 'x-cache': 'MISS' }), [`ok: Caches do not keep the stream: cache-control is ${control.toLowerCase()}.`])
  for (const control of ['max-age=60', 'public', 'no-transform']) t.match(of('cache', { 'cache-control': control }), [`warning: Caches may keep the stream, and send it to other users: the header cache-control is ${control}.`])
  t.match(of('cache', {}), [/^warning: .*is missing\.$/])
  for (const headers of [{ age: '1' }, { 'x-cache': 'HIT from x' }, { 'x-cache': 'TCP_MISS, hit' }]) t.match(of('cache', { 'cache-control': 'no-store', ...headers }), ['problem: A cache has answered'])
  t.match(of('cache', { 'cache-control': 'no-store', 'x-cache': 'WHITE' }), [/^ok/])

  const http = { url: new URL('http://x/') }
  for (const [cookie, head, found] of [
    ['a=1; Secure', {}, /^ok: The server sets the cookie a\.$/], ['a=1;secure; SameSite=None', {}, /^ok/], ['a=1', {}, /^warning: The cookie a is sent without Secure/], ['a=1; Path=/secure', {}, /without Secure/],
    ['a=1', http, /^ok/], ['a=1; SameSite=None', http, /^warning: Browsers discard the cookie a/], ['a=1; SameSite=None; Secure', http, /^ok/], ['a=1; SameSite=Lax', http, /^ok/]
  ] as const) t.match(of('cookies', { 'set-cookie': [cookie] }, head), [found], cookie)
  t.equal(of('cookies', { 'set-cookie': 'a=1' }).length, 1)
  t.equal(of('cookies', { 'set-cookie': ['a=1', 'b=2'] }).length, 2)
  t.equal(of('cookies', {}).length, 0)
})

t.test('answers: a header that is sent twice, and encodings', async t => {
  t.equal(answer({ via: ['a', 'b'] }).header('via'), 'a, b')
  for (const [encoding, compression, isDecodable] of [['', '', true], ['identity', '', true], [' Identity ', '', true], ['gzip', 'gzip', true], ['x-gzip', 'x-gzip', true], ['deflate', 'deflate', true], ['BR', 'br', true], ['zstd', 'zstd', false], ['identity, gzip', 'identity, gzip', false]] as const) {
    t.same([answer({ 'content-encoding': encoding }).compression, answer({ 'content-encoding': encoding }).isDecodable], [compression, isDecodable], encoding)
  }
})

t.test('failures of the connection', async t => {
  const url = new URL('https://host.example:8443/sse')
  const cases = [
    ['ECONNREFUSED', 'Nothing listens at host.example:8443.', /^start the server/], ['ENOTFOUND', 'The name host.example has no address.', 'the host of the URL'], ['EAI_AGAIN', 'The name host.example has no address.', 'the host of the URL'],
    ['ERR_SSL_WRONG_VERSION_NUMBER', 'The server at host.example:8443 does not speak TLS.', /^http:/], ['ERR_SSL_PACKET_LENGTH_TOO_LONG', 'does not speak TLS', /^http:/],
    ['EPROTO', 'The server and the client do not agree on TLS: a message.', /versions of TLS/], ['ERR_SSL_SSLV3_ALERT_HANDSHAKE_FAILURE', 'do not agree on TLS', /versions/], ['ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED', 'do not agree on TLS', /client certificates/],
    ['CERT_HAS_EXPIRED', 'Browsers refuse the certificate: a message.', /NODE_EXTRA_CA_CERTS/], ['UNABLE_TO_VERIFY_LEAF_SIGNATURE', 'Browsers refuse', /NODE_EXTRA/], ['DEPTH_ZERO_SELF_SIGNED_CERT', 'Browsers refuse', /NODE_EXTRA/], ['ERR_TLS_CERT_ALTNAME_INVALID', 'Browsers refuse', /NODE_EXTRA/],
    ['HPE_HEADER_OVERFLOW', 'The headers are larger', /cookies/], ['HPE_INVALID_CONSTANT', 'The answer is not HTTP: a message.', /^the port/], ['ECONNRESET', 'The connection is closed before an answer.', /logs/], ['EHOSTUNREACH', 'There is no answer: a message.', /^the address/]
  ] as const
  for (const [code, text, change] of cases) t.match(checkConnection(url, failure(code), UNKNOWN), { check: 'connection', level: 'problem', text, change }, code)
  const silent = failure('ETIMEDOUT', 'no answer within 1 s', 'silent')
  t.match(checkConnection(url, silent, UNKNOWN), { text: 'there is no answer within 1 s: the server sends no headers, or a proxy between here and the server buffers', change: /^proxy_buffering off; .*flushHeaders/ })
  t.match(checkConnection(url, silent, proxyOf(answer({ server: 'nginx/1.2' }))), { text: 'or nginx buffers', change: /^proxy_buffering off;$/ })
  t.same(checkConnectTime(answer({}, { connectMs: 1_999 })), [])
  t.match(checkConnectTime(answer({}, { connectMs: 2_000 })), [{ level: 'warning', text: 'The connection takes 2 s' }])
  for (const [server, name] of [['nginx', 'nginx'], ['NGINX/1', 'nginx'], ['openresty/1', 'nginx'], ['nginx2', UNKNOWN.name], ['my nginx', UNKNOWN.name], ['', UNKNOWN.name]] as const) t.equal(proxyOf(answer({ server })).name, name, server)
})

t.test('pages of another origin', async t => {
  const [origin, allow, credentials] = ['https://app.example', 'access-control-allow-origin', 'access-control-allow-credentials']
  const cases = [
    [failure('ECONNRESET', 'gone'), false, 'problem', 'With the origin https://app.example the server does not answer: gone.'], [answer({ [allow]: '*' }, { status: 403 }), false, 'problem', 'The server answers 403 to pages'],
    [answer(), false, 'problem', `${allow} is missing`], [answer({ [allow]: '*' }), false, 'ok', 'can read the stream.'], [answer({ [allow]: '*', [credentials]: 'true' }), true, 'problem', 'cannot send cookies: with access-control-allow-origin: *'],
    [answer({ [allow]: 'https://other' }), false, 'problem', `${allow} is https://other`], [answer({ [allow]: origin }), false, 'ok', 'can read the stream.'], [answer({ [allow]: origin }), true, 'problem', `${credentials} is missing`],
    [answer({ [allow]: origin, [credentials]: 'TRUE' }), true, 'problem', `${credentials} is missing`], [answer({ [allow]: origin, [credentials]: 'true' }), true, 'ok', 'can read the stream, with cookies.']
  ] as const
  for (const [given, hasCookies, level, text] of cases) t.match(checkOrigin(given, origin, hasCookies), { check: 'cors', level, text })
})

t.test('preflights', async t => {
  t.same(preflightHeaders({ accept: '*/*', cookie: 'a', 'user-agent': 'x', 'last-event-id': '1', 'x-trace': '1', authorization: 'b' }), ['last-event-id', 'x-trace', 'authorization'])
  const allow = 'access-control-allow-headers'
  const asked = (given: Answer | Failure, ...names: string[]) => checkPreflight(given, 'https://app.example', ['last-event-id', ...names])
  t.match(asked(failure('X')), { level: 'warning', text: 'does not answer OPTIONS' })
  for (const [status, level] of [[199, 'warning'], [200, 'ok'], [204, 'ok'], [299, 'ok'], [300, 'warning']] as const) t.match(asked(answer({ [allow]: ' X, Last-Event-Id ' }, { status })), { level }, `${status}`)
  t.match(asked(answer({ [allow]: '*' }), 'x-trace'), { level: 'ok', text: 'can send last-event-id and x-trace.' })
  t.match(asked(answer({ [allow]: '*' }), 'authorization'), { level: 'warning', text: 'cannot send authorization.' })
  t.match(asked(answer({ [allow]: '*, authorization' }), 'authorization'), { level: 'ok' })
  t.match(asked(answer({ [allow]: 'last-event-id' }), 'a', 'b'), { level: 'warning', text: 'cannot send a and b.', change: /: last-event-id, a, b / })
})

t.test('a client that returns', async t => {
  const event = (id: string | null, data = id ?? '', name = 'message'): ParsedEvent => ({ event: name, data, id })
  t.match(checkIds(observation()), { level: 'skipped' })
  t.match(checkIds(observation({ events: 1 })), { level: 'warning' })
  t.match(checkIds(observation({ events: 1, lastEventId: '' })), { level: 'warning' })
  t.equal(checkIds(observation({ lastEventId: '1' })), null)

  const [one, two] = [event('1'), event('2')]
  const known = observation({ lastEventId: '2', previousEvent: one, newestEvent: two })
  t.same(returnOf(known), { id: '1', missed: two, isRenamed: false })
  t.same(returnOf({ ...known, isOwn: true }), { id: '1', missed: two, isRenamed: true })
  t.same(returnOf({ ...known, ending: 'end' }), { id: '2', missed: null, isRenamed: false }, 'a stream that has ended')
  t.same(returnOf({ ...known, ending: 'cut' }).missed, two)
  t.same(returnOf({ ...known, previousEvent: null }), { id: '2', missed: null, isRenamed: false })
  const same = { ...known, previousEvent: event('1', 'x'), newestEvent: event('2', 'x') }
  t.equal(returnOf(same).missed, same.newestEvent)
  t.equal(returnOf({ ...same, isOwn: true }).missed, null, 'an event that could be taken for the one before')
  for (const newestEvent of [event('2', 'y'), event('2', 'x', 'other')]) t.equal(returnOf({ ...same, newestEvent, isOwn: true }).missed, newestEvent)

  const client = returnOf(known)
  const renamed = { ...client, isRenamed: true }
  t.same([isMissed(two, client), isMissed(event('2', 'other'), client), isMissed(event('3', '2'), client), isMissed(event('3', '2'), renamed), isMissed(event('3'), renamed), isMissed(event('3', '2', 'x'), renamed), isMissed(two, { ...client, missed: null })], [true, true, false, true, false, false, false])

  t.match(checkReturn(answer({}, { status: 204 }), observation({ ending: 'end' }), client), { level: 'ok', text: 'the id 1 is told to stop' })
  t.match(checkReturn(answer({}, { status: 204 }), observation(), client), { level: 'problem', text: 'is refused: the server answers 204.' })
  t.match(checkReturn(answer({}, { status: 500 }), observation({ ending: 'end' }), client), { level: 'problem', text: 'is refused: the server answers 500.', change: /^the route/ })
  t.match(checkReturn(failure('ERR_INVALID_CHAR', 'bad'), observation(), client), { text: 'is refused: bad.', change: /^ids without/ })
  t.match(checkReturn(failure('ECONNRESET', 'gone'), observation(), client), { text: 'is refused: gone.', change: /^the route/ })

  const zero = event('0')
  const first = { ...known, firstEvent: zero }
  const cases = [
    [event('9', '{"reason":"x"}', 'sse:gap'), two, client, 'warning', 'After the id 1 the server reports lost events: {"reason":"x"}'],
    [one, zero, client, 'problem', 'receives all events again'],
    [one, one, client, 'problem', 'receives the event with this id again'],
    [two, two, client, 'ok', 'receives the event after it'],
    [event('5', '2'), event('5', '2'), renamed, 'ok', 'receives the event after it'],
    [event('5', '2'), event('5', '2'), client, 'warning', 'does not receive the event after it, 2: '],
    [null, null, client, 'warning', 'does not receive the event after it'],
    [null, null, { ...client, missed: null }, 'ok', 'receives nothing again'],
    [event(null), event(null), { ...client, missed: null }, 'ok', 'receives nothing again']
  ] as const
  for (const [lastEvent, firstEvent, who, level, text] of cases) t.match(checkResume(first, observation({ firstEvent, lastEvent }), who), { check: 'resume', level, text })
  t.match(checkResume(known, observation({ firstEvent: two, lastEvent: two }), client), { level: 'ok' }, 'a first stream without events')
  t.match(checkResume({ ...known, firstEvent: one }, observation({ firstEvent: one, lastEvent: one }), client), { text: 'receives the event with this id again' }, 'the beginning of both is the id itself')
  t.match(checkResume({ ...known, firstEvent: event(null) }, observation({ firstEvent: event(null), lastEvent: two }), client), { level: 'ok' })
})

t.test('texts', async t => {
  for (const [ms, text] of [[0, '0 ms'], [0.4, '0 ms'], [999, '999 ms'], [1_000, '1 s'], [1_250, '1.3 s'], [15_000, '15 s'], [15_040, '15 s'], [60_060, '60.1 s']] as const) t.equal(duration(ms), text)
  for (const code of [0, 0x1f, 0x7f, 0x9f, 0x2028, 0x202e, 0x2066, 0x2069]) t.equal(printable(`a${String.fromCharCode(code)}b`), `a\\u${code.toString(16).padStart(4, '0')}b`)
  for (const code of [0x20, 0x7e, 0xa0, 0x2027, 0x202f, 0x2065, 0x206a]) t.equal(printable(String.fromCharCode(code)), String.fromCharCode(code), code.toString(16))
  t.equal(jsonText({ a: '\u009b\n' }, 2), '{\n  "a": "\\u009b\\n"\n}')
  t.equal(jsonText([1]), '[1]')
  const found = (...levels: ('ok' | 'note' | 'skipped' | 'warning' | 'problem')[]) => reportText({ url: 'http://x/', level: 'ok', measured: null, findings: levels.map((level, i) => ({ check: i === 0 ? 'status' : 'type', level, text: `${i}.`, ...(level === 'problem' && { change: 'c' }) })) })
  t.equal(found('ok', 'problem'), 'http://x/\n\nok       status  0.\nPROBLEM  type    1.\n                 change: c\n\n1 problem.\n')
  for (const [levels, sum] of [[['ok', 'note'], 'No problems.'], [['skipped', 'ok'], 'No problems, 1 skipped.'], [['warning', 'problem', 'problem', 'warning', 'skipped', 'skipped'], '2 problems, 2 warnings, 2 skipped.'], [['warning'], '1 warning.']] as const) t.equal(found(...levels).split('\n').at(-2), sum)
})
