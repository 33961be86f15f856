import { spawn } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { once } from 'node:events'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { startNode, type TestContext } from '../../lib/testing/index.js'
import { tie } from '../../lib/testing/tie.js'
import { until } from '../helpers/wait.js'

// Processes of a test: how they start and end, and what they leave behind.

const MAIN = `
  const [what] = process.argv.slice(2)
  process.on('SIGTERM', () => process.exit(4))
  setInterval(() => {}, 1_000)
  console.log(JSON.stringify({ pid: process.pid, args: process.argv.slice(2), own: process.env.OWN, inherited: process.env.INHERITED, port: process.env.PORT, arguments: process.execArgv }))
  if (what === 'long') { console.log('x'.repeat(3_000) + 'end'); process.exit(0) }
  if (what === 'dies') process.kill(process.pid, 'SIGKILL')
  if (what === 'fails') { console.error('its error'); process.exit(3) }
  if (what !== 'silent') process.send('ready')
`

function script (t: Test): string {
  const file = join(t.testdir({ 'package.json': '{ "type": "module" }' }), 'main.js')
  writeFileSync(file, MAIN)
  return file
}

function isRunning (pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

const resources = () => process.getActiveResourcesInfo().filter(kind => ['Timeout', 'ProcessWrap', 'PipeWrap'].includes(kind)).length

t.test('the script gets arguments, environment and port; the process keeps neither timers nor this process alive', async t => {
  const main = script(t)
  Object.assign(process.env, { INHERITED: 'a', OWN: 'replaced' })
  const before = resources()
  for (const [options, args, own, execArgv] of [
    [{ execArgv: [] }, [], 'replaced', []],
    [{ execArgv: ['--no-warnings'], args: ['1', '2'], env: { OWN: 'b', PORT: '1' } }, ['1', '2'], 'b', ['--no-warnings']],
    [{}, [], 'replaced', process.execArgv]
  ] as const) {
    const node = await startNode(main, { test: t, timeoutMs: 60_000, ...options })
    t.match(JSON.parse(node.output), { pid: node.pid, args, own, inherited: 'a', port: String(node.port), arguments: execArgv })
    t.equal(node.url, `http://127.0.0.1:${node.port}`)
    t.equal(resources(), before)
    await node.kill()
    await until(() => resources() === before)
  }
})

t.test('kill(), stop(), freeze() and start()', async t => {
  const node = await startNode(script(t), { test: t, execArgv: [] })
  const { port, pid } = node
  await node.start()
  t.equal(node.pid, pid, 'it runs already')
  node.freeze()
  await until(() => readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') T '))
  node.thaw()
  await until(() => !readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') T '))
  node.freeze()
  t.equal(await node.stop(), 4, 'also one that is frozen')
  t.strictSame([node.isRunning, node.pid, isRunning(pid!)], [false, null, false])
  t.equal(await node.stop(), 4, 'again')
  await node.start()
  t.ok(node.isRunning && node.pid !== pid)
  t.equal(node.port, port)
  await node.kill()
  t.strictSame([node.isRunning, node.pid], [false, null])
  t.equal(await node.stop(), null, 'a signal has ended it')
  for (const call of [() => node.freeze(), () => node.thaw()]) t.throws(call, { code: 'SSE_ERR_TEST_NODE' })
  t.equal(node.output.trim().split('\n').length, 2, 'of both processes')
})

t.test('a process that does not start is killed, and the error says what it has written', async t => {
  const main = script(t)
  const before = resources()
  for (const [what, message] of [
    ['fails', /ended with code 3 before it called process\.send\(\); it has written: \{.*\}\nits error\n$/s],
    ['dies', /ended with SIGKILL before/],
    ['silent', /has not called process\.send\(\) within 1000 ms; it has written: /],
    ['long', /ended with code 0 before .* it has written: x{1996}end\n$/s]
  ] as const) {
    let pid = 0
    const error = await startNode(main, { test: t, execArgv: [], args: [what], timeoutMs: what === 'silent' ? 1_000 : 60_000 }).then(() => null, error => error)
    t.match(error, { code: 'SSE_ERR_TEST_NODE', message })
    pid = Number(/"pid":(\d+)/.exec(error.message)?.[1] ?? 0)
    if (pid > 0) t.notOk(isRunning(pid), what)
    await until(() => resources() === before, undefined, 'nothing is left')
  }
})

t.test('a process ends with its test', async t => {
  const ends: (() => unknown)[] = []
  const test = { after: (run: () => unknown) => { ends.push(run) } } as unknown as TestContext
  const node = await startNode(script(t), { test, execArgv: [] })
  t.equal(ends.length, 1)
  await ends[0]!()
  t.notOk(node.isRunning)
})

t.test('tie()', { skip: !existsSync('/proc/self/task') && 'needs /proc' }, async t => {
  await t.test('an ended child leaves nothing behind', async t => {
    const children = () => readFileSync(`/proc/${process.pid}/task/${process.pid}/children`, 'utf8')
    const [before, listeners, handles] = [children(), process.listenerCount('exit'), resources()]
    const child = tie(spawn('sleep', ['1000'], { stdio: 'ignore' }))
    t.equal(resources(), handles + 1, 'the guard does not keep this process alive')
    t.equal(process.listenerCount('exit'), listeners + 1)
    child.kill()
    await once(child, 'exit')
    t.equal(process.listenerCount('exit'), listeners)
    await until(() => children() === before, undefined, 'the guard ends')
    const missing = tie(spawn('/missing/program'))
    await once(missing, 'error').catch(() => {})
    t.equal(process.listenerCount('exit'), listeners, 'none for a child that did not start')
  })

  await t.test('a child is killed when its parent ends, however that ends', async t => {
    const parent = `
      import { spawn } from 'node:child_process'
      import { tie } from ${JSON.stringify(new URL('../../lib/testing/tie.js', import.meta.url).href)}
      const child = tie(spawn('/bin/sleep', ['1000'], { stdio: 'ignore' }))
      child.unref()
      console.log(child.pid)
      process.stdin.on('data', () => process.exit(0))`
    // Without a shell, only the listener of the parent can kill the child.
    const { PATH: path } = process.env
    for (const [end, PATH] of [['SIGKILL', path], ['SIGINT', path], ['exit', '/missing']] as const) {
      const child = tie(spawn(process.execPath, [...process.execArgv, '--input-type=module', '-e', parent], { stdio: ['pipe', 'pipe', 'inherit'], detached: true, env: { ...process.env, PATH } }))
      const [text] = await once(child.stdout.setEncoding('utf8'), 'data') as [string]
      const pid = Number(text)
      t.ok(isRunning(pid))
      if (end === 'exit') child.stdin.write('exit')
      // As from a terminal: to the whole group. The guard is in its own.
      else process.kill(end === 'SIGINT' ? -child.pid! : child.pid!, end)
      await until(() => !isRunning(pid), 20_000, end)
    }
  })
})
