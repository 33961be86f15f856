/* global location, EventSource */
import { Ledger } from './ledger.js'

const RETRY_MS = 2_000

/** Returns the name of an event's numbered sequence, by event or resource name. */
const SEQUENCES = {
  machine: () => 'machine',
  log: () => 'log',
  chat_message: data => `chat:${data.room}`,
  private_message: data => `private:${data.conversation}`
}

/**
 * The EventSource of this page, and the counters of its events. The browser reconnects with the last event id. This class observes the
 * reconnects, and creates a new EventSource when the browser does not retry.
 *
 * Its own events: 'state' { state, reason }, 'received' { name, data, replayed }, 'resumed' { at, awayMs, replayed, lost, repeated, gap
 * }, 'gap'. Events of the server are dispatched by event or resource name: on('machine', data => …).
 */
export class Stream extends EventTarget {
  ledger = new Ledger()
  clientId = null
  run = null
  topics = new Set()
  #url
  #source = null
  #retry = null
  #lastEventId = ''
  #awaySince = null
  #closeReason = null
  /** Server time of the connection: events that are older are replayed. Null until the server has sent it. */
  #connectedAt = null
  #liveSeen = false
  #waiting = []
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
    this.close()
    const url = new URL(this.#url, location.href)
    // A new EventSource sends no Last-Event-ID, so the cursor is sent in the query.
    if (this.#lastEventId !== '') url.searchParams.set('lastEventId', this.#lastEventId)
    const source = this.#source = new EventSource(url)
    this.#begin()
    source.addEventListener('open', () => this.#begin())
    source.addEventListener('error', () => this.#broken())
    source.addEventListener('data', event => { const { resource, data } = JSON.parse(event.data); this.#take(event, resource, data) })
    for (const name of ['notification', 'chat_message', 'private_message']) source.addEventListener(name, event => this.#take(event, name, JSON.parse(event.data)))
    source.addEventListener('sse:close', event => this.#farewell(JSON.parse(event.data)))
    source.addEventListener('sse:gap', event => this.#gap(JSON.parse(event.data)))
    this.#tell('state', { state: 'connecting', reason: null })
  }

  close () {
    clearTimeout(this.#retry)
    this.#source?.close()
    this.#source = null
  }

  #begin () {
    this.#connectedAt = null
    this.#liveSeen = false
    this.#waiting = []
  }

  #farewell ({ reason, reconnect }) {
    this.#closeReason = reason
    // The page has requested the reason `cut` to show the reconnect.
    if (reconnect || reason === 'cut') return
    this.close()
    this.#tell('state', { state: 'closed', reason })
  }

  #broken () {
    if (this.#source === null) return
    if (this.run !== null) this.#awaySince ??= performance.now()
    this.#tell('state', { state: 'reconnecting', reason: this.#closeReason })
    if (this.#source.readyState !== EventSource.CLOSED) return
    // The response was not a stream, so the browser does not retry.
    this.close()
    this.#tell('refused', {})
    this.#retry = setTimeout(() => this.open(), RETRY_MS)
  }

  #gap ({ reason }) {
    this.ledger.forgetAll()
    if (this.#resume !== null) this.#resume.gap = reason
    this.#tell('gap', { reason })
  }

  #take (event, name, data) {
    this.#lastEventId = event.lastEventId
    if (name === 'welcome') return this.#welcome(data)
    // Without the time of the connection, replayed events cannot be detected.
    if (this.#connectedAt === null) this.#waiting.push([name, data])
    else this.#deliver(name, data)
  }

  #welcome (welcome) {
    this.clientId = welcome.clientId
    this.topics = new Set(welcome.topics)
    const restarted = this.run !== null && this.run !== welcome.run
    if (restarted) this.ledger.forgetAll()
    this.run = welcome.run
    this.#connectedAt = welcome.at
    this.#closeReason = null
    const { lost, repeated } = this.ledger
    this.#resume = this.#awaySince === null ? null : { at: welcome.at, awayMs: performance.now() - this.#awaySince, replayed: 0, lostBefore: lost, repeatedBefore: repeated, gap: restarted ? 'restart' : null }
    this.#awaySince = null
    this.#tell('state', { state: 'live', reason: null })
    this.#tell('topics', this.topics)
    this.#account()
    for (const [name, data] of this.#waiting.splice(0)) this.#deliver(name, data)
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
    const { at, awayMs, replayed, gap, lostBefore, repeatedBefore } = this.#resume
    this.#tell('resumed', { at, awayMs, replayed, gap, lost: this.ledger.lost - lostBefore, repeated: this.ledger.repeated - repeatedBefore })
  }

  #tell (name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }))
  }
}
