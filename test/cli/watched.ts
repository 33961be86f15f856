import type { IncomingMessage } from 'node:http'
import t from 'tap'
import { Answer } from '../../lib/cli/answer.js'
import { checkStream } from '../../lib/cli/check-stream.js'
import type { Finding } from '../../lib/cli/finding.js'
import type { Observation } from '../../lib/cli/observation.js'
import { proxyOf } from '../../lib/cli/proxy.js'
import { observation } from './observations.js'

// What doctor says about a stream that it has watched, at the bounds of each check.

const PROXY = proxyOf(null)
const answer = (headers: Record<string, string> = {}) => new Answer({ url: new URL('http://x/'), status: 200, version: '1.1', connectMs: 1, headMs: 1, headers }, {} as IncomingMessage, () => {})
const findings = (seen: Partial<Observation>, given = answer()): Finding[] => checkStream(given, observation(seen), PROXY)
const of = (check: Finding['check'], seen: Partial<Observation>): Finding | undefined => findings(seen).find(finding => finding.check === check)
const event = (name: string, data: unknown) => ({ event: name, data: typeof data === 'string' ? data : JSON.stringify(data), id: null })

t.test('the first text', async t => {
  const opening = (seen: Partial<Observation>) => of('opening', seen)
  t.match(opening({ firstTextMs: 1_999 }), { level: 'ok', text: 'The first text arrives 2 s after the headers.' })
  t.match(opening({ firstTextMs: 2_000 }), { level: 'warning', text: 'arrives only 2 s after the headers: the server writes nothing before', change: /^response\.write/ })
  t.match(opening({ firstTextMs: 2_000, announcedMs: 9_000 }), { level: 'problem', text: 'and the server writes both at once', change: PROXY.buffering })
  t.match(opening({ firstTextMs: null }), { level: 'warning', text: 'Nothing follows the headers within 60 s' })
  for (const ending of ['end', 'cut'] as const) t.equal(opening({ firstTextMs: null, ending }), undefined)
})

t.test('the reconnection time', async t => {
  for (const [retryMs, found] of [[null, false], [0, true], [99, true], [100, false]] as const) t.equal(of('retry', { retryMs })?.level, found ? 'problem' : undefined, `${retryMs}`)
})

t.test('streams that are only a refusal', async t => {
  const only = { ending: 'end', retryMs: 2_000 } as const
  const refusal = { ending: 'end', events: 1, firstEvent: event('sse:error', { code: 'X', message: 'No', more: 1 }) } as const
  t.match(findings(only), [{ check: 'status', text: 'The answer only asks to reconnect after 2 s' }])
  t.match(findings(refusal), [{ check: 'status', text: 'The server refuses the stream for now: X, No.' }])
  t.match(findings({ ...refusal, ending: 'cut' }), [{ check: 'status' }])
  t.match(findings({ ...refusal, firstEvent: event('sse:error', 'null') }), [{ check: 'status' }])
  for (const other of [{ ...only, retryMs: null }, { ...only, ending: 'cut' }, { ...only, ending: 'open' }, { ...only, announcedMs: 1_000 }, { ...only, events: 1 }, { ...refusal, ending: 'open' }, { ...refusal, announcedMs: 1_000 }, { ...refusal, firstEvent: event('x', {}) }] as const) {
    t.notOk(findings(other).some(({ check }) => check === 'status'), JSON.stringify(other))
  }
})

t.test('how a stream has ended', async t => {
  const delivery = (seen: Partial<Observation>) => of('delivery', { events: 1, ...seen })
  for (const ending of ['end', 'cut'] as const) {
    t.match(delivery({ ending, lastEvent: event('sse:end', { status: 'done' }) }), { level: 'ok', text: 'with the status done.' })
    t.match(delivery({ ending, lastEvent: event('sse:close', { reason: 'max-age' }) }), { level: 'note', text: 'with the reason max-age.' })
    t.notMatch(of('idle', { ending, lastEvent: event('sse:close', {}) }), { level: 'problem' })
  }
  t.match(delivery({ lastEvent: event('sse:close', {}) }), { level: 'skipped' }, 'not yet')
  t.match(delivery({ ending: 'end', lastEvent: event('x', {}) }), { level: 'problem', text: 'The server ends the response 60 s after the headers, and', change: /response\.end/ })
  t.match(delivery({ ending: 'end' }), { level: 'problem' })
  t.match(findings({ ending: 'end', events: 1 }, answer({ 'content-length': '9' })).find(({ check }) => check === 'delivery'), { text: 'has the header content-length, and ends after 9 bytes', change: /^no header content-length/ })
})

