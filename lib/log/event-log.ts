import { BrokerUnavailable, Closed, InvalidOption, SSEError } from '../errors.js'
import { NODE_EVENT } from '../events/control.js'
import { EventPriority, PRIORITIES } from '../events/event-rules.js'
import type { Message } from '../events/message.js'
import type { Target } from '../events/target.js'
import { inNoContext } from '../util/async-context.js'
import type { Clock } from '../util/clock.js'
import { GroupedWarning } from '../util/grouped-warning.js'
import type { Log } from '../util/logger.js'
import { isThenable } from '../util/promise.js'
import type { Broker, GapReason, History, Published } from './broker.js'
import { EPOCH, formatCursor } from './cursor.js'
import { degraded, up, type Health } from './health.js'
import type { Interest } from './log-index.js'

/** Receives events and changes of state from the event log. */
export interface LogListener {
  /** The log is open. */
  opened (): void
  /** Delivers an event to the connections of this node. Returns how many received it. */
  deliver (message: Message, epoch: string): number
  /** Receives a message between nodes. `seq` is its sequence number in the log; 0 for an ephemeral message. */
  told (text: string, seq: number): void
  /** The log has lost its continuity; see `Sink.gap`. A call of `state` follows. */
  gap (reason: GapReason, commandsKept: boolean | undefined): void
  /** The log has become reachable or unreachable, or has lost its continuity. */
  state (state: 'up' | 'down'): void
}

/**
 * How a message is sent to the other nodes.
 * - `logged`: in log order; a node that was disconnected reads it later.
 * - `ordered`: ephemeral, in order with the application's events.
 * - `apart`: ephemeral, on the channel between nodes.
 */
export type NodeDelivery = 'logged' | 'ordered' | 'apart'

const NO_TARGET: Target = { clientIds: [] }

/** What the event log uses of a broker. */
export type LoggedBroker = Pick<Broker, 'shared' | 'epoch' | 'position' | 'open' | 'publish' | 'hasNothing' | 'close'>

/** The event log of this node: opens and closes the broker, checks its results, and tracks position and health. @internal */
export class EventLog {
  readonly #broker: LoggedBroker
  readonly #history: History
  readonly #clock: Clock
  readonly #listener: LogListener
  readonly #log: Log
  readonly #hasNothingFailed: GroupedWarning
  #health: Health
  #state: 'up' | 'down' | null = null
  #position = 0
  #reached = 0
  /** Newest sequence number per priority. After opening, the position: older messages may have any priority. */
  readonly newest: number[] = new Array(PRIORITIES).fill(0)
  #opening: Promise<void> | null = null
  #opened = false
  #closed = false

  constructor (broker: LoggedBroker, { history, clock }: { readonly history: History, readonly clock: Clock }, listener: LogListener, log: Log) {
    this.#broker = broker
    this.#history = history
    this.#clock = clock
    this.#health = degraded('The event log is not open', clock.wall())
    this.#listener = listener
    this.#log = log
    this.#hasNothingFailed = new GroupedWarning(log, clock, 'Broker.hasNothing() threw, or returned a promise; the log is read instead')
  }

  /** Whether several nodes can share the log. */
  get shared (): boolean {
    return this.#broker.shared
  }

  /** Epoch of the log; see `Broker`. */
  get epoch (): string {
    return this.#broker.epoch
  }

  /** Newest sequence number that this node has delivered. */
  get position (): number {
    return this.#position
  }

  /** Newest sequence number that this node has begun to deliver. A filter that runs meanwhile can create a connection. */
  get reached (): number {
    return this.#reached
  }

  /** Health of the log on this node. */
  get health (): Health {
    return this.#health
  }

  /** Whether `open` has completed. */
  get isOpen (): boolean {
    return this.#opened
  }

