import { Session } from 'node:inspector/promises'
import { performance, PerformanceObserver } from 'node:perf_hooks'
import { microseconds, turn } from './clock.mjs'

const SAMPLING_BYTES = 1024
const TURNS_PER_EVENT = 4

/**
 * What publishing `events` events allocates, one event every few turns, each written before the next. In a process whose young
 * generation is larger than that, so that nothing is collected while it is counted; `collected` says when it was.
 */
export async function allocation ({ connections, events, size, from }, adapter, delivered) {
  const pad = 'x'.repeat(Math.max(0, size - 40))
  const publish = async count => {
    for (let i = 0; i < count; i++) {
      await adapter.publish({ t: microseconds(), q: from++, pad })
      // A write to all takes more than one; to wait for their delivery here would allocate as well, the more the longer it takes.
      for (let turns = 0; turns < TURNS_PER_EVENT; turns++) await turn()
    }
    if (!await delivered(from * connections)) throw new Error('not everything was delivered')
  }
  await publish(events)

  let collected = 0
  const observer = new PerformanceObserver(list => { collected += list.getEntries().length })
  global.gc()
  await turn()
  observer.observe({ entryTypes: ['gc'] })
  const start = performance.now()
  const before = process.memoryUsage()
  await publish(events)
  const after = process.memoryUsage()
  await turn()
  for (const entry of observer.takeRecords()) if (entry.startTime > start) collected++
  observer.disconnect()

  return {
    heap: after.heapUsed - before.heapUsed,
    external: after.external - before.external,
    collected,
    sites: await sites(() => publish(events)),
    next: from
  }
}

/** Which functions allocate, collected objects included. */
async function sites (work) {
  const session = new Session()
  session.connect()
  await session.post('HeapProfiler.startSampling', { samplingInterval: SAMPLING_BYTES, includeObjectsCollectedByMajorGC: true, includeObjectsCollectedByMinorGC: true })
  await work()
  const { profile } = await session.post('HeapProfiler.stopSampling')
  session.disconnect()
  const bytes = new Map()
  const visit = ({ callFrame, selfSize, children }) => {
    const file = callFrame.url.split('/').slice(-2).join('/')
    const name = `${callFrame.functionName || '(anonymous)'} ${file}${file === '' ? '' : `:${callFrame.lineNumber + 1}`}`
    bytes.set(name, (bytes.get(name) ?? 0) + selfSize)
    children.forEach(visit)
  }
  visit(profile.head)
  return [...bytes].sort(([, a], [, b]) => b - a).slice(0, 12)
}
