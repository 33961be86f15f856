import { EventPriority } from '../events/event-rules.js'
import type { Message } from '../events/message.js'
import type { Audience, Receiver } from '../subscriptions/audience.js'
import { inNoContext } from '../util/async-context.js'
import { Frame } from './frame.js'

/** A connection that takes frames. */
export interface FrameReceiver extends Receiver {
  /** Takes a frame to be written at the end of this turn. False if it was dropped. */
  receive (frame: Frame): boolean
}

/** Delivers messages to the connections of this node: selects the receivers, encodes once, and hands each the frame. @internal */
export class Dispatcher<R extends FrameReceiver> {
  readonly #audience: Audience<R>
  #messages = 0
  #deliveries = 0

  constructor (audience: Audience<R>) {
    this.#audience = audience
  }

  /** Messages delivered on this node so far. */
  get messages (): number {
    return this.#messages
  }

  /** Deliveries on this node so far: one for each message and connection. */
  get deliveries (): number {
    return this.#deliveries
  }

  /**
   * Delivers a message. Returns how many connections received it.
   * It runs in no context: `authorizeTopic` and wrappers of a response run in the same context at each delivery, here and on other nodes.
   */
  deliver (message: Message, epoch: string, fromLog: boolean): number {
    return inNoContext(() => this.#give(message, epoch, fromLog))
  }

  /** Delivers an event on this node only, past the log. */
  announce (message: Pick<Message, 'event' | 'data' | 'target'>, epoch: string): void {
    this.deliver({ ...message, priority: EventPriority.NORMAL, retry: undefined, key: undefined, ephemeral: true, seq: 0 }, epoch, false)
  }

  #give (message: Message, epoch: string, fromLog: boolean): number {
    let frame: Frame | null = null
    let delivered = 0
    // The application's code runs before any connection receives: a connection that it closes meanwhile tells its exact position.
    for (const connection of this.#audience.select(message.target)) {
      frame ??= Frame.ofMessage(message, epoch, fromLog)
      if (connection.receive(frame)) delivered++
    }
    this.#messages++
    this.#deliveries += delivered
    return delivered
  }
}
