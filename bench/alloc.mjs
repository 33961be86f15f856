// Bytes allocated for each delivered event, ours beside the bare socket floor: node bench/alloc.mjs [implementation …]
import { Session } from './session.mjs'
import { F, OURS } from './statistics.mjs'

const EVENTS = 100
const SIZES = [100, 600]
const YOUNG_GENERATION = ['--min-semi-space-size=256', '--max-semi-space-size=256']

const implementations = process.argv.length > 2 ? process.argv.slice(2) : [F, OURS]
for (const implementation of implementations) {
  const results = []
  for (const connections of SIZES) {
    const session = new Session(implementation, { nodeOptions: YOUNG_GENERATION })
    try {
      await session.connect(connections)
      await session.load('reset')
      const result = await session.server('allocation', { connections, events: EVENTS, size: 200, from: 0 })
      results.push({ connections, ...result })
    } finally {
      await session.stop()
    }
  }
  print(implementation, results)
}

function print (implementation, [few, many]) {
  // Two sizes give both what an event costs once, and what each delivery adds.
  const deliveries = EVENTS * (many.connections - few.connections)
  const perDelivery = (many.heap - few.heap) / deliveries
  const perEvent = (few.heap - perDelivery * EVENTS * few.connections) / EVENTS
  console.log(`\n${implementation}: ${perDelivery.toFixed(0)} bytes of JS heap for each delivered event, and ${Math.round(perEvent).toLocaleString('en')} once for each event; outside the heap ${((many.external - few.external) / deliveries).toFixed(1)} and ${Math.round(many.external / EVENTS).toLocaleString('en')}`)
  if (few.collected + many.collected > 0) console.log('  The garbage collector ran meanwhile: these figures are too low')
  console.log(`  Where, at ${many.connections} connections (sampled), in bytes for each delivered event:`)
  for (const [site, bytes] of many.sites) console.log(`  ${(bytes / EVENTS / many.connections).toFixed(1).padStart(8)}  ${site}`)
}
