import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Test } from 'tap'
import ts from 'typescript'
import { tie } from './child.js'
import { ROOT } from './readme.js'
import { freePort } from '../../lib/testing/free-port.js'
import { until } from './wait.js'

/** What a node is told at its start: see `node-main.ts`. */
export interface NodeSettings {
  redis: string
  port: number
  drainMs: number
}

/** What nodes run, as JavaScript in a directory of the test's: one that is restarted is back in a moment, as in production. */
export function buildNode (t: Test): string {
  const directory = t.testdir({ 'package.json': '{ "type": "module" }' })
  const main = 'test/helpers/node-main.ts'
  const lib = readdirSync(join(ROOT, 'lib'), { recursive: true }).map(file => join('lib', String(file)))
  for (const file of [...lib.filter(file => file.endsWith('.ts')), main]) {
    const { outputText } = ts.transpileModule(readFileSync(join(ROOT, file), 'utf8'), { compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext } })
    mkdirSync(dirname(join(directory, file)), { recursive: true })
    writeFileSync(join(directory, file.replace(/ts$/, 'js')), outputText)
  }
  return join(directory, main.replace(/ts$/, 'js'))
}

/** One node of an application with many: a process of its own, which can be restarted and killed. */
export class NodeProcess {
  readonly settings: NodeSettings
  readonly #main: string
  #process: ChildProcess | null = null

  private constructor (main: string, settings: NodeSettings) {
    this.#main = main
    this.settings = settings
  }

  /**
   * Starts one on a free port, which it keeps when it is started again. It is killed when the test ends.
   * @param main made by `buildNode`.
   */
  static async start (t: Test, main: string, redis: string, drainMs = 1_000): Promise<NodeProcess> {
    const node = new NodeProcess(main, { redis, drainMs, port: await freePort() })
    t.teardown(() => node.kill())
    await node.run()
    return node
  }

  get url (): string {
    return `http://127.0.0.1:${this.settings.port}`
  }

  /** Runs it, also again; resolves once it listens. */
  async run (): Promise<void> {
    const child = this.#process = tie(fork(this.#main, [JSON.stringify(this.settings)], { execArgv: [] }))
    let listening = false
    child.once('message', () => { listening = true })
    await until(() => listening || child.exitCode !== null, 60_000, 'the node listens')
    if (!listening) throw new Error(`The node has ended with code ${child.exitCode}`)
  }

  get running (): boolean {
    return this.#process !== null && this.#process.exitCode === null && this.#process.signalCode === null
  }

  /** As an operator does: SIGTERM, and it leaves in its own time. Resolves with its exit code. */
  async leave (): Promise<number | null> {
    await this.#end('SIGTERM')
    return this.#process!.exitCode
  }

  async kill (): Promise<void> {
    await this.#end('SIGKILL')
  }

  async #end (signal: NodeJS.Signals): Promise<void> {
    if (!this.running) return
    const exit = once(this.#process!, 'exit')
    this.#process!.kill(signal)
    await exit
  }
}
