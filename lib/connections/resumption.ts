import { EventPriority } from '../events/event-rules.js'
import type { Broker, GapReason } from '../log/broker.js'
import { formatLanes, type Cursor } from '../log/cursor.js'
import type { ConnectionContext } from './context.js'
import { gapFrame } from './control-frames.js'
import type { Outbox } from './outbox.js'

/**
 * The resumption of a client that reconnects with a cursor. It decides whether the stream begins at the cursor or with a gap event.
 * Whether the history still contains the events after the cursor is known only when the first page is read.
 */
export class Resumption {
  readonly #context: ConnectionContext
  readonly #cursor: Cursor
  /** The cursor as the client sent it. */
  readonly #lastEventId: string

  constructor (context: ConnectionContext, cursor: Cursor, lastEventId: string) {
    this.#context = context
    this.#cursor = cursor
    this.#lastEventId = lastEventId
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
    const { epoch, lanes } = this.#cursor
    const { gap } = await broker.read({ epoch, after: Math.max(...lanes), priority: EventPriority.LOW, limit: 1 })
    return gap ?? null
  }

  /**
   * Begins the stream at the cursor, or with a gap event if there is a reason for it.
   * @param outbox returns the outbox, created if needed; a client that has missed nothing does not need it
   */
  begin (gap: GapReason | null, outbox: () => Outbox): void {
    const { eventLog: { position }, options: { maxReplayEvents } } = this.#context
    const { lanes } = this.#cursor
    const oldest = Math.min(...lanes)
    const reason = gap ?? (maxReplayEvents > 0 && position - oldest > maxReplayEvents ? 'limit' : null)
    if (reason !== null) outbox().skip(gapFrame(reason, this.#lastEventId))
    else if (oldest < position) outbox().startAt(lanes, position)
  }
}
