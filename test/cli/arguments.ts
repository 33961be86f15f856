import t from 'tap'
import { readArguments } from '../../lib/cli/arguments.js'
import { run } from './run.js'

// What the command line accepts, and what it says about the rest.

t.test('help', async t => {
  for (const args of [[], ['help'], ['--help'], ['doctor', '--help'], ['tail', 'http://x/', '-h']]) {
    const { code, out, err } = await run(args)
    t.equal(code, 0)
    t.match(out, /^Usage: fastify-sse-manager <command> <url>/)
    t.equal(err, '')
  }
})

t.test('wrong command lines exit with 2, and say what to write', async t => {
  const cases: [args: string[], message: RegExp][] = [
    [['docter', 'http://x/'], /no command "docter": use doctor or tail/],
    [['doctor'], /URL of the stream is missing/],
    [['doctor', 'http://x/', 'http://y/'], /second URL, "http:\/\/y\/"/],
    [['doctor', 'x/sse'], /must begin with http:\/\/ or https:\/\/, got "x\/sse": write "http:\/\/x\/sse"\n/],
    [['doctor', 'localhost:3000/sse'], /: write "http:\/\/localhost:3000\/sse"\n/],
    [['doctor', '[::1]:3000/sse'], /: write "http:\/\/\[::1\]:3000\/sse"\n/],
    [['doctor', '/sse'], /got "\/sse"\n/],
    [['doctor', 'http://ada:lovelace@x/sse'], /^The URL must not contain credentials: use --header 'authorization: …'\n/],
    [['doctor', 'ftp://x/'], /must begin with http:\/\/ or https:\/\/, got "ftp:\/\/x\/"\n/],
    [['doctor', 'http://x/', '--origin', 'https://app.example/'], /--origin must be a scheme, a host and a port/],
    [['doctor', 'http://x/', '--watch', '0'], /--watch must be a number of seconds above 0 and up to 86400, got "0"/],
    [['doctor', 'http://x/', '--timeout', 'soon'], /--timeout must be a number of seconds/],
    [['doctor', 'http://x/', '--header', 'cookie'], /--header must have the form 'name: value'/],
    [['doctor', 'http://x/', '--header', 'a: b\r\nc: d'], /--header must have the form/],
    [['doctor', 'http://x/', '--count', '1'], /Unknown option '--count'/],
    [['tail', 'http://x/', '--count', '1.5'], /--count must be a whole number from 1, got "1.5"/],
    [['tail', 'http://x/', '--count'], /--count/],
    [['tail', 'http://x/', '--last-event-id', '--json'], /--last-event-id/],
    [['tail', 'http://x/', '--last-event-id', '--count=1'], /--last-event-id/],
    [['tail', 'http://x/', '--event', '--count=1'], /--event/],
    [['tail', 'http://x/', '--event', '--cuont', '1'], /--event/],
    [['tail', '--', 'http://x/', '--last-event-id', '-a'], /There is a second URL/],
    [['doctor', '--json', 'yes', 'http://x/'], /There is a second URL, "http:\/\/x\/"/],
    [['tail', 'http://x/', '--last-event-id', 'a\nb'], /--last-event-id must not contain control characters, got "a\\nb"/]
  ]
  for (const [args, message] of cases) {
    const { code, out, err } = await run(args)
    t.equal(code, 2, args.join(' '))
    t.match(err, message)
    t.match(err, 'Usage:')
    t.notMatch(err, 'lovelace')
    t.equal(out, '')
  }
})

t.test('command lines', async t => {
  const common = { url: new URL('http://x/'), headers: {}, timeoutMs: 10_000, json: false }
  t.strictSame(readArguments(['doctor', 'http://x/']), { command: 'doctor', ...common, origin: null, watchMs: 70_000 })
  t.strictSame(readArguments(['tail', 'http://x/']), { command: 'tail', ...common, events: [], lastEventId: '', count: Infinity })
  t.strictSame(readArguments(['doctor', 'HTTPS://x:8443/a?b', '--json', '--timeout', '0.5', '--watch', '86400', '--origin', 'http://localhost:8080']),
    { command: 'doctor', url: new URL('https://x:8443/a?b'), headers: {}, timeoutMs: 500, json: true, origin: 'http://localhost:8080', watchMs: 86_400_000 })
  t.strictSame(readArguments(['tail', '--event', 'a', '--event', 'b', '--count', '1', '--last-event-id', 'é ~', 'http://x/']),
    { command: 'tail', ...common, events: ['a', 'b'], lastEventId: 'é ~', count: 1 })
  for (const id of ['-k3f9x2.2s', '--Zb_4qW-.1', '-', '--', '-h', '--last']) {
    for (const given of [['--last-event-id', id], [`--last-event-id=${id}`]]) t.match(readArguments(['tail', ...given, '--event', '-', 'http://x/', '--json']), { lastEventId: id, events: ['-'], json: true }, given.join(' '))
  }
  const headers = (...given: string[]) => (readArguments(['tail', 'http://x/', ...given.flatMap(text => ['--header', text])]) as { headers: object }).headers
  t.strictSame(headers('X-A:1', 'cookie:  a=b; c \t', 'x-empty:', 'x-latin: \u00e9', 'X-a: 2'), { 'x-a': '2', cookie: 'a=b; c', 'x-empty': '', 'x-latin': '\u00e9' })
  for (const wrong of ['x a: 1', ': 1', 'x: \u0100', 'x: \u007f', 'x', 'x: a\u0000']) t.throws(() => headers(wrong), { code: 'SSE_ERR_INVALID_ARGUMENT' }, JSON.stringify(wrong))
})

t.test('numbers at their bounds, and other values that are rejected', async t => {
  const rejected = (...args: string[]) => t.throws(() => readArguments(args), { code: 'SSE_ERR_INVALID_ARGUMENT' }, encodeURI(args.join(' ')))
  for (const seconds of ['0', '-1', '86400.1', 'Infinity', '', 'NaN']) for (const option of ['--watch', '--timeout']) rejected('doctor', 'http://x/', `${option}=${seconds}`)
  for (const count of ['0', '-1', '1.5', 'NaN', '']) rejected('tail', 'http://x/', `--count=${count}`)
  for (const id of ['\u0000', '\u001f', '\u007f']) rejected('tail', 'http://x/', '--last-event-id', id)
  for (const url of ['http://ada@x/', 'http://:secret@x/', 'ws://x/', 'x', '//x/']) rejected('tail', url)
  for (const origin of ['app.example', 'https://app.example/a', 'https://APP.example', 'null']) rejected('doctor', 'http://x/', '--origin', origin)
})
