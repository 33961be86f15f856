import { Buffer } from 'node:buffer'
import { EventTooLarge, InvalidData, InvalidEventName, InvalidPriority, InvalidRetry } from '../errors.js'
import { quote, shown } from '../util/quote.js'
import { ownText } from '../util/text.js'
import { CONTROL_PREFIX } from './control.js'

/** The priorities of events. A client with a backlog receives higher priorities first; within a priority, the order is kept. */
export const EventPriority = Object.freeze({ LOW: 0, NORMAL: 1, HIGH: 2, CRITICAL: 3 } as const)
/** A priority from 0 (`LOW`) to 3 (`CRITICAL`). */
export type EventPriority = (typeof EventPriority)[keyof typeof EventPriority]
/** Number of priorities. */
export const PRIORITIES = 4

const CR = 13
const LF = 10
/** Length of `data: `, the prefix of each line. */
const DATA_PREFIX_BYTES = 6
/** A line end is written as `\ndata: `; any other character takes at most three bytes. */
const MAX_BYTES_PER_CHARACTER = 1 + DATA_PREFIX_BYTES
/** Characters that would end a field or be lost in the wire format. */
export const FORBIDDEN = /[\r\n\0]/
const MAX_NAME_LENGTH = 256
const MIN_RETRY_MS = 100
const MAX_RETRY_MS = 3_600_000
// EventSource fires these events itself: an application's event of the same name would look like a connection state.
const OWN_EVENTS = new Set(['open', 'error'])

/**
 * Rejects an event name that applications cannot send.
 * @throws SSE_ERR_INVALID_EVENT_NAME
 */
export function assertEventName (name: unknown): asserts name is string {
  const reason = faultOfName(name)
  if (reason !== null) throw new InvalidEventName(quote(name), reason)
}

function faultOfName (name: unknown): string | null {
  if (name === 'message') return null
  if (typeof name !== 'string' || name.length === 0 || name.length > MAX_NAME_LENGTH) return `must be a string of 1 to ${MAX_NAME_LENGTH} characters`
  if (FORBIDDEN.test(name) || !name.isWellFormed()) return 'must not have CR, LF, NUL or lone surrogates'
  if (OWN_EVENTS.has(name)) return 'is an event of EventSource itself'
  if (name.startsWith(CONTROL_PREFIX)) return `must not begin with "${CONTROL_PREFIX}": the prefix of control events`
  return null
}

/**
 * Rejects a reconnection time that is not an integer from 100 to 3,600,000 milliseconds. Smaller values would cause reconnection
 * storms, and with larger values clients would stay disconnected for too long.
 * @throws SSE_ERR_INVALID_RETRY
 */
export function assertRetry (retry: unknown): asserts retry is number {
  if (!Number.isInteger(retry) || (retry as number) < MIN_RETRY_MS || (retry as number) > MAX_RETRY_MS) throw new InvalidRetry(shown(retry))
}

/**
 * Rejects a value that is not one of `EventPriority`.
 * @throws SSE_ERR_INVALID_PRIORITY
 */
export function assertPriority (priority: unknown): asserts priority is EventPriority {
  if (!Number.isInteger(priority) || (priority as number) < 0 || (priority as number) >= PRIORITIES) throw new InvalidPriority(shown(priority))
}

/**
 * Returns the text of the `data:` lines as `textOfData`. The log keeps the text, so it references no other string.
 * @throws SSE_ERR_INVALID_DATA
 */
export function serialize (data: unknown): string {
  const text = textOfData(data)
  return typeof data === 'string' ? ownText(text) : text
}

/**
 * Returns the text of the `data:` lines: a string unchanged, any other value as JSON.
 * @throws SSE_ERR_INVALID_DATA for a value without a JSON form, and for lone surrogates, which UTF-8 cannot encode
 */
export function textOfData (data: unknown): string {
  if (typeof data === 'string') {
    if (!data.isWellFormed()) throw new InvalidData('must not have lone surrogates')
    return data
  }
  if (data instanceof Promise) throw new InvalidData('is a promise: await it first')
  let text: string | undefined
  try {
    text = JSON.stringify(data)
  } catch (cause) {
    throw new InvalidData(`cannot be serialised: ${cause instanceof Error ? cause.message : shown(cause)}`, { cause })
  }
  if (text === undefined) throw new InvalidData(`of type ${typeof data} cannot be serialised`)
  return text
}

/**
 * Rejects an event whose encoded name and data, plus `besides`, have more than `maxBytes`. Bytes that every event has, such as
 * field names, are not counted.
 * @param besides bytes of other parts of the event, such as ids of its target and its key
 * @throws SSE_ERR_EVENT_TOO_LARGE
 */
export function assertEventSize (name: string, data: string, besides: number, maxBytes: number): void {
  if ((name.length + data.length) * MAX_BYTES_PER_CHARACTER + besides <= maxBytes) return
  const bytes = (name === 'message' ? 0 : Buffer.byteLength(name)) + bytesOfData(data) + besides
  if (bytes > maxBytes) throw new EventTooLarge(bytes, maxBytes)
}

/** Returns the encoded size of the `data:` lines, without the prefix of the first line and the end of the last. */
function bytesOfData (data: string): number {
  let bytes = Buffer.byteLength(data)
  if (isOneLine(data)) return bytes
  for (let i = 0; i < data.length; i++) {
    const code = data.charCodeAt(i)
    if (code === CR) bytes += DATA_PREFIX_BYTES
    else if (code === LF) bytes += data.charCodeAt(i - 1) === CR ? -1 : DATA_PREFIX_BYTES
  }
  return bytes
}

/** Returns whether a text has no line end. */
export function isOneLine (text: string): boolean {
  return !text.includes('\n') && !text.includes('\r')
}
