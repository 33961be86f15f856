import { EventPriority } from '../events/event-rules.js'
import type { Broker, GapReason } from '../log/broker.js'
import { formatLanes, type Cursor } from '../log/cursor.js'
import type { ConnectionContext } from './context.js'
import { gapFrame } from './control-frames.js'
import type { Outbox } from './outbox.js'

/**
 * A client that has come back with a cursor, until it is known where its stream begins: there, or with the gap that says why not. That
 * the log no longer keeps what comes after the cursor shows later, when the first page is read (`Ring.read`, `Backlog.readPage`).
 */
export class Resumption {
  readonly #context: ConnectionContext
  readonly #cursor: Cursor
  /** As the client has written it. */
  readonly #lastEventId: string

  constructor (context: ConnectionContext, cursor: Cursor, lastEventId: string) {
    this.#context = context
    this.#cursor = cursor
    this.#lastEventId = lastEventId
  }

  get cursor (): string {
    return formatLanes(this.#cursor.epoch, this.#cursor.lanes)
  }

  /** Why this node knows of no such place in the log; null if it does. */
  get gap (): GapReason | null {
    const { epoch, position } = this.#context.eventLog
    if (this.#cursor.epoch !== epoch) return 'epoch'
    return Math.max(...this.#cursor.lanes) > position ? 'unknown' : null
  }

  /** Resolves with the gap before the cursor, or with null when there is reason to look again whether this node knows it. Rejects when the log cannot be asked. */
  async ask (broker: Broker): Promise<GapReason | null> {
    const { epoch, lanes } = this.#cursor
    const { gap } = await broker.read({ epoch, after: Math.max(...lanes), priority: EventPriority.LOW, limit: 1 })
    return gap ?? null
  }

  /**
   * Begins at the cursor, or with a gap.
   * @param outbox makes it if there is none: a client that has missed nothing needs none.
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
