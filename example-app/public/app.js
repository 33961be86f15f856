/* global scrollTo, location, getComputedStyle, matchMedia */
import { AccountPanel } from './account.js'
import { ChatPanel } from './chat.js'
import { ConnectionsPanel } from './connections.js'
import { $, avatar, call, h } from './dom.js'
import { LogPanel } from './log.js'
import { MachinePanel } from './machine.js'
import { NoticePanel } from './notices.js'
import { Stream } from './stream.js'
import { TokenPanel } from './tokens.js'

const STATES = { connecting: 'Connecting', live: 'Live', reconnecting: 'Reconnecting', closed: 'Closed', offline: 'Signed out' }
const REASONS = { logout: 'You have signed out in another tab.', kicked: 'An admin has closed this stream.', disconnected: 'The server has closed all your streams.', refused: 'The server refuses this stream.' }

/** The stream of this page; null while no user is signed in. */
let stream = null
let tokens = null

async function begin (note = '') {
  const session = await call('GET', '/session')
  if (session.user === null) return signIn(session, note)
  board(session)
}

function signIn ({ users }, note) {
  stream?.close()
  stream = null
  tokens?.leave()
  $('toasts').replaceChildren()
  state('offline')
  closed(null)
  $('main').hidden = true
  $('who').hidden = true
  $('sign-in').hidden = false
  $('sign-in-note').textContent = note
  // Cookies belong to a host name. With the second name of this machine, another user can sign in.
  $('other-name').hidden = !['127.0.0.1', 'localhost'].includes(location.hostname)
  const other = new URL(location.href)
  other.hostname = location.hostname === '127.0.0.1' ? 'localhost' : '127.0.0.1'
  $('other-host').href = other.href
  $('users').replaceChildren(...users.map(user => h('li', {},
    h('button', { type: 'button', onclick: () => choose(user.id) }, avatar(user.id), h('span', {}, user.name, h('small', {}, user.role))))))
}

async function choose (user) {
  try {
    await call('POST', '/login', { user })
    await begin()
    $('main').focus({ preventScroll: true })
    scrollTo(0, 0)
  } catch (error) {
    $('sign-in-note').textContent = error.message
  }
}

function board (session) {
  const { user } = session
  $('sign-in').hidden = true
  $('main').hidden = false
  $('who').hidden = false
  $('who-avatar').dataset.user = user.id
  $('who-avatar').textContent = user.name.slice(0, 1)
  $('who-name').textContent = user.name
  $('who-role').textContent = user.role
  $('admin').hidden = user.role !== 'admin'
  snippets(user)

  // One stream for all events, because browsers allow six HTTP/1.1 connections to a host.
  const tab = Array.from(crypto.getRandomValues(new Uint8Array(8)), byte => byte.toString(16).padStart(2, '0')).join('')
  stream = new Stream(`/sse?tab=${tab}`)
  const failed = error => notices.toast({ title: 'That did not work', message: error.message, level: 'error' })
  const notices = new NoticePanel(session, { failed })
  const machine = new MachinePanel($('main'))
  /** The topics of the open stream, and switches whose change the server has not confirmed. */
  let topics = new Set()
  const switched = new Map()
  const isOn = topic => switched.get(topic) ?? topics.has(topic)
  const chat = new ChatPanel(session, { subscribe, isOn, failed })
  const account = new AccountPanel(stream, { failed })
  const connections = new ConnectionsPanel(session, { ownClientId: () => stream?.clientId, failed })
  const log = new LogPanel(session)
  tokens = new TokenPanel({ failed })
  let marked = null

  for (const input of document.querySelectorAll('input[data-topic]')) {
    input.disabled = user.role === 'guest' && input.dataset.topic !== 'machine'
    input.onchange = () => subscribe(input.dataset.topic, input.checked).catch(failed)
  }

  stream
    .on('state', ({ state: name, reason, status }) => {
      state(name)
      closed(name === 'closed' ? reason : null)
      if (status === 401) whetherSignedIn().catch(failed)
      $('main').toggleAttribute('data-away', name !== 'live')
      if (name === 'live') account.live()
      if (name === 'reconnecting') account.away()
    })
    .on('filled', ({ samples, messages, log: end }) => {
      machine.fill(samples)
      chat.fill(messages)
      if (end !== null) log.fill(end)
    })
    .on('topics', held => {
      topics = held
      show()
    })
    .on('counted', ledger => account.counted(ledger))
    .on('received', event => account.received(event))
    .on('resumed', resumed => {
      account.resumed(resumed)
      // `resumed` is dispatched for each replayed event. The charts need it only once.
      if (marked !== resumed.at) machine.cut(resumed.at - resumed.awayMs, resumed.at)
      marked = resumed.at
    })
    .on('gap', () => {
      machine.clear()
      chat.clear()
      log.clear()
    })
    .on('machine', sample => machine.show(sample))
    .on('chat_message', message => chat.show(message))
    .on('private_message', message => chat.show(message))
    .on('notification', notification => notices.show(notification))
    .on('presence', ({ users }) => chat.presence(users))
    .on('connections', table => connections.show(table))
    .on('log', lines => log.show(lines))
  stream.open()

  /** Adds a topic to the open stream, or removes it. The stream brings the state of an added topic before the answer arrives. */
  async function subscribe (topic, on) {
    switched.set(topic, on)
    try {
      const answer = await call(on ? 'PUT' : 'DELETE', `/connections/${stream.clientId}/subscriptions/${encodeURIComponent(topic)}`)
      stream.ledger.forget(topic)
      topics = new Set(answer.topics)
    } finally {
      if (switched.get(topic) === on) switched.delete(topic)
      show()
    }
  }

  function show () {
    for (const input of document.querySelectorAll('input[data-topic]')) input.checked = isOn(input.dataset.topic)
    chat.topics(topics)
  }
}

