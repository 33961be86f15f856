import { $, call, clock, h, plural } from './dom.js'

const SHOWN_EVENTS = 8
const NOT_YET = 'While you are disconnected, the server continues to publish. When you are back, it sends what you missed.'

const BRIEFS = {
  machine: ({ cpuPercent, load }) => `processor ${Math.round(cpuPercent)} %, load ${load[0]}`,
  log: ({ lines }) => plural(lines.length, 'line'),
  chat_message: ({ room, from, text }) => `#${room} ${from}: ${text}`,
  private_message: ({ from, to, text }) => `${from} → ${to}: ${text}`,
  notification: ({ level, title }) => `${level}: ${title}`,
  presence: ({ users }) => users.join(', '),
  connections: ({ total }) => `${total} open`
}

/** Shows the counters of the stream, a button to interrupt it, and the result of the reconnect. */
export class AccountPanel {
  #stream
  #awaySince = null
  #ticking = null

  constructor (stream, { failed }) {
    this.#stream = stream
    $('cut').onsubmit = event => { event.preventDefault(); this.#cut().catch(failed) }
    $('wire').replaceChildren()
    this.#say('', NOT_YET)
  }

  counted (ledger) {
    for (const name of ['received', 'replayed', 'lost', 'duplicates']) {
      const shown = $(`count-${name}`)
      shown.textContent = ledger[name].toLocaleString('en')
      shown.toggleAttribute('data-zero', ledger[name] === 0)
      shown.toggleAttribute('data-bad', (name === 'lost' || name === 'duplicates') && ledger[name] > 0)
    }
  }

  received ({ name, data, replayed }) {
    const unlogged = name === 'presence' || name === 'connections'
    const numbered = unlogged ? 'not logged' : data.seq === undefined ? '' : `#${data.seq}`
    $('wire').prepend(h('li', { 'data-replayed': replayed, 'data-unlogged': unlogged },
      h('span', {}, clock(data.at)), h('span', {}, `${name} · ${BRIEFS[name](data)}`), h('span', {}, numbered)))
    while ($('wire').childElementCount > SHOWN_EVENTS) $('wire').lastElementChild.remove()
  }

  live () {
    $('client-id').textContent = this.#stream.clientId
    $('cut').querySelector('button').disabled = false
    clearInterval(this.#ticking)
    this.#awaySince = null
  }

  away () {
    if (this.#awaySince !== null) return
    this.#awaySince = performance.now()
    $('cut').querySelector('button').disabled = true
    // Hidden from screen readers, which would otherwise read every change of the seconds.
    const seconds = h('span', { 'aria-hidden': 'true' })
    this.#say('away', 'Disconnected. The server continues to publish; the client is reconnecting. ', seconds)
    const tick = () => { seconds.textContent = `${((performance.now() - this.#awaySince) / 1000).toFixed(1)} s` }
    this.#ticking = setInterval(tick, 100)
    tick()
  }

  resumed ({ awayMs, replayed, lost, duplicates, gap }) {
    const account = `Back after ${(awayMs / 1000).toFixed(1)} s: ${plural(replayed, 'event')} replayed, ${lost} lost, ${plural(duplicates, 'duplicate')}.`
    if (gap === null) this.#say(lost === 0 ? 'whole' : 'gap', account)
    else this.#say('gap', `${account} The server no longer had all events (${gap}), so the page has loaded the current state.`)
  }

  #say (state, ...content) {
    $('resumed').dataset.state = state
    $('resumed').replaceChildren(...content)
  }

  async #cut () {
    const seconds = Number(new FormData($('cut')).get('seconds'))
    await call('POST', `/connections/${this.#stream.clientId}/cut`, { seconds })
  }
}
