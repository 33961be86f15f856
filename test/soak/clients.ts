import { connect } from 'node:net'
import { SSEClient, type Block } from '../helpers/sse.js'
import { BULK, BULK_BYTES, COUNTED, HISTORY_BYTES, laneOf, ROOMS, type Base, type Counted, type FromClients, type Tally, type ToClients } from './protocol.js'

// The clients of a soak, in a process of their own: node clients.ts URL COUNT ROLE, with ROLE `rooms` or `bulk`.

const [url, count, role] = process.argv.slice(2) as [string, string, 'rooms' | 'bulk']
const chance = (part: number) => Math.random() < part
const tally: Tally = { clients: 0, received: 0, lost: 0, duplicates: 0, gapsProvoked: 0, gaps: 0, streams: 0, refused: 0, behind: 0, firstFault: '' }
let churning = true

class Person {
  readonly topics: string[]
  readonly #name: string
  client: SSEClient | null = null
  #cursor: string | null = null
  /** Last place seen in each sequence; null until it is told where it begins. */
  #seen: Map<string, number> | null = null
  /** Sequences of which it has been told the place, and has seen nothing yet: what comes first was not there before, wherever it stands. */
  #told = new Set<string>()
  #provoked = false
  #timer: NodeJS.Timeout | null = null
  leaving = false

  constructor (index: number) {
    this.#name = `${role}-${index}`
    this.topics = role === 'bulk' ? [BULK] : [`room:${index % ROOMS}`, 'everyone']
  }

