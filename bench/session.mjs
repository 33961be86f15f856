import { Child } from './child.mjs'
import { sleep } from './clock.mjs'
import { createCreditFile, Credit } from './credit.mjs'
import { watchMachine } from './machine.mjs'

const SERVER_CPU = 0
const LOAD_CPU = 1

/** One implementation in a server process or several, and a load process connected to them. Events are published in the first. */
export class Session {
  #servers
  #load
  #file = createCreditFile()
  #credit = new Credit(this.#file.path, 'r')
  #addresses
  #redis
  connections = 0

  /** @param options.redis what the servers share: its CPU time counts as theirs. */
  constructor (implementation, { nodeOptions = [], servers = 1, redis = null, env = {} } = {}) {
    this.implementation = implementation
    this.#redis = redis
    const options = { cpu: SERVER_CPU, nodeOptions: ['--expose-gc', ...nodeOptions], env: redis === null ? env : { ...env, BENCH_REDIS: redis.url } }
    this.#servers = Array.from({ length: servers }, () => new Child('./server.mjs', [implementation, this.#file.path], options))
    this.#load = new Child('./load.mjs', [this.#file.path], { cpu: LOAD_CPU })
  }

  /**
   * @param options.path which of the paths of the implementation; `{i}` in it becomes the number of the connection, other names those of `values`
   * @param options.distinct whether each connection gets events of its own, which carry its number
   * @param options.lastEventId the cursor that all of them return with
   * @param options.nodes which servers get the connections: all of them, or the last
   * @param options.streamsPerSession how many share a session of HTTP/2; 0 for HTTP/1.1
   */
  async connect (connections, { path = 'path', values = {}, nodes = 'all', ...options } = {}) {
    this.#addresses ??= await Promise.all(this.#servers.map(server => server.call('describe')))
    const ports = this.#addresses.map(({ port }) => port).slice(nodes === 'last' ? -1 : 0)
    const template = this.#addresses[0].paths[path]
    if (template === undefined) throw new Error('it cannot do that')
    const result = await this.#load.call('connect', { ports, path: template.replace(/\{(\w+)\}/g, (text, name) => values[name] ?? text), connections, ...options }, 90_000)
    this.connections = connections
    return result
  }

  async disconnect () {
    await this.#load.call('close')
    this.connections = 0
    await this.#until(async () => (await this.server('usage')).connections === 0, 10_000, () => 'waited in vain for its connections to close')
  }

  server (command, params, timeoutMs) {
    return this.#servers[0].call(command, params, timeoutMs)
  }

  load (command, params, timeoutMs) {
    return this.#load.call(command, params, timeoutMs)
  }

  get publisherPort () {
    return this.#addresses[0].publisherPort
  }

  /** Events received since the last reset. */
  get received () {
    return this.#credit.count
  }

  /** Waits until the load has received that many events since the last reset. */
  async receive (events) {
    await this.#until(() => this.received >= events, 60_000, () => `only ${this.received} of ${events} events were received`)
  }

  /** Throws when an event was lost, repeated or misrouted, or a stream has ended. */
  judge (load, due) {
    judge({ complete: true, deliveries: due, published: 0, seconds: 1, cpu: 0 }, load, 0)
  }

  /** Runs a server command and returns what both sides saw of it. Throws when an event was lost, repeated or misrouted. */
  async measure (command, params, timeoutMs) {
    await this.#load.call('reset')
    const foreign = watchMachine()
    const before = await this.#othersUsage()
    const server = await this.server(command, params, timeoutMs)
    const after = await this.#othersUsage()
    server.nodesCpu = server.cpu + after.nodesCpu - before.nodesCpu
    server.cpu = server.nodesCpu + after.redisCpu - before.redisCpu
    server.redisCalls = after.redisCalls - before.redisCalls
    const load = await this.#load.call('result')
    return judge(server, load, foreign(server.cpu + load.cpu))
  }

  /** CPU time, in microseconds, of what serves beside the first server, and the commands that Redis has run. */
  async #othersUsage () {
    const usages = await Promise.all(this.#servers.slice(1).map(server => server.call('usage')))
    return { nodesCpu: usages.reduce((sum, { cpu }) => sum + cpu, 0), redisCpu: this.#redis?.cpu ?? 0, redisCalls: await this.#redis?.calls() ?? 0 }
  }

  async stop () {
    await Promise.all([...this.#servers, this.#load].map(child => child.stop()))
    this.#credit.close()
    this.#file.remove()
  }

  async #until (condition, timeoutMs, describe) {
    const deadline = Date.now() + timeoutMs
    while (!await condition()) {
      if (Date.now() > deadline) throw new Error(`${this.implementation}: ${describe()}`)
      await sleep(2)
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
    nodesCpu: server.nodesCpu / server.deliveries,
    redisCalls: server.redisCalls / server.deliveries,
    events: server.published / server.seconds,
    rate: server.deliveries / server.seconds,
    p50: load.p50 / 1000,
    p99: load.p99 / 1000,
    serverBusy: server.cpu / (server.seconds * 1e6),
    loadBusy: load.busy,
    foreign
  }
}
