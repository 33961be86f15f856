import t from 'tap'
import type { RunEnd, RunState } from '../../lib/log/run-store.js'
import { formatRunId, hasNothing, startOf } from '../../lib/runs/run-position.js'

// Where a client begins, for each position around the end of a run.

const GENERATION = 7
const at = (event: number, generation = GENERATION) => formatRunId(generation, event)
const stateOf = (status: RunState['status'], events: number): RunState => ({ generation: GENERATION, status, events, startedAt: 1, endedAt: status === 'running' ? null : 2, settings: '', isRead: false })
const ENDS: readonly RunEnd[] = ['done', 'failed', 'stopped', 'lost']

t.test('a client continues after its last event, and only the id behind the last event of a run that has ended is its end', async t => {
  const begin = { generation: GENERATION, after: 0, isOver: false }
  for (const events of [0, 1, 3]) {
    for (const status of ['running', ...ENDS] as const) {
      const state = stateOf(status, events)
      const name = `${status} ${events}`
      for (const none of [null, '']) t.same(startOf(state, none), { ...begin, gap: null }, name)
      for (let after = 0; after <= events; after++) t.same(startOf(state, at(after)), { ...begin, after, gap: null }, `${name} ${after}`)
      t.same(startOf(state, at(events + 1)), status === 'running' ? { ...begin, gap: 'unknown' } : { ...begin, after: events, gap: null, isOver: true }, name)
      t.same(startOf(state, at(events + 2)), { ...begin, gap: 'unknown' }, name)
      for (const other of [GENERATION - 1, GENERATION + 1]) t.same(startOf(state, at(0, other)), { ...begin, gap: 'epoch' }, name)
      t.same(startOf(state, 'k3f9x2ab.1'), { ...begin, gap: 'malformed' }, name)
    }
  }
})

t.test('a client receives 204 when it has everything, and not before', async t => {
  for (const control of [true, false]) {
    for (const events of [0, 1, 3]) {
      for (const status of ['running', ...ENDS] as const) {
        const run = { state: stateOf(status, events) }
        for (const [cursor, after] of [[null, null], ['', null], ['17', null], [at(1, 6), null], ...Array.from({ length: events + 3 }, (_, after) => [at(after), after])] as [string | null, number | null][]) {
          const hasEnd = status !== 'running' && after === events + 1
          // Without control events, no event tells the client of the end: the last event of the run is all that it can have.
          const hasAll = !control && status !== 'running' && after === events && events > 0
          t.equal(hasNothing(run, cursor, control), hasEnd || hasAll, JSON.stringify({ control, status, events, cursor }))
        }
      }
    }
    for (const [cursor, isTold] of [[null, false], ['', false], ['17', false], [at(0), true], [at(3), true]] as const) t.equal(hasNothing(null, cursor, control), !(control && isTold), `unknown run, ${cursor}, ${control}`)
  }
})
