import { InvalidSubscription, InvalidTopic } from '../errors.js'

// Grammar: segments separated by `:`. In a subscription `*` stands for exactly one segment and a last `**` for zero or
// more. A segment is 1 or more visible characters other than `:`, `*` and white space, in Unicode's composed form, so
// that two names that look the same are the same; U+FFFD is what is left of bytes that were no text.
const SEGMENT = /^[^\s:*\p{C}\p{Default_Ignorable_Code_Point}\uFFFD]+$/u
// Most topics and patterns: known to be good after one look. Too short to have too many segments.
const PLAIN_TOPIC = /^[!-)+-9;-~]+(?::[!-)+-9;-~]+)*$/
const PLAIN_PATTERN = /^(?:\*|[!-)+-9;-~]+)(?::(?:\*|[!-)+-9;-~]+))*(?::\*\*)?$/
const MAX_PLAIN_LENGTH = 63
const PERCENT_ENCODED = /%[0-9a-f]{2}/i
const ALIKE_SCRIPTS = [/\p{Script=Latin}/u, /\p{Script=Greek}/u, /\p{Script=Cyrillic}/u]
const MAX_LENGTH = 512
const MAX_SEGMENTS = 32
const MAX_CACHED_TOPICS = 10_000

/** What breaks the grammar, or null. */
function fault (text: unknown, wildcards: boolean): string | null {
  if (typeof text !== 'string') return 'must be a string'
  if (text.length <= MAX_PLAIN_LENGTH && (wildcards ? PLAIN_PATTERN : PLAIN_TOPIC).test(text)) return null
  if (text.length === 0 || text.length > MAX_LENGTH) return `must have 1 to ${MAX_LENGTH} characters`
  if (text.normalize('NFC') !== text) return 'must be in Unicode normalization form C'
  const segments = text.split(':')
  if (segments.length > MAX_SEGMENTS) return `must have at most ${MAX_SEGMENTS} segments`
  for (let i = 0; i < segments.length; i++) {
    const segment = segments[i]!
    if (SEGMENT.test(segment)) continue
    if (segment === '') return 'must not have an empty segment'
    if (!segment.includes('*')) return 'must not have white space, control or invisible characters'
    if (!wildcards) return 'must not have wildcards: a broadcast names a topic'
    if (segment === '**' && i !== segments.length - 1) return 'may have "**" only as the last segment'
    if (segment !== '*' && segment !== '**') return 'may have "*" or "**" only as a whole segment'
  }
  return null
}

/** Throws SSE_ERR_INVALID_TOPIC unless `topic` can be named by a broadcast. */
export function assertTopic (topic: unknown): asserts topic is string {
  const reason = fault(topic, false)
  if (reason !== null) throw new InvalidTopic(quote(topic), reason)
}

/** Throws SSE_ERR_INVALID_SUBSCRIPTION unless `subscription` is a topic or a pattern. */
export function assertSubscription (subscription: unknown): asserts subscription is string {
  const reason = fault(subscription, true)
  if (reason !== null) throw new InvalidSubscription(quote(subscription), reason)
}

/**
 * Throws SSE_ERR_INVALID_SUBSCRIPTION unless a client may name this: beside the grammar, nothing that the application's
 * `authorizeSubscription` might take for something else. Words all in the letters of another script pass: only a table could tell.
 */
export function assertChosenSubscription (subscription: string): void {
  assertSubscription(subscription)
  let reason: string | null = null
  if (subscription.normalize('NFKC') !== subscription) reason = 'must not have characters that are a form of others'
  else if (PERCENT_ENCODED.test(subscription)) reason = 'must not be encoded twice'
  else if (subscription.split(':').some(segment => ALIKE_SCRIPTS.filter(script => script.test(segment)).length > 1)) reason = 'must not mix Latin, Greek and Cyrillic letters in a segment'
  if (reason !== null) throw new InvalidSubscription(quote(subscription), reason)
}

export function isPattern (subscription: string): boolean {
  return subscription.includes('*')
}

/** Whether `subscription` (valid, topic or pattern) covers `topic`. One walk, no backtracking: `**` only comes last. */
export function covers (subscription: string, topic: string): boolean {
  if (subscription === topic) return true
  if (!isPattern(subscription)) return false
  let at = 0
  for (let from = 0; from <= subscription.length;) {
    const to = segmentEnd(subscription, from)
    const wanted = subscription.slice(from, to)
    if (wanted === '**') return true
    if (at > topic.length) return false
    const end = segmentEnd(topic, at)
    if (wanted !== '*' && (end - at !== wanted.length || !topic.startsWith(wanted, at))) return false
    from = to + 1
    at = end + 1
  }
  return at > topic.length
}

