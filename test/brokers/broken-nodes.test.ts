import t from 'tap'
import type { OutgoingMessage } from '../../lib/events/message.js'
import type { Broker, History, PublishingLog, ReadRequest, Sink } from '../../lib/log/broker.js'
import { testLog, type BrokerContractOptions, type TestBroker, type TestLog } from '../../lib/testing/index.js'
import { answeringAfterClose, assertFaults, BrokenBroker, contractOf, delivering, publishing, reading, withHistory, withoutGap, withSink } from '../helpers/broken-broker.js'

// Brokers of several nodes that break one promise each, and the test of the contract that notices.

/** The nodes of the log that was opened last. */
let nodes: TestBroker[] = []
const logs = new Map<string, TestLog>()

function onTestLog (name: string, node: number): TestBroker {
  const log = logs.get(name) ?? testLog()
  logs.set(name, log)
  if (node === 0) nodes = []
  return (nodes[node] = log.broker())
}

const SHARED: BrokerContractOptions = {
  shared: true,
  faults: {
    cut: node => nodes[node]!.fail(),
    hold: node => nodes[node]!.lag(),
    heal: node => {
      nodes[node]!.catchUp()
      nodes[node]!.restore()
    }
  }
}

const SAME = 'all nodes get the same messages in the same order'
const LATER = 'a node that opens later begins at the newest message, and reads what came before'
const PUBLISHER = 'a publisher writes to the log of the nodes, and nothing is delivered to it'
const KEPT = 'the messages of a publisher are in order, and kept for nodes that open later'
const PUBLISHER_CLOSED = 'after close every call of a publisher rejects'
const PUBLISHER_FAILS = 'without the store every call of a publisher rejects, and what is known to be rejected is not published later'
const STORE_FAILS = 'without the store every call rejects, and the state says so; afterwards nothing is missing'
const AHEAD = 'a cursor that is ahead of a node waits for the node, and is no gap'
const AWAY = 'a node that was away receives commands and events in their order, each once'
const MISSED = 'a command that has left the history while a node was away is not passed over in silence'

/** A broker of which only the second node is broken. */
const second = (Broken: typeof BrokenBroker) => class { constructor (inner: Broker, node: number) { return node === 1 ? new Broken(inner, node) : new BrokenBroker(inner, node) } } as unknown as typeof BrokenBroker

/** A publisher that changes what its log answers. */
function publisherWith (change: (log: PublishingLog, sink: Pick<Sink, 'state'>) => PublishingLog) {
  return class extends BrokenBroker {
    override async openPublisher (sink: Pick<Sink, 'state'>, history: History) { return change(await super.openPublisher(sink, history), sink) }
  }
}

