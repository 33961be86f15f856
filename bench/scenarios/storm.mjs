import { watchMachine } from '../machine.mjs'
import { microseconds } from '../clock.mjs'
import { OURS } from '../options.mjs'
import { interleave } from '../rounds.mjs'
import { Session } from '../session.mjs'

const EVENTS_PER_CLIENT = 1.2
/** As many as wait in the queue of a listening socket. More at once would be sent again by TCP after a second. */
const CONCURRENCY = 500

/**
 * Clients with a topic each connect, receive events as they are published, leave, and return all at once to receive the same events
 * from the log: the storm should cost no more than connecting and sending did.
 */
export async function storm (bench) {
  const clients = bench.sizes.storm
  if (!bench.fits(clients, 'storm')) return
  const events = Math.round(clients * EVENTS_PER_CLIENT)
  const topics = Array.from({ length: clients }, (_, i) => String(i))
  const connect = (session, lastEventId = null) => session.connect(clients, { path: 'topicPath', distinct: true, lastEventId, concurrency: CONCURRENCY })
  const run = async session => {
    const watched = watchMachine()
    const first = await timed(session, events, 0, () => connect(session))
    let cursor
    const live = await timed(session, events, events, async () => { ({ cursor } = await session.server('fill', { events, topics, size: bench.eventBytes })) })
    await session.disconnect()
    await session.server('watchLoop')
    const back = await timed(session, events, events, () => connect(session, cursor))
    const { stallP99, stallMax } = await session.server('unwatchLoop')
    await session.disconnect()
    return {
      stallP99,
      stallMax,
      liveMs: back.ms,
      expectedMs: first.ms + live.ms,
      timeRatio: back.ms / (first.ms + live.ms),
      cpuRatio: back.cpu / (first.cpu + live.cpu),
      foreign: watched(first.cpu + live.cpu + back.cpu + first.loadCpu + live.loadCpu + back.loadCpu)
    }
  }
  await interleave(bench, {
    rounds: Math.min(bench.rounds, 3),
    implementations: bench.implementations.filter(implementation => implementation === OURS),
    create: implementation => new Session(implementation, { env: { BENCH_HISTORY_EVENTS: 20 * events } }),
    open: run,
    operations: [{ scenario: `storm-${clients}-${events}`, measure: run }]
  })
}

/** Does something and waits until `due` events have been received. A stream that was refused or has ended fails the run. */
async function timed (session, events, due, action) {
  await session.load('reset')
  const before = await session.server('usage')
  const start = microseconds()
  await action()
  await session.receive(due)
  const ms = (microseconds() - start) / 1000
  const after = await session.server('usage')
  const load = await session.load('result')
  session.judge(load, due)
  return { ms, cpu: after.cpu - before.cpu, loadCpu: load.cpu }
}