t.test('whether text arrives when it is written', async t => {
  const delivery = (seen: Partial<Observation>) => of('delivery', seen)
  t.match(delivery({ announcedMs: 1_000, longestSilenceMs: 3_001 }), { level: 'problem', text: 'Nothing arrives for 3 s, although the server writes at least every 1 s' })
  t.notMatch(delivery({ announcedMs: 1_000, longestSilenceMs: 3_000 }), { level: 'problem' })
  t.match(delivery({ bunches: 2, keepAliveMs: 500 }), { level: 'problem', text: 'Keep-alives arrive several at once' })
  t.match(delivery({ bunches: 1, keepAliveMs: 500 }), { level: 'ok', text: 'Keep-alives arrive one by one.' })
  t.match(delivery({ torn: 3, lumps: 3, keepAliveMs: 500 }), { level: 'problem', text: 'Events arrive several at once, and the last of them in two parts' })
  for (const seen of [{ torn: 2, lumps: 3 }, { torn: 3, lumps: 2 }]) t.match(delivery(seen), { level: 'skipped', text: 'Events arrive several at once, and do not tell' })
  t.match(delivery({ singles: 3, lumps: 2 }), { level: 'ok', text: 'Events arrive one by one.' })
  t.match(delivery({ singles: 3, lumps: 3 }), { level: 'skipped', text: 'Events arrive several at once' })
  t.match(delivery({ singles: 2 }), { level: 'skipped', text: 'Too little arrives' })
  t.match(delivery({ ending: 'cut', singles: 3 }), { level: 'ok' })
})

t.test('text that is no event stream', async t => {
  const format = (beginning: string, seen: Partial<Observation> = {}) => findings({ beginning, events: 1, ...seen }).filter(({ check }) => check === 'format').map(({ level, text }) => `${level}: ${text}`)
  const ignored = (line: string, level = 'problem') => [`${level}: Clients ignore the line ${JSON.stringify(line)}: it is no field of an event stream.`]
  t.same(format('\uFEFF: a\r\ndata: 1\rdata\nevent: x\nevent\nid: 1\nid\nretry: 5\nretry\n:\n\n'), [])
  for (const line of ['Data: 1', ' data: 1', 'datas', 'ids: 1', '{"a":1}', '\uFEFFdata: 1']) t.match(format(`data: 1\n${line}\n\n`), [/^(?:warning|problem): Clients ignore/], line)
  t.same(format('x-time: 1\n\n'), ignored('x-time: 1', 'warning'))
  t.same(format('x-time: 1\n\n', { events: 0 }), ignored('x-time: 1'))
  t.same(format('x time: 1\n\n'), ignored('x time: 1'))
  t.same(format('data: 1\n\nwrong'), [], 'the rest may be on its way')
  t.same(format('wrong', { events: 0, lastSilenceMs: 499 }), [])
  t.same(format('wrong', { events: 0, lastSilenceMs: 500 }), ignored('wrong'))
  t.same(format('wrong', { events: 1, lastSilenceMs: 500 }), [])
  t.match(format('data: 1\n', { events: 0 }), [/^problem: Data arrives, but no empty line after it/])
  t.same(format('data: 1\n', { events: 1 }), [])
  t.same(format('id: 1\n', { events: 0 }), [])
  t.match(format('', { isOverlong: true }), [/^problem: An event does not end/])
  const garbled = (headers: Record<string, string>) => {
    const given = answer(headers)
    given.fault = 'a fault'
    return findings({ ending: 'garbled' }, given)
  }
  t.match(garbled({}), [{ check: 'format', text: 'The body cannot be read: a fault.', change: /chunks/ }])
  t.match(garbled({ 'content-encoding': 'gzip' }), [{ check: 'format', change: /content-encoding/ }])
})

