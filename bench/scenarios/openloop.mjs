import { connect } from 'node:net'
import { microseconds, sleep } from '../clock.mjs'
import { interleave } from '../rounds.mjs'
import { watchMachine } from '../machine.mjs'
import { judge } from '../session.mjs'

// Whoever has delivered everything this soon after the last event was published has kept up.
const KEPT_UP_SECONDS = 1

/** Events come from outside, over a socket, at a fixed rate: the honest test of batching. Who falls behind is measured once. */
export async function openloop (bench) {
  for (const { connections, rate, patience } of bench.sizes.openloop) {
    if (!bench.fits(connections, 'openloop')) continue
    const seconds = bench.openLoopSeconds
    await interleave(bench, {
      rounds: Math.min(bench.rounds, 2),
      open: async session => {
        await session.connect(connections)
        await publish(bench, session, rate / 10, 0.5, patience)
      },
      operations: [{
        scenario: `openloop-${connections}-${rate}`,
        measure: session => publish(bench, session, rate, seconds, patience)
      }],
      isLast: sample => !sample.keptUp
    })
  }
}

async function publish (bench, session, rate, seconds, patience) {
  await session.load('reset')
  const before = await session.server('usage')
  const watched = watchMachine()
  const start = microseconds()
  const published = await send(session.publisherPort, rate, seconds, bench.eventBytes)
  const last = microseconds()
  const deliveries = published * session.connections
  while (session.received < deliveries && microseconds() - last < patience * 1e6) await sleep(5)
  const end = microseconds()
  const load = await session.load('result')
  const complete = load.received === deliveries
  const after = complete ? await session.server('usage', {}, 10_000) : null
  // What a server does that cannot answer is not known; it has a core for itself.
  const foreign = watched(load.cpu + (after === null ? end - start : after.cpu - before.cpu))
  const counted = { seconds: (end - start) / 1e6, published, deliveries, keptUp: complete && end - last < KEPT_UP_SECONDS * 1e6, drainMs: (end - last) / 1000 }
  if (after !== null && after.publishErrors > before.publishErrors) throw new Error('a publish failed')
  if (complete) return judge({ ...counted, complete, cpu: after.cpu - before.cpu }, load, foreign)
  // It would need minutes to finish; what has arrived until now says enough.
  const { cpu, serverBusy, ...figures } = judge({ ...counted, cpu: 0, deliveries: load.received }, load, foreign)
  return { ...figures, abandoned: true }
}

/** One connection, a line for each event, each due at its own time. Returns how many were sent. */
async function send (port, rate, seconds, size) {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject))
  socket.on('error', () => {})
  const pad = 'x'.repeat(Math.max(0, size - JSON.stringify({ t: microseconds(), q: 1000, pad: '' }).length))
  const total = Math.max(1, Math.round(rate * seconds))
  const start = microseconds()
  for (let q = 0; q < total;) {
    const due = Math.min(total, Math.floor((microseconds() - start) / 1e6 * rate) + 1)
    for (; q < due; q++) socket.write(JSON.stringify({ t: microseconds(), q, pad }) + '\n')
    await sleep(1)
  }
  socket.end()
  return total
}
