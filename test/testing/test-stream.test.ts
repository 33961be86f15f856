import { createServer, type Server, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import t, { type Test } from 'tap'
import { openStream, type OpenStreamOptions } from '../../lib/testing/index.js'
import { holdTimers } from '../helpers/held-timers.js'
import { turns, until } from '../helpers/wait.js'

// The verbs of a stream, with a server of which the test writes each byte.

interface Opened { response: ServerResponse, socket: Socket, errors: string[] }

function build (t: Test): { server: Server, opened: Opened[] } {
  const opened: Opened[] = []
  const server = createServer((request, response) => {
    const errors: string[] = []
    request.socket.on('error', (error: NodeJS.ErrnoException) => errors.push(error.message))
    opened.push({ response, socket: request.socket, errors })
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write(': open\n\n')
  })
  t.teardown(() => {
    for (const { socket } of opened) socket.destroy()
    server.close()
  })
  return { server, opened }
}

async function open (t: Test, options: OpenStreamOptions) {
  const { server, opened } = build(t)
  const stream = await openStream(server, '/', { test: t, timeoutMs: 20_000, ...options })
  return { server, stream, ...opened[0]! }
}

/** Intervals that fire when the test says. */
function holdIntervals (t: Test) {
  const { clearInterval: clear } = globalThis
  const held = new Map<object, () => void>()
  const intervals = { started: [] as number[], get count () { return held.size }, fire: () => { for (const run of [...held.values()]) run() } }
  t.intercept(globalThis, 'setInterval', {
    value: (run: () => void, ms: number) => {
      const timer = { unref: () => timer }
      intervals.started.push(ms)
      held.set(timer, run)
      return timer
    },
    configurable: true
  })
  t.intercept(globalThis, 'clearInterval', { value: (timer: any) => { if (!held.delete(timer)) clear(timer) }, configurable: true })
  return intervals
}

const TRANSPORTS = [{ socket: false }, { socket: true }]
const timers = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length

t.test('who ended a stream, and the last reason', async t => {
  for (const transport of TRANSPORTS) {
    const close = (reason: string, reconnect: boolean) => `event: sse:close\ndata: ${JSON.stringify({ reason, reconnect })}\n\n`
    for (const [text, run, expected] of [
      ['', ({ response }) => response.end(), { by: 'server', reason: null, reconnect: null }],
      [close('one', true) + close('two', false), ({ response }) => response.end(), { by: 'server', reason: 'two', reconnect: false }],
      [close('one', true), ({ socket }) => socket.destroy(), { by: 'network', reason: 'one', reconnect: true }],
      ['', ({ socket }) => socket.resetAndDestroy(), { by: 'network', reason: null, reconnect: null }]
    ] as [string, (opened: Opened) => void, object][]) {
      const { stream, response, socket, errors } = await open(t, transport)
      response.write(`${text}data: last\n\n`)
      await stream.next('message')
      run({ response, socket, errors })
      t.strictSame(await stream.ended, expected)
      await stream.close()
      t.strictSame(await stream.ended, expected, 'the first end counts')
      for (const call of [() => stream.freeze(), () => stream.halfClose()]) t.throws(call, { code: 'SSE_ERR_TEST_MISUSE', message: /^(freeze|halfClose)\(\) needs an open stream\. GET \/: status 200, ended by/ })
      await t.rejects(stream.cut(), { code: 'SSE_ERR_TEST_MISUSE' })
      await until(() => socket.destroyed, undefined, 'the client closes its connection')
    }
  }
})

t.test('close() ends the connection, cut() resets it, halfClose() ends one half', async t => {
  for (const transport of TRANSPORTS) {
    const closed = await open(t, transport)
    const before = timers()
    await turns(20)
    await closed.stream.close()
    t.strictSame([closed.socket.destroyed, closed.errors], [true, []])
    const cut = await open(t, transport)
    await cut.stream.cut()
    t.strictSame([cut.socket.destroyed, cut.errors], [true, [transport.socket ? 'read ECONNRESET' : 'The test has cut the connection']])
    t.strictSame(await cut.stream.ended, { by: 'test', reason: null, reconnect: null })
    t.ok(timers() < before, 'no deadline is left')
    const half = await open(t, transport)
    let ended = false
    half.socket.once('end', () => { ended = true })
    half.stream.halfClose()
    await until(() => ended)
    t.ok(half.stream.isOpen || transport.socket !== undefined)
  }
})

t.test('close() and cut() wait for the server for a second', async t => {
  for (const end of ['close', 'cut'] as const) {
    const { stream, socket } = await open(t, { socket: true })
    // Such a server notices no end.
    const { emit } = socket
    socket.emit = ((event: string, ...args: unknown[]) => event === 'close' || Reflect.apply(emit, socket, [event, ...args])) as typeof emit
    const held = holdTimers(t)
    let closed = false
    stream[end]().then(() => { closed = true })
    t.strictSame(held.durations, [1_000])
    await until(() => socket.destroyed)
    await turns(10)
    t.notOk(closed)
    while (held.count > 0) held.fire()
    await until(() => closed)
    Reflect.deleteProperty(socket, 'emit')
    socket.emit('close')
  }
})

for (const transport of TRANSPORTS) {
  t.test(`a frozen client receives nothing, is described as frozen, and can be closed at once (${JSON.stringify(transport)})`, async t => {
    const { stream, response, socket } = await open(t, { ...transport, timeoutMs: 1_000 })
    stream.thaw()
    stream.freeze()
    stream.freeze()
    response.write('data: 1\n\n')
    await t.rejects(stream.next(), { message: /status 200, frozen; 0 events/ })
    stream.thaw()
    t.equal((await stream.next()).data, '1')
    await t.rejects(stream.next(), { message: /status 200, open; 1 events/ })
    stream.freeze()
    response.write('data: 2\n\n')
    await stream.close()
    t.ok(socket.destroyed, 'the server has noticed')
    t.equal(stream.events.length, 1)
  })
}

t.test('readRate by TCP: parts of 10 ms, of at least a letter', async t => {
  for (const [readRate, ms, parts] of [[1_000, 10, [10, 10, 5]], [250, 10, [2, 2, 1]], [100, 10, [1, 1]], [50, 20, [1, 1]], [25, 40, [1]]] as const) {
    await t.test(`${readRate} bytes per second`, async t => {
      const { server, opened } = build(t)
      const intervals = holdIntervals(t)
      const opening = openStream(server, '/', { socket: true, readRate, timeoutMs: 20_000, test: t })
      await until(() => intervals.started.length === 2)
      for (let n = 0; n < 20; n++) intervals.fire()
      const stream = await opening
      t.strictSame(intervals.started.slice(1), [ms])
      t.equal(stream.text, ': open\n\n')
      t.equal(intervals.count, 1, 'only that of the test')
      const total = parts.reduce((sum, part) => sum + part, 0)
      opened[0]!.response.write('x'.repeat(total))
      await until(() => intervals.started.length === 3)
      const received: number[] = []
      while (received.length < parts.length) {
        const { length } = stream.text
        intervals.fire()
        received.push(stream.text.length - length)
      }
      t.strictSame(received, parts)
      intervals.fire()
      t.equal(intervals.count, 1)
    })
  }
})

t.test('readRate by TCP: what follows waits, also after freeze() and thaw(); the end of the stream ends it', async t => {
  const { server, opened } = build(t)
  const intervals = holdIntervals(t)
  const opening = openStream(server, '/', { socket: true, readRate: 1_000, timeoutMs: 20_000, test: t })
  await until(() => intervals.started.length === 2)
  intervals.fire()
  intervals.fire()
  const stream = await opening
  const { response, socket } = opened[0]!
  response.write('1'.repeat(20))
  await until(() => intervals.started.length === 3)
  intervals.fire()
  stream.freeze()
  intervals.fire()
  t.equal(stream.text.slice(8), '1'.repeat(10), 'frozen')
  stream.thaw()
  response.write('2'.repeat(10))
  await turns(20)
  t.equal(intervals.started.length, 3, 'read later')
  intervals.fire()
  intervals.fire()
  await until(() => intervals.started.length === 4)
  intervals.fire()
  intervals.fire()
  t.equal(stream.text.slice(8), '1'.repeat(20) + '2'.repeat(10))
  // Level with the server: read at once after thaw().
  stream.freeze()
  response.write('3'.repeat(20))
  stream.thaw()
  await until(() => intervals.started.length === 5)
  intervals.fire()
  await stream.close()
  t.ok(socket.destroyed)
  intervals.fire()
  t.strictSame([intervals.count, stream.text.length], [0, 8 + 30 + 10])
})

t.test('readRate in memory is that of the socket', async t => {
  const { server } = build(t)
  const timers = holdTimers(t)
  openStream(server, '/', { socket: false, readRate: 10, test: t }).catch(() => {})
  await until(() => timers.durations.includes(100))
  t.equal(timers.durations.at(-1), 100, 'a byte every 100 ms')
})

t.test('`await using` closes a stream', async t => {
  const { stream, socket } = await open(t, {})
  await stream[Symbol.asyncDispose]()
  t.strictSame([stream.isOpen, socket.destroyed], [false, true])
})
