import t, { type Test } from 'tap'
import { once } from 'node:events'
import { MemorySocket } from '../../lib/testing/memory-socket.js'
import { holdTimers } from '../helpers/held-timers.js'
import { turns, until } from '../helpers/wait.js'

// A connection in memory behaves as one of a network, but for its buffers: a reader that stops is noticed with the next byte.

/** Both ends, and what each has received and reported so far. */
function pair (t: Test) {
  const ends = MemorySocket.pair()
  t.teardown(() => ends.forEach(end => end.destroy()))
  const logs = ends.map(end => {
    const log: string[] = []
    for (const event of ['end', 'finish', 'close']) end.on(event, () => log.push(event))
    end.on('error', (error: NodeJS.ErrnoException) => log.push(`error ${error.code}`))
    return log
  })
  return { client: ends[0], server: ends[1], clientLog: logs[0]!, serverLog: logs[1]! }
}

function reads (end: MemorySocket): string[] {
  const texts: string[] = []
  end.setEncoding('latin1').on('data', text => texts.push(text))
  return texts
}

const resources = (): number => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout' || kind === 'Immediate').length

t.test('bytes arrive in a later turn, in order and each once, in both directions', async t => {
  const { client, server } = pair(t)
  const [atClient, atServer] = [reads(client), reads(server)]
  const written: string[] = []
  server.write('one', () => written.push('one'))
  server.write('two', () => written.push('two'))
  client.write('request')
  await new Promise<void>(resolve => process.nextTick(resolve))
  t.strictSame([atClient, atServer, written], [[], [], []])
  t.ok(client.isArriving && server.isArriving)
  await until(() => written.length === 2 && atServer.length > 0)
  t.equal(atClient.join(), 'one,two')
  t.strictSame(atServer, ['request'])
  t.notOk(client.isArriving || server.isArriving)
  t.strictSame([client.bytesRead, server.bytesRead], [6, 7])
})

t.test('has the addresses of a local socket, and a port that no other socket has', async t => {
  const ends = [...MemorySocket.pair(), ...MemorySocket.pair()]
  t.equal(new Set(ends.map(({ remotePort }) => remotePort)).size, 4)
  for (const { remotePort, remoteAddress, remoteFamily, localAddress } of ends) {
    t.ok(remotePort > 65_535)
    t.strictSame([remoteAddress, remoteFamily, localAddress], ['127.0.0.1', 'IPv4', '127.0.0.1'])
  }
  const [end] = ends
  for (const same of [end!.setTimeout(), end!.setNoDelay(), end!.setKeepAlive(), end!.ref(), end!.unref()]) t.equal(same, end)
})

t.test('stop() holds back the next byte, also one that is on its way, until start()', async t => {
  const { client, server } = pair(t)
  const received = reads(client)
  server.write('1')
  client.stop()
  await turns()
  let taken = false
  server.write('2', () => { taken = true })
  await turns()
  t.strictSame([received, taken, client.bytesRead, client.isArriving], [[], false, 0, false])
  client.start()
  t.strictSame(received, [], 'not within the call')
  await turns(6)
  t.equal(received.join(''), '12')
  t.ok(taken)
  client.start()
  server.write('3')
  await turns()
  t.equal(received.join(''), '123')
})

t.test('an end that is not read holds 16 KB, and its writer 16 KB more', async t => {
  const { client, server } = pair(t)
  const kilobyte = Buffer.alloc(1_024, 'x')
  let accepted = 0
  let written = 0
  while (server.write(kilobyte, () => written++)) accepted++
  t.equal(accepted, 15, 'the sixteenth fills the buffer')
  client.read(0)
  await turns()
  for (let n = 0; n < 40; n++) {
    server.write(kilobyte, () => written++)
    await turns(4)
  }
  t.strictSame([client.bytesRead, client.readableLength, written], [16_384, 16_384, 16])
  let received = 0
  client.on('data', (bytes: Buffer) => { received += bytes.length })
  await until(() => received === 56 * 1_024)
  t.equal(written, 56)
})

t.test('limit(): a part every 10 ms, of at least a byte', async t => {
  for (const [bytesPerSecond, text, parts, ms] of [
    [1_000, 'x'.repeat(25), [10, 10, 5], 10],
    [250, 'x'.repeat(5), [2, 2, 1], 10],
    [100, 'xyz', [1, 1, 1], 10],
    [50, 'xy', [1, 1], 20],
    [25, 'x', [1], 40],
    [1_000, 'x'.repeat(10), [10], 10]
  ] as const) {
    await t.test(`${bytesPerSecond} bytes per second`, async t => {
      const { client, server } = pair(t)
      const timers = holdTimers(t)
      client.limit(bytesPerSecond)
      const received = reads(client)
      let taken = false
      server.write(text, () => { taken = true })
      for (const [n] of parts.entries()) {
        await turns()
        t.strictSame([received.length, client.isArriving, taken], [n, false, false])
        timers.fire()
      }
      await turns()
      t.strictSame(received.map(({ length }) => length), parts)
      t.strictSame(timers.durations, parts.map(() => ms), 'a timer for each part')
      t.ok(taken && timers.count === 0)
      t.equal(client.bytesRead, text.length)
      server.write('y')
      timers.fire()
      await turns()
      t.equal(received.at(-1), 'y', 'goes on')
    })
  }
})

t.test('limit(): one timer at a time; stop() holds back the part that is due', async t => {
  const { client, server } = pair(t)
  const timers = holdTimers(t)
  client.limit(1_000)
  const received = reads(client)
  server.write('x'.repeat(20))
  await turns()
  client.start()
  client.start()
  t.strictSame(timers.durations, [10])
  client.stop()
  timers.fire()
  await turns()
  t.strictSame([received, timers.count === 0], [[], true])
  client.start()
  for (const count of [1, 2]) {
    await turns()
    timers.fire()
    await turns()
    t.equal(received.length, count)
  }
  t.strictSame(timers.durations, [10, 10, 10])
})

