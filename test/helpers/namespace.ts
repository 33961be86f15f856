import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Test } from 'tap'
import type { FastifyInstance } from 'fastify'

/** A network of its own, with one cable to this machine: pulled out, it drops everything without a word. */
export class Namespace {
  /** What starts a command in it. */
  readonly command: readonly string[]
  /** Where this machine is reached from it. */
  readonly address: string
  readonly #cable: string

  /** Returns null where no network namespace may be made; in CI that is an error. */
  static create (t: Test): Namespace | null {
    try {
      return new Namespace(t)
    } catch (error) {
      if (process.env['CI'] !== undefined) throw error
      t.comment('skipped: no network namespace may be made here')
      return null
    }
  }

  private constructor (t: Test) {
    const name = `sse${process.pid % 100_000}`
    // Another test can have a namespace at the same time.
    const network = `10.231.${process.pid % 256}`
    this.address = `${network}.1`
    this.#cable = `${name}a`
    this.command = ['ip', 'netns', 'exec', name]
    ip('netns', 'add', name)
    t.teardown(() => { ip('netns', 'del', name) })
    ip('link', 'add', this.#cable, 'type', 'veth', 'peer', 'name', `${name}b`)
    ip('link', 'set', `${name}b`, 'netns', name)
    ip('addr', 'add', `${this.address}/30`, 'dev', this.#cable)
    ip('-n', name, 'addr', 'add', `${network}.2/30`, 'dev', `${name}b`)
    ip('-n', name, 'link', 'set', `${name}b`, 'up')
    this.plugIn()
  }

  pullOut (): void {
    ip('link', 'set', this.#cable, 'down')
  }

  plugIn (): void {
    ip('link', 'set', this.#cable, 'up')
  }

  /** Makes an application reachable from the namespace, beside its own server. Returns its URL there. */
  async serve (t: Test, app: FastifyInstance): Promise<string> {
    const server: Server = createServer((request, response) => { app.routing(request, response) })
    server.listen(0, this.address)
    await once(server, 'listening')
    t.teardown(() => { server.closeAllConnections() })
    t.teardown(() => { server.close() })
    return `http://${this.address}:${(server.address() as AddressInfo).port}`
  }
}

function ip (...args: string[]): void {
  execFileSync('ip', args, { stdio: 'pipe' })
}
