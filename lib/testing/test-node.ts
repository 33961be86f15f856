import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { TestNode as TestNodeError } from '../errors.js'
import { whenTestEnds, type TestContext } from './cleanup.js'
import { freePort } from './free-port.js'
import { tie } from './tie.js'

/** Options of `startNode()`, all optional. */
export interface StartNodeOptions {
  /** Arguments of the script. Default: none. */
  args?: readonly string[]
  /** Environment variables beside those of this process and `PORT`. */
  env?: Readonly<Record<string, string>>
  /** Arguments of Node, such as `--import` of a loader. Default: those of this process. */
  execArgv?: readonly string[]
  /** Time to start, in milliseconds. Default 30,000. */
  timeoutMs?: number
  /** The test that the process belongs to: it is killed when the test ends. */
  test?: TestContext
}

/** The last letters of what a process has written that an error shows. */
const SHOWN_LETTERS = 2_000

/** One node of an application, as a process of its own that a test can kill, freeze and restart. Made by `startNode()`. */
export class TestNode {
  /** The port that the script finds as `PORT`. The process keeps it when it is restarted. */
  readonly port: number
  readonly #script: string
  readonly #options: StartNodeOptions
  #child: ChildProcess | null = null
  #output = ''

  /** @internal */
  constructor (script: string, port: number, options: StartNodeOptions) {
    this.#script = script
    this.port = port
    this.#options = options
  }

  /** Base URL of the node. */
  get url (): string {
    return `http://127.0.0.1:${this.port}`
  }

  /** Id of the process; null when it does not run. */
  get pid (): number | null {
    return this.isRunning ? this.#child!.pid! : null
  }

  get isRunning (): boolean {
    return this.#child !== null && this.#child.exitCode === null && this.#child.signalCode === null
  }

  /** What the process has written to its standard output and standard error. */
  get output (): string {
    return this.#output
  }

  /** Starts the process again, at the same port, once it has ended. Resolves when it is ready. */
  async start (): Promise<void> {
    if (this.isRunning) return
    const { args = [], env = {}, execArgv = process.execArgv, timeoutMs = 30_000 } = this.#options
    const child = this.#child = fork(this.#script, args, { execArgv: [...execArgv], env: { ...process.env, ...env, PORT: String(this.port) }, stdio: ['ignore', 'pipe', 'pipe', 'ipc'] })
    for (const pipe of [child.stdout, child.stderr]) {
      pipe!.setEncoding('utf8').on('data', (text: string) => { this.#output += text })
      ;(pipe as unknown as Socket).unref()
    }
    tie(child)
    try {
      await this.#ready(child, timeoutMs)
    } catch (error) {
      await this.kill()
      throw error
    } finally {
      child.unref()
      child.channel?.unref()
    }
  }

  #ready (child: ChildProcess, timeoutMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const fail = (what: string) => reject(new TestNodeError(`${what}; it has written: ${this.#output.slice(-SHOWN_LETTERS)}`))
      const timer = setTimeout(() => fail(`has not called process.send() within ${timeoutMs} ms`), timeoutMs)
      child.once('message', () => resolve())
      // After `exit`, when all that it has written is here.
      child.once('close', (code, signal) => fail(`has ended with ${signal ?? `code ${code}`} before it called process.send()`))
      child.once('error', error => fail(`did not start: ${error.message}`))
      child.once('close', () => clearTimeout(timer)).once('message', () => clearTimeout(timer))
    })
  }

  /** Kills the process (SIGKILL): nothing is closed, and no client receives `sse:close`. Resolves when it has ended. */
  async kill (): Promise<void> {
    await this.#end('SIGKILL')
  }

  /** Asks the process to end (SIGTERM). Resolves with its exit code, null when a signal ended it. */
  async stop (): Promise<number | null> {
    await this.#end('SIGTERM')
    return this.#child?.exitCode ?? null
  }

  async #end (signal: NodeJS.Signals): Promise<void> {
    if (!this.isRunning) return
    const child = this.#child!
    child.ref()
    const exit = once(child, 'exit')
    child.kill(signal)
    // A stopped process acts on no other signal before it goes on.
    child.kill('SIGCONT')
    await exit
  }

  /** Stops the process where it stands (SIGSTOP): its sockets stay open and nothing answers. Not on Windows. */
  freeze (): void {
    this.#signal('SIGSTOP')
  }

  /** Lets a frozen process go on (SIGCONT). */
  thaw (): void {
    this.#signal('SIGCONT')
  }

  #signal (signal: NodeJS.Signals): void {
    if (!this.isRunning) throw new TestNodeError('does not run: it has been killed, or has ended by itself')
    this.#child!.kill(signal)
  }
}

/**
 * Starts a script as a process of its own and resolves when the script calls `process.send()`, with any message. The script listens on
 * 127.0.0.1 at the port in `PORT`. The process ends with this one, however this one ends, and does not keep it alive.
 * @throws SSE_ERR_TEST_NODE, with what the process has written
 */
export async function startNode (script: string | URL, options: StartNodeOptions = {}): Promise<TestNode> {
  const node = new TestNode(script instanceof URL ? fileURLToPath(script) : script, await freePort(), options)
  whenTestEnds(options.test, () => node.kill())
  await node.start()
  return node
}
