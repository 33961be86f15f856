import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

const RESTART_MS = 4_000

interface Running {
  readonly process: ChildProcess
  /** Port of the node; null until it listens. */
  port: number | null
}

/** Supervises the processes of the nodes, by name. A process that ends is started again after four seconds. */
export class Nodes {
  readonly #redisUrl: string
  readonly #running = new Map<string, Running>()
  readonly #restarts = new Set<NodeJS.Timeout>()
  #stopped = false

  constructor (redisUrl: string) {
    this.#redisUrl = redisUrl
  }

  /** Starts a node. Resolves when it listens. */
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
        this.#announce()
        resolve()
      })
    })
  }

  /** Kills a node with SIGKILL, as a crash: clients and other nodes are not notified. */
  kill (name: string): void {
    this.#running.get(name)?.process.kill('SIGKILL')
  }

  /** Returns the ports of the nodes that listen. */
  ports (): number[] {
    return Array.from(this.#running.values(), ({ port }) => port).filter(port => port !== null)
  }

  /** Ends all nodes. Resolves when their processes have ended. */
  async stop (): Promise<void> {
    this.#stopped = true
    for (const timer of this.#restarts) clearTimeout(timer)
    await Promise.all(Array.from(this.#running.values(), async ({ process: child }) => {
      child.kill('SIGTERM')
      await once(child, 'exit')
    }))
  }

  /** Tells each node which ones are running. */
  #announce (): void {
    const running = [...this.#running.keys()]
    for (const { process: child, port } of this.#running.values()) {
      // A node that has just ended cannot be told.
      if (port !== null && child.connected) child.send({ running }, () => {})
    }
  }

  #ended (name: string): void {
    this.#running.delete(name)
    if (this.#stopped) return
    this.#announce()
    const timer = setTimeout(() => {
      this.#restarts.delete(timer)
      this.start(name).catch((error: unknown) => { if (!this.#stopped) console.error(error) })
    }, RESTART_MS)
    this.#restarts.add(timer)
  }
}