  /**
   * Opens the log. Later calls return the same promise; after a failure, the next call tries again.
   * @throws SSE_ERR_CLOSED, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_INVALID_OPTION
   */
  open (): Promise<void> {
    if (this.#closed) return Promise.reject(new Closed())
    return (this.#opening ??= this.#open().catch(error => {
      this.#opening = null
      throw error
    }))
  }

  async #open (): Promise<void> {
    const clock = this.#clock
    // Without a context: timers and sockets of the broker deliver messages of all publishers.
    await inNoContext(() => this.#broker.open({
      deliver: message => {
        if (message.event !== NODE_EVENT) {
          if (message.seq > 0) this.#reached = message.seq
          const delivered = this.#listener.deliver(message, this.#broker.epoch)
          this.#passed(message)
          return delivered
        }
        this.#passed(message)
        this.#listener.told(message.data, message.seq)
        return 0
      },
      gap: (reason, err, commandsKept) => {
        this.#assertEpoch()
        this.#goTo(this.#broker.position)
        this.#listener.gap(reason, commandsKept)
        this.#listener.state('up')
        if (err !== undefined) this.#log.warn({ err, reason }, 'The event log has lost its continuity; connected clients receive sse:gap')
      },
      state: (state, err) => {
        if (this.#closed) return
        this.#health = state === 'up' ? up(clock.wall()) : degraded(err?.message ?? 'The event log cannot be reached', clock.wall(), this.#health)
        // If the state is the same, only the reason has changed.
        if (state === this.#state) return
        this.#state = state
        this.#listener.state(state)
        if (state === 'down') this.#log.error({ err }, 'The event log cannot be reached')
        else this.#log[this.#opened ? 'info' : 'debug']({}, 'The event log is reachable again')
      }
    }, this.#history, clock.wall))
    // `close` may have been called meanwhile: the listener must not see an open log.
    this.assertOpen()
    this.#assertEpoch()
    this.#goTo(this.#broker.position)
    this.#opened = true
    this.#listener.opened()
  }

  /** Rejects an epoch of the wrong form: it is written to clients without escaping. */
  #assertEpoch (): void {
    const { epoch } = this.#broker
    if (EPOCH.test(epoch)) return
    const error = new InvalidOption('broker', `has the epoch ${JSON.stringify(epoch)}: it must match ${EPOCH.source}`)
    this.#health = degraded(error.message, this.#clock.wall(), this.#health)
    throw error
  }

  /** Closes the log and the broker. Every later call fails with SSE_ERR_CLOSED. */
  async close (): Promise<void> {
    this.#closed = true
    this.#hasNothingFailed.flush()
    this.#health = degraded('The event log is closed', this.#clock.wall())
    if (this.#opening !== null) await this.#broker.close()
  }

  /** See `Broker.hasNothing`. */
  hasNothing (after: number, interest: Interest): boolean {
    try {
      const answer: unknown = this.#broker.hasNothing?.(after, interest)
      if (!isThenable(answer)) return answer === true
      answer.then(undefined, () => {})
      this.#hasNothingFailed.add({})
    } catch (err) {
      this.#hasNothingFailed.add({ err })
    }
    return false
  }

  /**
   * Returns the cursor of a client that has received everything up to now.
   * @throws SSE_ERR_CLOSED, SSE_ERR_BROKER_UNAVAILABLE
   */
  cursor (): string {
    this.assertOpen()
    if (!this.#opened) throw new BrokerUnavailable('is not open yet: await open() before position()')
    return formatCursor(this.epoch, this.#position)
  }

  /**
   * Rejects calls after `close`.
   * @throws SSE_ERR_CLOSED
   */
  assertOpen (): void {
    if (this.#closed) throw new Closed()
  }

  /**
   * Publishes a message. Returns the result itself if the broker answers synchronously, and a promise otherwise.
   * @throws SSE_ERR_CLOSED, SSE_ERR_BROKER_UNAVAILABLE
   */
  append (message: Message): Published | Promise<Published> {
    this.assertOpen()
    try {
      const answer = this.#broker.publish(message)
      return isPublished(answer) ? answer : settle(answer)
    } catch (cause) {
      throw unavailable(cause)
    }
  }

  /**
   * Sends a message to all nodes, this one included.
   * @throws SSE_ERR_CLOSED, SSE_ERR_BROKER_UNAVAILABLE
   */
  async tell (text: string, delivery: NodeDelivery): Promise<void> {
    await this.open()
    this.assertOpen()
    // The target matches no connection: clients that read the log skip the message.
    await this.#broker.publish({ event: NODE_EVENT, data: text, priority: EventPriority.NORMAL, target: NO_TARGET, ephemeral: delivery !== 'logged', ...(delivery !== 'ordered' && { channel: 'node' }) })
  }

  #passed ({ seq, priority }: Message): void {
    if (seq > 0) this.#reached = this.#position = this.newest[priority] = seq
  }

  /** Sets position and lanes: messages up to this position can have any priority. */
  #goTo (position: number): void {
    this.#reached = this.#position = position
    this.newest.fill(position)
  }
}

async function settle (answer: Published | Promise<Published>): Promise<Published> {
  try {
    const published: unknown = await answer
    if (isPublished(published)) return published
  } catch (cause) {
    throw unavailable(cause)
  }
  throw new BrokerUnavailable('returned an invalid result, expected { seq, delivered }; the event may have been published')
}

/** Errors of a third-party broker become the cause; the caller does not see them. */
function unavailable (cause: unknown): Error {
  return cause instanceof SSEError ? cause : new BrokerUnavailable('failed; whether the event was published is not known', { cause })
}

/** Validates the result of a third-party broker: its numbers become event ids. */
function isPublished (answer: unknown): answer is Published {
  const { seq, delivered } = (answer ?? {}) as Partial<Published>
  return (seq === null || Number.isSafeInteger(seq)) && Number.isSafeInteger(delivered)
}
