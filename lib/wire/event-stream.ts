import { InvalidEventName, InvalidId } from '../errors.js'
import { CONTROL_PREFIX, type ControlEvent } from '../events/control.js'
import { assertRetry, FORBIDDEN, isOneLine } from '../events/event-rules.js'

// The wire format, by WHATWG HTML, "Server-sent events": strings in, strings out. Nothing else in lib/ writes a field.

const LINE_END = /\r\n?|\n/
const PRINTABLE_ASCII = /^[\x20-\x7e]*$/
// A longer id comes back as a 431 and ends the client for good; ours leave room for proxies.
const MAX_ID_LENGTH = 1024

/** One block without its id: event, retry and data lines and the blank line that ends it. */
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
  // Most data is JSON of one line: no split, no array, and no regular expression that reads all of it.
  return isOneLine(data) ? `${text}data: ${data}\n\n` : `${text}${linesOf('data', data)}\n`
}

/** The text as lines of one field. In one piece: a string that grew line by line would keep an object for each. */
function linesOf (field: string, text: string): string {
  // By a plain separator it is cut in less than half the time.
  const lines = text.includes('\r') ? text.split(LINE_END) : text.split('\n')
  return `${field}: ${lines.join(`\n${field}: `)}\n`
}

/** The line that names a place for Last-Event-ID; put before a block it belongs to that block. */
export function encodeId (id: string): string {
  if (typeof id !== 'string' || id.length > MAX_ID_LENGTH) throw new InvalidId(`must be a string of at most ${MAX_ID_LENGTH} characters`)
  // Node decodes request headers as latin1, so other characters would come back as something else.
  if (!PRINTABLE_ASCII.test(id)) throw new InvalidId('must be printable ASCII')
  return encodeIdLine(id)
}

/** The same for a cursor of our own making: it cannot have anything else in it. */
export function encodeIdLine (cursor: string): string {
  return `id: ${cursor}\n`
}

/** A block that dispatches nothing but moves Last-Event-ID. */
export function encodeIdBlock (id: string): string {
  return encodeId(id) + '\n'
}

/** A block that dispatches nothing but sets the reconnection time, in milliseconds. */
export function encodeRetry (retry: number): string {
  assertRetry(retry)
  return `retry: ${retry}\n\n`
}

/** A comment: bytes that keep proxies and clients awake and dispatch nothing. */
export function encodeComment (text: string): string {
  return `${linesOf('', text)}\n`
}

/** A control event, in the reserved namespace. */
export function encodeControl (event: ControlEvent, data: object): string {
  return encodeEvent(CONTROL_PREFIX + event, JSON.stringify(data))
}