  enter (): void {
    if (this.leaving) return
    // It was cut after it was told its place and before it was told what it is owed: nothing could be said of it.
    if (this.#seen === null) this.#cursor = null
    if (chance(0.03) && churning) {
      this.#cursor = ['nonsense', '\xff', 'x'.repeat(15_000), 'another.1', `${this.#cursor?.split('.')[0]}.zzzzzz`][Math.floor(Math.random() * 5)]!
      this.#provoked = true
      this.#seen = null
    } else if (chance(0.03) && churning) {
      this.#cursor = null
      this.#seen = null
    }
    const query = new URLSearchParams({ user: this.#name, topics: this.topics.join(), ...(this.#cursor === null && { base: '1' }), ...(chance(0.1) && { slow: '1' }) })
    const client = this.client = new SSEClient(`${url}/sse?${query}`, { headers: this.#cursor === null ? {} : { 'last-event-id': this.#cursor } })
    tally.streams++
    client.onBlock = block => {
      client.blocks.length = 0
      this.#take(block)
      // The server has ended it, and keeps the socket for another request.
      return this.client === client && block.event !== 'sse:close'
    }
    client.socket.on('close', () => {
      if (client.status !== 200) tally.refused++
      if (this.client === client) this.#comeBack()
    })
    // Some leave before they are let in.
    if (churning && chance(0.02)) setTimeout(() => client.reset(), Math.random() * 50)
  }

  #comeBack (): void {
    this.client = null
    if (!this.leaving) this.#timer = setTimeout(() => this.enter(), 50 + Math.random() * (churning ? 5000 : 500))
  }

  #fault (what: 'lost' | 'duplicates', amount: number, text: string): void {
    tally[what] += amount
    if (tally.firstFault === '') tally.firstFault = `${what}, ${this.#name}: ${text}`
  }

  #take ({ id, event, data }: Block): void {
    if (id !== null) this.#cursor = id
    if (data === null) return
    if (event === 'sse:gap') {
      const earned = this.#provoked || this.#outlived()
      if (earned) tally.gapsProvoked++
      else tally.gaps++
      if (!earned && tally.firstFault === '') tally.firstFault = `gap, ${this.#name}: ${data}, seen ${JSON.stringify([...this.#seen ?? []])}, published ${JSON.stringify(published)}`
      this.#provoked = false
      // Something is gone: each sequence goes on with whatever comes.
      this.#seen = new Map()
    } else if (event === 'base') {
      if (this.#seen !== null) return
      this.#seen = new Map(Object.entries(JSON.parse(data) as Base))
      this.#told = new Set(this.#seen.keys())
    } else if (event === 'counted') {
      tally.received++
      const { topic, priority, n, previous } = JSON.parse(data) as Counted
      if (this.#seen === null) return
      const lane = laneOf(topic, priority)
      const last = this.#seen.get(lane)
      // Redis may have acknowledged a publish whose reader here was late.
      const first = this.#told.delete(lane)
      if (last !== undefined && n <= last && !first) return this.#fault('duplicates', 1, `${lane} ${n} after ${last}`)
      if (last !== undefined && last < previous) this.#fault('lost', previous - last, `${lane} ${n} after ${last}, before it ${previous}`)
      this.#seen.set(lane, n)
    }
  }

  /** Whether what it has seen last has left history by now: as far as this process knows, which is a second late. */
  #outlived (): boolean {
    const lane = laneOf(BULK, 1)
    const last = this.#seen?.get(lane)
    return last !== undefined && ((published[lane] ?? 0) + 5 - last) * BULK_BYTES > HISTORY_BYTES
  }

  /** Misfortune of this second. */
  live (): void {
    const { client } = this
    if (client === null) return
    // A fifth a minute.
    if (chance(0.2 / 60)) {
      if (chance(0.5)) client.reset()
      else client.socket.end()
    } else if (chance(role === 'bulk' ? 0.02 : 0.001)) {
      client.pause()
      setTimeout(() => client.resume(), 1000 + Math.random() * 20_000)
    } else if (role === 'bulk' && chance(0.01)) {
      // As slow as a modem, for a while.
      let reads = 0
      client.pause()
      const timer = setInterval(() => {
        client.resume()
        if (++reads < 20 && !client.closed) setImmediate(() => client.pause())
        else clearInterval(timer)
      }, 250)
    }
  }

  /** Whether it has seen all there is. */
  hasAll (counters: Base): boolean {
    if (this.client === null || this.#seen === null) return false
    return this.topics.every(topic => COUNTED.every(priority => {
      const seen = this.#seen!.get(laneOf(topic, priority))
      return seen === undefined || seen >= (counters[laneOf(topic, priority)] ?? 0)
    }))
  }

  leave (): void {
    this.leaving = true
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.client?.close()
  }
}

/** Strangers who do not even speak properly. */
function annoy (): void {
  const { port, hostname } = new URL(url)
  const stranger = connect(Number(port), hostname)
  stranger.on('error', () => {}).resume()
  const words = ['', 'GET /sse HTTP/1.1\r\nhost', 'GET /sse?user=x HTTP/1.1\r\nhost: x\r\n\r\nGET /sse?user=x HTTP/1.1\r\nhost: x\r\n\r\n', 'HEAD /sse?user=x HTTP/1.1\r\nhost: x\r\n\r\n', '\x16\x03\x01\0\0\0', 'GET /short HTTP/1.1\r\nhost: x\r\n\r\nGET /sse HTTP/1.0\r\n\r\n', 'POST /sse HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nhalf']
  stranger.write(words[Math.floor(Math.random() * words.length)]!, 'latin1')
  setTimeout(() => stranger.destroy(), Math.random() * 10_000)
}

const people = Array.from({ length: Number(count) }, (_, index) => new Person(index))
for (const [i, person] of people.entries()) setTimeout(() => person.enter(), i * 3)

/** What has been published, as of the last second. */
let published: Base = {}
/** What everybody is to have at the end; nothing is published after it. */
let counters: Base | null = null
/** Who has been seen to have it: at any moment some are on their way from one stream to the next. */
const satisfied = new Set<Person>()
const second = setInterval(() => {
  if (churning) {
    for (const person of people) person.live()
    if (role === 'rooms') annoy()
  }
  tally.clients = people.filter(({ client }) => client?.isStream === true).length
  if (counters !== null) for (const person of people) if (person.hasAll(counters)) satisfied.add(person)
  tally.behind = people.length - satisfied.size
  process.send!({ tally } satisfies FromClients)
}, 1000)

process.on('message', (message: ToClients) => {
  if (message.do === 'churn') churning = message.on
  else if (message.do === 'published') published = message.counters
  else if (message.do === 'final') counters = message.counters
  else {
    clearInterval(second)
    for (const person of people) person.leave()
    setTimeout(() => process.disconnect(), 500)
  }
})
// However the parent ends, this ends with it.
process.on('disconnect', () => process.exit())
