import t from 'tap'
import { turns } from '../helpers/wait.js'
import { Bench, event, type Call, type Waiter } from './load-bench.js'
import { random } from './reading.js'

// The loads of a node, without connections: what they keep, and that nothing of one is left when it has ended.

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

t.test('a loaded state that its client does not read gives way to one that is needed, and to no other', async t => {
  const bench = new Bench(1_000)
  const unread = bench.begin('unread')
  await bench.called()
  await bench.calls[0]!.end(event(600))
  unread.blocked = true
  const left = bench.begin('left')
  await bench.called()
  left.leave()
  await bench.calls[1]!.end(event(500))
  t.strictSame(unread.calls, ['started 0', 'loaded'])
  const needed = bench.begin('needed')
  await bench.called()
  await bench.calls[2]!.end(event(500))
  t.strictSame([unread.calls, needed.calls], [['started 0', 'loaded', 'postponed'], ['started 0', 'loaded']])
  // What gives way can end the load for which it does.
  const last = bench.begin('last')
  needed.blocked = true
  needed.postpone = () => {
    needed.leave()
    last.leave()
  }
  await bench.called()
  await bench.calls[3]!.end(event(600))
  t.strictSame(last.calls, ['started 0', 'begin'])
  await bench.rest(t)
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
