import { EventPriority } from '../events/event-rules.js'
import type { Broker, GapReason } from '../log/broker.js'
import { formatLanes, type Cursor, type Lanes } from '../log/cursor.js'
import type { ConnectionContext } from './context.js'

/** Reads the log at a position. Resolves with the reason of a gap, or null if the log has all later events. Rejects if the read fails. */
export async function gapAfter (broker: Broker, epoch: string, position: number): Promise<GapReason | null> {
  const { gap } = await broker.read({ epoch, after: position, priority: EventPriority.LOW, limit: 1 })
  return gap ?? null
}

/**
 * The resumption of a client that reconnects with a cursor. It decides whether the stream begins at the cursor or with a gap event.
 * Whether the history still contains the events after the cursor is known only when the first page is read.
 */
export class Resumption {
  readonly #context: ConnectionContext
  readonly #cursor: Cursor
  /** The cursor as the client sent it. */
  readonly lastEventId: string

  constructor (context: ConnectionContext, cursor: Cursor, lastEventId: string) {
    this.#context = context
    this.#cursor = cursor
    this.lastEventId = lastEventId
  }

  /** The sequence numbers of the cursor. */
  get lanes (): Lanes {
    return this.#cursor.lanes
  }

  /** The cursor in its standard form. */
  get cursor (): string {
    return formatLanes(this.#cursor.epoch, this.#cursor.lanes)
  }

  /** The reason of a gap as far as this node knows; null if this node has reached the cursor. */
  get gap (): GapReason | null {
    const { epoch, position } = this.#context.eventLog
    if (this.#cursor.epoch !== epoch) return 'epoch'
    return Math.max(...this.#cursor.lanes) > position ? 'unknown' : null
  }

  /** Reads the log at the cursor. Resolves with the reason of a gap; null if `gap` must be checked again. Rejects if the read fails. */
  async ask (broker: Broker): Promise<GapReason | null> {
    return await gapAfter(broker, this.#cursor.epoch, Math.max(...this.lanes))
  }

  /** The reason of a gap if the client has missed more events than the options allow; null otherwise. */
  get limit (): GapReason | null {
    const { eventLog: { position }, options: { maxReplayEvents } } = this.#context
    return maxReplayEvents > 0 && position - Math.min(...this.lanes) > maxReplayEvents ? 'limit' : null
  }
}
