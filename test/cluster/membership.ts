import t from 'tap'
import { Membership } from '../../lib/cluster/membership.js'
import { testClock } from '../../lib/testing/index.js'
import { systemClock, type Clock } from '../../lib/util/clock.js'
import { REPORT } from '../helpers/cluster.js'
import { recorder } from '../helpers/logged.js'

// Which other nodes live, by what they report.

t.test('after a time in which this node heard nobody, the others have all their time again', async t => {
  const time = testClock()
  const gone: string[] = []
  const membership = new Membership(time.clock, 1_000, { beat: async () => {}, gone: nodeId => { gone.push(nodeId) } }, recorder().log)
  membership.heard({ ...REPORT, nodeId: 'there', status: 'up', everyMs: 60_000 })
  // What a node that reports says otherwise does not count apart.
  membership.noticed('there')
  membership.start()
  await time.advance(200_000)
  membership.listen(false)
  await time.advance(60_000)
  membership.listen(true)
  await time.advance(200_000)
  t.strictSame(gone, [])
  await time.advance(60_000)
  membership.stop()
  t.strictSame(gone, ['there'], 'three and a half of its intervals')
})

t.test('heartbeats are spread over a time, and who is there is known after three and a half of them', async t => {
  const due: { ms: number, run: () => unknown, held: boolean, cancelled: boolean }[] = []
  const clock: Clock = {
    ...systemClock,
    wall: () => 7,
    after: (ms, run) => {
      const timer = { ms, run, held: true, cancelled: false, unref: () => { timer.held = false } }
      due.push(timer)
      return timer
    },
    cancel: timer => { Object.assign(timer!, { cancelled: true }) }
  }
  const gone: string[] = []
  const told = Promise.resolve()
  const membership = new Membership(clock, 1_000, { beat: () => told, gone: nodeId => { gone.push(nodeId) } }, recorder().log)
  const beat = () => due.at(-1)!.run()
  membership.start()
  membership.heard({ ...REPORT, nodeId: 'fast', status: 'up', everyMs: 10 })
  t.match([...membership.all()], [{ heardAt: 7, report: { nodeId: 'fast' } }])
  membership.closed('never seen')
  membership.listen(false)
  for (let i = 0; i < 10; i++) beat()
  t.equal(membership.established, false, 'it could hear nobody')
  membership.listen(true)
  let heardMs = 0
  const silences: boolean[] = []
  for (let i = 0; i < 10; i++) {
    heardMs += due.at(-1)!.ms
    t.equal(beat(), told, 'the clock of a test waits for what is sent')
    t.equal(membership.established, (heardMs > 3_500))
    silences.push(gone.includes('fast') === (heardMs > 3_500))
  }
  t.ok(silences.every(Boolean), 'a node that beats faster is given the beats of this one')
  t.strictSame(gone, ['fast'])
  // A node that has not reported is given three and a half of the longest intervals.
  membership.noticed('stranger')
  let silentMs = 0
  for (let i = 0; i < 300; i++) {
    silentMs += due.at(-1)!.ms
    beat()
    if (gone.includes('stranger') !== (silentMs > 210_000)) t.fail(`after ${silentMs} ms`)
  }
  t.strictSame(gone, ['fast', 'stranger'])
  const times = due.map(({ ms }) => ms)
  t.ok(times.every(ms => Number.isInteger(ms) && ms >= 800 && ms <= 1_200))
  t.ok(Math.min(...times) < 900 && Math.max(...times) > 1_100, 'a fifth to both sides')
  t.ok(due.every(({ held }) => !held), 'none keeps the process alive')
  membership.stop()
  t.strictSame(due.map(({ cancelled }) => cancelled), due.map((_, i) => i === due.length - 1))
})

t.test('a node that says something and never reports is gone in the end, one that reports is not', async t => {
  const time = testClock()
  const gone: string[] = []
  let beats = 0
  const membership = new Membership(time.clock, 1_000, {
    beat: async () => {
      beats++
      membership.heard({ ...REPORT, nodeId: 'reports', status: 'up' })
    },
    gone: nodeId => { gone.push(`${nodeId} after ${beats}`) }
  }, recorder().log)
  for (const nodeId of ['silent', 'reports', 'says bye']) membership.noticed(nodeId)
  membership.closed('says bye')
  t.strictSame(gone, ['says bye after 0'])
  membership.start()
  await time.advance(600_000)
  membership.stop()
  t.equal(gone.length, 2)
  t.match(gone[1], /^silent after (?:1[7-9]\d|2[0-5]\d)$/, 'three and a half of the longest intervals')
})
