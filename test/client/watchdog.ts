import t from 'tap'
import { Watchdog } from '../../lib/client/watchdog.js'
import { TestClock } from '../../lib/testing/test-clock.js'
import { counted } from './timers.js'

// The watchdog of one connection: when it is silent, and that no timer is left.

const LIMIT_MS = 1_000

function start (limitMs = LIMIT_MS) {
  const time = new TestClock()
  const { clock, timers } = counted(time.clock)
  /** What the wall clock has gone on, or was set back, while the monotonic clock stood still. */
  const wall = { byMs: 0 }
  let silences = 0
  const watchdog = new Watchdog({ ...clock, wall: () => clock.wall() + wall.byMs }, limitMs, () => { silences++ })
  return { watchdog, wall, timers, advance: async (ms: number) => await time.advance(ms), silences: () => silences }
}

t.test('silence is counted from the last byte, to the millisecond', async t => {
  const { watchdog, advance, silences, timers } = start()
  await advance(LIMIT_MS - 1)
  watchdog.heard()
  t.equal(timers.size, 1)
  await advance(LIMIT_MS - 1)
  t.equal(silences(), 0)
  await advance(1)
  t.equal(silences(), 1)
  await advance(10 * LIMIT_MS)
  t.equal(silences(), 1, 'once')
  t.equal(timers.size, 0)
})

t.test('another limit counts from now, and Infinity does not count', async t => {
  const { watchdog, advance, silences, timers } = start()
  await advance(900)
  watchdog.limit(500)
  t.equal(timers.size, 1)
  await advance(499)
  t.equal(silences(), 0)
  await advance(1)
  t.equal(silences(), 1)
  watchdog.limit(Infinity)
  t.equal(timers.size, 0)
  await advance(10 * LIMIT_MS)
  watchdog.check()
  t.equal(silences(), 1)
  t.equal(start(Infinity).timers.size, 0)
})

t.test('a watchdog that is stopped counts nothing, and begins anew', async t => {
  const { watchdog, advance, silences, timers, wall } = start()
  await advance(900)
  watchdog.stop()
  t.equal(timers.size, 0)
  await advance(10 * LIMIT_MS)
  wall.byMs = 10 * LIMIT_MS
  watchdog.check()
  t.equal(timers.size, 0, 'a page that is shown does not start it')
  t.equal(silences(), 0)
  watchdog.start()
  watchdog.start()
  t.equal(timers.size, 1)
  await advance(LIMIT_MS - 1)
  t.equal(silences(), 0)
  await advance(1)
  t.equal(silences(), 1)
})

t.test('a look at the clock: either clock can stand still, and the wall clock can be set back', async t => {
  for (const [mono, wall, silent] of [[999, 0, 0], [0, 999, 0], [0, 1_000, 1], [500, 499, 0], [500, 500, 1], [999, -5_000, 0], [1_000, -5_000, 1]] as const) {
    const dog = start()
    dog.wall.byMs = wall
    await dog.advance(mono)
    dog.watchdog.check()
    t.equal(dog.silences(), silent, `${mono} ms, and ${wall} ms of the wall clock`)
    t.equal(dog.timers.size, 1 - silent)
  }
  const late = start()
  late.wall.byMs = 600
  late.watchdog.check()
  await late.advance(399)
  t.equal(late.silences(), 0)
  await late.advance(1)
  t.equal(late.silences(), 1, 'the rest is counted from what has passed')
})
