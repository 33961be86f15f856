import { test } from 'tap'
import { brokerContract, testLog, type TestBroker, type TestLog } from '../../lib/testing/index.js'

const logs = new Map<string, TestLog>()
/** The nodes of the contract that was started last. */
let nodes: TestBroker[] = []

brokerContract(test, 'test log', (name, node) => {
  const log = logs.get(name) ?? testLog()
  logs.set(name, log)
  if (node === 0) nodes = []
  return (nodes[node] = log.broker())
}, {
  shared: true,
  faults: {
    cut: node => nodes[node]!.fail(),
    hold: node => nodes[node]!.lag(),
    heal: node => {
      nodes[node]!.catchUp()
      nodes[node]!.restore()
    }
  }
})