/** Called when the stream was rejected. Shows the sign-in page if the session has ended. */
async function whetherSignedIn () {
  const session = await call('GET', '/session')
  if (session.user === null) signIn(session, 'Your session has ended, or the server was restarted. Sign in again.')
}

function state (name) {
  $('state').dataset.state = name
  $('state-text').textContent = STATES[name]
}

/** Shows why the stream is closed for good, and disables the controls. @param reason null: the stream is not closed */
function closed (reason) {
  $('closed').hidden = reason === null
  $('closed-reason').textContent = reason === null ? '' : REASONS[reason] ?? `The server has closed this stream: ${reason}.`
  $('controls').disabled = reason !== null
}

$('reconnect').onclick = () => { stream.reconnect() }

/** Shows curl commands for the user. */
function snippets (user) {
  const json = "-H 'content-type: application/json'"
  const bearer = `-H 'authorization: Bearer demo-${user.id}'`
  const examples = {
    ...(user.role === 'guest' ? {} : { 'Send a notification': `curl ${location.origin}/notify ${bearer} ${json} \\\n  -d '{"title":"Disk","message":"90 % full on db-1","level":"warning"}'` }),
    'Write to a room': `curl ${location.origin}/rooms/general/messages ${bearer} ${json} \\\n  -d '{"text":"Hello from a shell"}'`,
    'Subscribe to a room': `curl -N '${location.origin}/sse?topic=chat:general' ${bearer}`
  }
  $('snippets').replaceChildren(...Object.entries(examples).map(([title, text]) => {
    const copy = h('button', { type: 'button', class: 'quiet', 'aria-label': `Copy: ${title}`, onclick: () => copyText(text, copy) }, 'Copy')
    return h('div', { class: 'snippet' }, h('div', { class: 'snippet-head' }, title, copy), h('pre', { tabIndex: 0 }, text))
  }))
}

async function copyText (text, button) {
  // The clipboard is available only in a secure context, such as loopback, and not on other hosts over HTTP.
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false)
  button.textContent = copied === true ? 'Copied' : 'Select it instead'
  setTimeout(() => { button.textContent = 'Copy' }, 2_000)
}

$('sign-out').onclick = () => {
  stream?.close()
  call('POST', '/logout').then(() => begin('You signed out.'), error => { $('state-text').textContent = error.message })
}

const stored = localStorage.getItem('theme')
if (stored !== null) document.documentElement.style.colorScheme = stored
$('theme').onclick = () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === 'dark' ||
    (document.documentElement.style.colorScheme === '' && matchMedia('(prefers-color-scheme: dark)').matches)
  const theme = dark ? 'light' : 'dark'
  document.documentElement.style.colorScheme = theme
  localStorage.setItem('theme', theme)
}

begin().catch(error => { $('state-text').textContent = error.message })
