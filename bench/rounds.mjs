import { MAX_FOREIGN } from './machine.mjs'
import { Session } from './session.mjs'

// A disturbed sample is taken again, so often at most; the quietest counts.
const TRIES = 3

/**
 * Runs every operation with every implementation in every round, in random order: whatever else the machine does meets all
 * of them. `open(session)` makes each session ready, `measure(session)` makes a sample. An implementation takes no further
 * part after a sample for which `isLast` is true. `create(implementation)` makes its session.
 */
export async function interleave (bench, { operations, rounds, open, tries = TRIES, isLast = () => false, implementations = bench.implementations, create = implementation => new Session(implementation) }) {
  const [{ scenario: name }] = operations
  const sessions = []
  try {
    for (const implementation of implementations) {
      bench.progress(`${name}: connecting, ${implementation}`)
      const session = create(implementation)
      sessions.push(session)
      await attempt(bench, name, sessions, session, () => open(session))
    }
    for (let round = 1; round <= rounds; round++) {
      for (const { scenario, measure } of operations) {
        for (const session of shuffle(sessions)) {
          if (bench.late) return bench.note(`${scenario}: stopped in round ${round} of ${rounds}: the time is over (--minutes)`)
          bench.progress(`${scenario}: round ${round} of ${rounds}, ${session.implementation}`)
          await attempt(bench, scenario, sessions, session, async () => {
            const sample = await quietest(bench, tries, () => measure(session), isLast)
            bench.add({ scenario, implementation: session.implementation, round, ...sample })
            if (isLast(sample)) await dismiss(sessions, session)
          })
        }
      }
    }
  } finally {
    await Promise.all(sessions.map(session => session.stop()))
  }
}

async function quietest (bench, tries, measure, isLast) {
  let best = null
  for (let i = 0; i < tries; i++) {
    const sample = await measure()
    if (best === null || sample.foreign < best.foreign) best = sample
    if (best.foreign <= MAX_FOREIGN || bench.late || isLast(sample)) break
  }
  return best
}

/** A failure is reported, fails the whole run, and ends this implementation's part in the scenario. */
async function attempt (bench, scenario, sessions, session, step) {
  try {
    await step()
  } catch (error) {
    bench.fail(scenario, session.implementation, error.message)
    await dismiss(sessions, session)
  }
}

async function dismiss (sessions, session) {
  sessions.splice(sessions.indexOf(session), 1)
  await session.stop()
}

export function shuffle (items) {
  const shuffled = [...items]
  for (let i = shuffled.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1))
    ;[shuffled[i], shuffled[j]] = [shuffled[j], shuffled[i]]
  }
  return shuffled
}
