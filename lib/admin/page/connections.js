import { ask } from './api.js'
import { h } from './dom.js'
import { here, isCutOff, nameOf } from './figures.js'
import { bytes, count, duration, plural, time, visible } from './format.js'
import { badge, chart, link, section, table, text, user } from './parts.js'

const PAGE = 50
const FIELDS = [['userId', 'User'], ['subscription', 'Topic'], ['address', 'Address'], ['clientId', 'Connection id']]
/** Number of looks at one connection that are kept. */
const KEPT = 150

const nodeName = (now, nodeId) => nameOf(now.nodes.find(node => node.nodeId === nodeId) ?? { name: null, nodeId })

// --- The list ---

/** Loads the page of the address. */
export async function loadConnections (parameters) {
  return await ask('connections', { ...parameters, limit: String(PAGE) })
}

export function connectionList ({ now, parameters, loaded, error, go }) {
  return [section('Connections', form(parameters, go), error !== null ? h('p', { class: 'attention bad', role: 'alert' }, error) : loaded === null ? h('p', { class: 'empty' }, 'Loading …') : results(now, parameters, loaded))]
}

function form (parameters, go) {
  return h('form', {
    class: 'search',
    role: 'search',
    onsubmit: event => {
      event.preventDefault()
      const given = [...new FormData(event.target)].filter(([, value]) => value !== '')
      go('connections', Object.fromEntries(given.map(([name, value]) => [name, value.trim()])))
    }
  },
  FIELDS.map(([name, label], index) => h('label', { key: name }, label, h('input', { name, value: parameters[name] ?? '', autocomplete: 'off', autocapitalize: 'off', spellcheck: 'false', accesskey: index === 0 ? 's' : undefined, id: index === 0 ? 'search' : undefined }))),
  h('label', { class: 'check' }, h('input', { type: 'checkbox', name: 'lagging', value: 'true', checked: parameters.lagging === 'true' }), 'Slow only'),
  h('label', { class: 'check' }, h('input', { type: 'checkbox', name: 'anonymous', value: 'true', checked: parameters.anonymous === 'true' }), 'Anonymous only'),
  h('button', { type: 'submit' }, 'Search'))
}

function results (now, parameters, { connections, after, total, complete, missing }) {
  const { after: start, ...search } = parameters
  return [
    h('p', { class: 'hint', role: 'status' }, `${plural(total, 'connection')}${connections.length < total ? `, ${connections.length} on this page, newest first` : ''}.`),
    complete ? null : h('p', { class: 'attention bad' }, isCutOff(now) ? `Incomplete: node ${nameOf(here(now))} does not reach the log, so the connections of the other nodes are not known.` : missing.length === 0 ? 'Not all nodes have answered: the list is incomplete.' : ['Incomplete: ', missing.map((nodeId, index) => [index > 0 ? ', ' : '', text(nodeName(now, nodeId))]), ' did not answer.']),
    table('Connections', [
      ['User', ({ clientId, userId }) => link('connection', { id: clientId }, user(userId))],
      ['State', state],
      ['Topics', ({ managed, subscriptions, subscriptionCount }) => managed ? [subscriptions.slice(0, 2).map((subscription, index) => [index > 0 ? ', ' : '', text(subscription)]), subscriptionCount > 2 ? ` and ${count(subscriptionCount - 2)} more` : null] : h('i', null, 'a source')],
      ['Address', ({ address }) => text(address)],
      ['Node', ({ nodeId }) => text(nodeName(now, nodeId))],
      ['Open for', ({ connectedAt }) => duration(now.at - connectedAt), true],
      ['Sent', ({ sentEvents }) => count(sentEvents), true],
      ['Waiting', ({ queuedBytes }) => bytes(queuedBytes), true],
      ['Client', ({ userAgent }) => h('span', { class: 'agent', title: userAgent }, text(userAgent === '' ? 'unknown' : userAgent))]
    ], connections, { key: ({ clientId }) => clientId, empty: 'No connection matches.' }),
    h('p', { class: 'pages' }, start === undefined ? null : link('connections', search, 'First page'), ' ', after === null ? null : link('connections', { ...search, after }, 'Next page'))
  ]
}

function state ({ lagging, resumed, managed }) {
  if (lagging) return badge('warn', 'slow')
  if (!managed) return badge('plain', 'source')
  return resumed === true ? badge('good', 'resumed') : resumed === null ? badge('plain', 'resuming') : badge('plain', 'open')
}

// --- One connection ---

const looks = []

export async function loadConnection ({ id }) {
  const page = await ask('connections', { clientId: id })
  const [connection = null] = page.connections
  if (looks.at(-1)?.id !== id) looks.length = 0
  looks.push({ id, at: Date.now(), connection, complete: page.complete })
  if (looks.length > KEPT) looks.shift()
  return { connection: connection ?? looks.findLast(look => look.connection !== null)?.connection ?? null, isOpen: connection !== null, complete: page.complete }
}

