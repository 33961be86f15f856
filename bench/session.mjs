import { Child } from './child.mjs'
import { sleep } from './clock.mjs'
import { createCreditFile, Credit } from './credit.mjs'
import { watchMachine } from './machine.mjs'

const SERVER_CPU = 0
const LOAD_CPU = 1

/** One implementation in a server process, and a load process connected to it. */
export class Session {
  #server
  #load
  #file = createCreditFile()
  #credit = new Credit(this.#file.path, 'r')
  #address
  connections = 0

  constructor (implementation, { nodeOptions = [] } = {}) {
    this.implementation = implementation
    this.#server = new Child('./server.mjs', [implementation, this.#file.path], { cpu: SERVER_CPU, nodeOptions: ['--expose-gc', ...nodeOptions] })
    this.#load = new Child('./load.mjs', [this.#file.path], { cpu: LOAD_CPU })
  }

  async connect (connections, { topics = false } = {}) {
    this.#address ??= await this.#server.call('describe')
    const { port, path, topicPath } = this.#address
    const result = await this.#load.call('connect', { port, path: topics ? topicPath : path, connections, distinct: topics }, 90_000)
    this.connections = connections
    return result
  }

  async disconnect () {
    await this.#load.call('close')
    this.connections = 0
    await this.#until(async () => (await this.server('usage')).connections === 0)
  }

  server (command, params, timeoutMs) {
    return this.#server.call(command, params, timeoutMs)
  }

  load (command, params, timeoutMs) {
    return this.#load.call(command, params, timeoutMs)
  }

  get publisherPort () {
    return this.#address.publisherPort
  }

  /** Events received since the last reset. */
  get received () {
    return this.#credit.count
  }

  /** Runs a server command and returns what both sides saw of it. Throws when an event was lost, repeated or misrouted. */
  async measure (command, params, timeoutMs) {
    await this.#load.call('reset')
    const foreign = watchMachine()
    const server = await this.#server.call(command, params, timeoutMs)
    const load = await this.#load.call('result')
    return judge(server, load, foreign(server.cpu + load.cpu))
  }

  async stop () {
    await Promise.all([this.#server.stop(), this.#load.stop()])
    this.#credit.close()
    this.#file.remove()
  }

  async #until (condition, timeoutMs = 10_000) {
    const deadline = Date.now() + timeoutMs
    while (!await condition()) {
      if (Date.now() > deadline) throw new Error(`${this.implementation}: waited in vain for its connections to close`)
      await sleep(20)
    }
  }
}

/** The figures of one measurement; latencies in milliseconds, CPU in microseconds for each delivered event. */
export function judge (server, load, foreign) {
  const { faults, received } = load
  const wrong = Object.entries(faults).filter(([, count]) => count > 0).map(([fault, count]) => `${count} ${fault}`)
  if (server.complete && received !== server.deliveries) wrong.push(`${received} instead of ${server.deliveries} received`)
  if (server.complete === false) wrong.push(`only ${received} of ${server.deliveries} received in time`)
  if (wrong.length > 0) throw new Error(`events went wrong: ${wrong.join(', ')}`)
  return {
    ...server,
    cpu: server.cpu / server.deliveries,
    rate: server.deliveries / server.seconds,
    p50: load.p50 / 1000,
    p99: load.p99 / 1000,
    serverBusy: server.cpu / (server.seconds * 1e6),
    loadBusy: load.busy,
    foreign
  }
}
