import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

const RESTART_MS = 4_000

interface Running {
  readonly process: ChildProcess
  /** Where it listens; null until it does. */
  port: number | null
}

/** The processes of the nodes, by name. One that ends is started again, a little later. */
export class Nodes {
  readonly #redisUrl: string
  readonly #running = new Map<string, Running>()
  readonly #restarts = new Set<NodeJS.Timeout>()
  #stopped = false

  constructor (redisUrl: string) {
    this.#redisUrl = redisUrl
  }

  /** Resolves once it listens. */
  async start (name: string): Promise<void> {
    const child = fork(fileURLToPath(new URL('node.ts', import.meta.url)), [name, this.#redisUrl], { execArgv: ['--import=@tapjs/typescript/import'] })
    const node: Running = { process: child, port: null }
    this.#running.set(name, node)
    child.once('exit', () => this.#ended(name))
    await new Promise<void>((resolve, reject) => {
      child.once('exit', code => reject(new Error(`Node ${name} ended with ${code} before it listened`)))
      child.on('message', (message: { port?: number, kill?: string }) => {
        if (message.kill !== undefined) this.kill(message.kill)
        if (message.port === undefined) return
        node.port = message.port
        resolve()
      })
    })
  }

  /** As when a machine loses power: nobody is told. */
  kill (name: string): void {
    this.#running.get(name)?.process.kill('SIGKILL')
  }

  /** Of the nodes that listen. */
  ports (): number[] {
    return Array.from(this.#running.values(), ({ port }) => port).filter(port => port !== null)
  }

  async stop (): Promise<void> {
    this.#stopped = true
    for (const timer of this.#restarts) clearTimeout(timer)
    await Promise.all(Array.from(this.#running.values(), async ({ process: child }) => {
      child.kill('SIGTERM')
      await once(child, 'exit')
    }))
  }

  #ended (name: string): void {
    this.#running.delete(name)
    if (this.#stopped) return
    const timer = setTimeout(() => {
      this.#restarts.delete(timer)
      this.start(name).catch((error: unknown) => { console.error(error) })
    }, RESTART_MS)
    this.#restarts.add(timer)
  }
}
