import t from 'tap'
import { memoryBroker } from '../../lib/brokers/memory.js'
import { brokerContract } from './contract.js'

brokerContract(t, 'memory', memoryBroker)
