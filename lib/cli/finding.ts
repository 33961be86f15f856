/** From the best to the worst. `skipped`: nothing was seen from which it could be told. */
export const LEVELS = ['ok', 'note', 'skipped', 'warning', 'problem'] as const
export type Level = typeof LEVELS[number]

/** One sentence about one thing that was checked. */
export interface Finding {
  readonly check: 'connection' | 'redirect' | 'status' | 'type' | 'version' | 'cache' | 'cookies' | 'compression' | 'opening' | 'retry' | 'format' | 'delivery' | 'idle' | 'resume' | 'cors' | 'preflight' | 'interruption'
  readonly level: Level
  readonly text: string
  /** The line to change, of a configuration or of code. */
  readonly change?: string
}

/** What takes longer is slow. */
export const SLOW_MS = 2_000

/** Formats a time: `12 ms`, `15 s`, `5.2 s`. */
export function duration (ms: number): string {
  return ms < 1_000 ? `${Math.round(ms)} ms` : `${Number((ms / 1_000).toFixed(1))} s`
}

/** Formats a value as JSON, which may leave control characters as they are. */
export function jsonText (value: unknown, indent = 0): string {
  return JSON.stringify(value, null, indent).split('\n').map(printable).join('\n')
}

/** Replaces control characters, with which a server could change the terminal, by their escapes. */
export function printable (text: string): string {
  // eslint-disable-next-line no-control-regex
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g, character => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`)
}
