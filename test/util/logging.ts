import t from 'tap'
import { testClock } from '../../lib/testing/index.js'
import type { Clock } from '../../lib/util/clock.js'
import { GroupedWarning } from '../../lib/util/grouped-warning.js'
import { reasonsOf, safeLog, warnings, type Log } from '../../lib/util/logger.js'
import { recorder } from '../helpers/logged.js'
import { until } from '../helpers/wait.js'

t.test('reasons of an error and of its causes', async t => {
  const nested = (depth: number): Error => new Error(`level ${depth}`, depth > 1 ? { cause: nested(depth - 1) } : {})
  t.equal(reasonsOf(nested(2)), 'level 2: level 1')
  t.equal(reasonsOf(nested(9)), 'level 9: level 8: level 7: level 6')
  t.equal(reasonsOf(new Error('x'.repeat(301))), `${'x'.repeat(300)}…`)
  t.equal(reasonsOf(new Error('x'.repeat(300))), 'x'.repeat(300))
  t.strictSame(['text', 7, null, undefined].map(reasonsOf), ['text', 'a value of type number', '', ''])
  t.strictSame([Object.assign(new Error(''), { code: 'ECONNREFUSED' }), new AggregateError([new Error('first'), new Error('second')]), new TypeError('')].map(reasonsOf), ['ECONNREFUSED', 'first', 'TypeError'])
  const broken = { get () { throw new Error() } }
  t.equal(reasonsOf(Object.defineProperty(new Error('x'), 'message', broken)), 'Error')
  t.equal(reasonsOf(Object.defineProperty(new Error('x'), 'cause', broken)), 'x')
  t.strictSame([new Error('x', { cause: null }), new Error('x', { cause: 'text' }), new Error('x', { cause: 0 })].map(reasonsOf), ['x', 'x: text', 'x: a value of type number'])
})

t.test('without a logger, a process warning has the error of a line, or else its details', async t => {
  for (const [details, detail] of [[{ err: new Error('no answer'), clientId: 'a' }, /^Error: no answer/], [{ clientId: 'a', count: 2 }, /^\{ clientId: 'a', count: 2 \}$/]] as const) {
    const own: Error[] = []
    // Node.js has warnings of its own.
    const note = (warning: Error) => { if (warning.name === 'SSEManager') own.push(warning) }
    process.on('warning', note)
    for (const level of ['debug', 'info', 'warn'] as const) warnings[level](details, level === 'warn' ? 'Something is wrong' : 'dropped')
    await until(() => own.length > 0)
    process.off('warning', note)
    t.match(own, [{ name: 'SSEManager', message: 'Something is wrong', detail }])
  }
})

t.test('a line that the logger refuses is logged again with a copy of its error, which says what can be read of it', async t => {
  const { log, lines } = recorder()
  // As pino fails: for the prototype of an error, never for a plain object.
  const refusing: Log = {
    ...log,
    warn (details, message) {
      const { err } = details as { err?: object }
      if (err !== undefined && err !== null && Object.getPrototypeOf(err) !== null) throw new Error('frozen')
      log.warn(details, message)
    }
  }
  const unreadable = Object.create(Error.prototype, Object.fromEntries(['name', 'message', 'stack'].map(key => [key, { get () { throw new Error() } }])))
  const stack = /^TypeError: y\n/
  const cases: [err: unknown, copy: unknown][] = [
    [Object.freeze(Object.assign(new TypeError('y'), { code: 'E' })), { name: 'TypeError', message: 'y', stack }],
    [unreadable, { name: '[unreadable]', message: '[unreadable]', stack: '[unreadable]' }],
    [{ message: 'no error' }, { name: 'undefined', message: '[object Object]', stack: 'undefined' }],
    ['text', { name: 'undefined', message: 'text', stack: 'undefined' }]
  ]
  for (const [err, copy] of cases) {
    safeLog(refusing).warn({ clientId: 'a', err }, 'Refused')
    const [level, details, message] = lines.pop()!
    t.match([level, message, details.clientId], ['warn', 'Refused', 'a'])
    t.match({ ...details.err }, copy)
    t.strictSame(Object.keys(details.err), ['name', 'message', 'stack'])
    t.equal(Object.getPrototypeOf(details.err), null, 'pino would log the name of its constructor as the type')
  }
  safeLog(refusing).warn({ err: null }, 'Accepted')
  t.strictSame(lines, [['warn', { err: null }, 'Accepted']])
})

t.test('occurrences of a group are one line: the details of the first, and the number of all', async t => {
  const clock = testClock()
  const { log, lines } = recorder()
  // A timer of this package must not keep the process alive.
  let refs = 0
  const after: Clock['after'] = (ms, run) => {
    refs++
    return Object.assign(clock.clock.after(ms, run), { unref: () => { refs-- } })
  }
  const warning = new GroupedWarning(log, { ...clock.clock, after }, 'Cut')
  const told = () => lines.splice(0).map(([level, details, message]) => [level, message, details])
  warning.flush()
  t.strictSame(told(), [], 'nothing waits')
  warning.add({ clientId: 'a' })
  warning.add({ clientId: 'b' })
  await clock.advance(4_999)
  warning.add({ clientId: 'c' })
  t.strictSame(told(), [])
  await clock.advance(1)
  t.strictSame(told(), [['warn', 'Cut', { clientId: 'a', count: 3 }]])
  await clock.advance(60_000)
  warning.add({ clientId: 'd' })
  await clock.advance(2_000)
  warning.flush()
  t.strictSame(told(), [['warn', 'Cut', { clientId: 'd', count: 1 }]], 'the next group begins anew')
  warning.add({ clientId: 'e' })
  await clock.advance(4_999)
  t.strictSame(told(), [], 'a flush has stopped the timer of its group')
  await clock.advance(1)
  warning.flush()
  t.strictSame(told(), [['warn', 'Cut', { clientId: 'e', count: 1 }]])
  t.equal(refs, 0)
})
