import t from 'tap'
import { Flusher, type Flushable } from '../../lib/delivery/flusher.js'
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
