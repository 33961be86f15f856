import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import type { SSEClient } from '../../lib/client/index.js'
import { shareTabs } from '../../lib/client/tabs.js'
import ssePlugin, { type EventPriority, type SnapshotQuestion } from '../../lib/index.js'
import { restart, testLog, type TestLog } from '../../lib/testing/index.js'
import { Network } from '../helpers/network.js'
import { browse, type TabPage } from '../helpers/tab-page.js'
import { until } from '../helpers/wait.js'

// Tabs of one process and a real server. Whatever happens to them: each tab has every event of its subscriptions once and in order, or one
// gap, and in the end one of them holds the only connection. SEED=… runs a seed again.

const SEED = Number(process.env['SEED'] ?? randomInt(2 ** 31))
const RUNS = Number(process.env['RUNS'] ?? 100)
const TOPICS = ['a', 'b', 'c']
const MAX_TABS = 5

type TabStep = 'close' | 'crash' | 'hang' | 'resume' | 'freeze' | 'hide' | 'show' | 'reconnect' | 'subscribe' | 'replace'
type Step =
  | { do: 'open', topics: string[], pauses: boolean }
  | { do: TabStep, tab: number, topics: string[] }
  | { do: 'publish', count: number, topic: string, priority: EventPriority }
  | { do: 'wait', ms: number }
  | { do: 'reset' | 'down' | 'up' | 'hold' | 'release' | 'restart' | 'max-age' | 'trim' | 'wipe' }

const topics = fc.subarray(TOPICS, { minLength: 1 })
const onTab = (weight: number, name: TabStep) => ({ weight, arbitrary: fc.record({ do: fc.constant(name), tab: fc.nat(MAX_TABS - 1), topics }) })
const simple = (weight: number, name: 'reset' | 'down' | 'up' | 'hold' | 'release' | 'restart' | 'max-age' | 'trim' | 'wipe') => ({ weight, arbitrary: fc.constant<Step>({ do: name }) })
const steps = fc.array(fc.oneof<fc.MaybeWeightedArbitrary<Step>[]>(
  { weight: 10, arbitrary: fc.record({ do: fc.constant('open' as const), topics, pauses: fc.boolean() }) },
  { weight: 14, arbitrary: fc.record({ do: fc.constant('publish' as const), count: fc.constantFrom(1, 1, 2, 20), topic: fc.constantFrom(...TOPICS), priority: fc.constantFrom<EventPriority>(0, 1, 1, 1, 2, 3) }) },
  { weight: 8, arbitrary: fc.record({ do: fc.constant('wait' as const), ms: fc.constantFrom(0, 1, 5, 20, 60) }) },
  onTab(4, 'close'), onTab(3, 'crash'), onTab(3, 'hang'), onTab(3, 'resume'), onTab(2, 'freeze'), onTab(2, 'hide'), onTab(2, 'show'), onTab(3, 'reconnect'), onTab(6, 'subscribe'), onTab(2, 'replace'),
  simple(3, 'reset'), simple(2, 'down'), simple(3, 'up'), simple(1, 'hold'), simple(2, 'release'), simple(1, 'restart'), simple(2, 'max-age'), simple(1, 'trim'), simple(1, 'wipe')
), { minLength: 8, maxLength: 40 })

const portOf = (app: FastifyInstance) => (app.server.address() as AddressInfo).port

/** What was published: each event has a number of its own. */
class Published {
  readonly events: { readonly topic: string, readonly priority: EventPriority }[] = []

  add (topic: string, priority: EventPriority): number {
    return this.events.push({ topic, priority }) - 1
  }

  /** The number of the last event of a topic; -1 without one. */
  last (topic: string): number {
    return this.events.findLastIndex(event => event.topic === topic)
  }
}

/** A tab, and what its client has received. */
class Tab {
  readonly page: TabPage
  readonly client: SSEClient<any>
  readonly faults: string[] = []
  gaps = 0
  /** What the page shows: the last number of each topic, whether from a state or an event. */
  readonly shown = new Map<string, number>()
  readonly #published: Published
  readonly #seen = new Set<number>()
  /** The newest event of each priority and topic. */
  readonly #newest = new Map<string, number>()
  /** For each subscription the first number that must arrive; null until the client was open. */
  readonly #from = new Map<string, number | null>()
  #isAfterGap = false
  readonly log: string[] = []

