import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import type { AddressInfo } from 'node:net'
import fc from 'fast-check'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { createClient } from '../../lib/client/index.js'
import ssePlugin, { type EventPriority } from '../../lib/index.js'
import { restart, testLog, type TestLog } from '../../lib/testing/index.js'
import { Network } from '../helpers/network.js'
import { until } from '../helpers/wait.js'

// A client on real sockets, whose connections are cut at random: each event arrives once and in order, and what is lost is told by one
// gap. SEED=… runs a seed again.

const SEED = Number(process.env['SEED'] ?? randomInt(2 ** 31))
const RUNS = Number(process.env['RUNS'] ?? 8)

type Step =
  | { do: 'publish', count: number, priority: EventPriority, letters: number }
  | { do: 'cutAfter', bytes: number }
  | { do: 'restart', node: number, crash: boolean }
  | { do: 'reset' | 'hold' | 'release' | 'switch' | 'reconnect' | 'interrupt' | 'max-age' | 'arrive' | 'trim' | 'wipe' }

const weighted = (weight: number, arbitrary: fc.Arbitrary<Step>) => ({ weight, arbitrary })
const simple = (weight: number, name: Exclude<Step['do'], 'publish' | 'cutAfter' | 'restart'>) => weighted(weight, fc.constant<Step>({ do: name }))
const steps = fc.array(fc.oneof(
  weighted(10, fc.record({ do: fc.constant('publish' as const), count: fc.constantFrom(1, 2, 5, 40), priority: fc.constantFrom<EventPriority>(0, 1, 1, 1, 2, 3), letters: fc.constantFrom(0, 10, 1000) })),
  weighted(4, fc.record({ do: fc.constant('cutAfter' as const), bytes: fc.constantFrom(1, 30, 200, 500, 3000, 20_000) })),
  weighted(2, fc.record({ do: fc.constant('restart' as const), node: fc.nat(1), crash: fc.boolean() })),
  simple(3, 'reset'), simple(2, 'hold'), simple(2, 'release'), simple(2, 'switch'), simple(2, 'reconnect'), simple(2, 'interrupt'), simple(1, 'max-age'), simple(3, 'arrive'), simple(1, 'trim'), simple(1, 'wipe')
), { minLength: 4, maxLength: 14 })

const portOf = (app: FastifyInstance) => (app.server.address() as AddressInfo).port

async function build (log: TestLog): Promise<FastifyInstance> {
  const app = Fastify()
  await app.register(ssePlugin, { broker: log.broker(), path: '/sse', retryMs: 100, drainMs: 100, maxQueuedBytes: 1 << 28, outboxBytes: 16_384 })
  return app
}

/** What a client has received, compared with what was published. */
class Received {
  /** The number of the last event of each priority. */
  readonly last = [0, 0, 0, 0]
  /** Events of each priority that were skipped at the last gap. */
  gaps = 0
  #isAfterGap = false
  #skipped = [false, false, false, false]

  event ({ priority, n, text }: { priority: number, n: number, text: string }): void {
    assert.match(text, /^é*$/)
    const expected = this.last[priority]! + 1
    assert.ok(n >= expected, `event ${n} of priority ${priority} twice, or late: ${expected} was expected`)
    if (n > expected) {
      assert.ok(this.#isAfterGap && !this.#skipped[priority], `event ${expected} of priority ${priority} is missing: ${n} came`)
    }
    this.#skipped[priority] = true
    this.last[priority] = n
  }

  gap (): void {
    this.gaps++
    this.#isAfterGap = true
    this.#skipped = [false, false, false, false]
  }
}

async function play (t: Test, all: readonly Step[], met: Record<string, number>): Promise<void> {
  const log = testLog()
  const nodes = [await build(log), await build(log)]
  for (const node of nodes) await node.listen({ host: '127.0.0.1', port: 0 })
  const network = await Network.start(t, portOf(nodes[0]!))
  const client = createClient<any>(`${network.url}/sse`, { maxRetryMs: 150 })
  const published = [0, 0, 0, 0]
  const received = new Received()
  const faults: unknown[] = []
  let losses = 0
  const note = (check: () => void): void => { try { check() } catch (error) { faults.push(error) } }
  let interrupts = false
  client.on('n', data => {
    note(() => received.event(data))
    if (interrupts) client.reconnect()
    interrupts = false
  })
  client.onGap(() => note(() => received.gap()))
  client.onState(state => { if (state.name === 'waiting') met[state.reason] = (met[state.reason] ?? 0) + 1 })

  const publish = async (count: number, priority: EventPriority, letters: number): Promise<void> => {
    await Promise.all(Array.from({ length: count }, () => nodes[0]!.sse.broadcastEvent({ event: 'n', data: { priority, n: ++published[priority]!, text: 'é'.repeat(letters) }, priority })))
  }
  const arrive = async (): Promise<void> => {
    network.release()
    await until(() => faults.length > 0 || published.every((n, priority) => received.last[priority] === n), undefined, `all events: published ${published}, received ${received.last}, ${client.state.name}`)
  }
  const apply = async (step: Step): Promise<void> => {
    met[step.do] = (met[step.do] ?? 0) + 1
    switch (step.do) {
      case 'publish': return await publish(step.count, step.priority, step.letters)
      case 'cutAfter': return network.cutAfter(step.bytes)
      case 'switch': network.target = portOf(nodes[1 - nodes.findIndex(node => portOf(node) === network.target)]!); return network.reset()
      case 'restart': nodes[step.node] = await restart(nodes[step.node]!, () => build(log), { crash: step.crash }); return
      case 'reset': case 'hold': case 'release': return network[step.do]()
      case 'reconnect': return client.reconnect()
      // In the middle of what has arrived.
      case 'interrupt': interrupts = true; return
      case 'max-age': for (const node of nodes) for (const connection of node.sse.connections()) connection.close('max-age'); return
      case 'arrive': return await arrive()
      case 'trim': case 'wipe':
        await arrive()
        network.down()
        await publish(2, 1, 0)
        losses++
        log[step.do]()
        network.up()
        // What is published before the client is told belongs to the gap.
        await until(() => received.gaps === losses || faults.length > 0, undefined, 'the gap')
        await publish(1, 1, 0)
        await arrive()
    }
  }
  try {
    await until(() => client.state.name === 'open')
    for (const step of all) await apply(step)
    for (const priority of [0, 1, 2, 3] as const) await publish(1, priority, 0)
    await arrive()
    if (faults.length > 0) throw faults[0]
    assert.equal(received.gaps, losses, 'one gap for each loss')
  } finally {
    client.close()
    network.reset()
    await Promise.all(nodes.map(node => node.close()))
  }
}

t.test('each event once and in order, however often the connection is cut', { timeout: 300_000 }, async t => {
  t.comment(`SEED=${SEED}`)
  const met: Record<string, number> = {}
  const result = await fc.check(fc.asyncProperty(steps, async all => await play(t, all, met)), { seed: SEED, numRuns: RUNS, endOnFailure: true, includeErrorInReport: true })
  t.notOk(result.failed, fc.defaultReportMessage(result) ?? `${result.numRuns} runs`)
  t.comment(JSON.stringify(met))
})
