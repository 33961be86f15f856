import { mock } from 'node:test'
import t, { type Test } from 'tap'
import { DisconnectedUsers } from '../../lib/access/disconnected-users.js'
import { createCommands, type Commands } from '../../lib/cluster/commands.js'
import { ConnectionList } from '../../lib/cluster/connection-list.js'
import { ScatterGather } from '../../lib/cluster/scatter-gather.js'
import type { SSEConnection } from '../../lib/connections/connection.js'
import { BrokerUnavailable, SubscriptionForbidden } from '../../lib/errors.js'
import { Authorization } from '../../lib/subscriptions/authorization.js'
import { Registry } from '../../lib/subscriptions/registry.js'
import { recorder } from '../helpers/logged.js'
import { turns } from '../helpers/wait.js'

// The commands of one node, as a part of it: what it says to the others, when again, and what it makes of their answers.

const TIMEOUT_MS = 4_000

type Run = Partial<Record<keyof Commands, (...args: any[]) => unknown>>

/** Node `a`, to which `b` and `c` are known. Operations run as given, otherwise on an empty registry. */
function gatherer (run: Run = {}, settlesInMs = 0) {
  const registry = new Registry<SSEConnection>()
  const { log, lines } = recorder()
  const commands = createCommands(registry, new Authorization({ maxSubscriptionsPerConnection: 10 }, registry, log), new DisconnectedUsers(), new ConnectionList('a', registry), null as never)
  for (const [name, replacement] of Object.entries(run)) commands[name as keyof Commands].run = replacement as never
  const said: any[] = []
  const host = { shared: true, answerTimeoutMs: TIMEOUT_MS, others: () => ['b', 'c'], settlesInMs: () => settlesInMs, say: async (saying: object, way: string) => { said.push({ ...saying, way }) } }
  const scatter = new ScatterGather(commands, host, log)
  return {
    scatter,
    host,
    said,
    lines,
    answer: (from: string, answer: object, id = 1) => scatter.answered({ kind: 'answer', from, to: 'a', id, ...answer }),
    /** What another node commands, and what it is answered. */
    obey: async (from: string, id: number, operation: string, args: unknown[], to?: string[]) => {
      const before = said.length
      await scatter.obey({ kind: 'command', from, id, operation, args, ...(to && { to }) })
      return said.splice(before)[0]
    }
  }
}

/** Timers that only the test moves. */
function still (t: Test) {
  mock.timers.enable({ apis: ['setTimeout', 'setInterval'] })
  t.teardown(() => mock.timers.reset())
  return async (ms: number) => {
    mock.timers.tick(ms)
    await turns(2)
  }
}

const OPERATIONS: [name: keyof Commands, args: unknown[], way: string, repeated: string, answer: unknown, result: unknown][] = [
  ['closeConnection', ['c1', 'kicked'], 'logged', 'apart', true, true],
  ['disconnectUser', ['ada', 'kicked'], 'logged', 'apart', 2, 4],
  ['addSubscription', ['c1', 'room:1'], 'ordered', 'ordered', true, true],
  ['removeSubscription', ['c1', 'room:1'], 'ordered', 'ordered', false, false],
  ['revokeSubscription', ['ada', 'room:1', 'kicked'], 'logged', 'apart', 2, 4],
  ['reauthorize', ['ada', 'kicked'], 'logged', 'apart', 2, 4],
  ['presence', ['room:1'], 'apart', 'apart', { connections: 1, anonymous: 1, users: [], complete: true }, { connections: 2, anonymous: 2, users: [], complete: true }],
  ['connections', [{ limit: 1, after: null }], 'apart', 'apart', { connections: [], total: 3, until: null }, { connections: [], total: 6, until: null }]
]

t.test('each operation is sent its way, and again to those who have not answered, until it is decided or time is up', async t => {
  const pass = still(t)
  for (const [name, args, way, repeated, value, result] of OPERATIONS) {
    const { scatter, said, answer } = gatherer()
    const command = { kind: 'command', id: 1, operation: name, args }
    const asking = scatter.ask(name, ...args as never)
    await turns(2)
    t.strictSame(said.splice(0), [{ ...command, way }], name)
    await pass(TIMEOUT_MS / 4 - 1)
    t.strictSame(said, [], 'not yet')
    await pass(1)
    t.strictSame(said.splice(0), [{ ...command, to: ['b', 'c'], way: repeated }], `${name}, repeated`)
    scatter.again()
    t.strictSame(said.splice(0), way === 'logged' ? [{ ...command, way }] : [], `${name}, after the log has lost its continuity`)
    const ofOne = value === result
    answer('b', { value: ofOne ? null : value })
    await pass(TIMEOUT_MS / 4)
    t.strictSame(said.splice(0), [{ ...command, to: ['c'], way: repeated }])
    answer('c', { value })
    t.strictSame(await asking, { value: result, complete: true, unanswered: [] }, name)
    await pass(2 * TIMEOUT_MS)
    scatter.again()
    t.strictSame(said, [], 'nothing is said after the end')

    const silent = scatter.ask(name, ...args as never)
    await turns(2)
    answer('b', { value: ofOne ? null : value }, 2)
    await pass(TIMEOUT_MS - 1)
    t.equal(said.length, 4, 'once, and three times again')
    await pass(1)
    t.match(await silent, { complete: false, unanswered: ['c'] })
    said.length = 0
    await pass(2 * TIMEOUT_MS)
    t.strictSame(said, [])
  }
})

