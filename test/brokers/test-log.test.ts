import { test } from 'tap'
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
