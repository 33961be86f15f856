import { h } from './dom.js'
import { attention } from './attention.js'
import { courseOf, isSilent, nameOf, rateOf, reasons, risen, shownTime, sum, topics } from './figures.js'
import { bytes, count, duration, rate } from './format.js'
import { badge, chart, link, section, table, text } from './parts.js'

export function overview ({ now, outdatedMs }) {
  return [troubles(outdatedMs), figures(now), section('Nodes', nodes(now)), h('div', { key: 'columns', class: 'columns' },
    section('Top topics', table('Topics with the most connections', [
      ['Topic or pattern', ([subscription]) => link('connections', { subscription }, text(subscription))],
      ['Connections', ([, connections]) => count(connections), true]
    ], topics(now).slice(0, 10), { key: ([subscription]) => subscription, empty: 'No connection holds a topic.' })),
    h('div', null,
      counters(now, 'Ended streams', 'closed', 'No stream has ended.'),
      counters(now, 'Refused requests', 'refused', 'No request was refused.'),
      counters(now, 'Gaps', 'gaps', 'No client has missed events.'),
      counters(now, 'Starts of streams', 'resumes', 'No stream was started.')))]
}

/** A counter by reason, since each node started. */
const counters = (now, title, name, empty) => section(title, table(`${title}, since each node started`, [
  ['Reason', ([reason]) => text(reason)],
  ['Total', ([, number]) => count(number), true],
  [`Last ${shownTime()}`, ([reason]) => count(risen(name, reason).by), true]
], reasons(now, name), { key: ([reason]) => reason, empty }))

function troubles (outdatedMs) {
  const found = attention()
  const current = found.filter(({ isCurrent }) => isCurrent)
  if (outdatedMs > 0) current.unshift({ level: 'bad', text: `This page receives no answer. What it shows is ${duration(outdatedMs)} old.` })
  const past = found.filter(({ isCurrent }) => !isCurrent)
  return h('div', { key: 'attention', class: 'attention' },
    current.length === 0 ? h('p', { class: 'good' }, 'All nodes answer, and no client is slow.') : h('ul', { 'aria-label': 'Needs attention' }, current.map(item)),
    past.length === 0 ? null : h('details', { open: true }, h('summary', null, 'In the last minutes'), h('ul', null, past.map(item))))
}

const item = ({ level, text: what, search, age }) => h('li', { class: level }, text(what), ' ', h('small', null, age), search === undefined ? null : [' ', link('connections', search, 'Show them')])

function figures (now) {
  const counted = name => [count(sum(now, name)), courseOf(overview => sum(overview, name))]
  const rated = name => [rate(rateOf(name)), courseOf((_, at) => rateOf(name, null, at))]
  const cards = [
    ['Connections', ...counted('connections')],
    ['Deliveries', ...rated('delivered')],
    ['Published', ...rated('published')],
    ['Slow clients', ...counted('lagging')],
    ['Waiting', bytes(sum(now, 'queuedBytes')), courseOf(overview => sum(overview, 'queuedBytes'))],
    ['Dropped', ...rated('dropped')],
    ['Gaps', ...rated('gaps')],
    ['Opened', ...rated('opened')],
    ['Ended', ...rated('closed')],
    ['Refused', ...rated('refused')]
  ]
  return h('dl', { key: 'figures', class: 'figures' }, cards.map(([name, value, course]) => h('div', { key: name, class: 'figure' }, h('dt', null, name), h('dd', null, value), chart(course, `${name} in the last minutes`))))
}

function nodes (now) {
  const stat = (name, format = count) => ({ details }) => details === null ? '–' : format(details.stats[name])
  return table('The nodes of the cluster', [
    ['Node', node => [h('b', null, text(nameOf(node))), ' ', node.nodeId === now.nodeId ? h('small', null, 'this page') : null]],
    ['State', node => node.details === null ? isSilent(node) ? badge('bad', 'no answer') : badge('warn', 'not known') : node.status === 'up' ? badge('good', 'up') : badge('bad', 'degraded')],
    ['Connections', node => count(node.connections), true],
    ['Users', node => count(node.users), true],
    ['Topics', node => count(node.subscriptions), true],
    ['Deliveries', node => rate(rateOf('delivered', node.nodeId)), true],
    ['Slow', stat('lagging'), true],
    ['Waiting', stat('queuedBytes', bytes), true],
    ['Dropped', stat('dropped'), true],
    ['Busy', ({ details }) => typeof details?.busy !== 'number' ? '–' : `${Math.round(details.busy * 100)} %`, true],
    ['History', ({ details }) => details?.stats.log ? `${count(details.stats.log.events)}, ${bytes(details.stats.log.bytes)}` : '–', true],
    ['Memory', ({ details }) => bytes(details?.memoryBytes), true],
    ['Up for', node => duration(now.at - node.startedAt), true],
    ['Heard', node => `${duration(now.at - node.heardAt)} ago`, true]
  ], now.nodes, { key: ({ nodeId }) => nodeId })
}

export function topicList ({ now }) {
  return [section('Topics', h('p', { class: 'hint' }, 'Each node reports its twenty largest. Open a topic to see who receives its events.'), table('Topics with the most connections', [
    ['Topic or pattern', ([subscription]) => link('connections', { subscription }, text(subscription))],
    ['Connections', ([, connections]) => count(connections), true]
  ], topics(now), { key: ([subscription]) => subscription, empty: 'No connection holds a topic.' }))]
}

export function runList ({ now }) {
  const runs = now.nodes.flatMap(node => (node.details?.runs ?? []).map(run => ({ ...run, node })))
  const running = now.nodes.reduce((total, { details }) => total + (details?.runCount ?? 0), 0)
  return [section('Runs', h('p', { class: 'hint' }, `${count(running)} running. Each node reports its twenty newest. Runs that have ended are not listed.`), table('Runs', [
    ['Run', ({ runId }) => text(runId)],
    ['Owner', ({ ownerId }) => ownerId === null ? h('i', null, 'public') : link('connections', { userId: ownerId }, text(ownerId))],
    ['Node', ({ node }) => text(nameOf(node))],
    ['Running for', ({ startedAt }) => duration(now.at - startedAt), true],
    ['Events', ({ events }) => count(events), true],
    ['Size', run => bytes(run.bytes), true],
    ['Readers', ({ isRead }) => isRead ? badge('good', 'yes') : badge('warn', 'none')]
  ], runs, { key: ({ runId, ownerId }) => JSON.stringify([ownerId, runId]), empty: 'No run is running.' }))]
}
