import t, { type Test } from 'tap'
import { SnapshotLoads, type Load, type LoadWaiter, type SnapshotSource } from '../../lib/connections/snapshot-loads.js'
import { testClock } from '../../lib/testing/index.js'
import { kClock, type Clock, type Timer } from '../../lib/util/clock.js'
import { MemoryBudget } from '../../lib/util/memory-budget.js'
import { recorder } from '../helpers/logged.js'
import { turns } from '../helpers/wait.js'
import { random } from './reading.js'

// The loads of a node, without connections: how many run, who shares one, and that nothing of one is left when it has ended.

/** A connection that waits for a load. */
class Waiter implements LoadWaiter {
  blocked = false
  load: Load | null = null
  readonly calls: string[] = []
  constructor (readonly bench: Bench) {}

  begin (): void {
    this.calls.push('begin')
  }

  loadStarted ({ at }: Load): void {
    this.calls.push(`started ${at!.position}`)
  }

  loaded (): void {
    this.calls.push('loaded')
  }

  loadFailed ({ abort }: Load): void {
    this.calls.push(abort.signal.aborted ? 'failed after its signal' : 'failed')
  }

  postpone (): void {
    this.calls.push('postponed')
    this.leave()
  }

  leave (): void {
    this.bench.loads.leave(this.load!, this)
  }
}

/** A call of the application. */
interface Call {
  readonly name: string
  readonly signal: AbortSignal
  readonly end: (result: unknown) => Promise<void>
}

class Bench {
  readonly time = testClock()
  readonly timers = new Set<Timer>()
  readonly budget: MemoryBudget
  readonly eventLog = { epoch: 'e', position: 0 }
  readonly recorder = recorder()
  readonly loads: SnapshotLoads
  readonly calls: Call[] = []

  constructor (limit = 1e6) {
    const { after, cancel, ...rest } = (this.time.options as unknown as Record<typeof kClock, Clock>)[kClock]
    const clock: Clock = {
      ...rest,
      after: (ms, run) => {
        const timer = after(ms, () => {
          this.timers.delete(timer)
          return run()
        })
        this.timers.add(timer)
        return timer
      },
      cancel: timer => {
        this.timers.delete(timer!)
        cancel(timer)
      }
    }
    this.budget = new MemoryBudget(limit)
    this.loads = new SnapshotLoads({ clock, maxEventBytes: 1e6 }, this.budget, this.eventLog, this.recorder.log)
  }

  /** Asks for a load. Its calls of the application end when a test ends them. */
  begin (name: string, source: Partial<SnapshotSource> = {}, floor = this.eventLog.position, waiter = new Waiter(this)): Waiter {
    const ask = (signal: AbortSignal): Promise<unknown> => new Promise((resolve, reject) => {
      const end = async (result: unknown): Promise<void> => {
        if (result instanceof Error) reject(result)
        else resolve(result)
        await turns(1)
      }
      this.calls.push({ name, signal, end })
    })
    waiter.load = this.loads.begin({ load: () => null, timeoutMs: 1_000, maxConcurrent: 16, ...source }, ask, waiter, floor)
    return waiter
  }

  /** The names of all calls so far. */
  async called (): Promise<string[]> {
    await turns(1)
    return this.calls.map(({ name }) => name)
  }

  /** What must be true when nobody waits any more: no load runs, waits, is shared, or has memory or a timer. */
  async rest (t: Test): Promise<void> {
    t.strictSame([this.budget.used, this.timers.size], [0, 0], 'no memory and no timer')
    const from = this.calls.length
    const waiters = [...['k', 'l'].map(key => this.begin(key, { key })), this.begin('low', { maxConcurrent: 3 })]
    t.strictSame((await this.called()).slice(from), ['k', 'l', 'low'], 'nothing runs, and nothing is shared')
    for (const waiter of waiters) waiter.leave()
    for (const { end } of this.calls.slice(from)) await end(null)
    t.equal(this.timers.size, 0)
  }
}

const event = (bytes: number) => ({ data: 'x'.repeat(bytes - 'data: \n\n'.length) })

t.test('loads start in order, as many as the next one allows', async t => {
  const bench = new Bench()
  const [a, b, c] = ['a', 'b', 'c', 'd'].map(name => bench.begin(name, { maxConcurrent: 2 })) as [Waiter, Waiter, Waiter]
  t.strictSame([a, b, c].map(({ load }) => load!.state), ['running', 'running', 'waiting'])
  t.strictSame(bench.calls, [], 'the application is not called at once')
  t.strictSame(await bench.called(), ['a', 'b'])
  bench.eventLog.position = 7
  await bench.calls[1]!.end(null)
  t.strictSame(await bench.called(), ['a', 'b', 'c'])
  t.strictSame(c.calls, ['started 7'], 'at the position of the log when it starts')
  t.strictSame([a.calls, b.calls], [['started 0'], ['started 0', 'loaded']])
  bench.begin('wide', { maxConcurrent: 16 })
  t.equal(bench.calls.length, 3, 'one with a higher limit waits behind one with a low limit')
  await bench.calls[0]!.end(new Error('no database'))
  t.strictSame(await bench.called(), ['a', 'b', 'c', 'd', 'wide'])
  t.strictSame(a.calls, ['started 0', 'failed'])
})

