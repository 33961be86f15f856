import { existsSync } from 'node:fs'
import { chromium, type Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { Agent, EventSource } from 'undici'
import { SSEManager } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { buildNode, startApplicationNode } from '../helpers/node.js'
import { ReverseProxy, withoutProxy, type ReverseProxyKind } from '../helpers/reverse-proxy.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

// Two nodes behind README's nginx and haproxy: each is restarted while events flow, then both are killed at once. Nobody is
// refused, and of what was published everybody has everything, once and in order.

const CLIENTS = 300
/** Each client hears one of them; a page hears all. */
const TOPICS = 10
const PAGES = 2
/** Half of them by a publisher without clients, half by POST through the proxy. */
const EVENTS_PER_SECOND = 100
const TICK_MS = 100
const CHROMIUM = process.env['CHROMIUM'] ?? '/usr/bin/chromium'
const withoutChromium = process.env['CI'] === undefined && !existsSync(CHROMIUM) && `no Chromium at ${CHROMIUM}`

/** What one client has seen, whatever it runs in. */
interface Seen {
  topic: number | null
  texts: readonly string[]
  opened: number
  refused: number
}

/** Node's EventSource, as in browsers: it comes back by itself unless it is refused. */
class Client implements Seen {
  readonly topic: number
  readonly texts: string[] = []
  opened = 0
  refused = 0
  readonly #source: EventSource

  constructor (url: string, topic: number, dispatcher: Agent) {
    this.topic = topic
    this.#source = new EventSource(`${url}/sse?topic=${topic}`, { node: { dispatcher } })
    this.#source.addEventListener('open', () => { this.opened++ })
    this.#source.addEventListener('n', event => { this.texts.push((event as MessageEvent).data as string) })
    this.#source.addEventListener('error', () => { if (this.#source.readyState === EventSource.CLOSED) this.refused++ })
  }

  get connected (): boolean {
    return this.#source.readyState === EventSource.OPEN
  }

  close (): void {
    this.#source.close()
  }
}

function seenBy (page: Page): Promise<Seen> {
  return page.evaluate('({ topic: null, texts: seen, opened, refused })')
}

/** Publishes at a steady rate, whatever happens: `d1 d2 …` on a node of its own, `p1 p2 …` by POST through the proxy. */
class Publisher {
  readonly acknowledged = new Set<string>()
  failed = 0
  readonly #manager: SSEManager
  readonly #url: string
  readonly #open = new Set<Promise<void>>()
  readonly #startedAt = performance.now()
  readonly #timer = setInterval(() => this.#tick(), TICK_MS)
  #n = 0
  /** How many of those behind a number have been acknowledged. */
  #progress = { after: 0, count: 0 }

  constructor (redis: string, url: string) {
    this.#manager = new SSEManager({ broker: redisStreamsBroker({ client: redis }) })
    this.#url = url
  }

  #tick (): void {
    const due = (performance.now() - this.#startedAt) / 1000 * EVENTS_PER_SECOND / 2
    while (this.#n < due) {
      const n = ++this.#n
      this.#follow(`d${n}`, this.#manager.broadcastEvent({ event: 'n', data: `d${n}` }, { subscriptionIds: [`topic:${n % TOPICS}`] }))
      this.#follow(`p${n}`, this.#post(`p${n}`))
    }
  }

  async #post (text: string): Promise<void> {
    const { ok } = await fetch(`${this.#url}/publish`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ text, topic: Number(text.slice(1)) % TOPICS }) })
    if (!ok) throw new Error('Refused')
  }

  #follow (text: string, publish: Promise<unknown>): void {
    const followed = publish.then(() => this.#acknowledge(text), () => { this.failed++ }).finally(() => this.#open.delete(followed))
    this.#open.add(followed)
  }

  #acknowledge (text: string): void {
    this.acknowledged.add(text)
    if (Number(text.slice(1)) > this.#progress.after) this.#progress.count++
  }

  /** Waits until the publisher and a node have had an event acknowledged that was published from now on. */
  async goesOn (): Promise<void> {
    this.#progress = { after: this.#n + 5, count: 0 }
    await until(() => this.#progress.count > EVENTS_PER_SECOND / 2, 60_000, 'publishing goes on')
  }

  async stop (): Promise<void> {
    clearInterval(this.#timer)
    await Promise.all(this.#open)
    await this.#manager.close()
  }
}

/** What of it a client is to receive. */
function due ({ topic }: Pick<Seen, 'topic'>, acknowledged: ReadonlySet<string>): string[] {
  return [...acknowledged].filter(text => topic === null || Number(text.slice(1)) % TOPICS === topic)
}

/** Nothing twice, in the order in which it was published, and all of what was acknowledged since the client was there. */
function faultsOf ({ texts, ...client }: Seen, acknowledged: ReadonlySet<string>): string[] {
  const faults: string[] = []
  const seen = new Set<string>()
  const last: Record<string, number> = { d: 0, p: 0 }
  for (const text of texts) {
    const n = Number(text.slice(1))
    if (seen.has(text)) faults.push(`${text} twice`)
    // By POST they overtake one another on their way to a node; from the publisher they do not.
    else if (text[0] === 'd' && n < last['d']!) faults.push(`${text} after ${last['d']}`)
    seen.add(text)
    last[text[0]!] = n
  }
  for (const text of due(client, acknowledged)) if (!seen.has(text)) faults.push(`${text} lost`)
  return faults
}

const table: string[][] = [['proxy', 'acknowledged', 'not acknowledged', 'received', 'lost, twice or out of order', 'refused', 'connected per client']]

async function rolling (t: Test, kind: ReverseProxyKind): Promise<void> {
  await t.test(`rolling restart behind ${kind}`, { skip: withoutRedis || withoutProxy(kind) || withoutChromium, timeout: 400_000 }, async t => {
    const redis = await RedisServer.start()
    t.teardown(() => redis.stop())
    const main = buildNode(t)
    const nodes = await Promise.all([startApplicationNode(t, main, redis.url), startApplicationNode(t, main, redis.url)])
    const proxy = await ReverseProxy.start(kind, [nodes[0]!.port, nodes[1]!.port])
    t.teardown(() => proxy.stop())
    const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] })
    t.teardown(() => browser.close())
    const pages = await Promise.all(Array.from({ length: PAGES }, () => browser.newPage()))
    await Promise.all(pages.map(page => page.goto(proxy.url)))
    const dispatcher = new Agent()
    const clients = Array.from({ length: CLIENTS }, (_, i) => new Client(proxy.url, i % TOPICS, dispatcher))
    t.teardown(() => { for (const client of clients) client.close() })
    const everybody = async (): Promise<Seen[]> => [...clients, ...await Promise.all(pages.map(seenBy))]
    const times = (count: number) => until(async () => (await everybody()).every(({ opened }) => opened >= count), 60_000, 'everybody is connected')
    await times(1)

    const publisher = new Publisher(redis.url, proxy.url)
    t.teardown(() => publisher.stop())
    await publisher.goesOn()
    for (const node of nodes) {
      t.equal(await node.stop(), 0, 'the node leaves by itself')
      await publisher.goesOn()
      await node.start()
      await until(() => clients.every(({ connected }) => connected), 60_000, 'all are back')
      await publisher.goesOn()
    }
    t.equal((await everybody()).filter(({ refused }) => refused > 0).length, 0, 'nobody is refused by a rolling restart')
    t.ok((await everybody()).every(({ opened }) => opened >= 2), 'everybody was on a node that was restarted')

    await Promise.all(nodes.map(node => node.kill()))
    await until(() => clients.every(({ connected }) => !connected), 10_000, 'nobody has a node')
    const told = await Promise.all(Array.from({ length: 60 }, async () => await (await fetch(`${proxy.url}/sse`)).text()))
    const retries = told.map(text => Number(/^retry: (\d+)\n\n$/.exec(text)?.[1]))
    t.ok(retries.every(ms => ms >= 2_000 && ms <= 6_000), told[0])
    t.ok(new Set(retries).size > 3, 'not all at the same time')
    // Long enough for all to come, and to be told to come later.
    const before = clients.map(({ opened }) => opened)
    await until(() => clients.every(({ opened }, i) => opened > before[i]!), 60_000, 'all were told to come later')
    await Promise.all(nodes.map(node => node.start()))
    await publisher.goesOn()
    await publisher.stop()

    const { acknowledged, failed } = publisher
    const dueOf = Array.from({ length: TOPICS }, (_, topic) => due({ topic }, acknowledged).length)
    await until(() => clients.every(({ texts, topic }) => texts.length >= dueOf[topic]!), 60_000, 'all clients have come to the end').catch(() => {})
    await until(async () => (await Promise.all(pages.map(seenBy))).every(({ texts }) => texts.length >= acknowledged.size), 60_000, 'all pages have come to the end').catch(() => {})
    const all = await everybody()
    const faults = all.flatMap(seen => faultsOf(seen, acknowledged))
    t.strictSame(faults.slice(0, 10), [], 'nothing lost, nothing twice, nothing out of order')
    const refused = all.filter(seen => seen.refused > 0).length
    t.equal(refused, 0, 'nobody has ended CLOSED')
    const opened = all.map(seen => seen.opened)
    table.push([kind, String(acknowledged.size), String(failed), String(all.reduce((sum, { texts }) => sum + texts.length, 0)), String(faults.length), String(refused), `${Math.min(...opened)}–${Math.max(...opened)}`])
  })
}

t.test('rolling restarts', async t => {
  await rolling(t, 'nginx')
  await rolling(t, 'haproxy')
  const widths = table[0]!.map((_, column) => Math.max(...table.map(row => row[column]!.length)))
  for (const row of table) t.comment(row.map((cell, column) => column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)).join('  '))
})
