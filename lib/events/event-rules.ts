import { Buffer } from 'node:buffer'
import { EventTooLarge, InvalidData, InvalidEventName, InvalidPriority, InvalidRetry } from '../errors.js'
import { ownText } from '../util/text.js'
import { CONTROL_PREFIX } from './control.js'

/** Order of delivery whenever there is a backlog: higher first, order kept within a priority. */
export const EventPriority = Object.freeze({ LOW: 0, NORMAL: 1, HIGH: 2, CRITICAL: 3 } as const)
export type EventPriority = (typeof EventPriority)[keyof typeof EventPriority]
export const PRIORITIES = 4

const CR = 13
const LF = 10
/** Of `data: `, which each line begins with. */
const DATA_PREFIX_BYTES = 6
/** A line end becomes `\ndata: `; any other character has at most three bytes. */
const MAX_BYTES_PER_CHARACTER = 1 + DATA_PREFIX_BYTES
export const FORBIDDEN = /[\r\n\0]/
const MAX_NAME_LENGTH = 256
const MIN_RETRY_MS = 100
const MAX_RETRY_MS = 3_600_000
// EventSource fires these itself; an event of that name would look like a connection state.
const OWN_EVENTS = new Set(['open', 'error'])

/** Throws SSE_ERR_INVALID_EVENT_NAME unless an application may send events of this name. */
export function assertEventName (name: unknown): asserts name is string {
  const reason = faultOfName(name)
  if (reason !== null) throw new InvalidEventName(typeof name === 'string' ? JSON.stringify(name.slice(0, 80)) : `of type ${typeof name}`, reason)
}

function faultOfName (name: unknown): string | null {
  if (name === 'message') return null
  if (typeof name !== 'string' || name.length === 0 || name.length > MAX_NAME_LENGTH) return `must be a string of 1 to ${MAX_NAME_LENGTH} characters`
  if (FORBIDDEN.test(name) || !name.isWellFormed()) return 'must not have CR, LF, NUL or lone surrogates'
  if (OWN_EVENTS.has(name)) return 'is an event of EventSource itself'
  if (name.startsWith(CONTROL_PREFIX)) return `must not begin with "${CONTROL_PREFIX}": the prefix of control events`
  return null
}

/** Throws SSE_ERR_INVALID_RETRY unless `retry` is an integer of milliseconds that does not make clients storm or sleep. */
export function assertRetry (retry: unknown): asserts retry is number {
  if (!Number.isInteger(retry) || (retry as number) < MIN_RETRY_MS || (retry as number) > MAX_RETRY_MS) throw new InvalidRetry(shown(retry))
}

/** Throws SSE_ERR_INVALID_PRIORITY unless `priority` is one of EventPriority. */
export function assertPriority (priority: unknown): asserts priority is EventPriority {
  if (!Number.isInteger(priority) || (priority as number) < 0 || (priority as number) >= PRIORITIES) throw new InvalidPriority(shown(priority))
}

// Not everything has a string form: Object.create(null) would throw an error of its own.
function shown (value: unknown): string {
  return typeof value === 'number' ? String(value) : `a value of type ${typeof value}`
}

/**
 * The text that `data:` lines carry: a string as it is, anything else as JSON. It is kept, and keeps nothing else alive.
 * Throws SSE_ERR_INVALID_DATA for what has no JSON form, and for lone surrogates, which UTF-8 cannot carry.
 */
export function serialize (data: unknown): string {
  if (typeof data === 'string') {
    if (!data.isWellFormed()) throw new InvalidData('must not have lone surrogates')
    return ownText(data)
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
 * Throws SSE_ERR_EVENT_TOO_LARGE when name and data, as they are written, have more than `maxBytes`. What all events have alike is not counted.
 * @param besides bytes that go with them, such as an id.
 */
export function assertEventSize (name: string, data: string, besides: number, maxBytes: number): void {
  if ((name.length + data.length) * MAX_BYTES_PER_CHARACTER + besides <= maxBytes) return
  const bytes = (name === 'message' ? 0 : Buffer.byteLength(name)) + bytesOfData(data) + besides
  if (bytes > maxBytes) throw new EventTooLarge(bytes, maxBytes)
}

/** Of the text of `data:` lines on the wire, without the prefix of the first and what ends the last. */
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

export function isOneLine (text: string): boolean {
  return !text.includes('\n') && !text.includes('\r')
}
