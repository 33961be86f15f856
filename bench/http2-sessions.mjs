import { connect } from 'node:http2'

/** Sessions of HTTP/2 to one server, each with a number of streams. */
export class Http2Sessions {
  #port
  #streams
  #taken = 0
  #sessions = []

  constructor (port, streams) {
    this.#port = port
    this.#streams = streams
  }

  /** The session of the next stream. */
  next () {
    if (this.#taken++ % this.#streams === 0) this.#sessions.push(connect(`http://127.0.0.1:${this.#port}`))
    return this.#sessions.at(-1)
  }

  close () {
    for (const session of this.#sessions) session.destroy()
  }
}
