import { AsyncLocalStorage } from 'node:async_hooks'
import t from 'tap'
import { Flusher, type Flushable } from '../../lib/delivery/flusher.js'
import { Telemetry } from '../../lib/diagnostics/telemetry.js'
import { Reports } from '../helpers/diagnostics.js'
import { collect } from '../helpers/heap.js'
import { turns, until } from '../helpers/wait.js'

// --- flush.ts ---

/** Notes when it is flushed, and does then what it was told to. */
class Noting implements Flushable {
  next: Flushable | null = null
  readonly #flushed: Noting[]
  readonly #react: (() => void) | undefined

  constructor (flushed: Noting[], react?: () => void) {
    this.#flushed = flushed
    this.#react = react
  }

  flush (): void {
    this.#flushed.push(this)
    this.#react?.()
  }
}

t.test('a flush takes 512 a turn, first marked first, each once, and leaves nobody in line', async t => {
  const flusher = new Flusher(0, () => 0)
  const flushed: Noting[] = []
  const items = Array.from({ length: 1300 }, () => new Noting(flushed))
  for (const item of items) flusher.mark(item)
  for (const item of items) flusher.mark(item)
  t.equal(flushed.length, 0, 'not before the end of the turn')
  const { root } = flusher
  for (const expected of [512, 1024, 1300]) {
    await turns(1)
    t.equal(flushed.length, expected)
  }
  t.strictSame(flushed.map(item => items.indexOf(item)), items.map((_, i) => i))
  t.ok(items.every(({ next }) => next === null))
  t.not(flusher.root, root, 'the frames of this turn may go')
  flusher.mark(items[7]!)
  await turns(1)
  t.equal(flushed.length, 1301, 'and it begins again')
})

t.test('a flush ends its turn where writing takes long, and goes on in the next', async t => {
  let now = 0
  const flusher = new Flusher(0, () => now)
  const flushed: Noting[] = []
  const items = Array.from({ length: 500 }, () => new Noting(flushed, () => { now += 0.05 }))
  for (const item of items) flusher.mark(item)
  let before = -1
  while (flushed.length < 500) {
    await turns(1)
    t.ok(flushed.length > before, 'each turn makes progress')
    t.ok(flushed.length - Math.max(before, 0) <= 224, 'of 0.05 ms each, those of 8 ms, and no more than a stretch beyond')
    before = flushed.length
  }
  t.strictSame(flushed, items)
  t.ok(items.every(({ next }) => next === null))
})

t.test('who is marked while others are flushed waits for the next turn, itself included', async t => {
  const flusher = new Flusher(0)
  const flushed: Noting[] = []
  const last = new Noting(flushed)
  let again = true
  const first: Noting = new Noting(flushed, () => {
    flusher.mark(last)
    if (again) flusher.mark(first)
    again = false
  })
  flusher.mark(first)
  await turns(1)
  t.strictSame(flushed, [first])
  await turns(1)
  t.strictSame(flushed, [first, last, first])
  // The second time it marked `last` once more.
  await turns(1)
  t.strictSame(flushed, [first, last, first, last])
})

t.test('with an interval, what comes within it goes together', async t => {
  const flusher = new Flusher(5)
  const flushed: Noting[] = []
  const items = [new Noting(flushed), new Noting(flushed)]
  for (const item of items) flusher.mark(item)
  t.equal(flushed.length, 0)
  await until(() => flushed.length > 0)
  t.strictSame(flushed, items)
})

// --- Flusher ---

t.test('an interval is kept however many there are: each is written to once in a run', async t => {
  const flusher = new Flusher(20)
  const times: number[] = []
  class Item implements Flushable {
    next: Flushable | null = null
    flushes = 0
    flush (): void {
      this.flushes++
      if (this === items[0]) times.push(performance.now())
      // There is always something new.
      if (this.flushes < 5) flusher.mark(this)
    }
  }
  const items = Array.from({ length: 1_300 }, () => new Item())
  for (const item of items) flusher.mark(item)
  await until(() => items.every(({ flushes }) => flushes === 5))
  // Timers of Node may be early by a millisecond.
  t.ok(times.slice(1).every((time, i) => time - times[i]! >= 18), times.join())
})

t.test('the clock is read once in a while, items run in no context, and none is kept', async t => {
  const store = new AsyncLocalStorage<string>()
  for (const intervalMs of [0, 5]) {
    let looks = 0
    const stores: unknown[] = []
    const flusher = new Flusher(intervalMs, () => { looks++; return 0 })
    const last = (() => {
      const items = Array.from({ length: 512 }, (): Flushable => ({ next: null, flush: () => { stores.push(store.getStore()) } }))
      store.run('request', () => { for (const item of items) flusher.mark(item) })
      return new WeakRef(items.at(-1)!)
    })()
    await until(() => stores.length === 512)
    await turns(2)
    t.ok(looks <= 1 + 512 / 64, `${looks} looks`)
    t.strictSame([...new Set(stores)], [undefined])
    collect()
    t.equal(last.deref(), undefined)
    t.ok(flusher.root)
  }
})

t.test('the time of a delivery begins when its data arrives, also during the flush before', async t => {
  let now = 1_000
  const telemetry = new Telemetry(null)
  const flusher = new Flusher(0, () => now, telemetry)
  const reports = new Reports(t, () => null, ['deliver'])
  const flushed: Noting[] = []
  const late = new Noting(flushed)
  const items = Array.from({ length: 1_000 }, (_, index) => new Noting(flushed, () => {
    now++
    if (index === 400) flusher.mark(late)
  }))
  for (const item of items) flusher.mark(item)
  await until(() => flushed.includes(late))
  await turns(2)
  t.match(reports.of('deliver'), [{ connections: 1_000, durationMs: 1_000 }, { connections: 1, durationMs: 599 }])
})

t.test('an item that throws does not keep the others from being flushed', async t => {
  const queue: (() => void)[] = []
  t.intercept(globalThis, 'setImmediate', { value: (run: () => void) => { queue.push(run) }, configurable: true, writable: true })
  const flusher = new Flusher(0, () => 0)
  const flushed: Noting[] = []
  const [first, last] = [new Noting(flushed), new Noting(flushed)]
  const broken = new Noting(flushed, () => { throw new Error('broken') })
  const run = () => { while (queue.length > 0) queue.shift()!() }
  for (const item of [first, broken, last]) flusher.mark(item)
  t.throws(run, { message: 'broken' })
  run()
  t.strictSame(flushed, [first, broken, last])
  for (const item of [broken, first]) flusher.mark(item)
  t.throws(run, { message: 'broken' })
  run()
  t.strictSame(flushed.slice(3), [broken, first])
  t.equal(first.next, null)
})