  constructor (page: TabPage, url: string, subscriptions: string[], pauseWhenHidden: boolean, published: Published, losses: () => number) {
    this.page = page
    this.#published = published
    this.client = page.run(() => shareTabs(url, { user: 'ada', subscriptions, pauseWhenHidden, fetch: page.fetch, maxRetryMs: 150, timeoutMs: 5_000 }))
    this.#follow(subscriptions, null)
    const { client } = this
    client.on('n', n => this.#event(n))
    client.on('state', state => {
      this.#isAfterGap = false
      this.log.push(`state ${JSON.stringify(state)}`)
      for (const [topic, n] of Object.entries(state)) {
        this.shown.set(topic, n as number)
        if (this.#from.has(topic)) this.#from.set(topic, Math.max(this.#from.get(topic) ?? 0, n as number + 1))
      }
    })
    client.onGap(gap => {
      this.log.push(`gap ${JSON.stringify(gap)}`)
      // A gap whose stream ends before the next event is told again. Tabs that connect at the same time share it.
      if (!this.#isAfterGap) this.gaps++
      this.#isAfterGap = true
      if (this.gaps > losses()) this.faults.push(`${this.gaps} gaps, ${losses()} losses`)
      for (const topic of this.#from.keys()) this.#from.set(topic, published.events.length)
    })
    client.onState(state => {
      this.log.push(state.name)
      if (state.name !== 'open') return
      for (const [topic, from] of this.#from) this.#from.set(topic, from ?? published.events.length)
    })
  }

  #follow (subscriptions: readonly string[], from: number | null): void {
    for (const topic of this.#from.keys()) if (!subscriptions.includes(topic)) this.#from.delete(topic)
    for (const topic of subscriptions) if (!this.#from.has(topic)) this.#from.set(topic, from)
  }

  subscribe (subscriptions: string[]): void {
    this.log.push(`subscribe ${subscriptions}`)
    // A client that was never open begins with the newest event.
    this.#follow(subscriptions, [...this.#from.values()].includes(null) ? null : this.#published.events.length)
    this.page.run(() => this.client.setSubscriptions(subscriptions))
  }

  #event (n: number): void {
    this.#isAfterGap = false
    this.log.push(`${n}`)
    const { topic, priority } = this.#published.events[n]!
    if (this.#seen.has(n)) this.faults.push(`${n} of ${topic} twice`)
    this.#seen.add(n)
    this.shown.set(topic, Math.max(this.shown.get(topic) ?? -1, n))
    if (!this.#from.has(topic)) return
    const lane = `${topic} ${priority}`
    if (n < (this.#newest.get(lane) ?? -1)) this.faults.push(`${n} of ${lane} after ${this.#newest.get(lane)}`)
    this.#newest.set(lane, n)
  }

  /** What is missing. */
  missing (): string[] {
    return this.#published.events.flatMap(({ topic }, n) => {
      const from = this.#from.get(topic)
      return from !== undefined && from !== null && n >= from && !this.#seen.has(n) ? [`${n} of ${topic}`] : []
    })
  }

  get subscriptions (): string[] {
    return [...this.#from.keys()]
  }
}

async function play (t: Test, openPage: () => TabPage, all: readonly Step[], withState: boolean, met: Record<string, number>): Promise<void> {
  const log: TestLog = testLog()
  const published = new Published()
  const build = async (): Promise<FastifyInstance> => {
    const app = Fastify()
    await app.register(ssePlugin, {
      broker: log.broker(),
      path: '/own',
      clientSubscriptions: true,
      authorizeSubscription: () => true,
      keepAliveIntervalMs: 500,
      retryMs: 100,
      drainMs: 100,
      ...(withState && { snapshot: { load: ({ subscriptions }: SnapshotQuestion) => ({ event: 'state', data: Object.fromEntries([...subscriptions].map(topic => [topic, published.last(topic)])) }) } })
    })
    return app
  }
  let app = await build()
  await app.listen({ host: '127.0.0.1', port: 0 })
  const network = await Network.start(t, portOf(app))
  let losses = 0
  const tabs: Tab[] = []
  const everyone: Tab[] = []
  const publish = async (count: number, topic: string, priority: EventPriority): Promise<void> => {
    for (let i = 0; i < count; i++) await app.sse.broadcastEvent({ event: 'n', data: published.add(topic, priority), priority }, { subscriptionIds: [topic] })
  }
  const leave = (tab: Tab): void => { tabs.splice(tabs.indexOf(tab), 1) }
  const apply = async (step: Step): Promise<void> => {
    met[step.do] = (met[step.do] ?? 0) + 1
    switch (step.do) {
      case 'open': {
        if (tabs.length === MAX_TABS) return
        const tab = new Tab(openPage(), `${network.url}/own`, step.topics, step.pauses, published, () => losses)
        tabs.push(tab)
        everyone.push(tab)
        return
      }
      case 'publish': return await publish(step.count, step.topic, step.priority)
      case 'wait': await sleep(step.ms); return
      case 'reset': case 'down': case 'up': case 'hold': case 'release': return network[step.do]()
      case 'restart': app = await restart(app, build, { crash: true }); return
      case 'max-age': for (const connection of app.sse.connections()) connection.close('max-age'); return
      case 'trim': case 'wipe':
        losses++
        log[step.do]()
    }
    if (!('tab' in step)) return
    const tab = tabs[step.tab]
    if (tab === undefined) return
    tab.log.push(step.do)
    const { page, client } = tab
    switch (step.do) {
      case 'close':
        page.run(() => client.close())
        return leave(tab)
      case 'crash':
        page.crash()
        return leave(tab)
      case 'freeze':
        page.run(() => page.say('freeze'))
        return page.hang()
      case 'resume':
        page.resume()
        return page.run(() => page.say('resume'))
      case 'hang': return page.hang()
      case 'hide': return page.run(() => page.show('hidden'))
      case 'show': return page.run(() => page.show('visible'))
      case 'reconnect': return page.run(() => client.reconnect())
      case 'subscribe': return tab.subscribe(step.topics)
      // Signs out and in again: another client in the same page.
      case 'replace': {
        page.run(() => client.close())
        const next = new Tab(page, `${network.url}/own`, step.topics, false, published, () => losses)
        tabs[step.tab] = next
        everyone.push(next)
      }
    }
  }
  const fault = (): string | undefined => everyone.flatMap(tab => tab.faults)[0]
  try {
    for (const step of all) await apply(step)
    network.release()
    network.up()
    for (const { page } of tabs) {
      page.resume()
      page.run(() => page.say('resume'))
      page.run(() => page.show('visible'))
    }
    await until(() => fault() !== undefined || tabs.every(({ client }) => client.state.name === 'open'), 15_000, 'all tabs are open')
    for (const topic of TOPICS) for (const priority of [3, 1, 0] as const) await publish(1, topic, priority)
    await until(() => fault() !== undefined || tabs.every(tab => tab.missing().length === 0), 15_000, 'all events')
    assert.equal(fault(), undefined)
    const isShown = ({ subscriptions, shown }: Tab): boolean => subscriptions.every(topic => shown.get(topic) === published.last(topic))
    if (withState) await until(() => tabs.every(isShown), 15_000, 'the newest state')
    const union = String([...new Set(tabs.flatMap(tab => tab.subscriptions))].sort())
    const held = (): string[][] => [...app.sse.connections()].map(({ subscriptions }) => [...subscriptions].sort())
    await until(() => held().length === Math.min(tabs.length, 1) && String(held()) === union, 15_000, `one connection with ${union}`)
  } catch (error) {
    const report = everyone.map((tab, i) => `${i}${tabs.includes(tab) ? '' : ' (gone)'} ${tab.client.state.name} [${tab.subscriptions}] missing [${tab.missing()}] ${tab.faults} | ${tab.log.join(' ')}`)
    throw new Error(`${(error as Error).message}\n${app.sse.connectionCount} connections\n${report.join('\n')}`)
  } finally {
    for (const { page, client } of everyone) page.run(() => client.close())
    network.reset()
    await app.close()
  }
}

t.test('each tab has its events once and in order, or a gap, and one tab holds the connection', { timeout: 600_000 }, async t => {
  t.comment(`SEED=${SEED}`)
  const openPage = browse(t)
  const met: Record<string, number> = {}
  const result = await fc.check(fc.asyncProperty(steps, fc.boolean(), async (all, withState) => await play(t, openPage, all, withState, met)), { seed: SEED, numRuns: RUNS, endOnFailure: true, includeErrorInReport: true })
  t.notOk(result.failed, fc.defaultReportMessage(result) ?? `${result.numRuns} runs`)
  t.comment(JSON.stringify(met))
})
