import { readFileSync } from 'node:fs'
import { spawnSync } from 'node:child_process'
import { parseArgs } from 'node:util'

export const FLOORS = ['floor-socket', 'floor-write']
export const OURS = 'ours'
export const PEERS = ['better-sse', 'fastify-sse', 'fastify-sse-v2']
/** With two nodes and a Redis: the scenario `redis`, which takes `ours` as the same on one node with the log in memory. */
export const SHARED = ['ours-redis', 'pubsub']
/** Over HTTP/2: the scenario `h2`. */
export const H2 = ['ours-h2', 'floor-h2']
/** What the scenario `boot` starts. */
export const BOOT = [OURS, 'ours-typed', 'fastify-sse', 'fastify-sse-v2']
export const SCENARIOS = ['fanout', 'latency', 'topics', 'sources', 'runs', 'h2', 'idle', 'replay', 'storm', 'boot', 'stall', 'openloop', 'stalled', 'allocation', 'redis']

const FULL = {
  fanout: [100, 1000, 10_000],
  latency: 1000,
  topics: 10_000,
  sources: 500,
  runs: 500,
  h2: 1000,
  idle: 10_000,
  replay: 200,
  storm: 5000,
  stall: 10_000,
  // patience: seconds given to whoever falls behind to deliver what was published.
  openloop: [{ connections: 1000, rate: 400, patience: 8 }, { connections: 1000, rate: 1000, patience: 3 }, { connections: 10_000, rate: 100, patience: 3 }],
  stalled: { connections: 1000, stalled: 10 },
  allocation: [100, 600],
  redis: 1000
}
const QUICK = {
  fanout: [20, 200],
  latency: 100,
  topics: 200,
  sources: 100,
  runs: 100,
  h2: 100,
  idle: 500,
  replay: 50,
  storm: 500,
  stall: 500,
  openloop: [{ connections: 100, rate: 200, patience: 3 }],
  stalled: { connections: 50, stalled: 5 },
  allocation: [100, 600],
  redis: 100
}

const USAGE = `npm run bench -- [options]
  --quick              small sizes, about a minute: does it work? The figures mean little
  --only <a,b>         scenarios: ${SCENARIOS.join(', ')}
  --peers <a,b>        implementations: ${[...FLOORS, OURS, ...PEERS].join(', ')}
  --rounds <n>         rounds of each measurement (5; some scenarios use fewer)
  --seconds <n>        length of one measurement (0.6)
  --stall-seconds <n>  how long the stalled readers stall (60)
  --storm <n>          how many clients return at once (5,000)
  --minutes <n>        no measurement begins later than this (30)
  --add                keeps what the last run measured and this one does not
  --json <file>        where the results go besides bench/results/latest.json
  --publish            also writes bench/results/latest.md and comparison.svg, which the README shows`

export function readOptions (argv) {
  const { values } = parseArgs({
    args: argv,
    options: {
      quick: { type: 'boolean', default: false },
      only: { type: 'string' },
      peers: { type: 'string' },
      rounds: { type: 'string' },
      seconds: { type: 'string' },
      'stall-seconds': { type: 'string' },
      storm: { type: 'string' },
      minutes: { type: 'string', default: '30' },
      add: { type: 'boolean', default: false },
      json: { type: 'string' },
      publish: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false }
    }
  })
  if (values.help) {
    console.log(USAGE)
    process.exit()
  }
  const { quick } = values
  const sizes = quick ? QUICK : FULL
  return {
    quick,
    scenarios: list('only', values.only, SCENARIOS),
    implementations: list('peers', values.peers, [...FLOORS, OURS, ...PEERS]),
    sizes: { ...sizes, storm: number('storm', values.storm, sizes.storm) },
    eventBytes: 200,
    rounds: number('rounds', values.rounds, quick ? 2 : 5),
    seconds: number('seconds', values.seconds, quick ? 0.2 : 0.6),
    openLoopSeconds: quick ? 1 : 3,
    stallSeconds: number('stall-seconds', values['stall-seconds'], quick ? 2 : 60),
    minutes: number('minutes', values.minutes),
    add: values.add,
    json: values.json,
    publish: values.publish
  }
}

function list (name, value, known) {
  if (value === undefined) return known
  const chosen = value.split(',')
  for (const item of chosen) if (!known.includes(item)) throw new Error(`--${name}: ${item} is none of ${known.join(', ')}`)
  // Always in the same order, whatever was typed.
  return known.filter(item => chosen.includes(item))
}

function number (name, value, otherwise) {
  const result = value === undefined ? otherwise : Number(value)
  if (!(result > 0)) throw new Error(`--${name} must be a number above 0`)
  return result
}

/** How many files a process started from here may open, after asking for more. */
export function raiseFileLimit (wanted) {
  // Node itself goes up to the hard limit; only the superuser can raise that.
  spawnSync('prlimit', ['--pid', String(process.pid), `--nofile=${wanted}:${wanted}`])
  try {
    const line = readFileSync('/proc/self/limits', 'utf8').split('\n').find(line => line.startsWith('Max open files'))
    return Number(line.split(/\s+/)[4])
  } catch {
    const { stdout } = spawnSync('sh', ['-c', 'ulimit -Hn'], { encoding: 'utf8' })
    return stdout?.trim() === 'unlimited' ? Infinity : Number(stdout) || 1024
  }
}