t.test('no timer is left of a command that is decided, and nothing of one that could not be sent', async t => {
  const timers = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length
  const before = timers()
  const { scatter, host, answer, said } = gatherer({}, 60_000)
  const asking = scatter.ask('closeConnection', 'c1', 'kicked')
  await turns(2)
  t.ok(timers() > before)
  answer('b', { value: true })
  await asking
  t.equal(timers(), before)
  host.say = async () => { throw new BrokerUnavailable('is away') }
  const codes = new Set<string>()
  for (let i = 0; i < 1_001; i++) await scatter.ask('closeConnection', 'c1', 'kicked').catch((error: { code: string }) => codes.add(error.code))
  t.strictSame(codes, new Set(['SSE_ERR_BROKER_UNAVAILABLE']))
  t.equal(timers(), before)
  said.length = 0
  scatter.again()
  t.strictSame(said, [])
})

t.test('while a node does not know the others yet, those that it knows do not decide', async t => {
  const pass = still(t)
  const { scatter, answer } = gatherer({}, 500)
  let result: unknown = null
  scatter.ask('disconnectUser', 'ada', 'kicked').then(outcome => { result = outcome })
  await turns(2)
  answer('b', { value: 1 })
  answer('c', { value: 1 })
  await pass(499)
  t.equal(result, null)
  answer('new', { value: 5 })
  await pass(1)
  t.strictSame(result, { value: 7, complete: true, unanswered: [] })
})

t.test('repeated commands that are being sent are at most 32: those that follow are repeated later', async t => {
  const pass = still(t)
  const { scatter, host, said } = gatherer()
  const sent: (() => void)[] = []
  const { say } = host
  host.say = async (saying, way) => {
    await say(saying, way)
    if ('to' in saying) await new Promise<void>(resolve => { sent.push(resolve) })
  }
  for (let i = 0; i < 40; i++) scatter.ask('disconnectUser', 'ada', 'kicked').catch(() => {})
  await turns(2)
  said.length = 0
  await pass(TIMEOUT_MS / 4)
  t.equal(said.length, 32)
  for (const resolve of sent.splice(0, 5)) resolve()
  await turns(2)
  await pass(TIMEOUT_MS / 4)
  t.equal(said.length, 37)
  scatter.close()
})

