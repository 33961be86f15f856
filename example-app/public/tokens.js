import { $, plural } from './dom.js'

/**
 * Reads the token stream of one request with fetch. Stop aborts the request. An EventSource would send the prompt again after the end of
 * the stream.
 */
export class TokenPanel {
  #running = null

  constructor ({ failed }) {
    $('ask').onsubmit = event => { event.preventDefault(); this.#ask(new FormData($('ask')).get('prompt')).catch(failed) }
    $('ask-stop').onclick = () => this.stop()
    $('answer').textContent = ''
    $('answer-note').textContent = 'A tiny model, made of one page of text. Its words come one by one.'
  }

  stop () {
    this.#running?.abort()
  }

  async #ask (prompt) {
    this.stop()
    const running = this.#running = new AbortController()
    const answer = $('answer')
    let tokens = 0
    answer.textContent = ''
    this.#show(true, 'Listening…')
    try {
      const response = await fetch(`/tokens?${new URLSearchParams({ prompt })}`, { signal: running.signal, headers: { accept: 'text/event-stream' } })
      if (!response.ok) throw new Error((await response.json()).message)
      for await (const { event, data } of blocks(response.body)) {
        if (event === 'message') {
          answer.append(data)
          answer.scrollTop = answer.scrollHeight
          this.#show(true, plural(++tokens, 'token'))
        } else if (event === 'done') {
          const { tookMs } = JSON.parse(data)
          this.#show(false, `${plural(tokens, 'token')} in ${(tookMs / 1000).toFixed(1)} s. The server ended the stream.`)
        }
      }
    } catch (error) {
      if (!running.signal.aborted) throw error
      if (this.#running === running) this.#show(false, `Stopped after ${plural(tokens, 'token')}. The server's generator knows at once.`)
    } finally {
      if (this.#running === running) {
        this.#running = null
        this.#show(false)
      }
    }
  }

  #show (running, note) {
    $('answer').toggleAttribute('data-running', running)
    $('ask-stop').disabled = !running
    if (note !== undefined) $('answer-note').textContent = note
  }
}

/** Yields the events of a stream. The server ends lines with LF, so other line ends are not parsed. */
async function * blocks (body) {
  let text = ''
  for await (const piece of pieces(body.pipeThrough(new TextDecoderStream()))) {
    text += piece
    let end
    while ((end = text.indexOf('\n\n')) !== -1) {
      const block = { event: 'message', data: null }
      for (const line of text.slice(0, end).split('\n')) {
        if (line.startsWith('event: ')) block.event = line.slice(7)
        if (line.startsWith('data: ')) block.data = block.data === null ? line.slice(6) : `${block.data}\n${line.slice(6)}`
      }
      text = text.slice(end + 2)
      if (block.data !== null) yield block
    }
  }
}

/** Yields the chunks of a stream. Not every browser has an async iterator for streams. */
async function * pieces (stream) {
  const reader = stream.getReader()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      yield value
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}
