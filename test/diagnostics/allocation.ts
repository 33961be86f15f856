import { Session } from 'node:inspector/promises'
import t from 'tap'
import { serve } from '../helpers/app.js'
import { Reports } from '../helpers/diagnostics.js'
import { turns } from '../helpers/wait.js'

const EVENTS = 300

interface Site { callFrame: { url: string }, selfSize: number, children: Site[] }

/** Bytes that functions of lib/diagnostics/ allocate while this runs, also of objects that were collected meanwhile. */
async function allocatedBy (work: () => Promise<void>): Promise<number> {
  const session = new Session()
  session.connect()
  // Each object is sampled.
  await session.post('HeapProfiler.startSampling', { samplingInterval: 1, includeObjectsCollectedByMajorGC: true, includeObjectsCollectedByMinorGC: true } as object)
  await work()
  const { profile } = await session.post('HeapProfiler.stopSampling')
  session.disconnect()
  const sum = ({ callFrame, selfSize, children }: Site): number => (/\/lib\/diagnostics\//.test(callFrame.url) ? selfSize : 0) + children.reduce((total, child) => total + sum(child), 0)
  return sum(profile.head as Site)
}

t.test('nothing is made for channels to which nobody listens', async t => {
  const { app, join } = await serve(t, { outboxBytes: 4_096 })
  const joined = await Promise.all(Array.from({ length: 20 }, () => join('ada')))
  joined[0]!.stream.freeze()
  const publish = async () => {
    for (let i = 0; i < EVENTS; i++) {
      await app.sse.broadcastEvent({ event: 'x', data: 'x'.repeat(100) }, { ephemeral: i % 2 === 0 })
      await turns(1)
    }
  }
  await publish()
  // Code that the engine compiles counts as well, which it does once; what is made for an event is made in each measurement.
  const measured: number[] = []
  const before = app.sse.stats()
  while (measured.at(-1) !== 0 && measured.length < 6) measured.push(await allocatedBy(publish))
  t.equal(measured.at(-1), 0, `bytes: ${measured.join(', ')}`)
  const after = app.sse.stats()
  t.equal(after.published - before.published, EVENTS * measured.length, 'it is counted all the same')
  const reports = new Reports(t, () => app.sse.nodeId)
  const bytes = await allocatedBy(publish)
  t.equal(reports.of('publish').length, EVENTS)
  t.ok(bytes > EVENTS * 50, `the measurement finds the payloads: ${bytes} bytes`)
})
