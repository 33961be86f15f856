import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import ssePlugin, { type EventPriority, type SnapshotQuestion } from '../../lib/index.js'
import { restart, testLog, type TestLog } from '../../lib/testing/index.js'
import { Network } from '../helpers/network.js'
import { Published, Tab } from '../helpers/tab-model.js'
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
