// What the page computes from overviews: sums, rates, and what is wrong.

import { bytes, count, duration, plural } from './format.js'

/** Number of overviews that are kept for charts: five minutes. */
const KEPT = 150

export const history = []

/** Sums one of the numbers that the nodes report. */
export const sum = (overview, name) => overview.nodes.reduce((total, { details }) => total + (Number(details?.stats[name]) || 0), 0)

/** Rate of a counter of one node between two overviews, or null: a node that has restarted counts from 0. */
function rateOfNode (before, now, nodeId, read) {
  const one = before.nodes.find(node => node.nodeId === nodeId)?.details
  const other = now.nodes.find(node => node.nodeId === nodeId)?.details
  if (!one || !other) return null
  const seconds = (now.at - before.at) / 1000
  const difference = read(other.stats) - read(one.stats)
  return seconds > 0 && difference >= 0 ? difference / seconds : null
}

/** A counter, or the sum of one that is kept by reason. */
const reader = name => ({ [name]: value = 0 }) => typeof value === 'object' ? Object.values(value ?? {}).reduce((one, other) => one + other, 0) : value

/** Rate of a counter over the last ten seconds: of one node, or of all. */
export function rateOf (name, nodeId = null, at = history.length - 1) {
  const now = history[at]
  const before = history[Math.max(0, at - 5)]
  if (now === undefined || before === now) return null
  const rates = now.nodes.filter(node => nodeId === null || node.nodeId === nodeId).map(node => rateOfNode(before, now, node.nodeId, reader(name)))
  const known = rates.filter(rate => rate !== null)
  return known.length === 0 ? null : known.reduce((one, other) => one + other, 0)
}

export function remember (overview) {
  history.push(overview)
  if (history.length > KEPT) history.shift()
}

/** The course of a figure for a chart. */
export const courseOf = read => history.map((overview, index) => read(overview, index))

export const nameOf = node => node.name ?? node.nodeId.slice(0, 8)

/** What needs attention, the worst first. */
export function problems (overview) {
  const found = []
  const bad = (text, search) => found.push({ level: 'bad', text, search })
  const warn = (text, search) => found.push({ level: 'warn', text, search })
  for (const node of overview.nodes) {
    if (node.status !== 'up') bad(`Node ${nameOf(node)} is degraded: ${node.reason ?? 'no reason given'}. Its clients stay connected; events cannot be logged, or arrive late.`)
    if (node.details === null) bad(`Node ${nameOf(node)} has not answered. Its connections are not counted. Last heard ${duration(overview.at - node.heardAt)} ago.`)
    else if (node.details.busy > 0.9) warn(`The event loop of node ${nameOf(node)} is busy ${Math.round(node.details.busy * 100)} % of the time. All its clients are late.`)
  }
  if (!overview.complete && overview.nodes.every(({ details }) => details !== null)) warn('Not all nodes have answered.')
  const connections = sum(overview, 'connections')
  const lagging = sum(overview, 'lagging')
  if (lagging > 0) (lagging > connections / 20 ? bad : warn)(`${plural(lagging, 'client is', 'clients are')} slow: ${lagging === 1 ? 'it reads' : 'they read'} older events from the log. ${bytes(sum(overview, 'queuedBytes'))} wait.`, { lagging: 'true' })
  const rising = (name, text) => {
    const rate = rateOf(name)
    if (rate !== null && rate > 0) warn(`${text}: ${count(rate * 60)} a minute.`)
  }
  rising('dropped', 'Ephemeral events are dropped for slow clients')
  rising('gaps', 'Clients have gaps: they have missed events')
  rising('refused', 'Requests are refused')
  for (const reason of ['stalled', 'rights-unknown', 'source-error', 'snapshot-error']) {
    const rate = rateOfReason('closed', reason)
    if (rate > 0) warn(`Streams end with "${reason}": ${count(rate * 60)} a minute.`)
  }
  return found.sort((one, other) => Number(other.level === 'bad') - Number(one.level === 'bad'))
}

/** A counter by reason, on all nodes. */
export function reasons (overview, name) {
  const counts = new Map()
  for (const { details } of overview.nodes) for (const [reason, number] of Object.entries(details?.stats[name] ?? {})) if (number > 0) counts.set(reason, (counts.get(reason) ?? 0) + number)
  return [...counts].sort(([, one], [, other]) => other - one)
}

export function rateOfReason (name, reason) {
  const now = history.at(-1)
  const before = history[Math.max(0, history.length - 6)]
  if (now === undefined || now === before) return 0
  return now.nodes.reduce((rate, { nodeId }) => rate + (rateOfNode(before, now, nodeId, stats => stats[name]?.[reason] ?? 0) ?? 0), 0)
}

/** The topics with the most connections. Each node reports its first twenty. */
export function topics (overview) {
  const counts = new Map()
  for (const { details } of overview.nodes) for (const { subscription, connections } of details?.topics ?? []) counts.set(subscription, (counts.get(subscription) ?? 0) + connections)
  return [...counts].sort(([, one], [, other]) => other - one)
}
