import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sleep } from './clock.mjs'

export const installed = spawnSync('redis-server', ['--version']).status === 0

/** A redis-server of this benchmark's own, which keeps nothing on disk. */
export class RedisServer {
  #process
  #directory

  static async start () {
    const port = await freePort()
    const directory = mkdtempSync(join(tmpdir(), 'sse-bench-redis-'))
    const child = spawn('redis-server', ['--port', String(port), '--bind', '127.0.0.1', '--dir', directory, '--save', ''], { stdio: 'ignore' })
    for (let i = 0; i < 200 && !await accepts(port); i++) await sleep(20)
    return new RedisServer(port, child, directory)
  }

  constructor (port, child, directory) {
    this.url = `redis://127.0.0.1:${port}`
    this.#process = child
    this.#directory = directory
  }

  /** CPU time that it has used, in microseconds. */
  get cpu () {
    const fields = readFileSync(`/proc/${this.#process.pid}/stat`, 'latin1').split(') ')[1].split(' ')
    return (Number(fields[11]) + Number(fields[12])) * 10_000
  }

  /** Resolves with the number of commands that clients have sent. */
  async calls () {
    const { port } = new URL(this.url)
    const socket = connect(Number(port), '127.0.0.1')
    socket.setEncoding('latin1').write('INFO commandstats\r\nQUIT\r\n')
    let text = ''
    for await (const part of socket) text += part
    // What a script calls is counted too, but only the script is sent.
    return [...text.matchAll(/cmdstat_(?:evalsha|xread|xadd|publish):calls=(\d+)/g)].reduce((sum, [line, calls]) => sum + Number(calls), 0)
  }

  async stop () {
    const exited = new Promise(resolve => this.#process.once('exit', resolve))
    this.#process.kill('SIGKILL')
    await exited
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

async function freePort () {
  const server = createServer()
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address()
  await new Promise(resolve => server.close(resolve))
  return port
}

function accepts (port) {
  return new Promise(resolve => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => { socket.destroy(); resolve(true) }).once('error', () => resolve(false))
  })
}
