import { test } from 'tap'
import { memoryBroker } from '../../lib/brokers/memory.js'
import { brokerContract } from '../../lib/testing/contract.js'

brokerContract(test, 'memory', memoryBroker)
