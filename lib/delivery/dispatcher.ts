import { EventPriority } from '../events/event-rules.js'
import type { Message } from '../events/message.js'
import type { Audience, Receiver } from '../subscriptions/audience.js'
import { inNoContext } from '../util/async-context.js'
import { Frame } from './frame.js'

/** A connection that can receive frames. */
export interface FrameReceiver extends Receiver {
  /** Queues a frame for the end of this turn. Returns false if the frame was dropped. */
  receive (frame: Frame): boolean
}

/** Delivers messages to the connections of this node. Each message is encoded once for all receivers. @internal */
export class Dispatcher<R extends FrameReceiver> {
  readonly #audience: Audience<R>
  #messages = 0
  #deliveries = 0

  constructor (audience: Audience<R>) {
    this.#audience = audience
  }

  /** Number of messages delivered on this node. */
  get messages (): number {
    return this.#messages
  }

  /** Number of deliveries on this node: one for each message and receiver. */
  get deliveries (): number {
    return this.#deliveries
  }

  /**
   * Delivers a message and returns the number of connections that received it. It runs without an AsyncLocalStorage context, so that
   * `authorizeTopic` and response wrappers have the same context at each delivery, on this and on other nodes.
   */
  deliver (message: Message, epoch: string, fromLog: boolean): number {
    return inNoContext(() => this.#give(message, epoch, fromLog))
  }

  /** Delivers an event on this node only, without the log. */
  announce (message: Pick<Message, 'event' | 'data' | 'target'>, epoch: string): void {
    this.deliver({ ...message, priority: EventPriority.NORMAL, retry: undefined, key: undefined, ephemeral: true, seq: 0 }, epoch, false)
  }

  #give (message: Message, epoch: string, fromLog: boolean): number {
    let frame: Frame | null = null
    let delivered = 0
    // `select` runs all code of the application before the first delivery: a connection that this code closes has an exact cursor.
    for (const connection of this.#audience.select(message.target)) {
      frame ??= Frame.ofMessage(message, epoch, fromLog)
      if (connection.receive(frame)) delivered++
    }
    this.#messages++
    this.#deliveries += delivered
    return delivered
  }
}
