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
  /** Environment variables, added to those of this process and `PORT`. Default: none. */
  env?: Readonly<Record<string, string>>
  /** Arguments of Node.js, such as `--import`. Default: those of this process. */
  execArgv?: readonly string[]
  /** Time to start, in milliseconds. Default 30,000. */
  timeoutMs?: number
  /** The test that the process belongs to. The process is killed when the test ends. Absent: call `kill()` or `stop()`. */
  test?: TestContext
}

/** Number of characters of the output that an error shows. */
const SHOWN_LETTERS = 2_000

/** A node of an application in a separate process, which a test can kill, stop, freeze and restart. `startNode()` creates it. */
export class TestNode {
  /** Port of the node, which the script reads from `PORT`. A restarted process has the same port. */
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

  /** Id of the process; null if it is not running. */
  get pid (): number | null {
    return this.isRunning ? this.#child!.pid! : null
  }

  /** Whether the process is running. */
  get isRunning (): boolean {
    return this.#child !== null && this.#child.exitCode === null && this.#child.signalCode === null
  }

  /** Standard output and standard error of all processes of this node so far. */
  get output (): string {
    return this.#output
  }

  /**
   * Starts the process again on the same port, after it has ended. Resolves when it is ready. Does nothing while the process is running.
   * @throws SSE_ERR_TEST_NODE
   */
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
      // `close` comes after `exit`, when all output is received.
      child.once('close', (code, signal) => fail(`has ended with ${signal ?? `code ${code}`} before it called process.send()`))
      child.once('error', error => fail(`did not start: ${error.message}`))
      child.once('close', () => clearTimeout(timer)).once('message', () => clearTimeout(timer))
    })
  }

  /** Kills the process (SIGKILL). Clients receive no `sse:close`. Resolves when the process has ended. */
  async kill (): Promise<void> {
    await this.#end('SIGKILL')
  }

  /** Terminates the process (SIGTERM). Resolves with its exit code; null if a signal has ended it. */
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
    // A frozen process handles no other signal until it continues.
    child.kill('SIGCONT')
    await exit
  }

  /**
   * Freezes the process (SIGSTOP): its sockets stay open, and it does not respond. Not available on Windows.
   * @throws SSE_ERR_TEST_NODE when the process is not running
   */
  freeze (): void {
    this.#signal('SIGSTOP')
  }

  /** Continues a frozen process (SIGCONT). @throws SSE_ERR_TEST_NODE when the process is not running */
  thaw (): void {
    this.#signal('SIGCONT')
  }

  #signal (signal: NodeJS.Signals): void {
    if (!this.isRunning) throw new TestNodeError('does not run: it has been killed, or has ended by itself')
    this.#child!.kill(signal)
  }
}

/**
 * Starts a script in a separate process. The script must listen on 127.0.0.1 at the port in `PORT`, and then call `process.send()` with
 * any message. Resolves at that message. The process ends when the current process ends, even if that is killed. It does not keep the
 * current process alive.
 * @throws SSE_ERR_TEST_NODE, with the output of the process
 * @example
 * ```ts
 * const node = await startNode(new URL('./node.js', import.meta.url), { test: t })
 * const stream = await openStream(node.url, '/events', { test: t })
 * await node.kill()
 * ```
 */
export async function startNode (script: string | URL, options: StartNodeOptions = {}): Promise<TestNode> {
  const node = new TestNode(script instanceof URL ? fileURLToPath(script) : script, await freePort(), options)
  whenTestEnds(options.test, () => node.kill())
  await node.start()
  return node
}