export function connectionLife ({ now, loaded, error, act }) {
  if (error !== null) return [section('Connection', h('p', { class: 'attention bad', role: 'alert' }, error))]
  if (loaded === null) return [section('Connection', h('p', { class: 'empty' }, 'Loading …'))]
  const { connection, isOpen, complete } = loaded
  if (connection === null) return [section('Connection', h('p', { class: 'empty' }, complete ? 'No node has this connection. It has ended: a client that reconnects gets a new id.' : 'Not found, but not all nodes have answered.'))]
  const { clientId, userId, nodeId } = connection
  const facts = [
    ['State', isOpen ? [state(connection), connection.lagging ? ' It reads older events from the log.' : ''] : complete ? badge('bad', 'ended') : badge('warn', 'not known: not all nodes answer')],
    ['User', userId === null ? user(userId) : link('connections', { userId }, user(userId))],
    ['Connection id', text(clientId)],
    ['Node', text(nodeName(now, nodeId))],
    ['Opened', `${time(connection.connectedAt)}, ${duration(now.at - connection.connectedAt)} ago`],
    ['Start', !connection.managed ? 'a stream with a source of its own' : connection.resumed === true ? 'continued at the cursor of the client' : connection.resumed === null ? 'the events after its cursor are still read' : 'without a cursor, or after a gap'],
    ['Address', link('connections', { address: connection.address }, text(connection.address))],
    ['Client', text(connection.userAgent === '' ? 'unknown' : connection.userAgent)],
    ['Sent events', count(connection.sentEvents)],
    ['Dropped events', count(connection.droppedEvents)],
    ['Waiting', bytes(connection.queuedBytes)]
  ]
  return [
    section('Connection',
      h('dl', { class: 'facts' }, facts.map(([name, value]) => [h('dt', null, name), h('dd', null, value)])),
      now.allowed.actions && isOpen
        ? h('p', { class: 'actions' },
          h('button', { type: 'button', class: 'danger', onclick: () => act('close', { clientId }, 'Close this connection?', 'The client receives sse:close and does not reconnect by itself if it uses the client of this package. Others may.') }, 'Close connection'),
          userId === null ? null : h('button', { type: 'button', class: 'danger', onclick: () => act('disconnect', { userId }, `Disconnect ${visible(userId)}?`, 'All streams of the user on all nodes are closed. The user can connect again unless the application refuses it.') }, 'Disconnect user'))
        : null),
    section('Since you opened this page', h('div', { class: 'figures' },
      lookChart('Waiting bytes', connection => connection.queuedBytes),
      lookChart('Events sent per second', (connection, before, ms) => before ? (connection.sentEvents - before.sentEvents) / ms * 1000 : null)),
    h('ol', { class: 'life' }, life().map(([at, what], index) => h('li', { key: `${index} ${at}` }, h('time', null, time(at)), ' ', what)))),
    section(`Topics and patterns (${count(connection.subscriptionCount)})`, connection.subscriptions.length === 0
      ? h('p', { class: 'empty' }, 'It holds none: it receives events for its user and for everyone.')
      : h('ul', { class: 'topics' }, connection.subscriptions.map(subscription => h('li', { key: subscription }, link('connections', { subscription }, text(subscription))))),
    connection.subscriptionCount > connection.subscriptions.length ? h('p', { class: 'hint' }, `The first ${connection.subscriptions.length} are shown.`) : null)
  ]
}

const lookChart = (name, read) => h('div', { class: 'figure' }, h('p', null, name), chart(looks.map(({ connection }, at) => connection === null ? null : read(connection, looks[at - 1]?.connection, looks[at].at - looks[at - 1]?.at)), name))

/** What has changed between looks. */
function life () {
  const events = []
  let before = null
  for (const { at, connection, complete } of looks) {
    if (connection === null) {
      if (before !== null) events.push([at, complete ? 'The stream has ended.' : 'Not all nodes answer: whether it is open is not known.'])
    } else if (before === null) {
      events.push([connection.connectedAt, 'The stream was opened.'], [at, connection.lagging ? 'First look: the client is slow.' : 'First look: the client keeps up.'])
    } else {
      if (connection.lagging !== before.lagging) events.push([at, connection.lagging ? 'The client has become slow, and reads from the log.' : 'The client has caught up.'])
      if (connection.resumed !== before.resumed) events.push([at, connection.resumed === true ? 'The missed events were read: it continues at its cursor.' : 'It has a gap.'])
      if (connection.droppedEvents > before.droppedEvents) events.push([at, `${plural(connection.droppedEvents - before.droppedEvents, 'ephemeral event was', 'ephemeral events were')} dropped.`])
      if (connection.subscriptionCount !== before.subscriptionCount) events.push([at, `It holds ${plural(connection.subscriptionCount, 'topic')} now.`])
    }
    before = connection
  }
  return events.slice(-20).reverse()
}
