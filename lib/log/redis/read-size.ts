import type { Connection } from './client.js'

/** Maximum number of entries of one read. */
export const MAX_COUNT = 500
/** Number of entries of the first read: their size is not known yet. */
const FIRST_COUNT = 64
/** Target size of a reply in bytes. */
const MAX_BYTES = 1024 * 1024
/** Maximum factor of the time-out. */
const MAX_PATIENCE = 64

/**
 * Chooses the number of entries of each read of a stream. Redis limits a reply by entries, but its transfer time depends on bytes,
 * and a reply that times out is lost. The number follows the mean size of entries, is halved after a time-out, and grows again
 * while replies are fast. If a read of a single entry times out, the time-out is doubled.
 */
export class ReadSize {
  #limit = FIRST_COUNT
  #meanBytes = 1
  #patience = 1

  /** Number of entries for the next read. */
  get count (): number {
    return Math.max(1, Math.min(this.#limit, Math.floor(MAX_BYTES / this.#meanBytes)))
  }

  /** Factor of the time-out for a reply. */
  get patience (): number {
    return this.#patience
  }

  /**
   * Sends an XREAD, XRANGE or XREVRANGE for `count` entries, and adapts to the reply.
   * @param blockMs time in milliseconds for which Redis can wait for entries
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
      // Timers can fire a few milliseconds early.
      if (performance.now() - sentAt > timeoutMs - 10) this.late(count)
      throw error
    }
  }

  /**
   * Adapts to a reply.
   * @param share the part of the time-out that passed before the reply, 0 to 1
   */
  came (count: number, entries: number, bytes: number, share: number): void {
    if (entries === 0) return
    const mean = bytes / entries
    this.#meanBytes = Math.max(1, mean, (3 * this.#meanBytes + mean) / 4)
    // A reply with fewer entries is not used: the read may have waited for its first entry, which is not slowness.
    if (entries < count) return
    if (share > 1 / 2) this.#limit = count >> 1
    else if (share < 1 / 4) {
      this.#limit = Math.min(MAX_COUNT, Math.max(this.#limit, 2 * count))
      this.#patience = Math.max(1, this.#patience / 2)
    }
  }

  /** Adapts to a time-out. */
  late (count: number): void {
    if (count === 1) this.#patience = Math.min(MAX_PATIENCE, 2 * this.#patience)
    this.#limit = count >> 1
  }
}

function bytesOfEntries (entries: readonly unknown[]): number {
  let bytes = 0
  for (const entry of entries) for (const text of (entry as [unknown, unknown[]])[1]) bytes += String(text).length
  return bytes
}
