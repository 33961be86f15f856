import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import Fastify from 'fastify'
import t from 'tap'
import type { EventSource } from 'undici'
import ssePlugin from '../../lib/index.js'
import * as testing from '../../lib/testing/index.js'
import { TestStream } from '../../lib/testing/test-stream.js'
import { listen } from '../helpers/app.js'
import { transpile } from '../helpers/compiler.js'
import { buildNode } from '../helpers/node.js'
import { pageAt, ROOT, sampleOf, tableOf } from '../helpers/pages.js'
import type { Drivers } from '../helpers/samples.js'
import { until } from '../helpers/wait.js'

t.test('docs/guides/testing.md names all that the test kit has', async t => {
  const { text } = pageAt('docs/guides/testing.md')
  for (const name of Object.keys(testing)) t.ok(text.includes(`${name}(`), name)
  const listed = tableOf('Member of a stream').flatMap(([cell]) => Array.from(cell!.matchAll(/\w+(?=\(|`|,|$)/g), ([name]) => name))
  const members = Object.getOwnPropertyNames(TestStream.prototype).filter(name => !['constructor', 'isStream', 'comment'].includes(name))
  for (const name of members) t.ok(listed.includes(name), name)
})

/** The package as JavaScript, made once: tests of an application load it as such. */
const built = buildNode(t)

/** A directory with the application that the samples test. */
async function directoryOf (name: string): Promise<string> {
  const directory = join(dirname(built), '..', name)
  await mkdir(directory)
  await writeFile(join(directory, 'testing-app.js'), asFile('testing-app'))
  return directory
}

function asFile (name: string): string {
  return transpile(sampleOf(name)).replace(/"file:[^"]*\/lib\/([\w/.-]+)"/g, '"../../lib/$1"')
}

/** Runs a sample as a test file of its own, beside the application that it tests. Resolves with the exit code and the output. */
async function runAsTest (name: string, file: string, command: string, ...args: string[]): Promise<{ code: number, output: string }> {
  const directory = await directoryOf(name)
  await writeFile(join(directory, file), asFile(name))
  return await runIn(directory, command, ...args, file)
}

async function runIn (directory: string, command: string, ...args: string[]): Promise<{ code: number, output: string }> {
  // The loaders of this process are not those of an application's tests, nor are the results its own.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:TAP|NODE_OPTIONS|NODE_TEST|_TAPJS|VITEST)/.test(name)))
  const child = spawn(command, args, { cwd: directory, env, stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', text => { output += text })
  const [code] = await once(child, 'close') as [number]
  return { code, output }
}

export const DRIVERS: Drivers = {
  // Imported by the samples that follow.
  async 'testing-app' (t) {
    t.match(sampleOf('testing-app').text, /export async function build/)
  },

  async 'testing-node' (t) {
    const { code, output } = await runAsTest('testing-node', 'sample.test.js', process.execPath, '--test', '--test-reporter=tap')
    t.equal(code, 0, output)
    t.match(output, /# pass 2\n/)
  },

  async 'testing-clock' (t) {
    const { code, output } = await runAsTest('testing-clock', 'sample.test.js', process.execPath, '--test', '--test-reporter=tap')
    t.equal(code, 0, output)
    t.match(output, /# pass 2\n/)
  },

  async 'testing-tap' (t) {
    const { code, output } = await runAsTest('testing-tap', 'sample.js', process.execPath)
    t.equal(code, 0, output)
    t.match(output, /ok 2 - a client that was away/)
  },

  async 'testing-vitest' (t) {
    const { code, output } = await runAsTest('testing-vitest', 'sample.test.js', process.execPath, join(ROOT, 'node_modules/vitest/vitest.mjs'), 'run', '--root', '.', '--reporter=json', '--testTimeout=60000')
    t.equal(code, 0, output)
    t.match(output, /"numPassedTests":2/)
  },

  async 'event-source' (t) {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(ssePlugin, { requireAuthentication: true, authHandler: ({ cookies }) => cookies.session ?? null })
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    const url = await listen(app)
    const file = join(t.testdir({}), 'sample.mjs')
    const printed: unknown[] = []
    Object.assign(globalThis, { printSample: (text: unknown) => { printed.push(text) } })
    await writeFile(file, transpile(sampleOf('event-source'), ['source']).replace('http://127.0.0.1:3000', url).replace('console.log', 'printSample'))
    const { source } = await import(pathToFileURL(file).href) as { source: EventSource }
    t.teardown(() => source.close())
    await until(() => app.sse.getConnectionsByUser('ada').length === 1)
    await app.sse.broadcastData('x', 1)
    await until(() => printed.length === 1)
    t.same(printed, ['{"resource":"x","data":1}'])
  }
}

t.test('a test that fails before it closes its stream ends', async t => {
  const directory = await directoryOf('failing')
  for (const [how, options] of [['closed by the test', 'test: t'], ['closed by nobody', 'timeoutMs: 5_000']]) {
    for (const socket of [true, false]) {
      await writeFile(join(directory, 'fails.test.js'), `
        import assert from 'node:assert/strict'
        import { test } from 'node:test'
        import { openStream } from '../../lib/testing/index.js'
        import { build } from './testing-app.js'
        test('fails first', async t => {
          const app = await build()
          await openStream(app, '/orders', { user: 'ada', socket: ${socket}, ${options} })
          assert.equal(app.sse.connectionCount, 2)
        })`)
      const { code, output } = await runIn(directory, process.execPath, '--test-reporter=tap', 'fails.test.js')
      t.equal(code, 1, how)
      t.match(output, /# fail 1\n/, `${how}, ${socket ? 'by TCP' : 'in memory'}`)
    }
  }
})
