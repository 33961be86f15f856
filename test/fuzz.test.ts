import { randomInt } from 'node:crypto'
import fc from 'fast-check'
import t from 'tap'
import { PROPERTIES, stopRedis } from './fuzz/properties.js'
import { Session, type Setup, type Step } from './fuzz/session.js'

// What holds for every input. Each run has a seed of its own, which is printed; SEED=… runs that one again.
// `npm run fuzz -- --seconds 600` goes on with new ones. What they find, shrunk, belongs in FOUND.

const SEED = Number(process.env['SEED'] ?? randomInt(2 ** 31))
t.comment(`SEED=${SEED}`)

fc.configureGlobal({ includeErrorInReport: true })
t.teardown(stopRedis)

for (const { name, runs, make } of PROPERTIES) {
  t.test(name, { skip: runs === 0 && 'redis-server is not installed' }, async t => {
    const met: Record<string, number> = {}
    const result = await fc.check(make(met), { seed: SEED, numRuns: runs, unbiased: true })
    t.notOk(result.failed, fc.defaultReportMessage(result) ?? `${result.numRuns} runs`)
    t.comment(JSON.stringify(met))
    // They are worth nothing where nothing happens.
    const late = 'moved to a node that is late'
    if (name.startsWith('nodes')) t.ok(met[late]! > 0, `${late}: ${met[late]}`)
    if (!name.startsWith('sessions')) return
    for (const what of ['received', 'gap: malformed', 'gap: epoch', 'gap: unknown', 'gap: trimmed', 'gap: limit', 'connect: own', 'connect: other', 'end: client', 'end: kicked', 'end: stalled', 'end: max-age', 'end: shutdown']) {
      t.ok(met[what]! > 0, `${what}: ${met[what]}`)
    }
  })
}

const narrow = { networkBytes: 0, socketBytes: 1 }
const wide = { networkBytes: 1 << 20, socketBytes: 16_384 }
type Found = Partial<Setup> & { steps: Partial<Step>[] }
const event = { do: 'publish', burst: 1, priority: 1, size: 0, key: null, audience: 'all', pick: 0, ephemeral: false, local: false } as const

const FOUND: Record<string, Found> = {
  'a client whose cursor led nowhere, closed before it could be told, was given a place past the gap': {
    options: { outboxBytes: 1024 },
    wires: [narrow, wide, wide, wide],
    steps: [
      { do: 'connect', who: 0, cursor: 'epoch', gated: false },
      { do: 'wait', ms: 5 },
      { ...event, priority: 3, size: 1500 },
      { do: 'close', who: 0 }
    ]
  }
}

for (const [name, { front = 'fastify', options = {}, wires = [wide, wide, wide, wide], steps }] of Object.entries(FOUND)) {
  t.test(name, t => t.resolves(new Session({ front, options: { outboxBytes: 1 << 20, maxQueuedBytes: 1 << 28, drainMs: 1000, ...options }, wires }).run(steps as Step[])))
}
