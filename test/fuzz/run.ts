import { parseArgs } from 'node:util'
import fc from 'fast-check'
import { PROPERTIES, stopRedis } from './properties.js'

// npm run fuzz -- --seconds 600 [--only sessions] [--seed 1]
// Goes on with new seeds until the time is over or a fault is found, which it shrinks and tells the way back to.

const { values } = parseArgs({ options: { seconds: { type: 'string', default: '60' }, only: { type: 'string', default: '' }, seed: { type: 'string' } } })
const seconds = Number(values.seconds)
const { only } = values
let seed = Number(values.seed ?? Date.now() % 2 ** 31)
const chosen = PROPERTIES.filter(({ name, runs }) => runs > 0 && name.startsWith(only))
const deadline = Date.now() + seconds * 1000
const met = Object.fromEntries(chosen.map(({ name }) => [name, { runs: 0 } as Record<string, number>]))

while (Date.now() < deadline) {
  for (const { name, runs, make } of chosen) {
    const result = await fc.check(make(met[name]!), { seed, numRuns: Math.ceil(runs / 5), unbiased: seed % 2 === 0, interruptAfterTimeLimit: Math.max(1, deadline - Date.now()), markInterruptAsFailure: false })
    met[name]!['runs']! += result.numRuns
    if (!result.failed || result.counterexample === null) continue
    console.log(`FAULT: ${name}\nagain: npm run fuzz -- --only ${JSON.stringify(name.split(':')[0])} --seed ${seed}\n${JSON.stringify(result.counterexample)}`)
    console.log((result.errorInstance as Error | null)?.stack ?? result.errorInstance)
    await stopRedis()
    process.exit(1)
  }
  seed++
}
for (const [name, counts] of Object.entries(met)) console.log(name, counts)
await stopRedis()
console.log(`No fault found, last seed ${seed - 1}`)
