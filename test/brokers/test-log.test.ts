import { test } from 'tap'
import { EventPriority } from '../../lib/index.js'
import { brokerContract, testLog, type BrokerContractOptions, type TestBroker, type TestLog } from '../../lib/testing/index.js'

const logs = new Map<string, TestLog>()
/** The nodes of the contract that was started last. */
let nodes: TestBroker[] = []

function create (name: string, node: number): TestBroker {
  const log = logs.get(name) ?? testLog()
  logs.set(name, log)
  if (node === 0) nodes = []
  return (nodes[node] = log.broker())
}

const options: BrokerContractOptions = {
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

brokerContract(test, 'test log', create, options)

// The tests of publishers, for a broker that has none.
brokerContract((name, run) => name.includes('publisher') && test(name, run), 'not for publishing', (name, node) => Object.assign(create(name, node), { openForPublishing: undefined }), options)

test('of the messages that a node has missed, only commands are reported as lost', async t => {
  const history = { maxEvents: 2, maxAgeMs: 60_000, maxBytes: 1 << 20 }
  const message = { event: 'x', data: '', priority: EventPriority.NORMAL, target: {} }
  for (const ephemeral of [true, false]) {
    const log = testLog()
    const [one, other] = [log.broker(), log.broker()]
    const gaps: unknown[] = []
    await one.open({ deliver: () => 0, gap () {}, state () {} }, history)
    await other.open({ deliver: () => 0, gap: (reason, _error, commandsKept) => { gaps.push([reason, commandsKept]) }, state () {} }, history)
    other.fail()
    await one.publish({ ...message, channel: 'node', ephemeral })
    for (let i = 0; i < 4; i++) await one.publish({ ...message, ephemeral: false })
    other.restore()
    t.strictSame(gaps, [['trimmed', ephemeral]])
  }
})
