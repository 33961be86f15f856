import { FilterNotShared } from '../errors.js'
import type { EventInput } from '../events/event-input.js'
import { composeMessage, type MessageOptions } from '../events/message.js'
import type { BroadcastOptions } from '../events/target.js'
import { formatCursor } from '../log/cursor.js'
import type { EventLog } from '../log/event-log.js'
import type { Dispatcher, FrameReceiver } from './dispatcher.js'

/** What became of a broadcast. */
export interface Delivery {
  /** The event's id, null when it was ephemeral. */
  id: string | null
  /** Connections of this node that it was written or queued for. */
  delivered: number
}

/** Publishes events: checks each, and appends it to the log, or delivers it on this node alone. @internal */
export class Publisher<R extends FrameReceiver> {
  readonly #options: MessageOptions
  readonly #log: EventLog
  readonly #dispatcher: Dispatcher<R>

  constructor (options: MessageOptions, log: EventLog, dispatcher: Dispatcher<R>) {
    this.#options = options
    this.#log = log
    this.#dispatcher = dispatcher
  }

  async publish (event: EventInput, options: BroadcastOptions): Promise<Delivery> {
    const message = composeMessage(event, options, this.#options)
    const log = this.#log
    const local = options.local === true
    if (message.target.filter !== undefined && log.shared && !local) throw new FilterNotShared()
    // Local broadcasts are asynchronous too: one that is published during a delivery is delivered after it.
    if (local || !log.isOpen) await log.open()
    if (local) {
      log.assertOpen()
      return { id: null, delivered: this.#dispatcher.deliver(message, log.epoch, false) }
    }
    const answer = log.append(message)
    const { seq, delivered } = answer instanceof Promise ? await answer : answer
    return { id: seq === null ? null : formatCursor(log.epoch, seq), delivered }
  }
}
