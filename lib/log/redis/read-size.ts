import type { Connection } from './client.js'

/** Entries that a read asks for at most. */
export const MAX_COUNT = 500
/** Entries that the first read asks for: how large they are is not known yet. */
const FIRST_COUNT = 64
/** Bytes that a read asks for, as far as entries are as large as those before them. */
const MAX_BYTES = 1024 * 1024
const MAX_PATIENCE = 64

/**
 * How much of a stream one read asks for. Redis counts entries; a link carries bytes, and a reply that takes too long is
 * worth nothing. So the count follows the mean size of entries, is halved after a timeout, and grows again while replies are
 * quick. An entry that does not come alone in time is given twice the time.
 */
export class ReadSize {
  #limit = FIRST_COUNT
  #meanBytes = 1
  #patience = 1

  /** What the next read asks for. */
  get count (): number {
    return Math.max(1, Math.min(this.#limit, Math.floor(MAX_BYTES / this.#meanBytes)))
  }

  /** By what the time for a reply is multiplied. */
  get patience (): number {
    return this.#patience
  }

  /**
   * Sends an XREAD, XRANGE or XREVRANGE for `count` entries, and learns from the reply.
   * @param blockMs for which Redis may wait for entries.
   */
  async read (connection: Connection, command: readonly string[], blockMs: number, replyTimeoutMs: number): Promise<unknown> {
    const { count } = this
    const timeoutMs = blockMs + replyTimeoutMs * this.#patience
    const sentAt = performance.now()
    try {
      const reply = await connection.send(command, timeoutMs)
      const share = (performance.now() - sentAt) / timeoutMs
      const streams = command[0] === 'XREAD' ? (reply as [unknown, unknown[]][] | null ?? []).map(([, entries]) => entries) : [reply as unknown[]]
      for (const entries of streams) this.came(count, entries.length, bytesOfEntries(entries), share)
      return reply
    } catch (error) {
      // A timer may fire a little early.
      if (performance.now() - sentAt > timeoutMs - 10) this.late(count)
      throw error
    }
  }

  /**
   * A reply came.
   * @param share of the time that it had, 0 to 1.
   */
  came (count: number, entries: number, bytes: number, share: number): void {
    if (entries === 0) return
    const mean = bytes / entries
    this.#meanBytes = Math.max(1, mean, (3 * this.#meanBytes + mean) / 4)
    // A read that waited for its first entry was not slow, and got fewer than it asked for.
    if (entries < count) return
    if (share > 1 / 2) this.#limit = Math.max(1, count >> 1)
    else if (share < 1 / 4) {
      this.#limit = Math.min(MAX_COUNT, Math.max(this.#limit, 2 * count))
      this.#patience = Math.max(1, this.#patience / 2)
    }
  }

  /** No reply came in time. */
  late (count: number): void {
    if (count === 1) this.#patience = Math.min(MAX_PATIENCE, 2 * this.#patience)
    this.#limit = Math.max(1, count >> 1)
  }
}

function bytesOfEntries (entries: readonly unknown[]): number {
  let bytes = 0
  for (const entry of entries) for (const text of (entry as [unknown, unknown[]])[1]) bytes += String(text).length
  return bytes
}
