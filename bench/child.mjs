import { spawn, spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'

const canPin = availableParallelism() >= 2 && spawnSync('taskset', ['-c', '0,1', 'true']).status === 0

/** Whether server and load have a core each. */
export const pinned = canPin

/** A Node process of this benchmark, which answers calls over its IPC channel. */
export class Child {
  #process
  #pending = new Map()
  #calls = 0
  #errors = ''
  #exited

  /** @param options.cpu the core it runs on, where there is `taskset`. */
  constructor (file, args, { cpu, nodeOptions = [], env = {} }) {
    const path = new URL(file, import.meta.url).pathname
    const command = [...(canPin ? ['taskset', '-c', String(cpu)] : []), process.execPath, ...nodeOptions, path, ...args]
    const child = this.#process = spawn(command[0], command.slice(1), {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      env: { ...process.env, NODE_ENV: 'production', ...env }
    })
    const name = [file, ...args].join(' ')
    child.stderr.on('data', data => { this.#errors = (this.#errors + data).slice(-2000) })
    child.on('message', ({ id, result, error }) => {
      const call = this.#pending.get(id)
      this.#pending.delete(id)
      if (error === undefined) call?.resolve(result)
      else call?.reject(new Error(`${name}: ${error}`))
    })
    // A call that crosses the child's end is answered by the exit.
    child.on('error', () => {})
    this.#exited = new Promise(resolve => {
      child.on('exit', (code, signal) => {
        for (const call of this.#pending.values()) call.reject(new Error(`${name} ended (${signal ?? code}) ${this.#errors}`))
        this.#pending.clear()
        resolve()
      })
    })
  }

  get alive () {
    return this.#process.exitCode === null && this.#process.signalCode === null
  }

  call (command, params = {}, timeoutMs = 60_000) {
    if (!this.alive) return Promise.reject(new Error(`The process has ended. ${this.#errors}`))
    return new Promise((resolve, reject) => {
      const id = ++this.#calls
      const timer = setTimeout(() => {
        this.#pending.delete(id)
        reject(new Error(`No answer to ${command} within ${timeoutMs} ms. ${this.#errors}`))
      }, timeoutMs)
      this.#pending.set(id, {
        resolve: result => { clearTimeout(timer); resolve(result) },
        reject: error => { clearTimeout(timer); reject(error) }
      })
      this.#process.send({ id, command, params }, () => {})
    })
  }

  async stop () {
    if (this.alive) this.#process.kill('SIGKILL')
    await this.#exited
  }
}

/** The child's side: one handler for each command. Ends with its parent. */
export function serve (handlers) {
  process.on('message', async ({ id, command, params }) => {
    let answer
    try {
      answer = { id, result: await handlers[command](params) }
    } catch (error) {
      answer = { id, error: String(error?.stack ?? error) }
    }
    if (process.connected) process.send(answer)
  })
  process.on('disconnect', () => process.exit())
}