/** A broker that accepts what it cannot publish, and publishes it after the outage, though it has rejected it or not. */
function late (rejects: boolean) {
  return class extends BrokenBroker {
    readonly #kept: OutgoingMessage[] = []
    override async publish (message: OutgoingMessage) {
      try {
        if (message.data === 'after') for (const kept of this.#kept.splice(0)) await super.publish(kept)
        return await super.publish(message)
      } catch (error) {
        this.#kept.push(message)
        if (rejects) throw error
        return { seq: 1, delivered: 0 }
      }
    }
  }
}

t.test('each promise of a broker of several nodes is tested', async t => {
  const contract = contractOf(onTestLog, SHARED)
  const ofOneNode = contractOf(onTestLog, {}).names
  await assertFaults(t, { ...contract, names: contract.names.filter(name => !ofOneNode.includes(name)) }, [
    ['a key is claimed by one node', /equal/, class extends BrokenBroker { override async claim (key: string, ttlMs: number) { return await super.claim(`${key}${this.node}`, ttlMs) } }],
    [SAME, /equal/, second(delivering(message => ({ ...message, retry: 1 })))],
    [SAME, /equal/, delivering(message => message.data === '7' ? { ...message, data: '8' } : message)],
    [SAME, /equal/, second(class extends BrokenBroker { override get epoch () { return 'other' } })],
    [SAME, /equal/, second(class extends BrokenBroker { override get position () { return super.position + 1 } })],
    [SAME, /50 messages are delivered, there are 49/, second(withSink(sink => ({ deliver: message => message.data === '7' ? 0 : sink.deliver(message) })))],
    ['ephemeral messages reach all nodes', /3 messages are delivered, there are 2/, second(withSink(sink => ({ deliver: message => message.ephemeral ? 0 : sink.deliver(message) })))],
    ['ephemeral messages reach all nodes', /equal/, second(delivering(message => ({ ...message, ephemeral: false })))],
    ['a place of one node is one of all', /equal/, second(reading(page => ({ ...page, next: page.next + 1 })))],
    ['a place of one node is one of all', /equal/, reading(page => ({ ...page, messages: page.messages.slice(1) }))],
    [LATER, /equal/, second(class extends BrokenBroker {
      override async open (sink: Sink, history: History) {
        await super.open(sink, history)
        sink.deliver({ event: 'e', data: 'before', priority: 1, target: {}, ephemeral: false, seq: 1 })
      }
    })],
    [LATER, /equal/, second(class extends BrokenBroker { override get epoch () { return 'other' } })],
    [LATER, /equal/, reading(page => ({ ...page, messages: page.messages.filter(({ data }) => data !== 'live') }))],
    [LATER, /equal/, second(reading((page, { after }) => after === 1 ? { ...page, messages: [] } : page))],
    ['a node that opens later does not read what has left the history', /equal/, withHistory(history => ({ ...history, maxEvents: 20 }))],
    ['a node that opens later does not read what has left the history', /equal/, withHistory(history => ({ ...history, maxEvents: 4 }))],
    [PUBLISHER, /equal/, publisherWith((log, sink) => { sink.state('down'); return log })],
    [PUBLISHER, /equal/, second(class extends BrokenBroker { override async publish (message: OutgoingMessage) { return { ...await super.publish(message), delivered: 1 } } })],
    [PUBLISHER, /equal/, second(publishing(message => message.ephemeral ? { ...message, ephemeral: false } : message))],
    [PUBLISHER, /equal/, second(publishing(message => ({ ...message, data: `${message.data}!` })))],
    [PUBLISHER, /equal/, second(class extends BrokenBroker { override async publish (message: OutgoingMessage) { const { seq, delivered } = await super.publish(message); return { seq: seq === null ? null : seq + 1, delivered } } })],
    [PUBLISHER, /equal/, second(class extends BrokenBroker { override get epoch () { return 'other' } })],
    [PUBLISHER, /equal/, publisherWith(log => ({ position: async () => ({ ...await log.position(), position: 1 }) }))],
    [PUBLISHER, /equal/, publisherWith(log => ({ position: async () => ({ ...await log.position(), epoch: 'other' }) }))],
    [KEPT, /equal/, publisherWith(log => ({ position: async () => ({ ...await log.position(), position: 1 }) }))],
    [KEPT, /equal/, publisherWith(log => ({ position: async () => ({ ...await log.position(), epoch: 'other' }) }))],
    [KEPT, /equal/, second(reading(page => ({ ...page, messages: [...page.messages].reverse() })))],
    [KEPT, /equal/, second(withoutGap('trimmed') as typeof BrokenBroker)],
    [PUBLISHER_CLOSED, /rejection/, answeringAfterClose('publish')],
    [PUBLISHER_CLOSED, /rejection/, publisherWith(() => ({ position: async () => ({ epoch: 'x', position: 1 }) }))],
    [PUBLISHER_FAILS, /a publish is rejected/, second(late(false))],
    [PUBLISHER_FAILS, /equal/, second(late(true))],
    [PUBLISHER_FAILS, /rejection/, publisherWith(() => ({ position: async () => ({ epoch: 'x', position: 1 }) }))],
    [PUBLISHER_FAILS, /reports down/, class extends BrokenBroker { override async openPublisher (sink: Pick<Sink, 'state'>, history: History) { return await super.openPublisher({ state: state => { if (state === 'up') sink.state('up') } }, history) } }],
    [PUBLISHER_FAILS, /reports up/, class extends BrokenBroker { override async openPublisher (sink: Pick<Sink, 'state'>, history: History) { let told = 0; return await super.openPublisher({ state: state => { if (told++ < 2) sink.state(state) } }, history) } }],
    [PUBLISHER_FAILS, /equal/, class extends BrokenBroker { override async openPublisher (sink: Pick<Sink, 'state'>, history: History) { return await super.openPublisher({ state: state => { if (state === 'down') { sink.state('down'); sink.state('up') } sink.state(state) } }, history) } }],
    [STORE_FAILS, /a publish is rejected/, late(false)],
    [STORE_FAILS, /equal/, withSink(sink => ({ state: state => { if (state === 'up') sink.gap('epoch'); sink.state(state) } }))],
    [STORE_FAILS, /equal/, withSink(sink => ({ state: state => { if (state === 'down') { sink.state('down'); sink.state('up') } sink.state(state) } }))],
    [STORE_FAILS, /reports down/, withSink(sink => ({ state: state => { if (state === 'up') sink.state('up') } }))],
    [STORE_FAILS, /rejection/, answeringAfterClose('claim')],
    [STORE_FAILS, /each once, in order/, withSink(sink => ({ deliver: message => { if (message.data === 'after') sink.deliver(message); return sink.deliver(message) } }))],
    [STORE_FAILS, /equal/, reading(page => ({ ...page, messages: page.messages.slice(1) }))],
    [STORE_FAILS, /equal/, class extends BrokenBroker { override async publish (message: OutgoingMessage) { const { seq, delivered } = await super.publish(message); return { seq: message.data === 'after' ? seq! + 1 : seq, delivered } } }],
    [AHEAD, /equal/, class extends BrokenBroker { override async read (request: ReadRequest) { return request.after > this.position ? { messages: [], next: this.position, gap: 'unknown' as const } : await super.read(request) } }],
    [AHEAD, /equal/, reading(page => page.gap === undefined ? { ...page, gap: 'unknown' } : page)],
    [AHEAD, /equal/, reading(page => ({ ...page, messages: page.messages.slice(1) }))],
    [AHEAD, /beyond the end/, withoutGap('unknown')],
    [AHEAD, /the node lags/, class extends BrokenBroker { override get position () { return super.position + 3 } }],
    [AWAY, /4 messages are delivered, there are 3/, second(withSink(sink => ({ deliver: message => message.data === 'command' ? 0 : sink.deliver(message) })))],
    [AWAY, /equal/, second(delivering(message => ({ ...message, data: ({ command: '1', 1: 'command' } as Record<string, string>)[message.data] ?? message.data })))],
    [AWAY, /equal/, second(withSink(sink => ({ state: state => { sink.state(state); sink.gap('trimmed') } })))],
    [MISSED, /equal/, second(withSink(() => ({ gap () {} })))],
    [MISSED, /equal/, second(withSink(sink => ({ gap: reason => sink.gap(reason, undefined, true) })))],
    [MISSED, /equal/, second(withSink(sink => ({ gap: () => sink.gap('epoch') })))],
    [MISSED, /the node has caught up/, second(class extends BrokenBroker { override get position () { return super.position - (super.position > 5 ? 1 : 0) } })]
  ])
})