function segmentEnd (text: string, from: number): number {
  const colon = text.indexOf(':', from)
  return colon < 0 ? text.length : colon
}

export function quote (value: unknown): string {
  return typeof value === 'string' ? JSON.stringify(value.length > 80 ? value.slice(0, 80) + '…' : value) : `of type ${typeof value}`
}

class Node<T> {
  /** Null where patterns end: most nodes are such. */
  children: Map<string, Node<T>> | null = null
  /** Value of the pattern that ends here. */
  value: T | undefined
  /** Value of the pattern that ends here with `**`. */
  rest: T | undefined

  get empty (): boolean {
    return this.children === null && this.value === undefined && this.rest === undefined
  }

  child (segment: string): Node<T> | undefined {
    return this.children === null ? undefined : this.children.get(segment)
  }

  /** The child for this segment, made if there is none. */
  grow (segment: string): Node<T> {
    const children = (this.children ??= new Map())
    let child = children.get(segment)
    if (child === undefined) children.set(segment, child = new Node())
    return child
  }

  prune (segment: string): void {
    this.children!.delete(segment)
    if (this.children!.size === 0) this.children = null
  }
}

/**
 * Patterns, each with a value, found by the topics they cover. A match costs the topic's segments, never the patterns.
 * Most end with their only wildcard, such as `user:7:**`: of these there are few that can cover a topic, and they are
 * looked up by their text. Only those with a wildcard further in are kept as a tree.
 */
export class PatternIndex<T> {
  readonly #tails = new Map<string, T>()
  readonly #root = new Node<T>()
  readonly #matches = new Map<string, readonly T[]>()
  #inTree = 0

  get size (): number {
    return this.#tails.size + this.#inTree
  }

  set (pattern: string, value: T): void {
    this.#forget()
    if (isTail(pattern)) {
      this.#tails.set(pattern, value)
      return
    }
    let node = this.#root
    const segments = pattern.split(':')
    const rest = segments.at(-1) === '**'
    if (rest) segments.pop()
    for (const segment of segments) node = node.grow(segment)
    if ((rest ? node.rest : node.value) === undefined) this.#inTree++
    if (rest) node.rest = value
    else node.value = value
  }

  delete (pattern: string): void {
    this.#forget()
    if (isTail(pattern)) {
      this.#tails.delete(pattern)
      return
    }
    const segments = pattern.split(':')
    const rest = segments.at(-1) === '**'
    if (rest) segments.pop()
    const path = [this.#root]
    for (const segment of segments) {
      const child = path.at(-1)!.child(segment)
      if (child === undefined) return
      path.push(child)
    }
    const last = path.at(-1)!
    if ((rest ? last.rest : last.value) === undefined) return
    if (rest) last.rest = undefined
    else last.value = undefined
    for (let i = segments.length; i > 0 && path[i]!.empty; i--) path[i - 1]!.prune(segments[i - 1]!)
    this.#inTree--
  }

  /** What was found need not hold any more. */
  #forget (): void {
    // An empty map that is cleared is made anew.
    if (this.#matches.size > 0) this.#matches.clear()
  }

  /** The values of all patterns that cover `topic`. */
  match (topic: string): readonly T[] {
    let found = this.#matches.get(topic)
    if (found === undefined) {
      const all: T[] = []
      if (this.#tails.size > 0) for (const pattern of tailsOf(topic)) if (this.#tails.has(pattern)) all.push(this.#tails.get(pattern)!)
      found = this.#inTree === 0 ? all : collect(this.#root, topic.split(':'), 0, all)
      if (this.#matches.size >= MAX_CACHED_TOPICS) this.#matches.clear()
      this.#matches.set(topic, found)
    }
    return found
  }
}

/** Whether the only wildcard of a pattern is its last segment. */
function isTail (pattern: string): boolean {
  return isPattern(pattern) && !pattern.includes(':', pattern.indexOf('*'))
}

/** The patterns that end with their only wildcard and cover the topic. */
function tailsOf (topic: string): string[] {
  const tails = ['**', `${topic}:**`]
  let last = 0
  for (let colon = topic.indexOf(':'); colon >= 0; colon = topic.indexOf(':', last)) {
    tails.push(`${topic.slice(0, colon)}:**`)
    last = colon + 1
  }
  tails.push(`${topic.slice(0, last)}*`)
  return tails
}

function collect<T> (node: Node<T>, segments: readonly string[], depth: number, found: T[]): T[] {
  if (node.rest !== undefined) found.push(node.rest)
  if (depth === segments.length) {
    if (node.value !== undefined) found.push(node.value)
    return found
  }
  const literal = node.child(segments[depth]!)
  if (literal !== undefined) collect(literal, segments, depth + 1, found)
  const single = node.child('*')
  if (single !== undefined) collect(single, segments, depth + 1, found)
  return found
}
