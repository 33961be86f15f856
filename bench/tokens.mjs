/** The sources of the scenario `sources`: what a model would yield, one token after the other, to each stream its own. */

const streams = new Map()

/** The tokens of stream `i`, each as `form` makes it of its JSON. What was not read when the next token comes waits. */
export function tokensOf (i, form = text => text) {
  const tokens = new Tokens(form)
  streams.set(String(i), tokens)
  return tokens
}

export function emit (i, text) {
  streams.get(String(i)).push(text)
}

class Tokens {
  #form
  #waiting = []
  #resolve = null

  constructor (form) {
    this.#form = form
  }

  push (text) {
    const value = this.#form(text)
    if (this.#resolve === null) return this.#waiting.push(value)
    const resolve = this.#resolve
    this.#resolve = null
    resolve({ value, done: false })
  }

  next () {
    if (this.#waiting.length > 0) return Promise.resolve({ value: this.#waiting.shift(), done: false })
    return new Promise(resolve => { this.#resolve = resolve })
  }

  return () {
    return Promise.resolve({ value: undefined, done: true })
  }

  [Symbol.asyncIterator] () {
    return this
  }
}
