import { $, atEnd, h, plural } from './dom.js'

const SHOWN_LINES = 300

/** The end of the file that was named on the command line. */
export class LogPanel {
  #box = $('log')

  constructor ({ user, logFile }) {
    $('log-file').textContent = logFile ?? ''
    if (user.role === 'guest') this.#say('Guests do not read the log: the server refuses the subscription.')
    else if (logFile === null) this.#say('No file was named. Start the board with one:  npm start -- /var/log/syslog')
    else this.#say('Nothing written yet.')
  }

  /** What was in the file before this page came. */
  fill (lines) {
    if (lines.length > 0) this.#box.replaceChildren()
    this.#add(lines.map(line => h('div', {}, line)))
  }

  show ({ lines, skippedBytes, replayed }) {
    this.#add([
      ...(skippedBytes === 0 ? [] : [h('div', { class: 'skipped' }, `… ${plural(skippedBytes, 'byte')} skipped: the file grows faster than anyone reads`)]),
      ...lines.map(line => h('div', { 'data-replayed': replayed }, line))
    ])
  }

  #add (elements) {
    if (elements.length === 0) return
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