t.test('a command that could not be sent again, or that fails on this node first, leaves no rejection behind', async t => {
  const rejections: unknown[] = []
  const seen = (error: unknown) => { rejections.push(error) }
  process.on('unhandledRejection', seen)
  t.teardown(() => { process.off('unhandledRejection', seen) })
  let finish: () => void = () => {}
  const { scatter, host, answer } = gatherer({ reauthorize: () => new Promise<number>(resolve => { finish = () => resolve(1) }) })
  const pass = still(t)
  const asking = scatter.ask('disconnectUser', 'ada', 'kicked')
  await turns(2)
  host.say = async () => { throw new BrokerUnavailable('is away') }
  scatter.again()
  await pass(TIMEOUT_MS / 4)
  for (const from of ['b', 'c']) answer(from, { value: 1 })
  t.match(await asking, { value: 2 })
  // The application answers on this node only after the others were found unreachable.
  const unsent = t.rejects(scatter.ask('reauthorize', 'ada', 'kicked'), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
  await turns(5)
  finish()
  await unsent
  t.strictSame(rejections, [])
})

t.test('the error that a node has sent stays; only of one connection it decides at once', async t => {
  const forbidden = { error: { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN', message: 'no' } }
  const failed = { error: { code: 'SSE_ERR_COMMAND_FAILED', message: '' } }
  const unknown = { error: { code: 'SSE_ERR_OF_THE_FUTURE', message: 'later' } }
  const cases: [name: 'addSubscription' | 'reauthorize' | 'presence', b: object, c: object, expected: object | null, decided: boolean][] = [
    ['addSubscription', forbidden, failed, { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN', message: 'no' }, true],
    ['addSubscription', failed, forbidden, { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' }, false],
    ['addSubscription', failed, {}, { code: 'SSE_ERR_COMMAND_FAILED' }, false],
    ['addSubscription', { value: false }, { value: true }, null, false],
    ['reauthorize', forbidden, failed, { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' }, false],
    ['reauthorize', failed, forbidden, { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' }, false],
    ['reauthorize', unknown, failed, { code: 'SSE_ERR_COMMAND_FAILED' }, false],
    ['reauthorize', { value: 1.5 }, { value: 1 }, { code: 'SSE_ERR_COMMAND_FAILED' }, false],
    ['presence', forbidden, failed, null, false]
  ]
  for (const [name, b, c, expected, decided] of cases) {
    const { scatter, answer } = gatherer()
    let outcome: any = null
    scatter.ask(name, 'x', 'y' as never).then(result => { outcome = result }, error => { outcome = error })
    await turns(2)
    const what = `${name} ${JSON.stringify([b, c])}`
    answer('b', b)
    await turns(2)
    t.equal(outcome !== null, decided, what)
    answer('c', c)
    await turns(2)
    t.match(outcome, expected ?? {}, what)
    t.equal(outcome instanceof Error, expected !== null)
    if (name === 'presence') t.strictSame(outcome, { value: { connections: 0, anonymous: 0, users: [], complete: true }, complete: false, unanswered: ['b', 'c'] })
  }
})

t.test('an operation runs once for a command, of each node, and a question each time', async t => {
  const ran: string[] = []
  const run = (name: string, result: unknown) => (...args: unknown[]) => {
    ran.push([name, ...args].join(' '))
    return result
  }
  const { obey, lines } = gatherer({
    addSubscription: run('add', true),
    disconnectUser: run('disconnect', 3),
    presence: run('presence', { connections: 0, anonymous: 0, users: [], complete: true }),
    removeSubscription: () => { throw new SubscriptionForbidden('"x"', 'not yours') },
    closeConnection: async () => { throw new BrokerUnavailable('is away: secret') },
    reauthorize: async () => { throw new Error('secret') }
  })
  const add = (from: string, id: number) => obey(from, id, 'addSubscription', ['c1', 'x'], ['a'])
  t.strictSame(await add('b', 1), { kind: 'answer', to: 'b', id: 1, value: true, way: 'apart' })
  t.match(await add('b', 1), { value: true }, 'from memory')
  t.match(await add('c', 1), { to: 'c', value: true }, 'another node counts for itself')
  t.strictSame(ran.splice(0), ['add c1 x', 'add c1 x'])
  t.equal(await obey('b', 2, 'disconnectUser', ['ada', 'y'], ['a']), undefined, 'it comes in the log')
  t.match(await obey('b', 2, 'disconnectUser', ['ada', 'y']), { value: 3 })
  t.match(await obey('b', 2, 'disconnectUser', ['ada', 'y'], ['a']), { value: 3 })
  t.strictSame(ran.splice(0), ['disconnect ada y'])
  for (let i = 0; i < 2; i++) await obey('b', 3, 'presence', ['x'])
  t.strictSame(ran.splice(0), ['presence x', 'presence x'], 'of now')
  t.strictSame(lines, [])

  t.match(await obey('b', 4, 'removeSubscription', ['c1', 'x']), { error: { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' }, value: undefined })
  t.strictSame(lines, [], 'what the client did wrong is no fault of the node')
  t.match(await obey('b', 5, 'closeConnection', ['c1', 'x']), { error: { code: 'SSE_ERR_BROKER_UNAVAILABLE' } })
  t.match(await obey('b', 6, 'reauthorize', ['ada', 'x']), { error: { code: 'SSE_ERR_COMMAND_FAILED' } })
  t.match(await obey('b', 7, 'later', []), { error: { code: 'SSE_ERR_COMMAND_FAILED' } })
  t.match(await obey('b', 8, 'addSubscription', ['c1']), { error: { code: 'SSE_ERR_COMMAND_FAILED' } })
  t.match(lines, [['error', { operation: 'closeConnection' }], ['error', { operation: 'reauthorize' }], ['warn', { operation: 'later', nodeId: 'b' }], ['warn', { operation: 'addSubscription', nodeId: 'b' }]])

  // Answers are kept for the last ten thousand commands; questions do not push them out.
  await add('first', 1)
  for (let i = 1; i <= 9_998; i++) {
    await add('many', i)
    await obey('many', i, 'presence', ['x'])
  }
  await add('last', 1)
  ran.length = 0
  await add('first', 1)
  t.strictSame(ran, [], '10,000')
  await add('one more', 1)
  await add('one more', 1)
  t.strictSame(ran.splice(0), ['add c1 x'])
  await add('first', 1)
  t.strictSame(ran.splice(0), ['add c1 x'], 'the oldest is forgotten')
})
