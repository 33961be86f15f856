import { PRIORITIES } from '../events/event-rules.js'

// A cursor says which part of the log a client has received. An epoch is one continuous life of the log; within it, messages are
// numbered. A client reads the log in lanes, one for each priority, each in log order. The cursor has one number per lane: all
// messages of that priority up to this number were received, or were not addressed to the client. Equal lanes, the usual case,
// are written once. Numbers are in base 36.
//   k3f9x2.2s          all messages up to 100
//   k3f9x2.2s~2s~30~30 HIGH and CRITICAL up to 108, LOW and NORMAL up to 100

/** For each priority, the sequence number up to which messages of that priority are read. */
export type Lanes = readonly number[]

/** A parsed cursor. */
export interface Cursor {
  /** Epoch of the log. */
  readonly epoch: string
  /** Sequence numbers by priority. */
  readonly lanes: Lanes
}

/** The required form of an epoch, which is part of every cursor. */
export const EPOCH = /^[A-Za-z0-9_-]{1,32}$/
const FORM = /^([A-Za-z0-9_-]{1,32})\.([0-9a-z]{1,11}(?:~[0-9a-z]{1,11}){0,3})$/

/** Returns the cursor of a client that has read each lane up to its number. */
export function formatLanes (epoch: string, lanes: Lanes): string {
  const first = lanes[0]!
  if (lanes.every(seq => seq === first)) return formatCursor(epoch, first)
  return `${epoch}.${lanes.map(seq => seq.toString(36)).join('~')}`
}

/** Returns the cursor of a client that has read all lanes up to and including `seq`. */
export function formatCursor (epoch: string, seq: number): string {
  return `${epoch}.${seq.toString(36)}`
}

/** Parses a cursor. Returns null for any other text: a cursor is untrusted input, so the form is checked strictly. */
export function parseCursor (text: string): Cursor | null {
  const parts = FORM.exec(text)
  if (parts === null) return null
  const numbers = parts[2]!.split('~').map(part => parseInt(part, 36))
  if (!numbers.every(Number.isSafeInteger)) return null
  if (numbers.length === 1) return { epoch: parts[1]!, lanes: new Array<number>(PRIORITIES).fill(numbers[0]!) }
  return numbers.length === PRIORITIES ? { epoch: parts[1]!, lanes: numbers } : null
}
