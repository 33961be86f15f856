import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { tie } from '../../lib/testing/tie.js'
import { PAGES } from './pages.js'
import { freePort } from '../../lib/testing/free-port.js'
import { until } from './wait.js'

export type ReverseProxyKind = 'nginx' | 'haproxy'

// Debian keeps both where only root's PATH leads.
const env = { ...process.env, PATH: `${process.env['PATH']}${delimiter}/usr/sbin` }

/** Why tests with this proxy are left out here; false when they run. With CI set they do, and fail without it. */
export function withoutProxy (kind: ReverseProxyKind): string | false {
  return process.env['CI'] === undefined && spawnSync(kind, ['-v'], { env }).error !== undefined && `${kind} is not installed`
}

/** The configuration of a proxy in docs/: the fence of this language that is named `nodes`. */
function configurationOf (kind: ReverseProxyKind): string {
  return PAGES.map(({ text }) => new RegExp(`^\`\`\`${kind} nodes\\n(.*?)^\`\`\`$`, 'ms').exec(text)?.[1]).find(text => text !== undefined)!
}

/** The nginx or haproxy of docs/ in front of two nodes, or with a configuration of the test's own, whose `PORT` is a free port. */
export class ReverseProxy {
  readonly port: number
  readonly directory: string
  readonly #process: ChildProcess

  private constructor (port: number, directory: string, process: ChildProcess) {
    this.port = port
    this.directory = directory
    this.#process = process
  }

  get url (): string {
    return `http://127.0.0.1:${this.port}`
  }

  static async start (kind: ReverseProxyKind, nodePorts: readonly [number, number], configuration = configurationOf(kind)): Promise<ReverseProxy> {
    const port = await freePort()
    const directory = mkdtempSync(join(tmpdir(), `sse-${kind}-`))
    const text = configuration
      .replaceAll('PORT', String(port))
      .replaceAll('127.0.0.1:3001', `127.0.0.1:${nodePorts[0]}`)
      .replaceAll('127.0.0.1:3002', `127.0.0.1:${nodePorts[1]}`)
      .replace(/^( *listen|\s*bind) .*?:?80\b/m, `$1 127.0.0.1:${port}`)
    const child = tie(kind === 'nginx' ? startNginx(text, directory) : startHaproxy(text, directory))
    const proxy = new ReverseProxy(port, directory, child)
    await until(() => accepts(port) || child.exitCode !== null, undefined, `${kind} listens`)
    if (child.exitCode !== null) throw new Error(`${kind} has ended: ${proxy.read('error.log')}`)
    return proxy
  }

  /** A file of its directory. */
  read (name: string): string {
    return readFileSync(join(this.directory, name), 'utf8')
  }

  async stop (): Promise<void> {
    const exit = once(this.#process, 'exit')
    if (this.#process.exitCode === null && this.#process.kill('SIGTERM')) await exit
    rmSync(this.directory, { recursive: true, force: true })
  }
}

function startNginx (http: string, directory: string): ChildProcess {
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(name => `${name}_temp_path ${directory}/${name};`).join(' ')
  writeFileSync(join(directory, 'nginx.conf'), `
daemon off; master_process off; pid ${directory}/nginx.pid; error_log ${directory}/error.log;
${process.getuid?.() === 0 ? 'user root;' : ''}
events { worker_connections 8192; }
http {
  ${temporary}
  log_format brief '$status $upstream_status $request_method $uri';
  access_log ${directory}/access.log brief;
  ${http}
}`)
  return spawn('nginx', ['-p', directory, '-e', join(directory, 'error.log'), '-c', join(directory, 'nginx.conf')], { env, stdio: 'ignore' })
}

function startHaproxy (text: string, directory: string): ChildProcess {
  writeFileSync(join(directory, 'haproxy.cfg'), text)
  return spawn('haproxy', ['-db', '-f', join(directory, 'haproxy.cfg')], { env, cwd: directory, stdio: 'ignore' })
}

function accepts (port: number): Promise<boolean> {
  return new Promise(resolve => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false)).once('connect', () => socket.destroy())
  })
}
