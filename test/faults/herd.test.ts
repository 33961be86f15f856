import { connect, type Socket } from 'node:net'
import t from 'tap'
import { SSEManager } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import type { TestNode } from '../../lib/testing/index.js'
import { buildNode, startApplicationNode } from '../helpers/node.js'
import { requestText } from '../helpers/raw.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until, windows } from '../helpers/wait.js'

// A node is killed with 2,000 clients on it, and all of them come to the other at once. Each has every event once and in
// order, those who were there before go on receiving, and Redis is not asked for each.

const HERD = 2_000
const LIVE = 40
/** Published before the node is killed, as many again while the herd has no node, and as many while it comes back. */
const EVENTS = 100
const DEADLINE_MS = 60_000

/** Receives `1 2 3 …` over one connection after another. There are so many of them that it reads no more than it needs. */
class Client {
  received = 0
  lost = 0
  twice = 0
  gaps = 0
  connections = 0
  /** The last reconnection time, in milliseconds. */
  retryMs = 0
  #socket!: Socket
  #open = false
  #rest = ''
  #event = ''
  #data = ''
  #lastEventId: string | null = null

  connect ({ port }: TestNode): void {
    this.connections++
    this.#open = false
    this.#rest = ''
    this.#socket = connect(port, '127.0.0.1').setEncoding('latin1').on('error', () => {}).on('data', text => this.#read(String(text)))
    this.#socket.write(requestText({ path: '/sse', headers: this.#lastEventId === null ? {} : { 'last-event-id': this.#lastEventId } }))
  }

  #read (text: string): void {
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop()!
    // Lines of HTTP, the sizes of its chunks among them, end with CR as well; a chunk holds whole lines.
    for (const line of lines) if (!line.endsWith('\r')) this.#takeLine(line)
  }

  #takeLine (line: string): void {
    this.#open = true
    if (line.startsWith('event: ')) this.#event = line.slice(7)
    else if (line.startsWith('data: ')) this.#data = line.slice(6)
    else if (line.startsWith('id: ')) this.#lastEventId = line.slice(4)
    else if (line.startsWith('retry: ')) this.retryMs = Number(line.slice(7))
    if (line !== '') return
    if (this.#event === 'n') this.#take(Number(this.#data))
    else if (this.#event === 'sse:gap') this.gaps++
    this.#event = ''
  }

  #take (n: number): void {
    if (n <= this.received) this.twice++
    else this.lost += n - this.received - 1
    this.received = n
  }

  get connected (): boolean {
    return this.#open && !this.#socket.closed
  }

  close (): void {
    this.#socket.destroy()
  }
}

t.test('a herd', { skip: withoutRedis, timeout: 400_000 }, async t => {
  const redis = await RedisServer.start()
  t.teardown(() => redis.stop())
  const main = buildNode(t)
  const [killed, other] = await Promise.all([startApplicationNode(t, main, redis.url), startApplicationNode(t, main, redis.url)])
  const publisher = new SSEManager({ broker: redisStreamsBroker({ client: redis.url }) })
  t.teardown(() => publisher.close())
  const herd = Array.from({ length: HERD }, () => new Client())
  const live = Array.from({ length: LIVE }, () => new Client())
  const all = [...herd, ...live]
  t.teardown(() => { for (const client of all) client.close() })
  for (const client of herd) client.connect(killed)
  for (const client of live) client.connect(other)
  await until(() => all.every(({ connected }) => connected), DEADLINE_MS, 'all are connected')

  let published = 0
  const publish = (count: number) => Promise.all(Array.from({ length: count }, () => publisher.broadcastEvent({ event: 'n', data: ++published }, { subscriptionIds: ['topic:1'] })))
  const have = (clients: readonly Client[]) => until(() => clients.every(({ received }) => received === published), DEADLINE_MS, `${clients.length} clients have all events`)
  const reads = () => Promise.all(['xread', 'xrange'].map(command => redis.calls(command)))
  await publish(EVENTS)
  await have(all)
  // They have received no other time than the first when their node is killed.
  const { mean, most } = windows(herd.map(({ retryMs }) => retryMs))
  t.ok(most <= 3 * mean, `an EventSource would reconnect by the time it received: at most ${most} in 100 ms, ${mean.toFixed(1)} in the mean`)
  await killed.kill()
  await until(() => !herd.some(({ connected }) => connected), DEADLINE_MS, 'the herd has no node')
  await publish(EVENTS)
  await have(live)

  const missed = published
  const back = () => herd.filter(({ received }) => received >= missed).length
  const readBefore = await reads()
  const startedAt = performance.now()
  for (const client of herd) client.connect(other)
  let longest = 0
  for (let i = 0; i < EVENTS; i++) {
    await until(() => back() >= HERD * i / EVENTS, DEADLINE_MS, 'the herd goes on coming back')
    const before = back()
    await publish(1)
    await have(live)
    longest = Math.max(longest, back() - before)
  }
  await have(all)
  const seconds = (performance.now() - startedAt) / 1_000
  const [xread, xrange] = (await reads()).map((calls, i) => calls - readBefore[i]!) as [number, number]

  const sum = (count: (client: Client) => number) => all.reduce((sum, client) => sum + count(client), 0)
  const wrong = { lost: sum(({ lost }) => lost), twice: sum(({ twice }) => twice), gaps: sum(({ gaps }) => gaps) }
  t.comment(`${HERD} clients are back in ${seconds.toFixed(1)} s: ${sum(({ received }) => received)} received, ${Object.entries(wrong).map(([what, count]) => `${count} ${what}`).join(', ')}; ${xread} XREAD, ${xrange} XRANGE; at most ${longest} were served while the others waited for an event`)
  t.strictSame(wrong, { lost: 0, twice: 0, gaps: 0 })
  t.ok(live.every(({ connections }) => connections === 1), 'who was there before stays connected')
  // How many of the herd are served meanwhile is a matter of the machine; never all of it.
  t.ok(longest < HERD, 'and goes on receiving')
  t.ok(xread + xrange < HERD / 4, 'Redis is not asked for each')
})
