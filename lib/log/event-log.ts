import { BrokerUnavailable, Closed, InvalidOption, SSEError } from '../errors.js'
import { NODE_EVENT } from '../events/control.js'
import { EventPriority, PRIORITIES } from '../events/event-rules.js'
import type { Message } from '../events/message.js'
import type { Target } from '../events/target.js'
import { inNoContext } from '../util/async-context.js'
import type { Clock } from '../util/clock.js'
import type { Log } from '../util/logger.js'
import type { Broker, GapReason, History, Published } from './broker.js'
import { EPOCH } from './cursor.js'
import { degraded, up, type Health } from './health.js'

/** Receives what comes from the log. */
export interface LogListener {
  /** The log is open. */
  opened (): void
  /** Delivers an event to the connections of this node. Returns how many received it. */
  deliver (message: Message, epoch: string): number
  /** A node has sent the others a message; `seq` is its position in the log, 0 if it has none. */
  told (text: string, seq: number): void
  /** The log has lost its continuity; see `Sink.gap`. `state` follows. */
  gap (reason: GapReason, commandsKept: boolean | undefined): void
  /** The log is reached, or not; or it goes on elsewhere. */
  state (state: 'up' | 'down'): void
}

/**
 * How a message reaches the other nodes: `logged`, in the order of the log, and read also by a node that was away; `ordered`,
 * among the events, as ephemeral as those may be; `apart`, on the channel of nodes.
 */
export type NodeWay = 'logged' | 'ordered' | 'apart'

const NO_TARGET: Target = { clientIds: [] }

/** This node's side of the log: opening and closing, its position in it, its health, and what a broker answers. @internal */
export class EventLog {
  readonly #broker: Broker
  readonly #history: History
  readonly #clock: Clock
  readonly #listener: LogListener
  readonly #log: Log
  #health: Health
  #state: 'up' | 'down' | null = null
  #position = 0
  /** Newest sequence number per priority. After opening, the position: older messages may have any priority. */
  readonly newest: number[] = new Array(PRIORITIES).fill(0)
  #opening: Promise<void> | null = null
  #opened = false
  #closed = false

  constructor (broker: Broker, { history, clock }: { readonly history: History, readonly clock: Clock }, listener: LogListener, log: Log) {
    this.#broker = broker
    this.#history = history
    this.#clock = clock
    this.#health = degraded('The event log is not open', clock.wall())
    this.#listener = listener
    this.#log = log
  }

  /** Whether other nodes share the log. */
  get shared (): boolean {
    return this.#broker.shared
  }

  get epoch (): string {
    return this.#broker.epoch
  }

  /** Newest sequence number that has been delivered on this node. */
  get position (): number {
    return this.#position
  }

  get health (): Health {
    return this.#health
  }

  get isOpen (): boolean {
    return this.#opened
  }

  /** Opens the log, once. Rejects with SSE_ERR_CLOSED when it has been closed, also before it was ever opened. */
  open (): Promise<void> {
    if (this.#closed) return Promise.reject(new Closed())
    return (this.#opening ??= this.#open().catch(error => {
      // The next call tries again.
      this.#opening = null
      throw error
    }))
  }

  async #open (): Promise<void> {
    const clock = this.#clock
    // In no context: what the broker schedules delivers for all publishers.
    await inNoContext(() => this.#broker.open({
      deliver: message => {
        if (message.event !== NODE_EVENT) {
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
        if (err !== undefined) this.#log.warn({ err, reason }, 'The event log has lost its continuity; connected clients are sent a gap')
      },
      state: (state, err) => {
        if (this.#closed) return
        this.#health = state === 'up' ? up(clock.wall()) : degraded(err?.message ?? 'The event log cannot be reached', clock.wall(), this.#health)
        // Else only the reason has changed.
        if (state === this.#state) return
        this.#state = state
        this.#listener.state(state)
        if (state === 'down') this.#log.error({ err }, 'The event log cannot be reached')
        else this.#log[this.#opened ? 'info' : 'debug']({}, 'The event log is reached')
      }
    }, this.#history, clock.wall))
    // While it was opening: what is for an open log is not to begin.
    this.assertOpen()
    this.#assertEpoch()
    this.#goTo(this.#broker.position)
    this.#opened = true
    this.#listener.opened()
  }

  /** It is written to clients as it is. */
  #assertEpoch (): void {
    const { epoch } = this.#broker
    if (EPOCH.test(epoch)) return
    const error = new InvalidOption('broker', `has the epoch ${JSON.stringify(epoch)}: it must match ${EPOCH.source}`)
    this.#health = degraded(error.message, this.#clock.wall(), this.#health)
    throw error
  }

  async close (): Promise<void> {
    this.#closed = true
    this.#health = degraded('The event log is closed', this.#clock.wall())
    if (this.#opening !== null) await this.#broker.close()
  }

  /** @throws SSE_ERR_CLOSED */
  assertOpen (): void {
    if (this.#closed) throw new Closed()
  }

  /**
   * Appends a message. The log may answer at once; then no promise is made.
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

  /** Sends a message to all nodes. */
  async tell (text: string, way: NodeWay): Promise<void> {
    await this.open()
    this.assertOpen()
    // No connection is meant: a slow or returning client that reads the log passes it.
    await this.#broker.publish({ event: NODE_EVENT, data: text, priority: EventPriority.NORMAL, target: NO_TARGET, ephemeral: way !== 'logged', ...(way !== 'ordered' && { channel: 'node' }) })
  }

  #passed ({ seq, priority }: Message): void {
    if (seq > 0) this.#position = this.newest[priority] = seq
  }

  /** Messages up to this position may have any priority. */
  #goTo (position: number): void {
    this.#position = position
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
