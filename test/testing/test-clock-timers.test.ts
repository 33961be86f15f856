import Fastify from 'fastify'
import t from 'tap'
import ssePlugin from '../../lib/index.js'
import { isArriving, connectTo } from '../../lib/testing/link.js'
import { openStream, testClock } from '../../lib/testing/index.js'
import { holdTimers } from '../helpers/held-timers.js'
import { turns, until } from '../helpers/wait.js'

// The timers of a clock that only `advance()` moves.

const resources = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length

t.test('a duration is at least a millisecond, and is rounded up', async t => {
  const time = testClock()
  holdTimers(t)
  const fired: number[] = []
  for (const ms of [-5, 0, 0.2, 1, 1.2, 2]) time.clock.after(ms, () => fired.push(time.clock.monotonic()))
  await time.advance(0)
  t.strictSame(fired, [])
  await time.advance(5)
  t.strictSame(fired, [1, 1, 1, 1, 2, 2])
})

t.test('random timers fire as a naive list of them says', async t => {
  let seed = 7
  const random = (below: number) => (seed = (seed * 48_271) % 2_147_483_647) % below
  const time = testClock()
  const { clock } = time
  holdTimers(t)
  /** Timers in the order in which they were set; `every` 0 for those that fire once. */
  let model: { id: number, at: number, every: number }[] = []
  const fired: string[] = []
  const expected: string[] = []
  const timers = new Map<number, ReturnType<typeof clock.after>>()
  let now = 0
  for (let id = 0; id < 600; id++) {
    const ms = 1 + random(40)
    const note = () => { fired.push(`${id} at ${clock.monotonic()}, ${clock.wall() - time.now}`) }
    const every = random(5) === 0
    timers.set(id, every ? clock.every(ms, note) : clock.after(ms, note))
    model.push({ id, at: now + ms, every: every ? ms : 0 })
    if (random(3) === 0) {
      const cancelled = random(id + 1)
      clock.cancel(timers.get(cancelled))
      model = model.filter(({ id }) => id !== cancelled)
    }
    if (random(4) > 0) continue
    const until = now + random(30)
    for (;;) {
      const at = Math.min(...model.map(({ at }) => at))
      if (at > until) break
      for (const timer of [...model]) {
        if (timer.at !== at) continue
        expected.push(`${timer.id} at ${at}, 0`)
        if (timer.every > 0) timer.at += timer.every
        else model.splice(model.indexOf(timer), 1)
      }
    }
    await time.advance(until - now)
    now = until
    t.equal(clock.monotonic(), now)
  }
  t.strictSame(fired, expected)
  t.ok(fired.length > 500)
  for (const timer of timers.values()) clock.cancel(timer)
})

t.test('a timer that another of the same time cancels does not fire; one that is set meanwhile fires in the same advance()', async t => {
  const time = testClock()
  const { clock } = time
  holdTimers(t)
  const fired: string[] = []
  clock.after(5, () => {
    fired.push('one')
    clock.cancel(other)
    clock.after(3, () => fired.push('later'))
  })
  const other = clock.after(5, () => fired.push('other'))
  const ticks = clock.every(4, () => {
    fired.push('tick')
    if (fired.length > 2) clock.cancel(ticks)
  })
  await time.advance(100)
  t.strictSame(fired, ['tick', 'one', 'tick', 'later'])
})

t.test('only timers that fire once have a timer in real time, until they fire, are cancelled or unreferenced', async t => {
  const time = testClock()
  const { clock } = time
  const before = resources()
  const ticks = clock.every(1_000, () => {})
  t.equal(resources(), before)
  clock.after(50_000, () => {})
  const [cancelled, free] = [clock.after(50_000, () => {}), clock.after(50_000, () => {})]
  t.equal(resources(), before + 3)
  clock.cancel(cancelled)
  free.unref()
  t.equal(resources(), before + 1)
  await time.advance(50_000)
  t.equal(resources(), before)
  clock.cancel(ticks)
})

