// Compares this package with the floors and with its peers, in one run: see README.md.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, loadavg } from 'node:os'
import { pinned } from './child.mjs'
import { drawComparison } from './chart.mjs'
import { raiseFileLimit, readOptions } from './options.mjs'
import { createReport } from './report.mjs'

const RESULTS = new URL('./results/', import.meta.url)
const LATEST = new URL('latest.json', RESULTS)
const FILES_BESIDE_CONNECTIONS = 200

const options = readOptions(process.argv.slice(2))
const start = Date.now()
const files = raiseFileLimit(65_536)
const samples = []
const notes = []
const failures = []
let shown = ''

/** What a scenario works with. */
const bench = {
  ...options,
  get late () { return Date.now() - start > options.minutes * 60_000 },
  add (sample) { samples.push(sample) },
  /** Says what it is doing: one line that changes on a terminal, otherwise a line for each round. */
  progress (text) {
    const time = `${Math.round((Date.now() - start) / 1000)} s`.padStart(6)
    if (process.stderr.isTTY) {
      process.stderr.write(`\r\x1b[K${time}  ${text}`)
    } else {
      const [line] = text.split(',')
      if (line !== shown) process.stderr.write(`${time}  ${line}\n`)
      shown = line
    }
  },
  note (text) {
    notes.push(text)
    say(text)
  },
  fail (scenario, implementation, message) {
    failures.push({ scenario, implementation, message })
    say(`FAILED  ${scenario}: ${implementation}: ${message}`)
  },
  /** Whether a process may open that many connections; says so when not. */
  fits (connections, scenario) {
    const fits = connections + FILES_BESIDE_CONNECTIONS <= files
    if (!fits) this.note(`${scenario}: ${connections} connections are skipped: a process may open ${files} files here (ulimit -n)`)
    return fits
  }
}

function say (text) {
  process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${text}\n` : `${text}\n`)
}

const load = loadavg()[0]
if (load > 0.5) bench.note(`The machine was busy when this began (load ${load.toFixed(1)}): take CPU figures with care, and throughput and latency not at all`)
if (!pinned) bench.note('Server and load have no core each (no taskset, or one core only): take figures with care')

for (const scenario of options.scenarios) {
  if (bench.late) {
    bench.note(`${scenario}: left out: the time is over (--minutes)`)
    continue
  }
  const module = await import(`./scenarios/${scenario}.mjs`)
  await module[scenario](bench)
}

const measured = {
  date: new Date(start).toISOString(),
  node: process.version,
  cpu: cpus()[0]?.model ?? 'unknown',
  version: JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')).version,
  peers: JSON.parse(readFileSync(new URL('package.json', import.meta.url), 'utf8')).dependencies,
  quick: options.quick,
  pinned,
  seconds: Math.round((Date.now() - start) / 1000),
  notes,
  failures,
  samples
}
const results = options.add ? add(JSON.parse(readFileSync(LATEST, 'utf8')), measured) : measured
const report = createReport(results)
mkdirSync(RESULTS, { recursive: true })
writeFileSync(LATEST, JSON.stringify(results))
if (options.json !== undefined) writeFileSync(options.json, JSON.stringify(results, null, 2))
if (options.publish) {
  const chart = drawComparison(results)
  writeFileSync(new URL('latest.md', RESULTS), report)
  if (chart !== null) writeFileSync(new URL('comparison.svg', RESULTS), chart)
}
if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
console.log(report)
if (failures.length > 0) process.exitCode = 1

/** What an earlier run has measured and this one has not is kept. */
function add (earlier, later) {
  const again = new Set([...later.samples, ...later.failures].map(({ scenario, implementation }) => `${scenario} ${implementation}`))
  const kept = ({ scenario, implementation }) => !again.has(`${scenario} ${implementation}`)
  return {
    ...later,
    seconds: earlier.seconds + later.seconds,
    notes: [...new Set([...earlier.notes, ...later.notes])],
    failures: [...earlier.failures.filter(kept), ...later.failures],
    samples: [...earlier.samples.filter(kept), ...later.samples]
  }
}
