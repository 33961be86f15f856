import t from 'tap'
import { Drain } from '../../lib/connections/drain.js'
import { Statistics } from '../../lib/connections/statistics.js'
import { Telemetry } from '../../lib/diagnostics/telemetry.js'
import { Registry } from '../../lib/subscriptions/registry.js'
import { systemClock, type Clock, type Timer } from '../../lib/util/clock.js'
import { recorder } from '../helpers/logged.js'
import { turns } from '../helpers/wait.js'

// A node that closes all its streams, by a clock and an event loop that only the test moves; and the sums of its streams.

/** A stream of a registry. */
class Stream {
  readonly userId = null
  readonly managed = true
  readonly held = new Set<string>()
  readonly ageMs = 0
  index = -1
  mark = 0
  readonly calls: string[] = []
  constructor (readonly clientId: string, readonly queuedBytes = 0, readonly lagging = false) {}

  close (reason: string): void {
    this.calls.push(reason)
  }

  cutShort (): void {
    this.calls.push('cut')
  }

  stats () {
    return { sentEvents: 0, droppedEvents: 0, queuedBytes: this.queuedBytes, lagging: this.lagging }
  }
}

function start (count: number) {
  const registry = new Registry<Stream>()
  const streams = Array.from({ length: count }, (_, n) => new Stream(`${n}`))
  for (const stream of streams) registry.add(stream)
  const timers = new Map<Timer, { ms: number, run: () => unknown }>()
  let now = 0
  const clock: Clock = {
    ...systemClock,
    monotonic: () => now,
    after: (ms, run) => {
      const timer = { unref () {} }
      timers.set(timer, { ms, run })
      return timer
    },
    cancel: timer => { timers.delete(timer!) }
  }
  const loop = { ran: 1_000 }
  const { log, lines } = recorder()
  const drain = new Drain(registry as never, { clock, drainMs: 500 } as never, loop, log)
  return {
    drain,
    streams,
    lines,
    loop,
    pending: () => [...timers.values()].map(({ ms }) => ms),
    /** Time passes, and the only timer fires. `ran`: how long the event loop ran meanwhile. */
    async fire (ran: number) {
      const [[timer, { ms, run }]] = [...timers] as [[Timer, { ms: number, run: () => unknown }]]
      now += ms
      loop.ran += ran
      timers.delete(timer)
      run()
      await turns(2)
    },
    leave (n: number) {
      registry.remove(streams[n]!)
      drain.left()
    },
    /** Whether closing has ended. */
    async ended () {
      const pending = Symbol('pending')
      await turns(1)
      return await Promise.race([drain.begin(), Promise.resolve(pending)]) !== pending
    }
  }
}

t.test('a node without streams has closed them at once', async t => {
  const { drain, pending, lines } = start(0)
  await drain.begin()
  t.strictSame(pending(), [])
  t.match(lines, [['info', { connections: 0, drainMs: 500 }], ['info', { connections: 0, durationMs: 0 }]])
})

t.test('a node waits for its streams, and is done with the last', async t => {
  const { drain, streams, leave, ended, pending } = start(3)
  const closing = drain.begin()
  t.equal(drain.begin(), closing, 'once')
  t.strictSame(streams.map(({ calls }) => calls), [['shutdown'], ['shutdown'], ['shutdown']])
  for (const n of [0, 1]) leave(n)
  t.strictSame([await ended(), pending()], [false, [500]])
  leave(2)
  t.strictSame([await ended(), pending()], [true, []], 'and leaves no timer')
  t.equal(streams[0]!.calls.length, 1)
})

t.test('time in which the event loop stood still does not count; then streams are cut, and after 100 ms left', async t => {
  const { drain, streams, leave, ended, pending, fire, lines } = start(3)
  drain.begin()
  await fire(200)
  t.strictSame([pending(), streams[0]!.calls], [[300], ['shutdown']])
  await fire(299)
  t.strictSame([pending(), streams[0]!.calls], [[1], ['shutdown']])
  leave(0)
  await fire(1)
  t.strictSame(streams.map(({ calls }) => calls), [['shutdown'], ['shutdown', 'cut'], ['shutdown', 'cut']])
  t.strictSame([await ended(), pending()], [false, [100]])
  leave(1)
  t.equal(await ended(), false)
  await fire(100)
  t.strictSame([await ended(), pending()], [true, []])
  t.match(lines[1], ['info', { connections: 1, durationMs: 500 + 300 + 1 + 100 }])
  const other = start(1)
  other.drain.begin()
  await other.fire(500)
  t.strictSame(other.pending(), [100])
  other.leave(0)
  t.strictSame([await other.ended(), other.pending()], [true, []], 'the last stream ends this wait, too')
})

t.test('streams that end when they are cut need no further wait', async t => {
  const { drain, streams, leave, ended, pending, fire } = start(2)
  for (const [n, stream] of streams.entries()) stream.cutShort = () => { setImmediate(() => leave(n)) }
  drain.begin()
  await fire(500)
  t.strictSame([await ended(), pending()], [true, []])
})

t.test('a node sums its streams, in one turn or in several', async t => {
  const registry = new Registry<Stream>()
  for (let n = 0; n < 2_500; n++) registry.add(new Stream(`${n}`, n % 7, n % 3 === 0))
  const telemetry = new Telemetry('node')
  telemetry.dropped.outbox = 3
  telemetry.dropped.memory = 4
  const statistics = new Statistics(registry, { messages: 5, deliveries: 6 }, telemetry, {})
  const read = statistics.read()
  const queuedBytes = Array.from({ length: 2_500 }, (_, n) => n % 7).reduce((sum, bytes) => sum + bytes)
  t.match(read, { connections: 2_500, lagging: 834, queuedBytes, dropped: 7, messages: 5, delivered: 6, log: null })
  let passed = 0
  const count = (): void => {
    passed++
    immediate = setImmediate(count)
  }
  let immediate = setImmediate(count)
  t.strictSame(await statistics.readInTurns(), read)
  clearImmediate(immediate)
  t.ok(passed >= 2, `${passed} turns`)
  ;(read.gaps as { epoch: number }).epoch = 9
  t.equal(telemetry.gaps.epoch, 0, 'what is given out is a copy')
})
