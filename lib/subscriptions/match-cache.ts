import { covers } from '../events/topic.js'
import { bytesOfText, ownText } from '../util/text.js'

interface Match<T> {
  readonly found: readonly T[]
  /** How many changes of the patterns it takes account of. */
  asOf: number
}

const MAX_TOPICS = 10_000
/** A topic that thousands of patterns cover counts for all of them. */
const MAX_BYTES = 4 * 1024 * 1024
/** What a topic takes beside its text, and what each pattern that covers it takes, in bytes. */
const TOPIC_BYTES = 160
const PATTERN_BYTES = 8
/** Changes that are remembered. To look at more of them costs more than to match again. */
const MAX_CHANGES = 32

/**
 * The patterns that cover the topics asked for lately. A change of one pattern concerns the topics that it covers: the matches
 * of all others stay good, however many clients come and go with patterns of their own.
 */
export class MatchCache<T> {
  readonly #matches = new Map<string, Match<T>>()
  /** The patterns that changed last: the n-th change at n modulo `MAX_CHANGES`. */
  readonly #changed: string[] = new Array<string>(MAX_CHANGES).fill('')
  #changes = 0
  #bytes = 0

  get size (): number {
    return this.#matches.size
  }

  /** What its matches take in memory, about. */
  get bytes (): number {
    return this.#bytes
  }

  /** A pattern has been added or removed. */
  change (pattern: string): void {
    this.#changed[this.#changes++ % MAX_CHANGES] = pattern
  }

  get (topic: string): readonly T[] | undefined {
    const match = this.#matches.get(topic)
    if (match === undefined || (match.asOf !== this.#changes && !this.#isGood(match, topic))) return undefined
    return match.found
  }

  #isGood (match: Match<T>, topic: string): boolean {
    if (this.#changes - match.asOf > MAX_CHANGES) return false
    for (let change = match.asOf; change < this.#changes; change++) if (covers(this.#changed[change % MAX_CHANGES]!, topic)) return false
    match.asOf = this.#changes
    return true
  }

  set (topic: string, found: readonly T[]): void {
    const old = this.#matches.get(topic)
    if (old !== undefined) this.#forget(topic, old)
    const bytes = bytesOf(topic, found)
    if (bytes > MAX_BYTES) return
    if (this.#matches.size === MAX_TOPICS || this.#bytes + bytes > MAX_BYTES) this.#clear()
    // A copy has no room for more.
    this.#matches.set(ownText(topic), { found: found.slice(), asOf: this.#changes })
    this.#bytes += bytes
  }

  #forget (topic: string, { found }: Match<T>): void {
    this.#matches.delete(topic)
    this.#bytes -= bytesOf(topic, found)
  }

  #clear (): void {
    this.#matches.clear()
    this.#bytes = 0
  }
}

function bytesOf (topic: string, found: readonly unknown[]): number {
  return TOPIC_BYTES + bytesOfText(topic) + PATTERN_BYTES * found.length
}
