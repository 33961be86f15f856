// What the page computes from overviews: sums, rates and counts.

import { duration } from './format.js'

/** Time for which overviews are kept. */
export const WINDOW_MS = 300_000
/** Number of overviews over which rates are measured: ten seconds. */
const RATE_SPAN = 5

/** The overviews of the window, oldest first. */
export const history = []

/** Keeps an overview. */
export function remember (overview) {
  history.push(overview)
  while (history[0].receivedAt < overview.receivedAt - WINDOW_MS) history.shift()
}

/** The time over which counts are made: since the page was opened, at most five minutes. */
export const shownTime = () => duration(history.at(-1).receivedAt - history[0].receivedAt)

export const nameOf = node => node.name ?? node.nodeId.slice(0, 8)

/** The node that sends the overviews. */
export const here = overview => overview.nodes.find(({ nodeId }) => nodeId === overview.nodeId)

/** Whether the node that sends the overviews cannot ask the others, because it does not reach the log. */
export const isCutOff = overview => here(overview).status !== 'up'

/** Whether a node does not answer. An outage of the log looks the same for one answer. */
export function isSilent ({ nodeId }) {
  const last = history.slice(-2)
  return last.length === 2 && last.every(overview => !isCutOff(overview) && overview.nodes.find(node => node.nodeId === nodeId)?.details === null)
}

/** Sums one of the numbers that the nodes report. */
export const sum = (overview, name) => overview.nodes.reduce((total, { details }) => total + (Number(details?.stats[name]) || 0), 0)

/** A counter, or the sum of one that is kept by reason. */
const reader = name => ({ [name]: value = 0 }) => typeof value === 'object' ? Object.values(value ?? {}).reduce((one, other) => one + other, 0) : value

/** Rate of a counter of one node between two overviews; null if it is not known. */
function rateOfNode (before, now, nodeId, read) {
  const one = before.nodes.find(node => node.nodeId === nodeId)?.details
  const other = now.nodes.find(node => node.nodeId === nodeId)?.details
  if (!one || !other) return null
  const seconds = (now.at - before.at) / 1000
  return seconds > 0 ? (read(other.stats) - read(one.stats)) / seconds : null
}

/** Rate of a counter over the last ten seconds: of one node, or of all. */
export function rateOf (name, nodeId = null, at = history.length - 1) {
  const now = history[at]
  const before = history[Math.max(0, at - RATE_SPAN)]
  if (now === undefined || before === now) return null
  const rates = now.nodes.filter(node => nodeId === null || node.nodeId === nodeId).map(node => rateOfNode(before, now, node.nodeId, reader(name)))
  const known = rates.filter(rate => rate !== null)
  return known.length === 0 ? null : known.reduce((one, other) => one + other, 0)
}

/** The course of a figure for a chart. */
export const courseOf = read => history.map((overview, index) => read(overview, index))

/**
 * By how much a counter has risen in the window on all nodes, and when for the last time. A node that does not answer for a while is
 * counted when it answers again, and one that has started since from 0.
 */
export function risen (name, reason = null) {
  const read = reason === null ? reader(name) : ({ [name]: counts }) => counts?.[reason] ?? 0
  const known = new Map()
  const [first] = history
  // Clocks of nodes differ: a node of the first overview has not started since, whatever its clock says.
  const isNew = ({ nodeId, startedAt }) => startedAt >= first.at && !first.nodes.some(node => node.nodeId === nodeId)
  let by = 0
  let lastAt = null
  for (const { nodes, receivedAt } of history) {
    for (const node of nodes) {
      const { nodeId, details } = node
      if (details === null) continue
      const value = read(details.stats)
      const before = known.get(nodeId) ?? (isNew(node) ? 0 : value)
      known.set(nodeId, value)
      if (value <= before) continue
      by += value - before
      lastAt = receivedAt
    }
  }
  return { by, lastAt }
}

/** A counter by reason, on all nodes. */
export function reasons (overview, name) {
  const counts = new Map()
  for (const { details } of overview.nodes) for (const [reason, number] of Object.entries(details?.stats[name] ?? {})) if (number > 0) counts.set(reason, (counts.get(reason) ?? 0) + number)
  return [...counts].sort(([, one], [, other]) => other - one)
}

/** The topics with the most connections. Each node reports its first twenty. */
export function topics (overview) {
  const counts = new Map()
  for (const { details } of overview.nodes) for (const { subscription, connections } of details?.topics ?? []) counts.set(subscription, (counts.get(subscription) ?? 0) + connections)
  return [...counts].sort(([, one], [, other]) => other - one)
}