t.test('end(): the other end receives all bytes and the end, and can still write', async t => {
  const { client, server, clientLog, serverLog } = pair(t)
  const [atClient, atServer] = [reads(client), reads(server)]
  client.end('last')
  await until(() => serverLog.includes('end'))
  t.strictSame(atServer, ['last'])
  t.strictSame([clientLog, serverLog], [['finish'], ['end']])
  server.end('answer')
  await until(() => clientLog.includes('close'))
  t.strictSame(atClient, ['answer'])
  t.strictSame([clientLog, serverLog], [['finish', 'end', 'close'], ['end', 'finish', 'close']])
})

t.test('the end follows the bytes, also at a limited rate', async t => {
  for (const how of ['end', 'destroySoon'] as const) {
    const { client, server, clientLog } = pair(t)
    const received = reads(client)
    client.limit(2_000)
    server.write('x'.repeat(30))
    server[how]()
    await until(() => clientLog.includes('end'))
    t.equal(received.join('').length, 30, how)
  }
})

t.test('a stopped end does not receive the end before start(), but notices that the other one is destroyed, and loses its bytes', async t => {
  for (const text of ['', 'x'.repeat(30)]) {
    const { client, server, clientLog } = pair(t)
    const received = reads(client)
    await turns()
    client.stop()
    server.end(text)
    await turns(6)
    t.strictSame([received, clientLog], [[], []])
    client.start()
    await until(() => clientLog.includes('end'))
    t.equal(received.join(''), text)

    const broken = pair(t)
    const lost = reads(broken.client)
    await turns()
    broken.client.stop()
    if (text !== '') broken.server.write(text)
    broken.server.destroy()
    await until(() => broken.clientLog.includes('end'))
    broken.client.start()
    await turns()
    t.strictSame([lost, broken.clientLog.filter(what => what.startsWith('error'))], [[], []])
  }
})

t.test('an end that is destroyed: the other end notices in a later turn', async t => {
  const cases: [name: string, run: (client: MemorySocket) => unknown, expected: string[]][] = [
    ['destroy()', client => client.destroy(), ['end']],
    ['destroy(error)', client => client.destroy(Object.assign(new Error('of the test'), { code: 'OWN' })), ['error ECONNRESET', 'close']],
    ['resetAndDestroy()', client => client.resetAndDestroy(), ['error ECONNRESET', 'close']]
  ]
  for (const [name, run, expected] of cases) {
    await t.test(name, async t => {
      const { client, server, serverLog } = pair(t)
      reads(server)
      await turns()
      const before = resources()
      client.write('last')
      run(client)
      t.notOk(server.destroyed)
      await turns(6)
      t.strictSame(serverLog, expected)
      t.equal(server.bytesRead, 4, 'after the bytes')
      t.equal(resources(), before)
      if (!server.destroyed) {
        server.write('x')
        await turns()
        t.strictSame(serverLog, [...expected, 'error ECONNRESET', 'close'], 'nobody reads what is written now')
      }
    })
  }
})

t.test('a reset without a listener is no uncaught error of the end that resets', async t => {
  const [client, server] = MemorySocket.pair()
  server.on('error', () => {})
  t.equal(client.resetAndDestroy(), client)
  await until(() => server.destroyed)
  t.ok(client.destroyed)
})

t.test('a write that waits fails when its reader is destroyed; both ends can be destroyed at once', async t => {
  for (const [both, limit] of [[false, 1], [true, 1], [false, Infinity], [true, Infinity]] as const) {
    const { client, server, serverLog } = pair(t)
    await turns()
    const before = resources()
    const results: unknown[] = []
    client.limit(limit)
    reads(client)
    await new Promise<void>(resolve => process.nextTick(resolve))
    server.write('x', error => results.push((error as NodeJS.ErrnoException | undefined)?.code))
    if (limit === 1) await turns()
    client.destroy()
    if (both) server.destroy()
    await turns(6)
    t.strictSame(results, ['ECONNRESET'])
    t.strictSame(serverLog, both ? ['close'] : ['error ECONNRESET', 'close'])
    t.equal(client.bytesRead, 0, 'nothing arrives at a destroyed end')
    t.equal(resources(), before, 'no timer is left')
  }
})

t.test('a write in the turn in which the reader is destroyed fails', async t => {
  for (const error of [undefined, new Error('of the test')]) {
    const { client, server, serverLog } = pair(t)
    reads(client)
    await turns()
    client.destroy(error)
    const results: unknown[] = []
    server.write('x', error => results.push((error as NodeJS.ErrnoException | undefined)?.code))
    server.end()
    await turns(6)
    t.strictSame([results, serverLog], [['ECONNRESET'], ['error ECONNRESET', 'close']])
  }
})

t.test('destroySoon() writes what waits, then destroys', async t => {
  const { client, server, serverLog, clientLog } = pair(t)
  const received = reads(client)
  client.stop()
  server.write('answer')
  server.destroySoon()
  await turns()
  t.notOk(server.destroyed, 'until it is written')
  client.start()
  await until(() => serverLog.includes('close'))
  t.strictSame([received.join(''), serverLog], ['answer', ['finish', 'close']])
  await until(() => clientLog.includes('end'))
  const { server: ended } = pair(t)
  ended.end()
  await once(ended, 'finish')
  t.notOk(ended.destroyed)
  ended.destroySoon()
  t.ok(ended.destroyed, 'at once when all is written')
})
