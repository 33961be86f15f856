import { AsyncLocalStorage } from 'node:async_hooks'
import t from 'tap'
import type { Connection } from '../../lib/log/redis/client.js'
import { OnDemandConnection } from '../../lib/log/redis/on-demand.js'
import { RunAppends, type RunAppend } from '../../lib/log/redis/run-appends.js'
import { turns } from '../helpers/wait.js'

// Which appends share a command, and how long it may take.

interface Sent { readonly keys: string[], readonly args: string[], readonly timeoutMs: number, readonly store: unknown }

const context = new AsyncLocalStorage<string>()

/** Appends on a connection that notes its commands. The state of each run is its key. */
function start (answer: (keys: string[]) => unknown[] = keys => keys) {
  const sent: Sent[] = []
  const connection: Connection = {
    send: async ([, , count, ...rest], timeoutMs) => {
      const keys = rest.slice(0, Number(count))
      sent.push({ keys, args: rest.slice(Number(count)), timeoutMs, store: context.getStore() })
      return answer(keys)
    },
    destroy () {}
  }
  return { sent, appends: new RunAppends(new OnDemandConnection(async () => connection), 1_000) }
}

const append = (n: number, ...texts: string[]): RunAppend => ({ key: `run ${n}`, generation: n, token: 't', after: 7, leaseMs: 60_000, texts })
const KB = 1024

t.test('the appends of one turn are sent together, in order, up to the limits of a command', async t => {
  const sizes: [what: string, characters: number[], commands: number[]][] = [
    ['one', [1], [1]],
    ['as many as a command has', new Array(128).fill(1), [128]],
    ['one more', new Array(129).fill(1), [128, 1]],
    ['three commands', new Array(300).fill(1), [128, 128, 44]],
    ['as large as a command is', [128 * KB, 128 * KB], [2]],
    ['a character more', [128 * KB, 128 * KB + 1], [1, 1]],
    ['one that is larger by itself', [10, 300 * KB, 10, 10], [1, 1, 2]],
    ['several of them', [300 * KB, 300 * KB], [1, 1]],
    ['the first is larger', [300 * KB, 1, 1], [1, 2]],
    ['renewals', [0, 0, 256 * KB, 0], [4]]
  ]
  for (const [what, characters, commands] of sizes) {
    const { sent, appends } = start()
    const answers = characters.map((size, n) => appends.add(append(n, ...size === 0 ? [] : ['x', 'x'.repeat(size - 1)])))
    t.equal(sent.length, 0, 'at the end of the turn')
    t.same(await Promise.all(answers), characters.map((_, n) => `run ${n}`), what)
    t.same(sent.map(({ keys }) => keys.length), commands, what)
    let at = 0
    for (const { keys, timeoutMs } of sent) {
      const size = characters.slice(at, at += keys.length).reduce((sum, size) => sum + size, 0)
      t.equal(timeoutMs, 1_000 + Math.ceil(size / 64), `${what}: longer for what a slow link carries`)
    }
  }
})

t.test('a command has each append whole, and is sent in no context', async t => {
  const { sent, appends } = start()
  const answers = context.run('request', () => [appends.add(append(1, 'a', 'é\n')), appends.add(append(2))])
  await Promise.all(answers)
  t.match(sent, [{ keys: ['run 1', 'run 2'], args: ['1', 't', '7', '60000', '2', 'a', 'é\n', '2', 't', '7', '60000', '0'], store: undefined }])
  await appends.add(append(3))
  t.same(sent.map(({ keys }) => keys.length), [2, 1], 'a later turn has a command of its own')
})

t.test('an append that fails is that of its run, and a command that fails those of its command', async t => {
  const refusal = new Error('WRONGTYPE x')
  const { appends } = start(keys => keys.map(key => key === 'run 1' ? refusal : null))
  t.same(await Promise.allSettled([0, 1, 2].map(n => appends.add(append(n)))), [{ status: 'fulfilled', value: null }, { status: 'rejected', reason: refusal }, { status: 'fulfilled', value: null }])
  const down = new Error('is down')
  let commands = 0
  const failing = start(keys => {
    if (++commands === 1) throw down
    return keys
  })
  const answers = await Promise.allSettled(Array.from({ length: 130 }, (_, n) => failing.appends.add(append(n))))
  t.same(answers.map(({ status }) => status), [...new Array(128).fill('rejected'), 'fulfilled', 'fulfilled'])
  t.same(await failing.appends.add(append(1)), 'run 1')
  await turns()
})
