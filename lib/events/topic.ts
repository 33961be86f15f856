import { InvalidSubscription, InvalidTopic } from '../errors.js'
import { quote } from '../util/quote.js'

// Grammar: segments separated by `:`. In a subscription, `*` matches exactly one segment and a final `**` zero or more.
// A segment has one or more visible characters other than `:`, `*` and white space. It is in Unicode's composed form (NFC), so
// that names that look the same are equal. U+FFFD is excluded: decoders put it where bytes were not valid text.
const SEGMENT = /^[^\s:*\p{C}\p{Default_Ignorable_Code_Point}\uFFFD]+$/u
// Fast path for most topics and patterns. Texts up to MAX_PLAIN_LENGTH cannot exceed MAX_SEGMENTS.
const PLAIN_TOPIC = /^[!-)+-9;-~]+(?::[!-)+-9;-~]+)*$/
const PLAIN_PATTERN = /^(?:\*|[!-)+-9;-~]+)(?::(?:\*|[!-)+-9;-~]+))*(?::\*\*)?$/
const MAX_PLAIN_LENGTH = 63
const PERCENT_ENCODED = /%[0-9a-f]{2}/i
const ALIKE_SCRIPTS = [/\p{Script=Latin}/u, /\p{Script=Greek}/u, /\p{Script=Cyrillic}/u]
const MAX_LENGTH = 512
const MAX_SEGMENTS = 32

/** Returns the violation of the grammar, or null for a valid text. */
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

/**
 * Rejects a value that is not a valid topic for a broadcast.
 * @throws SSE_ERR_INVALID_TOPIC
 */
export function assertTopic (topic: unknown): asserts topic is string {
  const reason = fault(topic, false)
  if (reason !== null) throw new InvalidTopic(quote(topic), reason)
}

/** Returns whether a value is a valid topic or pattern. */
export function isSubscription (value: unknown): value is string {
  return fault(value, true) === null
}

/**
 * Rejects a value that is neither a topic nor a pattern.
 * @throws SSE_ERR_INVALID_SUBSCRIPTION
 */
export function assertSubscription (subscription: unknown): asserts subscription is string {
  const reason = fault(subscription, true)
  if (reason !== null) throw new InvalidSubscription(quote(subscription), reason)
}

/**
 * Rejects a subscription from a client that breaks the grammar, or that `authorizeSubscription` could mistake for another one.
 * A segment entirely in another script passes: only a table of confusable characters would detect it.
 * @throws SSE_ERR_INVALID_SUBSCRIPTION
 */
export function assertChosenSubscription (subscription: string): void {
  assertSubscription(subscription)
  let reason: string | null = null
  if (subscription.normalize('NFKC') !== subscription) reason = 'must not have compatibility characters (use NFKC)'
  else if (PERCENT_ENCODED.test(subscription)) reason = 'must not be encoded twice'
  else if (subscription.split(':').some(segment => ALIKE_SCRIPTS.filter(script => script.test(segment)).length > 1)) reason = 'must not mix Latin, Greek and Cyrillic letters in a segment'
  if (reason !== null) throw new InvalidSubscription(quote(subscription), reason)
}

/** Returns whether a valid subscription has a wildcard. */
export function isPattern (subscription: string): boolean {
  return subscription.includes('*')
}

/** Returns whether a valid topic or pattern covers `topic`. One pass without backtracking suffices: `**` is always last. */
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
