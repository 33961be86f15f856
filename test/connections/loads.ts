import t from 'tap'
import { Bench, event, type Waiter } from './load-bench.js'

// The loads of a node, without connections: how many run, who shares one, and how they end.

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
  b.loadFailed = () => {
    b.calls.push('failed')
    b.leave()
  }
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
