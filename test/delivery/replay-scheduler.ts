import { AsyncLocalStorage } from 'node:async_hooks'
import t from 'tap'
import { ReplayScheduler, Turns, type Reader } from '../../lib/delivery/replay-scheduler.js'
import type { Broker } from '../../lib/log/broker.js'
import { warnings } from '../../lib/util/logger.js'
import { fakeTimers } from '../helpers/timers.js'
import { turns, until } from '../helpers/wait.js'

// --- CatchUp ---

class BusyReader implements Reader {
  isConnected = true
  reads = 0
  constructor (readonly busyMs: number) {}
  async readPage (): Promise<void> {
    this.reads++
    const end = performance.now() + this.busyMs
    while (performance.now() < end);
  }
}

t.test('catch-up: a bounded time in a turn, everybody served', async t => {
  const catchUp = new ReplayScheduler(null as unknown as Broker, 8, { ...warnings, warn: ({ err }: { err?: unknown }) => t.error(err) })
  const readers = Array.from({ length: 40 }, () => new BusyReader(3))
  for (const reader of readers) catchUp.want(reader)
  catchUp.want(readers[0]!)
  readers[39]!.isConnected = false
  const total = () => readers.reduce((sum, { reads }) => sum + reads, 0)
  let last = 0
  while (total() < 39) {
    await new Promise(resolve => setImmediate(resolve))
    t.ok(total() - last <= 2, `${total() - last} pages of 3 ms in a turn`)
    last = total()
  }
  t.ok(readers.slice(0, 39).every(({ reads }) => reads === 1), 'each once, also one that asked twice')
  t.equal(readers[39]!.reads, 0, 'one that has left is not read for')
})

t.test('catch-up: the time of a turn is kept within pages as well, and no page is read again', async t => {
  const catchUp = new ReplayScheduler(null as unknown as Broker, 32, { ...warnings, warn: ({ err }: { err?: unknown }) => t.error(err) })
  const PAGE = 20
  let asked = 0
  class Asking implements Reader {
    isConnected = true
    reads = 0
    /** The turns in which its messages were asked about. */
    readonly turns: number[] = []
    constructor (readonly awayMs: number) {}
    async readPage (_broker: Broker, time: Turns): Promise<void> {
      this.reads++
      if (this.awayMs > 0) await new Promise(resolve => setTimeout(resolve, this.awayMs))
      for (let n = 0; n < PAGE; n++) {
        while (time.over) await time.next()
        asked++
        this.turns.push(turn)
        const end = performance.now() + 1
        while (performance.now() < end);
      }
    }
  }
  // Some of a log in memory, some of one that takes longer than a turn.
  const readers = Array.from({ length: 16 }, (_, i) => new Asking(i % 4 === 3 ? 10 : 0))
  for (const reader of readers) catchUp.want(reader)
  let turn = 0
  let most = 0
  for (let last = 0; asked < readers.length * PAGE; last = asked) {
    await new Promise(resolve => setImmediate(resolve))
    most = Math.max(most, asked - last)
    turn++
  }
  // The clock is looked at every eighth time as long as it is fast.
  t.ok(most <= 4 + 1 + 8, `${most} questions of 1 ms in a turn`)
  t.ok(readers.every(({ reads }) => reads === 1))
  const ends = readers.filter(({ awayMs }) => awayMs === 0).map(({ turns }) => turns.at(-1)!)
  t.strictSame(ends, ends.toSorted((a, b) => a - b), 'first come, first served')
})

t.test('catch-up: reads that do not come back keep nobody waiting', async t => {
  const catchUp = new ReplayScheduler(null as unknown as Broker, 8, { ...warnings, warn: ({ err }: { err?: unknown }) => t.error(err) })
  for (let i = 0; i < 50; i++) catchUp.want({ isConnected: true, readPage: () => new Promise(() => {}) })
  const readers = Array.from({ length: 50 }, () => new BusyReader(0))
  for (const reader of readers) catchUp.want(reader)
  await until(() => readers.every(({ reads }) => reads === 1))
})

t.test('catch-up: a log that cannot be read is asked again, nobody is forgotten, and it is said once', async t => {
  const said: unknown[] = []
  const catchUp = new ReplayScheduler(null as unknown as Broker, 32, { ...warnings, warn: ({ err }: { err?: unknown }) => said.push((err as Error).message), info: () => said.push('free') })
  const create = (failures: number) => {
    const reader = { isConnected: true, calls: 0, readPage: async () => { if (++reader.calls <= failures) throw new Error('away') } }
    return reader
  }
  const [reader, later, gone] = [create(2), create(3), create(Infinity)]
  // The retry timer does not keep a process alive; this one does.
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  catchUp.want(reader)
  await until(() => reader.calls === 1)
  catchUp.want(reader)
  catchUp.want(later)
  await turns(3)
  t.equal(reader.calls, 1, 'not at once, whoever asks')
  await until(() => reader.calls === 3 && later.calls === 3)
  catchUp.want(create(0))
  await turns(3)
  t.strictSame(said, ['away'], 'who needs nothing of what is away is no proof')
  await until(() => later.calls === 4)
  t.strictSame(said, ['away', 'free'])
  catchUp.want(gone)
  await until(() => gone.calls === 1)
  gone.isConnected = false
  await until(() => said.length === 4)
  t.strictSame(said, ['away', 'free', 'away', 'free'])
  t.equal(gone.calls, 1)
})

