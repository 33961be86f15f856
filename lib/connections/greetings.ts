import { Chunk } from '../wire/chunk.js'
import { greetingText, MAX_RETRY_MS } from './control-frames.js'

/** Number of different reconnection times of a node. */
const TIMES = 32

/** The last first block with one of the times. It is equal for all connections with this time until the next event is published. */
interface Greeting {
  readonly retryMs: number | null
  readonly cursor: string
  readonly chunk: Chunk
}

/**
 * The first blocks of streams, each with the next of 32 reconnection times, from the given one to twice as long. Without it, all clients
 * of a node that is killed would reconnect at the same moment: they have received no other time.
 */
export class Greetings {
  readonly #keepAliveMs: number | null
  readonly #last: (Greeting | null)[] = new Array(TIMES).fill(null)
  #next = 0

  /** @param keepAliveMs longest silence of a stream; null if there is no limit */
  constructor (keepAliveMs: number | null) {
    this.#keepAliveMs = keepAliveMs
  }

  /**
   * Returns the first block of the next stream. The first stream of a node receives `retryMs` itself.
   * @param retryMs reconnection time; null for a stream without control events
   * @param cursor the block with the cursor of the client; empty for none
   */
  next (retryMs: number | null, cursor: string): Chunk {
    const step = this.#next
    this.#next = (step + 1) % TIMES
    const last = this.#last[step]!
    if (last !== null && last.retryMs === retryMs && last.cursor === cursor) return last.chunk
    const spread = retryMs === null ? null : Math.min(Math.round(retryMs * (1 + step / TIMES)), MAX_RETRY_MS)
    const chunk = new Chunk(greetingText(this.#keepAliveMs, spread, cursor))
    this.#last[step] = { retryMs, cursor, chunk }
    return chunk
  }
}
