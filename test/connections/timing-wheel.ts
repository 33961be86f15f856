import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { TimingWheel, type Timed } from '../../lib/connections/timing-wheel.js'
import { systemClock } from '../../lib/util/clock.js'
import { until } from '../helpers/wait.js'

const RUNS = Number(process.env['PROPERTY_RUNS'] ?? 300)
fc.configureGlobal({ includeErrorInReport: true })

// --- timing-wheel.ts, timeout.ts ---

t.test('a turn of the wheel that comes late counts as two ticks of the time that the event loop has run', async t => {
  let now = 1000
  const wheel = new TimingWheel(10, { ...systemClock, monotonic: () => now })
  const after = (ms: number): number => {
    now += ms
    return wheel.ran
  }
  t.equal(after(0), 0)
  t.equal(after(7), 7, 'also between turns')
  wheel.turn()
  t.equal(after(20), 27, 'a tick late is no standstill')
  t.equal(after(1), 27, 'and it never goes back')
  wheel.turn()
  t.equal(after(5000), 47, 'but this is')
  wheel.turn()
  t.equal(after(10), 57)
})

// --- wheel.ts ---

class Item implements Timed {
  dueAt = Infinity
  slot = -1
  slotIndex = 0
  scheduled = false
  fired = 0
  react: (now: number) => void = () => {}
  constructor (readonly world: { now: number }) {}
  onTime (now: number): void {
    assert.ok(this.scheduled, 'one that was cancelled is left alone')
    assert.ok(this.dueAt <= now && now <= this.world.now, 'nothing comes early')
    this.fired++
    this.react(now)
  }
}

t.test('the wheel misses nothing and fires nothing early, whatever happens inside onTime and however long it stood still', async t => {
  const TICK = 10
  // Past, now, soon, at the edge of a tick, a full turn of the wheel and more.
  const delay = fc.oneof(fc.constantFrom(-1e6, -50, -1, 0, 1, 9, 10, 11, 511 * TICK, 512 * TICK, 513 * TICK, 5000 * TICK, Infinity), fc.nat(600), fc.nat(12_000))
  const act = fc.record({ what: fc.constantFrom('schedule', 'schedule', 'cancel'), who: fc.nat(7), delay })
  const step = fc.oneof(
    { weight: 2, arbitrary: fc.record({ turn: fc.constant(true as const), wait: fc.oneof(fc.constantFrom(0, 1, 9, 10, 11, 100, 5110, 5120, 5130, 1e6), fc.nat(400)) }) },
    { weight: 1, arbitrary: fc.record({ turn: fc.constant(false as const), act, inside: fc.array(act, { maxLength: 3 }) }) })
  let fired = 0
  t.doesNotThrow(() => fc.assert(fc.property(fc.nat(20_000), fc.array(step, { maxLength: 60, size: 'max' }), (start, steps) => {
    const world = { now: start }
    const wheel = new TimingWheel(TICK, { ...systemClock, monotonic: () => world.now })
    const items = Array.from({ length: 8 }, () => new Item(world))
    const touched = new Set<Item>()
    const rest = (item: Item) => () => { wheel.cancel(item); item.scheduled = false }
    for (const item of items) item.react = rest(item)
    const perform = ({ what, who, delay }: { what: string, who: number, delay: number }, from: number) => {
      const item = items[who]!
      touched.add(item)
      item.scheduled = what === 'schedule' && delay !== Infinity
      if (what === 'cancel') wheel.cancel(item)
      else wheel.schedule(item, from + delay)
    }
    for (const step of steps) {
      if (!step.turn) {
        perform(step.act, world.now)
        const item = items[step.act.who]!
        let bound = 3
        item.react = now => {
          for (const act of step.inside) perform(act, now)
          // What is to be looked at again says so; what is not, says that.
          if (!step.inside.some(act => act.who === step.act.who) || bound-- <= 0) perform({ what: 'cancel', who: step.act.who, delay: 0 }, now)
        }
        continue
      }
      world.now += step.wait
      touched.clear()
      // The tick that has begun may hold what is due later in it.
      const due = items.filter(item => item.scheduled && Math.ceil(item.dueAt / TICK) <= Math.floor(world.now / TICK))
      const before = items.map(item => item.fired)
      wheel.turn()
      for (const item of due) {
        const times = item.fired - before[items.indexOf(item)]!
        fired += times
        assert.ok(times > 0 || touched.has(item), 'what is due is found')
      }
    }
    // Whatever is still scheduled comes at its time, and then no more.
    for (const item of items) item.react = rest(item)
    const waiting = items.filter(item => item.scheduled)
    const counts = waiting.map(item => item.fired)
    world.now = Math.max(world.now, ...waiting.map(item => item.dueAt)) + TICK
    wheel.turn()
    wheel.turn()
    assert.deepEqual(waiting.map(item => item.fired), counts.map(count => count + 1))
    for (const item of items) wheel.cancel(item)
    world.now += 1e6
    wheel.turn()
    assert.deepEqual(waiting.map(item => item.fired), counts.map(count => count + 1))
  }), { numRuns: 4 * RUNS }))
  t.ok(fired > RUNS, `${fired} fired`)
})

t.test('an item set to a time that has passed, while others are looked at, comes with the next turn', async t => {
  const world = { now: 0 }
  const wheel = new TimingWheel(10, { ...systemClock, monotonic: () => world.now })
  const first = new Item(world)
  const second = new Item(world)
  first.scheduled = second.scheduled = true
  second.react = () => wheel.cancel(second)
  first.react = () => {
    wheel.cancel(first)
    wheel.schedule(second, 20)
  }
  wheel.schedule(first, 50)
  world.now = 120
  wheel.turn()
  world.now = 130
  wheel.turn()
  t.equal(second.fired, 1)
})

t.test('a wheel that starts late has the time of its start: the first streams are not silent since the boot', async t => {
  const world = { now: 1_000 }
  const wheel = new TimingWheel(10, { ...systemClock, monotonic: () => world.now })
  const due = new Item(world)
  due.scheduled = true
  due.react = () => wheel.cancel(due)
  wheel.schedule(due, 2_000)
  world.now = 61_000
  wheel.start()
  t.strictSame([wheel.now, due.fired], [61_000, 1])
  wheel.stop()
})

t.test('the wheel turns by itself between start and stop', async t => {
  const wheel = new TimingWheel(5, systemClock)
  const item = new Item({ now: Infinity })
  item.scheduled = true
  let times = 0
  item.react = now => {
    if (++times < 3) wheel.schedule(item, now + 5)
    else wheel.cancel(item)
  }
  wheel.start()
  wheel.start()
  wheel.schedule(item, performance.now() + 5)
  await until(() => times === 3)
  wheel.stop()
  wheel.stop()
  wheel.schedule(item, performance.now())
  // Another goes on, by the same clock.
  const other = new TimingWheel(5, systemClock)
  let turns = 0
  const clock = new Item({ now: Infinity })
  clock.scheduled = true
  clock.react = now => {
    turns++
    other.schedule(clock, now + 5)
  }
  other.start()
  t.teardown(() => other.stop())
  other.schedule(clock, performance.now() + 5)
  await until(() => turns === 3)
  t.equal(times, 3)
})