t.test('in real time, a timer moves the clock to its due time, and fires what is due before', async t => {
  const time = testClock()
  const { clock } = time
  const timers = holdTimers(t)
  const fired: unknown[] = []
  clock.every(400, () => fired.push(['tick', clock.monotonic()]))
  clock.after(1_000, () => fired.push(['once', clock.monotonic()]))
  t.strictSame(timers.durations, [1_000])
  timers.fire()
  await turns(60)
  t.strictSame(fired, [['tick', 400], ['tick', 800], ['once', 1_000]])
  await time.advance(0)
  t.equal(clock.monotonic(), 1_000)

  // Due in real time while `advance()` fires it: once, and the clock does not go back.
  clock.after(100, () => fired.push('due'))
  const moved = time.advance(500)
  timers.fire()
  await moved
  await time.advance(0)
  t.equal(clock.monotonic(), 1_500)
  t.strictSame(fired.slice(3), ['due', ['tick', 1_200]])
  t.equal(timers.count, 0)
})

t.test('in real time, an error of a timer is uncaught', async t => {
  const time = testClock()
  const timers = holdTimers(t)
  const uncaught: unknown[] = []
  process.setUncaughtExceptionCaptureCallback(error => { uncaught.push(error) })
  t.teardown(() => process.setUncaughtExceptionCaptureCallback(null))
  const error = Object.assign(new Error('of a timer'))
  time.clock.after(10, () => { throw error })
  timers.fire()
  await turns(40)
  process.setUncaughtExceptionCaptureCallback(null)
  t.strictSame(uncaught, [error])
  await time.advance(1)
  t.equal(time.clock.monotonic(), 11, 'the clock goes on')
})

t.test('advance() waits for work that a timer has begun, but not for ever', async t => {
  const time = testClock()
  const timers = holdTimers(t)
  let done = false
  time.clock.every(10, async () => { await turns(50); done = true })
  await time.advance(10)
  t.ok(done)
  time.clock.after(5, () => new Promise(() => {}))
  const moved = time.advance(10)
  await until(() => timers.durations.length === 3)
  t.strictSame(timers.durations, [100, 5, 100])
  const result = { resolved: false }
  moved.then(() => { result.resolved = true })
  await turns(80)
  t.notOk(result.resolved)
  for (; !result.resolved; await turns(1)) if (timers.count > 0) timers.fire()
  t.equal(time.clock.monotonic(), 20)
})

for (const socket of [false, true]) {
  t.test(`advance() resolves when clients have received what is in transit, ${socket ? 'by TCP' : 'in memory'}`, async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    const time = testClock()
    await app.register(ssePlugin, time.options)
    app.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
    const stream = await openStream(app, '/sse', { socket, test: t })
    await until(() => !isArriving())
    await app.sse.broadcastData('x', 'x'.repeat(1_000_000))
    await time.advance(0)
    t.equal(stream.events.length, 1)
    t.notOk(isArriving())
    const frozen = await openStream(app, '/sse', { socket, test: t })
    frozen.freeze()
    await app.sse.broadcastData('x', 'x'.repeat(1_000_000))
    await until(() => stream.events.length === 2)
    t.notOk(isArriving(), 'nothing arrives at a frozen client')
    await frozen.close()
  })
}

t.test('advance() waits 100 ms in all for bytes that do not arrive, and closed connections do not count', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  const { socket, serverSide } = await connectTo(app, { socket: true })
  t.teardown(() => socket.destroy())
  t.notOk(isArriving())
  Object.defineProperty(serverSide, 'bytesWritten', { value: Infinity })
  t.ok(isArriving())
  const time = testClock()
  for (let ms = 1; ms <= 20; ms++) time.clock.every(ms, () => {})
  const timers = holdTimers(t)
  let asked = 0
  const startedAt = timers.now
  // Each look at the time costs 10 ms.
  t.intercept(performance, 'now', { value: () => startedAt + 10 * asked++, configurable: true })
  await time.advance(20)
  t.ok(asked >= 10 && asked <= 100, `${asked} looks`)
  socket.destroy()
  await until(() => socket.closed)
  await turns()
  t.notOk(isArriving())
})
