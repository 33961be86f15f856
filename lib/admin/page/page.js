import { ask, follow } from './api.js'
import { observe } from './attention.js'
import { connectionLife, connectionList, loadConnection, loadConnections } from './connections.js'
import { h, render } from './dom.js'
import { eventList, loadEvents } from './events.js'
import { here, nameOf, remember } from './figures.js'
import { duration } from './format.js'
import { overview, runList, topicList } from './overview.js'
import { href } from './parts.js'

/** Sections: [title in the tabs or null, view, load or null, whether it is loaded again with each overview]. */
const SECTIONS = {
  overview: ['Overview', overview, null, false],
  connections: ['Connections', connectionList, loadConnections, false],
  connection: [null, connectionLife, loadConnection, true],
  topics: ['Topics', topicList, null, false],
  runs: ['Runs', runList, null, false],
  events: ['Events', eventList, loadEvents, true]
}

const content = document.getElementById('content')
const dialog = document.getElementById('dialog')
let now = null
let state = ['connecting']
let place = null
let loaded = null
let error = null
let loading = 0

/** The section and the parameters of the address. */
function read () {
  const [name, query] = location.hash.replace(/^#\/?/, '').split('?')
  return { name: Object.hasOwn(SECTIONS, name) ? name : 'overview', parameters: Object.fromEntries(new URLSearchParams(query)) }
}

/** Opens a section at once: `hashchange` comes later. */
function go (name, parameters) {
  const target = href(name, parameters)
  if (target !== location.hash) history.pushState(null, '', target)
  arrive()
}

async function load () {
  const [, , ask] = SECTIONS[place.name]
  if (ask === null) return
  const turn = ++loading
  try {
    const answer = await ask(place.parameters)
    if (turn === loading) [loaded, error] = [answer, null]
  } catch (failure) {
    if (turn === loading) error = failure.message
  }
  show()
}

function arrive () {
  const before = place
  place = read()
  if (dialog.open) dialog.close()
  loaded = error = null
  loading++
  show()
  load()
  // A screen reader begins with the section that was opened.
  if (before !== null && before.name !== place.name) {
    content.focus({ preventScroll: true })
    scrollTo(0, 0)
  }
}

function show () {
  const [title, view] = SECTIONS[place.name]
  document.title = `${title ?? 'Connection'} · Event streams`
  render(document.getElementById('tabs'), Object.entries(SECTIONS).filter(([, [title]]) => title !== null).map(([name, [title]]) => h('a', { href: href(name), 'aria-current': name === place.name || (place.name === 'connection' && name === 'connections') ? 'page' : undefined }, title)))
  render(document.getElementById('status'), status())
  const [name, reason] = state
  if (now !== null) render(content, view({ now, outdatedMs: outdated(), parameters: place.parameters, loaded, error, go, act }))
  else render(content, [h('p', { class: name === 'lost' ? 'attention bad' : 'empty' }, name === 'lost' ? `No answer: ${reason}` : 'Loading …')])
}

/** The age of what is shown, in milliseconds, or 0 while overviews arrive. */
function outdated () {
  const age = Date.now() - now.receivedAt
  return state[0] === 'lost' || age > 10_000 ? age : 0
}

function status () {
  const [name, reason] = state
  const texts = { connecting: 'connecting', live: 'live', reconnecting: 'reconnecting', polling: 'every 5 s, without a stream', lost: `no answer: ${reason}` }
  const age = now === null ? 0 : Date.now() - now.receivedAt
  const level = name === 'live' && age < 10_000 ? 'good' : name === 'lost' || age > 15_000 ? 'bad' : 'warn'
  return [h('span', { class: `dot ${level}` }), ` ${texts[name]}`, age > 10_000 ? `, ${duration(age)} old` : '', now === null ? '' : ` · node ${nameOf(here(now))}`]
}

/** Asks for confirmation, acts, and says what was done. */
function act (route, body, question, consequence) {
  const close = () => dialog.close()
  const confirm = disabled => render(dialog, [h('h2', { id: 'dialog-title' }, question), h('p', null, consequence), h('p', { class: 'actions' }, h('button', { type: 'button', disabled, onclick: close }, 'Cancel'), h('button', { type: 'button', class: 'danger', disabled, onclick: run }, 'Confirm'))])
  const run = async () => {
    // A second click would repeat the action.
    confirm(true)
    let result
    try {
      const { closed } = await ask(route, {}, body)
      result = closed === 0 ? 'Nothing was open any more.' : closed === 1 ? 'One stream was closed.' : `${closed} streams were closed.`
    } catch (failure) {
      result = `Not done: ${failure.message}`
    }
    render(dialog, [h('h2', { id: 'dialog-title' }, result), h('p', { class: 'actions' }, h('button', { type: 'button', onclick: close }, 'OK'))])
    dialog.querySelector('button').focus()
    load()
  }
  confirm(false)
  dialog.showModal()
}

addEventListener('hashchange', arrive)
addEventListener('keydown', event => {
  if (event.key !== '/' || event.ctrlKey || event.metaKey || event.altKey || dialog.open || event.target.closest('input, textarea')) return
  event.preventDefault()
  if (place.name !== 'connections') go('connections')
  document.getElementById('search')?.focus()
})
setInterval(show, 5_000)
arrive()
follow(overview => {
  now = { ...overview, receivedAt: Date.now() }
  remember(now)
  observe()
  if (SECTIONS[place.name][3]) load()
  else show()
}, (...next) => {
  state = next
  show()
})
