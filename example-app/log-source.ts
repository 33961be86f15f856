import type { LogLines } from './events.js'

/** What the log box shows. */
export interface LogSource {
  /** Name of the file; null for the log of the app itself. */
  readonly name: string | null
  /** The last lines, oldest first. */
  readonly recent: readonly string[]
  /** Sequence number of the newest event; 0 before the first. */
  readonly seq: number
  /** Returns the lines since the last call, as events. */
  read (): Promise<LogLines[]>
  close (): Promise<void>
}
