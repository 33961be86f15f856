import type { GapReason } from '../log/broker.js'
import type { RunState } from '../log/run-store.js'

// The id of an event of a run: `r:`, the generation in base 36, and the number of the event. The end has the number after the last event.
// The colon keeps it apart from the cursors of the log, whose epochs cannot contain one.
//   r:mk3f9x2ab.12

const FORM = /^r:([0-9a-z]{1,11})\.(0|[1-9][0-9]{0,14})$/

/** A position in a run: events up to this number were received. */
export interface RunPosition {
  readonly generation: number
  readonly after: number
}

/** Returns the beginning of the ids of a generation. */
export function runIdPrefix (generation: number): string {
  return `r:${generation.toString(36)}.`
}

/** Returns the id of an event. */
export function formatRunId (generation: number, event: number): string {
  return runIdPrefix(generation) + event
}

/** Parses an id. Returns null for any other text: it is untrusted input. */
export function parseRunId (text: string): RunPosition | null {
  const parts = FORM.exec(text)
  if (parts === null) return null
  const generation = parseInt(parts[1]!, 36)
  return Number.isSafeInteger(generation) ? { generation, after: Number(parts[2]) } : null
}

/** Where a client begins to read a run. `gap`: why it cannot begin at its cursor; null if it can, or has none. */
export interface RunStart extends RunPosition {
  readonly gap: GapReason | null
  /** Whether the client has received everything, including the end. */
  readonly isOver: boolean
}

/** Returns where a client with this cursor begins. */
export function startOf ({ generation, status, events }: RunState, cursor: string | null): RunStart {
  if (!cursor) return { generation, after: 0, gap: null, isOver: false }
  const position = parseRunId(cursor)
  const gap = position === null ? 'malformed' : position.generation !== generation ? 'epoch' : position.after > events + (status === 'running' ? 0 : 1) ? 'unknown' : null
  if (gap !== null) return { generation, after: 0, gap, isOver: false }
  return { generation, after: Math.min(position!.after, events), gap, isOver: position!.after > events }
}

/** Returns whether there is nothing to send to a client with this cursor. `control`: whether it can receive `sse:end`. */
export function hasNothing (run: { readonly state: RunState } | null, cursor: string | null, control: boolean): boolean {
  if (run === null) return !control || !cursor || parseRunId(cursor) === null
  const { state } = run
  const { after, gap, isOver } = startOf(state, cursor)
  return isOver || (!control && gap === null && state.status !== 'running' && after === state.events && state.events > 0)
}
