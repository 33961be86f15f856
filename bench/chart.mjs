// The main comparison as a picture. By itself: node bench/chart.mjs <results.json> > comparison.svg
import { readFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'
import { F, OURS, Statistics, W } from './statistics.mjs'

const LABELS = { [OURS]: 'fastify-sse-manager', [F]: 'bare socket writes', [W]: 'bare res.write()', 'fastify-sse': '@fastify/sse' }
const COLOURS = { [OURS]: '#0b6e4f', [F]: '#9aa5b1', [W]: '#9aa5b1' }
const PEER_COLOUR = '#d08c3f'
const INK = '#1f2933'
const PALE_INK = '#52606d'

const WIDTH = 880
const LABEL_WIDTH = 170
const VALUE_WIDTH = 90
const BAR = 18
const STEP = 25
const PANEL_HEAD = 48
const MARGIN = 24

const PANELS = [
  { find: name => largest(name, 'fanout', '1', 1000), metric: 'cpu', title: n => `Single events to ${n} connections`, unit: 'server CPU per delivered event, µs', digits: 2 },
  { find: name => largest(name, 'fanout', '10', 1000), metric: 'cpu', title: n => `Bursts of ten events to ${n} connections`, unit: 'server CPU per delivered event, µs', digits: 2 },
  { find: name => largest(name, 'idle', undefined, Infinity), metric: 'rssPerConnection', title: n => `${n} idle connections`, unit: 'memory (RSS) per connection, KB', digits: 1, scale: 1 / 1000 }
]

/** The scenario of this kind with the most connections up to `limit`. */
function largest (scenarios, kind, variant, limit) {
  return scenarios
    .map(scenario => ({ scenario, parts: scenario.split('-') }))
    .filter(({ parts }) => parts[0] === kind && parts[2] === variant && Number(parts[1]) <= limit)
    .sort((a, b) => Number(b.parts[1]) - Number(a.parts[1]))[0]?.scenario
}

/** An SVG of horizontal bars, shorter is better; null when the run had none of its scenarios. */
export function drawComparison (results) {
  const statistics = new Statistics(results)
  const panels = PANELS.map(panel => ({ ...panel, scenario: panel.find(statistics.scenarios) })).filter(({ scenario }) => scenario !== undefined)
  if (panels.length === 0) return null
  const parts = []
  let y = MARGIN
  for (const panel of panels) {
    const bars = barsOf(statistics, panel)
    parts.push(drawPanel(panel, bars, y))
    y += PANEL_HEAD + bars.length * STEP + MARGIN
  }
  const footer = `Shorter is better. Node ${results.node}, one core for the server, one for the load; medians of interleaved rounds of one run.`
  parts.push(text(MARGIN, y, footer, { size: 12, colour: PALE_INK }))
  const height = y + MARGIN
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" font-family="system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif" role="img" aria-label="${escape(describe(statistics, panels))}">`,
    `<rect width="${WIDTH}" height="${height}" rx="8" fill="#ffffff"/>`,
    ...parts,
    '</svg>',
    ''
  ].join('\n')
}

function barsOf (statistics, { scenario, metric, scale = 1 }) {
  return statistics.implementations(scenario)
    .map(implementation => ({ implementation, value: Math.max(0, statistics.value(scenario, implementation, metric) * scale) }))
    .sort((a, b) => a.value - b.value)
}

function drawPanel ({ scenario, title, unit, digits }, bars, y) {
  const connections = Number(scenario.split('-')[1]).toLocaleString('en')
  const longest = Math.max(...bars.map(({ value }) => value), Number.EPSILON)
  const room = WIDTH - 2 * MARGIN - LABEL_WIDTH - VALUE_WIDTH
  const lines = [
    text(MARGIN, y + 14, title(connections), { size: 16, weight: 600 }),
    text(MARGIN, y + 32, unit, { size: 12, colour: PALE_INK })
  ]
  bars.forEach(({ implementation, value }, i) => {
    const top = y + PANEL_HEAD + i * STEP
    const width = Math.max(2, value / longest * room)
    const weight = implementation === OURS ? 600 : 400
    lines.push(
      text(MARGIN + LABEL_WIDTH - 10, top + 13, LABELS[implementation] ?? implementation, { size: 13, anchor: 'end', weight }),
      `<rect x="${MARGIN + LABEL_WIDTH}" y="${top}" width="${width.toFixed(1)}" height="${BAR}" rx="3" fill="${COLOURS[implementation] ?? PEER_COLOUR}"/>`,
      text(MARGIN + LABEL_WIDTH + width + 8, top + 13, value.toFixed(digits), { size: 13, weight })
    )
  })
  return lines.join('\n')
}

function describe (statistics, panels) {
  return panels.map(panel => `${panel.unit}: ${barsOf(statistics, panel).map(({ implementation, value }) => `${LABELS[implementation] ?? implementation} ${value.toFixed(panel.digits)}`).join(', ')}`).join('. ')
}

function text (x, y, content, { size, weight = 400, colour = INK, anchor = 'start' }) {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" font-size="${size}" font-weight="${weight}" fill="${colour}" text-anchor="${anchor}">${escape(content)}</text>`
}

function escape (content) {
  return content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  process.stdout.write(drawComparison(JSON.parse(readFileSync(process.argv[2] ?? new URL('results/latest.json', import.meta.url), 'utf8'))) ?? '')
}
