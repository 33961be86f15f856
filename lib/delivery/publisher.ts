import { FilterNotShared } from '../errors.js'
import type { EventInput } from '../events/event-input.js'
import { composeMessage, type MessageOptions } from '../events/message.js'
import type { BroadcastOptions } from '../events/target.js'
import { formatCursor } from '../log/cursor.js'
import type { Telemetry } from '../diagnostics/telemetry.js'
import type { EventLog } from '../log/event-log.js'
import type { Dispatcher, FrameReceiver } from './dispatcher.js'

/** The result of a broadcast. */
export interface Delivery {
  /** The id of the event; null for an ephemeral event. */
  id: string | null
  /** Number of connections of this node to which the event was written or queued. Connections of other nodes are not counted; 0 for a publisher. */
  delivered: number
}

/** Checks events and appends them to the log, or delivers `local` events on this node. @internal */
export class Publisher<R extends FrameReceiver> {
  readonly #options: MessageOptions
  readonly #log: EventLog
  readonly #dispatcher: Pick<Dispatcher<R>, 'deliver'>
  readonly #telemetry: Telemetry

  constructor (options: MessageOptions, log: EventLog, dispatcher: Pick<Dispatcher<R>, 'deliver'>, telemetry: Telemetry) {
    this.#options = options
    this.#log = log
    this.#dispatcher = dispatcher
    this.#telemetry = telemetry
  }

  /**
   * Publishes an event.
   * @throws SSE_ERR_FILTER_NOT_SHARED, SSE_ERR_CLOSED, SSE_ERR_BROKER_UNAVAILABLE, and the errors of `composeMessage`
   */
  async publish (event: EventInput, options: BroadcastOptions): Promise<Delivery> {
    const message = composeMessage(event, options, this.#options)
    const log = this.#log
    const local = options.local === true
    if (message.target.filter !== undefined && log.shared && !local) throw new FilterNotShared()
    const telemetry = this.#telemetry
    const start = telemetry.startOfPublish()
    try {
      // Local broadcasts are asynchronous too: an event that is published during a delivery must be delivered after it.
      if (local || !log.isOpen) await log.open()
      if (local) {
        log.assertOpen()
        const delivered = this.#dispatcher.deliver(message, log.epoch, false)
        telemetry.onPublish(message, delivered, start)
        return { id: null, delivered }
      }
      const answer = log.append(message)
      const { seq, delivered } = answer instanceof Promise ? await answer : answer
      telemetry.onPublish(message, delivered, start)
      return { id: seq === null ? null : formatCursor(log.epoch, seq), delivered }
    } catch (error) {
      telemetry.onPublish(message, 0, start, error)
      throw error
    }
  }
}
