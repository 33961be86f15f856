import { InvalidEventName, InvalidId } from '../errors.js'
import { CONTROL_PREFIX, type ControlEvent } from '../events/control.js'
import { assertRetry, FORBIDDEN, isOneLine } from '../events/event-rules.js'

// The wire format of WHATWG HTML, section "Server-sent events". Only this file of lib/ writes fields.

const LINE_END = /\r\n?|\n/
const PRINTABLE_ASCII = /^[\x20-\x7e]*$/
// A client sends its id as a header. If it is too long, the server answers 431 and the client never reconnects. The limit leaves
// a margin for the limits of proxies.
const MAX_ID_LENGTH = 1024

/**
 * Encodes an event without its id: event, retry and data lines and the final blank line.
 * @throws SSE_ERR_INVALID_EVENT_NAME, SSE_ERR_INVALID_RETRY
 */
export function encodeEvent (name: string, data: string, retry?: number): string {
  let text = ''
  if (name !== 'message') {
    if (FORBIDDEN.test(name)) throw new InvalidEventName(JSON.stringify(name.slice(0, 80)), 'must not have CR, LF or NUL')
    text = `event: ${name}\n`
  }
  if (retry !== undefined) {
    assertRetry(retry)
    text += `retry: ${retry}\n`
  }
  // Most data is JSON on one line. For it, splitting and scanning by a regular expression would be wasted time.
  return isOneLine(data) ? `${text}data: ${data}\n\n` : `${text}${linesOf('data', data)}\n`
}

/** Encodes a text as lines of one field. `join` returns a flat string; one built line by line would keep an object for each line. */
function linesOf (field: string, text: string): string {
  // Splitting by a string takes less than half the time of splitting by a regular expression.
  const lines = text.includes('\r') ? text.split(LINE_END) : text.split('\n')
  return `${field}: ${lines.join(`\n${field}: `)}\n`
}

/**
 * Encodes an id line, which sets the client's Last-Event-ID. Before an event, it is the id of that event.
 * @throws SSE_ERR_INVALID_ID
 */
export function encodeId (id: string): string {
  if (typeof id !== 'string' || id.length > MAX_ID_LENGTH) throw new InvalidId(`must be a string of at most ${MAX_ID_LENGTH} characters`)
  // Node decodes request headers as latin1, so other characters would not survive the return in Last-Event-ID.
  if (!PRINTABLE_ASCII.test(id)) throw new InvalidId('must be printable ASCII')
  return encodeIdLine(id)
}

/** Encodes an id line for a cursor of this package, whose form is always valid. */
export function encodeIdLine (cursor: string): string {
  return `id: ${cursor}\n`
}

/** Encodes a block that sets Last-Event-ID and dispatches no event. */
export function encodeIdBlock (id: string): string {
  return encodeId(id) + '\n'
}

/**
 * Encodes a block that sets the reconnection time, in milliseconds, and dispatches no event.
 * @throws SSE_ERR_INVALID_RETRY
 */
export function encodeRetry (retry: number): string {
  assertRetry(retry)
  return `retry: ${retry}\n\n`
}

/** Encodes a comment, which keeps the connection alive and dispatches no event. */
export function encodeComment (text: string): string {
  return `${linesOf('', text)}\n`
}

/** Encodes a control event, whose name has the reserved prefix. */
export function encodeControl (event: ControlEvent, data: object): string {
  return encodeEvent(CONTROL_PREFIX + event, JSON.stringify(data))
}
