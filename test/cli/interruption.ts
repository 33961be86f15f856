import { spawn } from 'node:child_process'
import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import type { Finding } from '../../lib/cli/finding.js'
import { tie } from '../../lib/testing/tie.js'
import { script, stream, type Answer } from '../client/clients.js'
import { until } from '../helpers/wait.js'
import { run } from './run.js'

// Ctrl-C: what was found until then is printed, the connection is closed, and nothing is left.

const PROGRAM = fileURLToPath(new URL('../helpers/cli-process.ts', import.meta.url))

/** Runs a command in a process of its own, and interrupts it when `isReady`. */
async function interrupted (t: Test, args: readonly string[], isReady: (out: string) => boolean): Promise<{ code: number | null, signal: string | null, out: string }> {
  const child = tie(spawn(process.execPath, ['--import=@tapjs/typescript/import', PROGRAM, ...args]))
  t.teardown(() => child.kill('SIGKILL'))
  let out = ''
  child.stdout.on('data', text => { out += text })
  const exit = once(child, 'close')
  await until(() => isReady(out), undefined, 'the command is where it is interrupted')
  child.kill('SIGINT')
  const [code, signal] = await exit
  return { code, signal, out }
}

/** Whether the client of the newest request has disconnected. */
const isLeft = async (requests: readonly IncomingMessage[]): Promise<void> => { await until(() => requests.at(-1)!.socket.destroyed, undefined, 'the connection is closed') }

t.test('while the stream is watched', async t => {
  const { url, requests } = await script(t, stream(': stream keep-alive=15000\n\nid: 1\ndata: x\n\n'))
  const { code, signal, out } = await interrupted(t, ['doctor', url], () => requests.length === 1)
  t.same([code, signal], [130, null])
  t.match(out, /^ok {7}status {8}The server answers 200/m)
  t.match(out, /^skipped {2}interruption {2}Interrupted: the checks without a line above were not made\.$/m)
  t.match(out, /\n1 warning, \d skipped\.\n$/)
  t.notMatch(out, /^\w+ +resume/m)
  await isLeft(requests)
  t.equal(requests.length, 1)
})

t.test('while nothing is answered', async t => {
  const { url, requests } = await script(t, () => {})
  const { code, out } = await interrupted(t, ['doctor', url, '--json', '--timeout', '600'], () => requests.length === 1)
  t.equal(code, 130)
  t.match(JSON.parse(out), { url, level: 'skipped', findings: [{ check: 'interruption', level: 'skipped' }], measured: null })
  await isLeft(requests)
})

t.test('tail has nothing to finish', async t => {
  const { url, requests } = await script(t, stream('data: x\n\n'))
  const { code, out } = await interrupted(t, ['tail', url], out => out !== '')
  t.same([code, out], [0, '-  message  x\n'])
  await isLeft(requests)
})

t.test('at each request, nothing is said about what was not seen', async t => {
  const compressed: Answer = response => { response.writeHead(200, { 'content-type': 'text/event-stream', 'content-encoding': 'gzip' }).flushHeaders() }
  const body: Answer = response => { response.writeHead(500, { 'content-type': 'application/json' }).write('{') }
  const cases: [name: string, answers: Answer[]][] = [
    ['the body of an answer that is no stream', [body]],
    ['the second stream, without compression', [compressed, stream('')]],
    ['the stream of a client that returns', [stream('id: 1\ndata: x\n\n'), stream(': open\n\n')]],
    ['the request of another origin', [stream('data: x\n\n'), () => {}]]
  ]
  for (const [name, answers] of cases) {
    const count = answers.length
    const { url, requests } = await script(t, ...answers)
    const interruption = new AbortController()
    const running = run(['doctor', url, '--json', '--watch', '0.3', '--timeout', name.includes('compression') ? '0.3' : '30', '--origin', 'https://app.example'], { signal: interruption.signal })
    await until(() => requests.length === count, undefined, name)
    interruption.abort()
    const { code, out } = await running
    t.equal(code, 130, name)
    const findings: Finding[] = JSON.parse(out).findings
    t.equal(findings.at(-1)!.check, 'interruption')
    t.same(findings.filter(({ check, level }) => ['delivery', 'idle', 'resume', 'cors'].includes(check) && level === 'ok'), [])
    await isLeft(requests)
    t.equal(requests.length, count)
  }
})
