// What needs attention now, and what has needed it in the last minutes.

import { here, history, isCutOff, isSilent, nameOf, risen, shownTime, sum, WINDOW_MS } from './figures.js'
import { bytes, count, duration, plural } from './format.js'

/** Time without an overview after which the page reports it, and time for which a counter that has risen is current. */
const RECENT_MS = 10_000

/** Counters that should not rise: [counter, one of its reasons or null, text]. */
const COUNTERS = [
  ['gaps', null, 'Clients have gaps, because events that they missed are lost'],
  ['dropped', null, 'Ephemeral events were dropped for slow clients'],
  ['refused', null, 'Requests were refused'],
  ...['stalled', 'rights-unknown', 'source-error', 'snapshot-error'].map(reason => ['closed', reason, `Streams have ended with "${reason}"`])
]

/** States and incidents by key, with the times of the first and the last overview that had them. */
const seen = new Map()

/** Looks for states and incidents in the newest overview. */
export function observe () {
  const [now, before] = history.slice(-2).reverse()
  const at = now.receivedAt
  for (const state of states(now)) {
    const known = seen.get(state.key)
    const continues = known !== undefined && known.until >= (before?.receivedAt ?? at)
    seen.set(state.key, { ...state, isOver: false, since: continues ? known.since : at, until: at })
  }
  if (before !== undefined) for (const incident of incidents(before, now)) seen.set(incident.key, { since: at, until: at, ...incident, isOver: true })
  for (const [key, { until }] of seen) if (until < at - WINDOW_MS) seen.delete(key)
}

function states (now) {
  const found = now.nodes.flatMap(node => stateOf(node) ?? [])
  const others = now.nodes.filter(({ nodeId }) => nodeId !== now.nodeId)
  if (isCutOff(now) && others.length > 0) found.push({ key: 'cut off', level: 'bad', text: `Node ${nameOf(here(now))} does not reach the log: it does not know how the other nodes are. What is shown of them is what they reported before.` })
  else if (!now.complete && !others.some(isSilent)) found.push({ key: 'incomplete', level: 'warn', text: 'Not all nodes have answered.' })
  const lagging = sum(now, 'lagging')
  if (lagging > 0) {
    const text = `${plural(lagging, 'client is', 'clients are')} slow: ${lagging === 1 ? 'it reads' : 'they read'} older events from the log. ${bytes(sum(now, 'queuedBytes'))} wait.`
    found.push({ key: 'lagging', level: lagging > sum(now, 'connections') / 20 ? 'bad' : 'warn', text, search: { lagging: 'true' } })
  }
  return found
}

function stateOf (node) {
  const { nodeId, status, reason = 'no reason given', details } = node
  const name = nameOf(node)
  if (details === null) return isSilent(node) ? { key: `silent ${nodeId}`, level: 'bad', text: `Node ${name} does not answer. Its connections are not counted.` } : null
  if (status !== 'up') return { key: `degraded ${nodeId}`, level: 'bad', text: `Node ${name} is degraded: ${reason}. Its clients stay connected; events cannot be logged, or arrive late.` }
  if (details.busy > 0.9) return { key: `busy ${nodeId}`, level: 'warn', text: `The event loop of node ${name} is busy ${Math.round(details.busy * 100)} % of the time. All its clients are late.` }
  return null
}

function incidents (before, now) {
  const gone = before.nodes.filter(({ nodeId }) => !now.nodes.some(node => node.nodeId === nodeId))
  const found = gone.map(node => ({ key: `gone ${node.nodeId}`, level: 'bad', text: `Node ${nameOf(node)} has closed or died. It had ${plural(node.connections, 'connection')}.` }))
  if (now.receivedAt - before.receivedAt > RECENT_MS) found.push({ key: 'unanswered', level: 'warn', text: 'This page received no answer.', since: before.receivedAt })
  return found
}

/** What needs attention, the most urgent first: [{ level, text, search, isCurrent, age }]. */
export function attention () {
  const newest = history.at(-1).receivedAt
  return [...remembered(newest), ...risenCounters(newest)].sort((one, other) => Number(other.isCurrent) - Number(one.isCurrent) || Number(other.level === 'bad') - Number(one.level === 'bad'))
}

const ago = at => `${duration(Date.now() - at)} ago`

function remembered (newest) {
  return Array.from(seen.values(), ({ level, text, search, since, until, isOver }) => {
    const isCurrent = !isOver && until === newest
    return { level, text, search: isCurrent ? search : undefined, isCurrent, age: isCurrent ? `for ${duration(Date.now() - since)}` : `${ago(until)}${until > since ? `, for ${duration(until - since)}` : ''}` }
  })
}

function risenCounters (newest) {
  return COUNTERS.flatMap(([name, reason, text]) => {
    const { by, lastAt } = risen(name, reason)
    return by === 0 ? [] : { level: 'warn', text: `${text}: ${count(by)} in the last ${shownTime()}.`, isCurrent: lastAt >= newest - RECENT_MS, age: `last ${ago(lastAt)}` }
  })
}
