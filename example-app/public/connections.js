/* global CSS */
import { $, avatar, call, h } from './dom.js'

/** Shows the table of connections, with their users, addresses and subscriptions. */
export class ConnectionsPanel {
  #me
  #failed
  #ownClientId = () => null
  #names

  constructor ({ user, users }, { ownClientId, failed }) {
    this.#me = user
    this.#names = new Map(users.map(({ id, name }) => [id, name]))
    this.#ownClientId = ownClientId
    this.#failed = failed
    if (user.role === 'guest') this.say('Guests cannot see who is connected: the server rejects the subscription.')
  }

  say (text) {
    $('table-count').textContent = ''
    $('connections').replaceChildren(h('tr', {}, h('td', { colSpan: 8, class: 'muted' }, text)))
  }

  show ({ rows, total }) {
    $('table-count').textContent = String(total)
    // Keeps the keyboard focus, because all rows are replaced.
    const focused = document.activeElement?.dataset?.clientId
    $('connections').replaceChildren(...rows.map(row => this.#row(row)))
    if (focused !== undefined) $('connections').querySelector(`[data-client-id="${CSS.escape(focused)}"]`)?.focus()
  }

  #row ({ clientId, userId, ip, agent, connectedAt, subscriptions, sentEvents, queuedBytes }) {
    const own = clientId === this.#ownClientId()
    const may = userId === this.#me.id || this.#me.role === 'admin'
    const name = this.#names.get(userId) ?? userId
    return h('tr', { 'data-own': own },
      h('td', {}, h('span', { class: 'person' }, avatar(userId), name, own ? h('span', { class: 'muted small' }, 'this tab') : null)),
      h('td', { class: 'mono', 'data-label': 'Client' }, clientId.slice(-8)),
      h('td', { 'data-label': 'From' }, `${agent}, ${ip}`),
      h('td', { 'data-label': 'Since' }, age(Date.now() - connectedAt)),
      h('td', { class: 'topics' }, ...subscriptions.map(topic => h('span', { class: 'topic' }, topic))),
      h('td', { class: 'number', 'data-label': 'Sent' }, sentEvents.toLocaleString('en')),
      h('td', { class: 'number', 'data-label': 'Waiting' }, queuedBytes === 0 ? '0' : `${Math.ceil(queuedBytes / 1024)} KiB`),
      h('td', {}, may && !own
        ? h('button', { type: 'button', class: 'quiet', 'data-client-id': clientId, 'aria-label': `Close the stream of ${name}`, onclick: () => call('DELETE', `/connections/${clientId}`).catch(this.#failed) }, 'Close')
        : null))
  }
}

function age (ms) {
  const seconds = Math.max(0, Math.round(ms / 1000))
  if (seconds < 60) return `${seconds} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`
  return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`
}
