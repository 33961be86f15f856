import { getEventListeners } from 'node:events'
import t, { type Test } from 'tap'
import type { Connect, Connection } from '../../lib/log/redis/client.js'
import { OnDemandConnection } from '../../lib/log/redis/on-demand.js'
import { Reconnector, type Report, type Serve } from '../../lib/log/redis/reconnector.js'
import { fakeTimers } from '../helpers/timers.js'
import { turns } from '../helpers/wait.js'

// How connections to Redis are kept, on connections that the test makes.

class Attempt {
  readonly signal: AbortSignal
  readonly lose: (error: Error) => void
  readonly made: Promise<Connection>
  succeed!: () => void
  fail!: (error: Error) => void
  destroyed = 0

  constructor (lose: (error: Error) => void, signal: AbortSignal) {
    this.lose = lose
    this.signal = signal
    this.made = new Promise((resolve, reject) => {
      this.succeed = () => resolve({ send: async () => null, destroy: () => { this.destroyed++ } })
      this.fail = reject
    })
  }
}

function connecting () {
  const attempts: Attempt[] = []
  const connect: Connect = (lose, signal) => {
    const attempt = new Attempt(lose, signal)
    attempts.push(attempt)
    return attempt.made
  }
  return { attempts, connect }
}

const LOST = new Error('the socket has closed')

// --- A link that is always open ---

function link (t: Test, serving: Serve = () => new Promise(() => {})) {
  const time = fakeTimers(t)
  const { attempts, connect } = connecting()
  const changes: (Error | null)[] = []
  const reports: Report[] = []
  const reconnector = new Reconnector({
    connect,
    serve: (connection, report) => {
      reports.push(report)
      return serving(connection, report)
    },
    onChange: change => { changes.push(change) }
  })
  t.teardown(() => {
    for (const { fail } of attempts) fail(LOST)
    return reconnector.stop()
  })
  return { time, attempts, changes, reports, reconnector }
}

t.test('each attempt that fails doubles the time until the next, up to a second, and up to a half is left to chance', async t => {
  for (const [random, delays] of [[1, [100, 200, 400, 800, 1_000, 1_000]], [0, [50, 100, 200, 400, 500, 500]]] as const) {
    const { time, attempts, changes, reconnector } = link(t)
    const { restore } = t.intercept(Math, 'random', { value: () => random, configurable: true }) as unknown as { restore (): void }
    reconnector.start()
    reconnector.start()
    for (const [i, delay] of delays.entries()) {
      t.equal(attempts.length, i + 1)
      attempts[i]!.fail(new Error(`attempt ${i}`))
      await turns(2)
      t.strictSame(time.delays, [delay])
      await time.advance(delay - 1)
      t.equal(attempts.length, i + 1)
      await time.advance(1)
    }
    t.strictSame(changes.map(change => change?.message), delays.map((_, i) => `attempt ${i}`))
    attempts.at(-1)!.fail(LOST)
    await reconnector.stop()
    restore()
  }
})

t.test('a connection that has worked for more than two seconds is followed by another at once', async t => {
  t.intercept(Math, 'random', { value: () => 1, configurable: true })
  const { time, attempts, changes, reports, reconnector } = link(t)
  reconnector.start()
  const problem = new Error('behind')
  // After how long the connection is reported to work, is reported again, and is lost.
  for (const [first, again, lost, delay] of [[0, 1_500, 2_001, 50], [0, 1_500, 2_000, 100], [9_000, 0, 2_000, 200], [9_000, 0, 2_001, 50], [null, null, 9_000, 100], [0, 0, 0, 200]] as const) {
    const attempt = attempts.at(-1)!
    attempt.succeed()
    await turns(2)
    changes.length = 0
    if (first !== null) {
      await time.advance(first)
      reports.at(-1)!(problem)
      await time.advance(again)
      reports.at(-1)!(null)
    }
    await time.advance(lost - (again ?? 0))
    attempt.lose(LOST)
    await turns(2)
    t.strictSame(time.delays, [delay], `${first} ${again} ${lost}`)
    t.strictSame(changes, first === null ? [LOST] : [problem, null, LOST])
    t.equal(attempt.destroyed, 1)
    reports.at(-1)!(null)
    t.equal(changes.at(-1), LOST, 'a late reply of this connection reports nothing')
    t.equal(getEventListeners(attempt.signal, 'abort').length, 0)
    await time.advance(delay)
  }
})

t.test('what fails while a connection is used ends it', async t => {
  const failure = new Error('the reply is wrong')
  const { attempts, changes, time, reconnector } = link(t, async () => { throw failure })
  reconnector.start()
  attempts[0]!.succeed()
  await turns(2)
  t.strictSame([changes, attempts[0]!.destroyed, time.count], [[failure], 1, 1])
})

t.test('a back-off is cut short when something else has been reached', async t => {
  const { attempts, time, reconnector } = link(t)
  reconnector.start()
  reconnector.hurry()
  attempts[0]!.fail(LOST)
  await turns(2)
  t.equal(attempts.length, 1)
  reconnector.hurry()
  await turns(2)
  t.strictSame([attempts.length, time.count], [2, 0])
  reconnector.hurry()
  attempts[1]!.succeed()
  await turns(2)
  t.strictSame([attempts.length, attempts[1]!.destroyed], [2, 0])
})

