import { isPattern } from '../events/topic.js'
import { MatchCache } from './match-cache.js'

/** A segment of the tree of patterns. */
class Node<T> {
  /** Child nodes by segment; null for none, which most nodes have, to save memory. */
  children: Map<string, Node<T>> | null = null
  /** Value of the pattern that ends at this node; undefined for none. */
  value: T | undefined
  /** Value of the pattern that ends after this node with `**`; undefined for none. */
  rest: T | undefined

  get empty (): boolean {
    return this.children === null && this.value === undefined && this.rest === undefined
  }

  child (segment: string): Node<T> | undefined {
    return this.children === null ? undefined : this.children.get(segment)
  }

  /** Returns the child for a segment, and creates it if it does not exist. */
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
 * Finds the values of all patterns that cover a topic. The time depends on the segments of the topic, not on the number of
 * patterns. Most patterns end with their only wildcard, such as `user:7:**`. Few of these can cover a given topic, and they are
 * looked up by their text. Patterns with an earlier wildcard are kept in a tree.
 */
export class PatternIndex<T> {
  readonly #tails = new Map<string, T>()
  readonly #root = new Node<T>()
  readonly #matches = new MatchCache<T>()
  #inTree = 0

  /** Number of patterns. */
  get size (): number {
    return this.#tails.size + this.#inTree
  }

  /** Adds a pattern, or replaces its value. */
  set (pattern: string, value: T): void {
    this.#matches.change(pattern)
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

  /** Removes a pattern. */
  delete (pattern: string): void {
    this.#matches.change(pattern)
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

  /** Returns the values of all patterns that cover a topic. */
  match (topic: string): readonly T[] {
    let found = this.#matches.get(topic)
    if (found === undefined) {
      const all: T[] = []
      if (this.#tails.size > 0) for (const pattern of tailsOf(topic)) if (this.#tails.has(pattern)) all.push(this.#tails.get(pattern)!)
      found = this.#inTree === 0 ? all : collect(this.#root, topic.split(':'), 0, all)
      this.#matches.set(topic, found)
    }
    return found
  }
}

/** Returns whether the last segment of a pattern is its only wildcard. */
function isTail (pattern: string): boolean {
  return isPattern(pattern) && !pattern.includes(':', pattern.indexOf('*'))
}

/** Returns all possible patterns that end with their only wildcard and cover a topic. */
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
