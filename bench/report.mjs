// The tables of a run. By itself: node bench/report.mjs <results.json>
import { readFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'
import { MAX_FOREIGN } from './machine.mjs'
import { F, H2_FLOOR, OURS, PUBSUB, Statistics, W } from './statistics.mjs'
import { checkTargets } from './targets.mjs'

const METRICS = {
  cpu: ['server CPU µs/event', value => value.toFixed(2)],
  nodesCpu: ['of which the nodes', value => value.toFixed(2)],
  redisCalls: ['commands/event', value => value.toFixed(2)],
  events: ['events/s', value => Math.round(value).toLocaleString('en')],
  rate: ['deliveries/s', value => Math.round(value).toLocaleString('en')],
  p50: ['p50 ms', milliseconds],
  p99: ['p99 ms', milliseconds],
  serverBusy: ['server busy', percent],
  loadBusy: ['load busy', percent],
  drainMs: ['all delivered after, ms', milliseconds],
  rssPerConnection: ['RSS/connection, bytes', value => Math.round(value).toLocaleString('en')],
  heapPerConnection: ['JS heap/connection, bytes', value => Math.round(value).toLocaleString('en')],
  connectCpu: ['server CPU µs/connect', value => value.toFixed(1)],
  firstConnectCpu: ['of the first 1,000', value => value.toFixed(1)],
  connectRate: ['connects/s', value => Math.round(value).toLocaleString('en')],
  bootMs: ['import to ready, ms', milliseconds],
  bootCpu: ['CPU ms', milliseconds],
  liveMs: ['all live after, ms', milliseconds],
  expectedMs: ['connects + bytes, ms', milliseconds],
  timeRatio: ['time ÷ their sum', value => value.toFixed(2)],
  cpuRatio: ['CPU ÷ their sum', value => value.toFixed(2)],
  connect: ['first connect', value => value.toFixed(0)],
  none: ['none for it', value => value.toFixed(0)],
  noPattern: ['none, a pattern', value => value.toFixed(0)],
  sparse: ['1 % for it', value => value.toFixed(0)],
  pattern: ['1 %, a pattern', value => value.toFixed(0)],
  dense: ['as many, dense', value => value.toFixed(0)],
  noneRatio: ['none ÷ connect', value => value.toFixed(2)],
  sparseRatio: ['1 % ÷ dense', value => value.toFixed(2)],
  published: ['published, MB', megabytes],
  rssGrowth: ['RSS growth, MB', megabytes],
  peakGrowth: ['at its peak, MB', megabytes],
  disconnected: ['disconnected', value => String(Math.round(value))],
  controlP50: ['p50 ms without', milliseconds],
  controlP99: ['p99 ms without', milliseconds],
  stallP99: ['loop stall p99 ms', milliseconds],
  stallMax: ['loop stall max ms', milliseconds],
  perRun: ['bytes/finished run', value => Math.round(value).toLocaleString('en')],
  runBytes: ['bytes of its events', value => Math.round(value).toLocaleString('en')],
  heapPerDelivery: ['bytes of heap/delivery', value => value.toFixed(0)],
  heapPerEvent: ['bytes of heap/event, once', value => Math.round(value).toLocaleString('en')],
  externalPerDelivery: ['outside the heap/delivery', value => value.toFixed(0)]
}

// The first of `ratios` is set against both floors; for all of them it is shown what ours is of each. With `bases` all of
// them are set against those, and nothing else.
const TABLES = {
  fanout: {
    title: ([connections, perTurn]) => `Fan-out, ${group(connections)} connections, ${perTurn === '1' ? 'single events' : `bursts of ${perTurn} per turn`}`,
    columns: ['cpu', 'rate', 'p50', 'p99', 'serverBusy', 'loadBusy'],
    ratios: ['cpu', 'rate']
  },
  latency: {
    title: ([connections]) => `Latency at 20,000 deliveries/s, ${group(connections)} connections`,
    columns: ['p50', 'p99', 'cpu'],
    ratios: ['p99', 'p50']
  },
  topics: {
    title: ([topics]) => `One of ${group(topics)} topics`,
    columns: ['cpu', 'rate', 'p50', 'p99', 'loadBusy'],
    ratios: ['cpu']
  },
  sources: {
    title: ([streams]) => `Sources, ${group(streams)} streams × 50 tokens/s`,
    columns: ['cpu', 'p50', 'p99', 'serverBusy'],
    ratios: ['cpu']
  },
  runs: {
    title: ([streams]) => `Runs, ${group(streams)} × 50 tokens/s, one reader each`,
    columns: ['cpu', 'nodesCpu', 'redisCalls', 'p50', 'p99', 'serverBusy'],
    ratios: ['nodesCpu', 'cpu'],
    bases: [[W, W]]
  },
  kept: {
    title: ([runs]) => `Memory of ${group(runs)} finished runs`,
    columns: ['perRun', 'runBytes'],
    ratios: []
  },
  h2: {
    title: ([connections, perTurn]) => `HTTP/2, ${group(connections)} streams, ten in a session, ${perTurn === '1' ? 'single events' : `bursts of ${perTurn} per turn`}`,
    columns: ['cpu', 'rate', 'p50', 'p99', 'loadBusy'],
    ratios: ['cpu', 'rate'],
    bases: [[H2_FLOOR, H2_FLOOR]]
  },
  replay: {
    title: ([clients]) => `Return of ${group(clients)} clients after 10,000 events, server CPU µs for each`,
    columns: ['connect', 'none', 'noPattern', 'sparse', 'pattern', 'dense', 'noneRatio', 'sparseRatio'],
    ratios: []
  },
  storm: {
    title: ([clients, events]) => `Storm: ${group(clients)} clients return at once after ${group(events)} events, each with a topic of its own`,
    columns: ['liveMs', 'expectedMs', 'timeRatio', 'cpuRatio', 'stallP99', 'stallMax'],
    ratios: []
  },
  boot: {
    title: () => 'Boot, after Fastify is loaded',
    columns: ['bootMs', 'bootCpu'],
    ratios: ['bootMs', 'bootCpu'],
    bases: []
  },
  idle: {
    title: ([connections]) => `Idle, ${group(connections)} connections`,
    columns: ['rssPerConnection', 'heapPerConnection', 'connectCpu', 'firstConnectCpu', 'connectRate'],
    ratios: ['rssPerConnection', 'connectCpu', 'firstConnectCpu']
  },
  stall: {
    title: ([connections]) => `Event loop while broadcasting to ${group(connections)} connections`,
    columns: ['stallP99', 'stallMax', 'cpu'],
    ratios: ['stallP99']
  },
  openloop: {
    title: ([connections, rate]) => `Open loop, ${group(connections)} connections × ${group(rate)} events/s from a socket`,
    columns: ['p50', 'p99', 'drainMs', 'cpu', 'serverBusy', 'loadBusy'],
    ratios: ['p99']
  },
  stalled: {
    title: ([stalled, , connections]) => `${stalled} stalled readers of ${group(connections)} at 320 KB/s`,
    columns: ['published', 'rssGrowth', 'peakGrowth', 'disconnected', 'controlP50', 'p50', 'controlP99', 'p99'],
    ratios: []
  },
  allocation: {
    title: () => 'Allocated by a broadcast',
    columns: ['heapPerDelivery', 'externalPerDelivery', 'heapPerEvent'],
    ratios: []
  },
  redis: {
    title: ([connections, kind]) => `Two nodes with ${group(connections)} connections and Redis, ${{ latency: '20,000 deliveries/s', 1: 'single events' }[kind] ?? `bursts of ${kind} per turn`}`,
    columns: ['events', 'rate', 'p50', 'p99', 'cpu'],
    ratios: ['rate', 'p50', 'cpu'],
    bases: [[PUBSUB, PUBSUB], [OURS, OURS]]
  }
}

export function createReport (results) {
  const statistics = new Statistics(results)
  const { date, node, cpu, version, peers, quick, seconds, pinned, notes, failures } = results
  const versions = Object.entries(peers).map(([name, number]) => `${name} ${number}`).join(', ')
  const lines = [
    '# Comparison',
    '',
    `${date.slice(0, 10)}, Node ${node}, ${cpu}, ${pinned ? 'server and load on a core each' : 'not pinned'}; ${seconds} s${quick ? ' (--quick: sizes too small for the figures to mean much)' : ''}.`,
    `This package ${version} (\`ours\`) beside ${versions}; F = \`${F}\`, W = \`${W}\`.`,
    'Medians of interleaved rounds; ratios are medians of ratios within the same round. `>`: it fell behind, and the figure would have grown on.',
    ...notes.map(note => `\n**Note:** ${note}.`),
    ...failures.map(({ scenario, implementation, message }) => `\n**FAILED:** ${scenario}, ${implementation}: ${message}.`)
  ]
  const targets = checkTargets(statistics)
  if (targets.length > 0) {
    lines.push('', '## Targets', '', ...table(['target', 'limit', 'measured', 'met'], targets.map(({ name, limit, value, met }) => [name, limit, typeof value === 'number' ? value.toFixed(2) : value ? 'yes' : 'no', met ? 'yes' : '**no**'])))
  }
  for (const scenario of statistics.scenarios) lines.push('', ...createTable(statistics, scenario))
  return lines.join('\n') + '\n'
}

function createTable (statistics, scenario) {
  const [kind, ...parts] = scenario.split('-')
  const { title, columns, ratios, bases } = TABLES[kind]
  const [first] = ratios
  const against = []
  for (const [base, name] of bases ?? []) {
    for (const metric of ratios) against.push({ heading: `${short(metric)} ÷ ${name}`, ratio: implementation => statistics.ratio(scenario, metric, implementation, base) })
  }
  if (bases === undefined && first !== undefined) for (const [base, letter] of [[F, 'F'], [W, 'W']]) against.push({ heading: `${short(first)} ÷ ${letter}`, ratio: implementation => statistics.ratio(scenario, first, implementation, base) })
  if (bases === undefined) for (const metric of ratios) against.push({ heading: `${short(metric)}: ours ÷ it`, ratio: implementation => statistics.ratio(scenario, metric, OURS, implementation) })
  const rows = statistics.implementations(scenario).map(implementation => {
    const behind = statistics.samples(scenario, implementation).some(sample => sample.abandoned)
    return [
      implementation === OURS ? `**${implementation}**` : implementation,
      ...columns.map(metric => format(metric, statistics.value(scenario, implementation, metric), behind)),
      ...against.map(({ ratio }) => formatRatio(ratio(implementation)))
    ]
  })
  return [
    `## ${title(parts)}`,
    '',
    ...table(['', ...columns.map(metric => METRICS[metric][0]), ...against.map(({ heading }) => heading)], rows),
    ...createProfile(statistics.samples(scenario, OURS)[0]?.sites ?? []),
    ...disturbance(statistics, scenario)
  ]
}

/** Which functions of ours allocate. */
function createProfile (sites) {
  if (sites.length === 0) return []
  return ['', ...table(['where ours are allocated (sampled)', 'bytes/delivery'], sites.map(([site, bytes]) => [`\`${site}\``, bytes.toFixed(1)]))]
}

function disturbance (statistics, scenario) {
  const shares = statistics.implementations(scenario).flatMap(implementation => statistics.samples(scenario, implementation)).map(sample => sample.foreign)
  const disturbed = shares.filter(share => share > MAX_FOREIGN)
  if (disturbed.length === 0) return []
  return ['', `Others used more than ${percent(MAX_FOREIGN)} of the two cores during ${disturbed.length} of ${shares.length} samples, ${percent(Math.max(...disturbed))} at most.`]
}

function format (metric, value, behind) {
  if (value === null) return '–'
  const growing = behind && ['p50', 'p99', 'drainMs'].includes(metric)
  return (growing ? '> ' : '') + METRICS[metric][1](value)
}

function formatRatio (value) {
  return value === null || !Number.isFinite(value) ? '–' : value.toFixed(value < 0.1 ? 3 : 2)
}

function short (metric) {
  return { cpu: 'CPU', nodesCpu: 'nodes', rate: 'deliveries/s', rssPerConnection: 'RSS', connectCpu: 'connect', firstConnectCpu: 'first connects', stallP99: 'stall' }[metric] ?? metric
}

/** Markdown whose columns also line up as plain text. */
function table (heading, rows) {
  const widths = heading.map((text, i) => Math.max(3, ...[heading, ...rows].map(row => row[i].length)))
  const line = row => `| ${row.map((text, i) => i === 0 ? text.padEnd(widths[i]) : text.padStart(widths[i])).join(' | ')} |`
  return [line(heading), `|${widths.map((width, i) => i === 0 ? '-'.repeat(width + 2) : '-'.repeat(width + 1) + ':').join('|')}|`, ...rows.map(line)]
}

function milliseconds (value) {
  return value >= 100 ? Math.round(value).toLocaleString('en') : value.toFixed(value >= 10 ? 1 : 2)
}

function megabytes (value) {
  return (value / 1e6).toFixed(1)
}

function percent (value) {
  return `${Math.round(value * 100)} %`
}

function group (number) {
  return Number(number).toLocaleString('en')
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  console.log(createReport(JSON.parse(readFileSync(process.argv[2] ?? new URL('results/latest.json', import.meta.url), 'utf8'))))
}
