import { covers } from '../events/topic.js'
import { bytesOfText, ownText } from '../util/text.js'

interface Match<T> {
  readonly found: readonly T[]
  /** Number of pattern changes up to which the match is valid. */
  asOf: number
}

const MAX_TOPICS = 10_000
/** Limit of the cache in bytes. Without it, topics that thousands of patterns cover would take too much memory. */
const MAX_BYTES = 4 * 1024 * 1024
/** Memory of a topic beside its text, and of each pattern that covers it, in bytes. */
const TOPIC_BYTES = 160
const PATTERN_BYTES = 8
/** Number of remembered changes. Comparing a topic with more of them takes longer than matching again. */
const MAX_CHANGES = 32

/**
 * Caches which patterns cover a topic, for recently used topics. A changed pattern invalidates only the topics that it covers. So
 * clients that connect and disconnect with their own patterns do not invalidate other matches.
 */
export class MatchCache<T> {
  readonly #matches = new Map<string, Match<T>>()
  /** The last changed patterns: change n at index n modulo `MAX_CHANGES`. */
  readonly #changed: string[] = new Array<string>(MAX_CHANGES).fill('')
  #changes = 0
  #bytes = 0

  /** Number of cached topics. */
  get size (): number {
    return this.#matches.size
  }

  /** Approximate memory of the cached matches in bytes. */
  get bytes (): number {
    return this.#bytes
  }

  /** Invalidates the topics that an added or removed pattern covers. */
  change (pattern: string): void {
    this.#changed[this.#changes++ % MAX_CHANGES] = pattern
  }

  /** Returns the match of a topic; undefined if it is not cached, or no longer valid. */
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

  /** Caches the match of a topic. */
  set (topic: string, found: readonly T[]): void {
    const old = this.#matches.get(topic)
    if (old !== undefined) this.#forget(topic, old)
    const bytes = bytesOf(topic, found)
    if (bytes > MAX_BYTES) return
    if (this.#matches.size === MAX_TOPICS || this.#bytes + bytes > MAX_BYTES) this.#clear()
    // A copy has no spare capacity.
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
