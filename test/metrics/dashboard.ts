import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Registry } from 'prom-client'
import t from 'tap'
import { channelName, CHANNEL_NAMES } from '../../lib/diagnostics/channels.js'
import { registerMetrics } from '../../lib/metrics/index.js'
import { METRICS } from '../../lib/metrics/metrics.js'
import { anyAnswer, serve } from '../helpers/app.js'
import { openStream } from '../../lib/testing/index.js'
import { pageAt, ROOT, tableOf } from '../helpers/pages.js'
import { parseScrape, type Series } from '../helpers/scrape.js'

// What the dashboard and the alert rules ask for is in a scrape.

/** Labels that Prometheus adds. */
const ADDED = ['job', 'instance']

interface Panel { type: string, title: string, description: string, targets?: { expr: string, legendFormat: string }[] }

const read = (file: string) => readFileSync(join(ROOT, 'docs/operations', file), 'utf8')
const dashboard: { panels: Panel[], templating: { list: { name: string, query: unknown }[] } } = JSON.parse(read('grafana-dashboard.json'))
const rules = read('alerts.yaml')
const queries = dashboard.panels.flatMap(({ title, targets = [] }) => targets.map(({ expr, legendFormat }) => ({ title, expr, legendFormat })))
const alerts = Array.from(rules.matchAll(/^ {6}# (.*)\n {6}- alert: (\w+)\n {8}expr: (.*)\n/gm), ([, reason, title, expr]) => ({ reason: reason!, title: title!, expr: expr! }))

/** The selectors of a query: names with their matchers. */
function selectorsIn (expr: string): { name: string, matchers: [label: string, operator: string, value: string][] }[] {
  return Array.from(expr.matchAll(/\b(sse_\w+)(?:\{([^}]*)\})?/g), ([, name, matchers = '']) => ({
    name: name!,
    matchers: Array.from(matchers.matchAll(/(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"/g), ([, label, operator, value]) => [label!, operator!, value!])
  }))
}

function matches ({ labels }: Series, [label, operator, value]: [string, string, string]): boolean {
  if (ADDED.includes(label)) return true
  if (!(label in labels)) return false
  const isEqual = operator.includes('~') ? new RegExp(`^(?:${value})$`).test(labels[label]!) : labels[label] === value
  return operator.startsWith('!') ? !isEqual : isEqual
}

t.test('each query of the dashboard and of the rules selects something', async t => {
  const { app } = await serve(t, { maxConnections: 1 })
  const registry = new Registry()
  registerMetrics(app.sse, registry)
  for (let i = 0; i < 2; i++) await openStream(app, '/sse', anyAnswer(t))
  const scrape = parseScrape(await registry.metrics())
  t.ok(queries.length > 20 && alerts.length > 12)
  const asked = new Set<string>()
  for (const { title, expr } of [...queries, ...alerts]) {
    const selectors = selectorsIn(expr)
    t.ok(selectors.length > 0, title)
    for (const { name, matchers } of selectors) {
      asked.add(name.replace(/_(bucket|sum|count)$/, ''))
      const selected = scrape.filter(series => series.name === name && matchers.every(matcher => matches(series, matcher)))
      t.ok(selected.length > 0, `${title}: ${name} ${JSON.stringify(matchers)}`)
    }
    const [first] = selectors
    const labels = new Set([...ADDED, ...scrape.filter(({ name }) => name === first!.name).flatMap(({ labels }) => Object.keys(labels))])
    const grouped = Array.from(expr.matchAll(/\bby \(([^)]*)\)/g), ([, list]) => list!.split(/,\s*/)).flat()
    t.same(grouped.filter(label => !labels.has(label)), [], `${title}: labels to group by`)
  }
  t.same(METRICS.map(({ name }) => name).filter(name => !asked.has(name)), [], 'each metric is shown')
  t.equal(selectorsIn('sum(sse_nothing{a="b"})').filter(({ name }) => scrape.some(series => series.name === name)).length, 0, 'a wrong name is found')
})

t.test('counters are asked for their rate, gauges are not', async t => {
  const type = (name: string) => METRICS.find(metric => metric.name === name.replace(/_(bucket|sum|count)$/, ''))!.type
  for (const { title, expr } of [...queries, ...alerts]) {
    for (const [, call = '', name] of expr.matchAll(/(?:\b(rate|increase)\()?\b(sse_\w+)/g)) t.equal(call !== '', type(name!) !== 'gauge', `${title}: ${name}`)
  }
})

t.test('no rule alerts after a short failure has ended', t => {
  // A rate is above its threshold for as long as its window contains the failure.
  const minutes = Array.from(rules.matchAll(/- alert: (\w+)\n {8}expr: (.*)\n {8}for: (\d+)m\n/g), ([, title, expr, wait]) =>
    ({ title: title!, windows: Array.from(expr!.matchAll(/\brate\([^[]*\[(\d+)m\]/g), ([, window]) => Number(window)), wait: Number(wait) })).filter(({ windows }) => windows.length > 0)
  t.equal(minutes.length, alerts.filter(({ expr }) => /\brate\(/.test(expr)).length, 'each rule with a rate waits')
  for (const { title, windows, wait } of minutes) t.ok(Math.max(...windows) < wait, `${title}: windows of ${windows} minutes, for ${wait}`)
  t.end()
})

t.test('panels and rules say what they are for', async t => {
  for (const { type, title, description } of dashboard.panels) if (type !== 'row') t.ok(description.length > 10, title)
  t.equal(alerts.length, rules.match(/- alert:/g)!.length, 'each rule has a reason before it')
  t.equal(new Set(alerts.map(({ title }) => title)).size, alerts.length)
  for (const { legendFormat, expr } of queries) for (const [, label] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) t.match(expr, new RegExp(`by \\([^)]*\\b${label}\\b`), legendFormat)
  for (const [, file] of rules.matchAll(/(docs\/[\w/-]+\.md)/g)) t.ok(pageAt(file!), file!)
})

t.test('the page lists each metric', async t => {
  const listed = tableOf('Metric').map(([name, type]) => [name!.replace(/\{.*/, ''), type])
  t.same(listed, METRICS.map(({ name, type }) => [name, type]))
  t.same(tableOf('Metric').map(([name]) => /\{(\w+)\}/.exec(name!)?.[1]), METRICS.map(({ label }) => label))
  t.same(tableOf('Alert').map(([name]) => name), alerts.map(({ title }) => title))
  t.same(tableOf('Channel').map(([name]) => name), CHANNEL_NAMES.map(channelName))
})
