import { Session } from '../session.mjs'

const EVENTS = 100
// Larger than what is allocated: nothing is collected while it is counted.
const YOUNG_GENERATION = ['--min-semi-space-size=256', '--max-semi-space-size=256']
const SITES = 8

/** Bytes allocated by publishing, and where. Two sizes tell what an event costs once from what each delivery adds. */
export async function allocation (bench) {
  const scenario = 'allocation'
  for (const implementation of bench.implementations) {
    if (bench.late) return bench.note(`${scenario}: stopped before ${implementation}: the time is over (--minutes)`)
    bench.progress(`${scenario}: ${implementation}`)
    try {
      const [few, many] = bench.sizes.allocation
      const less = await sample(bench, implementation, few)
      bench.add({ scenario, implementation, round: 1, ...compare(few, less, many, await sample(bench, implementation, many)) })
    } catch (error) {
      bench.fail(scenario, implementation, error.message)
    }
  }
}

async function sample (bench, implementation, connections) {
  const session = new Session(implementation, { nodeOptions: YOUNG_GENERATION })
  try {
    await session.connect(connections)
    await session.load('reset')
    return await session.server('allocation', { connections, events: EVENTS, size: bench.eventBytes, from: 0 })
  } finally {
    await session.stop()
  }
}

function compare (few, less, many, more) {
  if (less.collected + more.collected > 0) throw new Error('the garbage collector ran meanwhile: the figures would be too low')
  const heapPerDelivery = (more.heap - less.heap) / EVENTS / (many - few)
  return {
    heapPerDelivery,
    heapPerEvent: less.heap / EVENTS - heapPerDelivery * few,
    externalPerDelivery: (more.external - less.external) / EVENTS / (many - few),
    sites: more.sites.slice(0, SITES).map(([site, bytes]) => [site, bytes / EVENTS / many])
  }
}