t.test('a load that waits and is left lets those behind it start', async t => {
  const bench = new Bench()
  const a = bench.begin('a', { maxConcurrent: 2 })
  const low = bench.begin('low', { maxConcurrent: 1 })
  const b = bench.begin('b', { maxConcurrent: 2 })
  t.equal(bench.timers.size, 3)
  low.leave()
  t.strictSame(await bench.called(), ['a', 'b'])
  t.equal(bench.timers.size, 2)
  t.strictSame(low.calls, [], 'its call was never made, so it is not told of the end of one')
  for (const waiter of [a, b]) waiter.leave()
  for (const { end } of [...bench.calls]) await end(null)
  await bench.rest(t)
})

t.test('who joins a load with the same key', async t => {
  const bench = new Bench()
  bench.eventLog.position = 5
  const first = bench.begin('first', { key: 'k' })
  const early = bench.begin('early', { key: 'k' }, 99)
  t.equal(early.load, first.load, 'before it starts, it has no position: anyone')
  t.strictSame([bench.begin('', { key: 'l' }).load === first.load, bench.begin('').load === first.load], [false, false])
  await bench.called()
  t.strictSame([first.calls, early.calls], [['started 5'], ['started 5']])
  t.equal(bench.begin('equal', { key: 'k' }, 5).load, first.load)
  bench.eventLog.position = 8
  const later = bench.begin('later', { key: 'k' }, 6)
  t.not(later.load, first.load, 'who was sent more than its position has another')
  t.equal(bench.begin('later still', { key: 'k' }, 0).load, later.load, 'which is joined from now on')
  await bench.called()
  await bench.calls[0]!.end(null)
  t.equal(bench.begin('again', { key: 'k' }, 8).load, later.load, 'also after the end of the first')
  bench.eventLog.epoch = 'f'
  t.not(bench.begin('another epoch', { key: 'k' }, 0).load, later.load)
  await bench.called()
  const done = bench.begin('done', { key: 'm' })
  await bench.called()
  await bench.calls.at(-1)!.end(event(100))
  t.equal(done.load!.state, 'done')
  t.not(bench.begin('after it', { key: 'm' }).load, done.load, 'a load that has ended is not joined')
})

t.test('a load that everyone has left is aborted, and counts until its call has ended', async t => {
  const bench = new Bench()
  const source = { key: 'k', maxConcurrent: 1 }
  const [a, b] = [bench.begin('a', source), bench.begin('a', source)]
  await bench.called()
  const { signal, end } = bench.calls[0]!
  a.leave()
  t.equal(signal.aborted, false, 'another waits')
  b.leave()
  t.match(signal.reason, { code: 'SSE_ERR_SNAPSHOT_ABORTED', message: /no client waits for it/ })
  t.equal(b.load!.state, 'over')
  const next = bench.begin('next', { maxConcurrent: 1 })
  t.strictSame(await bench.called(), ['a'])
  await end(event(100))
  t.strictSame(await bench.called(), ['a', 'next'])
  t.strictSame([a.calls, b.calls], [['started 0'], ['started 0', 'begin']], 'who left last can ask again')
  t.equal(bench.budget.used, 0, 'what it returns is not kept')
  next.leave()
  await bench.calls[1]!.end(new Error('aborted'))
  t.strictSame(bench.recorder.lines, [], 'a call that fails because it was aborted is no error')
  t.strictSame(next.calls, ['started 0', 'begin'])
  await bench.rest(t)
})

