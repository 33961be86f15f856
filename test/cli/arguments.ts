import t from 'tap'
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
