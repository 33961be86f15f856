/* global sessionStorage */
import { $, call, h, plural } from './dom.js'
import { readRun } from './sse-client.js'

const ENDS = {
  done: 'The answer is complete.',
  stopped: 'Stopped. The server ends the model at once, in all tabs.',
  unknown: 'The last answer is not kept any more.'
}

/**
 * Asks the model. An answer is a run of the server: a reload reads it again, and Stop ends it in all tabs. If the process that read the
 * model has ended, the answer is continued with what was received.
 */
export class TokenPanel {
  #user
  #reading = null
  /** The last question of this tab: { id, prompt }. */
  #asked = null

  /** Creates the panel. @param user id of the user, which the server of the cluster trusts; null with a cookie */
  constructor ({ user = null, failed }) {
    this.#user = user
    const ask = event => { event.preventDefault(); this.#ask().catch(failed) }
    const stop = () => { call('DELETE', this.#url()).catch(failed) }
    $('tokens').replaceChildren(
      h('header', {}, h('h2', { id: 'tokens-title' }, 'Token stream'), h('p', { class: 'muted' }, h('code', {}, 'startRun()'), ', ', h('code', {}, 'readRun()'))),
      h('form', { class: 'composer', onsubmit: ask },
        h('label', { class: 'hidden', for: 'prompt' }, 'Prompt'),
        h('input', { id: 'prompt', maxlength: '500', autocomplete: 'off', value: 'What happens when the connection breaks?' }),
        h('button', { type: 'submit' }, 'Ask'),
        h('button', { id: 'ask-stop', type: 'button', class: 'danger', disabled: true, onclick: stop }, 'Stop')),
      h('p', { id: 'answer', class: 'answer', 'aria-live': 'off', 'aria-label': 'Answer', tabindex: '0' }),
      h('p', { id: 'answer-note', class: 'muted small', role: 'status' }))
    this.#show(false, 'Reload the page while an answer arrives: the answer goes on.')
    this.#asked = JSON.parse(sessionStorage.getItem('asked'))
    if (this.#asked === null) return
    $('prompt').value = this.#asked.prompt
    this.#read({ resumes: true }).catch(failed)
  }

  /** Stops to read. The answer goes on. */
  leave () {
    this.#reading?.abort()
    sessionStorage.removeItem('asked')
  }

  async #ask () {
    this.#asked = { id: newId(), prompt: $('prompt').value }
    sessionStorage.setItem('asked', JSON.stringify(this.#asked))
    await this.#read({ resumes: false })
  }

  /** Shows the answer to the last question until it ends. */
  async #read ({ resumes }) {
    this.#reading?.abort()
    const { signal } = this.#reading = new AbortController()
    $('answer').textContent = ''
    this.#show(true, resumes ? 'Reading the answer again …' : 'Waiting for the first token …')
    try {
      let status = resumes ? await this.#follow({ method: 'GET' }, signal) : 'lost'
      while (status === 'lost') {
        const begun = $('answer').textContent
        if (begun !== '') this.#show(true, 'The process that read the model has ended. Another one continues …')
        // With the key, a request whose response did not arrive is sent again. The server joins the run if it is running.
        status = await this.#follow({ method: 'POST', body: { prompt: this.#asked.prompt, begun }, headers: { 'idempotency-key': newId() } }, signal)
      }
      this.#show(false, ENDS[status] ?? ENDS.unknown)
    } catch (error) {
      if (signal.aborted) return
      this.#show(false, '')
      throw error
    }
  }

  /** Reads the run, and returns how it has ended: `lost` if it can be continued, undefined if it is not kept. */
  async #follow (request, signal) {
    let text = ''
    const events = readRun(this.#url(), { ...request, signal, onGap: () => { text = '' } })
    try {
      for (;;) {
        const { done, value } = await events.next()
        if (done) return value?.status
        text += value.text
        $('answer').textContent = text
        $('answer').scrollTop = $('answer').scrollHeight
        this.#show(true, plural(text.split(' ').length, 'token'))
      }
    } catch (error) {
      if (error.reason === 'lost' || error.reason === 'unknown') return 'lost'
      throw error
    }
  }

  #url () {
    return `/answers/${this.#asked.id}${this.#user === null ? '' : `?user=${this.#user}`}`
  }

  #show (running, note) {
    $('answer').toggleAttribute('data-running', running)
    $('ask-stop').disabled = !running
    $('answer-note').textContent = note
  }
}

function newId () {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), byte => byte.toString(16).padStart(2, '0')).join('')
}
