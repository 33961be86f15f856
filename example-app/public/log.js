import { $, atEnd, h, plural } from './dom.js'

const SHOWN_LINES = 300

/** Shows the end of the file that was given on the command line, or the log of the app itself. */
export class LogPanel {
  #box = $('log')
  /** Sequence number of the newest event shown. */
  #shown = 0

  constructor ({ user, logFile }) {
    $('log-file').textContent = logFile ?? 'of this app'
    if (user.role === 'guest') this.#say('Guests cannot read the log: the server rejects the subscription.')
    else this.#say(logFile === null ? 'No requests yet. To show the end of a file here: npm start -- /var/log/syslog' : 'Nothing written yet.')
  }

  /** Shows the end of the file as of event `seq`. */
  fill ({ seq, lines }) {
    if (lines.length === 0) return
    this.#box.replaceChildren(...lines.map(line => h('div', {}, line)))
    this.#box.scrollTop = this.#box.scrollHeight
    this.#shown = seq
  }

  show (event) {
    if (event.seq <= this.#shown) return
    this.#shown = event.seq
    const { lines, skippedBytes, replayed } = event
    this.#add([
      ...(skippedBytes === 0 ? [] : [h('div', { class: 'skipped' }, `… ${plural(skippedBytes, 'byte')} skipped: the file grows faster than it is read`)]),
      ...lines.map(line => h('div', { 'data-replayed': replayed }, line))
    ])
  }

  clear () {
    this.#shown = 0
  }

  #add (elements) {
    const follow = atEnd(this.#box)
    this.#box.querySelector('.empty')?.remove()
    this.#box.append(...elements)
    while (this.#box.childElementCount > SHOWN_LINES) this.#box.firstElementChild.remove()
    if (follow) this.#box.scrollTop = this.#box.scrollHeight
  }

  #say (text) {
    this.#box.replaceChildren(h('div', { class: 'empty' }, text))
  }
}
