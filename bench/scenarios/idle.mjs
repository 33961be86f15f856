import { sleep } from '../clock.mjs'
import { shuffle } from '../rounds.mjs'
import { Session } from '../session.mjs'

/** Connections that only are there: what opening one costs, and the memory each holds. A fresh process for each sample. */
export async function idle (bench) {
  const connections = bench.sizes.idle
  if (!bench.fits(connections, 'idle')) return
  const scenario = `idle-${connections}`
  const rounds = Math.min(bench.rounds, 2)
  for (let round = 1; round <= rounds; round++) {
    for (const implementation of shuffle(bench.implementations)) {
      if (bench.late) return bench.note(`${scenario}: stopped in round ${round} of ${rounds}: the time is over (--minutes)`)
      bench.progress(`${scenario}: round ${round} of ${rounds}, ${implementation}`)
      const session = new Session(implementation)
      try {
        bench.add({ scenario, implementation, round, ...await sample(session, connections) })
      } catch (error) {
        bench.fail(scenario, implementation, error.message)
      } finally {
        await session.stop()
      }
    }
  }
}

async function sample (session, connections) {
  const booted = await session.server('usage')
  const first = Math.min(1000, connections)
  await session.connect(first)
  const warm = await session.server('usage')
  // From here on the code for opening and closing is compiled and its memory in place.
  await session.disconnect()
  const before = await session.server('collect')
  const { seconds } = await session.connect(connections)
  const opened = await session.server('usage')
  await sleep(500)
  const after = await session.server('collect')
  return {
    firstConnectCpu: (warm.cpu - booted.cpu) / first,
    connectCpu: (opened.cpu - before.cpu) / connections,
    connectRate: connections / seconds,
    rssPerConnection: (after.rss - before.rss) / connections,
    heapPerConnection: (after.heapUsed - before.heapUsed) / connections
  }
}