t.test('a load has its time to start, and its time to end', async t => {
  const bench = new Bench()
  const source = { maxConcurrent: 1 }
  const a = bench.begin('a', source)
  const b = bench.begin('b', { ...source, timeoutMs: 1_500 })
  const c = bench.begin('c', { ...source, timeoutMs: 1_200, key: 'c' })
  await bench.time.advance(999)
  t.strictSame(a.calls, ['started 0'])
  await bench.time.advance(1)
  t.strictSame(a.calls, ['started 0', 'failed'])
  t.match(bench.calls[0]!.signal.reason, { code: 'SSE_ERR_SNAPSHOT_ABORTED', message: /: it did not end within 1000 ms$/ })
  t.strictSame(await bench.called(), ['a', 'b'])
  await bench.time.advance(200)
  t.strictSame(c.calls, ['failed'], 'that of one that waits has gone by')
  t.match(c.load!.abort.signal.reason, { message: /: it did not start within 1200 ms$/ })
  await bench.calls[0]!.end(event(100))
  const d = bench.begin('d', source)
  t.strictSame(await bench.called(), ['a', 'b'], 'a call that ends late is not counted twice')
  await bench.time.advance(999)
  t.strictSame(b.calls, ['started 0'])
  await bench.time.advance(1)
  t.strictSame([b.calls, d.calls], [['started 0'], ['failed']], 'its time began with its start')
  await bench.time.advance(300)
  t.strictSame(b.calls, ['started 0', 'failed'])
  t.match(bench.recorder.lines, [
    ['error', { connections: 1 }, /^Loading a snapshot failed/],
    ['error', { key: 'c', connections: 1 }],
    ['error', { connections: 1 }],
    ['error', { connections: 1 }]
  ])
  t.equal('key' in bench.recorder.lines[0]![1], false)
  await bench.calls[1]!.end(null)
  await bench.rest(t)
})

t.test('a load that fails: all who wait are told before its signal, and its memory is free', async t => {
  const bench = new Bench()
  const error = new Error('no database')
  const [a, b] = [bench.begin('a', { key: 'k' }), bench.begin('a', { key: 'k' })]
  await bench.called()
  const heard: string[] = []
  bench.calls[0]!.signal.addEventListener('abort', () => { heard.push(...a.calls, ...b.calls) })
  await bench.calls[0]!.end((function * () {
    yield event(100)
    t.equal(bench.budget.used, 100)
    throw error
  })())
  t.strictSame(heard, ['started 0', 'failed', 'started 0', 'failed'])
  t.match(bench.calls[0]!.signal.reason, { code: 'SSE_ERR_SNAPSHOT_ABORTED', message: /it has failed/ })
  t.strictSame(bench.recorder.lines, [['error', { err: error, key: 'k', connections: 2 }, 'Loading a snapshot failed; the streams that wait for it end with snapshot-error']])
  t.strictSame([a.load!.frames, a.load!.state, a.load!.waiters.size], [[], 'over', 0])
  await bench.rest(t)
})

t.test('what a load keeps, and how long', async t => {
  const bench = new Bench()
  const [a, b] = [bench.begin('a', { key: 'k' }), bench.begin('a', { key: 'k' })]
  await bench.called()
  await bench.calls[0]!.end([event(100), event(200), event(300)])
  const load = a.load!
  t.strictSame([load.frames.length, load.bytes, load.heldBytes, bench.budget.used, bench.timers.size], [3, 600, 600, 600, 0])
  t.strictSame([a.calls, b.calls], [['started 0', 'loaded'], ['started 0', 'loaded']])
  const sender = { blocked: false, lastWriteAt: 0, giveWay () {} }
  load.senders.add(sender)
  for (const frame of load.frames) bench.budget.hold(frame)
  for (const waiter of [a, b]) waiter.leave()
  t.strictSame([load.state, load.frames.length, bench.budget.used, load.abort.signal.aborted], ['over', 3, 600, false], 'one sends it')
  bench.budget.release(load.frames[1]!)
  t.equal(load.heldBytes, 400)
  for (const frame of [load.frames[0]!, load.frames[2]!]) bench.budget.release(frame)
  bench.loads.sent(load, sender)
  t.strictSame([load.frames, load.senders.size], [[], 0])
  t.strictSame([a.calls.at(-1), b.calls.at(-1)], ['loaded', 'loaded'], 'no call of the application continued')
  await bench.rest(t)

  const sent = bench.begin('b')
  await bench.called()
  await bench.calls.at(-1)!.end(event(100))
  sent.load!.senders.add(sender)
  bench.loads.sent(sent.load!, sender)
  t.equal(sent.load!.frames.length, 1, 'another waits for it')
  sent.leave()
  t.strictSame(sent.load!.frames, [])
  await bench.rest(t)
})

