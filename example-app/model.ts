import { setTimeout as wait } from 'node:timers/promises'

const ORDER = 2
const MOST_TOKENS = 160
const ENOUGH_TOKENS = 70
const TOKEN_MS = 60

/** A minimal language model: a Markov chain of order 2, built from one text. It is slow on purpose, to resemble a large model. */
export class Model {
  readonly #next = new Map<string, string[]>()
  readonly #starts: string[] = []

  constructor (text: string) {
    const read = text.split(/\s+/).filter(word => word !== '')
    // The text is continued with its own start, so that every state has a next token.
    const words = [...read, ...read.slice(0, ORDER)]
    for (let i = 0; i + ORDER < words.length; i++) {
      const state = words.slice(i, i + ORDER).join(' ')
      const follow = this.#next.get(state)
      if (follow === undefined) this.#next.set(state, [words[i + ORDER]!])
      else follow.push(words[i + ORDER]!)
      if (i === 0 || endsSentence(words[i - 1]!)) this.#starts.push(state)
    }
  }

  /**
   * Yields tokens, with the space before each. Ends with a sentence, or when `signal` aborts.
   * @param begun beginning of the answer: it is yielded at once, and continued
   */
  async * stream (prompt: string, signal: AbortSignal, begun: string): AsyncGenerator<string, void> {
    const words = begun.split(' ')
    const first = words.length < ORDER ? this.#start(prompt) : begun
    let state = first.split(' ').slice(-ORDER).join(' ')
    let tokens = first.split(' ').length
    yield first
    while (tokens < MOST_TOKENS) {
      const word = pick(this.#next.get(state) ?? [])
      if (word === undefined) break
      await wait(TOKEN_MS * (0.5 + Math.random()), undefined, { signal })
      yield ` ${word}`
      tokens++
      if (tokens > ENOUGH_TOKENS && endsSentence(word)) break
      state = `${state.slice(state.indexOf(' ') + 1)} ${word}`
    }
  }

  /** Returns a start that contains a term of the prompt; a random start if the text has none. */
  #start (prompt: string): string {
    const asked = prompt.toLowerCase().match(/\p{L}{4,}/gu) ?? []
    const fitting = [...this.#next.keys()].filter(state => asked.some(word => state.toLowerCase().includes(word)))
    return pick(fitting) ?? pick(this.#starts) ?? 'Nothing read'
  }
}

function endsSentence (word: string): boolean {
  return /[.!?]$/.test(word)
}

function pick<T> (choices: readonly T[]): T | undefined {
  return choices[Math.floor(Math.random() * choices.length)]
}
