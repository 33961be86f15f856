import t from 'tap'
import { memoryBroker } from '../../lib/index.js'
import type { Message, OutgoingMessage } from '../../lib/events/message.js'
import type { History, Page, ReadRequest, Sink } from '../../lib/log/broker.js'
import type { Interest } from '../../lib/log/log-index.js'
import { answeringAfterClose, assertFaults, BrokenBroker, contractOf, delivering, publishing, reading, withHistory, withoutGap, withSink, type Fault } from '../helpers/broken-broker.js'

// Brokers that break one promise each, and the test of the contract that notices.

const IN_ORDER = 'delivers each message once, in order, with sequence numbers that grow by one'
const WHOLE = 'carries a message whole'
const EPHEMERAL = 'an ephemeral message has no place in the log'
const PAGES = 'reads one lane in pages'
const GAPS = 'a place that is not in the log is a gap'
const CLAIMS = 'a key is claimed once, until its time is over'
const INTEREST = 'a read for a connection leaves out nothing that the connection can receive'
const NESTED = 'what is published from inside a delivery is delivered after it'
const CLOSED = 'after close every call rejects and nothing is delivered'
const INSIDE = 'has delivered a message here when its publish resolves'

const withInterest = (change: (page: Page, request: ReadRequest) => Page) => reading((page, request) => request.interest === undefined ? page : change(page, request))

