import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tie } from '../../lib/testing/tie.js'
import { freePort } from '../../lib/testing/free-port.js'
import { until } from './wait.js'

/** Why tests with a real server are left out here; false when they run. With CI set they do, and fail without one. */
export const withoutRedis: string | false = process.env['CI'] === undefined && spawnSync('redis-server', ['--version']).error !== undefined && 'redis-server is not installed'

/** Asks as no client library would, so that a test does not depend on one. */
function ask (port: number, ...command: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1')
    let reply = ''
    socket.setEncoding('utf8').setTimeout(5_000, () => socket.destroy(new Error('No answer')))
    socket.on('error', reject).on('data', part => {
      reply += part
      if (/-ERR unknown command[^\n]*QUIT/i.test(reply)) socket.destroy()
    }).on('close', () => resolve(reply))
    // The server ends the connection after QUIT, so the reply is whole; a Sentinel does not know it, and says so behind the reply.
    socket.write([command, ['QUIT']].map(words => `*${words.length}\r\n${words.map(word => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join('')}`).join(''))
  })
}

/** A redis-server of the test's own, on a free port of the loopback interface. */
export class RedisServer {
  readonly port: number
  readonly directory: string
  #process: ChildProcess | null = null
  #args: readonly string[]

  private constructor (port: number, directory: string, args: readonly string[]) {
    this.port = port
    this.directory = directory
    this.#args = args
  }

  /** Starts one with these arguments; without any it keeps nothing on disk. */
  static async start (...args: string[]): Promise<RedisServer> {
    const server = await RedisServer.prepare(...args)
    await server.run()
    return server
  }

  /** A Sentinel that watches this one under the name `main`, and promotes a replica when it is gone for a second. */
  async watch (): Promise<RedisServer> {
    const sentinel = await RedisServer.prepare()
    const config = join(sentinel.directory, 'sentinel.conf')
    writeFileSync(config, `sentinel monitor main 127.0.0.1 ${this.port} 1\nsentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 10000\n`)
    sentinel.#args = [config, '--sentinel']
    await sentinel.run()
    return sentinel
  }

  /** One that does not run yet. */
  static async prepare (...args: string[]): Promise<RedisServer> {
    return new RedisServer(await freePort(), mkdtempSync(join(tmpdir(), 'sse-redis-')), args)
  }

  get url (): string {
    return `redis://127.0.0.1:${this.port}`
  }

  /** Runs it, also again; resolves once it answers. */
  async run (...args: string[]): Promise<void> {
    if (args.length > 0) this.#args = args
    const { port, directory } = this
    // A configuration comes first, and that of a Sentinel does not know of snapshots.
    const own = this.#args.includes('--sentinel') ? [...this.#args] : ['--save', '', ...this.#args]
    this.#process = tie(spawn('redis-server', [...own, '--port', String(port), '--bind', '127.0.0.1', '--dir', directory, '--loglevel', 'warning'], { stdio: 'ignore' }))
    await until(async () => /^(?:\+PONG|-NOAUTH)/.test(await this.ask('PING').catch(() => '')), undefined, 'redis-server answers')
  }

  /** The raw reply to one command. */
  ask (...command: string[]): Promise<string> {
    return ask(this.port, ...command)
  }

  /** A number of `INFO`. */
  async info (name: string): Promise<number> {
    return Number(new RegExp(`^${name}:(\\d+)`, 'm').exec(await this.ask('INFO', 'everything'))?.[1] ?? 0)
  }

  /** How often a command was called. */
  async calls (command: string): Promise<number> {
    return Number(new RegExp(`^cmdstat_${command}:calls=(\\d+)`, 'm').exec(await this.ask('INFO', 'commandstats'))?.[1] ?? 0)
  }

  signal (signal: NodeJS.Signals): void {
    this.#process!.kill(signal)
  }

  /** As when the machine loses power: nothing is saved, nobody is told. */
  async kill (): Promise<void> {
    const running = this.#process
    if (running === null || running.exitCode !== null || running.signalCode !== null) return
    running.kill('SIGKILL')
    await once(running, 'exit')
  }

  async stop (): Promise<void> {
    await this.kill()
    rmSync(this.directory, { recursive: true, force: true })
  }
}
