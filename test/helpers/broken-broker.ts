import type { Test } from 'tap'
import type { Message, OutgoingMessage } from '../../lib/events/message.js'
import type { Broker, GapReason, History, Page, Published, PublishingLog, ReadRequest, Sink } from '../../lib/log/broker.js'
import { brokerContract, type BrokerContractOptions } from '../../lib/testing/index.js'

/** A broker that passes all calls on to another. Subclasses break one promise each. */
export class BrokenBroker implements Broker {
  readonly inner: Broker
  /** Number of the node on its log, from 0. */
  readonly node: number
  declare readonly openForPublishing?: NonNullable<Broker['openForPublishing']>

  constructor (inner: Broker, node: number) {
    this.inner = inner
    this.node = node
    if (inner.openForPublishing !== undefined) this.openForPublishing = (sink, history, now) => this.openPublisher(sink, history, now)
  }

  get shared (): boolean { return this.inner.shared }
  get epoch (): string { return this.inner.epoch }
  get position (): number { return this.inner.position }
  async open (sink: Sink, history: History, now?: () => number): Promise<void> { await this.inner.open(sink, history, now) }
  async openPublisher (sink: Pick<Sink, 'state'>, history: History, now?: () => number): Promise<PublishingLog> { return await this.inner.openForPublishing!(sink, history, now) }
  async publish (message: OutgoingMessage): Promise<Published> { return await this.inner.publish(message) }
  async read (request: ReadRequest): Promise<Page> { return await this.inner.read(request) }
  async claim (key: string, ttlMs: number): Promise<boolean> { return await this.inner.claim(key, ttlMs) }
  async close (): Promise<void> { await this.inner.close() }
}

/** A test of the contract, the error with which it fails, and the broker that makes it fail. */
export type Fault = [check: string, error: RegExp, broken: new (inner: Broker, node: number) => Broker]

/** Runs one test of the contract. Returns its error; null if it passes. */
type RunCheck = (check: string, Broken: new (inner: Broker, node: number) => Broker) => Promise<Error | null>

export function contractOf (createInner: (log: string, node: number) => Broker, options: BrokerContractOptions): { names: string[], run: RunCheck } {
  const checksOf = (create: (log: string, node: number) => Broker) => {
    const checks = new Map<string, () => Promise<void>>()
    brokerContract((name, run) => checks.set(name.slice('b: '.length), run), 'b', create, options)
    return checks
  }
  return {
    names: [...checksOf(createInner).keys()],
    run: async (check, Broken) => await checksOf((log, node) => new Broken(createInner(log, node), node)).get(check)!().then(() => null, error => error)
  }
}

/** Errors of waits. */
const DEADLINE = /there are|reports|caught up|leaves|again|is rejected/

/** Lets deadlines pass with each look at the time. */
function hurry (t: Test): void {
  let now = Date.now()
  t.intercept(Date, 'now', { value: () => (now += 200), configurable: true })
}

export async function assertFaults (t: Test, { names, run }: ReturnType<typeof contractOf>, faults: Fault[]): Promise<void> {
  await t.test('each test passes with a broker that keeps its promises', async t => {
    for (const name of names) t.equal(await run(name, BrokenBroker), null, name)
  })
  for (const [name, error, Broken] of faults) {
    await t.test(`${name}: ${error.source}`, async t => {
      if (DEADLINE.test(error.source)) hurry(t)
      t.match((await run(name, Broken))?.message, error)
    })
  }
  t.strictSame(names.filter(name => !faults.some(([check]) => check === name)), [], 'each test has a broker that fails it')
}

/** A broker whose sink is another. */
export function withSink (wrap: (sink: Sink, broker: BrokenBroker) => Partial<Sink>) {
  return class extends BrokenBroker {
    override async open (sink: Sink, history: History, now?: () => number) {
      await super.open({ deliver: message => sink.deliver(message), gap: (...args) => sink.gap(...args), state: (...args) => sink.state(...args), ...wrap(sink, this) }, history, now)
    }
  }
}

/** A broker that delivers other messages. */
export const delivering = (change: (message: Message, broker: BrokenBroker) => Message) => withSink((sink, broker) => ({ deliver: message => sink.deliver(change(message, broker)) }))

/** A broker with another history. */
export function withHistory (change: (history: History) => History) {
  return class extends BrokenBroker {
    override async open (sink: Sink, history: History, now?: () => number) { await super.open(sink, change(history), now) }
  }
}

/** A broker that publishes other messages. */
export function publishing (change: (message: OutgoingMessage) => OutgoingMessage) {
  return class extends BrokenBroker {
    override async publish (message: OutgoingMessage) { return await super.publish(change(message)) }
  }
}

/** A broker that reads other pages. */
export function reading (change: (page: Page, request: ReadRequest, broker: BrokenBroker) => Page | Promise<Page>) {
  return class extends BrokenBroker {
    override async read (request: ReadRequest) { return await change(await super.read(request), request, this) }
  }
}

export const withoutGap = (wanted: GapReason) => reading(page => page.gap === wanted ? { messages: [], next: page.next } : page)

/** A broker that answers this call after `close()` and in outages. */
export function answeringAfterClose (call: 'publish' | 'read' | 'claim') {
  return class extends BrokenBroker {
    override async publish (message: OutgoingMessage) { return await super.publish(message).catch(error => { if (call !== 'publish') throw error; return { seq: 1, delivered: 0 } }) }
    override async read (request: ReadRequest) { return await super.read(request).catch(error => { if (call !== 'read') throw error; return { messages: [], next: 0 } }) }
    override async claim (key: string, ttlMs: number) { return await super.claim(key, ttlMs).catch(error => { if (call !== 'claim') throw error; return true }) }
  }
}