t.test('catch-up: a bounded number of reads is under way for each turn, and one that is done makes room for another', async t => {
  const silent = { ...warnings, warn: () => {}, info: () => {} }
  let started = 0
  const count = () => started
  const hanging = new ReplayScheduler(null as unknown as Broker, 8, silent)
  for (let i = 0; i < 20; i++) hanging.want({ isConnected: true, readPage: () => { started++; return new Promise(() => {}) } })
  t.equal(started, 0, 'in a later turn')
  const before: number[] = []
  while (count() < 20) {
    await turns(1)
    before.push(count())
  }
  t.ok(before.every((count, i) => count - (before[i - 1] ?? 0) <= 8), before.join())

  let read = 0
  let passed = 0
  const quick = new ReplayScheduler(null as unknown as Broker, 2, silent)
  for (let i = 0; i < 200; i++) quick.want({ isConnected: true, readPage: async () => { read++ } })
  for (const done = () => read === 200; !done(); passed++) await turns(1)
  t.ok(passed < 50, `${passed} turns, not one for each two`)
})

t.test('catch-up: a reader that asks for its next page and then fails waits like any other', async t => {
  const scheduler: ReplayScheduler = new ReplayScheduler(null as unknown as Broker, 8, { ...warnings, warn: () => {}, info: () => {} })
  const reader = {
    isConnected: true,
    calls: 0,
    readPage: async () => {
      if (++reader.calls > 1) return
      await turns(1)
      scheduler.want(reader)
      throw new Error('away')
    }
  }
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  const at = performance.now()
  scheduler.want(reader)
  await until(() => reader.calls === 2)
  t.ok(performance.now() - at > 450, 'not at once')
})

t.test('catch-up: however many wait, a turn has its time once', async t => {
  let waits = 0
  const clock = fakeTimers(t)
  const time = new Turns(() => { waits++ })
  const done: string[] = []
  const read = async (name: string): Promise<void> => {
    while (time.over) await time.next()
    clock.now += 10
    done.push(name)
    time.look()
  }
  const readers = ['one', 'two', 'three'].map(read)
  t.strictSame([waits, done], [3, []], 'nothing before the first turn')
  for (const expected of [['one'], ['one', 'two'], ['one', 'two', 'three']]) {
    t.equal(time.awaited, true)
    time.begin()
    await turns(1)
    t.strictSame(done, expected)
  }
  t.equal(time.awaited, false)
  await Promise.all(readers)
})

t.test('catch-up: a turn ends at its time, also when messages become slow', async t => {
  const clock = fakeTimers(t)
  let looks = 0
  class CountedTurns extends Turns {
    override look (): boolean {
      looks++
      return super.look()
    }
  }
  const time = new CountedTurns(() => {})
  t.equal(time.over, true, 'before the first turn')
  /** Messages of a turn that take this long, each. */
  const messages = (ms: number) => {
    looks = 0
    let count = 0
    for (time.begin(); !time.over; count++) clock.now += ms
    return count
  }
  t.equal(messages(1), 8, 'the first eight are not timed')
  t.equal(messages(0.3), 14, 'when they are found to be slow, each is')
  const fast = messages(1 / 128)
  t.ok(fast >= 512 && fast < 512 + 8, `${fast} fast ones`)
  t.ok(looks <= 512 / 8 + 2, `${looks} reads of the clock`)
  time.begin()
  clock.now += 10
  t.equal(time.over, true, 'what came before the first message counts, whatever was in the turn before')
  time.begin()
  t.equal(time.look(), false)
  clock.now += 3.9
  t.equal(time.look(), false)
  clock.now += 0.1
  t.equal(time.look(), true)
  t.equal(time.over, true, 'until the next turn')
  time.begin()
  t.equal(time.over, false)
})

t.test('catch-up: pages are read in the context of no caller', async t => {
  const context = new AsyncLocalStorage<string>()
  const scheduler = new ReplayScheduler(null as unknown as Broker, 8, warnings)
  let store: unknown = 'not read'
  context.run('request', () => scheduler.want({ isConnected: true, readPage: async () => { store = context.getStore() } }))
  await turns(3)
  t.equal(store, undefined)
})

t.test('catch-up: all readers that have failed are tried again together, half a second after the first', async t => {
  const clock = fakeTimers(t)
  const scheduler = new ReplayScheduler(null as unknown as Broker, 8, { ...warnings, warn: () => {}, info: () => {} })
  const calls: [at: number, name: string][] = []
  const want = (name: string) => scheduler.want({ isConnected: true, readPage: async () => { calls.push([clock.now - 1_000, name]); throw new Error('away') } })
  want('one')
  await turns(3)
  await clock.advance(300)
  want('other')
  await turns(3)
  t.strictSame([clock.count, clock.refs], [1, 0], 'one timer, which does not keep the process alive')
  await clock.advance(199)
  t.equal(calls.length, 2)
  await clock.advance(1)
  await turns(3)
  t.strictSame(calls, [[0, 'one'], [300, 'other'], [500, 'one'], [500, 'other']])
  await clock.advance(500)
  await turns(3)
  t.strictSame(calls.slice(4), [[1_000, 'one'], [1_000, 'other']])
  t.equal(clock.count, 1)
})
