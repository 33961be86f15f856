import { Ledger } from './ledger.js'
import { createClient } from './sse-client.js'

/** Returns the name of an event's numbered sequence, by event or resource name. */
const SEQUENCES = {
  machine: () => 'machine',
  log: () => 'log',
  chat_message: data => `chat:${data.room}`,
  private_message: data => `private:${data.conversation}`
}

/**
 * The client of this page, and the counters of its events. The client reconnects and resumes by itself. This class compares numbers and
 * times of events, to show what was replayed.
 *
 * Its own events: 'state' { state, reason, status }, 'received' { name, data, replayed }, 'resumed' { at, awayMs, replayed, lost,
 * duplicates, gap }, 'gap', 'filled' with the state that precedes the events of subscriptions. Events of the server are dispatched by event or resource name: on('machine', data => …).
 */
export class Stream extends EventTarget {
  ledger = new Ledger()
  clientId = null
  run = null
  topics = new Set()
  #url
  #client = null
  #awaySince = null
  /** Server time of the connection: events that are older are replayed. Null until the server has sent it. */
  #connectedAt = null
  #liveSeen = false
  #resume = null

  constructor (url) {
    super()
    this.#url = url
  }

  on (name, listener) {
    this.addEventListener(name, event => listener(event.detail))
    return this
  }

  open () {
    const client = this.#client = createClient(this.#url)
    client.onData('welcome', data => this.#welcome(data))
    client.onData('state', data => this.#tell('filled', data))
    for (const name of ['machine', 'log', 'presence', 'connections']) client.onData(name, data => this.#deliver(name, data))
    for (const name of ['chat_message', 'private_message', 'notification']) client.on(name, data => this.#deliver(name, data))
    client.onGap(({ reason }) => this.#gap(reason))
    client.onState(state => this.#changed(state))
    this.#tell('state', { state: 'connecting' })
  }

  close () {
    this.#client?.close()
  }

  reconnect () {
    this.#client.reconnect()
  }

  #changed ({ name, reason, status }) {
    // The stream is live when the server has sent the time of the connection.
    if (name === 'open') return
    if (this.run !== null) this.#awaySince ??= performance.now()
    if (name === 'closed' && reason !== 'client') this.#tell('state', { state: 'closed', reason, status })
    if (name === 'waiting' || name === 'connecting') this.#tell('state', { state: this.run === null ? 'connecting' : 'reconnecting', reason })
  }

  #gap (reason) {
    this.ledger.forgetAll()
    if (this.#resume !== null) this.#resume.gap = reason
    this.#tell('gap', { reason })
  }

  #welcome (welcome) {
    this.clientId = welcome.clientId
    this.topics = new Set(welcome.topics)
    const restarted = this.run !== null && this.run !== welcome.run
    if (restarted) this.ledger.forgetAll()
    this.run = welcome.run
    this.#connectedAt = welcome.at
    this.#liveSeen = false
    const { lost, duplicates } = this.ledger
    this.#resume = this.#awaySince === null ? null : { at: welcome.at, awayMs: performance.now() - this.#awaySince, replayed: 0, lostBefore: lost, duplicatesBefore: duplicates, gap: restarted ? 'restart' : null }
    this.#awaySince = null
    this.#tell('state', { state: 'live' })
    this.#tell('topics', this.topics)
    this.#account()
  }

  #deliver (name, data) {
    const sequence = SEQUENCES[name]?.(data)
    const numbered = sequence !== undefined
    if (numbered && data.at >= this.#connectedAt) this.#liveSeen = true
    // A notification has no time. After a reconnect, notifications that precede the first live event are replayed.
    const replayed = numbered ? data.at < this.#connectedAt : name === 'notification' && this.#resume !== null && !this.#liveSeen
    this.ledger.received++
    if (numbered && !this.ledger.take(sequence, data.seq)) return this.#account()
    if (replayed) {
      this.ledger.replayed++
      if (this.#resume !== null) this.#resume.replayed++
    }
    this.#account()
    this.#tell('received', { name, data, replayed })
    this.#tell(name, { ...data, replayed })
  }

  #account () {
    this.#tell('counted', this.ledger)
    if (this.#resume === null) return
    const { at, awayMs, replayed, gap, lostBefore, duplicatesBefore } = this.#resume
    this.#tell('resumed', { at, awayMs, replayed, gap, lost: this.ledger.lost - lostBefore, duplicates: this.ledger.duplicates - duplicatesBefore })
  }

  #tell (name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }))
  }
}