t.test('stopping closes the connection, whatever the link is about, and nothing is reported any more', async t => {
  for (const when of ['connecting', 'serving', 'waiting'] as const) {
    const { attempts, changes, reports, time, reconnector } = link(t)
    reconnector.start()
    const [attempt] = attempts
    if (when === 'serving') attempt!.succeed()
    if (when === 'waiting') attempt!.fail(LOST)
    await turns(2)
    let stopped = false
    const stopping = reconnector.stop().then(() => { stopped = true })
    t.ok(attempt!.signal.aborted)
    await turns(2)
    t.equal(stopped, when !== 'connecting', 'an attempt is waited for')
    attempt!.succeed()
    await stopping
    t.equal(attempt!.destroyed, when === 'waiting' ? 0 : 1, when)
    t.equal(reports.length, when === 'serving' ? 1 : 0, 'what is made after that is not used')
    t.strictSame(changes, when === 'waiting' ? [LOST] : [])
    await time.advance(5_000)
    t.strictSame([attempts.length, time.count, getEventListeners(attempt!.signal, 'abort').length], [1, 0, 0])
  }
  const { reconnector } = link(t)
  await t.resolves(reconnector.stop(), 'one that was never started')
})

// --- A connection that is made when it is needed ---

function onDemand (t: Test) {
  const time = fakeTimers(t)
  const { attempts, connect } = connecting()
  const link = new OnDemandConnection(connect)
  t.teardown(() => link.close())
  const tasks: { resolve (value: unknown): void, reject (error: Error): void }[] = []
  return {
    time,
    attempts,
    link,
    tasks,
    use () {
      const using = link.use(async () => await new Promise((resolve, reject) => { tasks.push({ resolve, reject }) }))
      using.catch(() => {})
      return using
    }
  }
}

t.test('a connection is made when it is needed, shared, and closed when it was idle for ten seconds', async t => {
  const { attempts, tasks, time, use } = onDemand(t)
  const using = [use(), use()]
  t.equal(attempts.length, 1)
  await turns(1)
  t.equal(tasks.length, 0)
  attempts[0]!.succeed()
  await turns(1)
  tasks[0]!.resolve('one')
  await time.advance(20_000)
  t.strictSame([attempts[0]!.destroyed, time.count], [0, 0], 'it is in use')
  tasks[1]!.resolve('other')
  t.strictSame(await Promise.all(using), ['one', 'other'])
  await time.advance(9_999)
  const again = use()
  t.equal(time.count, 0)
  await time.advance(20_000)
  tasks[2]!.resolve('again')
  await again
  t.strictSame([time.count, time.refs], [1, 0], 'the process can end meanwhile')
  await time.advance(9_999)
  t.strictSame([attempts.length, attempts[0]!.destroyed], [1, 0])
  await time.advance(1)
  t.equal(attempts[0]!.destroyed, 1)
  use()
  t.equal(attempts.length, 2)
})

t.test('a task that fails closes the connection, unless Redis has answered that a key is of another type', async t => {
  const errors: [message: string, isKept: boolean][] = [
    ['WRONGTYPE Operation against a key holding the wrong kind of value', true],
    ['ERR Error running script: WRONGTYPE Operation against a key', true],
    ['READONLY You can\'t write against a read only replica.', false],
    ['the reply to WRONGTYPE is lost', false],
    ['did not answer within 2000 ms', false]
  ]
  for (const [message, isKept] of errors) {
    const { attempts, tasks, use } = onDemand(t)
    const [failing, other] = [use(), use()]
    attempts[0]!.succeed()
    await turns(1)
    tasks[0]!.reject(new Error(message))
    await t.rejects(failing, { message })
    await turns(1)
    t.equal(attempts[0]!.destroyed, isKept ? 0 : 1, message)
    use()
    t.equal(attempts.length, isKept ? 1 : 2)
    tasks[1]!.resolve('other')
    t.equal(await other, 'other')
  }
})

t.test('a connection that was lost, or could not be made, is replaced, and its end says nothing of the next', async t => {
  const { attempts, tasks, time, use } = onDemand(t)
  const failing = use()
  attempts[0]!.fail(LOST)
  await t.rejects(failing, LOST)
  const lost = use()
  attempts[1]!.succeed()
  await turns(1)
  attempts[1]!.lose(LOST)
  await turns(1)
  t.equal(attempts[1]!.destroyed, 1)
  use()
  t.equal(attempts.length, 3)
  attempts[2]!.succeed()
  await turns(1)
  tasks[0]!.reject(LOST)
  await t.rejects(lost, LOST)
  attempts[1]!.lose(LOST)
  use()
  await turns(1)
  t.strictSame([attempts.length, attempts[2]!.destroyed], [3, 0])
  for (const { resolve } of tasks) resolve('done')
  await time.advance(10_000)
  t.equal(attempts[2]!.destroyed, 1)
})

t.test('closing destroys the connection, also one that is still being made, and leaves no timer', async t => {
  for (const when of ['unused', 'connecting', 'used', 'idle'] as const) {
    const { attempts, tasks, time, link, use } = onDemand(t)
    const using = when === 'unused' ? null : use()
    if (when !== 'connecting') attempts[0]?.succeed()
    await turns(1)
    if (when === 'idle') tasks[0]!.resolve('done')
    await turns(1)
    link.close()
    if (using !== null) t.ok(attempts[0]!.signal.aborted)
    attempts[0]?.succeed()
    await turns(1)
    t.equal(attempts[0]?.destroyed, when === 'unused' ? undefined : 1, when)
    t.equal(time.count, 0)
    await t.rejects(use(), { name: 'AbortError' })
    t.equal(attempts.length, when === 'unused' ? 0 : 1)
  }
})
