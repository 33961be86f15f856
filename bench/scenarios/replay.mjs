import { sleep } from '../clock.mjs'
import { watchMachine } from '../machine.mjs'
import { OURS } from '../options.mjs'
import { interleave, shuffle } from '../rounds.mjs'
import { Session } from '../session.mjs'

const EVENTS = 10_000
/** One event in so many is for the returning client. */
const ONE_OF = 100
const SETTLE_MS = 200

/**
 * Clients return after 10,000 events: what one costs, beside a first connect. `sparse`: one event of a hundred is for it. `dense`: all
 * of as many are. `none`: none is. `pattern` and `noPattern`: as `sparse` and `none`, with a pattern. Only this package keeps a log.
 */
export async function replay (bench) {
  const clients = bench.sizes.replay
  if (!bench.fits(clients, 'replay')) return
  const due = EVENTS / ONE_OF
  let cases
  await interleave(bench, {
    rounds: bench.rounds,
    implementations: bench.implementations.filter(implementation => implementation === OURS),
    create: implementation => new Session(implementation, { env: { BENCH_HISTORY_EVENTS: 2 * EVENTS } }),
    open: async session => {
      const mixed = await session.server('fill', { events: EVENTS, topics: Array.from({ length: ONE_OF }, (_, i) => `mixed${i}`), size: bench.eventBytes })
      const dense = await session.server('fill', { events: due, topics: ['dense'], size: bench.eventBytes })
      cases = {
        connect: ['nothing', null, 0],
        none: ['nothing', mixed.cursor, 0],
        noPattern: ['nothing:**', mixed.cursor, 0],
        sparse: ['mixed0', mixed.cursor, due],
        pattern: ['mixed0:**', mixed.cursor, due],
        dense: ['dense', dense.cursor, due]
      }
      await measure(session)
    },
    operations: [{ scenario: `replay-${clients}`, measure }]
  })

  async function measure (session) {
    const costs = {}
    const foreign = []
    for (const name of shuffle(Object.keys(cases))) {
      const sample = await comeBack(session, cases[name], clients)
      costs[name] = sample.cpu
      foreign.push(sample.foreign)
    }
    return { ...costs, sparseRatio: costs.sparse / costs.dense, noneRatio: costs.none / costs.connect, foreign: Math.max(...foreign) }
  }
}

async function comeBack (session, [subscription, lastEventId, due], clients) {
  await session.load('reset')
  const watched = watchMachine()
  const before = await session.server('usage')
  await session.connect(clients, { path: 'subscriptionPath', values: { subscription }, lastEventId, concurrency: 16 })
  await session.receive(clients * due)
  // A client that receives nothing has not finished when it is open: the log is read then.
  await sleep(SETTLE_MS)
  const after = await session.server('usage')
  const load = await session.load('result')
  session.judge(load, clients * due)
  await session.disconnect()
  return { cpu: (after.cpu - before.cpu) / clients, foreign: watched(after.cpu - before.cpu + load.cpu) }
}
