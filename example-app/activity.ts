import type { LogLines } from './events.js'
import type { LogSource } from './log-source.js'

const KEPT_LINES = 200

/** The log of this app itself: its requests and streams. */
export class Activity implements LogSource {
  readonly name = null
  readonly recent: string[] = []
  #unread: string[] = []
  #seq = 0

  get seq (): number {
    return this.#seq
  }

  /** Adds a line, with the time. */
  note (text: string): void {
    this.#unread.push(`${new Date().toLocaleTimeString('en-GB')} ${text}`)
    if (this.#unread.length > KEPT_LINES) this.#unread.shift()
  }

  async read (): Promise<LogLines[]> {
    const lines = this.#unread
    if (lines.length === 0) return []
    this.#unread = []
    this.recent.push(...lines)
    this.recent.splice(0, Math.max(0, this.recent.length - KEPT_LINES))
    return [{ seq: ++this.#seq, at: Date.now(), lines, skippedBytes: 0 }]
  }

  async close (): Promise<void> {}
}
