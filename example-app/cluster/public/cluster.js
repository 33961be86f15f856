/* global sessionStorage */
import { $, call, h, plural } from './dom.js'
import { Ledger } from './ledger.js'
import { createClient } from './sse-client.js'
import { TokenPanel } from './tokens.js'

const TICKS_SHOWN = 120
const MESSAGES_SHOWN = 100
const NAMES = ['amber', 'teal']

const me = sessionStorage.getItem('user') ?? `guest-${Math.floor(Math.random() * 10_000)}`
sessionStorage.setItem('user', me)
$('me').textContent = me

const ledger = new Ledger()
const present = new Set()
/** Users that have joined or left on this stream. A list of present users can be older than these changes. */
const changes = new Map()
let node = null
/** Server time of the connection: events that are older are replayed. */
let began = 0
let away = null

const client = createClient(`/sse?user=${me}`)

client.onState(({ name, reason }) => {
  // The stream is live when the server has sent the name of the node.
  if (name === 'open') return
  state(name === 'closed' ? 'closed' : node === null ? 'connecting' : 'reconnecting', reason)
  // Which nodes are running, the next node says.
  if (reason === 'network' && node !== null) $('nodes').querySelector(`[data-node=${node}]`)?.replaceWith(card(node))
  if (away === null && node !== null) away = { from: node, at: performance.now(), replayed: ledger.replayed }
})

client.on('welcome', welcome => {
  changes.clear()
  node = welcome.node
  began = away === null ? 0 : welcome.at
  if (away !== null) Object.assign(away, { to: node, ms: performance.now() - away.at })
  $('served').dataset.node = node
  $('node').textContent = node
  $('client-id').textContent = welcome.clientId
  state('live')
  account()
})

client.on('tick', ({ node, run, seq, at }) => {
  if (!ledger.take(`${node}/${run}`, seq)) return account()
  ledger.received++
  const replayed = at < began
  if (replayed) ledger.replayed++
  $('ticks').append(h('li', { class: 'tick', 'data-node': node, 'data-replayed': replayed, title: `${node} ${seq}` }))
  while ($('ticks').childElementCount > TICKS_SHOWN) $('ticks').firstChild.remove()
  account()
})

client.on('nodes', nodes => {
  const byName = new Map(nodes.map(stats => [stats.name, stats]))
  $('nodes').replaceChildren(...NAMES.map(name => card(name, byName.get(name))))
})

client.on('said', ({ user, text, node, at }) => write({ 'data-replayed': at < began }, h('strong', {}, user), ' ', h('span', { class: 'text' }, text), h('span', { class: 'by', 'data-node': node }, `by ${node}`)))

client.on('present', users => {
  present.clear()
  for (const user of users) present.add(user)
  for (const [user, here] of changes) present[here ? 'add' : 'delete'](user)
  lobby()
})
client.onJoin(({ userId }) => {
  changes.set(userId, true)
  present.add(userId)
  if (userId !== me) write({ class: 'news' }, `${userId} has joined`)
  lobby()
})
client.onLeave(({ userId }) => {
  changes.set(userId, false)
  present.delete(userId)
  write({ class: 'news' }, `${userId} has left`)
  lobby()
})

client.onGap(() => {
  ledger.forgetAll()
  $('resumed').dataset.state = 'gap'
  $('resumed').textContent = 'Some of the missed events were no longer in the log.'
})

function state (name, reason) {
  $('state').dataset.state = name
  $('state-text').textContent = { connecting: 'Connecting', live: 'Live', reconnecting: 'Reconnecting', closed: 'Closed' }[name]
  for (const id of ['served', 'nodes']) $(id).toggleAttribute('data-away', name !== 'live')
  $('kill').disabled = name !== 'live'
  $('closed').hidden = name !== 'closed'
  $('closed-reason').textContent = name === 'closed' ? `The server has closed this stream: ${reason}.` : ''
  $('controls').disabled = name === 'closed'
  if (name !== 'reconnecting') return
  $('resumed').dataset.state = 'away'
  $('resumed').textContent = `The connection to ${node} is broken. The client is connecting to another node …`
}

function account () {
  $('count-received').textContent = ledger.received
  $('count-replayed').textContent = ledger.replayed
  $('count-replayed').toggleAttribute('data-zero', ledger.replayed === 0)
  $('count-lost').textContent = ledger.lost
  $('count-lost').toggleAttribute('data-bad', ledger.lost > 0)
  $('count-duplicates').textContent = ledger.duplicates
  $('count-duplicates').toggleAttribute('data-bad', ledger.duplicates > 0)
  if (away?.to === undefined) return
  $('resumed').dataset.state = 'whole'
  $('resumed').textContent = `From ${away.from} to ${away.to} in ${(away.ms / 1000).toFixed(1)} s: ${ledger.replayed - away.replayed} events replayed, ${ledger.lost} lost, ${plural(ledger.duplicates, 'duplicate')}.`
  // The replay arrives at once. The next disconnect is counted separately.
  clearTimeout(account.timer)
  account.timer = setTimeout(() => { away = null }, 1_000)
}

function card (name, stats) {
  const gone = stats === undefined
  return h('li', { class: 'node', 'data-node': name, 'data-gone': gone },
    h('div', { class: 'row' }, h('strong', {}, name), h('span', { class: 'pill', 'data-state': gone ? 'closed' : stats.status === 'up' ? 'live' : 'reconnecting' }, h('span', { class: 'dot' }), gone ? 'down' : stats.status)),
    gone
      ? h('p', { class: 'muted small' }, 'It starts again in a few seconds.')
      : h('dl', {}, ...[['streams', stats.connections], ['users', stats.users], ['up for', `${Math.max(0, Math.round((Date.now() - stats.startedAt) / 1000))} s`]].flatMap(([term, value]) => [h('dt', {}, term), h('dd', {}, String(value))])),
    gone || name === node ? null : h('button', { type: 'button', class: 'quiet', onclick: () => kill(name) }, `Kill ${name}`))
}

function write (attributes, ...children) {
  const list = $('messages')
  list.append(h('li', attributes, ...children))
  while (list.childElementCount > MESSAGES_SHOWN) list.firstChild.remove()
  list.scrollTop = list.scrollHeight
}

function lobby () {
  $('lobby-count').textContent = present.size
  $('present').textContent = [...present].sort().join(', ')
}

function kill (name) {
  return call('POST', `/nodes/${name}/kill`).catch(() => {
    // The node that received the request can be the one that was killed.
  })
}

$('kill').addEventListener('click', () => { kill(node) })
$('reconnect').addEventListener('click', () => { client.reconnect() })
export const tokens = new TokenPanel({ user: me, failed: error => { $('answer-note').textContent = error.message } })

$('composer').addEventListener('submit', async event => {
  event.preventDefault()
  const text = $('text').value
  $('text').value = ''
  try {
    await call('POST', '/say', { user: me, text })
  } catch (error) {
    $('text').value = text
    write({ class: 'news' }, `Not sent: ${error.message}`)
  }
})
