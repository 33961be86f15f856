import { spawnSync } from 'node:child_process'
import { BOOT } from '../options.mjs'
import { shuffle } from '../rounds.mjs'

const SCRIPT = new URL('../boot.mjs', import.meta.url).pathname
const PROCESSES_PER_ROUND = 5

/** From the import to `ready()`, with Fastify loaded before: a fresh process for each sample. */
export async function boot (bench) {
  const scenario = 'boot'
  const rounds = bench.rounds * PROCESSES_PER_ROUND
  for (let round = 1; round <= rounds; round++) {
    for (const implementation of shuffle(BOOT)) {
      if (bench.late) return bench.note(`${scenario}: stopped in round ${round} of ${rounds}: the time is over (--minutes)`)
      bench.progress(`${scenario}: round ${round} of ${rounds}, ${implementation}`)
      const { status, stdout, stderr } = spawnSync(process.execPath, [SCRIPT, implementation], { encoding: 'utf8', env: { ...process.env, NODE_ENV: 'production' } })
      if (status !== 0) return bench.fail(scenario, implementation, stderr.trim().split('\n').at(-1))
      bench.add({ scenario, implementation, round, ...JSON.parse(stdout) })
    }
  }
}
