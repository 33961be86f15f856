import { PRIORITIES } from '../events/event-rules.js'

// A cursor names what a client has seen. The log is one sequence of numbers within an epoch (the life of that log), and a
// client reads it in lanes, one for each priority, each in order. So what it has seen is one number a lane: everything of
// that priority up to and including that number, or not meant for it. Lanes that are level, the usual case, are written once.
//   k3f9x2.2s          everything up to 100 (base 36)
//   k3f9x2.2s~2s~30~30 HIGH and CRITICAL have been read ahead, up to 108

/** For each priority, the sequence number up to which that lane has been read. */
export type Lanes = readonly number[]

export interface Cursor {
  readonly epoch: string
  readonly lanes: Lanes
}

/** The form of an epoch: it is part of every cursor. */
export const EPOCH = /^[A-Za-z0-9_-]{1,32}$/
const FORM = /^([A-Za-z0-9_-]{1,32})\.([0-9a-z]{1,11}(?:~[0-9a-z]{1,11}){0,3})$/

export function formatLanes (epoch: string, lanes: Lanes): string {
  const first = lanes[0]!
  if (lanes.every(seq => seq === first)) return formatCursor(epoch, first)
  return `${epoch}.${lanes.map(seq => seq.toString(36)).join('~')}`
}

/** The cursor of a client that has seen everything up to and including `seq`. */
export function formatCursor (epoch: string, seq: number): string {
  return `${epoch}.${seq.toString(36)}`
}

/** What `text` names, or null when it is no cursor of ours. A cursor is input from a stranger: nothing is guessed. */
export function parseCursor (text: string): Cursor | null {
  const parts = FORM.exec(text)
  if (parts === null) return null
  const numbers = parts[2]!.split('~').map(part => parseInt(part, 36))
  if (!numbers.every(Number.isSafeInteger)) return null
  if (numbers.length === 1) return { epoch: parts[1]!, lanes: new Array<number>(PRIORITIES).fill(numbers[0]!) }
  return numbers.length === PRIORITIES ? { epoch: parts[1]!, lanes: numbers } : null
}
