import fc from 'fast-check'
import t from 'tap'
import { EventQueue } from '../../lib/client/event-queue.js'
import { turns } from '../helpers/wait.js'

// What a loop over events() or readRun() receives, and what the reader of the stream is told.

const OVERFLOW = new Error('overflow')

function start (maxBuffered: number) {
  let closed = 0
  const queue = new EventQueue<number>(maxBuffered, () => OVERFLOW, () => { closed++ })
  /** What a call resolves or rejects with. */
  const outcome = (promise: Promise<IteratorResult<number, undefined>>) => promise.then(({ done, value }) => done === true ? 'done' : value, (error: unknown) => error)
  return { queue, next: () => outcome(queue.next()), leave: () => outcome(queue.return()), closed: () => closed }
}

t.test('as many events as allowed are buffered; one more ends the loop after them', async t => {
  for (const max of [0, 1, 2, 5]) {
    const { queue, next, closed } = start(max)
    for (let n = 1; n <= max; n++) queue.push(n)
    t.equal(closed(), 0, `${max} events`)
    queue.push(max + 1)
    t.equal(closed(), 1)
    queue.push(max + 2)
    for (let n = 1; n <= max; n++) t.equal(await next(), n)
    t.same([await next(), await next()], [OVERFLOW, 'done'])
  }
  const { queue, next } = start(0)
  const waiting = [next(), next()]
  queue.push(1)
  queue.push(2)
  t.same(await Promise.all(waiting), [1, 2], 'what a loop waits for is not buffered')
})

t.test('the loop is done once, and its error is thrown once', async t => {
  const error = new Error('broken')
  const { queue, next, closed } = start(5)
  const waiting = [next(), next(), next()]
  queue.push(1)
  queue.end(error)
  queue.end(new Error('another'))
  t.same(await Promise.all(waiting), [1, error, 'done'])
  t.same([await next(), closed()], ['done', 1])

  const left = start(5)
  left.queue.push(1)
  t.equal(await left.leave(), 'done')
  left.queue.end(error)
  t.same([await left.next(), left.closed()], ['done', 1], 'what was buffered is discarded')
})

t.test('drained() resolves when the last event is read, or nothing more is', async t => {
  const { queue, next } = start(5)
  const isPending = async (promise: Promise<void>): Promise<boolean> => {
    let pending = true
    promise.then(() => { pending = false })
    await turns(1)
    return pending
  }
  t.notOk(await isPending(queue.drained()), 'nothing is buffered')
  queue.push(1)
  queue.push(2)
  const drained = queue.drained()
  await next()
  t.ok(await isPending(drained), 'one is left')
  await next()
  t.notOk(await isPending(drained))
  for (const end of [queue => queue.end(), queue => queue.return()] as ((queue: EventQueue<number>) => unknown)[]) {
    const { queue } = start(5)
    queue.push(1)
    const drained = queue.drained()
    end(queue)
    t.notOk(await isPending(drained))
    t.notOk(await isPending(queue.drained()), 'also afterwards')
  }
})

type Step = 'push' | 'next' | 'end' | 'fail' | 'leave'

t.test('any order of calls', async t => {
  const steps = fc.array(fc.constantFrom<Step>('push', 'push', 'push', 'next', 'next', 'next', 'end', 'fail', 'leave'), { maxLength: 30 })
  await fc.assert(fc.asyncProperty(steps, fc.nat(3), async (all, max) => {
    const { queue, next, closed } = start(max)
    const failure = new Error('failure')
    const outcomes: Promise<unknown>[] = []
    // The model: what is buffered, how many calls wait, and what comes at the end.
    let items: number[] = []
    let waiting = 0
    let end: unknown[] | null = null
    const expected: unknown[] = []
    const finish = (result: unknown[]): void => {
      if (end !== null) return
      end = result
      for (; waiting > 0; waiting--) expected.push(end.shift() ?? 'done')
    }
    for (const [n, step] of all.entries()) {
      if (step === 'next') {
        outcomes.push(next())
        if (items.length > 0) expected.push(items.shift())
        else if (end !== null) expected.push((end as unknown[]).shift() ?? 'done')
        else waiting++
      } else if (step === 'push') {
        queue.push(n)
        if (end !== null) continue
        if (waiting > 0) {
          waiting--
          expected.push(n)
        } else if (items.length === max) finish([OVERFLOW])
        else items.push(n)
      } else if (step === 'leave') {
        await queue.return()
        items = []
        finish([])
      } else {
        queue.end(step === 'fail' ? failure : undefined)
        finish(step === 'fail' ? [failure] : [])
      }
    }
    queue.end()
    finish([])
    const results = await Promise.all(outcomes)
    if (results.some((result, i) => result !== expected[i]) || closed() !== 1) throw new Error(`${all} with ${max}: ${results}, expected ${expected}`)
  }))
})