const FAULTS: Fault[] = [
  [IN_ORDER, /equal/, withSink(sink => ({ deliver: message => { sink.deliver(message); return sink.deliver(message) } }))],
  [IN_ORDER, /equal/, delivering(message => message.data === '7' ? { ...message, data: '8' } : message)],
  [IN_ORDER, /equal/, delivering(message => ({ ...message, seq: message.seq - 1 }))],
  [IN_ORDER, /equal/, class extends BrokenBroker { override async publish (message: OutgoingMessage) { const { seq, delivered } = await super.publish(message); return { seq: seq! + 1, delivered } } }],
  [IN_ORDER, /includes the message/, class extends BrokenBroker { override get position () { return super.position - 1 } }],
  [IN_ORDER, /equal/, class extends BrokenBroker { override get position () { return super.position + (super.position > 1 ? 1 : 0) } }],
  [IN_ORDER, /match/, class extends BrokenBroker { override get epoch () { return 'with a space' } }],
  [IN_ORDER, /equal/, class extends BrokenBroker { override get shared () { return !super.shared } }],
  [IN_ORDER, /equal/, withSink(sink => ({ deliver: message => { if (message.seq === 3) sink.gap('epoch'); return sink.deliver(message) } }))],
  ['is up once it is open', /equal/, withSink(() => ({ state () {} }))],
  ['is up once it is open', /equal/, withSink(sink => ({ state () { sink.state('up'); sink.state('down') } }))],
  ['answers each publish with what its own delivery has answered', /equal/, class extends BrokenBroker { override async publish (message: OutgoingMessage) { return { ...await super.publish(message), delivered: 0 } } }],
  ['reads of those with the same key and target only the newest', /equal/, publishing(({ key, ...message }) => ({ ...message, key: undefined }))],
  ['reads of those with the same key and target only the newest', /equal/, publishing(message => ({ ...message, target: {} }))],
  [INTEREST, /equal/, withInterest(page => ({ ...page, messages: page.messages.slice(1) }))],
  [INTEREST, /equal/, withInterest(page => ({ ...page, messages: page.messages.filter(({ target }) => target.userIds === undefined) }))],
  [INTEREST, /falsy|false == true/, withInterest(page => ({ ...page, messages: [...page.messages, ...page.messages, ...page.messages].slice(0, 31) }))],
  [INTEREST, /falsy|false == true/, withInterest((page, { after }) => ({ ...page, next: after }))],
  [INTEREST, /equal/, withInterest(page => ({ ...page, gap: 'trimmed' }))],
  [INTEREST, /messages for everybody/, class extends BrokenBroker { hasNothing () { return true } }],
  [INTEREST, /for the user/, class extends BrokenBroker { hasNothing (_after: number, { userId }: Interest) { return userId === 'ada' } }],
  ...(['subscriptionIds', 'clientIds', 'userIds'] as const).map((name, i): Fault => [INTEREST, [/for a topic/, /for a client/, /for a list of many users/][i]!, class extends BrokenBroker {
    #isMissed = false
    override async publish (message: OutgoingMessage) {
      this.#isMissed = name === 'userIds' ? (message.target.userIds?.length ?? 0) > 8 : message.target[name] !== undefined
      return await super.publish(message)
    }

    hasNothing (after: number) { return this.#isMissed && after === this.position - 1 }
  }]),
  [INTEREST, /the broker is closed/, class extends BrokenBroker {
    #isClosed = false
    override async close () {
      this.#isClosed = true
      await super.close()
    }

    hasNothing () { return this.#isClosed }
  }],
  [INTEREST, /left the history/, class extends BrokenBroker { hasNothing () { return this.position > 1_000 } }],
  [INTEREST, /reads come to the end/, withInterest((page, { after }) => ({ messages: [], next: after + 0.5 }))],
  [INSIDE, /equal/, withSink(sink => ({ deliver: message => { setImmediate(() => { try { sink.deliver(message) } catch {} }); return 1 } }))],
  [INSIDE, /with the answer/, class extends BrokenBroker { override async publish (message: OutgoingMessage) { return { ...await super.publish(message), delivered: 9 } } }],
  ...(['retry', 'key', 'event', 'priority'] as const).map((name): Fault => [WHOLE, /equal/, delivering(message => ({ ...message, [name]: 0 } as never))]),
  ...(['userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds'] as const).map((name): Fault => [WHOLE, /equal/, delivering(message => ({ ...message, target: { ...message.target, [name]: undefined } }))]),
  [WHOLE, /equal/, reading(page => ({ ...page, messages: page.messages.map(message => ({ ...message, retry: undefined })) }))],
  [EPHEMERAL, /equal/, publishing(message => ({ ...message, ephemeral: false }))],
  [EPHEMERAL, /equal/, class extends BrokenBroker { override async publish (message: OutgoingMessage) { const published = await super.publish(message); return message.ephemeral ? { ...published, seq: 0 } : published } }],
  [EPHEMERAL, /equal/, delivering(message => ({ ...message, seq: Math.max(1, message.seq) }))],
  [EPHEMERAL, /equal/, reading(page => ({ ...page, messages: page.messages.slice(0, 1) }))],
  ['ephemeral messages push no logged one out of the history', /equal/, publishing(message => ({ ...message, ephemeral: false }))],
  ['keeps no more bytes than its history may have', /equal/, withHistory(history => ({ ...history, maxBytes: 1 << 20 }))],
  ['keeps no more bytes than its history may have', /equal/, reading(page => ({ ...page, messages: [] }))],
  ['messages older than maxAgeMs are not read', /the message leaves the history/, withHistory(history => ({ ...history, maxAgeMs: 1e9 }))],
  ['what nodes tell each other reaches all, however many ephemeral messages are published', /12 messages between nodes are delivered, there are 11/, withSink(sink => ({ deliver: message => message.data === 'told 4' ? 1 : sink.deliver(message) }))],
  ['what nodes tell each other reaches all, however many ephemeral messages are published', /equal/, withSink(sink => ({ deliver: message => { if (message.data === 'told 4') sink.deliver(message); return sink.deliver(message) } }))],
  [NESTED, /4 messages are delivered, there are 2/, class extends BrokenBroker {
    #sink: Sink | null = null
    override async open (sink: Sink, history: History) { await super.open(this.#sink = sink, history) }
    override async publish (message: OutgoingMessage) {
      if (message.data !== 'inner') return await super.publish(message)
      // The test refuses a delivery inside another.
      try { this.#sink!.deliver({ ...message, seq: 1 }) } catch {}
      return { seq: 2, delivered: 0 }
    }
  }],
  [NESTED, /equal/, delivering(message => ({ ...message, seq: Math.max(1, message.seq - 1) }))],
  [PAGES, /equal/, class extends BrokenBroker { override async read (request: ReadRequest) { return await super.read({ ...request, limit: 10 }) } }],
  [PAGES, /equal/, class extends BrokenBroker { override async read (request: ReadRequest) { return await super.read({ ...request, priority: 1 }) } }],
  [PAGES, /falsy|false == true/, reading(page => ({ ...page, next: page.next + 2 }))],
  [PAGES, /falsy|false == true/, reading((page, { after }) => ({ ...page, next: page.messages.length > 2 ? after : page.next }))],
  [PAGES, /equal/, reading(page => page.messages.length === 2 ? { ...page, next: page.next - 1 } : page)],
  [PAGES, /an empty lane/, reading((page, { after }) => page.messages.length === 0 ? { ...page, next: after } : page)],
  [GAPS, /equal/, withoutGap('epoch')],
  [GAPS, /equal/, withoutGap('unknown')],
  [GAPS, /equal/, withoutGap('trimmed')],
  [GAPS, /equal/, reading((page, { after, epoch }) => epoch === 'other' && after === 0 ? { ...page, gap: 'trimmed' } : page)],
  [GAPS, /equal/, reading(page => page.gap === undefined ? page : { ...page, messages: [{ data: 'x' } as Message] })],
  [GAPS, /equal/, withHistory(history => ({ ...history, maxEvents: 4 }))],
  [GAPS, /equal/, withHistory(history => ({ ...history, maxEvents: 6 }))],
  [CLAIMS, /equal/, class extends BrokenBroker { override async claim () { return true } }],
  [CLAIMS, /equal/, class extends BrokenBroker { override async claim () { return false } }],
  [CLAIMS, /equal/, class extends BrokenBroker { override async claim (key: string, ttlMs: number) { return ttlMs === 1 || await super.claim(key, ttlMs) } }],
  [CLAIMS, /equal/, class extends BrokenBroker { override async claim (key: string, ttlMs: number) { return key === 'a' && await super.claim(key, ttlMs) } }],
  [CLAIMS, /it can be claimed again/, class extends BrokenBroker { override async claim (key: string) { return await super.claim(key, 1e9) } }],
  [CLAIMS, /equal/, class extends BrokenBroker { override async claim (key: string, ttlMs: number) { return await super.claim(key, key === 'b' ? 0 : ttlMs) } }],
  [CLOSED, /rejection/, answeringAfterClose('publish')],
  [CLOSED, /rejection/, answeringAfterClose('read')],
  [CLOSED, /rejection/, answeringAfterClose('claim')],
  [CLOSED, /twice/, class extends BrokenBroker { #closed = false; override async close () { if (this.#closed) throw Object.assign(new Error('twice')); this.#closed = true; await super.close() } }],
  [CLOSED, /equal/, class extends BrokenBroker {
    #sink: Sink | null = null
    override async open (sink: Sink, history: History) { await super.open(this.#sink = sink, history) }
    override async publish (message: OutgoingMessage) { return await super.publish(message).catch(error => { this.#sink!.deliver({ ...message, seq: 0 }); throw error }) }
  }],
  ['a message with a filter does not replace another: two functions cannot be compared', /equal/, publishing(({ target, ...message }) => ({ ...message, target: {} }))]
]

t.test('each promise of a broker is tested', t => assertFaults(t, contractOf(() => memoryBroker(), {}), FAULTS))
