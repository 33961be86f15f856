import { ask } from './api.js'
import { h } from './dom.js'
import { bytes, count } from './format.js'
import { link, section, table, text } from './parts.js'

const PRIORITIES = ['low', 'normal', 'high', 'critical']
const KINDS = { userIds: ['users', 'userId'], subscriptionIds: ['topics', 'subscription'], clientIds: ['connections', 'clientId'], exceptClientIds: ['not to', null] }

export const loadEvents = () => ask('events')

export function eventList ({ now, loaded, error }) {
  if (error !== null) return [section('Last events', h('p', { class: 'attention bad', role: 'alert' }, error))]
  if (loaded === null) return [section('Last events', h('p', { class: 'empty' }, 'Loading …'))]
  return [section('Last events', h('p', { class: 'hint' }, `The newest logged events, as node ${now.nodeId.slice(0, 8)} reads them; the log is at ${count(loaded.position)}. Ephemeral events are not logged. ${now.allowed.payloads ? '' : 'Their data is hidden: see the option "payloads".'}`), table('Newest events of the log', [
    ['Number', ({ seq }) => String(seq), true],
    ['Event', ({ event }) => text(event)],
    ['To', receivers],
    ['Priority', ({ priority }) => PRIORITIES[priority] ?? String(priority)],
    ['Key', ({ key }) => key === null ? '' : text(key)],
    ['Size', event => bytes(event.bytes), true],
    ...now.allowed.payloads ? [['Data', ({ data }) => data === undefined ? '' : h('details', null, h('summary', null, 'Show'), h('pre', null, text(data)))]] : []
  ], loaded.events, { key: ({ seq }) => String(seq), empty: 'The log holds no events.' }))]
}

function receivers ({ target, filtered }) {
  const kinds = Object.entries(target).map(([kind, { first, count: number }]) => {
    const [name, parameter] = KINDS[kind] ?? [kind, null]
    return [h('small', null, name), ' ', first.slice(0, 3).map((id, index) => [index > 0 ? ', ' : '', parameter === null ? text(id) : link('connections', { [parameter]: id }, text(id))]), number > 3 ? ` and ${count(number - 3)} more` : '', ' ']
  })
  return kinds.length === 0 && !filtered ? 'everyone' : [kinds, filtered ? h('i', null, 'filter') : null]
}