t.test('a state as large as the memory, and a byte larger', async t => {
  for (const [sizes, outcome, code] of [
    [[1_000], 'loaded'], [[1_001], 'failed', 'SSE_ERR_SNAPSHOT_TOO_LARGE'], [[400, 600], 'loaded'], [[400, 601], 'failed', 'SSE_ERR_SNAPSHOT_TOO_LARGE'], [[400, 500, 101], 'failed', 'SSE_ERR_SNAPSHOT_TOO_LARGE']
  ] as const) {
    const bench = new Bench(1_000)
    const a = bench.begin('a')
    await bench.called()
    await bench.calls[0]!.end(sizes.map(event))
    t.strictSame(a.calls, ['started 0', outcome], sizes.join())
    if (code !== undefined) t.match(bench.recorder.lines, [['error', { err: { code } }]])
    if (outcome === 'loaded') a.leave()
    await bench.rest(t)
  }
  const bench = new Bench(1_000)
  bench.budget.add(500)
  const a = bench.begin('a')
  await bench.called()
  await bench.calls[0]!.end([event(300), event(201)])
  t.match(bench.recorder.lines, [['error', { err: { code: 'SSE_ERR_SNAPSHOT_MEMORY_FULL' } }]], 'beside what others have')
  t.strictSame([a.calls, bench.budget.used], [['started 0', 'failed'], 500])
})

t.test('a large state is taken in several turns, and not to the end if nobody waits', async t => {
  const bench = new Bench()
  let turn = 0
  const count = (): void => {
    turn++
    immediate = setImmediate(count)
  }
  let immediate = setImmediate(count)
  t.teardown(() => clearImmediate(immediate))
  const a = bench.begin('a')
  await bench.called()
  const turnOf: number[] = []
  let closed = false
  const events = function * () {
    try {
      for (let n = 0; n < 1_000; n++) {
        if (n === 700) a.leave()
        turnOf.push(turn)
        yield event(100)
      }
    } finally {
      closed = true
    }
  }
  await bench.calls[0]!.end(events())
  await turns(10)
  t.equal(closed, true)
  t.equal(turnOf.length, 701)
  t.strictSame([255, 256, 511, 512, 700].map(n => new Set(turnOf.slice(0, n + 1)).size), [1, 2, 2, 3, 3])
  await bench.rest(t)
})

t.test('nothing is loaded for clients that do not read', async t => {
  const bench = new Bench()
  const source = { key: 'k', maxConcurrent: 1 }
  const [a, b] = [bench.begin('a', source), bench.begin('a', source)]
  a.blocked = b.blocked = true
  const next = bench.begin('next', { maxConcurrent: 1 })
  t.strictSame(await bench.called(), ['next'])
  t.strictSame([a.calls, b.calls], [['postponed'], ['postponed', 'begin']])
  next.leave()
  await bench.calls[0]!.end(null)
  const [c, d] = [bench.begin('c', source), bench.begin('c', source)]
  c.blocked = true
  t.strictSame(await bench.called(), ['next', 'c'], 'one of them reads')
  for (const waiter of [c, d]) waiter.leave()
  await bench.calls[1]!.end(null)
  await bench.rest(t)
})

t.test('whatever happens, no more loads run than are allowed, and nothing of them is left', async t => {
  for (let seed = 1; seed <= 40; seed++) {
    const int = random(seed)
    const bench = new Bench(5_000)
    const waiting = new Set<Waiter>()
    const ended = new Set<Call>()
    for (let step = 0; step < 120; step++) {
      const x = int(10)
      const waiter = [...waiting][int(waiting.size || 1)]
      const call = bench.calls.filter(call => !ended.has(call))[int(3)]
      if (x < 4) {
        const key = [undefined, 'k', 'l'][int(3)]
        waiting.add(bench.begin('x', { maxConcurrent: 3, ...(key !== undefined && { key }) }, int(3)))
      } else if (x < 6 && waiter !== undefined) {
        waiting.delete(waiter)
        if (!waiter.calls.includes('failed')) waiter.leave()
      } else if (x < 9 && call !== undefined) {
        ended.add(call)
        await call.end([new Error('no database'), event(500), [event(500), event(900)], null][int(4)])
      } else if (x === 9) {
        bench.eventLog.position += int(2)
        await bench.time.advance(int(4) * 200)
      }
      await turns(1)
      const running = new Set([...waiting].map(({ load }) => load!).filter(({ isCounted }) => isCounted))
      if (running.size > 3) t.fail(`${running.size} loads run, seed ${seed}`)
      const frames = new Set([...waiting].map(({ load }) => load!).filter(({ state }) => state === 'done').flatMap(({ frames }) => frames))
      const held = [...frames].reduce((sum, { bytes }) => sum + bytes, 0)
      if (bench.budget.used !== held) t.fail(`${bench.budget.used} bytes are in use, not ${held}, seed ${seed}`)
    }
    for (const waiter of waiting) if (!waiter.calls.includes('failed') && !waiter.calls.includes('postponed')) waiter.leave()
    for (const call of bench.calls) await call.end(null)
    await bench.time.advance(2_000)
    for (const call of bench.calls) await call.end(null)
    await bench.rest(t)
  }
})