t.test('whether a silent connection stays open', async t => {
  const idle = (seen: Partial<Observation>) => of('idle', seen)
  t.match(idle({ announcedMs: 55_001, durationMs: 200_000 }), { level: 'warning', text: 'The server sends keep-alives every 55 s', change: 'keepAliveIntervalMs: 15000' })
  t.match(idle({ announcedMs: 55_000, durationMs: 200_000 }), { level: 'skipped' })
  t.match(idle({ keepAliveMs: 55_001 }), { level: 'warning', text: 'Keep-alives arrive every 55 s' })
  t.match(idle({ keepAliveMs: 55_000 }), { level: 'ok', text: 'lives through 55 s of silence' })
  t.match(idle({ longestSilenceMs: 30_000 }), { level: 'warning', text: 'No keep-alive arrives within 30 s of silence' })
  t.match(idle({ longestSilenceMs: 29_999 }), { level: 'skipped', text: 'No keep-alive arrives within 60 s' })
  t.match(idle({ longestSilenceMs: 30_000, announcedMs: 50_000 }), { level: 'skipped' })
  t.match(idle({ ending: 'end' }), { level: 'skipped', text: 'The stream ends after 60 s, so', change: 'the URL of a stream that stays open' })
  t.match(idle({ events: 1, longestSilenceMs: 29_999 }), { text: 'Events leave at most 30 s of silence: whether a silent connection is cut' })
  t.match(idle({ events: 1, longestSilenceMs: 29_999, announcedMs: 40_000 }), { text: 'whether a connection with 40 s of silence, the time between keep-alives, is cut' })
  t.match(idle({ events: 1, longestSilenceMs: 29_999, durationMs: 59_998 }), { text: 'No keep-alive arrives within 60 s' }, 'half of the time')
  t.match(idle({ events: 0, longestSilenceMs: 1 }), { text: 'No keep-alive arrives within 60 s', change: '--watch 70   # seconds' })
  for (const [announcedMs, seconds] of [[28_000, 70], [28_001, 71], [55_000, 138]] as const) t.match(idle({ announcedMs, longestSilenceMs: 60_000 }), { change: `--watch ${seconds}   # seconds` })
})

t.test('connections that are cut', async t => {
  const cut = (seen: Partial<Observation>) => of('idle', { ending: 'cut', events: 1, lastSilenceMs: 60_000, ...seen })
  t.match(cut({ durationMs: 499 }), { level: 'problem', text: 'The connection is cut 499 ms after the headers.', change: /^what the logs/ })
  t.match(cut({ durationMs: 499, firstTextMs: null }), { text: 'after the headers, before any text.' })
  t.match(cut({ durationMs: 500, lastSilenceMs: 500 }), { text: 'The connection is cut after 500 ms without data', change: /keep-alive\\n\\n'\), 250\)$/ })
  t.match(cut({ durationMs: 10_000, lastSilenceMs: 4_999 }), { text: 'is cut 10 s after the headers, although text arrived 5 s before: something limits', change: /^the limit on the duration/ })
  t.match(cut({ durationMs: 10_000, lastSilenceMs: 5_000 }), { text: 'is cut after 5 s without data: the idle time-out', change: /, 2500\)$/ })
  t.match(cut({ durationMs: 600_000, lastSilenceMs: 27_499 }), { text: 'although text arrived 27.5 s before' })
  t.match(cut({ durationMs: 600_000, lastSilenceMs: 27_500 }), { text: 'is cut after 27.5 s without data' })
  t.match(cut({ durationMs: 60_000, announcedMs: 20_000 }), { text: 'and the server writes only every 20 s', change: /^timeout server 60s .*# or in the server: keepAliveIntervalMs: 30000$/ })
  t.match(cut({ durationMs: 60_000, announcedMs: 30_001 }), { change: /^timeout server 61s/ })
  t.match(cut({ durationMs: 500, lastSilenceMs: 500, announcedMs: 600 }), { change: /keepAliveIntervalMs: 250$/ })
  t.match(cut({ durationMs: 600, lastSilenceMs: 590 }), { change: /, 300\)$/ }, 'two digits')
})
